"""What the benchmarks print and write: Markdown tables, targets beside figures, JSON and a plot."""

import json
from dataclasses import asdict, dataclass, field

COLOURS = "tab:blue tab:cyan tab:red tab:orange black grey brown green lime purple magenta".split()


@dataclass
class Table:
    """Rows of named figures.

    Parameters
    ----------
    title, note : str
        What was measured, and what a reader should know to read it.
    rows : list of dict
        One figure a column; the first row names the columns.
    """

    title: str
    rows: list = field(default_factory=list)
    note: str = ""


@dataclass
class Target:
    """A bound stated in advance, and what was measured; `sense` is "<=" or ">=", `where` says on what."""

    name: str
    sense: str
    limit: float
    measured: float
    unit: str = ""
    where: str = ""

    @property
    def is_met(self):
        """Whether the measured figure keeps the bound."""
        return self.measured <= self.limit if self.sense == "<=" else self.measured >= self.limit


def figure(number):
    """A figure as a reader wants it: three digits, and integers whole."""
    if number is None:
        return ""
    if isinstance(number, float):
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"
    return f"{number:,}" if isinstance(number, int) else str(number)


def markdown_table(rows):
    """Rows of figures as a Markdown table, columns aligned."""
    if not rows:
        return "(nothing measured)"
    columns = list(rows[0])
    cells = [columns] + [[figure(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def heading(environment):
    """The command that makes the report, and what else its figures depend on."""
    details = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "command")
    return f"`{environment['command']}`\n\n{details}"


def markdown(table):
    """A table with its title and note."""
    return "\n\n".join(filter(None, ["\n## " + table.title, markdown_table(table.rows), table.note]))


def markdown_targets(targets):
    """The bounds beside what was measured."""
    return markdown(Table("Targets", [target_row(target) for target in targets]))


def target_row(target):
    """A target as a row of the last table."""
    return {
        "what": target.name,
        "on": target.where,
        "target": f"{target.sense} {figure(target.limit)} {target.unit}".rstrip(),
        "measured": f"{figure(target.measured)} {target.unit}".rstrip(),
        "met": "yes" if target.is_met else "no",
    }


def write_json(path, environment, tables, targets):
    """All figures, unrounded."""
    content = {
        "environment": environment,
        "tables": [asdict(table) for table in tables],
        "targets": [{**asdict(target), "is_met": target.is_met} for target in targets],
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)


def plot(path, tables):
    """Cost against size on logarithmic axes, one panel a problem that was measured at several sizes."""
    try:
        import matplotlib
    except ImportError:
        return f"no plot: matplotlib is not installed; {path} not written"
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(table, name) for table in tables for name in groups(table)]
    if not panels:
        return f"no plot: nothing was measured against size; {path} not written"
    n_rows = -(-len(panels) // 3)
    figure_, axes = plt.subplots(n_rows, 3, figsize=(20, 4 * n_rows), squeeze=False)
    for axis, (table, name) in zip(axes.flat, panels, strict=False):
        draw_costs(axis, name, [row for row in table.rows if row["problem"] == name])
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure_.tight_layout()
    figure_.savefig(path, dpi=120)
    plt.close(figure_)
    return f"plot: {path}"


def groups(table):
    """The problems of a table that were measured at more than one size, in nanoseconds an operation."""
    names = [
        row["problem"] for row in table.rows if row.get("problem") and row.get("operations") and "record ns/op" in row
    ]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def draw_costs(axis, name, rows):
    """One panel: nanoseconds an operation against operations."""
    axis.set_prop_cycle("color", COLOURS)
    for column in rows[0]:
        if not column.endswith("ns/op"):
            continue
        points = [(row["operations"], row[column]) for row in rows if row[column]]
        if points:
            axis.loglog(*zip(*points, strict=True), "o-", label=column.removesuffix(" ns/op"))
    axis.set(title=name, xlabel="operations of the primal", ylabel="ns an operation")
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))

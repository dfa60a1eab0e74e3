"""Pictures of schedules: in characters, and with matplotlib."""

from __future__ import annotations

from typing import Any

from tapejit.checkpointing.schedules import Schedule
from tapejit.errors import ScheduleError

__all__ = ["draw", "plot"]

_WIDEST = 150  # steps of a drawing in characters


def draw(schedule: Schedule) -> str:
    """A schedule in characters: steps to the right, time downwards, one line for each time that something is reversed.

    ``-`` is a step that is advanced, ``<`` the step that is reversed. ``|`` stands at the step that begins with a state that is held, ``:`` if it is
    held on disk, and ``o`` if it is stored or restored on this line.

    Parameters
    ----------
    schedule : Schedule
        Of at most 150 steps; `plot` draws longer ones.

    Returns
    -------
    str

    Examples
    --------
    >>> from tapejit.checkpointing import binomial, draw
    >>> print(draw(binomial(8, 3)))
    o--o-o-<
    |  | o<
    |  | <
    |  o<
    |  <
    oo<
    |<
    <
    """
    n = schedule.n_steps
    if n > _WIDEST:
        raise ScheduleError(f"a drawing in characters has at most {_WIDEST} steps, got {n}; see plot")
    lines = []
    held: dict[int, int] = {}  # slot: state
    line = [" "] * n
    for kind, step, to, slot in schedule:
        if kind == "advance":
            line[step:to] = [mark if mark == "o" else "-" for mark in line[step:to]]
        elif kind == "store":
            held[slot] = step
            line[step] = "o"
        elif kind == "restore":
            line[step] = "o"
        elif kind == "free":
            del held[slot]
            line[step] = " "
        else:
            line[step] = "<"
            lines.append("".join(line).rstrip())
            line = [" "] * n
            for where, state in held.items():
                line[state] = ":" if where in schedule.on_disk else "|"
    return "\n".join(lines)


def plot(schedule: Schedule, axes: Any = None) -> Any:
    """Draw a schedule with matplotlib: steps to the right, actions one after the other downwards.

    Lines that slope are advances, lines that hang down are snapshots as long as they are held (dashed: on disk), dots are reversed steps.

    Parameters
    ----------
    schedule : Schedule
    axes : matplotlib axes, optional
        Where to draw; new ones if not given.

    Returns
    -------
    matplotlib axes
    """
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots()
    advances, reverses = [], []
    snapshots: dict[bool, list[Any]] = {True: [], False: []}
    stored: dict[int, tuple[int, int]] = {}  # slot: state, since when
    time = 0
    for kind, step, to, slot in schedule:
        if kind == "advance":
            advances.append([(step, time), (to, time + to - step)])
            time += to - step
        elif kind == "store":
            stored[slot] = step, time
        elif kind == "reverse":
            reverses.append((step + 0.5, time))
            time += 1
        elif kind == "free":
            state, since = stored.pop(slot)
            snapshots[slot in schedule.on_disk].append([(state, since), (state, time)])
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(advances, colors="tab:blue", label="advance"))
    for on_disk, lines in snapshots.items():
        if lines:
            label, style = ("snapshot on disk", "--") if on_disk else ("snapshot", "-")
            axes.add_collection(LineCollection(lines, colors="0.6", linestyles=style, linewidths=1, label=label))
    axes.plot(
        *zip(*reverses, strict=True) if reverses else ((), ()), ".", color="tab:red", markersize=3, label="reverse"
    )
    axes.set(xlabel="step", ylabel="steps computed so far", xlim=(-0.5, schedule.n_steps + 0.5), ylim=(time + 1, -1))
    axes.legend(loc="lower right")
    return axes

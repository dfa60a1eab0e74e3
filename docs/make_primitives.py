"""Write `docs/primitives.md` from the op table: ``python docs/make_primitives.py``."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from tapejit.expressions import CONSTANTS, Tree, source
from tapejit.ops import OPS, Op, second_partial_trees

PAGE = Path(__file__).with_name("primitives.md")

HEAD = """\
# Primitives

Made from `tapejit/ops.py` by `python docs/make_primitives.py`: do not edit.

Expressions use `x` and `y` for the operands and `v` for the value just computed; `select(c, a, b)` and `a if c else b` are lazy, so the side
that is not taken may be NaN. Partials stand in the order of the operands, second partials in the order xx, xy, yy: those of the row where it
gives them (marked *), else the partials differentiated. Outside its domain a primitive is NaN. A `math` function of an active scalar is
refused: write the NumPy name; the names are in the rows for compiled code. See [notation](notation.md) for the conventions, and
[adding a primitive](adding_a_primitive.md) for rows of your own.

| name | value | partials | second partials | domain | at kinks | answers to |
|---|---|---|---|---|---|---|
"""

TAIL = """
`constant`, `input` and `block` are storage and have no value of their own. `select` reads its condition from the slot before it, which is a
`positive` slot; it is what `np.where` records. `power_constant` is what a plain exponent is lowered to, unless that is 1, 2, 3, 0.5 or -1;
`length` is the root in `np.linalg.norm`; `chain` multiplies adjoints by partials in nested transforms.
"""


def page() -> str:
    """The text of the page."""
    return HEAD + "".join(row(op) for op in OPS if op.arity) + TAIL


def row(op: Op) -> str:
    """One primitive as a row of the table."""
    if op.name == "select":
        value, partials, seconds = code("x if condition else y"), "1 to the chosen operand", "0"
    else:
        value, partials = code(op.value), listed(op.partials)
        given = op.seconds is not None
        seconds = listed(op.seconds or [readable(tree) for tree in second_partial_trees(op.name)]) + " *" * given
    functions = [f"np.{name}" for name in op.numpy]
    functions += [f"scipy.special.{name}" for name in op.scipy]
    functions += [f"math.{name}" for name in op.math]
    domain = ", ".join(str(interval) for interval in op.domain)
    cells = [code(op.name), value, partials, seconds, domain, op.kink, ", ".join(code(name) for name in functions)]
    return f"| {' | '.join(cells)} |\n"


def listed(texts: Iterable[str]) -> str:
    """Expressions in a cell; all zeros are one."""
    return "0" if set(texts) == {"0"} else ", ".join(code(text) for text in texts)


class _Shorter(ast.NodeTransformer):
    """Integers without a point, constants by their names."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        number = node.value
        if isinstance(number, float) and number in _NAMES:
            return ast.Name(_NAMES[number])
        return ast.Constant(int(number)) if isinstance(number, float) and number.is_integer() else node


_NAMES = {number: name for name, number in CONSTANTS.items()}


def readable(tree: Tree) -> str:
    """An expression without the parentheses that precedence makes superfluous."""
    return ast.unparse(_Shorter().visit(ast.parse(source(tree), mode="eval").body))


def code(text: str) -> str:
    """Text in a cell of a table as code."""
    return f"`{text}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

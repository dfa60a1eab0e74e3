"""Primitives that users add: one more row of the op table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapejit import ops
from tapejit.errors import UnsupportedError
from tapejit.expressions import names, parse
from tapejit.ops import REAL, Interval, Op
from tapejit.recording.array import is_active
from tapejit.recording.elementwise import evaluate
from tapejit.recording.native.user_rows import announce

__all__ = ["Primitive", "primitive"]


class Primitive:
    """A primitive as a function of numbers, ndarrays and active values; applied element by element. Made by `primitive`.

    Attributes
    ----------
    op : Op
        Its row of the op table.
    """

    def __init__(self, op: Op) -> None:
        self.op = op
        self.__name__ = op.name
        self.__qualname__ = op.name
        self.__module__ = __name__

    def __call__(self, *operands: Any) -> Any:
        for x in operands:
            if not isinstance(x, (float, int)) and not is_active(x) and np.asarray(x).dtype.kind not in "fiub":
                raise UnsupportedError(f"{self.op.name} takes real numbers, got dtype {np.asarray(x).dtype}")
        return evaluate(self.op.name, *operands)

    def __repr__(self) -> str:
        return f"<primitive {self.op.name}: {self.op.value}>"

    def __reduce__(self) -> tuple:
        op = self.op
        return primitive, (op.name, op.value, op.partials, op.domain, op.kink, op.seconds)


def primitive(
    name: str,
    value: str,
    partials: str | Sequence[str],
    domain: Sequence[Interval] | None = None,
    kink: str = "",
    seconds: Sequence[str] | None = None,
) -> Primitive:
    """Add a primitive of one or two operands, usable at once in every front end and every sweep.

    Its value and partials are compiled at the first use (a fraction of a second) and kept on disk. Second and higher derivatives follow from
    the expressions.

    Parameters
    ----------
    name : str
        What tapes and errors call it, and what other expressions may call.
    value : str
        Expression over the operands `x` and `y`: numbers, ``+ - * /``, comparisons, ``select(condition, a, b)``, the constants
        ``pi``, ``LN2``, ``inf``, ``nan``, ..., and primitives by name (docs/primitives.md).
    partials : str or sequence of str
        One expression an operand, which may also use the result `v`.
    domain : sequence of Interval, optional
        Where the operands may lie, for errors under `debug`; all real numbers by default.
    kink : str
        What the partial is where the derivative does not exist, for the documentation.
    seconds : sequence of str, optional
        Second partials ``(xx,)`` or ``(xx, xy, yy)``, where differentiating `partials` would meet 0 x inf or 0 / 0.

    Returns
    -------
    Primitive

    Raises
    ------
    ValueError
        If an expression is not in the vocabulary, the counts do not match, or another primitive has this name.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> softsign = tj.primitive("softsign", "x / (1 + abs(x))", "1 / square(1 + abs(x))", kink="1 at x = 0")
    >>> softsign(np.array([0.0, 1.0, -3.0]))
    array([ 0.  ,  0.5 , -0.75])
    >>> tj.grad(softsign)(1.0)
    0.25
    """
    if not name.isidentifier():
        raise ValueError(f"the name of a primitive must be an identifier, got {name!r}")
    given = (partials,) if isinstance(partials, str) else tuple(partials)
    if not 1 <= len(given) <= 2:
        raise ValueError(f"a primitive has one or two operands, so one or two partials; got {len(given)}")
    intervals = (REAL,) * len(given) if domain is None else tuple(domain)
    op = Op(name, value, given, intervals, kink=kink, seconds=None if seconds is None else tuple(seconds))
    if "v" in names(parse(value)):
        raise ValueError(f"primitive {name!r}: its value reads v, which is what it gives; only partials may")
    ops.check_names(op)
    ops.add_row(op)
    made = Primitive(op)
    announce(made)
    return made

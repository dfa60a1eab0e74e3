"""Primitives that users add, in compiled code: plain and active numbers, and arrays element by element.

Numba learns of a primitive when it is made (`tapejit.primitive`), so that plain functions may call it; recording it takes no more than
the row.
"""

from __future__ import annotations

import sys
from typing import Any

import numba
from numba import types
from numba.extending import overload

from tapejit.expressions import parse, source
from tapejit.ops import Op
from tapejit.sweeps.kernel import FLAGS
from tapejit.sweeps.primitives import inlined
from tapejit.sweeps.special import NAMESPACE

__all__ = ["announce", "made"]

made: list[Any] = []  # the primitives of this process


def announce(primitive: Any) -> None:
    """Let compiled code call a primitive."""
    compute = numba.njit(**FLAGS)(_formula(primitive.op))
    kinds = (types.Float, types.Integer, types.Boolean)

    if primitive.op.arity == 1:

        def plain(x):
            if isinstance(x, kinds):
                return lambda x: compute(float(x))
            return None
    else:

        def plain(x, y):
            if isinstance(x, kinds) and isinstance(y, kinds):
                return lambda x, y: compute(float(x), float(y))
            return None

    overload(primitive)(plain)
    made.append(primitive)
    if scalars := sys.modules.get("tapejit.recording.native.scalars"):
        scalars.register_primitive(primitive)


def _formula(op: Op) -> Any:
    """The value of a row as a Python function of numbers."""
    parameters = ", ".join("xy"[: op.arity])
    namespace = dict(NAMESPACE)
    text = f"def {op.name}({parameters}):\n    return {source(inlined(parse(op.value)))}\n"
    exec(compile(text, f"<primitive {op.name}>", "exec"), namespace)
    return namespace[op.name]

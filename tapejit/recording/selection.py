"""Choices between values, and rounding: ``np.where``, ``np.clip``, ``np.select``. A condition is data on the tape, not a decision."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapejit.errors import UnsupportedError
from tapejit.recording.array import Array, is_active
from tapejit.recording.elementwise import select, stored
from tapejit.recording.recorder import source_line
from tapejit.recording.rules import rule

_MISSING = np._NoValue


@rule("where")
def _where(condition: Any, *choices: Any) -> Any:
    if not choices:
        return np.nonzero(condition)
    return select(condition, *choices)


@rule("clip")
def _clip(
    a: Any, a_min: Any = _MISSING, a_max: Any = _MISSING, out: Any = None, *, min: Any = _MISSING, max: Any = _MISSING
) -> Any:
    low = min if a_min is _MISSING else a_min
    high = max if a_max is _MISSING else a_max
    clipped = a if low is None or low is _MISSING else np.maximum(a, low)
    clipped = clipped if high is None or high is _MISSING else np.minimum(clipped, high)
    return stored(np.positive(a) if clipped is a else clipped, out)


@rule("select")
def _select(condlist: Any, choicelist: Any, default: Any = 0.0) -> Any:
    if len(condlist) != len(choicelist):
        raise ValueError("list of cases must be same length as list of conditions")
    result = default
    for condition, choice in zip(reversed(condlist), reversed(choicelist), strict=True):
        result = (
            select(condition, choice, result)
            if is_active([condition, choice, result])
            else np.where(condition, choice, result)
        )
    return result


@rule("piecewise")
def _piecewise(x: Any, condlist: Any, funclist: Any, *args: Any, **kwargs: Any) -> Any:
    raise UnsupportedError(
        f"np.piecewise of active values is not supported ({source_line()}); use np.select or np.where"
    )


@rule("nan_to_num")
def _nan_to_num(
    x: Any, copy: bool = True, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Any:
    largest = np.finfo(float).max
    clean = select(np.isnan(x), nan, x)
    clean = select(np.equal(clean, np.inf), largest if posinf is None else posinf, clean)
    clean = select(np.equal(clean, -np.inf), -largest if neginf is None else neginf, clean)
    if not copy and isinstance(x, Array):
        x[...] = clean
        return x
    return clean


# Rounding.


@rule("round", "around")
def _round(a: Any, decimals: int = 0, out: Any = None) -> Any:
    if decimals:
        raise UnsupportedError(
            f"np.round with decimals={decimals} of active values is not supported ({source_line()}); its derivative is 0"
        )
    return stored(np.rint(a), out)


@rule("fix")
def _fix(x: Any, out: Any = None) -> Any:
    return stored(np.trunc(x), out)


@rule("sinc")
def _sinc(x: Any) -> Any:
    # Around 0 the Taylor polynomial, so that value and derivatives are exact there too.
    y = np.pi * x
    near = np.abs(y) < 1e-2
    square = np.square(select(near, y, 0.0))
    series = 1.0 - square / 6.0 * (1.0 - square / 20.0 * (1.0 - square / 42.0 * (1.0 - square / 72.0)))
    away = select(near, 1.0, y)
    return select(near, series, np.sin(away) / away)

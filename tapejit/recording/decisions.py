"""Functions whose results are integers or positions: ``argmax``, ``sort``, ``searchsorted``, ``nonzero``.

They are decided on the values of the recording; the comparisons that decided them become guards, which a replay must find again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tapejit.errors import PassiveConversionError, UnsupportedError
from tapejit.recording.array import Array, decided, is_active
from tapejit.recording.elementwise import select, stored
from tapejit.recording.recorder import source_line
from tapejit.recording.reductions import normalised_axes
from tapejit.recording.rules import RULES, as_array, rule
from tapejit.recording.variable import Truth

# Order.


def _order_guard(x: Array, order: np.ndarray, stable: bool) -> None:
    """Remember that the elements stand in this order: neighbours compare the same way in a replay.

    Where the order is stable, a later element that catches up with an earlier one changes it.
    """
    ordered = Array.of_slots(x.tape, np.take_along_axis(x.slots(), order, axis=-1))
    ties = (np.diff(order, axis=-1) > 0) | (not stable)
    earlier, later = ordered[..., :-1], ordered[..., 1:]
    decided(select(ties, earlier <= later, earlier < later))


@rule("argsort")
def _argsort(a: Any, axis: int | None = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> np.ndarray:
    x: Any = as_array(a)
    if axis is None:
        x, axis = np.ravel(x), -1
    moved = np.moveaxis(x, axis, -1)
    found = np.argsort(moved.numbers(), axis=-1, kind="stable" if stable else kind)
    if moved.shape[-1] > 1 and moved.size:
        _order_guard(moved, found, bool(stable) or kind in ("stable", "mergesort"))
    return np.moveaxis(found, -1, axis)


@rule("sort")
def _sort(a: Any, axis: int | None = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    if axis is None:
        a, axis = np.ravel(a), -1
    return np.take_along_axis(a, _argsort(a, axis), axis)


@rule("median")
def _median(a: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, keepdims: bool = False) -> Any:
    a = as_array(a)
    axes = normalised_axes(axis, a.ndim)
    kept = tuple(i for i in range(a.ndim) if i not in axes)
    n = math.prod(a.shape[i] for i in axes)
    if n == 0:
        raise ValueError("np.median of an empty array of active values")
    ordered = _sort(np.reshape(np.transpose(a, (*kept, *axes)), (*(a.shape[i] for i in kept), n)))
    last = ordered[..., n - 1]
    middle = ordered[..., n // 2] if n % 2 else (ordered[..., n // 2 - 1] + ordered[..., n // 2]) / 2.0
    if np.isnan(as_array(last).numbers()).any():  # A NaN sorts last, and makes the median NaN.
        middle = select(np.isnan(last), last, middle)
    middle = middle[()] if isinstance(middle, Array) else middle
    return stored(
        np.reshape(middle, tuple(1 if i in axes else extent for i, extent in enumerate(a.shape)))
        if keepdims
        else middle,
        out,
    )


# Positions of extrema.


def _extremum(x: Array, find: Callable, less: np.ufunc, less_equal: np.ufunc) -> np.ndarray:
    """First position of an extremum along the last axis, remembered as comparisons with every other element."""
    at = np.asarray(find(x.numbers(), axis=-1))
    best = Array.of_slots(x.tape, np.take_along_axis(x.slots(), at[..., None], axis=-1))
    before = np.arange(x.shape[-1]) < at[..., None]
    if x.shape[-1] > 1 and x.size:
        decided(select(before, less(x, best), less_equal(x, best)))
    return at


def _arg_rule(find: Callable, less: np.ufunc, less_equal: np.ufunc) -> Callable:
    def apply(a: Any, axis: int | None = None, out: Any = None, *, keepdims: Any = False) -> Any:
        x = as_array(a)
        along: Any = np.ravel(x) if axis is None else np.moveaxis(x, axis, -1)
        at = _extremum(along, find, less, less_equal)
        if keepdims is not np._NoValue and keepdims:
            at = np.reshape(at, (1,) * x.ndim) if axis is None else np.expand_dims(at, axis)
        if out is not None:
            out[...] = at
            return out
        return at[()]

    return apply


RULES[np.argmax] = _arg_rule(np.argmax, np.less, np.less_equal)
RULES[np.argmin] = _arg_rule(np.argmin, np.greater, np.greater_equal)


# Intervals.


@rule("searchsorted")
def _searchsorted(a: Any, v: Any, side: str = "left", sorter: Any = None) -> Any:
    if sorter is not None:
        raise UnsupportedError(
            f"np.searchsorted with a sorter is not supported on active values ({source_line()}); sort first"
        )
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right' (got '{side}')")
    grid = as_array(a).numbers() if is_active(a) else np.asarray(a, dtype=float)
    found = np.searchsorted(grid, as_array(v).numbers() if is_active(v) else v, side=side)
    # The interval that holds v: its ends compare the same way in a replay.
    padded = np.concatenate([[-np.inf], a, [np.inf]])
    below, above = padded[np.asarray(found)], padded[np.asarray(found) + 1]
    if side == "left":
        _decide(np.less(below, v), np.less_equal(v, above))
    else:
        _decide(np.less_equal(below, v), np.less(v, above))
    if is_active(a) and np.size(a) > 1:
        _decide(np.less_equal(a[:-1], a[1:]))
    return found


@rule("digitize")
def _digitize(x: Any, bins: Any, right: bool = False) -> Any:
    if is_active(bins):
        raise PassiveConversionError(f"np.digitize takes plain bins ({source_line()}); use np.searchsorted")
    bins = np.asarray(bins, dtype=float)
    side = "left" if right else "right"
    if bins.size > 1 and bins[0] > bins[-1]:
        return bins.size - np.searchsorted(bins[::-1], x, side=side)
    return np.searchsorted(bins, x, side=side)


def _decide(*truths: Any) -> None:
    for truth in truths:
        if isinstance(truth, Truth):
            bool(truth)
        elif isinstance(truth, Array):
            decided(truth)


@rule("interp")
def _interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Any:
    if period is not None:
        raise UnsupportedError(f"np.interp with a period is not supported on active values ({source_line()})")
    x, xp, fp = (given if is_active(given) else np.asarray(given, dtype=float) for given in (x, xp, fp))
    n = np.shape(xp)[0]
    if n == 1:
        inside = fp[0] + 0.0 * x
    else:
        at = np.clip(np.searchsorted(xp, x, side="right"), 1, n - 1)
        x0, x1, y0, y1 = xp[at - 1], xp[at], fp[at - 1], fp[at]
        inside = y0 + (y1 - y0) / (x1 - x0) * (x - x0)
    low = _chosen(np.less(x, xp[0]), fp[0] if left is None else left, inside)
    return _chosen(np.greater(x, xp[n - 1]), fp[n - 1] if right is None else right, low)


def _chosen(condition: Any, x: Any, y: Any) -> Any:
    return select(condition, x, y) if is_active([condition, x, y]) else np.where(condition, x, y)


# Places of true elements.


def _decided_nonzero(a: Any) -> np.ndarray:
    x = as_array(a)
    return decided(x if x._storage.boolean else as_array(x != 0.0))


@rule("nonzero")
def _nonzero(a: Any) -> tuple[np.ndarray, ...]:
    return np.nonzero(_decided_nonzero(a))


@rule("flatnonzero")
def _flatnonzero(a: Any) -> np.ndarray:
    return np.flatnonzero(_decided_nonzero(a))


@rule("argwhere")
def _argwhere(a: Any) -> np.ndarray:
    return np.argwhere(_decided_nonzero(a))


@rule("count_nonzero")
def _count_nonzero(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    return np.count_nonzero(_decided_nonzero(a), axis=axis, keepdims=keepdims)


@rule("allclose", "isclose", "array_equal")
def _compare(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    raise UnsupportedError(
        f"np.allclose, np.isclose and np.array_equal of active values are not supported ({source_line()}); compare tj.value(x)"
    )

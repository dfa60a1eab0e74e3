"""Sums, extrema, statistics and scans of active arrays, under NumPy's names. The work is done in `tapejit.recording.reductions`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tapejit.recording.array import is_boolean
from tapejit.recording.elementwise import prepared, select, stored
from tapejit.recording.reductions import accumulate, norm_of_squares, normalised_axes, reduce, sum_of
from tapejit.recording.rules import RULES, check_dtype, rule

_MISSING = np._NoValue


def masked(x: Any, where: Any, otherwise: Any) -> Any:
    """`x`, with a neutral number where ``where=`` leaves elements out."""
    return x if where is True else select(where, x, otherwise)


def keeps(keepdims: Any) -> bool:
    """Whether ``keepdims=`` was given as true."""
    return keepdims is not _MISSING and bool(keepdims)


def _started(combine: np.ufunc, result: Any, initial: Any) -> Any:
    return result if initial is _MISSING else combine(initial, result)


@rule("sum")
def _sum(
    a: Any,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    keepdims: Any = False,
    initial: Any = _MISSING,
    where: Any = True,
) -> Any:
    check_dtype(dtype)
    return stored(_started(np.add, sum_of(masked(a, where, 0.0), axis, keeps(keepdims)), initial), out)


@rule("prod")
def _prod(
    a: Any,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    keepdims: Any = False,
    initial: Any = _MISSING,
    where: Any = True,
) -> Any:
    check_dtype(dtype)
    return stored(
        _started(np.multiply, reduce(np.multiply, masked(a, where, 1.0), axis, keeps(keepdims)), initial), out
    )


def _extremum_rule(ufunc: np.ufunc) -> Callable:
    def apply(
        a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, initial: Any = _MISSING, where: Any = True
    ) -> Any:
        if where is not True and initial is _MISSING:
            raise ValueError(
                f"reduction operation {ufunc.__name__!r} does not have an identity, so to use a where mask one has to specify 'initial'"
            )
        a = prepared(a)
        if initial is _MISSING:
            return stored(reduce(ufunc, a, axis, keeps(keepdims)), out)
        # One more element along a first axis of the result: also right where nothing else is there.
        reduced = _first_axes(masked(a, where, initial), axis)
        first = np.broadcast_to(initial, (1, *reduced.shape[1:]))
        result = reduce(ufunc, np.concatenate([first, reduced]), 0)
        return stored(np.reshape(result, _kept_shape(a, axis)) if keeps(keepdims) else result, out)

    return apply


def _first_axes(x: Any, axis: Any) -> Any:
    """The reduced axes as one, in front of the others."""
    axes = normalised_axes(axis, np.ndim(x))
    kept = tuple(i for i in range(np.ndim(x)) if i not in axes)
    shape = np.shape(x)
    count = math.prod(shape[i] for i in axes)
    return np.reshape(np.transpose(x, (*axes, *kept)), (count, *(shape[i] for i in kept)))


def _kept_shape(x: Any, axis: Any) -> tuple[int, ...]:
    axes = normalised_axes(axis, np.ndim(x))
    return tuple(1 if i in axes else extent for i, extent in enumerate(np.shape(x)))


for _names, _ufunc in (("max amax", np.maximum), ("min amin", np.minimum), ("nanmax", np.fmax), ("nanmin", np.fmin)):
    for _name in _names.split():
        RULES[getattr(np, _name)] = _extremum_rule(_ufunc)


def _truth_rule(ufunc: np.ufunc, neutral: float) -> Callable:
    def apply(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, *, where: Any = True) -> Any:
        return stored(reduce(ufunc, masked(a, where, neutral), axis, keeps(keepdims)), out)

    return apply


RULES[np.any] = _truth_rule(np.logical_or, 0.0)
RULES[np.all] = _truth_rule(np.logical_and, 1.0)


@rule("ptp")
def _ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    return stored(np.max(a, axis=axis, keepdims=keeps(keepdims)) - np.min(a, axis=axis, keepdims=keeps(keepdims)), out)


# Means.


def _count(a: Any, axis: Any, where: Any, keepdims: bool) -> Any:
    """How many elements a mean is taken over."""
    if where is not True:
        return np.sum(np.broadcast_to(where, np.shape(a)), axis=axis, keepdims=keepdims)
    return math.prod(np.shape(a)[i] for i in normalised_axes(axis, np.ndim(a)))


def _divided(total: Any, n: Any) -> Any:
    """``total / n``, NaN for the mean of nothing."""
    if isinstance(n, int):
        return total / (n if n > 0 else np.nan)
    return total / n


@rule("mean")
def _mean(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, *, where: Any = True
) -> Any:
    check_dtype(dtype)
    a = prepared(a)
    total = sum_of(masked(a, where, 0.0), axis, keeps(keepdims))
    return stored(_divided(total, _count(a, axis, where, keeps(keepdims))), out)


@rule("average")
def _average(a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: Any = False) -> Any:
    a = prepared(a)
    keep = keeps(keepdims)
    if weights is None:
        result = np.mean(a, axis, keepdims=keep)
        total: Any = float(_count(a, axis, True, keep))
    else:
        if np.shape(weights) != np.shape(a):
            axes = tuple(int(i) % np.ndim(a) for i in np.atleast_1d(axis))
            order = np.argsort(axes)
            shape = [np.shape(a)[i] if i in axes else 1 for i in range(np.ndim(a))]
            weights = np.reshape(np.transpose(weights, order), shape)
        total = np.sum(np.broadcast_to(weights, np.shape(a)), axis=axis, keepdims=keep)
        result = np.sum(np.multiply(a, weights), axis=axis, keepdims=keep) / total
    return (result, np.broadcast_to(total, np.shape(result)) if np.shape(result) else total) if returned else result


@rule("var")
def _var(
    a: Any,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    ddof: float = 0,
    keepdims: Any = False,
    *,
    where: Any = True,
    mean: Any = _MISSING,
    correction: Any = _MISSING,
) -> Any:
    check_dtype(dtype)
    ddof = ddof if correction is _MISSING else correction
    a = prepared(a)
    centre = np.mean(a, axis, keepdims=True, where=where) if mean is _MISSING else mean
    total = sum_of(masked(np.square(a - centre), where, 0.0), axis, keeps(keepdims))
    n = _count(a, axis, where, keeps(keepdims))
    return stored(total / np.maximum(n - ddof, 0), out)


@rule("std")
def _std(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, keepdims: Any = False, **kwargs: Any
) -> Any:
    return stored(norm_of_squares(_var(a, axis, dtype, None, ddof, keepdims, **kwargs)), out)


# Scans and differences.


@rule("cumsum")
def _cumsum(a: Any, axis: int | None = None, dtype: Any = None, out: Any = None) -> Any:
    check_dtype(dtype)
    return stored(accumulate(np.add, a, axis), out)


@rule("cumprod")
def _cumprod(a: Any, axis: int | None = None, dtype: Any = None, out: Any = None) -> Any:
    check_dtype(dtype)
    return stored(accumulate(np.multiply, a, axis), out)


@rule("diff")
def _diff(a: Any, n: int = 1, axis: int = -1, prepend: Any = _MISSING, append: Any = _MISSING) -> Any:
    if n < 0:
        raise ValueError(f"order must be non-negative but got {n}")
    one = tuple(1 if i == axis % np.ndim(a) else extent for i, extent in enumerate(np.shape(a)))
    ends = [np.broadcast_to(x, one) if not np.ndim(x) else x for x in (prepend, a, append) if x is not _MISSING]
    a = np.concatenate(ends, axis=axis) if len(ends) > 1 else a
    for _ in range(n):
        a = np.swapaxes(a, axis, -1)
        later, earlier = a[..., 1:], a[..., :-1]
        a = np.swapaxes(later != earlier if is_boolean(a) else later - earlier, axis, -1)
    return a


@rule("ediff1d")
def _ediff1d(ary: Any, to_end: Any = None, to_begin: Any = None) -> Any:
    steps = np.diff(np.ravel(ary))
    parts = [
        *([] if to_begin is None else [np.ravel(to_begin)]),
        steps,
        *([] if to_end is None else [np.ravel(to_end)]),
    ]
    return np.concatenate(parts) if len(parts) > 1 else steps


@rule("trapezoid", "trapz")
def _trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    y = np.moveaxis(y, axis, -1)
    steps = dx if x is None else np.diff(x if np.ndim(x) == 1 else np.moveaxis(x, axis, -1))
    return np.sum(steps * (y[..., 1:] + y[..., :-1]) / 2.0, axis=-1)

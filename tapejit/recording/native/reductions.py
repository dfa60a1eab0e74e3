"""Sums, products, extrema, scans and products of matrices of active arrays in compiled code.

Everything is a loop over scalar operations in the order in which Numba's own goes through the array, so that the value is the plain
function's; where that is a library's (BLAS), the library is called on the values and its result put into the last slot. An extremum is a
chain of `maximum` or `minimum`, which gives half to each of two equals.
"""

from __future__ import annotations

import operator

import numpy as np
from numba import types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic, overload, register_jitable
from numba.np.numpy_support import is_nonelike

from tapejit.ops import CODE
from tapejit.recording.native.active import active_float, build, call_named, is_active_array
from tapejit.recording.native.allocation import ACTIVE, check_dtype
from tapejit.recording.native.conversions import lifted, values, with_value
from tapejit.recording.native.numpy_functions import borrows, implements

__all__ = ["length"]


@intrinsic
def length(typingctx, squares, value):
    """The root of a sum of squares, of which the caller has the value; its derivative at the origin is 0."""

    def generate(context, builder, signature, args):
        word = builder.extract_value(args[0], 1)
        code = context.get_constant(types.int64, CODE["length"])
        return build(context, builder, args[1], call_named(builder, "push_one", [code, word, args[1]]))

    return active_float(active_float, types.float64), generate


# Along axes.


@register_jitable
def _axis(axis, n_dimensions):
    if axis < -n_dimensions or axis >= n_dimensions:
        raise ValueError("axis is out of bounds for the array")
    return axis % n_dimensions


def _axes_first(n_dimensions: int, n_axes: int):
    """A function that views an array with some axes first, each group in its order."""
    start = tuple(range(n_dimensions))

    @register_jitable
    def view(a, axes):
        permutation = start
        at = 0
        for axis in start:
            if axis in axes:
                permutation = tuple_setitem(permutation, at, axis)
                at += 1
        if at < n_axes:
            raise ValueError("duplicate value in 'axis'")
        for axis in start:
            if axis not in axes:
                permutation = tuple_setitem(permutation, at, axis)
                at += 1
        return a.transpose(permutation)

    return view


def _as_axes(axis):
    """A function that gives an axis argument as a tuple of numbers that count from 0."""
    if isinstance(axis, types.Integer):
        return register_jitable(lambda axis, n: (_axis(axis, n),))
    n_axes = len(axis)

    @register_jitable
    def normalised(axis, n):
        for i in range(n_axes):
            axis = tuple_setitem(axis, i, _axis(axis[i], n))
        return axis

    return normalised


# Sums and products.


@implements(np.sum, method="sum")
def _sum(a, axis=None, dtype=None):
    if not is_active_array(a):
        return None
    check_dtype("np.sum", dtype)
    if is_nonelike(axis):
        return _sum_of_all
    n_axes = 1 if isinstance(axis, types.Integer) else len(axis)
    if n_axes == 0:
        return lambda a, axis=None, dtype=None: a.copy()
    normalised, axes_first = _as_axes(axis), _axes_first(a.ndim, n_axes)
    if n_axes >= a.ndim:

        def impl(a, axis=None, dtype=None):
            axes_first(a, normalised(axis, a.ndim))  # checks them
            return np.sum(a)

        return impl

    def impl(a, axis=None, dtype=None):
        moved = axes_first(a, normalised(axis, a.ndim))
        total = np.zeros(moved.shape[n_axes:], ACTIVE)
        for at in np.ndindex(moved.shape[:n_axes]):
            total += moved[at]
        return total

    return impl


def _sum_of_all(a, axis=None, dtype=None):
    total = lifted(0.0)
    for item in np.nditer(a):
        total += item.item()
    return total


@implements(np.prod, method="prod")
def _prod(a):
    if not is_active_array(a):
        return None

    def impl(a):
        product = lifted(1.0)
        for item in np.nditer(a):
            product *= item.item()
        return product

    return impl


@implements(np.mean, method="mean")
def _mean(a):
    if not is_active_array(a):
        return None

    def impl(a):
        if a.size == 0:
            return lifted(np.mean(values(a)))
        return np.sum(a) / a.size

    return impl


@implements(np.var, method="var")
def _var(a):
    if not is_active_array(a):
        return None

    def impl(a):
        mean = np.mean(a)
        squares = lifted(0.0)
        for item in np.nditer(a):
            residual = item.item() - mean
            squares += residual * residual
        return squares / a.size

    return impl


@implements(np.std, method="std")
def _std(a):
    if not is_active_array(a):
        return None

    def impl(a):
        variance = np.var(a)
        return length(variance, variance._value**0.5)

    return impl


# Extrema.


def _extremum(reduction, pair):
    def choose(a):
        if not is_active_array(a):
            return None

        def impl(a):
            if a.size == 0:
                return lifted(reduction(values(a)))  # raises what it raises
            iterator = np.nditer(a)
            chosen = next(iterator).item()
            for item in iterator:
                chosen = pair(chosen, item.item())
            return chosen

        return impl

    return choose


implements(np.max, method="max")(_extremum(np.max, np.maximum))
implements(np.min, method="min")(_extremum(np.min, np.minimum))


@implements(np.ptp)
def _ptp(a):
    return (lambda a: np.max(a) - np.min(a)) if is_active_array(a) else None


for _function in (np.argmax, np.argmin):
    borrows(_function, method=_function.__name__)
for _function in (np.nanargmax, np.nanargmin, np.median, np.trace, np.any, np.all):
    borrows(_function)


# Scans.


def _scan(name: str, combine, first: float):
    """The implementation of a scan over a flattened array, or along an axis."""

    def choose(a, axis=None, dtype=None):
        if not is_active_array(a):
            return None
        check_dtype(name, dtype)
        if is_nonelike(axis) or a.ndim == 1:

            def impl(a, axis=None, dtype=None):
                out = np.empty(a.size, ACTIVE)
                last = lifted(first)
                for i, item in enumerate(a.flat):
                    last = combine(last, item)
                    out[i] = last
                return out

            return impl
        axes_first = _axes_first(a.ndim, 1)

        def impl(a, axis=None, dtype=None):
            axes = (_axis(axis, a.ndim),)
            out = np.empty(a.shape, ACTIVE)
            moved, moved_out = axes_first(a, axes), axes_first(out, axes)
            last = np.full(moved.shape[1:], lifted(first))
            for i in range(moved.shape[0]):
                last = combine(last, moved[i])
                moved_out[i] = last
            return out

        return impl

    return choose


implements(np.cumsum, method="cumsum")(_scan("np.cumsum", operator.add, 0.0))
_cumprod_along = _scan("np.cumprod", operator.mul, 1.0)


@implements(np.cumprod, method="cumprod")
def _cumprod(a):
    if not is_active_array(a):
        return None
    scan = _cumprod_along(a)
    return lambda a: scan_all(a, scan)


# Products of vectors and matrices.


@register_jitable
def _inner(a, b):
    """Sum of the products of two vectors."""
    if a.size == 0:
        return lifted(0.0)
    total = lifted(a[0] * b[0])
    for i in range(1, a.size):
        total += a[i] * b[i]
    return total

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
from numba.extending import intrinsic, register_jitable
from numba.np import arrayobj
from numba.np.numpy_support import is_nonelike

from tapejit.ops import CODE
from tapejit.recording.native.active import CELL, active_float, build, call_named, is_active_array
from tapejit.recording.native.allocation import ACTIVE, check_dtype
from tapejit.recording.native.conversions import cells, helper, lifted, values, with_value
from tapejit.recording.native.numpy_functions import implements

__all__ = ["length"]

CELL_BYTES = CELL.itemsize


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
def _from_zero(axis, n_dimensions):
    if axis < -n_dimensions or axis >= n_dimensions:
        raise ValueError("axis is out of bounds for the array")
    return axis % n_dimensions


def _marked(axis_type, n_dimensions: int):
    """A function that checks an axis argument, and marks the axes it names by ones."""
    zeros = (0,) * n_dimensions
    if isinstance(axis_type, types.Integer):
        return register_jitable(lambda axis: tuple_setitem(zeros, _from_zero(axis, n_dimensions), 1))

    @register_jitable
    def marked(axes):
        chosen = zeros
        for axis in axes:
            at = _from_zero(axis, n_dimensions)
            if chosen[at]:
                raise ValueError("duplicate value in 'axis'")
            chosen = tuple_setitem(chosen, at, 1)
        return chosen

    return marked


def _reduced(n_dimensions: int, n_axes: int):
    """A function that gives the shape without the marked axes, and strides that stay on an element along these."""
    zeros, rest = (0,) * n_dimensions, (0,) * (n_dimensions - n_axes)

    @register_jitable
    def reduced(shape, chosen):
        kept, strides, at, stride = rest, zeros, len(rest), CELL_BYTES
        for axis in range(n_dimensions - 1, -1, -1):
            if not chosen[axis]:
                at -= 1
                kept = tuple_setitem(kept, at, shape[axis])
                strides = tuple_setitem(strides, axis, stride)
                stride *= shape[axis]
        return kept, strides

    return reduced


@intrinsic
def _spread(typingctx, array, shape, strides):
    """A view of the memory of an array."""
    result = types.Array(array.dtype, len(shape), "A")

    def generate(context, builder, signature, args):
        source = arrayobj.make_array(array)(context, builder, args[0])
        view = arrayobj.make_array(result)(context, builder)
        arrayobj.populate_array(view, source.data, args[1], args[2], source.itemsize, source.meminfo, source.parent)
        return arrayobj.impl_ret_borrowed(context, builder, result, view._getvalue())

    return result(array, shape, strides), generate


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
    marked = _marked(axis, a.ndim)
    if n_axes >= a.ndim:

        def impl(a, axis=None, dtype=None):
            marked(axis)
            return np.sum(a)

        return impl
    reduced = _reduced(a.ndim, n_axes)

    def impl(a, axis=None, dtype=None):
        shape, strides = reduced(a.shape, marked(axis))
        total = np.zeros(shape, ACTIVE)
        everywhere = _spread(total, a.shape, strides)
        everywhere += a  # in the order of Numba's loops, one addend after the other
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
        ufunc = _UFUNCS[combine]
        axis_first = _axis_first(a.ndim)

        def impl(a, axis=None, dtype=None):
            out = np.empty(a.shape, ACTIVE)
            items, results = axis_first(a, axis), axis_first(out, axis)
            ufunc(items[:1], lifted(first), results[:1])
            ufunc(results[:-1], items[1:], results[1:])  # each from the one before, which is written already
            return out

        return impl

    return choose


def _axis_first(n_dimensions: int):
    """A function that views an array with one axis first."""
    start = tuple(range(n_dimensions))

    @register_jitable
    def view(a, axis):
        permutation = start
        axis = _from_zero(axis, n_dimensions)
        for at in range(axis):
            permutation = tuple_setitem(permutation, at + 1, at)
        return a.transpose(tuple_setitem(permutation, 0, axis))

    return view


_UFUNCS = {operator.add: np.add, operator.mul: np.multiply}
implements(np.cumsum, method="cumsum")(_scan("np.cumsum", operator.add, 0.0))
implements(np.cumprod, method="cumprod")(_scan("np.cumprod", operator.mul, 1.0))


# Products of vectors and matrices.


@helper
def _products(a, b, value):
    """The products of the rows of two matrices; `value` is BLAS's."""
    m, n, length = a.shape[0], b.shape[0], a.shape[1]
    out = np.zeros((m, n), ACTIVE)
    for i in range(m):
        for j in range(n):
            if length:
                total = a[i, 0] * b[j, 0]
                for k in range(1, length):
                    total = total + a[i, k] * b[j, k]
                out[i, j] = with_value(total, value[i, j])
    return out


def _vector_vector(a, b):
    value = np.full((1, 1), np.dot(values(a), values(b)))
    return _products(cells(a).reshape(1, a.size), cells(b).reshape(1, b.size), value)[0, 0]


def _matrix_vector(a, b):
    value = np.dot(values(a), values(b))
    return _products(cells(a), cells(b).reshape(1, b.size), value.reshape(value.size, 1)).reshape(value.size)


def _vector_matrix(a, b):
    value = np.dot(values(a), values(b))
    return _products(cells(a).reshape(1, a.size), cells(b.T), value.reshape(1, value.size)).reshape(value.size)


def _matrix_matrix(a, b):
    return _products(cells(a), cells(b.T), np.dot(values(a), values(b)))


_PRODUCTS = {
    (1, 1): register_jitable(_vector_vector),
    (2, 1): register_jitable(_matrix_vector),
    (1, 2): register_jitable(_vector_matrix),
    (2, 2): register_jitable(_matrix_matrix),
}


def _product(a, b):
    """The product of two arrays at least one of which is active, as Numba has it; None if it is none."""
    if not (isinstance(a, types.Array) and isinstance(b, types.Array)) or not (
        is_active_array(a) or is_active_array(b)
    ):
        return None
    return _PRODUCTS.get((a.ndim, b.ndim)) if {a.dtype, b.dtype} <= {types.float64, active_float} else None


@implements(np.dot, method="dot")
def _dot(a, b, out=None):
    product = _product(a, b)
    if product is None:
        return None
    if is_nonelike(out):
        return lambda a, b, out=None: product(a, b)
    if not is_active_array(out):
        return None

    def impl(a, b, out=None):
        out[...] = product(a, b)
        return out

    return impl


@implements(operator.matmul, np.matmul)
def _matmul(a, b):
    product = _product(a, b)
    return None if product is None else lambda a, b: product(a, b)


@implements(np.vdot)
def _vdot(left, right):
    product = _product(left, right) if getattr(left, "ndim", 0) == 1 else None
    return None if product is None else lambda left, right: product(left, right)

"""Sums, products, extrema, scans and matrix products of active arrays.

A sum and a matrix product are blocks of their own. Every other reduction is a tree of elementwise blocks that halves an axis again and
again: its derivative, its second derivative and its kinks are those of the primitive (`maximum` gives half to each of two equals), and
a product with a zero factor needs no care.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tapejit import ops
from tapejit.errors import UnsupportedError
from tapejit.layout import MATMUL, SUM
from tapejit.recording.array import Array, Truth, Variable, is_boolean, lift_array, operand_for, scalar_or_array
from tapejit.recording.elementwise import apply, op_of_ufunc, prepared
from tapejit.recording.recorder import innermost, source_line

__all__ = ["accumulate", "dot", "matmul", "reduce", "sum_of"]


def normalised_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """Axes as a sorted tuple of non-negative numbers."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    normalised = tuple(sorted(np.lib.array_utils.normalize_axis_index(int(a), ndim) for a in axes))
    if len(set(normalised)) != len(normalised):
        raise ValueError("duplicate value in 'axis'")
    return normalised


def sum_of(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """``np.sum``, with NumPy's own value."""
    x = _of_numbers(prepared(x))
    if isinstance(x, Variable):
        return x
    tape = x.tape
    axes = normalised_axes(axis, x.ndim)
    shape = tuple(1 if a in axes else extent for a, extent in enumerate(x.shape))
    kept = shape if keepdims else tuple(extent for a, extent in enumerate(x.shape) if a not in axes)
    size = math.prod(shape)
    if size == 0:
        return Array.of_run(tape, 0, kept)
    if x.size == 0:
        return _zeros(tape, kept)
    if x.size == size:
        return np.reshape(x, kept).copy() if kept else x.item()  # a copy: NumPy's sums are no views
    strides, stride = [0] * x.ndim, 1
    for a in range(x.ndim - 1, -1, -1):
        if a not in axes:
            strides[a] = stride
            stride *= x.shape[a]
    first, value = tape.add_block(SUM, 0, x.shape, [operand_for(tape, x, x.shape)], size, tuple(strides))
    value[...] = np.sum(x.numbers(), axis=axes).reshape(-1)
    return scalar_or_array(tape, first, kept)


def _of_numbers(x: Any) -> Any:
    """Truth values as the numbers 1.0 and 0.0, in the same slots: a sum of booleans counts."""
    if isinstance(x, Truth):
        return Variable(x.tape, x.slot, x._value)
    return x.astype(float) if is_boolean(x) else x


def _zeros(tape: Any, shape: tuple[int, ...], number: float = 0.0) -> Any:
    slots = np.full(shape, tape.constant(number), dtype=np.int32)
    return Array.of_slots(tape, slots) if shape else scalar_or_array(tape, tape.constant(number), ())


# Associative ufuncs, with the result for no elements at all.
_IDENTITY: dict[np.ufunc, float | None] = {
    np.add: 0.0,
    np.multiply: 1.0,
    np.maximum: None,
    np.minimum: None,
    np.fmax: None,
    np.fmin: None,
    np.logaddexp: -np.inf,
    np.logaddexp2: -np.inf,
    np.hypot: 0.0,
    np.logical_or: 0.0,
    np.logical_and: 1.0,
    np.logical_xor: 0.0,
}
_LOGICAL = {
    np.logical_or: np.logical_or,
    np.logical_and: np.logical_and,
    np.logical_xor: np.logical_xor,
    np.bitwise_or: np.logical_or,
    np.bitwise_and: np.logical_and,
    np.bitwise_xor: np.logical_xor,
}


def reduce(ufunc: np.ufunc, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """``ufunc.reduce`` for an associative ufunc of two operands, as a tree."""
    if ufunc is np.add:
        return sum_of(x, axis, keepdims)
    x = prepared(x)
    if ufunc in _LOGICAL:
        ufunc = _LOGICAL[ufunc]
        x = x if is_boolean(x) else np.not_equal(x, 0.0)
    elif ufunc is np.multiply:
        x = _of_numbers(x)
    if ufunc not in _IDENTITY:
        raise UnsupportedError(
            f"np.{ufunc.__name__}.reduce is not supported on active values ({source_line()}): it is not associative"
        )
    if isinstance(x, Variable):
        return x
    axes = normalised_axes(axis, x.ndim)
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    if x.size == 0 and any(x.shape[a] == 0 for a in axes):
        identity = _IDENTITY[ufunc]
        if identity is None:
            raise ValueError(f"zero-size array to reduction operation {ufunc.__name__} which has no identity")
        result = _zeros(x.tape, tuple(x.shape[a] for a in kept), identity)
        result = result != 0.0 if ufunc in _LOGICAL else result
    else:
        moved = np.transpose(x, (*axes, *kept))
        moved = np.reshape(moved, (math.prod(x.shape[a] for a in axes), *(x.shape[a] for a in kept)))
        while moved.shape[0] > 1:
            half = moved.shape[0] // 2
            rest = moved[2 * half :]
            moved = ufunc(moved[:half], moved[half : 2 * half])
            if rest.shape[0]:
                moved = np.concatenate([ufunc(moved[:1], rest), moved[1:]]) if half > 1 else ufunc(moved, rest)
        result = moved[0].copy()  # a copy: where the axis has one element, this is the operand itself
    if keepdims:
        result = np.reshape(result, tuple(1 if a in axes else extent for a, extent in enumerate(x.shape)))
    return result


def accumulate(ufunc: np.ufunc, x: Any, axis: int | None = 0) -> Array:
    """``ufunc.accumulate``: scalar slots along the axis, each from the one before it."""
    x = np.reshape(prepared(x), -1) if axis is None else lift_array(innermost([x]), x)
    x = _of_numbers(x)
    axis = 0 if axis is None else np.lib.array_utils.normalize_axis_index(axis, x.ndim)
    tape, op = x.tape, _row(ufunc)
    n = x.shape[axis]
    if x.size == 0 or n == 1:
        return x.copy()
    value = np.moveaxis(ufunc.accumulate(np.array(x.numbers()), axis=axis), axis, 0).reshape(n, -1)
    source = np.moveaxis(x.slots(), axis, 0).reshape(n, -1)
    width = source.shape[1]
    # Step j of every lane stands `width` slots after step j - 1; the first step is the operand itself.
    first = tape.n_slots
    lhs = np.arange(first - width, first + (n - 2) * width).reshape(n - 1, width)
    lhs[0] = source[0]
    tape.push_run(ops.CODE[op.name], lhs.reshape(-1), source[1:].reshape(-1), value[1:].reshape(-1))
    slots = np.concatenate([source[:1], np.arange(first, first + (n - 1) * width).reshape(n - 1, width)])
    shape = (n, *(extent for a, extent in enumerate(x.shape) if a != axis))
    return Array.of_slots(tape, np.moveaxis(slots.reshape(shape), 0, axis))


def _row(ufunc: np.ufunc) -> ops.Op:
    op = op_of_ufunc(ufunc)
    if op is None or op.arity != 2 or op.boolean:
        raise UnsupportedError(
            f"np.{ufunc.__name__} of active values is not supported as a reduction ({source_line()})"
        )
    return op


# Products.


def matmul(a: Any, b: Any) -> Any:
    """``np.matmul``: one block for each pair of matrices."""
    a, b = prepared(a), prepared(b)
    if not np.ndim(a) or not np.ndim(b):
        raise ValueError("matmul: operands need at least one dimension; use * for scalars")
    a_rows = np.ndim(a) > 1
    b_columns = np.ndim(b) > 1
    a = a if a_rows else np.reshape(a, (1, -1))
    b = b if b_columns else np.reshape(b, (-1, 1))
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    if b.shape[-2] != k:
        raise ValueError(
            f"matmul: shapes {np.shape(a)} and {np.shape(b)} do not fit: {k} columns on the left, {b.shape[-2]} rows on the right"
        )
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, m, n) if a_rows and b_columns else (*batch, m) if a_rows else (*batch, n) if b_columns else batch
    tape = innermost([z for z in (a, b) if isinstance(z, Array)])
    if 0 in (*batch, m, n) or k == 0:
        return _zeros(tape, shape)
    if not batch:
        return scalar_or_array(tape, _product(tape, a, b, m, k, n), shape)
    a, b = np.broadcast_to(a, (*batch, m, k)), np.broadcast_to(b, (*batch, k, n))
    runs = [_product(tape, a[at], b[at], m, k, n) for at in np.ndindex(batch)]
    if all(later == earlier + m * n for earlier, later in zip(runs, runs[1:], strict=False)):
        return scalar_or_array(tape, runs[0], shape)
    slots = np.concatenate([np.arange(first, first + m * n) for first in runs])
    return Array.of_slots(tape, slots.reshape(shape))


def _product(tape: Any, a: Any, b: Any, m: int, k: int, n: int) -> int:
    if m * n * k == 1:
        return np.multiply(a, b).item().slot
    reads = [operand_for(tape, a, (m, k)), operand_for(tape, b, (k, n))]
    first, value = tape.add_block(MATMUL, 0, (m, k, n), reads, m * n)
    plain = [z.numbers() if isinstance(z, Array) else z for z in (a, b)]
    np.matmul(*plain, out=value.reshape(m, n))
    return first


def dot(a: Any, b: Any) -> Any:
    """``np.dot``: the last axis of `a` with the last but one of `b`."""
    a, b = prepared(a), prepared(b)
    if not np.ndim(a) or not np.ndim(b):
        return np.multiply(a, b)
    if np.ndim(b) <= 2:
        return (
            matmul(a, b)
            if np.ndim(a) <= 2
            else np.reshape(matmul(np.reshape(a, (-1, a.shape[-1])), b), a.shape[:-1] + b.shape[1:])
        )
    flat = np.reshape(np.moveaxis(b, -2, 0), (b.shape[-2], -1))
    rest = b.shape[:-2] + b.shape[-1:]
    return np.reshape(matmul(np.reshape(a, (-1, a.shape[-1])), flat), a.shape[:-1] + rest)


def norm_of_squares(squares: Any) -> Any:
    """Square root of a sum of squares, whose derivative at the origin is taken as 0."""
    return apply(ops.BY_NAME["length"], (squares,), np.sqrt)

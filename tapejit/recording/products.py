"""Products and norms of active arrays, under NumPy's names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tapejit.errors import UnsupportedError
from tapejit.recording.elementwise import prepared, stored
from tapejit.recording.recorder import source_line
from tapejit.recording.reductions import dot, matmul, norm_of_squares, normalised_axes
from tapejit.recording.rules import RULES, check_dtype, rule

RULES[np.dot] = lambda a, b, out=None: stored(dot(a, b), out)


@rule("vdot")
def _vdot(a: Any, b: Any) -> Any:
    return dot(np.ravel(a), np.ravel(b))


@rule("inner")
def _inner(a: Any, b: Any) -> Any:
    if not np.ndim(a) or not np.ndim(b):
        return np.multiply(a, b)
    return np.tensordot(a, b, axes=(-1, -1))[()]


@rule("outer")
def _outer(a: Any, b: Any, out: Any = None) -> Any:
    return stored(np.multiply(np.reshape(np.ravel(a), (-1, 1)), np.ravel(b)), out)


@rule("tensordot")
def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    if isinstance(axes, (int, np.integer)):
        axes = (tuple(range(np.ndim(a) - int(axes), np.ndim(a))), tuple(range(int(axes))))
    a_axes, b_axes = (
        [np.lib.array_utils.normalize_axis_index(int(i), np.ndim(z)) for i in np.atleast_1d(given)]
        for z, given in zip((a, b), axes, strict=True)
    )
    a_shape, b_shape = np.shape(a), np.shape(b)
    if [a_shape[i] for i in a_axes] != [b_shape[i] for i in b_axes]:
        raise ValueError(
            f"tensordot: axes {a_axes} of shape {a_shape} and axes {b_axes} of shape {b_shape} have different lengths"
        )
    a_rest = [i for i in range(len(a_shape)) if i not in a_axes]
    b_rest = [i for i in range(len(b_shape)) if i not in b_axes]
    k = math.prod(a_shape[i] for i in a_axes)
    m = math.prod(a_shape[i] for i in a_rest)
    n = math.prod(b_shape[i] for i in b_rest)
    left = np.reshape(np.transpose(a, (*a_rest, *a_axes)), (m, k))
    right = np.reshape(np.transpose(b, (*b_axes, *b_rest)), (k, n))
    return np.reshape(matmul(left, right), (*(a_shape[i] for i in a_rest), *(b_shape[i] for i in b_rest)))


@rule("kron")
def _kron(a: Any, b: Any) -> Any:
    if not np.ndim(a) or not np.ndim(b):
        return np.multiply(a, b)
    ndim = max(np.ndim(a), np.ndim(b))
    a = np.reshape(a, (1,) * (ndim - np.ndim(a)) + np.shape(a))
    b = np.reshape(b, (1,) * (ndim - np.ndim(b)) + np.shape(b))
    spread = np.reshape(a, tuple(x for extent in a.shape for x in (extent, 1))) * np.reshape(
        b, tuple(x for extent in b.shape for x in (1, extent))
    )
    return np.reshape(spread, tuple(x * y for x, y in zip(a.shape, b.shape, strict=True)))


@rule("cross")
def _cross(a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: int | None = None) -> Any:
    axisa, axisb, axisc = (axis,) * 3 if axis is not None else (axisa, axisb, axisc)
    a, b = np.moveaxis(a, axisa, -1), np.moveaxis(b, axisb, -1)
    if np.shape(a)[-1] != 3 or np.shape(b)[-1] != 3:
        raise UnsupportedError(f"np.cross of active values needs vectors of three components ({source_line()})")
    after_a, after_b = np.roll(a, -1, axis=-1), np.roll(b, -1, axis=-1)
    product = np.roll(a * after_b - after_a * b, -1, axis=-1)
    return np.moveaxis(product, -1, axisc)


@rule("trace")
def _trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None) -> Any:
    check_dtype(dtype)
    return stored(np.sum(np.diagonal(a, offset, axis1, axis2), axis=-1), out)


@rule(np.linalg.norm)
def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    x = prepared(x)
    if axis is None and (ord is None or np.ndim(x) == 1):
        axis = tuple(range(np.ndim(x)))
    axes = normalised_axes(axis, np.ndim(x))
    if ord is None or (ord == 2 and len(axes) == 1) or (ord == "fro" and len(axes) == 2):
        return norm_of_squares(np.sum(np.square(x), axis=axes, keepdims=keepdims))
    if len(axes) == 2:
        # Largest or smallest sum over one of the axes: columns for 1, rows for inf; `axis` says which is which.
        row, column = axes if axis is None else (int(i) % np.ndim(x) for i in axis)
        inner, outer = {1: (row, column), -1: (row, column), np.inf: (column, row), -np.inf: (column, row)}.get(
            ord, (None, None)
        )
        if inner is not None:
            sums = np.sum(np.abs(x), axis=inner, keepdims=True)
            result = (np.max if ord > 0 else np.min)(sums, axis=outer, keepdims=True)
            return result if keepdims else np.squeeze(result, axis=axes)[()]
    elif len(axes) == 1:
        if ord in (np.inf, -np.inf):
            return (np.max if ord > 0 else np.min)(np.abs(x), axis=axes, keepdims=keepdims)
        if ord == 1:
            return np.sum(np.abs(x), axis=axes, keepdims=keepdims)
        if ord == 0:
            return np.sum(np.where(x != 0.0, 1.0, 0.0), axis=axes, keepdims=keepdims)
        if isinstance(ord, (int, float)):
            return np.sum(np.abs(x) ** ord, axis=axes, keepdims=keepdims) ** (1.0 / ord)
    raise UnsupportedError(
        f"np.linalg.norm with ord={ord!r} over {len(axes)} axes is not supported on active values ({source_line()})"
    )

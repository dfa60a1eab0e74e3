"""Norms, linear systems, determinants and factors of small active matrices in compiled code.

The derivative is that of the textbook algorithm on active scalars, with pivots chosen by the values; the value of the result is LAPACK's, as
the plain function computes it, put into the recorded slots. LAPACK comes first, so that a singular matrix raises what it raises there.
A solve of n unknowns records 2 n**3 / 3 slots; entries that are 0 on no tape cost none.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import register_jitable
from numba.np.numpy_support import is_nonelike

from tapejit.recording.native.active import active_float, is_active_array
from tapejit.recording.native.allocation import ACTIVE
from tapejit.recording.native.conversions import lifted, values, with_value
from tapejit.recording.native.numpy_functions import implements
from tapejit.recording.native.reductions import length


def _is_matrix(kind) -> bool:
    return isinstance(kind, types.Array) and kind.ndim == 2 and kind.dtype in (types.float64, active_float)


# Gaussian elimination.


@register_jitable
def _is_zero(x):
    """Whether a number is 0 and on no tape."""
    return x._word == 0 and x._value == 0.0


@register_jitable
def _pivot(lu, k, n_columns):
    """Where the largest entry from (k, k) on stands, within so many columns."""
    row, column, largest = k, k, -1.0
    for i in range(k, lu.shape[0]):
        for j in range(k, k + n_columns):
            if abs(lu[i, j]._value) > largest:
                row, column, largest = i, j, abs(lu[i, j]._value)
    return row, column


@register_jitable
def _swap(lu, k, row, column):
    for j in range(lu.shape[1]):
        lu[k, j], lu[row, j] = lu[row, j], lu[k, j]
    for i in range(lu.shape[0]):
        lu[i, k], lu[i, column] = lu[i, column], lu[i, k]


@register_jitable
def _factored(a, completely):
    """Both factors in one matrix, the order of its rows, and the sign of the permutation; pivots among the rows, or all entries."""
    n = a.shape[0]
    lu, order, sign = np.empty((n, n), ACTIVE), np.arange(n), 1.0
    for i in range(n):
        for j in range(n):
            lu[i, j] = a[i, j]
    for k in range(n):
        row, column = _pivot(lu, k, n - k if completely else 1)
        _swap(lu, k, row, column)
        order[k], order[row] = order[row], order[k]
        if (row != k) != (column != k):
            sign = -sign
        if lu[k, k]._value == 0.0:
            break  # the rest of the column is 0, or of the matrix
        for i in range(k + 1, n):
            if not _is_zero(lu[i, k]):
                lu[i, k] = lu[i, k] / lu[k, k]
                for j in range(k + 1, n):
                    if not _is_zero(lu[k, j]):
                        lu[i, j] = lu[i, j] - lu[i, k] * lu[k, j]
    return lu, order, sign


@register_jitable
def _solved(lu, order, b, value, x):
    """Solve for one right-hand side; `value` is LAPACK's solution, `x` takes the active one."""
    n = lu.shape[0]
    for i in range(n):
        total = lifted(b[order[i]])
        for j in range(i):
            if not _is_zero(x[j]) and not _is_zero(lu[i, j]):
                total = total - lu[i, j] * x[j]
        x[i] = total
    for i in range(n - 1, -1, -1):
        total = x[i]
        for j in range(i + 1, n):
            if not _is_zero(lu[i, j]):
                total = total - lu[i, j] * x[j]
        x[i] = with_value(total / lu[i, i], value[i])


@implements(np.linalg.solve)
def _solve(a, b):
    if not (is_active_array(a) or is_active_array(b)) or not _is_matrix(a) or not isinstance(b, types.Array):
        return None
    if b.ndim == 1:

        def impl(a, b):
            value = np.linalg.solve(values(a), values(b))
            out = np.empty_like(value, ACTIVE)
            lu, order, _ = _factored(a, False)
            _solved(lu, order, b, value, out)
            return out

        return impl

    def impl(a, b):
        value = np.linalg.solve(values(a), values(b))
        out = np.empty_like(value, ACTIVE)
        lu, order, _ = _factored(a, False)
        for j in range(b.shape[1]):
            _solved(lu, order, b[:, j], value[:, j], out[:, j])
        return out

    return impl


@implements(np.linalg.inv)
def _inv(a):
    if not is_active_array(a) or not _is_matrix(a):
        return None

    def impl(a):
        value = np.linalg.inv(values(a))
        out = np.empty_like(value, ACTIVE)
        lu, order, _ = _factored(a, False)
        identity = np.eye(a.shape[0])
        for j in range(a.shape[0]):
            _solved(lu, order, identity[j], value[:, j], out[:, j])
        return out

    return impl


@implements(np.linalg.det)
def _det(a):
    if not is_active_array(a) or not _is_matrix(a):
        return None

    def impl(a):
        value = np.linalg.det(values(a))
        # With pivots among all entries the product has the right derivative at singular matrices too.
        lu, _, sign = _factored(a, True)
        product = lifted(sign)
        for i in range(a.shape[0]):
            product = product * lu[i, i]
        return with_value(product, value)

    return impl


@implements(np.linalg.slogdet)
def _slogdet(a):
    if not is_active_array(a) or not _is_matrix(a):
        return None

    def impl(a):
        sign, value = np.linalg.slogdet(values(a))
        lu, _, _ = _factored(a, True)
        total = lifted(0.0)
        for i in range(a.shape[0]):
            total = total + np.log(abs(lu[i, i]))
        return sign, with_value(total, value)

    return impl


@implements(np.linalg.cholesky)
def _cholesky(a):
    if not is_active_array(a) or not _is_matrix(a):
        return None

    def impl(a):
        value = np.linalg.cholesky(values(a))
        out = np.zeros_like(value, ACTIVE)
        for j in range(a.shape[0]):
            for i in range(j, a.shape[0]):
                total = lifted(a[i, j])
                for k in range(j):
                    if not _is_zero(out[i, k]) and not _is_zero(out[j, k]):
                        total = total - out[i, k] * out[j, k]
                entry = np.sqrt(total) if i == j else total / out[j, j]
                out[i, j] = with_value(entry, value[i, j])
        return out

    return impl


# Norms.


@register_jitable
def _euclidean(x, value):
    squares = lifted(0.0)
    for item in np.nditer(x):
        squares += item.item() * item.item()
    if value == 0.0 or 0.0 < squares._value < np.inf:
        return length(squares, value)
    total = lifted(0.0)  # the squares overflow or vanish
    for item in np.nditer(x):
        total = np.hypot(total, item.item())
    return with_value(total, value)


@register_jitable
def _of_order(x, order, value):
    if order == 2:
        return _euclidean(x, value)
    if order == 0:
        return lifted(value)  # counts
    if order == np.inf:
        return with_value(np.max(np.abs(x)), value)
    if order == -np.inf:
        return with_value(np.min(np.abs(x)), value)
    total = lifted(0.0)
    for item in x:
        total += abs(item) if order == 1 else abs(item) ** order
    return with_value(total if order == 1 else total ** (1.0 / order), value)


@implements(np.linalg.norm)
def _norm(x, ord=None):
    if not is_active_array(x):
        return None
    if is_nonelike(ord):
        return lambda x, ord=None: _euclidean(x, np.linalg.norm(values(x)))
    if x.ndim != 1:
        return None
    return lambda x, ord=None: _of_order(x, ord, np.linalg.norm(values(x), ord))

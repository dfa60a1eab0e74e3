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
from tapejit.recording.native.conversions import cells, helper, lifted, values, with_value
from tapejit.recording.native.numpy_functions import implements
from tapejit.recording.native.reductions import length


def _is_matrix(kind) -> bool:
    return isinstance(kind, types.Array) and kind.ndim == 2 and kind.dtype in (types.float64, active_float)


# Gaussian elimination.


@helper
def _factor(lu, n_columns):
    """Put both factors into the matrix; gives the order of its rows and the sign of the permutation.

    Pivots are chosen among so many columns: among one, or among all entries that are left.
    """
    n = lu.shape[0]
    order, sign = np.arange(n), 1.0
    for k in range(n):
        row, column, largest = k, k, -1.0
        for i in range(k, n):
            for j in range(k, min(k + n_columns, n)):
                if abs(lu[i, j]._value) > largest:
                    row, column, largest = i, j, abs(lu[i, j]._value)
        for j in range(n):
            lu[k, j], lu[row, j] = lu[row, j], lu[k, j]
        for i in range(n):
            lu[i, k], lu[i, column] = lu[i, column], lu[i, k]
        order[k], order[row] = order[row], order[k]
        if (row != k) != (column != k):
            sign = -sign
        pivot = lu[k, k]
        if pivot._value == 0.0:
            break  # so is the rest of the column, or of the matrix
        for i in range(k + 1, n):
            if lu[i, k]._word != 0 or lu[i, k]._value != 0.0:
                factor = lu[i, k] / pivot
                lu[i, k] = factor
                for j in range(k + 1, n):
                    if lu[k, j]._word != 0 or lu[k, j]._value != 0.0:
                        lu[i, j] = lu[i, j] - factor * lu[k, j]
    return order, sign


@helper
def _substitute(lu, order, b, value):
    """Solve for the columns of `b`; `value` is LAPACK's solution."""
    n, m = b.shape
    x = np.empty((n, m), ACTIVE)
    for column in range(m):
        for step in range(2 * n):
            forward = step < n
            i = step if forward else 2 * n - 1 - step
            total = b[order[i], column] if forward else x[i, column]
            for j in range(0 if forward else i + 1, i if forward else n):
                y = x[j, column]
                if (lu[i, j]._word != 0 or lu[i, j]._value != 0.0) and (y._word != 0 or y._value != 0.0):
                    total = total - lu[i, j] * y
            x[i, column] = total if forward else with_value(total / lu[i, i], value[i, column])
    return x


@register_jitable
def _solution(a, b, value):
    """The active solution of several right-hand sides, in the layout of LAPACK's."""
    lu = cells(a)
    order, _ = _factor(lu, np.intp(1))
    x = _substitute(lu, order, cells(b), np.ascontiguousarray(value))
    out = np.empty_like(value, ACTIVE)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = x[i, j]
    return out


@implements(np.linalg.solve)
def _solve(a, b):
    if not (is_active_array(a) or is_active_array(b)) or not _is_matrix(a) or not isinstance(b, types.Array):
        return None
    if b.ndim == 1:

        def impl(a, b):
            value = np.linalg.solve(values(a), values(b))
            n = b.size
            return _solution(a, cells(b).reshape(n, 1), value.reshape(n, 1)).reshape(n)

        return impl
    return lambda a, b: _solution(a, b, np.linalg.solve(values(a), values(b)))


@implements(np.linalg.inv)
def _inv(a):
    if not is_active_array(a) or not _is_matrix(a):
        return None
    return lambda a: _solution(a, np.eye(a.shape[0]), np.linalg.inv(values(a)))


@implements(np.linalg.det)
def _det(a):
    if not is_active_array(a) or not _is_matrix(a):
        return None

    def impl(a):
        value = np.linalg.det(values(a))
        # With pivots among all entries the product has the right derivative at singular matrices too.
        lu = cells(a)
        _, sign = _factor(lu, a.shape[0])
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
        lu = cells(a)
        _factor(lu, a.shape[0])
        total = lifted(0.0)
        for i in range(a.shape[0]):
            total = total + np.log(abs(lu[i, i]))
        return sign, with_value(total, value)

    return impl


@helper
def _lower_factor(a, value):
    n = a.shape[0]
    out = np.zeros((n, n), ACTIVE)
    for j in range(n):
        for i in range(j, n):
            total = a[i, j]
            for k in range(j):
                x, y = out[i, k], out[j, k]
                if (x._word != 0 or x._value != 0.0) and (y._word != 0 or y._value != 0.0):
                    total = total - x * y
            out[i, j] = with_value(np.sqrt(total) if i == j else total / out[j, j], value[i, j])
    return out


@implements(np.linalg.cholesky)
def _cholesky(a):
    if not is_active_array(a) or not _is_matrix(a):
        return None

    def impl(a):
        value = np.linalg.cholesky(values(a))
        factor = _lower_factor(cells(a), np.ascontiguousarray(value))
        out = np.empty_like(value, ACTIVE)
        for i in range(out.shape[0]):
            for j in range(out.shape[1]):
                out[i, j] = factor[i, j]
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

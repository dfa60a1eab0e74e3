"""Products of a matrix and a vector, which are loops of ours: every stride, length and remainder."""

import numba
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tapejit.sweeps.blocks import dot_run, matrix_vector

SIZES = (1, 3, 4, 5, 7, 8, 9, 23, 100)


@numba.njit(error_model="numpy")
def product(m, n, a, rows, columns, x, step, beta, out):
    matrix_vector(m, n, a.ctypes.data, rows, columns, x.ctypes.data, step, beta, out.ctypes.data)


@numba.njit(error_model="numpy")
def dot(x, y):
    return dot_run(x.ctypes.data, y.ctypes.data, x.size)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("n", SIZES)
def test_matrix_vector_takes_all_strides(m, n, rng):
    for rows, columns in ((n, 1), (n + 3, 1), (1, m), (1, m + 2), (2 * n, 2), (3, 3 * m)):
        for step, beta in ((1, 0.0), (2, 0.0), (1, 1.0), (3, 0.5)):
            a, x, start = rng.standard_normal(4 * (m + 3) * (n + 3)), rng.standard_normal(3 * n), rng.standard_normal(m)
            matrix = np.lib.stride_tricks.as_strided(a, (m, n), (8 * rows, 8 * columns))
            out = start.copy()
            product(m, n, a, rows, columns, x, step, beta, out)
            assert_allclose(out, matrix @ x[: n * step : step] + beta * start, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_four_rows_at_a_time_have_the_bits_of_one(n, rng):
    a, x = rng.standard_normal((7, n)), rng.standard_normal(n)
    out = np.empty(7)
    product(7, n, a, n, 1, x, 1, 0.0, out)
    assert_array_equal(out, [dot(row, x) for row in a])
    strided = np.repeat(a, 2, axis=1)
    product(7, n, strided, 2 * n, 2, x, 1, 0.0, out)
    assert_array_equal(out, [dot(row, x) for row in a])

"""Every construct of Numba that native recording promises to take unmodified: one small function each."""

# Numba's zip has no `strict`, and its global random generator is what users call:
# ruff: noqa: B905, NPY002

import ctypes
import importlib.util
import math
import os
import signal
import subprocess
import sys
import threading
import time
from math import exp as exponential

import numba
import numpy
import numpy as np
import numpy as xp
import pytest
from numba import literal_unroll, njit, prange
from numba.experimental import jitclass
from numpy import empty as allocate
from numpy import zeros
from numpy.testing import assert_allclose, assert_array_equal
from problems.compiled import tridiagonal
from problems.compiled.alignment import soft_minimum

import tapejit as tj
from tapejit import ops
from tapejit.errors import BranchChangeError, PassiveConversionError, ShapeError, UninitializedError, UnsupportedError

STEP = 1e-4  # of fourth-order differences
DIFFERENCES = 1e-8  # relative to the largest derivative


def copied(args):
    """Copies with the strides of the originals; what overlapped before overlaps again."""
    bases = {}

    def copy_of(arg):
        if isinstance(arg, tuple):
            return tuple(copy_of(part) for part in arg)
        if not isinstance(arg, np.ndarray):
            return arg
        base = arg
        while isinstance(base.base, np.ndarray):
            base = base.base
        start = base.__array_interface__["data"][0]
        if id(base) not in bases:
            bases[id(base)] = np.frombuffer(bytearray(ctypes.string_at(start, base.nbytes)), np.uint8)
        offset = arg.__array_interface__["data"][0] - start
        return np.ndarray(arg.shape, arg.dtype, bases[id(base)], offset, arg.strides)

    return tuple(copy_of(arg) for arg in args)


def flat(result):
    """A result as one vector of float64: of a number, an array, or a tuple or list of either."""
    if isinstance(result, (tuple, list)):
        return np.concatenate([flat(part) for part in result]) if result else np.zeros(0)
    return np.array(result, dtype=np.float64).ravel()


def differences(f, args, argnum, step=STEP):
    """Jacobian (m, n) of compiled code by fourth-order differences; arrays are moved where they are, overlaps with them."""
    columns = []
    for i in np.ndindex(np.shape(args[argnum])):
        results = []
        for k in (-2, -1, 1, 2):
            moved = list(copied(args))
            if isinstance(moved[argnum], np.ndarray):
                moved[argnum][i] += k * step
            else:
                moved[argnum] = float(moved[argnum] + k * step)
            results.append(flat(f(*moved)))
        columns.append((results[0] - 8.0 * results[1] + 8.0 * results[2] - results[3]) / (12.0 * step))
    return np.stack(columns, axis=1)


def assert_same_bits(one, two):
    """Equal to the last bit, and of the same type and shape."""
    if isinstance(two, tuple):
        assert len(one) == len(two)
        for parts in zip(one, two, strict=True):
            assert_same_bits(*parts)
    elif isinstance(two, np.ndarray):
        assert isinstance(one, np.ndarray) and one.dtype == two.dtype and one.shape == two.shape
        assert one.tobytes() == two.tobytes(), f"{one} is not {two}"
    elif isinstance(two, float):
        assert np.float64(one).tobytes() == np.float64(two).tobytes(), f"{one!r} is not {two!r}"


def agrees(f, *args, argnums=0, exact=True, step=STEP):
    """Value, arguments afterwards and derivatives are those of the plain function; returns the derivatives, one (m, n) each."""
    plain_args, active_args = copied(args), copied(args)
    expected = f(*plain_args)
    wanted = (argnums,) if isinstance(argnums, int) else argnums
    if isinstance(expected, (int, float)):
        value, gradients = tj.value_and_grad(f, wanted)(*active_args)
        matrices = [np.reshape(gradient, (1, -1)) for gradient in gradients]
    else:
        value, pullback = tj.vjp(f, wanted)(*active_args)
        value = flat(value)
        expected = flat(expected)
        jacobians = tj.jacobian(f, wanted)(*copied(args))
        matrices = [np.reshape(jacobian, (expected.size, -1)) for jacobian in jacobians]
        y_bar = np.linspace(-1.0, 1.0, expected.size) if expected.size > 1 else np.ones(1)
        x_bars = pullback(y_bar.reshape(np.shape(tj.jvp(f, wanted)(*copied(args), directions(args, wanted))[0])))
        for x_bar, matrix in zip(x_bars, matrices, strict=True):
            assert_allclose(np.ravel(x_bar), y_bar @ matrix, rtol=1e-12, atol=1e-12 * (np.abs(matrix).max() + 1e-300))
    if exact:
        assert_same_bits(value, expected)
        assert_same_bits(active_args, plain_args)
    else:
        assert_allclose(value, expected, rtol=1e-13)
    for argnum, matrix in zip(wanted, matrices, strict=True):
        reference = differences(f, args, argnum, step)
        assert_allclose(matrix, reference, rtol=0.0, atol=DIFFERENCES * max(1.0, np.abs(reference).max()))
    return matrices


def directions(args, wanted):
    """Ones in the shapes of some arguments."""
    return tuple(np.ones(np.shape(args[i])) if np.ndim(args[i]) else 1.0 for i in wanted)


X = np.array([0.7, 1.3, -0.4, 2.1, 0.9])
POSITIVE = np.array([0.6, 1.7, 0.9, 2.2])
MATRIX = np.array([[1.5, 0.2, -0.3], [0.1, 2.0, 0.4], [-0.2, 0.3, 1.2]])


# Arguments.


@njit
def weighted_sum(x, weights):
    total = 0.0
    for index in np.ndindex(x.shape):
        total += weights[index] * x[index] * x[index]
    return total


def test_scalar_arguments():
    @njit
    def f(x, y, z):
        return x * y + math.sin(x) / z

    agrees(f, 1.3, 0.7, 2.0, argnums=(0, 1, 2))
    agrees(f, 1.3, 0.7, 2.0, argnums=1)


LAYOUTS = {
    "vector": X,
    "matrix": MATRIX,
    "Fortran order": np.asfortranarray(MATRIX[:2]),
    "transposed": MATRIX[:2].T,
    "three dimensions": np.linspace(-1.0, 1.0, 12).reshape(2, 3, 2),
    "every other": X[::2],
    "reversed": X[::-1],
    "column": MATRIX[:, 1],
    "inner block": MATRIX[1:, :2],
    "no entries": np.zeros((0, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_array_arguments(layout):
    x = LAYOUTS[layout]
    weights = np.arange(1.0, 1.0 + x.size).reshape(x.shape)
    value, gradient = tj.value_and_grad(weighted_sum)(x, weights)
    assert_same_bits(value, weighted_sum(x, weights))
    assert_array_equal(gradient, 2.0 * weights * x)


def test_read_only_argument():
    x, weights = X.copy(), np.ones(5)
    x.flags.writeable = weights.flags.writeable = False
    assert_array_equal(tj.grad(weighted_sum)(x, weights), 2.0 * x)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_passive_arrays_of_any_dtype(dtype):
    @njit
    def f(x, table):
        total = 0.0
        for i in range(x.size):
            total += x[i] ** 2 * table[i]
        return total

    agrees(f, X, np.arange(5).astype(dtype))


def test_passive_complex_array():
    @njit
    def f(x, table):
        total = 0.0
        for i in range(x.size):
            total += x[i] * x[i] * table[i].real + x[i] * abs(table[i])
        return total

    agrees(f, X, np.exp(1j * np.arange(5)))


def test_integers_bools_strings_none_and_tuples():
    @njit
    def f(x, n, squared, mode, window, offset, tables):
        low, high = window
        total = 0.0
        for i in range(low, min(high, n)):
            total += x[i] * x[i] * tables[0][i] if squared else x[i]
        if mode == "log":
            total = math.log(total) + tables[1]
        if offset is not None:
            total += offset
        return total

    tables = (np.arange(1.0, 6.0), 3)
    agrees(f, np.abs(X), 4, True, "log", (0, 5), None, tables)
    agrees(f, X, 3, False, "linear", (1, 5), 0.5, tables)


@njit
def with_defaults(x, power=2, scale=0.5, table=None):
    return scale * x[0] ** power + (0.0 if table is None else table[0] * x[1])


def test_default_and_keyword_arguments():
    agrees(with_defaults, X)
    agrees(with_defaults, X, 3)
    agrees(with_defaults, X, 3, 2.0, np.ones(1))
    assert_allclose(tj.grad(with_defaults)(X, scale=2.0), [4.0 * X[0], 0.0, 0.0, 0.0, 0.0], rtol=1e-15)


def test_argnums_come_back_in_the_order_given():
    @njit
    def f(a, b, c):
        return a[0] * b + a[1] * c[0] * b

    args = (np.array([1.5, -0.5]), 2.0, np.array([3.0]))
    agrees(f, *args, argnums=(0, 1, 2))
    c_bar, a_bar = tj.grad(f, argnums=(2, 0))(*args)
    assert_array_equal(c_bar, [-1.0])
    assert_array_equal(a_bar, [2.0, 6.0])


def test_unused_argument_has_a_zero_gradient():
    @njit
    def f(x, y):
        return x[0] * 2.0

    agrees(f, X, 3.0, argnums=(0, 1))


# Results.


def test_tuple_of_scalars():
    @njit
    def f(x):
        return x[0] * x[1], x[2] / x[3], 3.0

    agrees(f, X)


@pytest.mark.parametrize("rank", [1, 2])
def test_array_result(rank):
    @njit
    def vector(x):
        result = np.empty(3)
        for i in range(3):
            result[i] = x[i] * x[i + 1]
        return result

    @njit
    def matrix(x):
        result = np.zeros((2, 3))
        for i in range(2):
            result[i] = x[i] * x[2:]
        return result

    f = vector if rank == 1 else matrix
    agrees(f, X)
    assert tj.jacobian(f)(X).shape == f(X).shape + (5,)
    assert_same_bits(tj.vjp(f)(X)[0], f(X))


def test_result_is_a_strided_view():
    @njit
    def f(x):
        return (x * x)[::-2]

    agrees(f, X)


def test_result_is_the_argument():
    @njit
    def f(x):
        x[0] *= 3.0
        return x

    agrees(f, X)


def test_result_does_not_depend_on_the_argument():
    @njit
    def f(x, c):
        return 2.0 * c

    assert_array_equal(agrees(f, X, 3.0)[0], np.zeros((1, 5)))


def test_every_transform():
    @njit
    def f(x):
        total = 0.0
        for i in range(x.size - 1):
            total += x[i] ** 2 * x[i + 1]
        return total

    x, v = np.array([1.0, 2.0, 3.0]), np.array([1.0, -1.0, 0.5])
    hessian = np.array([[4.0, 2.0, 0.0], [2.0, 6.0, 4.0], [0.0, 4.0, 0.0]])
    gradient = np.array([4.0, 13.0, 4.0])
    assert_array_equal(tj.grad(f)(x), gradient)
    assert tj.jvp(f)(x, v) == (14.0, gradient @ v)
    assert tj.vjp(f)(x)[0] == 14.0
    assert_array_equal(tj.vjp(f)(x)[1](2.0), 2.0 * gradient)
    assert_array_equal(tj.hvp(f)(x, v), hessian @ v)
    assert_array_equal(tj.hessian(f)(x), hessian)
    recording = tj.record(f, x)
    assert_array_equal(recording.hvp(2.0 * x, v), 2.0 * hessian @ v)
    tj.testing.check_grads(f, (x,))


def test_minimize():
    @njit
    def rosenbrock(x):
        total = 0.0
        for i in range(x.size - 1):
            total += 100.0 * (x[i + 1] - x[i] ** 2) ** 2 + (1.0 - x[i]) ** 2
        return total

    for method in ("L-BFGS-B", "trust-ncg"):
        found = tj.minimize(rosenbrock, np.zeros(4), method=method)
        assert_allclose(found.x, np.ones(4), atol=1e-4)


# Control flow.


def test_while_on_an_active_condition():
    @njit
    def square_root(a):  # Newton's method
        x = 0.5 * (1.0 + a)
        while abs(x * x - a) > 1e-14 * a:
            x = 0.5 * (x + a / x)
        return x

    derivative = agrees(square_root, 2.0)[0]
    assert_allclose(derivative, 0.5 / math.sqrt(2.0), rtol=1e-14)


def test_branches_and_early_return():
    @njit
    def f(x):
        if x > 2.0:
            return x * x
        elif 0.0 < x <= 1.0 or x == -3.0:
            return math.sin(x)
        if not x < 0.0 and x != 1.5:
            return 3.0 * x
        return -x if x > -1.0 else 5.0

    for x in (3.0, 0.5, -3.0, 1.2, 1.5, -0.5, -2.0):
        value, derivative = tj.value_and_grad(f)(x)
        assert_same_bits(value, f(x))
        assert derivative == pytest.approx((f(x + 1e-6) - f(x - 1e-6)) / 2e-6 if x != -3.0 and x != 1.5 else derivative)
    assert tj.grad(f)(-3.0) == math.cos(-3.0)


def test_break_continue_and_else():
    @njit
    def f(x):
        total = 0.0
        for i in range(x.size):
            if x[i] < 0.0:
                continue
            total += x[i] ** 3
            if total > 100.0:
                break
        else:
            total *= 2.0
        return total

    agrees(f, X)
    agrees(f, 4.0 * X)


def test_comparisons_as_numbers():
    @njit
    def f(x):
        n_positive, flag = 0, False
        for i in range(x.size):
            n_positive += x[i] > 0.0
            flag = flag or x[i] > 2.0
        n_positive += int(x[0] < x[1])
        return x[0] * n_positive + (x[1] if flag else 0.0) + (x[2] < 0.0) * x[3]

    agrees(f, X)


def test_truth_of_a_number():
    @njit
    def f(x):
        return x[1] * x[1] if x[0] else 7.0

    agrees(f, X)
    assert_array_equal(tj.grad(f)(np.array([0.0, 1.0])), [0.0, 0.0])


@njit
def power(x, n):
    if n == 0:
        return 1.0
    return x * power(x, n - 1)


@njit
def is_even_sum(x, n):
    if n == 0:
        return x
    return odd_sum(x * 1.5, n - 1)


@njit
def odd_sum(x, n):
    if n == 0:
        return -x
    return is_even_sum(x + 1.0, n - 1)


def test_self_recursion():
    assert_array_equal(agrees(power, 3.0, 4)[0], [[108.0]])


def test_mutual_recursion():
    agrees(is_even_sum, 0.7, 5)
    agrees(is_even_sum, 0.7, 6)


@njit
def tree_sum(x, low, high):
    if high - low == 1:
        return x[low] ** 2
    middle = (low + high) // 2
    return tree_sum(x, low, middle) + tree_sum(x, middle, high)


def test_recursion_over_an_array():
    assert_array_equal(agrees(tree_sum, X, 0, 5)[0], 2.0 * X[None, :])


def test_closure_over_numbers_and_arrays():
    scale, table = 2.5, np.arange(5.0)

    @njit
    def f(x):
        total = 0.0
        for i in range(x.size):
            total += scale * table[i] * x[i] ** 2
        return total

    assert_array_equal(agrees(f, X)[0], 2.0 * scale * table * X[None, :])


def test_functions_defined_inside():
    @njit
    def f(x):
        shift = x[0] * 2.0

        def shifted(y):
            return (y + shift) ** 2

        double = lambda y: 2.0 * y  # noqa: E731
        return shifted(x[1]) * double(x[2]) + shifted(x[3])

    agrees(f, X)


def test_integer_that_becomes_active():
    @njit
    def f(x):
        total = 0
        for v in x:
            total += v * v
        return total

    agrees(f, X)


def test_variable_is_passive_then_active_then_passive():
    @njit
    def f(x):
        y = 2.0
        y = y * x[0]
        z = y * y
        y = 3.0
        return z * y + math.sqrt(y)

    agrees(f, X)


# Containers and iteration.


def test_lists_of_active_values():
    @njit
    def f(x):
        values = [x[0] * x[1]]
        for i in range(2, x.size):
            values.append(values[-1] * x[i])
        squares = [v * v for v in values]
        squares[0] += 1.0
        total = squares.pop()
        for v in squares:
            total += v
        return total + len(squares) + sum(values)

    agrees(f, X)


def test_lists_of_active_arrays():
    @njit
    def f(x):
        history = [x.copy()]
        for _ in range(3):
            history.append(0.5 * history[-1] * x)
        return history[1].sum() + (history[3] * history[2])[1]

    agrees(f, X)


def test_typed_list():
    @njit
    def f(x):
        values = numba.typed.List()
        for v in x:
            values.append(v * v)
        values[1] = values[0] * values[2]
        total = 0.0
        for v in values:
            total += v
        return total

    agrees(f, X)


def test_typed_list_as_argument():
    @njit
    def f(x, weights):
        total = 0.0
        for v, w in zip(x, weights):
            total += w * v * v
        return total

    agrees(f, X, numba.typed.List([1.0, 2.0, 3.0, 4.0, 5.0]))


def test_typed_list_of_arrays():
    @njit
    def f(x):
        rows = numba.typed.List()
        rows.append(np.zeros(2))
        rows.append(x)
        rows[0][1] = 2.0 * x[1]
        return rows[0][1] * rows[1][0]

    agrees(f, X)


def test_tuples_of_active_values():
    @njit
    def rotated(point, c, s):
        x, y = point
        return c * x - s * y, s * x + c * y

    @njit
    def f(x):
        point = (x[0], x[1])
        for _ in range(3):
            point = rotated(point, math.cos(x[2]), math.sin(x[2]))
        mixed = (point, 2, x[3:])
        return mixed[0][0] ** 2 * mixed[1] + mixed[0][1] * mixed[2][0] + point[-1] + (x[1], x[2])[1]

    agrees(f, X)


def test_tuples_of_active_and_plain_numbers():
    """One kind of number to Numba, so they may be indexed and iterated over."""

    @njit
    def g(*values):
        return values[0] - 3.0 * values[1]

    @njit
    def f(x):
        point, total = (x[0], 2.0, x[1], 0.5), 0.0
        for i in range(4):
            total += (i + 1) * point[i]
        for value in (1.0, x[2]):
            total *= value
        return total + g(*(2.0, x[3]))

    agrees(f, X)


def test_enumerate_zip_and_ranges():
    @njit
    def f(x, weights):
        total = 0.0
        for i, (v, w) in enumerate(zip(x, weights)):
            total += (i + 1) * w * v * v
        for i in range(x.size - 1, 0, -2):
            total += x[i] * x[i - 1]
        for i, v in enumerate(x[1:]):
            total -= i * v**3
        return total

    agrees(f, X, np.arange(5))


def test_literal_unroll():
    @njit
    def f(x):
        total = 0.0
        for factor in literal_unroll((2, 0.5, x[1])):
            total += factor * x[0]
        return total

    agrees(f, X)


def test_ndenumerate_and_flat():
    @njit
    def f(x):
        total = 0.0
        for (i, j), v in np.ndenumerate(x):
            total += (i + 2 * j) * v * v
        for v in x.flat:
            total += v**3
        return total

    agrees(f, MATRIX)


def test_unpacking_an_array():
    @njit
    def f(x):
        a, b, c, d, e = x
        a, b = b, a
        return a**2 * b + c / d - e

    agrees(f, X)


# Arrays.


def test_augmented_assignment():
    @njit
    def f(x):
        y = x.copy()
        y[0] += 2.0 * x[1]
        y[1] -= x[0]
        y[2] *= x[3]
        y[3] /= x[4]
        y[4] **= 2
        y += x
        y -= 0.5
        y *= x
        y /= 2.0
        y[1:3] += x[:2]
        y[::2] *= 3.0
        return y.sum()

    agrees(f, X)


def test_array_expressions():
    @njit
    def f(x, w):
        y = 2.0 * x + w * x**2 - x / (1.0 + x * x)
        z = -y + np.exp(-x) * np.sin(w) + w
        return (y * z + np.sqrt(np.abs(z)) * 3).sum()

    agrees(f, X, np.arange(5.0))


def test_broadcasting():
    @njit
    def f(x, a):
        outer = x.reshape(-1, 1) * x[:3] + a
        return np.sum(outer * outer + a[0] * x[1])

    agrees(f, X, np.ones((5, 3)))


def test_slices_and_views_share_memory():
    @njit
    def f(x):
        y = np.zeros(8)
        middle = y[1:6]
        middle[:] = x
        middle[1:-1] = middle[2:] * 2.0
        y[-2:] = x[:2]
        tail = middle[-2:]
        tail[0] = x[0] * x[1]
        return (y * y).sum() + y[5] + y[-1]

    agrees(f, X)


def test_reshape_ravel_and_transpose():
    @njit
    def f(x):
        y = (x * x).reshape(2, 3)
        y.reshape(-1)[4] = x[0]
        z = y.T.copy()
        flat_again = z.ravel()
        return flat_again[1] * 2.0 + z[2, 1] * y[1, 0] + y.flatten()[3] + np.transpose(y)[1, 1]

    agrees(f, np.append(X, 0.3))


def test_two_and_three_dimensions():
    @njit
    def f(x):
        y = np.zeros((2, 3, 4))
        for i in range(2):
            for j in range(3):
                for k in range(4):
                    y[i, j, k] = x[i, j] * (k + 1) + x[-1, -2]
        y[0, 1:, ::2] = y[1, :2, 1::2]
        y[1, 2] = y[0, 0] * 2.0
        y[:, 0, 0] += x[:2, 1]
        total = y[1, 2, 3] + y[0].sum() + y[..., 1].sum()
        return total * y[0, 1, 0]

    agrees(f, MATRIX)


def test_boolean_masks():
    @njit
    def f(x):
        positive = x > 0.0
        y = x.copy()
        y[x < 0.0] = 0.25
        y[positive] *= 2.0
        chosen = x[positive]
        return (chosen**2).sum() + y.sum() + np.sum(positive) * x[0] + np.where(positive, x, 3.0 * x).sum()

    agrees(f, X)


def test_integer_index_arrays():
    @njit
    def f(x, order):
        y = x[order]
        z = np.zeros(5)
        z[order] = x * 2.0
        return y[0] * y[1] + (z * z)[:3].sum()

    agrees(f, X, np.array([3, 0, 4, 1, 2]))


def test_numpy_allocators():
    @njit
    def f(x):
        n = x.size
        a = np.zeros(n)
        b = np.empty(n, dtype=np.float64)
        c = np.ones((2, n))
        d = np.full(n, 0.5)
        e = np.full(n, x[0])
        g = np.zeros_like(x)
        h = np.empty_like(a)
        k = np.ones_like(b)
        m = np.full_like(x, 2.0)
        p = np.arange(5.0)
        q = np.linspace(0.0, 1.0, n)
        r = np.eye(n)
        s = np.identity(n)
        t = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
        u = np.array([x[0], x[1], 1.0, x[3], 2.0])
        v = x.copy()
        w = np.copy(x)
        for i in range(n):
            a[i] = x[i]
            b[i] = 2.0 * x[i]
            c[1, i] = x[i] * x[0]
            d[i] += x[i]
            g[i] = x[i] ** 2
            h[i] = x[i] ** 3
            k[i] -= x[i]
            m[i] *= x[i]
            p[i] *= x[i]
            q[i] += x[i]
            r[i, i] = x[i]
            s[0, i] = x[i]
            t[i] -= x[i]
            v[i] *= 0.5
            w[i] += x[0]
        total = a * b + c[1] + c[0] * d + e * g + h + k * m + p * q + t * u + v * w
        return total.sum() + (r @ s).sum()

    agrees(f, X)


def test_allocators_imported_in_other_ways():
    @njit
    def f(x):
        a = zeros(x.size)
        b = allocate((x.size,), np.float64)
        c = xp.zeros(shape=x.shape)
        d = numpy.ones(3, dtype=numpy.float64)
        for i in range(x.size):
            a[i] = exponential(x[i])
            b[i] = xp.sin(a[i])
            c[i] = a[i] * b[i]
        d[1] = c[0]
        return a.sum() + b.sum() + c.sum() + d.sum()

    agrees(f, X)


def test_allocator_in_a_callee():
    @njit
    def buffer(n):
        return np.zeros(n)

    @njit
    def f(x):
        a, b = buffer(3), buffer(2)
        a[0] = x[0] * x[1]
        b[0] = 2.0
        return a[0] * b[0] + a[1]

    agrees(f, X)


def test_methods_and_reductions():
    @njit
    def f(x):
        a = x.sum() * x.mean() + x.dot(x) + x @ x + np.dot(x, x[::-1].copy()) + np.sum(x) * np.mean(x)
        b = x.prod() + np.prod(x) + x.var() + np.var(x) + x.std() + np.std(x)
        c = x.max() * np.min(x) + x.min() * np.max(x) + x[x.argmax()] + x[np.argmin(x)]
        return a + b + c

    agrees(f, X)


def test_reductions_along_an_axis():
    @njit
    def f(x):
        return (np.sum(x, axis=0) * x.sum(axis=1)).sum() + x.sum(0)[1] ** 2

    agrees(f, MATRIX)


def test_elementwise_functions():
    @njit
    def f(x):
        y = np.maximum(x, 0.8) + np.minimum(x, 1.1) + np.clip(x, 0.0, 1.0) + np.abs(x) + np.where(x > 1.0, x * x, x)
        y += np.maximum(x[0], 0.5) + np.minimum(x[1], x[2]) + np.absolute(x[2]) + np.fabs(x)
        y *= np.exp(-x) + np.log1p(x * x) + np.tanh(x) + np.arctan2(x, 2.0) + np.hypot(x, 1.0) + np.sign(x)
        return (y + np.square(x) + np.power(np.abs(x), 1.5) + np.cbrt(x) + np.floor(x)).sum()

    agrees(f, X)


def test_math_functions():
    @njit
    def f(x):
        a = math.sin(x) + math.cos(x) + math.tan(x) + math.asin(x) + math.acos(x) + math.atan(x) + math.sinh(x)
        b = math.cosh(x) + math.tanh(x) + math.asinh(x) + math.acosh(1.5 + x) + math.atanh(x) + math.exp(x)
        c = math.expm1(x) + math.log(x) + math.log1p(x) + math.log2(x) + math.log10(x) + math.sqrt(x) + math.fabs(-x)
        d = math.pow(x, 2.5) + math.atan2(x, 2.0) + math.hypot(x, 3.0) + math.erf(x) + math.erfc(x)
        return a * b + c * d + math.lgamma(x) + math.copysign(x, -2.0)

    agrees(f, 0.6)


def test_powers():
    @njit
    def f(x, y):
        total = x**2 + x**3 + x**-2 + x**0.5 + x**1.5 + x**y + 2.0**y + 2**y + pow(x, 3)
        n = 4
        return total + x**n + x**-n + (-x) ** 3 + x**0

    agrees(f, 1.7, 0.6, argnums=(0, 1))


def test_floor_division_and_remainder():
    @njit
    def f(x, y):
        return x // y + x % y + 3.0 * (x % 0.7) + x // 0.3

    agrees(f, 2.9, 0.8, argnums=(0, 1))


def test_builtin_min_max_abs_and_sum():
    @njit
    def f(x):
        low, high = min(x[0], x[1], x[2]), max(x[0], 1.0, x[3])
        return low * high + abs(x[2]) ** 3 + max(x[4], 0) + min(2, x[1]) + max(x[2], -1.0) - -x[0] + +x[1]

    agrees(f, X)


def test_clamped_square_root():
    """A branch, as in plain Python: where max takes the constant, no infinite derivative comes back."""

    @njit
    def f(x):
        return math.sqrt(max(x[0], 0.0)) + np.sqrt(max(x[1], 0.0)) + x[1] ** 2

    assert_array_equal(tj.grad(f)(np.array([-1.0, -2.0])), [0.0, -4.0])
    agrees(f, np.array([2.0, -2.0]))


def test_float_of_an_active_number_keeps_its_derivative():
    @njit
    def f(x):
        return float(x[0]) ** 2 + np.float64(x[1]) * x[0]

    agrees(f, X)


def test_rounding():
    @njit
    def f(x):
        i = int(np.floor(x[3]))
        j = int(math.floor(x[0]))
        return (
            x[i] * x[j] + np.floor(x[3]) + round(x[1]) * x[1] + np.rint(x[0]) + math.ceil(x[0]) * x[0] + np.trunc(x[4])
        )

    agrees(f, X)


def test_integer_of_an_active_number():
    """Constant between its jumps, so its derivative is 0 there and it may stand for a number or an index."""

    @njit
    def f(x):
        return x[int(x[0] * 2.0)] ** 2 + int(x[3]) * x[0] + np.int64(x[1]) * x[2]

    agrees(f, X)


def test_small_linear_algebra():
    @njit
    def f(a, b):
        inverse = np.linalg.inv(a)
        solution = np.linalg.solve(a, b)
        factor = np.linalg.cholesky(a @ a.T)
        norms = np.linalg.norm(b) + np.linalg.norm(a)
        return solution @ inverse @ b + np.linalg.det(a) * norms + factor[1, 0] * factor[2, 2]

    agrees(f, MATRIX, POSITIVE[:3], argnums=(0, 1))


@pytest.mark.slow
def test_solve_for_several_right_hand_sides():
    @njit
    def f(a, b):
        return np.linalg.solve(a, b).sum()

    agrees(f, MATRIX, np.ones((3, 2)), argnums=(0, 1))


@pytest.mark.parametrize("passive", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_matrix_products(passive):
    @njit
    def f(a, b, v):
        return (a @ b @ v).sum() + (np.dot(b, a).T * a).sum() + (v @ a)[0] * np.dot(a, v)[1]

    v = POSITIVE[:3]
    agrees(f, MATRIX, MATRIX.T.copy(), v, argnums=(0, 2) if passive else (1,))


def test_interpolation_on_a_passive_grid():
    @njit
    def f(x, grid, values):
        i = np.searchsorted(grid, x[0]) - 1
        t = (x[0] - grid[i]) / (grid[i + 1] - grid[i])
        return (1.0 - t) * values[i] + t * values[i + 1] + np.interp(x[1], grid, values)

    agrees(f, X, np.linspace(-1.0, 3.0, 9), np.linspace(-1.0, 3.0, 9) ** 2)


@pytest.mark.slow
def test_passive_data_takes_any_function():
    """What active values do not reach stays as it is: LAPACK, sorting and integers on data."""

    @njit
    def f(x, data):
        _, singular, _ = np.linalg.svd(data)
        ordered = np.sort(data.ravel())
        transformed = np.unique(np.round(ordered)).size
        work = np.zeros(3)
        work[0] = np.median(ordered)
        return x[0] * singular[0] + x[1] ** 2 * ordered[2] + x[2] * transformed * work[0]

    agrees(f, X, MATRIX)


# In place.


def test_argument_overwritten():
    @njit
    def f(x, factor):
        total = 0.0
        for i in range(1, x.size):
            x[i] += factor * x[i - 1]
            total += x[i] * x[i]
        return total

    agrees(f, X, 0.5, argnums=(0, 1))
    strided = np.arange(10.0)[::2]
    agrees(f, strided, 0.5, argnums=(0, 1))


def test_work_array_argument():
    @njit
    def smooth(x, work):
        for i in range(x.size):
            work[i] = 0.5 * (x[i] + x[i - 1])

    @njit
    def f(x, work, counts):
        for _ in range(2):
            smooth(x, work)
            x[:] = work
            counts[1] += 1
        return (work * work).sum() * counts[1]

    agrees(f, X, np.full(5, 9.0), np.zeros(3, np.int64))


def test_work_array_in_a_tuple():
    @njit
    def f(x, arrays):
        work, table = arrays
        work[0] = x[0] * table[1]
        return work[0] * work[1]

    agrees(f, X, (np.ones(3), np.arange(3.0)))


def test_arrays_under_several_names():
    @njit
    def chosen(a, b, first):
        return a if first else b

    @njit
    def f(x, first):
        a, b, rows = np.zeros(2), np.ones(2), [np.zeros(2), np.ones(2)]
        c = a if first else b
        c[0] = x[0]
        chosen(a, b, first)[1] = x[1] * x[2]
        d = rows[1]
        d[0] = x[3]
        return (a[0] + 2.0 * b[0]) * (a[1] + 3.0 * b[1]) + rows[1][0] * x[4] + rows[0][0]

    agrees(f, X, True)
    agrees(f, X, False)


def test_work_array_keeps_what_was_not_written():
    @njit
    def f(x, work):
        work[1] = x[0] * work[0]
        return work[1] * work[2]

    agrees(f, X, np.array([2.0, 3.0, 5.0]))


def test_overlapping_arguments():
    @njit
    def f(left, right):
        for i in range(left.size):
            left[i] += 0.5 * right[i]
        return (left * right).sum()

    x = X.copy()
    agrees(f, x[:-1], x[1:])


def test_overlapping_arguments_of_a_callee():
    @njit
    def spread(left, right):
        for i in range(left.size):
            right[i] += 0.5 * left[i]

    @njit
    def f(x):
        spread(x[:-1], x[1:])
        return (x * x).sum()

    agrees(f, X)


def test_same_array_twice():
    @njit
    def f(a, b):
        a[0] = 2.0 * b[1]
        return a[0] * b[0]

    x = X.copy()
    agrees(f, x, x)


def test_buffers_swapped():
    @njit
    def f(x):
        old, new = x.copy(), np.empty(x.size)
        for _ in range(3):
            for i in range(x.size):
                new[i] = 0.25 * (old[i - 1] + 2.0 * old[i]) + 0.1 * old[i] ** 2
            old, new = new, old
        return (old * old).sum()

    agrees(f, X)


def test_integer_work_arrays_stay_integer():
    @njit
    def f(x, counts):
        order = np.zeros(x.size, dtype=np.int64)
        seen = np.zeros(x.size, dtype=np.bool_)
        for i in range(x.size):
            order[i] = (2 * i) % x.size
            seen[order[i]] = True
            counts[order[i]] += 7 // 2
        total = 0.0
        for i in range(x.size):
            if seen[i]:
                total += x[order[i]] * x[order[i] - 1] * counts[i]
        return total / order.sum()

    agrees(f, X, np.zeros(5, np.int32))


def test_array_chosen_by_a_flag():
    @njit
    def f(x, table, use_table):
        source = table if use_table else x
        total = 0.0
        for i in range(source.size):
            total += source[i] ** 2 * x[i]
        return total

    agrees(f, X, np.arange(5.0), True)
    agrees(f, X, np.arange(5.0), False)


def test_array_variable_rebound_to_active_values():
    @njit
    def f(x, steps):
        state = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
        for _ in range(steps):
            state = 0.5 * state + x
        return (state * state).sum()

    agrees(f, X, 3)
    agrees(f, X, 0)


def test_passive_array_that_becomes_active_through_a_callee():
    @njit
    def fill(target, value):
        target[:] = value

    @njit
    def f(x):
        a, b = np.zeros(3), np.zeros(3)
        fill(a, 2.0)
        fill(b, x[0])
        return (a * b).sum() * x[1]

    agrees(f, X)


def test_active_value_in_an_integer_array_is_an_error_with_the_line():
    @njit
    def f(x):
        counts = np.zeros(3, dtype=np.int64)
        counts[0] = x[0]
        return x[1] * counts[0]

    with pytest.raises((PassiveConversionError, UnsupportedError), match=r"test_native_constructs\.py"):
        tj.grad(f)(X)


# Callees.


@njit
def cube(x):
    return x * x * x


@njit
def scaled_cube(x, scale=2.0):
    return scale * cube(x)


def test_callees_as_globals():
    @njit
    def f(x):
        return cube(x[0]) + scaled_cube(x[1]) + scaled_cube(x[2], 3.0) + scaled_cube(x[3], scale=x[0])

    agrees(f, X)


def test_callees_in_other_modules():
    @njit
    def f(x):
        knots, heights = np.arange(5.0), x * x
        bend = tridiagonal.second_derivatives(knots, heights)
        return soft_minimum(x[0], x[1], x[2], 0.5) + tridiagonal.spline(heights, knots, bend, 1.5 + 0.1 * x[4])

    agrees(f, X)


def test_callee_as_argument():
    @njit
    def twice(g, x):
        return g(g(x))

    @njit
    def f(x, g):
        return twice(g, x[0]) + twice(cube, x[1])

    agrees(f, X, cube)
    agrees(f, X, scaled_cube)


def test_callee_in_a_closure():
    def make(g, n):
        @njit
        def repeated(x):
            for _ in range(n):
                x = g(x) + 0.1
            return x

        return repeated

    agrees(make(cube, 2), 0.7)
    agrees(make(make(cube, 1), 2), 0.7)


@pytest.mark.filterwarnings("ignore:First-class function type")  # Numba says so of the plain function
def test_tuple_of_callees():
    functions = (cube, scaled_cube)

    @njit
    def f(x):
        total = functions[1](x[0])
        for g in literal_unroll(functions):
            total += g(x[1]) * x[2]
        return total

    agrees(f, X)


def test_callee_on_active_and_on_passive_arguments():
    @njit
    def g(values):
        total = 0.0
        for v in values:
            total += v * v
        return total

    @njit
    def f(x, table):
        return g(x) * g(table) + cube(x[0]) + cube(table[1])

    agrees(f, X, np.arange(3.0))


def test_callee_that_returns_arrays_and_tuples():
    @njit
    def moments(x):
        centred = x - x.mean()
        return x.mean(), centred, (centred**2).sum()

    @njit
    def f(x):
        mean, centred, spread = moments(x)
        return mean * spread + centred[0] * centred[1]

    agrees(f, X)


def test_star_arguments():
    @njit
    def g(*values):
        total = 0.0
        for v in values:
            total += v * v
        return total

    @njit
    def f(x):
        return g(x[0], x[1], x[2]) + g(*(x[3], x[4]))

    agrees(f, X)


def test_register_jitable_callee():
    @numba.extending.register_jitable
    def g(x, out):
        out[:] = x * x

    @njit
    def f(x):
        out = np.empty_like(x)
        g(x, out)
        return out.sum()

    agrees(f, X)


# Options of the decorator.


def test_explicit_signature():
    @njit("float64(float64[:], int64)")
    def f(x, n):
        work = np.zeros(n)
        for i in range(n):
            work[i] = x[i] ** 2
        return work.sum()

    agrees(f, X, 3)


def test_error_model():
    @njit(error_model="numpy")
    def quotient(x):
        return 1.0 / x[0]

    assert tj.value_and_grad(quotient)(np.zeros(1))[0] == math.inf
    agrees(quotient, X)

    @njit
    def raising(x):
        return 1.0 / x[0]

    with pytest.raises(ZeroDivisionError):
        raising(np.zeros(1))
    with pytest.raises(ZeroDivisionError):
        tj.grad(raising)(np.zeros(1))
    agrees(raising, X)


def test_boundscheck():
    @njit(boundscheck=True)
    def f(x, i):
        return x[i] ** 2

    with pytest.raises(IndexError):
        tj.grad(f)(X, 7)
    agrees(f, X, 3)


@pytest.mark.parametrize(
    "options", [{"nogil": True}, {"fastmath": True}, {"inline": "always"}, {"nopython": True}, {"forceinline": True}]
)
def test_other_options(options):
    @njit(**{name: value for name, value in options.items() if name != "nopython"})
    def g(x):
        return x * math.exp(-x)

    decorate = numba.jit if "nopython" in options else njit

    @decorate(**options)
    def f(x):
        total = 0.0
        for v in x:
            total += g(v)
        return total

    agrees(f, X, exact="fastmath" not in options)


def test_parallel_is_recorded_in_sequence():
    @njit(parallel=True)
    def f(x):
        y = np.empty_like(x)
        for i in prange(x.size):
            y[i] = x[i] * x[i] + 0.5
        total = 0.0
        for i in prange(x.size):
            total += y[i]
        return total

    x = np.arange(64.0)  # sums of these are exact in any order
    assert tj.value_and_grad(f)(x)[0] == f(x)
    assert_array_equal(tj.grad(f)(x), 2.0 * x)


CACHED = """
import sys
import numba
import numpy as np
import tapejit as tj
sys.path.insert(0, {here!r})
import cached_elsewhere

@numba.njit(cache=True)
def f(x):
    work = np.zeros(x.size)
    for i in range(x.size):
        work[i] = cached_elsewhere.squared(x[i]) * x[0]
    return work.sum()

x = np.array([2.0, 3.0])
assert f(x) == 26.0
value, gradient = tj.value_and_grad(f)(x)
assert value == 26.0 and gradient.tolist() == [21.0, 12.0], (value, gradient)
assert f(x) == 26.0
print(sum(f.stats.cache_hits.values()))
"""


def test_cached_functions_do_not_share_code_with_their_active_versions(tmp_path):
    """The plain function first, then its gradient, in two processes; then the callee is edited."""
    callee = tmp_path / "cached_elsewhere.py"
    callee.write_text("import numba\n\n@numba.njit(cache=True)\ndef squared(x):\n    return x * x\n")
    script = tmp_path / "cached.py"
    script.write_text(CACHED.format(here=str(tmp_path)))
    environment = {
        **os.environ,
        "TAPEJIT_CACHE_DIR": str(tmp_path / "tapejit"),
        "NUMBA_CACHE_DIR": str(tmp_path / "numba"),
    }
    for hits in ("0", "1"):
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == hits
    loaded = load(callee)
    assert tj.grad(loaded.squared)(3.0) == 6.0


def load(path):
    """A module from a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Random numbers.


@njit
def seed(number):
    np.random.seed(number)


def test_random_numbers_are_those_of_the_plain_function():
    @njit
    def f(x):
        total = 0.0
        for v in x:
            total += v * np.random.normal() + v * v * np.random.random() + np.random.randint(0, 5) * v
        return total + (np.random.standard_normal(5) * x).sum()

    @njit
    def seeded(x):
        np.random.seed(7)
        return x[0] * np.random.normal(1.0, 2.0)

    seed(3)
    expected = f(X), f(X)
    seed(3)
    assert_same_bits(tuple(float(tj.value_and_grad(f)(X)[0]) for _ in range(2)), expected)
    agrees(seeded, X)


# What goes wrong.


def test_uninitialized_element():
    @njit
    def f(x):
        work = np.empty(3)
        work[0] = x[0]
        return work[0] * work[1]

    with pytest.raises(UninitializedError, match="np.empty"):
        tj.grad(f)(X)


def test_uninitialized_array_in_an_expression():
    @njit
    def f(x, n):
        work = np.empty_like(x)
        work[:n] = x[:n]
        return (2.0 * work + x).sum()

    with pytest.raises(UninitializedError):
        tj.grad(f)(X, 4)
    agrees(f, X, 5)


def test_uninitialized_result():
    @njit
    def f(x):
        result = np.empty(3)
        result[0] = x[0]
        return result

    with pytest.raises(UninitializedError):
        tj.jacobian(f)(X)


def test_uninitialized_memory_of_an_earlier_call():
    """A buffer that held active values of the last recording, recycled by the allocator."""

    @njit
    def f(x, writes):
        work = np.empty(100)
        if writes:
            work[:] = x[0]
        return work[50] * 2.0

    agrees(f, X, True)
    for _ in range(5):
        with pytest.raises(UninitializedError):
            tj.grad(f)(X, False)
        agrees(f, X, True)


class NotPhysical(Exception):
    """An exception of the user."""


@njit
def checked_root(x):
    if x < 0.0:
        raise NotPhysical("negative energy", 17)
    return math.sqrt(x)


def test_exceptions_come_out_as_themselves():
    @njit
    def f(x):
        total = 0.0
        for v in x:
            if v == 0.0:
                raise ValueError("zero")
            total += checked_root(v)
        if total > 100.0:
            raise AssertionError
        return total

    agrees(f, POSITIVE)
    with pytest.raises(NotPhysical) as caught:
        tj.grad(f)(X)
    assert caught.value.args == ("negative energy", 17)
    with pytest.raises(ValueError, match="^zero$"):
        tj.grad(f)(np.zeros(2))
    with pytest.raises(AssertionError):
        tj.grad(f)(np.full(2, 1e5))
    agrees(f, POSITIVE)


def test_exception_caught_inside():
    @njit
    def f(x):
        total = 0.0
        for v in x:
            try:
                total += checked_root(v)
            except Exception:
                total += v * v
        return total

    agrees(f, X)


def test_tape_grows():
    @njit
    def f(x, n):
        total = 0.0
        for i in range(n):
            total += x[i % 5] * x[(i + 1) % 5]
        return total

    x, n = X, 200_000
    gradient = np.zeros(5)
    for i in range(n):
        gradient[i % 5] += x[(i + 1) % 5]
        gradient[(i + 1) % 5] += x[i % 5]
    value, x_bar = tj.value_and_grad(f)(x, n)
    assert_same_bits(value, f(x, n))
    assert_allclose(x_bar, gradient, rtol=1e-12)


def test_constants_are_pushed_once():
    @njit
    def f(x, n):
        y = x
        for _ in range(n):
            y = 0.5 * y + 1.25
        return y

    tape = tj.record(f, 2.0, 10_000).tape
    assert 20_000 <= tape.n_slots < 20_050


INTERRUPTED = """
import math
import numba
import tapejit as tj

@numba.njit
def long(x, n):
    for _ in range(n):
        x = math.sin(x) + 0.5
    return x

before = tj.value_and_grad(long)(0.3, 1000)
print("ready", flush=True)
try:
    for _ in range(200):
        tj.grad(long)(0.3, 5_000_000)
except KeyboardInterrupt:
    assert tj.value_and_grad(long)(0.3, 1000) == before
    print("interrupted")
"""


@pytest.mark.skipif(os.name != "posix", reason="no signals between processes")
def test_interrupt_while_recording():
    """Ctrl-C, at whatever moment it comes, and the next recording works."""
    for delay in (0.05, 0.3):
        with subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=120)
        assert out == b"interrupted\n", errors.decode()


def test_two_threads_record_at_once():
    @njit(nogil=True)
    def f(x, n):
        y, z = x[0], x[1]
        for _ in range(n):
            y, z = math.sin(z) + 0.5 * y, math.cos(y) * z
        return y * z

    expected = [tj.value_and_grad(f)(X + i, 20_000) for i in range(2)]
    found = [[], []]
    barrier = threading.Barrier(2)

    def work(i):
        barrier.wait()
        for _ in range(10):
            found[i].append(tj.value_and_grad(f)(X + i, 20_000))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert len(found[i]) == 10
        for value, gradient in found[i]:
            assert_same_bits(value, expected[i][0])
            assert_same_bits(gradient, expected[i][1])


# Replays.


def test_replay_equals_recording():
    @njit
    def f(x, table):
        work = np.zeros(x.size)
        for i in range(x.size):
            work[i] = math.exp(-x[i] * x[i]) * table[i]
        return work.sum() / (1.0 + x[0] ** 2)

    table = np.arange(5.0)
    recording = tj.record(f, X, table)
    for x in (X, X[::-1], 2.0 * X):
        value, gradient = recording.value_and_grad(x)
        expected_value, expected = tj.value_and_grad(f)(x, table)
        # A replay has tapejit's own exponential, a recording Numba's.
        assert expected_value == f(x.copy(), table)
        assert_allclose(value, expected_value, rtol=1e-14)
        assert_allclose(gradient, expected, rtol=1e-13)
    assert recording.n_recorded == 1


def test_replay_notices_another_branch():
    @njit
    def f(x):
        total = 0.0
        for v in x:
            if v > 1.0:
                total += v * v
            else:
                total += 3.0 * v
        return total

    recording = tj.record(f, X)
    assert recording.value(0.99 * X) == f(0.99 * X)
    assert recording.n_recorded == 1
    assert recording.value(-X) == f(-X)
    assert_array_equal(recording.grad(-X), np.where(-X > 1.0, -2.0 * X, 3.0))
    assert recording.n_recorded == 2
    with pytest.raises(BranchChangeError):
        tj.record(f, X, on_branch_change="raise").value(-X)


@njit
def loop_while(x):
    y = x[0]
    while y < 3.0:
        y *= 1.5
    return y


@njit
def take_argmax(x):
    return x[np.argmax(x)] ** 2 + x[x.argmin()]


@njit
def take_mask(x):
    return (x[x > 0.5] ** 2).sum()


@njit
def builtin_max(x):
    return max(x[0], x[1]) * min(x[2], 0.5)


@njit
def floor_index(x):
    return x[int(np.floor(abs(x[3])))]


@njit
def find_interval(x):
    return x[1] * np.searchsorted(np.arange(4.0), x[0])


@njit
def branch_as_number(x):
    n = 0
    for v in x:
        n += v > 0.5
    return n * x[0]


@pytest.mark.parametrize(
    "f", [loop_while, take_argmax, take_mask, builtin_max, floor_index, find_interval, branch_as_number]
)
def test_replay_notices_every_kind_of_decision(f):
    recording = tj.record(f, X)
    other = np.array([2.6, -0.5, 0.8, 0.2, 1.1])
    value, gradient = recording.value_and_grad(other)
    assert_same_bits(value, float(f(other)))
    assert_array_equal(gradient, tj.grad(f)(other))


# What is refused, by name.

POINT = np.dtype([("position", np.float64), ("charge", np.float64)])


@jitclass([("total", numba.float64)])
class Accumulator:
    """A compiled class."""

    def __init__(self, total):
        self.total = total

    def add(self, value):
        self.total += value


@njit
def refused_record(x, points):
    points[0].position = x[0]
    return points[0].position * 2.0


@njit
def refused_jitclass(x):
    accumulator = Accumulator(x[0])
    accumulator.add(x[1])
    return accumulator.total


@njit
def refused_jitclass_argument(x, accumulator):
    accumulator.add(x[1])
    return accumulator.total


@njit
def refused_object_mode(x):
    y = x[0]
    with numba.objmode(y="float64"):
        y = float(np.sum(x))
    return y


@njit
def squares(x):
    for v in x:
        yield v * v


@njit
def refused_generator(x):
    total = 0.0
    for v in squares(x):
        total += v
    return total


@njit
def refused_float32(x):
    return np.float32(x[0]) * x[1]


@njit
def refused_float32_work_array(x):
    work = np.zeros(2, dtype=np.float32)
    work[0] = x[0]
    return work[0] * 2.0


@njit
def refused_complex(x):
    z = complex(x[0], 1.0)
    return (z * z).real


@njit
def refused_complex_arithmetic(x):
    return abs(x[0] * 1j + 2.0)


@njit
def refused_complex_work_array(x):
    work = np.zeros(2, dtype=np.complex128)
    work[0] = x[0]
    return work[0].real


REFUSED = {
    refused_record: ((np.zeros(2, POINT),), "record|structured"),
    refused_jitclass: ((), "jitclass|Accumulator"),
    refused_jitclass_argument: ((Accumulator(0.0),), "jitclass|Accumulator"),
    refused_object_mode: ((), "objmode|object mode"),
    refused_generator: ((), "generator"),
    refused_float32: ((), "float32"),
    refused_float32_work_array: ((), "float32"),
    refused_complex: ((), "complex"),
    refused_complex_arithmetic: ((), "complex"),
    refused_complex_work_array: ((), "complex"),
}


@pytest.mark.parametrize("f", REFUSED, ids=lambda f: f.py_func.__name__.removeprefix("refused_"))
def test_refused_by_name(f):
    rest, name = REFUSED[f]
    f(X, *rest)
    with pytest.raises((UnsupportedError, PassiveConversionError), match=f"(?is)({name})") as caught:
        tj.grad(f)(X, *rest)
    assert isinstance(caught.value, TypeError)
    assert "test_native_constructs.py" in str(caught.value)


@njit
def unknown_function(x):
    return np.linalg.eigvals(x.reshape(1, 1)).real[0] + np.median(x)


def test_function_without_a_rule_is_named():
    with pytest.raises(UnsupportedError, match="eigvals|median"):
        tj.grad(unknown_function)(X[:1])


def test_dtype_of_a_differentiated_argument():
    for x in (X.astype(complex), np.array([1, 2, 3]), np.zeros(3, POINT)):
        with pytest.raises((ShapeError, UnsupportedError)):
            tj.grad(weighted_sum)(x, np.ones(x.size))


@njit
def squared(x):
    return x * x


def test_native_calls_after_blocks_see_no_primitives_that_are_not_there(monkeypatch):
    """Inside of a block the opcodes of a tape may be anything."""
    monkeypatch.setattr(ops, "USER", [ops.OPS[ops.CODE["mul"]]])
    with tj.Tape() as tape:
        x = np.sin(tape.input(np.arange(20_000.0)))
        tape.opcode[20_001:40_001] = 250
        y = tj.native(squared)(x[1])
    assert tape.n_user_rows == 0
    assert y.value == np.sin(1.0) ** 2

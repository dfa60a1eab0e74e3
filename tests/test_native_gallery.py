"""Real Numba code, differentiated unmodified: values to the last bit, gradients against differences or by hand."""

# Numba's zip has no `strict`:
# ruff: noqa: B905

import types

import numba
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from problems.compiled import PROGRAMS, dynamics, sampling, series

import tapejit as tj

STEP = 1e-4  # of fourth-order differences
DIFFERENCES_RTOL = 1e-7  # of the largest entry of the gradient
EXACT_RTOL = 1e-11  # gradients by hand: sums in another order
# Paths of Heston's model meet the truncation of the variance, and the kinks are closer together than the usual step.
STEPS = {"Heston": 1e-6}
FIRST_ORDER = ("Heston",)

# Numba takes long to compile matrix code, active or not.
SLOW = ("Kalman, matrices", "LSTM, matrices", "cubic spline", "N-body leapfrog")
each_program = pytest.mark.parametrize(
    "program",
    [pytest.param(p, marks=pytest.mark.slow if p.name in SLOW else (), id=p.name) for p in PROGRAMS],
)


def copied(args):
    """Arguments that `f` may overwrite."""
    return tuple(arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args)


def bits(value):
    """A float as an integer: equal to the last bit, and NaN to itself."""
    return np.asarray(value, dtype=np.float64).view(np.int64)


def named(argnums):
    """`argnums` as a tuple."""
    return (argnums,) if isinstance(argnums, int) else argnums


def central_differences(f, args, argnum, step):
    """Gradient of compiled code by differences of fourth order, in the shape of the argument."""
    x = np.array(args[argnum], dtype=float)
    x_bar = np.empty_like(x)
    for i in np.ndindex(x.shape):
        y = []
        for k in (-2, -1, 1, 2):
            moved = x.copy()
            moved[i] += k * step
            arguments = list(copied(args))
            arguments[argnum] = moved if x.ndim else float(moved)
            y.append(f(*arguments))
        x_bar[i] = (y[0] - 8.0 * y[1] + 8.0 * y[2] - y[3]) / (12.0 * step)
    return x_bar


@each_program
def test_program(program):
    """One test a program, so that it is compiled once: value and gradient, every mode, and other sizes."""
    args = program.make(program.size, np.random.default_rng(1))
    argnums, step = named(program.argnums), STEPS.get(program.name)
    value, gradients = tj.value_and_grad(program.f, argnums)(*copied(args))
    assert bits(value) == bits(program.f(*copied(args)))
    for argnum, gradient in zip(argnums, gradients, strict=True):
        assert np.shape(gradient) == np.shape(args[argnum])
        expected = central_differences(program.f, args, argnum, step or STEP)
        scale = np.abs(expected).max()
        assert scale > 0.0
        assert_allclose(gradient, expected, rtol=0.0, atol=DIFFERENCES_RTOL * scale)

    args = program.make(program.size, np.random.default_rng(3))
    order = 1 if program.name in FIRST_ORDER else 2
    tj.testing.check_grads(program.f, args, argnums=argnums, order=order, step=step, rtol=1e-5, atol=1e-7)

    for size, seed in ((program.size, 4), (program.size + 3, 5)):
        args = program.make(size, np.random.default_rng(seed))
        first, again = (tj.grad(program.f, argnums)(*args) for _ in range(2))
        for given, made in zip(args, program.make(size, np.random.default_rng(seed)), strict=True):
            assert_array_equal(given, made)
        for one, two in zip(first, again, strict=True):
            assert_array_equal(bits(one), bits(two))


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.gradient], ids=lambda program: program.name)
def test_gradient_equals_that_by_hand(program):
    args = program.make(program.size, np.random.default_rng(2))
    value, gradient = tj.value_and_grad(program.f)(*copied(args))
    expected_value, expected = program.gradient(*args)
    assert_allclose(value, expected_value, rtol=EXACT_RTOL)
    assert_allclose(gradient, expected, rtol=EXACT_RTOL, atol=EXACT_RTOL * np.abs(expected).max())


def test_forms_of_one_program_agree():
    args = series.make_lstm(8, np.random.default_rng(7))
    loops = tj.grad(series.lstm_loops, argnums=(0, 1, 2))(*args)
    matrices = tj.grad(series.lstm_matrices, argnums=(0, 1, 2))(*args)
    for one, two in zip(loops, matrices, strict=True):
        assert_allclose(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "f, make",
    [
        (series.kalman_scalar, series.make_kalman_scalar),
        (series.garch, series.make_garch),
        (sampling.heston, sampling.make_heston),
    ],
    ids=["Kalman, scalar", "GARCH(1, 1)", "Heston"],
)
def test_agrees_with_a_recording_from_python(f, make):
    """Programs that are plain Python without Numba: no work arrays, no compiled callees, and NumPy's functions for `math`'s."""
    x, *data = make(12, np.random.default_rng(8))
    in_python = types.FunctionType(f.py_func.__code__, {**f.py_func.__globals__, "math": np})
    value, gradient = tj.value_and_grad(f)(x, *data)
    expected_value, expected = tj.value_and_grad(in_python)(x, *data)
    assert_allclose(value, expected_value, rtol=EXACT_RTOL)
    assert_allclose(gradient, expected, rtol=EXACT_RTOL, atol=EXACT_RTOL * np.abs(expected).max())


def test_leapfrog_moves_the_callers_arrays():
    """A function that works in place: the Jacobian of where the bodies end, and the arguments as the plain function leaves them."""
    positions, velocities, masses, _, dt, n_steps = dynamics.make_n_body(5, np.random.default_rng(9))
    moved, kicked = positions.copy(), velocities.copy()
    dynamics.leapfrog(moved, kicked, masses, dt, n_steps)
    end, speed = positions.copy(), velocities.copy()
    _, pullback = tj.vjp(where_bodies_end, argnums=(0, 1))(end, speed, masses, dt, n_steps)
    assert np.array_equal(bits(end), bits(moved))
    assert np.array_equal(bits(speed), bits(kicked))
    # The centre of mass moves uniformly, whatever the forces: d(sum m x) / dv = m t.
    _, velocities_bar = pullback(np.repeat(masses[:, None], 3, axis=1))
    assert_allclose(velocities_bar, np.repeat(masses[:, None], 3, axis=1) * dt * n_steps, rtol=1e-12)


@numba.njit
def where_bodies_end(positions, velocities, masses, dt, n_steps):
    """Final positions (n, 3), which are also those of the argument."""
    dynamics.leapfrog(positions, velocities, masses, dt, n_steps)
    return positions


def test_calibration_of_a_price_model():
    """`tj.minimize` on compiled code: volatility and rate from the price of options."""
    market, strike, maturity, normals = sampling.make_asian_option(200, np.random.default_rng(10))
    strikes = np.array([85.0, 95.0, 105.0, 115.0])
    prices = np.array([sampling.asian_option(market, strike, maturity, normals) for strike in strikes])
    found = tj.minimize(price_misfit, [100.0, 0.01, 0.4], args=(strikes, prices, maturity, normals), tol=1e-14)
    assert_allclose(found.x[1:], market[1:], rtol=1e-2)


@numba.njit
def price_misfit(market, strikes, prices, maturity, normals):
    """Sum of squared differences of prices."""
    total = 0.0
    for strike, price in zip(strikes, prices):
        total += (sampling.asian_option(market, strike, maturity, normals) - price) ** 2
    return total

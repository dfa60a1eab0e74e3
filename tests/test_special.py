"""The kernels' own special functions, against mpmath and against SciPy's and NumPy's."""

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special
from table import kernel_value
from tolerances import EPS

from tapejit.ops import BY_NAME

DIGAMMA, POLYGAMMA, GAMMALN = (BY_NAME[name] for name in ("digamma", "polygamma", "gammaln"))


def exact(function, *points):
    with mpmath.workdps(50):
        return np.array(
            [float(function(*(mpmath.mpf(float(x)) for x in point))) for point in zip(*points, strict=True)]
        )


POSITIVE = np.concatenate([np.geomspace(1e-300, 1e300, 121), np.linspace(0.01, 25.0, 250)])
NEGATIVE = -np.concatenate([np.geomspace(1e-300, 1e-3, 20), np.linspace(0.013, 30.7, 150), [1e6 + 0.5, 1e10 + 0.25]])
POLES = np.array([-1.0, -2.0, -3.0, -170.0, -1e10, -1e16, -1e19, -1e300])


def test_digamma_of_positive_numbers():
    assert_allclose(kernel_value(DIGAMMA, POSITIVE), exact(mpmath.digamma, POSITIVE), rtol=64 * EPS)
    assert_allclose(kernel_value(DIGAMMA, POSITIVE), special.digamma(POSITIVE), rtol=64 * EPS)


def test_digamma_of_negative_numbers():
    assert_allclose(kernel_value(DIGAMMA, NEGATIVE), exact(mpmath.digamma, NEGATIVE), rtol=64 * EPS, atol=64 * EPS)


def test_digamma_keeps_its_digits_next_to_its_positive_root():
    root = 1.4616321449683622
    x = root + np.concatenate([[0.0], np.geomspace(1e-16, 0.3, 40), -np.geomspace(1e-16, 0.3, 40)])
    # The root itself is an exact number minus 9.5e-17, of which the kernel has 16 digits.
    assert_allclose(kernel_value(DIGAMMA, x)[1:], exact(mpmath.digamma, x)[1:], rtol=64 * EPS, atol=1e-30)
    assert_allclose(kernel_value(DIGAMMA, root), -9.2410996e-17, rtol=1e-2)


def test_digamma_next_to_its_poles():
    x = np.array([-1.0, -1.0, -2.0, -7.0]) + np.array([1e-9, -1e-12, 1e-5, -1e-3])
    assert_allclose(kernel_value(DIGAMMA, x), exact(mpmath.digamma, x), rtol=8 * EPS)


def test_digamma_at_its_poles_and_infinities():
    assert_array_equal(kernel_value(DIGAMMA, POLES), np.nan)
    assert_array_equal(kernel_value(DIGAMMA, [0.0, -0.0]), [-np.inf, np.inf])
    assert_array_equal(special.digamma([0.0, -0.0]), [-np.inf, np.inf])
    assert_array_equal(kernel_value(DIGAMMA, [np.inf, -np.inf, np.nan]), [np.inf, np.nan, np.nan])
    assert_array_equal(kernel_value(DIGAMMA, [1e-310, -1e-310]), [-np.inf, np.inf])


@pytest.mark.parametrize("order", [1, 2, 3, 4, 7, 12, 20])
def test_polygamma_of_positive_numbers(order):
    x = np.concatenate([np.geomspace(1e-12, 1e12, 49), np.linspace(0.05, 40.0, 60)])
    orders = np.full(x.size, float(order))
    got = kernel_value(POLYGAMMA, orders, x)
    assert_allclose(got, exact(lambda n, x: mpmath.psi(int(n), x), orders, x), rtol=(16 + 8 * order) * EPS)
    assert_allclose(got, special.polygamma(order, x), rtol=(64 + 16 * order) * EPS)


def test_polygamma_of_high_order_neither_overflows_nor_underflows():
    orders = np.array([110.0, 150.0, 150.0, 100.0, 1.0, 2.0])
    x = np.array([1000.0, 1000.0, 160.0, 0.9, 1e300, 1e140])
    assert_allclose(
        kernel_value(POLYGAMMA, orders, x), exact(lambda n, x: mpmath.psi(int(n), x), orders, x), rtol=1e-13
    )


@pytest.mark.parametrize("order", [1, 2, 3, 6, 10])
def test_polygamma_of_negative_numbers(order):
    # Not where an even order has its roots, half way between the poles.
    x = -np.array([0.1, 0.3, 0.7, 1.2, 2.7, 5.3, 20.9, 100.4])
    orders = np.full(x.size, float(order))
    got = kernel_value(POLYGAMMA, orders, x)
    assert_allclose(got, exact(lambda n, x: mpmath.psi(int(n), x), orders, x), rtol=256 * EPS)


def test_polygamma_of_order_zero_is_digamma(rng):
    x = rng.normal(0.0, 5.0, 50)
    assert_array_equal(kernel_value(POLYGAMMA, np.zeros(50), x), kernel_value(DIGAMMA, x))


def test_polygamma_at_its_poles_and_infinities():
    # The pole of an odd order is the same from both sides; that of an even order is not.
    assert_array_equal(kernel_value(POLYGAMMA, np.ones(POLES.size), POLES), np.inf)
    assert_array_equal(kernel_value(POLYGAMMA, np.full(POLES.size, 2.0), POLES), np.nan)
    assert_array_equal(kernel_value(POLYGAMMA, [1.0, 2.0, 1.0], [np.inf, np.inf, np.nan]), [0.0, 0.0, np.nan])


@pytest.mark.parametrize("order", [0.5, 1.5, -1.0, -0.5, 151.0, np.inf, np.nan])
def test_polygamma_of_an_order_that_is_none_is_nan(order):
    assert_array_equal(kernel_value(POLYGAMMA, order, 2.0), np.nan)


def test_gammaln():
    x = np.concatenate([np.geomspace(1e-300, 1e300, 121), np.linspace(0.01, 25.0, 250), NEGATIVE])
    expected = exact(lambda x: mpmath.re(mpmath.loggamma(x)), x)
    # Absolute where the terms cancel: next to a root left of 0.
    atol = np.where(x < 0.0, 64 * EPS * np.maximum(1.0, np.abs(x)), 0.0)
    got = kernel_value(GAMMALN, x)
    assert np.all(np.abs(got - expected) <= 16 * EPS * np.abs(expected) + atol)
    # SciPy's own error next to 1 and 2 is absolute.
    assert np.all(np.abs(got - special.gammaln(x)) <= 16 * EPS * np.maximum(1.0, np.abs(expected)) + atol)


def test_gammaln_at_its_poles_and_infinities():
    assert_array_equal(kernel_value(GAMMALN, POLES), np.inf)
    assert_array_equal(kernel_value(GAMMALN, [0.0, -0.0, np.inf, np.nan]), [np.inf, np.inf, np.inf, np.nan])
    assert_array_equal(kernel_value(GAMMALN, [1.0, 2.0]), 0.0)


def division_points(rng):
    special_numbers = [
        0.0,
        -0.0,
        0.1,
        -0.1,
        1.0,
        -1.0,
        0.3,
        3.0,
        -3.0,
        7.25,
        1e16,
        -1e16,
        1e300,
        1e-300,
        5e-324,
        np.inf,
        -np.inf,
        np.nan,
    ]
    x, y = (part.ravel() for part in np.meshgrid(special_numbers, special_numbers))
    near = rng.integers(-1000, 1000, 500) * 0.1  # quotients that round to an integer which they are not
    return np.concatenate([x, near, rng.normal(0.0, 5.0, 500)]), np.concatenate(
        [y, np.full(500, 0.1), rng.normal(0.0, 1.0, 500)]
    )


@pytest.mark.parametrize("name", ["remainder", "floor_divide", "fmod"])
def test_division_with_remainder_equals_numpy_to_the_sign_of_zero(name, rng):
    x, y = division_points(rng)
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(x, y)
    got = kernel_value(BY_NAME[name], x, y)
    assert_array_equal(got, expected)
    # NumPy's floor_divide of a zero quotient and C's agree in the sign as well.
    zero = expected == 0.0
    assert_array_equal(np.signbit(got[zero]), np.signbit(expected[zero]))


@pytest.mark.parametrize(("name", "operator"), [("remainder", "__mod__"), ("floor_divide", "__floordiv__")])
def test_division_with_remainder_equals_python(name, operator, rng):
    x, y = division_points(rng)
    keep = y != 0.0  # where Python raises
    expected = [getattr(a, operator)(b) for a, b in zip(x[keep].tolist(), y[keep].tolist(), strict=True)]
    assert_array_equal(kernel_value(BY_NAME[name], x, y)[keep], expected)

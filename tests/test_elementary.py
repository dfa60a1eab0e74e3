"""The elementary functions of the kernels: accuracy against mpmath, special values against NumPy and SciPy, and one set of bits."""

import math

import mpmath
import numpy as np
import pytest
import scipy.special
from mpmath import mp, mpf
from numpy.testing import assert_array_equal
from table import kernel_value
from tolerances import ELEMENTARY_ULP

from tapejit.ops import BY_NAME
from tapejit.sweeps.elementary import FUNCTIONS, IN_RANGE, LARGEST_ANGLE
from tapejit.sweeps.special import NAMESPACE

each_function = pytest.mark.parametrize("name", FUNCTIONS)

EXACT = {
    "exp2": lambda x: mp.power(2, x),
    "log2": lambda x: mp.log(x, 2),
    "cbrt": lambda x: mp.sign(x) * mp.cbrt(abs(x)),
    "arcsin": mp.asin,
    "arccos": mp.acos,
    "arctan": mp.atan,
    "arctan2": mp.atan2,
    "arcsinh": mp.asinh,
    "arccosh": mp.acosh,
    "arctanh": mp.atanh,
    "power": mp.power,
}

# Where to look: intervals, and magnitudes (decades, of either sign) around a point.
INTERVALS = {
    "exp": [(-745.0, 709.7), (-1.0, 1.0)],
    "exp2": [(-1074.0, 1023.9), (-1.0, 1.0)],
    "expm1": [(-50.0, 709.7), (-2.0, 2.0)],
    "sinh": [(-710.4, 710.4), (-3.0, 3.0)],
    "cosh": [(-710.4, 710.4), (-3.0, 3.0)],
    "tanh": [(-22.0, 22.0), (-2.0, 2.0)],
    "log": [(0.5, 2.0), (0.0, 100.0)],
    "log1p": [(-0.99, 2.0), (-1.0, -0.5), (0.0, 100.0)],
    "log2": [(0.5, 2.0), (0.0, 100.0)],
    "log10": [(0.5, 2.0), (0.0, 100.0)],
    "sin": [(-10.0, 10.0), (-LARGEST_ANGLE, LARGEST_ANGLE)],
    "cos": [(-10.0, 10.0), (-LARGEST_ANGLE, LARGEST_ANGLE)],
    "tan": [(-10.0, 10.0), (-LARGEST_ANGLE, LARGEST_ANGLE)],
    "arcsin": [(-1.0, 1.0)],
    "arccos": [(-1.0, 1.0)],
    "arctan": [(-3.0, 3.0)],
    "arcsinh": [(-3.0, 3.0)],
    "arccosh": [(1.0, 3.0)],
    "arctanh": [(-1.0, 1.0), (-0.4, 0.4)],
    "erf": [(-6.0, 6.0), (-1.1, 1.1)],
    "erfc": [(-6.0, 26.5), (-1.0, 1.0)],
    "cbrt": [(-8.0, 8.0)],
}
DECADES = {
    **dict.fromkeys(("log", "log2", "log10", "arctan", "cbrt", "arcsinh"), (0.0, -300, 300)),
    **dict.fromkeys(("expm1", "sinh", "tanh", "arcsin", "erf", "arctanh", "log1p"), (0.0, -300, 0)),
    **dict.fromkeys(("sin", "tan"), (0.0, -300, 7)),
    "arccosh": (1.0, -15, 300),
    "arccos": (1.0, -15, -1),
}


def magnitudes(low, high, size, rng):
    return rng.choice([-1.0, 1.0], size) * 10.0 ** rng.uniform(low, high, size)


def points(name, rng):
    """Arrays of operands, of all magnitudes of the domain."""
    if name == "power":
        x = np.concatenate(
            [rng.uniform(0.0, 10.0, 200), abs(magnitudes(-300, 300, 200, rng)), 1.0 + magnitudes(-15, -2, 200, rng)]
        )
        y = np.concatenate([rng.uniform(-300.0, 300.0, 200), magnitudes(-3, 3, 200, rng), magnitudes(2, 17, 200, rng)])
        return x, y
    if FUNCTIONS[name][1] == 2:
        return tuple(np.concatenate([rng.uniform(-3.0, 3.0, 300), magnitudes(-150, 150, 300, rng)]) for _ in range(2))
    parts = [rng.uniform(low, high, 300) for low, high in INTERVALS[name]]
    if name in DECADES:
        around, low, high = DECADES[name]
        parts.append(around + magnitudes(low, high, 300, rng))
    if name in IN_RANGE:
        parts.append(np.rint(rng.uniform(-1e7, 1e7, 100)) * (0.5 * math.pi))  # next to the roots
    return (np.concatenate(parts),)


@each_function
def test_values_are_within_two_units_in_the_last_place(name, rng):
    operands = points(name, rng)
    got = kernel_value(BY_NAME[name], *operands)
    with mp.workdps(60):
        for number, *point in zip(got.tolist(), *(operand.tolist() for operand in operands), strict=True):
            exact = EXACT.get(name, getattr(mp, name, None))(*map(mpf, point))
            if isinstance(exact, mpmath.mpc):
                assert math.isnan(number), point
            elif abs(exact) < mpf(2) ** 1024 * (1 - mpf(2) ** -54):
                allowed = ELEMENTARY_ULP * np.spacing(abs(float(exact)))
                assert abs(mpf(number) - exact) <= allowed, (point, number, mp.nstr(exact, 20))
            else:
                assert number == mp.sign(exact) * math.inf, (point, number)


SPECIAL = [
    0.0, 5e-324, 2e-310, 2.0**-1022, 1e-300, 1e-160, 1e-8, 0.25, 0.5, 1.0 - 2.0**-53, 1.0, 1.0 + 2.0**-52, 1.5, 2.0, 3.0, 20.0, 22.0,
    37.0, 40.0, 100.0, 400.0, 709.78, 709.79, 710.47, 710.48, 745.13, 745.14, 1023.5, 1024.0, 1074.0, 1075.0, 1e7, LARGEST_ANGLE,
    2.0**53, 2.0**53 + 2.0, 1e160, 1e300, 2.0**1023, 1.7976931348623157e308, math.inf, math.nan,
]  # fmt: skip
SPECIAL = np.array([*SPECIAL, *np.negative(SPECIAL)])


@each_function
def test_special_values_are_those_of_the_library(name):
    function, arity = FUNCTIONS[name]
    operands = [SPECIAL] if arity == 1 else [grid.ravel() for grid in np.meshgrid(SPECIAL, SPECIAL)]
    if name in IN_RANGE:
        operands = [operands[0][IN_RANGE[name](operands[0])]]
    with np.errstate(all="ignore"):
        expected = getattr(np, name, None) or getattr(scipy.special, name)
        expected = expected(*operands)
    got = kernel_value(BY_NAME[name], *operands)
    settled = (expected == 0.0) | ~np.isfinite(expected)
    assert_array_equal(got[settled], expected[settled])
    numbers = ~np.isnan(expected)
    assert_array_equal(np.signbit(got[numbers]), np.signbit(expected[numbers]))
    with np.errstate(all="ignore"):
        assert np.all(np.abs(got - expected)[~settled] <= 4 * np.spacing(np.abs(expected))[~settled])


@each_function
def test_numpy_kernels_and_python_have_the_same_bits(name, rng):
    function, arity = FUNCTIONS[name]
    operands = [np.concatenate([SPECIAL, part]) for part in points(name, rng)]
    if name in IN_RANGE:
        operands = [operands[0][IN_RANGE[name](operands[0])]]
    with np.errstate(all="ignore"):
        expected = function(*operands)
    assert_array_equal(kernel_value(BY_NAME[name], *operands), expected)
    several = [operand[::37].tolist() for operand in operands]
    assert_array_equal([NAMESPACE[name](*point) for point in zip(*several, strict=True)], expected[::37])


@pytest.mark.parametrize("name", IN_RANGE)
def test_huge_angles_are_left_to_the_library(name, rng):
    x = magnitudes(7, 300, 1000, rng)
    exact = getattr(mp, name)
    with mp.workdps(400):
        expected = np.array([float(exact(mpf(number))) for number in x.tolist()])
    np.testing.assert_allclose(kernel_value(BY_NAME[name], x), expected, rtol=2 * ELEMENTARY_ULP * 2.0**-53)
    mixed = np.where(np.arange(1000) % 7 == 0, x, x % 10.0)
    assert_array_equal(
        kernel_value(BY_NAME[name], mixed), [kernel_value(BY_NAME[name], number)[0] for number in mixed.tolist()]
    )


def test_powers_that_are_numbers_are_exact():
    x, y = (part.ravel() for part in np.meshgrid(np.arange(1.0, 13.0), np.arange(0.0, 14.0)))
    assert_array_equal(kernel_value(BY_NAME["power"], x, y), x**y)
    assert_array_equal(kernel_value(BY_NAME["power"], x, -y)[y == 1.0], 1.0 / x[y == 1.0])
    assert_array_equal(kernel_value(BY_NAME["power"], x * x, np.full(x.size, 0.5)), x)
    assert_array_equal(kernel_value(BY_NAME["exp2"], np.arange(-1074.0, 1024.0)), 2.0 ** np.arange(-1074.0, 1024.0))
    assert_array_equal(kernel_value(BY_NAME["log2"], 2.0 ** np.arange(-1074.0, 1024.0)), np.arange(-1074.0, 1024.0))
    assert_array_equal(kernel_value(BY_NAME["cbrt"], np.arange(-50.0, 51.0) ** 3), np.arange(-50.0, 51.0))


@pytest.mark.parametrize(("even", "name"), [(True, "cos"), (True, "cosh"), *((False, name) for name in
    ("sin", "tan", "sinh", "tanh", "arcsin", "arctan", "arcsinh", "arctanh", "erf", "cbrt"))])  # fmt: skip
def test_symmetry(even, name, rng):
    (x,) = points(name, rng)
    mirrored = kernel_value(BY_NAME[name], -x)
    assert_array_equal(mirrored if even else -mirrored, kernel_value(BY_NAME[name], x))

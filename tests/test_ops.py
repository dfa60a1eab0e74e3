"""The op table against independent answers. Everything is made from the rows: a new row needs no new test.

mpmath, at 50 digits, says what values and derivatives are; NumPy, SciPy and `math` say what a primitive that answers to their
names must give. Special values and kinks, where the rows state a convention, have a table of their own.
"""

import math
import warnings

import numpy as np
import oracle
import pytest
import scipy.special
from mpmath import mp, mpf
from numpy.testing import assert_allclose, assert_array_equal
from table import PASSIVE, ROWS, functions, interior_points, kernel_partial, kernel_second, kernel_value
from tolerances import EPS, PARTIAL_RTOL, SECOND_RTOL, SUBNORMAL, VALUE_ULP, scale, steepness

import tapejit as tj
from tapejit import ops, sweeps
from tapejit.expressions import names, parse
from tapejit.ops import BY_NAME, CODE, OPS, Interval, Op, op_named, partial_trees, second_partial_trees
from tapejit.recording.elementwise import evaluate
from tapejit.sweeps.special import NAMESPACE

inf, nan = math.inf, math.nan

each_row = pytest.mark.parametrize("op", ROWS, ids=lambda op: op.name)


def is_close(got, exact, rtol, atol=0.0):
    """Whether a float is an mpf up to tolerances; NaN is NaN, and overflow infinity."""
    if mp.isnan(exact) or math.isnan(got):
        return bool(mp.isnan(exact)) and math.isnan(got)
    rounded = float(exact) if abs(exact) < mpf(2) ** 1024 else float(mp.sign(exact)) * inf
    if math.isinf(got) or math.isinf(rounded):
        return got == rounded
    return bool(abs(mpf(got) - exact) <= rtol * abs(exact) + atol + SUBNORMAL * (abs(exact) < SUBNORMAL))


# Values.


@each_row
def test_value_is_correct_to_its_last_digits(op, rng):
    points = interior_points(op, rng, 60)
    ulp = max(op.ulp, VALUE_ULP) if op.ulp else 1
    for point, got in zip(
        zip(*map(np.ndarray.tolist, points), strict=True), kernel_value(op, *points).tolist(), strict=True
    ):
        exact = oracle.value(op, *point)
        atol = ulp * EPS * scale(op.name, point)
        assert is_close(got, exact, ulp * EPS, atol), (point, got, mp.nstr(exact, 20))


def named_functions():
    for op in ROWS:
        for module in (np, math, scipy.special):
            short = module.__name__.removeprefix("scipy.")
            for name in getattr(op, {"numpy": "numpy", "math": "math", "special": "scipy"}[short]):
                if hasattr(module, name):
                    yield pytest.param(op, getattr(module, name), id=f"{op.name}-{short}.{name}")


GRID = [
    0.0,
    -0.0,
    0.3,
    0.5,
    1.0,
    2.0,
    3.0,
    1.5,
    7.25,
    20.0,
    100.0,
    400.0,
    745.0,
    1e-8,
    1e-160,
    1e-300,
    1e16,
    1e160,
    1e300,
    inf,
]
GRID = np.array([*GRID, *np.negative(GRID), nan, 1 - 1e-9, 1 + 1e-9, 0.5 + 1e-10])

# Where a library's own convention or error is not the row's.
FOREIGN = {
    ("gammaln", "gammaln"): lambda x: x == -inf,  # SciPy: -inf
    ("digamma", "psi"): lambda x: x < 0.0,  # SciPy loses digits next to the poles
    ("digamma", "digamma"): lambda x: x < 0.0,
}


@pytest.mark.parametrize(("op", "function"), list(named_functions()))
def test_replayed_value_agrees_with_the_function_of_that_name(op, function, rng):
    if op.arity == 1:
        operands = [np.concatenate([GRID, *interior_points(op, rng, 1000)])]
    else:
        grids = np.meshgrid(GRID, GRID)
        operands = [np.concatenate([g.ravel(), p]) for g, p in zip(grids, interior_points(op, rng, 1000), strict=True)]
    name = function.__name__
    arguments = [x != 0.0 for x in operands] if name.startswith(("bitwise", "invert")) else operands
    operands = [x.astype(float) for x in arguments]
    expected = called(function, arguments)
    skip = np.array([math.isnan(number) and raised for number, raised in expected])
    if (op.name, name) in FOREIGN:
        skip |= FOREIGN[op.name, name](operands[0])
    want = np.array([number for number, _ in expected])[~skip]
    got = kernel_value(op, *operands)[~skip]
    points = [x[~skip] for x in operands]
    terms = np.array([scale(op.name, point) for point in zip(*points, strict=True)])
    with np.errstate(invalid="ignore"):
        wrong = np.abs(got - want) > op.ulp * np.spacing(np.abs(want)) + op.ulp * EPS * np.where(
            np.isfinite(terms), terms, 0.0
        )
        wrong &= ~((np.abs(got) < SUBNORMAL) & (np.abs(want) < SUBNORMAL) & (op.ulp > 0))
        wrong |= np.isnan(got) != np.isnan(want)
        wrong |= (np.isinf(got) | np.isinf(want)) & (got != want) & ~(np.isnan(got) & np.isnan(want))
    at = np.flatnonzero(wrong)
    assert not at.size, [(tuple(float(x[i]) for x in points), float(got[i]), float(want[i])) for i in at[:5]]


def called(function, arguments):
    """What a function of another library gives at each point, and whether it raised there, as `math` does."""
    if getattr(function, "__module__", "numpy") != "math":
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return [(float(number), False) for number in function(*arguments)]
    results = []
    for point in zip(*(x.tolist() for x in arguments), strict=True):
        try:
            results.append((float(function(*point)), False))
        except (ValueError, OverflowError):
            results.append((nan, True))
    return results


# Partials.


def derivative_orders(op, total):
    """Orders of differentiation an operand, in the order in which partials are numbered."""
    if op.arity == 1:
        return [(total,)]
    return [(1, 0), (0, 1)] if total == 1 else [(2, 0), (1, 1), (0, 2)]


def check_derivatives(op, rng, total, kernel, rtol, size):
    points = interior_points(op, rng, size)
    for which, orders in enumerate(derivative_orders(op, total)):
        if any(order and (op.name, i) in PASSIVE for i, order in enumerate(orders)):
            continue
        numbers = kernel(op, which, *points).tolist()
        for point, got in zip(zip(*map(np.ndarray.tolist, points), strict=True), numbers, strict=True):
            exact = oracle.derivative(op, orders, *point)
            allowed = rtol + steepness(op.name, point) * EPS
            atol = rtol * scale(op.name, point, total) + (1e-60 if partial_is_constant(op, which, total) else 0.0)
            assert is_close(got, exact, allowed, atol), (orders, point, got, mp.nstr(exact, 20))


def partial_is_constant(op, which, total):
    """Numerical derivatives of a constant are zero up to the digits carried."""
    trees = partial_trees(op.name) if total == 1 else second_partial_trees(op.name)
    return isinstance(trees[which], float)


@each_row
def test_partials_match_mpmath(op, rng):
    check_derivatives(op, rng, 1, kernel_partial, PARTIAL_RTOL, size=30)


@each_row
def test_second_partials_match_mpmath(op, rng):
    check_derivatives(op, rng, 2, kernel_second, SECOND_RTOL, size=20)


# Accuracy far out, and next to where a naive formula cancels: row, point, which derivative (orders).
EXTREMES = [
    ("expit", (800.0,), (0,)), ("expit", (-800.0,), (0,)), ("expit", (-700.0,), (0,)), ("expit", (-700.0,), (1,)),
    ("expit", (700.0,), (1,)), ("expit", (40.0,), (1,)), ("expit", (40.0,), (2,)), ("expit", (1e-9,), (2,)),
    ("expit", (-1e-100,), (2,)), ("expit", (1e4,), (1,)), ("expit", (-1e4,), (2,)),
    ("log_expit", (800.0,), (0,)), ("log_expit", (-800.0,), (0,)), ("log_expit", (40.0,), (0,)), ("log_expit", (-1e300,), (0,)),
    ("log_expit", (-800.0,), (1,)), ("log_expit", (100.0,), (1,)), ("log_expit", (100.0,), (2,)),
    ("softplus", (800.0,), (0,)), ("softplus", (-700.0,), (0,)), ("softplus", (1e300,), (0,)), ("softplus", (-100.0,), (1,)),
    ("softplus", (-100.0,), (2,)), ("softplus", (100.0,), (2,)),
    ("tanh", (20.0,), (1,)), ("tanh", (100.0,), (1,)), ("tanh", (350.0,), (1,)), ("tanh", (400.0,), (1,)), ("tanh", (-100.0,), (2,)),
    ("tanh", (400.0,), (2,)), ("tanh", (1e-200,), (0,)), ("tanh", (1e-9,), (2,)),
    ("expm1", (-40.0,), (1,)), ("expm1", (-700.0,), (1,)), ("expm1", (1e-12,), (0,)), ("expm1", (-1e-300,), (0,)),
    ("log1p", (1e-300,), (0,)), ("log1p", (-1.0 + 2.0**-53,), (0,)), ("log1p", (-1.0 + 2.0**-53,), (1,)),
    ("log1p", (-1.0 + 2.0**-50,), (2,)), ("log1p", (1e300,), (1,)),
    ("hypot", (1e200, 1e200), (0, 0)), ("hypot", (1e200, 1e200), (1, 0)), ("hypot", (3e-200, 4e-200), (0, 1)),
    ("hypot", (1e200, 1e190), (0, 1)), ("hypot", (3e200, 4e200), (2, 0)), ("hypot", (3e200, 4e200), (1, 1)),
    ("hypot", (3e-200, 4e-200), (1, 1)), ("hypot", (3e-200, 4e-200), (0, 2)),
    ("arctan2", (1e200, 1e200), (1, 0)), ("arctan2", (1e300, -2e300), (0, 1)), ("arctan2", (1e-200, 3e-200), (1, 0)),
    ("arctan2", (3e150, 4e150), (2, 0)), ("arctan2", (1e300, 2.0), (0, 1)),
    ("arctan", (1e100,), (1,)), ("arctan", (1e100,), (2,)), ("arctan", (1e200,), (0,)), ("arctan", (1e300,), (1,)),
    ("arcsinh", (1e200,), (0,)), ("arcsinh", (1e200,), (1,)), ("arcsinh", (-1e100,), (2,)), ("arcsinh", (1e-200,), (0,)),
    ("arccosh", (1e200,), (0,)), ("arccosh", (1e200,), (1,)), ("arccosh", (1e100,), (2,)), ("arccosh", (1.0 + 2.0**-50,), (0,)),
    ("arccosh", (1.0 + 2.0**-50,), (1,)), ("arccosh", (1.0 + 2.0**-50,), (2,)),
    ("arcsin", (1.0 - 2.0**-50,), (1,)), ("arcsin", (-1.0 + 2.0**-50,), (2,)), ("arccos", (1.0 - 2.0**-50,), (0,)),
    ("arccos", (1.0 - 2.0**-50,), (1,)), ("arctanh", (1.0 - 2.0**-50,), (1,)), ("arctanh", (-1.0 + 2.0**-50,), (2,)),
    ("sinh", (700.0,), (1,)), ("cosh", (-700.0,), (1,)), ("sinh", (1e-200,), (0,)),
    ("logaddexp", (1e300, 1e300), (0, 0)), ("logaddexp", (1e300, -1e300), (0, 0)), ("logaddexp", (1000.0, 1001.0), (0, 0)),
    ("logaddexp", (-1000.0, -1001.0), (1, 0)), ("logaddexp", (-1000.0, -1001.0), (1, 1)), ("logaddexp", (1e300, 0.0), (1, 0)),
    ("logaddexp", (300.0, 0.0), (0, 1)), ("logaddexp2", (1e300, 1e300), (0, 0)), ("logaddexp2", (2000.0, 2001.0), (0, 1)),
    ("logit", (1e-300,), (0,)), ("logit", (1.0 - 2.0**-50,), (0,)), ("logit", (0.5 + 1e-12,), (0,)), ("logit", (0.5 - 1e-9,), (0,)),
    ("logit", (0.25,), (0,)), ("logit", (1e-300,), (1,)), ("logit", (1.0 - 2.0**-50,), (1,)), ("logit", (1e-100,), (2,)),
    ("xlogy", (1e-300, 1e-300), (0, 0)), ("xlogy", (2.0, 1e-100), (0, 2)),
    ("erf", (1e-300,), (0,)), ("erf", (20.0,), (1,)), ("erfc", (26.0,), (0,)), ("erfc", (10.0,), (1,)), ("erfc", (-20.0,), (2,)),
    ("ndtr", (-37.0,), (0,)), ("ndtr", (-30.0,), (1,)), ("ndtr", (10.0,), (0,)),
    ("log", (5e-324,), (0,)), ("log", (1e-300,), (1,)), ("log", (1e-100,), (2,)), ("log2", (1.0 + EPS,), (0,)), ("log10", (1e300,), (1,)),
    ("sqrt", (1e-300,), (1,)), ("sqrt", (1e300,), (2,)), ("sqrt", (1e-200,), (2,)), ("cbrt", (-1e300,), (1,)), ("cbrt", (1e-100,), (2,)),
    ("reciprocal", (1e-100,), (1,)), ("reciprocal", (1e100,), (2,)), ("div", (1e300, 1e-5), (0, 1)), ("div", (1e300, 1e100), (0, 2)),
    ("power", (1e100, 3.0), (1, 0)), ("power", (1e-100, 0.5), (0, 1)), ("power", (1e-100, 2.0), (0, 2)),
    ("exp", (-700.0,), (2,)), ("exp2", (-1000.0,), (1,)), ("sin", (1e15,), (1,)), ("cos", (1e300,), (0,)), ("tan", (1e5,), (2,)),
    ("gammaln", (1e-300,), (1,)), ("gammaln", (1e300,), (0,)), ("gammaln", (1e300,), (1,)), ("gammaln", (1e100,), (2,)),
    ("fmod", (1e18, 3.0), (0, 0)), ("fmod", (-1e15, 0.7), (0, 1)), ("remainder", (-1e15, 0.7), (0, 1)), ("remainder", (1e15, -0.7), (0, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "point", "orders"), EXTREMES, ids=lambda part: str(part))
def test_accuracy_at_extremes(name, point, orders):
    op = BY_NAME[name]
    total = sum(orders)
    if total == 0:
        (got,) = kernel_value(op, *point)
        exact = oracle.value(op, *point)
        rtol = max(op.ulp, VALUE_ULP) * EPS
    else:
        which = derivative_orders(op, total).index(orders)
        (got,) = (kernel_partial if total == 1 else kernel_second)(op, which, *point)
        exact = oracle.derivative(op, orders, *point)
        rtol = PARTIAL_RTOL if total == 1 else SECOND_RTOL
    # Nothing cancels here, so there is no absolute tolerance; a result that underflows is zero.
    assert is_close(got, exact, rtol + steepness(name, point) * EPS), (got, mp.nstr(exact, 20))


# Special values and kinks: row, operands, value, partials, second partials. None: not stated.
SPECIAL = [
    ("abs", (0.0,), 0.0, (0.0,), (0.0,)),
    ("abs", (-0.0,), 0.0, (0.0,), (0.0,)),
    ("abs", (-inf,), inf, (-1.0,), (0.0,)),
    ("sign", (0.0,), 0.0, (0.0,), (0.0,)),
    ("floor", (2.0,), 2.0, (0.0,), (0.0,)),
    ("ceil", (-0.5,), -0.0, (0.0,), (0.0,)),
    ("rint", (2.5,), 2.0, (0.0,), (0.0,)),
    ("rint", (-1.5,), -2.0, (0.0,), (0.0,)),
    ("trunc", (-1.7,), -1.0, (0.0,), (0.0,)),
    ("maximum", (2.0, 2.0), 2.0, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("minimum", (2.0, 2.0), 2.0, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("fmax", (2.0, 2.0), 2.0, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("fmin", (2.0, 2.0), 2.0, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("maximum", (0.0, -0.0), 0.0, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("maximum", (inf, inf), inf, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("maximum", (-inf, 1.0), 1.0, (0.0, 1.0), (0.0, 0.0, 0.0)),
    ("minimum", (-inf, -inf), -inf, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("maximum", (nan, 1.0), nan, (nan, nan), None),
    ("minimum", (1.0, nan), nan, (nan, nan), None),
    ("fmax", (nan, 1.0), 1.0, (0.0, 1.0), (0.0, 0.0, 0.0)),
    ("fmax", (1.0, nan), 1.0, (1.0, 0.0), (0.0, 0.0, 0.0)),
    ("fmin", (nan, 1.0), 1.0, (0.0, 1.0), (0.0, 0.0, 0.0)),
    ("fmin", (1.0, nan), 1.0, (1.0, 0.0), (0.0, 0.0, 0.0)),
    ("fmin", (nan, nan), nan, None, None),
    ("sqrt", (0.0,), 0.0, (inf,), (-inf,)),
    ("sqrt", (inf,), inf, (0.0,), (0.0,)),
    ("length", (0.0,), 0.0, (0.0,), (0.0,)),
    ("cbrt", (0.0,), 0.0, (inf,), None),
    ("cbrt", (-8.0,), -2.0, (1.0 / 12.0,), (1.0 / 144.0,)),
    ("square", (0.0,), 0.0, (0.0,), (2.0,)),
    ("cube", (0.0,), 0.0, (0.0,), (0.0,)),
    ("cube", (-1.0,), -1.0, (3.0,), (-6.0,)),
    ("reciprocal", (0.0,), inf, (-inf,), (inf,)),
    ("reciprocal", (inf,), 0.0, (0.0,), (0.0,)),
    ("div", (1.0, 0.0), inf, (inf, -inf), (0.0, -inf, inf)),
    ("div", (0.0, 2.0), 0.0, (0.5, 0.0), (0.0, -0.25, 0.0)),
    # 0**n, with the exponent active or not, and x**0, x**1.
    ("power", (0.0, 0.0), 1.0, (0.0, 0.0), (0.0, None, 0.0)),
    ("power", (0.0, 1.0), 0.0, (1.0, 0.0), (0.0, None, 0.0)),  # the mixed one is -inf
    ("power", (0.0, 2.0), 0.0, (0.0, 0.0), (2.0, 0.0, 0.0)),
    ("power", (0.0, 3.0), 0.0, (0.0, 0.0), (0.0, 0.0, 0.0)),
    ("power", (0.0, 0.5), 0.0, (inf, 0.0), (-inf, None, 0.0)),
    ("power", (0.0, 1.5), 0.0, (0.0, 0.0), (inf, None, 0.0)),
    ("power", (0.0, -1.0), inf, (-inf, nan), (inf, None, None)),
    ("power", (3.0, 0.0), 1.0, (0.0, math.log(3.0)), (0.0, 1.0 / 3.0, math.log(3.0) ** 2)),
    ("power", (3.0, 1.0), 3.0, (1.0, 3.0 * math.log(3.0)), (0.0, 1.0 + math.log(3.0), 3.0 * math.log(3.0) ** 2)),
    ("power", (-2.0, 0.0), 1.0, (0.0, nan), (0.0, None, None)),
    ("power", (-2.0, 1.0), -2.0, (1.0, nan), (0.0, None, None)),
    ("power", (-2.0, 2.0), 4.0, (-4.0, nan), (2.0, None, None)),
    ("power", (-2.0, 3.0), -8.0, (12.0, nan), (-12.0, None, None)),
    ("power", (-2.0, -1.0), -0.5, (-0.25, nan), (-0.25, None, None)),
    ("power", (-8.0, 1.0 / 3.0), nan, (nan, nan), (nan, nan, nan)),
    ("power", (nan, 0.0), 1.0, None, None),
    ("power", (1.0, nan), 1.0, None, None),
    ("power_constant", (0.0, 0.0), 1.0, (0.0, 0.0), (0.0, 0.0, 0.0)),
    ("power_constant", (0.0, 1.0), 0.0, (1.0, 0.0), (0.0, None, 0.0)),
    ("power_constant", (0.0, 2.0), 0.0, (0.0, 0.0), (2.0, None, 0.0)),
    ("power_constant", (0.0, 3.0), 0.0, (0.0, 0.0), (0.0, None, 0.0)),
    ("power_constant", (0.0, 4.0), 0.0, (0.0, 0.0), (0.0, None, 0.0)),
    ("power_constant", (0.0, 1.5), 0.0, (0.0, 0.0), (inf, None, 0.0)),
    ("power_constant", (-2.0, 3.0), -8.0, (12.0, 0.0), (-12.0, None, 0.0)),
    ("power_constant", (-2.0, 1.0), -2.0, (1.0, 0.0), (0.0, None, 0.0)),
    ("power_constant", (-8.0, 1.0 / 3.0), nan, (nan, 0.0), (nan, None, None)),
    ("hypot", (0.0, 0.0), 0.0, (0.0, 0.0), (0.0, 0.0, 0.0)),
    ("hypot", (3.0, 0.0), 3.0, (1.0, 0.0), (0.0, 0.0, 1.0 / 3.0)),
    ("hypot", (0.0, -2.0), 2.0, (0.0, -1.0), (0.5, 0.0, 0.0)),
    ("hypot", (5e-324, 0.0), 5e-324, (1.0, 0.0), None),
    ("hypot", (inf, nan), inf, None, None),
    ("arctan2", (0.0, 0.0), 0.0, (nan, nan), None),
    ("arctan2", (0.0, 2.0), 0.0, (0.5, 0.0), (0.0, -0.25, 0.0)),
    ("arctan2", (1.0, 0.0), math.pi / 2, (0.0, -1.0), (0.0, 1.0, 0.0)),
    ("arctan2", (0.0, -1.0), math.pi, (-1.0, 0.0), (0.0, -1.0, 0.0)),
    ("copysign", (2.0, -0.0), -2.0, (-1.0, 0.0), (0.0, 0.0, 0.0)),
    ("copysign", (-2.0, 3.0), 2.0, (-1.0, 0.0), (0.0, 0.0, 0.0)),
    ("copysign", (0.0, -1.0), -0.0, (-1.0, 0.0), (0.0, 0.0, 0.0)),
    ("copysign", (-0.0, -1.0), -0.0, (1.0, 0.0), (0.0, 0.0, 0.0)),
    ("fmod", (-7.0, 3.0), -1.0, (1.0, 2.0), (0.0, 0.0, 0.0)),
    ("fmod", (7.0, -3.0), 1.0, (1.0, 2.0), (0.0, 0.0, 0.0)),
    ("fmod", (6.0, 3.0), 0.0, (1.0, -2.0), (0.0, 0.0, 0.0)),
    ("fmod", (5.0, inf), 5.0, (1.0, 0.0), (0.0, 0.0, 0.0)),
    ("fmod", (1.0, 0.1), 1.0 % 0.1, (1.0, -9.0), (0.0, 0.0, 0.0)),  # the quotient rounds to 10
    ("fmod", (5.0, 0.0), nan, (1.0, nan), None),
    ("fmod", (inf, 2.0), nan, (1.0, nan), None),
    ("remainder", (-7.0, 3.0), 2.0, (1.0, 3.0), (0.0, 0.0, 0.0)),
    ("remainder", (7.0, -3.0), -2.0, (1.0, 3.0), (0.0, 0.0, 0.0)),
    ("remainder", (-7.0, -3.0), -1.0, (1.0, -2.0), (0.0, 0.0, 0.0)),
    ("remainder", (5.0, inf), 5.0, (1.0, 0.0), (0.0, 0.0, 0.0)),
    ("remainder", (-5.0, inf), inf, (1.0, None), (0.0, 0.0, 0.0)),
    ("remainder", (5.0, 0.0), nan, (1.0, nan), None),
    ("floor_divide", (-7.0, 2.0), -4.0, (0.0, 0.0), (0.0, 0.0, 0.0)),
    ("floor_divide", (-1.0, inf), -1.0, (0.0, 0.0), (0.0, 0.0, 0.0)),
    ("log", (0.0,), -inf, (inf,), (-inf,)),
    ("log", (inf,), inf, (0.0,), (0.0,)),
    ("log2", (0.0,), -inf, (inf,), (-inf,)),
    ("log10", (0.0,), -inf, (inf,), (-inf,)),
    ("log1p", (-1.0,), -inf, (inf,), (-inf,)),
    ("log1p", (0.0,), 0.0, (1.0,), (-1.0,)),
    ("exp", (-inf,), 0.0, (0.0,), (0.0,)),
    ("exp", (inf,), inf, (inf,), (inf,)),
    ("expm1", (-inf,), -1.0, (0.0,), (0.0,)),
    ("tanh", (inf,), 1.0, (0.0,), (0.0,)),
    ("tanh", (0.0,), 0.0, (1.0,), (0.0,)),
    ("arcsin", (1.0,), math.pi / 2, (inf,), None),
    ("arcsin", (-1.0,), -math.pi / 2, (inf,), None),
    ("arccos", (1.0,), 0.0, (-inf,), None),
    ("arccosh", (1.0,), 0.0, (inf,), None),
    ("arctanh", (1.0,), inf, (inf,), None),
    ("arctanh", (-1.0,), -inf, (inf,), None),
    ("arctan", (inf,), math.pi / 2, (0.0,), None),
    ("arcsinh", (inf,), inf, (0.0,), None),
    ("expit", (inf,), 1.0, (0.0,), (0.0,)),
    ("expit", (-inf,), 0.0, (0.0,), (0.0,)),
    ("expit", (0.0,), 0.5, (0.25,), (0.0,)),
    ("log_expit", (inf,), 0.0, (0.0,), (0.0,)),
    ("log_expit", (-inf,), -inf, (1.0,), (0.0,)),
    ("softplus", (inf,), inf, (1.0,), (0.0,)),
    ("softplus", (-inf,), 0.0, (0.0,), (0.0,)),
    ("softplus", (0.0,), math.log(2.0), (0.5,), (0.25,)),
    ("logit", (0.0,), -inf, (inf,), (-inf,)),
    ("logit", (1.0,), inf, (inf,), (inf,)),
    ("logit", (0.5,), 0.0, (4.0,), (0.0,)),
    ("logaddexp", (inf, inf), inf, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("logaddexp", (-inf, -inf), -inf, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("logaddexp", (inf, -inf), inf, (1.0, 0.0), (0.0, 0.0, 0.0)),
    ("logaddexp", (-inf, 2.0), 2.0, (0.0, 1.0), (0.0, 0.0, 0.0)),
    ("logaddexp", (2.0, 2.0), 2.0 + math.log(2.0), (0.5, 0.5), (0.25, -0.25, 0.25)),
    ("logaddexp", (nan, 1.0), nan, (nan, nan), None),
    ("logaddexp2", (inf, inf), inf, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("logaddexp2", (-inf, -inf), -inf, (0.5, 0.5), (0.0, 0.0, 0.0)),
    ("logaddexp2", (-inf, 2.0), 2.0, (0.0, 1.0), (0.0, 0.0, 0.0)),
    ("xlogy", (0.0, 2.0), 0.0, (math.log(2.0), 0.0), (0.0, 0.5, 0.0)),
    ("xlogy", (0.0, 0.0), 0.0, (-inf, 0.0), (0.0, inf, 0.0)),
    ("xlogy", (0.0, -1.0), 0.0, (nan, 0.0), None),
    ("xlogy", (2.0, -1.0), nan, (nan, nan), (0.0, nan, nan)),
    ("log", (-1.0,), nan, (nan,), (nan,)),
    ("arctanh", (2.0,), nan, (nan,), (nan,)),
    ("xlogy", (2.0, 0.0), -inf, (-inf, inf), (0.0, inf, -inf)),
    ("xlogy", (0.0, nan), nan, None, None),
    ("erf", (inf,), 1.0, (0.0,), None),
    ("erf", (0.0,), 0.0, (2.0 / math.sqrt(math.pi),), (0.0,)),
    ("erfc", (-inf,), 2.0, (0.0,), None),
    ("ndtr", (-inf,), 0.0, (0.0,), None),
    ("gammaln", (1.0,), 0.0, (-0.5772156649015329,), (math.pi**2 / 6,)),
    ("gammaln", (0.0,), inf, (-inf,), (inf,)),
    ("gammaln", (-2.0,), inf, (nan,), (nan,)),
    ("digamma", (0.0,), -inf, (inf,), None),
    ("digamma", (-3.0,), nan, (nan,), (nan,)),
    ("digamma", (-0.0,), inf, (inf,), None),
    ("polygamma", (-1.0, 2.0), nan, (nan, nan), None),
    ("polygamma", (1.0, 1.0), math.pi**2 / 6, (nan, None), None),
    ("equal", (nan, nan), 0.0, (0.0, 0.0), (0.0, 0.0, 0.0)),
    ("not_equal", (nan, nan), 1.0, (0.0, 0.0), (0.0, 0.0, 0.0)),
    ("less", (nan, 1.0), 0.0, (0.0, 0.0), (0.0, 0.0, 0.0)),
    ("greater_equal", (2.0, 2.0), 1.0, (0.0, 0.0), (0.0, 0.0, 0.0)),
    ("logical_not", (nan,), 0.0, (0.0,), (0.0,)),
    ("isnan", (nan,), 1.0, (0.0,), (0.0,)),
    ("isinf", (-inf,), 1.0, (0.0,), (0.0,)),
    ("isfinite", (nan,), 0.0, (0.0,), (0.0,)),
    ("signbit", (-0.0,), 1.0, (0.0,), (0.0,)),
    ("chain", (0.0, inf), 0.0, (inf, 0.0), (0.0, 1.0, 0.0)),
    ("chain", (0.0, nan), 0.0, (nan, 0.0), (0.0, 1.0, 0.0)),
    ("chain", (2.0, 3.0), 6.0, (3.0, 2.0), (0.0, 1.0, 0.0)),
]


def special_id(part):
    return "_".join(map(str, part)) if isinstance(part, tuple) else part if isinstance(part, str) else ""


@pytest.mark.parametrize(("name", "point", "value", "partials", "seconds"), SPECIAL, ids=special_id)
def test_special_values_and_kinks(name, point, value, partials, seconds):
    op = BY_NAME[name]
    assert_allclose(kernel_value(op, *point), value, rtol=VALUE_ULP * EPS)
    for kernel, stated, rtol in [(kernel_partial, partials, PARTIAL_RTOL), (kernel_second, seconds, SECOND_RTOL)]:
        for which, expected in enumerate(stated or ()):
            if expected is not None:
                assert_allclose(kernel(op, which, *point), expected, rtol=rtol, err_msg=f"{kernel.__name__} {which}")


def along_active(name, point):
    """The operands that take an adjoint, and the primitive as a function of them alone: a sum over columns, if there are any."""
    arity = BY_NAME[name].arity
    active = [i for i in range(arity) if (name, i) not in PASSIVE]

    def f(x):
        result = evaluate(name, *(x[active.index(i)] if i in active else point[i] for i in range(arity)))
        return np.sum(result) if np.ndim(result) else result

    return active, f


@pytest.mark.parametrize(
    ("name", "point", "value", "partials", "seconds"),
    [row for row in SPECIAL if row[3] and not BY_NAME[row[0]].boolean],
    ids=special_id,
)
def test_sweeps_give_the_stated_partials(name, point, value, partials, seconds):
    # Through a tape, as scalar slots and as blocks: the gradient is the first partials, H e_i is a row of the second ones.
    active, f = along_active(name, point)
    order = {(0, 0): 0, (0, 1): 1, (1, 1): 2}
    for width in (None, 3):  # a scalar slot, a block
        at = np.array([point[i] for i in active])
        x = at if width is None else np.repeat(at[:, None], width, axis=1)
        with np.errstate(all="ignore"):
            x_bar = tj.grad(f)(x)
        for row, i in enumerate(active):
            if partials[i] is not None:
                assert_allclose(x_bar[row], partials[i], rtol=PARTIAL_RTOL)
            if seconds is None or any(seconds[order[min(i, j), max(i, j)]] is None for j in active):
                continue
            v = np.zeros_like(x)
            v[row] = 1.0
            expected = [seconds[order[min(i, j), max(i, j)]] for j in active]
            with np.errstate(all="ignore"):
                product = tj.hvp(f)(x, v)
            for other, number in enumerate(expected):
                assert_allclose(product[other], number, rtol=SECOND_RTOL, err_msg=f"H e_{i}, width {width}")


# Infinite operands, and ends of a domain where both an adjoint and its own derivative are infinite, are left to the sweeps.
ENDS = [("logit", (0.0,)), ("logit", (1.0,)), ("xlogy", (0.0, 0.0))]
NESTED = [row for row in SPECIAL if row[4] and np.isfinite(row[1]).all() and row[:2] not in ENDS]


@pytest.mark.parametrize(("name", "point", "value", "partials", "seconds"), NESTED, ids=special_id)
def test_nested_transforms_give_the_stated_second_partials(name, point, value, partials, seconds):
    # Here second partials come from the expressions of the first ones, recorded on the outer tape.
    active, f = along_active(name, point)
    x = np.array([point[i] for i in active])
    order = {(0, 0): 0, (0, 1): 1, (1, 1): 2}
    with np.errstate(all="ignore"):
        by_tangent = np.stack([tj.jvp(tj.grad(f))(x, direction)[1] for direction in np.eye(x.size)])
        by_adjoint = np.stack([tj.grad(lambda x, i=i: tj.grad(f)(x)[i])(x) for i in range(x.size)])
    for row, i in enumerate(active):
        for column, j in enumerate(active):
            stated = seconds[order[min(i, j), max(i, j)]]
            if stated is not None:
                assert_allclose(by_tangent[row, column], stated, rtol=SECOND_RTOL)
                assert_allclose(by_adjoint[row, column], stated, rtol=SECOND_RTOL)


# Outside the domain; NaN.


def outside(interval):
    if interval.low > -inf:
        yield from (interval.low - 0.5, interval.low - 1e6, -inf, np.nextafter(interval.low, -inf))
    if interval.high < inf:
        yield from (interval.high + 0.5, interval.high + 1e6, inf, np.nextafter(interval.high, inf))


@pytest.mark.parametrize("op", [op for op in ROWS if any(str(i) != "real" for i in op.domain)], ids=lambda op: op.name)
def test_outside_the_domain_value_and_partials_are_nan(op):
    for i, interval in enumerate(op.domain):
        for x in outside(interval):
            point = [1.0] * op.arity
            point[i] = x
            assert_array_equal(kernel_value(op, *point), nan, err_msg=f"value at {point}")
            for which in range(op.arity):
                assert_array_equal(kernel_partial(op, which, *point), nan, err_msg=f"partial {which} at {point}")
            constant = [tree == 0.0 for tree in second_partial_trees(op.name)]
            for which in range(len(constant)):
                if not constant[which]:
                    assert_array_equal(kernel_second(op, which, *point), nan, err_msg=f"second {which} at {point}")


@pytest.mark.parametrize("op", [op for op in ROWS if any(str(i) != "real" for i in op.domain)], ids=lambda op: op.name)
def test_outside_the_domain_nested_derivatives_are_nan(op):
    # A partial that is the number nan there would have the derivative 0.
    for i, interval in enumerate(op.domain):
        if (op.name, i) in PASSIVE:
            continue
        for x in outside(interval):

            def f(z, i=i):
                return evaluate(op.name, *(z if j == i else 1.0 for j in range(op.arity)))

            with np.errstate(all="ignore"):
                assert math.isnan(tj.grad(tj.grad(f))(x)), x
                assert math.isnan(tj.grad(tj.grad(tj.grad(f)))(x)), x
                assert math.isnan(tj.hvp(f)(x, 1.0)), x


# Rows whose value may be a number where an operand is NaN: they look at it, or do not need it.
NAN_IS_DATA = {"fmax", "fmin", "power", "power_constant", "copysign", "signbit", "chain", "isnan", "isinf", "isfinite"}


@each_row
def test_nan_in_nan_out(op):
    for i in range(op.arity):
        if op.boolean or op.name in NAN_IS_DATA:
            continue
        for other in (0.5, 0.0, -2.0, inf):
            point = [other] * op.arity
            point[i] = nan
            if op.name == "hypot" and other == inf:
                continue  # inf whatever the other operand, by the C standard
            assert_array_equal(kernel_value(op, *point), nan, err_msg=str(point))
            for which, tree in enumerate(partial_trees(op.name)):
                if reads(tree) >= {"xy"[i]} or "v" in reads(tree):
                    assert_array_equal(kernel_partial(op, which, *point), nan, err_msg=f"partial {which} at {point}")


def reads(tree):
    return {name for name in names(tree) if name in ("x", "y", "v")}


# The kernels agree with themselves.


@each_row
def test_scalar_and_tile_paths_give_the_same_bits(op, rng):
    points = interior_points(op, rng, 1000)
    if op.arity == 1:
        points = [np.concatenate([points[0], GRID])]
    else:
        points = [np.concatenate([p, g.ravel()[::3]]) for p, g in zip(points, np.meshgrid(GRID, GRID), strict=True)]
    for label, function in functions(op):
        tile = function(*points)
        some = np.arange(0, points[0].size, 3)
        single = np.concatenate([function(*(p[i : i + 1] for p in points)) for i in some])
        assert_same_bits(single, tile[some], label)
        # Another start, so another remainder of the vector loop.
        assert_same_bits(function(*(p[5:] for p in points)), tile[5:], label)


def assert_same_bits(actual, desired, label=""):
    is_nan = np.isnan(desired)
    assert_array_equal(np.isnan(actual), is_nan, err_msg=label)
    assert_array_equal(actual[~is_nan].view(np.int64), desired[~is_nan].view(np.int64), err_msg=label)


@each_row
def test_sweeps_agree_with_the_kernels_on_scalars_and_blocks(op, rng):
    points = interior_points(op, rng, 300)  # more than a tile
    y_bar, x_dot = rng.normal(size=300), rng.normal(size=(op.arity, 300))

    def blocks(x):
        return evaluate(op.name, *x)

    recording = tj.record(blocks, np.stack(points))
    expanded = recording.expand()
    x = np.stack(points)
    y, x_bar = recording.vjp(x, y_bar)
    assert_same_bits(y, kernel_value(op, *points))
    expected = np.stack([y_bar * kernel_partial(op, which, *points) for which in range(op.arity)])
    assert_allclose(x_bar, expected, rtol=PARTIAL_RTOL)
    terms = expected / y_bar * x_dot
    y_dot = recording.jvp(x, x_dot)[1]
    assert_array_equal(np.isnan(y_dot), np.isnan(terms.sum(axis=0)))
    assert np.all(
        np.nan_to_num(np.abs(y_dot - terms.sum(axis=0))) <= np.nan_to_num(PARTIAL_RTOL * np.abs(terms).sum(axis=0))
    )
    # Scalar slots of the same primitives: the oracle for blocks.
    adjoint = np.zeros(expanded.n_slots)
    adjoint[expanded.output_slots] = y_bar
    sweeps.reverse(expanded, adjoint)
    assert_allclose(adjoint[expanded.input_index()].reshape(x.shape), x_bar, rtol=PARTIAL_RTOL)


# The table itself.


def test_names_and_opcodes_are_unique():
    assert len({op.name for op in OPS}) == len(OPS)
    assert len(OPS) <= ops.FIRST_USER
    assert [OPS[CODE[op.name]] is op for op in OPS] == [True] * len(OPS)
    assert [ops.op_coded(code) for code in range(len(OPS))] == list(OPS)


def test_arithmetic_can_be_told_by_two_bits():
    # The sweeps test `code & 0xFC == ADD`, and `code & 2` for products.
    assert ops.ADD % 4 == 0
    assert [ops.ADD, ops.SUB, ops.MUL, ops.DIV] == list(range(ops.ADD, ops.ADD + 4))


@each_row
def test_rows_call_what_exists_with_the_right_number_of_operands(op):
    def visit(tree):
        if isinstance(tree, tuple):
            name, *children = tree
            assert len(children) == (3 if name == "select" else op_named(name).arity), tree
            for child in children:
                visit(child)

    for text in (op.value, *op.partials, *(op.seconds or ())):
        visit(parse(text))
    # A row calls itself only where Python or the kernels have it.
    if op.name in set(names(parse(op.value))):
        assert op.name in {*NAMESPACE, *ops.COMPARISONS, "add", "sub", "mul", "div", "neg"}


@pytest.mark.parametrize(("column", "module"), [("numpy", np), ("math", math), ("scipy", scipy.special)])
def test_every_name_in_a_column_is_a_function_claimed_once(column, module):
    claimed = [(name, op) for op in OPS for name in getattr(op, column)]
    assert len({name for name, _ in claimed}) == len(claimed)
    newer = {"math": {"exp2", "cbrt"}, "scipy": {"softplus"}}.get(column, set())  # Python 3.11, SciPy 1.15
    for name, op in claimed:
        if name in newer and not hasattr(module, name):
            continue
        function = getattr(module, name)
        if isinstance(function, np.ufunc):
            assert (function.nin, function.nout) == (op.arity, 1), name


def test_numpy_and_scipy_names_do_not_collide():
    # Recording looks a ufunc up by its name alone.
    owner = {}
    for op in OPS:
        for name in (*op.numpy, *op.scipy):
            assert owner.setdefault(name, op) is op, name


def test_kinks_are_stated_where_a_partial_jumps():
    for name in ("abs", "sign", "floor", "maximum", "fmin", "sqrt", "cbrt", "hypot", "power", "select", "less"):
        assert BY_NAME[name].kink


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_there_is_one_second_partial_for_each_pair_of_operands(op):
    assert len(partial_trees(op.name)) == op.arity
    assert len(second_partial_trees(op.name)) == op.arity * (op.arity + 1) // 2


# A row checks itself when built.


def test_a_partial_and_a_domain_for_each_operand():
    with pytest.raises(ValueError, match="'foo' has 1 partials and 2 domains; give one of each per operand"):
        Op("foo", "x", ("1",), (ops.REAL, ops.REAL))


@pytest.mark.parametrize(("arity", "seconds"), [(1, ("0", "0")), (2, ("0",)), (2, ("0", "0"))])
def test_seconds_are_one_or_three(arity, seconds):
    with pytest.raises(ValueError, match=r"'foo': seconds are \(xx,\) for one operand, \(xx, xy, yy\) for two"):
        Op("foo", "x", ("1",) * arity, (ops.REAL,) * arity, seconds=seconds)


@pytest.mark.parametrize(
    ("value", "partials", "seconds"),
    [("x + y", ("1",), None), ("x", ("y",), None), ("x", ("1",), ("y",))],
)
def test_expressions_read_only_what_the_row_has(value, partials, seconds):
    with pytest.raises(ValueError, match="reads y, which it lacks"):
        Op("foo", value, partials, (ops.REAL,), seconds=seconds)


def test_an_expression_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="is not in the vocabulary"):
        Op("foo", "x ** 2", ("2 * x",), (ops.REAL,))


@pytest.mark.parametrize(
    ("value", "partial", "message"),
    [
        ("erfcx(x)", "1", "no primitive 'erfcx'; the nearest is 'erfc'"),
        ("x", "exp(x, x)", "calls exp with 2 operands; it takes 1"),
        ("select(x < 0, x)", "1", "calls select with 2 operands; it takes 3"),
        ("nosuch(x)", "nosuch(x)", "calls itself"),
    ],
)
def test_calls_of_what_does_not_exist_are_refused(value, partial, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        tj.primitive("nosuch", value, partial)
    assert "nosuch" not in BY_NAME


def test_op_named_suggests_the_nearest():
    assert op_named("exp") is BY_NAME["exp"]
    with pytest.raises(KeyError, match="no primitive 'erfcx'; the nearest is 'erfc'. To add one, see tj.primitive"):
        op_named("erfcx")
    with pytest.raises(KeyError, match="the nearest is"):
        op_named("???")


@pytest.fixture
def own_table(monkeypatch):
    """A table of user rows that is thrown away; nothing may be compiled from it."""
    for name in ("USER", "BY_NAME", "CODE"):
        monkeypatch.setattr(ops, name, getattr(ops, name).copy())


@pytest.mark.usefixtures("own_table")
def test_user_rows_are_numbered_from_the_last_quarter_on():
    before = len(ops.USER)
    row = Op("first_of_mine", "x * x", ("x + x",), (ops.REAL,))
    assert ops.add_row(row) == ops.FIRST_USER + before
    assert ops.op_coded(ops.FIRST_USER + before) is row
    assert ops.op_named("first_of_mine") is row
    # The same row again is the one there; another of that name is refused, and so is the name of a row of the table.
    assert ops.add_row(Op("first_of_mine", "x * x", ("x + x",), (ops.REAL,))) == ops.FIRST_USER + before
    with pytest.raises(ValueError, match="there is a primitive 'first_of_mine' already, with another definition"):
        ops.add_row(Op("first_of_mine", "x * x", ("2 * x",), (ops.REAL,)))
    with pytest.raises(ValueError, match="there is a primitive 'exp' already"):
        ops.add_row(BY_NAME["exp"])


@pytest.mark.usefixtures("own_table")
def test_user_rows_end_at_one_byte():
    for i in range(ops.FIRST_USER - len(ops.USER)):
        code = ops.add_row(Op(f"mine_{i}", "x", ("1",), (ops.REAL,)))
    assert code == 255
    with pytest.raises(ValueError, match="no room for another primitive"):
        ops.add_row(Op("one_too_many", "x", ("1",), (ops.REAL,)))


# Intervals.


@pytest.mark.parametrize(
    ("interval", "text", "condition", "inside", "out"),
    [
        (ops.REAL, "real", "x real", [0.0, -1e300, inf], [nan]),
        (ops.ABOVE_ZERO, "(0, inf]", "x > 0", [1e-300, 1.0], [0.0, -1.0, nan]),
        (ops.NONNEGATIVE, "[0, inf]", "x >= 0", [0.0, 1.0], [-1e-300, nan]),
        (ops.UNIT, "[-1, 1]", "x >= -1 and x <= 1", [-1.0, 1.0], [1.0 + EPS]),
        (ops.OPEN_UNIT, "(-1, 1)", "x > -1 and x < 1", [0.0], [-1.0, 1.0]),
        (Interval(high=2.0), "[-inf, 2]", "x <= 2", [2.0, -inf], [2.5]),
    ],
)
def test_interval(interval, text, condition, inside, out):
    assert str(interval) == text
    assert interval.condition("x") == condition
    assert all(x in interval for x in inside)
    assert not any(x in interval for x in out)

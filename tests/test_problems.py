"""The hand-written primals and gradients of `tests/problems`, on which the benchmarks rely."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from problems import arithmetic, lennard_jones, logistic_regression, lorenz, mlp, rosenbrock
from scipy.optimize import rosen, rosen_der

PRIMAL_RTOL = 1e-12  # the same arithmetic; sums may be in another order
DIFFERENCES_RTOL = 1e-7

# problem, its plain forms, primal, gradient, size
CASES = [
    (rosenbrock, [rosenbrock.plain_array, rosenbrock.plain_scalar], "primal", "gradient", 30),
    (lorenz, [lorenz.plain], "primal", "gradient", 60),
    (lennard_jones, [lennard_jones.plain_array, lennard_jones.plain_scalar], "primal", "gradient", 13),
    (logistic_regression, [logistic_regression.plain], "primal", "gradient", 50),
    (mlp, [mlp.plain_array, mlp.plain_scalar], "primal", "gradient", 20),
    (arithmetic, [arithmetic.plain], "primal", "gradient", 1000),
    (
        arithmetic,
        [arithmetic.plain_transcendental],
        "primal_transcendental",
        "gradient_transcendental",
        1000,
    ),
]
each_case = pytest.mark.parametrize(
    "problem, plain_forms, primal, gradient, size",
    CASES,
    ids=[case[1][0].__module__ + "." + case[2] for case in CASES],
)


def central_differences(f, x, step=1e-5):
    """Gradient of `f` by differences of fourth order."""
    x_bar = np.empty_like(x)
    for i in range(x.size):
        at = [f(x + k * step * (np.arange(x.size) == i)) for k in (-2, -1, 1, 2)]
        x_bar[i] = (at[0] - 8.0 * at[1] + 8.0 * at[2] - at[3]) / (12.0 * step)
    return x_bar


@each_case
def test_plain_equals_primal(problem, plain_forms, primal, gradient, size):
    args = problem.make(size, np.random.default_rng(1))
    expected = getattr(problem, primal)(*args)
    for plain in plain_forms:
        assert_allclose(plain(*args), expected, rtol=PRIMAL_RTOL)


@each_case
def test_gradient_matches_central_differences(problem, plain_forms, primal, gradient, size):
    x, *passive = problem.make(size, np.random.default_rng(2))
    value, x_bar = getattr(problem, gradient)(x, *passive)
    evaluate = getattr(problem, primal)
    assert_allclose(value, evaluate(x, *passive), rtol=PRIMAL_RTOL)
    expected = central_differences(lambda at: evaluate(at, *passive), x)
    assert_allclose(x_bar, expected, rtol=DIFFERENCES_RTOL, atol=DIFFERENCES_RTOL * np.abs(x_bar).max())


def test_rosenbrock_equals_scipy():
    (x,) = rosenbrock.make(50, np.random.default_rng(3))
    value, x_bar = rosenbrock.gradient(x)
    assert_allclose(value, rosen(x), rtol=PRIMAL_RTOL)
    assert_allclose(x_bar, rosen_der(x), rtol=PRIMAL_RTOL, atol=PRIMAL_RTOL * np.abs(x_bar).max())


@pytest.mark.parametrize(
    "plain",
    [arithmetic.plain, arithmetic.plain_shuffled, arithmetic.plain_transcendental],
    ids=lambda plain: plain.__name__,
)
def test_arithmetic_does_the_operations_it_says(plain):
    counts = dict.fromkeys(["+", "-", "*", "/", "transcendental"], 0)
    n_operations = 4000
    plain([Counter(counts, value) for value in (0.5, 1.5, 1.2, 0.3)], n_operations)
    assert sum(counts.values()) == n_operations
    share = 0.1 if plain is arithmetic.plain_transcendental else 0.0
    assert counts["transcendental"] == share * n_operations
    for sign in "+-*/":
        assert counts[sign] == pytest.approx((1.0 - share) / 4 * n_operations, abs=0.03 * n_operations)


@pytest.mark.parametrize("gradient", [arithmetic.gradient, arithmetic.gradient_transcendental])
def test_arithmetic_stays_bounded_at_length(gradient):
    x, _ = arithmetic.make(0, np.random.default_rng(4))
    value, x_bar = gradient(x, 1_000_000)
    assert np.isfinite(value)
    assert np.all(np.isfinite(x_bar)) and np.all(np.abs(x_bar) > 1e3)


class Counter:
    """A number that counts what is done to it."""

    def __init__(self, counts, value):
        self.counts, self.value = counts, value

    def result(self, kind, value):
        self.counts[kind] += 1
        return Counter(self.counts, value)

    def __add__(self, other):
        return self.result("+", self.value + other.value)

    def __sub__(self, other):
        return self.result("-", self.value - other.value)

    def __mul__(self, other):
        return self.result("*", self.value * other.value)

    def __truediv__(self, other):
        assert abs(other.value) > 1e-2
        return self.result("/", self.value / other.value)

    # NumPy calls these for np.exp(object) and np.sin(object).
    def exp(self):
        return self.result("transcendental", np.exp(self.value))

    def sin(self):
        return self.result("transcendental", np.sin(self.value))

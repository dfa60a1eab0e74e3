"""The hand-written primals and gradients of `tests/problems`, on which the benchmarks rely."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from problems import (
    arithmetic,
    asian_option,
    gaussian_mixture,
    heat,
    lennard_jones,
    logistic_regression,
    lorenz,
    lorenz96,
    lotka_volterra,
    mlp,
    rosenbrock,
)
from scipy.optimize import rosen, rosen_der

import tapejit as tj
from tapejit.ops import CONSTANT, INPUT

PRIMAL_RTOL = 1e-12  # the same arithmetic; sums may be in another order
DIFFERENCES_RTOL = 1e-7
RECORDED_RTOL = 1e-10  # two exact gradients, whose sums may be in another order


@dataclass(frozen=True)
class Case:
    """A problem at a small size; `suffix` is that of its names where a module has more than one."""

    module: Any
    plain_forms: tuple
    size: int
    suffix: str = ""
    make: str = "make"

    def __str__(self):
        return self.module.__name__.removeprefix("problems.") + self.suffix

    @property
    def primal(self):
        return getattr(self.module, "primal" + self.suffix)

    @property
    def gradient(self):
        return getattr(self.module, "gradient" + self.suffix)

    def args(self, seed):
        return getattr(self.module, self.make)(self.size, np.random.default_rng(seed))


CASES = (
    Case(rosenbrock, (rosenbrock.plain_array, rosenbrock.plain_scalar), 30),
    Case(lorenz, (lorenz.plain,), 60),
    Case(lotka_volterra, (lotka_volterra.plain,), 12),
    Case(lorenz96, (lorenz96.plain,), 4),
    Case(heat, (heat.plain,), 24),
    Case(heat, (heat.plain_conductivity,), 24, "_conductivity", "make_conductivity"),
    Case(lennard_jones, (lennard_jones.plain_array, lennard_jones.plain_scalar), 13),
    Case(logistic_regression, (logistic_regression.plain,), 50),
    Case(mlp, (mlp.plain_array, mlp.plain_scalar), 20),
    Case(gaussian_mixture, (gaussian_mixture.plain_array, gaussian_mixture.plain_scalar), 30),
    Case(asian_option, (asian_option.plain_array, asian_option.plain_scalar), 20),
    Case(arithmetic, (arithmetic.plain,), 1000),
    Case(arithmetic, (arithmetic.plain_transcendental,), 1000, "_transcendental"),
)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def central_differences(f, x, step=1e-5):
    """Gradient of `f` by differences of fourth order."""
    x_bar = np.empty_like(x)
    for i in range(x.size):
        at = [f(x + k * step * (np.arange(x.size) == i)) for k in (-2, -1, 1, 2)]
        x_bar[i] = (at[0] - 8.0 * at[1] + 8.0 * at[2] - at[3]) / (12.0 * step)
    return x_bar


@each_case
def test_plain_equals_primal(case):
    args = case.args(1)
    expected = case.primal(*args)
    for plain in case.plain_forms:
        assert_allclose(plain(*args), expected, rtol=PRIMAL_RTOL)


@each_case
def test_gradient_matches_central_differences(case):
    x, *passive = case.args(2)
    value, x_bar = case.gradient(x, *passive)
    assert_allclose(value, case.primal(x, *passive), rtol=PRIMAL_RTOL)
    expected = central_differences(lambda at: case.primal(at, *passive), x)
    assert_allclose(x_bar, expected, rtol=DIFFERENCES_RTOL, atol=DIFFERENCES_RTOL * np.abs(x_bar).max())


@each_case
def test_gradient_matches_the_recorded_one(case):
    args = case.args(2)
    value, x_bar = tj.value_and_grad(case.primal)(*args)
    expected, expected_bar = case.gradient(*args)
    assert_allclose(value, expected, rtol=RECORDED_RTOL)
    assert_allclose(x_bar, expected_bar, rtol=RECORDED_RTOL, atol=RECORDED_RTOL * np.abs(expected_bar).max())


@pytest.mark.parametrize("case", [case for case in CASES if case.module is not arithmetic], ids=str)
def test_plain_forms_can_be_recorded(case):
    x, *passive = case.args(3)
    expected = case.gradient(x, *passive)[1]
    for plain in case.plain_forms:
        assert_allclose(tj.grad(plain)(x, *passive), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


WITHOUT_MAX = [  # what a tape makes of a maximum is not one operation
    case for case in CASES if case.module not in (logistic_regression, gaussian_mixture, asian_option, arithmetic)
]


@pytest.mark.parametrize("case", WITHOUT_MAX, ids=str)
def test_problem_does_the_operations_it_says(case):
    args = case.args(4)
    opcode = tj.record(case.primal, *args).tape.opcode
    assert case.module.n_operations(args) == np.sum((opcode != INPUT) & (opcode != CONSTANT))


def test_asian_option_path_is_a_term_of_its_primal():
    x, normals = asian_option.make(7, np.random.default_rng(5))
    payoffs = [asian_option.path(x, z) for z in normals]
    assert_allclose(np.mean(payoffs), asian_option.primal(x, normals), rtol=PRIMAL_RTOL)
    assert any(payoff > 0.0 for payoff in payoffs) and any(payoff == 0.0 for payoff in payoffs)


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

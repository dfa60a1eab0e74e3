"""Golden answers of GradBench's hand-written gradients, for functions written as its users would write them.

The data lies beside the repository, in ``../shared/gradbench`` (its README says where it comes from); without it the tests are skipped.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose

import tapejit as tj

DATA = Path(__file__).resolve().parents[2] / "shared" / "gradbench"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no golden answers: {DATA} is not there")

RTOL = ATOL = 1e-9


def load(name):
    return tuple(json.loads((DATA / f"{name}.{kind}.json").read_text()) for kind in ("input", "golden"))


def log_sum_exp(x, axis=-1):
    largest = np.max(x, axis=axis, keepdims=True)
    return np.squeeze(largest, axis) + np.log(np.sum(np.exp(x - largest), axis=axis))


@pytest.mark.parametrize("name", ["lse_n2500", "lse_n10000"])
def test_log_sum_exp(name):
    given, golden = load(name)
    primal, gradient = tj.value_and_grad(log_sum_exp)(np.array(given["x"]))
    assert_allclose(primal, golden["primal"], rtol=RTOL)
    assert_allclose(gradient, golden["gradient"], rtol=RTOL, atol=1e-15)


@pytest.mark.parametrize("name", ["llsq_n64_m128", "llsq_n1024_m128"])
def test_polynomial_least_squares(name):
    given, golden = load(name)
    x, n = np.array(given["x"]), given["n"]
    t = -1.0 + 2.0 * np.arange(n) / (n - 1)
    powers = t[:, None] ** np.arange(x.size)
    primal, gradient = tj.value_and_grad(lambda x: 0.5 * np.sum((np.sign(t) - powers @ x) ** 2))(x)
    assert_allclose(primal, golden["primal"], rtol=RTOL)
    assert_allclose(gradient, golden["gradient"], rtol=RTOL, atol=1e-9)


def determinant(a, columns):
    if len(columns) == 1:
        return a[a.shape[0] - 1, columns[0]]
    row = a.shape[0] - len(columns)
    minors = (determinant(a, columns[:j] + columns[j + 1 :]) for j in range(len(columns)))
    return sum((-1.0) ** j * a[row, columns[j]] * minor for j, minor in enumerate(minors))


@pytest.mark.parametrize("name", ["det_l5", "det_l7"])
def test_determinant_by_minors(name):
    given, golden = load(name)
    n = given["ell"]
    a = np.array(given["A"]).reshape(n, n)
    primal, gradient = tj.value_and_grad(lambda a: determinant(a, list(range(n))))(a)
    assert_allclose(primal, golden["primal"], rtol=RTOL)
    assert_allclose(gradient.reshape(-1), golden["gradient"], rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("name", ["ode_n4_s7", "ode_n8_s50"])
def test_runge_kutta_chain(name):
    given, golden = load(name)
    x, n_steps = np.array(given["x"]), given["s"]
    h = 2.0 / n_steps

    def slope(x, y):
        return np.concatenate([x[:1], x[1:] * y[:-1]])

    def solve(x):
        y = np.zeros(x.size, like=x) if not isinstance(x, np.ndarray) else np.zeros(x.size)
        for _ in range(n_steps):
            k1 = slope(x, y)
            k2 = slope(x, y + h * k1 / 2.0)
            k3 = slope(x, y + h * k2 / 2.0)
            k4 = slope(x, y + h * k3)
            y = y + h * (k1 + 2.0 * k2 + 2.0 * k3 + k4) / 6.0
        return y

    assert_allclose(solve(x), golden["primal"], rtol=RTOL)
    assert_allclose(tj.grad(lambda x: solve(x)[-1])(x), golden["gradient_discrete"], rtol=RTOL)
    assert_allclose(tj.jacobian(solve)(x)[-1], golden["gradient_discrete"], rtol=RTOL)


def test_newton_direction_of_k_means():
    given, golden = load("kmeans_k10_n1000_d8")
    points, centroids = np.array(given["points"]), np.array(given["centroids"])

    def cost(centroids):
        distances = np.sum((points[:, None, :] - centroids) ** 2, axis=-1)
        return np.sum(np.min(distances, axis=1))

    recording = tj.record(cost, centroids)
    primal, gradient = recording.value_and_grad(centroids)
    # The Hessian is diagonal, so one product with ones is all of it.
    diagonal = recording.hvp(centroids, np.ones_like(centroids))
    assert_allclose(primal, golden["cost"], rtol=RTOL)
    assert_allclose(gradient / diagonal, golden["dir"], rtol=1e-7, atol=ATOL)


@pytest.mark.parametrize("name", ["gmm_d2_k5_n1000", "gmm_d10_k25_n1000"])
def test_gaussian_mixture(name):
    given, golden = load(name)
    d, k, n, m, gamma = (given[key] for key in ("d", "k", "n", "m", "gamma"))
    x, *parameters = (np.array(given[key]) for key in ("x", "alpha", "mu", "q", "l"))
    columns, rows = np.triu_indices(d, 1)  # column by column below the diagonal

    def objective(alpha, mu, q, l):  # noqa: E741
        lower = np.zeros((k, d, d), like=q) if not isinstance(q, np.ndarray) else np.zeros((k, d, d))
        lower[:, np.arange(d), np.arange(d)] = np.exp(q)
        lower[:, rows, columns] = l
        scaled = np.matmul(lower, np.transpose(x - mu[:, None, :], (0, 2, 1)))  # (k, d, n)
        beta = alpha + np.sum(q, axis=1) - 0.5 * np.transpose(np.sum(scaled**2, axis=1))
        likelihood = np.sum(log_sum_exp(beta, 1)) - n * log_sum_exp(alpha) - 0.5 * n * d * np.log(2.0 * np.pi)
        nu = d + m + 1
        constant = nu * d * (np.log(gamma) - 0.5 * np.log(2.0)) - scipy.special.multigammaln(nu / 2.0, d)
        frobenius = np.sum(np.exp(2.0 * q)) + np.sum(l**2)
        return likelihood + k * constant + m * np.sum(q) - 0.5 * gamma**2 * frobenius

    assert_allclose(objective(*parameters), golden["objective"], rtol=RTOL)
    primal, gradients = tj.value_and_grad(objective, argnums=(0, 1, 2, 3))(*parameters)
    assert_allclose(primal, golden["objective"], rtol=RTOL)
    for key, gradient in zip(("alpha", "mu", "q", "l"), gradients, strict=True):
        expected = np.array(golden["jacobian"][key])
        assert_allclose(gradient, expected, rtol=RTOL, atol=ATOL * np.abs(expected).max())

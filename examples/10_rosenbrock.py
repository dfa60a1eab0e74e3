"""Minimise the chained Rosenbrock function in 100,000 dimensions, by gradients alone and with exact H v.

Run: python examples/10_rosenbrock.py
"""

import time

import numpy as np
from scipy.optimize import rosen_der, rosen_hess_prod

import tapejit as tj

N = 100_000


def rosenbrock(x):
    return np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


# From x = 2 both methods end at x = 1; other starts may end in the minimum near (-1, 1, ..., 1).
x_0 = np.full(N, 2.0)

# Exact answers first: SciPy has this function's derivatives, written by hand.
rng = np.random.default_rng(0)
x, v = rng.uniform(-2, 2, (2, N))
tape = tj.record(rosenbrock, x_0)
print(f"{tape.n_slots} slots, {tape.nbytes / 2**20:.1f} MiB")
np.testing.assert_allclose(tape.grad(x), rosen_der(x), rtol=1e-10, atol=1e-9)
np.testing.assert_allclose(tape.hvp(x, v), rosen_hess_prod(x, v), rtol=1e-10, atol=1e-9)
print("gradient and H v agree with scipy.optimize.rosen_der and rosen_hess_prod")

for method, options in (("L-BFGS-B", {}), ("trust-ncg", {"gtol": 1e-6})):
    start = time.perf_counter()
    result = tj.minimize(tape, x_0, method=method, options=options)
    elapsed = time.perf_counter() - start
    error = np.abs(result.x - 1).max()
    print(f"{method}: f = {result.fun:.1e}, x = 1 to {error:.1e}, {result.nit} iterations, {elapsed:.1f} s")
    assert result.fun < 1e-6
    assert error < 1e-3

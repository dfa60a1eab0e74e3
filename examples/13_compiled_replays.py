"""Fit the Lorenz system to a noisy trajectory, by gradients of a compiled replay.

A twin experiment: a known trajectory is observed with noise, and its three parameters and its start are found again by least squares. The
simulation is Numba code that knows nothing of derivatives. It prints the loops that the compiler found, and what a gradient costs by
machine code, by the interpreter, recorded at every call, and in plain Python.

Run: python examples/13_compiled_replays.py
"""

import time

import numba
import numpy as np
from numba.extending import register_jitable

import tapejit as tj

# E. N. Lorenz, Deterministic nonperiodic flow, J. Atmos. Sci. 20(2), 1963.
DT, STEPS_BETWEEN, N_TIMES = 0.002, 25, 60  # an observation every 0.05 units of time, for three: a few turns
ERROR = 0.5
NAMES = ("sigma", "rho", "beta", "x", "y", "z")
TRUTH = np.array([10.0, 28.0, 8.0 / 3.0, -5.0, -6.0, 22.0])
GUESS = np.array([9.5, 28.5, 2.6, -5.3, -5.7, 22.5])


@register_jitable  # As @njit, but the Python function stays one: the comparison below runs it in Python.
def velocity(sigma, rho, beta, x, y, z):
    """Time derivatives of the three coordinates."""
    return sigma * (y - x), x * (rho - z) - y, x * y - beta * z


@register_jitable
def step(sigma, rho, beta, x, y, z):
    """The state a time `DT` later, by the classical Runge-Kutta method."""
    h = 0.5 * DT
    ax, ay, az = velocity(sigma, rho, beta, x, y, z)
    bx, by, bz = velocity(sigma, rho, beta, x + h * ax, y + h * ay, z + h * az)
    cx, cy, cz = velocity(sigma, rho, beta, x + h * bx, y + h * by, z + h * bz)
    dx, dy, dz = velocity(sigma, rho, beta, x + DT * cx, y + DT * cy, z + DT * cz)
    x = x + DT / 6.0 * (ax + 2.0 * (bx + cx) + dx)
    y = y + DT / 6.0 * (ay + 2.0 * (by + cy) + dy)
    z = z + DT / 6.0 * (az + 2.0 * (bz + cz) + dz)
    return x, y, z


@numba.njit
def trajectory(theta, n_times):
    """States (n_times, 3), one every `STEPS_BETWEEN` steps."""
    sigma, rho, beta, x, y, z = theta
    states = np.empty((n_times, 3))
    for k in range(n_times):
        for _ in range(STEPS_BETWEEN):
            x, y, z = step(sigma, rho, beta, x, y, z)
        states[k] = x, y, z
    return states


@numba.njit
def misfit(theta, observed):
    """Half the sum of squared residuals, in units of their error: `theta` is (sigma, rho, beta) and the start."""
    sigma, rho, beta, x, y, z = theta
    total = 0.0
    for k in range(observed.shape[0]):
        for _ in range(STEPS_BETWEEN):
            x, y, z = step(sigma, rho, beta, x, y, z)
        total += (x - observed[k, 0]) ** 2 + (y - observed[k, 1]) ** 2 + (z - observed[k, 2]) ** 2
    return 0.5 * total / ERROR**2


def central_differences(f, x, *data, h=1e-6):
    """Gradient from 2 n evaluations."""
    gradient = np.empty(x.size)
    for i in range(x.size):
        ahead, behind = x.copy(), x.copy()
        ahead[i] += h
        behind[i] -= h
        gradient[i] = (f(ahead, *data) - f(behind, *data)) / (2.0 * h)
    return gradient


def seconds(call, repeats):
    """Least time of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


# The twin, and a first guess.
rng = np.random.default_rng(63)
observed = trajectory(TRUTH, N_TIMES) + ERROR * rng.standard_normal((N_TIMES, 3))

# Record, find the loops, compile.
fast = tj.compile(misfit, GUESS, observed)
print(fast)
made = fast.stats().variants[0]
print(f"recorded in {made.record_seconds:.2f} s (Numba included), compiled in {made.compile_seconds:.2f} s")
assert not made.why_interpreted

# The gradient, against differences.
value, gradient = fast.value_and_grad(GUESS)  # also compared with a fresh recording, as every first result is
differences = central_differences(misfit, GUESS, observed)
error = np.abs(gradient - differences).max() / np.abs(differences).max()
print(f"gradient check: central differences agree to {error:.1e}")
assert abs(value - misfit(GUESS, observed)) <= 1e-12 * value
assert error < 1e-6

# What a gradient costs.
recording, afresh = tj.record(misfit, GUESS, observed), tj.value_and_grad(misfit)
primal = seconds(lambda: misfit(GUESS, observed), 50)
compiled = seconds(lambda: fast.value_and_grad(GUESS), 50)
interpreted = seconds(lambda: recording.value_and_grad(GUESS), 20)
recorded = seconds(lambda: afresh(GUESS, observed), 10)
part = observed[:6]
plain = N_TIMES / len(part) * seconds(lambda: central_differences(misfit.py_func, GUESS, part), 1)
print(f"value and gradient of {recording.n_slots:,} operations; the function alone takes {1e3 * primal:.3f} ms:")
for what, spent in (
    ("compiled replay", compiled),
    ("interpreted replay", interpreted),
    ("recorded at every call", recorded),
    ("differences in plain Python, extrapolated", plain),
):
    print(f"  {what:42s} {1e3 * spent:9.3f} ms  {spent / compiled:9,.1f} times as long")
print(f"  memory: {fast.nbytes / 1024:.0f} KiB compiled, {25 * recording.n_slots / 1024:,.0f} KiB interpreted")
assert interpreted / compiled > 2
assert fast.nbytes < recording.nbytes / 10

# The fit, and once more with other data: these are parameters, so nothing is recorded or compiled.
start = time.perf_counter()
found = tj.minimize(fast, GUESS, method="BFGS", options={"gtol": 1e-3})
print(f"misfit {value:.1f} -> {found.fun:.1f} in {found.nit} iterations, {time.perf_counter() - start:.3f} s")
for name, true, fitted in zip(NAMES, TRUTH, found.x, strict=True):
    print(f"  {name:6s} {fitted:8.3f}   true {true:8.3f}")
assert found.fun < misfit(TRUTH, observed)
np.testing.assert_allclose(found.x[:3], TRUTH[:3], rtol=0.02)

fits = []
for _ in range(20):
    noisy = trajectory(TRUTH, N_TIMES) + ERROR * rng.standard_normal((N_TIMES, 3))
    fits.append(tj.minimize(fast, GUESS, args=(noisy,), method="BFGS", options={"gtol": 1e-3}).x)
spread = np.std(fits, axis=0)
print("spread over 20 sets of observations: " + ", ".join(f"{n} {s:.3f}" for n, s in zip(NAMES, spread, strict=True)))
assert fast.n_recorded == 1
assert (np.abs(np.mean(fits, axis=0) - TRUTH) < 5.0 * spread / np.sqrt(len(fits))).all()

"""Find the state of a chaotic atmosphere (Lorenz-96, 40 variables) by 4D-Var, through compiled time stepping.

A twin experiment: a known trajectory is observed with noise, every second variable only, and its first state is found again from
these observations and a poor first guess. The cost function is Numba code that knows nothing of derivatives.

Run: python examples/11_lorenz96_4dvar_compiled.py
"""

import time

import numba
import numpy as np
from numba.extending import register_jitable

import tapejit as tj

# E. N. Lorenz, Predictability: a problem partly solved, ECMWF, 1996. One unit of time is about five days.
N, FORCING = 40, 8.0
DT, STEPS_BETWEEN, N_TIMES = 0.0125, 4, 16  # an observation every six hours, for four days
OBSERVATION_ERROR, BACKGROUND_ERROR = 0.5, 1.0


@register_jitable  # As @njit, but the Python function stays one: the comparison below runs it in Python.
def step(x, rate, stage, change):
    """Advance `x` in place by one Runge-Kutta step; the other three are work arrays."""
    change[:] = 0.0
    stage[:] = x
    for weight, ahead in ((1.0 / 6.0, 0.5), (1.0 / 3.0, 0.5), (1.0 / 3.0, 1.0), (1.0 / 6.0, 0.0)):
        for i in range(x.size):
            rate[i] = (stage[(i + 1) % x.size] - stage[i - 2]) * stage[i - 1] - stage[i] + FORCING
        for i in range(x.size):
            change[i] += weight * DT * rate[i]
            stage[i] = x[i] + ahead * DT * rate[i]
    x += change


@numba.njit
def trajectory(start, n_times):
    """States (n_times, n), one every `STEPS_BETWEEN` steps."""
    x = start.copy()
    rate, stage, change = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    states = np.empty((n_times, x.size))
    for k in range(n_times):
        for _ in range(STEPS_BETWEEN):
            step(x, rate, stage, change)
        states[k] = x
    return states


@numba.njit
def cost(start, background, observed):
    """Misfit of a start (n,) to the background, and of its trajectory to what was observed (n_times, n / 2)."""
    x = start.copy()
    rate, stage, change = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    total = 0.0
    for i in range(x.size):
        total += ((x[i] - background[i]) / BACKGROUND_ERROR) ** 2
    for k in range(observed.shape[0]):
        for _ in range(STEPS_BETWEEN):
            step(x, rate, stage, change)
        for j in range(observed.shape[1]):
            total += ((x[2 * j] - observed[k, j]) / OBSERVATION_ERROR) ** 2
    return 0.5 * total


def central_differences(f, x, *data, h=1e-5):
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


def rms(error):
    """Root of the mean square."""
    return float(np.sqrt(np.mean(error**2)))


# The twin: a state on the attractor, its trajectory seen with noise, and a first guess.
rng = np.random.default_rng(96)
truth = trajectory(FORCING + rng.standard_normal(N), 400)[-1]
states = trajectory(truth, N_TIMES)
observed = states[:, ::2] + OBSERVATION_ERROR * rng.standard_normal((N_TIMES, N // 2))
background = truth + BACKGROUND_ERROR * rng.standard_normal(N)

# The gradient, against differences of the compiled function.
value_and_grad = tj.value_and_grad(cost)
start = time.perf_counter()
value, gradient = value_and_grad(background, background, observed)
print(f"first gradient: {time.perf_counter() - start:.2f} s, compilation included")
assert value == cost(background, background, observed)
differences = central_differences(cost, background, background, observed)
error = np.abs(gradient - differences).max() / np.abs(differences).max()
print(f"gradient check: central differences agree to {error:.1e}")
assert error < 1e-6

# Speeds, on the same function: recorded natively, recorded from Python, and differences in plain Python over a quarter of the window.
tape = tj.record(cost, background, background, observed)
native = seconds(lambda: value_and_grad(background, background, observed), 20)
replayed = seconds(lambda: tape.value_and_grad(background), 20)
in_python = tj.value_and_grad(cost.py_func)
assert np.allclose(in_python(background, background, observed)[1], gradient, rtol=1e-9, atol=1e-9)
recorded = seconds(lambda: in_python(background, background, observed), 2)
quarter = observed[: N_TIMES // 4]
plain = 4 * seconds(lambda: central_differences(cost.py_func, background, background, quarter), 1)
print(f"value and gradient of {tape.tape.n_slots:,} slots:")
print(f"  recorded natively    {1e3 * native:9.2f} ms   {1e9 * native / tape.tape.n_slots:.1f} ns a slot")
print(f"  replayed             {1e3 * replayed:9.2f} ms")
print(f"  recorded from Python {1e3 * recorded:9.2f} ms   {recorded / native:,.0f} times as long as natively")
print(
    f"  plain Python         {1e3 * plain:9.2f} ms   {plain / native:,.0f} times, by central differences (extrapolated)"
)
assert recorded / native > 20

# The fit.
start = time.perf_counter()
found = tj.minimize(cost, background, args=(background, observed))
print(f"cost {value:.1f} -> {found.fun:.1f} in {found.nit} iterations, {time.perf_counter() - start:.2f} s")
before, after = rms(background - truth), rms(found.x - truth)
print(f"error of the first state: {before:.2f} -> {after:.2f}, observed with an error of {OBSERVATION_ERROR}")
assert found.success
assert after < OBSERVATION_ERROR < before

# A forecast beyond the window, where the first guess is useless.
ahead = trajectory(truth, 2 * N_TIMES)[-1]
forecast, useless = (trajectory(x, 2 * N_TIMES)[-1] for x in (found.x, background))
print(
    f"error of a forecast four days ahead: {rms(forecast - ahead):.2f}; without observations {rms(useless - ahead):.2f}"
)
assert rms(forecast - ahead) < rms(useless - ahead)

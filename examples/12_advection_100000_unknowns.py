"""Recover 100,000 unknowns, the initial condition of Burgers' equation, from one sensor in ten cells.

The waves move past the sensors, so what a sensor sees over time tells what stood between it and the next. The solver is Numba code with
work arrays and nested calls, and its gradient costs a small multiple of one run.

Run: python examples/12_advection_100000_unknowns.py
"""

import time

import numba
import numpy as np

import tapejit as tj

N, SPACING, N_TIMES = 100_000, 10, 12  # cells, one sensor every ten of them, times at which they are read
DT, STEPS_BETWEEN = 0.5, 2  # in cells per unit of speed
VISCOSITY, SMOOTHNESS, NOISE = 0.05, 0.002, 0.005


@numba.njit
def step(u, flux):
    """One upwind step of du/dt + d(u^2 / 2)/dx = viscosity d2u/dx2 on a circle, in place; u > 0, so the wind has one direction."""
    n = u.size
    for i in range(n):
        flux[i] = 0.5 * u[i] * u[i] - VISCOSITY * (u[i + 1 if i < n - 1 else 0] - u[i])
    left = flux[n - 1]
    for i in range(n):
        u[i] -= DT * (flux[i] - left)
        left = flux[i]


@numba.njit
def sensor_readings(start):
    """What the sensors see, (N_TIMES, n / SPACING)."""
    u, flux = start.copy(), np.empty(start.size)
    seen = np.empty((N_TIMES, start.size // SPACING))
    for k in range(N_TIMES):
        seen[k] = u[::SPACING]
        for _ in range(STEPS_BETWEEN):
            step(u, flux)
    return seen


@numba.njit
def loss(start, observed):
    """Half the sum of squared misfits, and of squared second differences, which decide where no sensor does."""
    total = 0.0
    for i in range(start.size):
        total += SMOOTHNESS * (start[i - 2] - 2.0 * start[i - 1] + start[i]) ** 2
    seen = sensor_readings(start)
    for k in range(seen.shape[0]):
        for j in range(seen.shape[1]):
            total += (seen[k, j] - observed[k, j]) ** 2
    return 0.5 * total


# The truth: smooth noise on a mean wind of 1, all of it positive.
rng = np.random.default_rng(12)
wavenumber = np.fft.rfftfreq(N)
noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(N)) * np.exp(-0.5 * (wavenumber * 2.0 * np.pi * 4.0) ** 2), N)
truth = 1.0 + 0.2 * noise / noise.std()
assert truth.min() > 0.0
observed = sensor_readings(truth) + NOISE * rng.standard_normal((N_TIMES, N // SPACING))

# First guess: between the sensors, a straight line.
cells = np.arange(N)
guess = np.interp(cells, cells[::SPACING], observed[0], period=N)

start = time.perf_counter()
value, gradient = tj.value_and_grad(loss)(guess, observed)
print(f"first gradient: {time.perf_counter() - start:.2f} s, compilation included")
assert value == loss(guess, observed)

# Along a random direction, against differences.
v = rng.standard_normal(N)
h = 1e-4
difference = (loss(guess + h * v, observed) - loss(guess - h * v, observed)) / (2.0 * h)
print(f"gradient check: {gradient @ v:.8g} along a random direction, by differences {difference:.8g}")
assert abs(gradient @ v - difference) < 1e-6 * abs(difference)

start = time.perf_counter()
tape = tj.record(loss, guess, observed)
recorded = time.perf_counter() - start
start = time.perf_counter()
tape.value_and_grad(guess)
replayed = time.perf_counter() - start
start = time.perf_counter()
loss(guess, observed)
plain = time.perf_counter() - start
print(f"{tape.tape.n_slots:,} slots, {tape.tape.nbytes / 2**20:.0f} MiB: recorded in {1e3 * recorded:.0f} ms")
print(f"value and gradient replayed in {1e3 * replayed:.0f} ms; the plain function takes {1e3 * plain:.0f} ms")

start = time.perf_counter()
found = tj.minimize(tape, guess, options={"maxiter": 60})
elapsed = time.perf_counter() - start
print(f"loss {value:.2f} -> {found.fun:.3f} in {found.nit} iterations, {found.nfev} gradients, {elapsed:.1f} s")

before, after = (float(np.sqrt(np.mean((u - truth) ** 2))) for u in (guess, found.x))
print(f"error of the initial condition: {before:.4f} -> {after:.4f}; the sensors err by {NOISE}")
assert found.fun < 0.1 * value
assert after < 0.25 * before

"""Time stepping: Lorenz-96 with a 4D-Var cost, an N-body system by leapfrog, and the Lotka-Volterra equations."""

# Numba's zip has no `strict`:
# ruff: noqa: B905

import math

import numba
import numpy as np

# Lorenz-96: E. N. Lorenz, Predictability: a problem partly solved, ECMWF seminar on predictability, 1996.


@numba.njit
def lorenz96_tendency(x, forcing, rate):
    """Fill `rate` (n,) with dx/dt, of x on a circle of n points."""
    n = x.size
    for i in range(n):
        rate[i] = (x[(i + 1) % n] - x[i - 2]) * x[i - 1] - x[i] + forcing


@numba.njit
def lorenz96_step(x, forcing, dt, rates, stage):
    """Advance `x` (n,) in place by one Runge-Kutta step; `rates` (4, n) and `stage` (n,) are work arrays."""
    lorenz96_tendency(x, forcing, rates[0])
    stage[:] = x + 0.5 * dt * rates[0]
    lorenz96_tendency(stage, forcing, rates[1])
    stage[:] = x + 0.5 * dt * rates[1]
    lorenz96_tendency(stage, forcing, rates[2])
    stage[:] = x + dt * rates[2]
    lorenz96_tendency(stage, forcing, rates[3])
    for i in range(x.size):
        x[i] += dt / 6.0 * (rates[0, i] + 2.0 * (rates[1, i] + rates[2, i]) + rates[3, i])


@numba.njit
def four_d_var(start, background, observations, every, dt):
    """Misfit of a trajectory from `start` (n,) to the background and to `observations` (m, n), one every few steps."""
    n = start.size
    x = start.copy()
    rates = np.empty((4, n))
    stage = np.empty(n)
    cost = 0.5 * np.sum((start - background) ** 2)
    for k in range(observations.shape[0]):
        for _ in range(every):
            lorenz96_step(x, 8.0, dt, rates, stage)
        for i in range(n):
            residual = x[i] - observations[k, i]
            cost += 0.5 * residual * residual
    return cost


def make_four_d_var(size, rng):
    """A state of 12 variables near the attractor, a background, and `size` noisy observations of it."""
    start = 8.0 + rng.standard_normal(12)
    background = start + 0.1 * rng.standard_normal(12)
    return start, background, 2.0 + 3.0 * rng.standard_normal((size, 12)), 2, 0.025


# N-body, direct summation.


@numba.njit
def attract(positions, masses, softening, acceleration):
    """Fill `acceleration` (n, 3) with the pull of all other bodies."""
    acceleration[:] = 0.0
    separation = np.empty(3)
    for i in range(positions.shape[0]):
        for j in range(i):
            square = softening * softening
            for axis in range(3):
                separation[axis] = positions[j, axis] - positions[i, axis]
                square += separation[axis] ** 2
            inverse_cube = square**-1.5
            for axis in range(3):
                pull = separation[axis] * inverse_cube
                acceleration[i, axis] += masses[j] * pull
                acceleration[j, axis] -= masses[i] * pull


@numba.njit
def leapfrog(positions, velocities, masses, dt, n_steps):
    """Kick, drift, kick: advance `positions` and `velocities` (n, 3) in place."""
    acceleration = np.zeros_like(positions)
    attract(positions, masses, 0.1, acceleration)
    for _ in range(n_steps):
        velocities += 0.5 * dt * acceleration
        positions += dt * velocities
        attract(positions, masses, 0.1, acceleration)
        velocities += 0.5 * dt * acceleration


@numba.njit
def n_body(positions, velocities, masses, target, dt, n_steps):
    """Squared distance from `target` (n, 3) of where the bodies are after `n_steps`, plus their final kinetic energy."""
    end, speed = positions.copy(), velocities.copy()
    leapfrog(end, speed, masses, dt, n_steps)
    total = 0.0
    for body in range(end.shape[0]):
        miss = end[body] - target[body]
        total += np.dot(miss, miss) + 0.5 * masses[body] * (speed[body] ** 2).sum()
    return total


def make_n_body(size, rng):
    """Four bodies and `size` steps."""
    positions, velocities, target = rng.standard_normal((3, 4, 3))
    return positions, 0.3 * velocities, rng.uniform(0.5, 1.5, 4), target, 0.02, size


# Lotka-Volterra, as in examples/07_hare_and_lynx.py.


@numba.njit
def populations_change(hare, lynx, parameters):
    """Time derivatives of both populations."""
    birth, predation, death, growth = parameters
    return (birth - predation * lynx) * hare, (growth * hare - death) * lynx


@numba.njit
def lotka_volterra(log_parameters, years, hares, lynxes, steps_per_year):
    """Sum of squared log residuals; `log_parameters` (6,) are four rates and the first two populations."""
    parameters = (
        math.exp(log_parameters[0]),
        math.exp(log_parameters[1]),
        math.exp(log_parameters[2]),
        math.exp(log_parameters[3]),
    )
    hare, lynx = math.exp(log_parameters[4]), math.exp(log_parameters[5])
    h = 1.0 / steps_per_year
    total = 0.0
    year = years[0]
    for observed_year, observed_hare, observed_lynx in zip(years, hares, lynxes):
        while year < observed_year:
            for _ in range(steps_per_year):
                hare_1, lynx_1 = populations_change(hare, lynx, parameters)
                hare_2, lynx_2 = populations_change(hare + h / 2 * hare_1, lynx + h / 2 * lynx_1, parameters)
                hare_3, lynx_3 = populations_change(hare + h / 2 * hare_2, lynx + h / 2 * lynx_2, parameters)
                hare_4, lynx_4 = populations_change(hare + h * hare_3, lynx + h * lynx_3, parameters)
                hare += h / 6 * (hare_1 + 2 * hare_2 + 2 * hare_3 + hare_4)
                lynx += h / 6 * (lynx_1 + 2 * lynx_2 + 2 * lynx_3 + lynx_4)
            year += 1
        total += (math.log(hare) - math.log(observed_hare)) ** 2 + (math.log(lynx) - math.log(observed_lynx)) ** 2
    return total


def make_lotka_volterra(size, rng):
    """Parameters near those of the Hudson's Bay Company's record, and `size` noisy years."""
    years = np.arange(1900, 1900 + size)
    hares, lynxes = 30.0 * np.exp(0.5 * rng.standard_normal((2, size)))
    log_parameters = np.log([0.54, 0.027, 0.80, 0.024, 34.0, 5.8]) + 0.02 * rng.standard_normal(6)
    return log_parameters, years, hares, lynxes, 10

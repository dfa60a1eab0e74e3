"""4D-Var on the Lorenz-96 system: which initial state of 40 variables explains a background and the observations that follow.

Every second variable is observed every 5 Runge-Kutta steps (6 hours of weather); the errors are independent.

E. N. Lorenz, Predictability: a problem partly solved, ECMWF seminar on predictability, 1996.
"""

import numba
import numpy as np

N = 40
FORCING = 8.0
STEP_LENGTH = 0.01
STEPS_BETWEEN = 5
EVERY = 2  # variables
BACKGROUND_WEIGHT = 0.5 / 0.3**2
OBSERVATION_WEIGHT = 0.5 / 0.2**2
OPERATIONS_PER_STEP = 28 * N


def make(size, rng):
    """An initial state (40,), a background near it, and `size` noisy observations of a true trajectory (size, 20)."""
    truth = FORCING + rng.standard_normal(N)
    for _ in range(200):  # onto the attractor
        truth = step_array(truth)
    start, background = truth + 0.1 * rng.standard_normal(N), truth + 0.3 * rng.standard_normal(N)
    observations = np.empty((size, N // EVERY))
    for k in range(size):
        for _ in range(STEPS_BETWEEN):
            truth = step_array(truth)
        observations[k] = truth[::EVERY] + 0.2 * rng.standard_normal(N // EVERY)
    return start, background, observations


def tendency_array(x, xp=np):
    """dx/dt of x on a circle of 40 points."""
    return (xp.roll(x, -1) - xp.roll(x, 2)) * xp.roll(x, 1) - x + FORCING


def step_array(x, xp=np):
    """One Runge-Kutta step."""
    half, sixth = 0.5 * STEP_LENGTH, STEP_LENGTH / 6.0
    a = tendency_array(x, xp)
    b = tendency_array(x + half * a, xp)
    c = tendency_array(x + half * b, xp)
    d = tendency_array(x + STEP_LENGTH * c, xp)
    return x + sixth * (a + 2.0 * (b + c) + d)


def plain(start, background, observations, xp=np):
    """Whole-array form."""
    x = start
    cost = BACKGROUND_WEIGHT * xp.sum((start - background) ** 2)
    for observation in observations:
        for _ in range(STEPS_BETWEEN):
            x = step_array(x, xp)
        cost = cost + OBSERVATION_WEIGHT * xp.sum((x[::EVERY] - observation) ** 2)
    return cost


@numba.njit
def tendency(x, rate):
    """Fill `rate` (n,) with dx/dt; the ends of the circle apart, so that the loop between them is without remainders."""
    n = x.size
    rate[0] = (x[1] - x[n - 2]) * x[n - 1] - x[0] + FORCING
    rate[1] = (x[2] - x[n - 1]) * x[0] - x[1] + FORCING
    for i in range(n - 3):  # of i + 2, so that Numba sees that no index is negative
        rate[i + 2] = (x[i + 3] - x[i]) * x[i + 1] - x[i + 2] + FORCING
    rate[n - 1] = (x[0] - x[n - 3]) * x[n - 2] - x[n - 1] + FORCING


@numba.njit
def step(x, a, b, c, d, stage):
    """Advance `x` (n,) in place; the others are work arrays of its size."""
    half, sixth = 0.5 * STEP_LENGTH, STEP_LENGTH / 6.0
    tendency(x, a)
    for i in range(x.size):
        stage[i] = x[i] + half * a[i]
    tendency(stage, b)
    for i in range(x.size):
        stage[i] = x[i] + half * b[i]
    tendency(stage, c)
    for i in range(x.size):
        stage[i] = x[i] + STEP_LENGTH * c[i]
    tendency(stage, d)
    for i in range(x.size):
        x[i] += sixth * (a[i] + 2.0 * (b[i] + c[i]) + d[i])


@numba.njit
def primal(start, background, observations):
    """Misfit to the background and to the observations."""
    n = start.size
    x = start.copy()
    a, b, c, d, stage = np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    distance = 0.0
    for i in range(n):
        departure = start[i] - background[i]
        distance += departure * departure
    misfit = 0.0
    for k in range(observations.shape[0]):
        for _ in range(STEPS_BETWEEN):
            step(x, a, b, c, d, stage)
        for j in range(observations.shape[1]):
            residual = x[EVERY * j] - observations[k, j]
            misfit += residual * residual
    return BACKGROUND_WEIGHT * distance + OBSERVATION_WEIGHT * misfit


@numba.njit
def pull_back_tendency(x, rate_bar, x_bar):
    """Fill `x_bar` with the adjoint of x from that of its tendency: what i + 1, i + 2 and i - 1 took from x[i]."""
    n = x.size
    x_bar[0] = ((x[2] - x[n - 1]) * rate_bar[1] - x[1] * rate_bar[2]) + x[n - 2] * rate_bar[n - 1] - rate_bar[0]
    x_bar[1] = ((x[3] - x[0]) * rate_bar[2] - x[2] * rate_bar[3]) + x[n - 1] * rate_bar[0] - rate_bar[1]
    for i in range(n - 4):  # of i + 2
        x_bar[i + 2] = (
            ((x[i + 4] - x[i + 1]) * rate_bar[i + 3] - x[i + 3] * rate_bar[i + 4])
            + x[i] * rate_bar[i + 1]
            - rate_bar[i + 2]
        )
    i = n - 2
    x_bar[i] = ((x[0] - x[i - 1]) * rate_bar[i + 1] - x[i + 1] * rate_bar[0]) + x[i - 2] * rate_bar[i - 1] - rate_bar[i]
    i = n - 1
    x_bar[i] = ((x[1] - x[i - 1]) * rate_bar[0] - x[0] * rate_bar[1]) + x[i - 2] * rate_bar[i - 1] - rate_bar[i]


@numba.njit
def pull_back_step(x, x_bar, rate, x1, x2, x3, rate_bar, stage_bar, sum_bar):
    """Turn the adjoint of the state after a step into that before it, in place; the stages are recomputed."""
    half, sixth = 0.5 * STEP_LENGTH, STEP_LENGTH / 6.0
    n = x.size
    tendency(x, rate)
    for i in range(n):
        x1[i] = x[i] + half * rate[i]
    tendency(x1, rate)
    for i in range(n):
        x2[i] = x[i] + half * rate[i]
    tendency(x2, rate)
    for i in range(n):
        x3[i] = x[i] + STEP_LENGTH * rate[i]

    for i in range(n):
        rate_bar[i] = sixth * x_bar[i]
    pull_back_tendency(x3, rate_bar, stage_bar)
    for i in range(n):
        sum_bar[i] = x_bar[i] + stage_bar[i]
        rate_bar[i] = 2.0 * sixth * x_bar[i] + STEP_LENGTH * stage_bar[i]
    pull_back_tendency(x2, rate_bar, stage_bar)
    for i in range(n):
        sum_bar[i] += stage_bar[i]
        rate_bar[i] = 2.0 * sixth * x_bar[i] + half * stage_bar[i]
    pull_back_tendency(x1, rate_bar, stage_bar)
    for i in range(n):
        sum_bar[i] += stage_bar[i]
        rate_bar[i] = sixth * x_bar[i] + half * stage_bar[i]
    pull_back_tendency(x, rate_bar, stage_bar)
    for i in range(n):
        x_bar[i] = sum_bar[i] + stage_bar[i]


@numba.njit
def gradient(start, background, observations):
    """Value and gradient; stores the state before each step and at the end."""
    n, n_times = start.size, observations.shape[0]
    states = np.empty((n_times * STEPS_BETWEEN + 1, n))
    a, b, c, d, stage = np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    distance, misfit = 0.0, 0.0
    for i in range(n):
        states[0, i] = start[i]
        departure = start[i] - background[i]
        distance += departure * departure
    k = 0
    for time in range(n_times):
        for _ in range(STEPS_BETWEEN):
            for i in range(n):
                states[k + 1, i] = states[k, i]
            k += 1
            step(states[k], a, b, c, d, stage)
        for j in range(observations.shape[1]):
            residual = states[k, EVERY * j] - observations[time, j]
            misfit += residual * residual

    x_bar = np.zeros(n)
    x1, x2, x3 = np.empty(n), np.empty(n), np.empty(n)
    for time in range(n_times - 1, -1, -1):
        for j in range(observations.shape[1]):
            x_bar[EVERY * j] += 2.0 * OBSERVATION_WEIGHT * (states[k, EVERY * j] - observations[time, j])
        for _ in range(STEPS_BETWEEN):
            k -= 1
            pull_back_step(states[k], x_bar, a, x1, x2, x3, b, stage, c)
    for i in range(n):
        x_bar[i] += 2.0 * BACKGROUND_WEIGHT * (start[i] - background[i])
    return BACKGROUND_WEIGHT * distance + OBSERVATION_WEIGHT * misfit, x_bar


def n_operations(args):
    """Arithmetic operations of one primal."""
    n_times, n_observed = args[2].shape
    return (OPERATIONS_PER_STEP * STEPS_BETWEEN + 3 * n_observed) * n_times + 3 * N + 3

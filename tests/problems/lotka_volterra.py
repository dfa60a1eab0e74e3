"""Rates and initial populations of the Lotka-Volterra equations, fitted to noisy counts: the sum of squared residuals.

The classical Runge-Kutta method takes 10 steps from one observation to the next.

A. J. Lotka, Elements of Physical Biology, 1925; V. Volterra, Mem. R. Accad. Naz. Lincei 2, 1926.
"""

import numba
import numpy as np
from numba.extending import register_jitable

STEPS_BETWEEN = 10
STEP_LENGTH = 0.01
OPERATIONS_PER_STEP = 48
TRUTH = np.array([1.1, 0.4, 0.1, 0.4, 10.0, 5.0])


def make(size, rng):
    """Growth, predation, reproduction and death rate, prey and predators at the start; `size` noisy observations (size, 2)."""
    observations = np.empty((size, 2))
    trajectory(TRUTH, observations)
    return TRUTH * rng.uniform(0.95, 1.05, 6), observations * rng.lognormal(0.0, 0.05, (size, 2))


@register_jitable
def velocity(growth, predation, reproduction, death, x, y):
    """Right-hand side, of prey `x` and predators `y`: 6 operations."""
    return x * (growth - predation * y), y * (reproduction * x - death)


@register_jitable
def step(growth, predation, reproduction, death, x, y):
    """One Runge-Kutta step; this and `velocity` are plain Python that Numba may call."""
    half, sixth = 0.5 * STEP_LENGTH, STEP_LENGTH / 6.0
    ax, ay = velocity(growth, predation, reproduction, death, x, y)
    bx, by = velocity(growth, predation, reproduction, death, x + half * ax, y + half * ay)
    cx, cy = velocity(growth, predation, reproduction, death, x + half * bx, y + half * by)
    dx, dy = velocity(growth, predation, reproduction, death, x + STEP_LENGTH * cx, y + STEP_LENGTH * cy)
    return x + sixth * (ax + 2.0 * (bx + cx) + dx), y + sixth * (ay + 2.0 * (by + cy) + dy)


def trajectory(inputs, states):
    """Fill `states` (n, 2) with the populations at the times of observation."""
    *rates, x, y = inputs.tolist()
    for k in range(len(states)):
        for _ in range(STEPS_BETWEEN):
            x, y = step(*rates, x, y)
        states[k] = x, y


def plain(inputs, observations):
    """Sum of squared residuals; `inputs` is (growth, predation, reproduction, death, prey, predators)."""
    growth, predation, reproduction, death, x, y = (inputs[i] for i in range(6))
    total = 0.0
    for prey, predators in observations:
        for _ in range(STEPS_BETWEEN):
            x, y = step(growth, predation, reproduction, death, x, y)
        total = total + (x - prey) * (x - prey)
        total = total + (y - predators) * (y - predators)
    return total


@numba.njit
def primal(inputs, observations):
    """Sum of squared residuals."""
    growth, predation, reproduction, death = inputs[0], inputs[1], inputs[2], inputs[3]
    x, y = inputs[4], inputs[5]
    total = 0.0
    for k in range(observations.shape[0]):
        for _ in range(STEPS_BETWEEN):
            x, y = step(growth, predation, reproduction, death, x, y)
        prey_residual = x - observations[k, 0]
        predator_residual = y - observations[k, 1]
        total += prey_residual * prey_residual
        total += predator_residual * predator_residual
    return total


@numba.njit
def pull_back_velocity(growth, predation, reproduction, death, x, y, u_bar, v_bar):
    """Adjoints of x and y from those of the velocity (u, v), and what the rates get."""
    p_bar, q_bar = x * u_bar, y * v_bar  # the adjoints of what multiplies x and y
    x_bar = (growth - predation * y) * u_bar + reproduction * q_bar
    y_bar = (reproduction * x - death) * v_bar - predation * p_bar
    return x_bar, y_bar, p_bar, -y * p_bar, x * q_bar, -q_bar


@numba.njit
def pull_back_step(growth, predation, reproduction, death, x, y, x_bar, y_bar):
    """Adjoints of the state before a step from those after it, and what the rates get; the stages are recomputed."""
    half, sixth = 0.5 * STEP_LENGTH, STEP_LENGTH / 6.0
    ax, ay = velocity(growth, predation, reproduction, death, x, y)
    x1, y1 = x + half * ax, y + half * ay
    bx, by = velocity(growth, predation, reproduction, death, x1, y1)
    x2, y2 = x + half * bx, y + half * by
    cx, cy = velocity(growth, predation, reproduction, death, x2, y2)
    x3, y3 = x + STEP_LENGTH * cx, y + STEP_LENGTH * cy

    u, v = sixth * x_bar, sixth * y_bar
    x3_bar, y3_bar, g3, p3, r3, d3 = pull_back_velocity(growth, predation, reproduction, death, x3, y3, u, v)
    u, v = 2.0 * u, 2.0 * v
    x2_bar, y2_bar, g2, p2, r2, d2 = pull_back_velocity(
        growth, predation, reproduction, death, x2, y2, u + STEP_LENGTH * x3_bar, v + STEP_LENGTH * y3_bar
    )
    x1_bar, y1_bar, g1, p1, r1, d1 = pull_back_velocity(
        growth, predation, reproduction, death, x1, y1, u + half * x2_bar, v + half * y2_bar
    )
    x0_bar, y0_bar, g0, p0, r0, d0 = pull_back_velocity(
        growth, predation, reproduction, death, x, y, 0.5 * u + half * x1_bar, 0.5 * v + half * y1_bar
    )
    x_bar = x_bar + ((x3_bar + x2_bar) + (x1_bar + x0_bar))
    y_bar = y_bar + ((y3_bar + y2_bar) + (y1_bar + y0_bar))
    return (
        x_bar,
        y_bar,
        (g0 + g1) + (g2 + g3),
        (p0 + p1) + (p2 + p3),
        (r0 + r1) + (r2 + r3),
        (d0 + d1) + (d2 + d3),
    )


@numba.njit
def gradient(inputs, observations):
    """Value and gradient; stores the two populations of each step."""
    growth, predation, reproduction, death = inputs[0], inputs[1], inputs[2], inputs[3]
    x, y = inputs[4], inputs[5]
    n = observations.shape[0]
    states = np.empty((n * STEPS_BETWEEN + 1, 2))
    total = 0.0
    k = 0
    for i in range(n):
        for _ in range(STEPS_BETWEEN):
            states[k, 0], states[k, 1] = x, y
            k += 1
            x, y = step(growth, predation, reproduction, death, x, y)
        prey_residual, predator_residual = x - observations[i, 0], y - observations[i, 1]
        total += prey_residual * prey_residual + predator_residual * predator_residual
    states[k, 0], states[k, 1] = x, y

    growth_bar, predation_bar, reproduction_bar, death_bar, x_bar, y_bar = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n - 1, -1, -1):
        x_bar += 2.0 * (states[k, 0] - observations[i, 0])
        y_bar += 2.0 * (states[k, 1] - observations[i, 1])
        for _ in range(STEPS_BETWEEN):
            k -= 1
            x_bar, y_bar, g, p, r, d = pull_back_step(
                growth, predation, reproduction, death, states[k, 0], states[k, 1], x_bar, y_bar
            )
            growth_bar += g
            predation_bar += p
            reproduction_bar += r
            death_bar += d
    return total, np.array([growth_bar, predation_bar, reproduction_bar, death_bar, x_bar, y_bar])


def n_operations(args):
    """Arithmetic operations of one primal."""
    return (OPERATIONS_PER_STEP * STEPS_BETWEEN + 6) * len(args[1])

"""The Lorenz system by the classical Runge-Kutta method: how far from the origin a trajectory ends.

The horizon is bounded, so the step shrinks when `n_steps` grows: the system is chaotic, and over a horizon
that grew with the number of steps its derivatives would overflow (they grow as exp(0.9 t)).

E. N. Lorenz, Deterministic nonperiodic flow, J. Atmos. Sci. 20(2), 1963.
"""

import numba
import numpy as np
from numba.extending import register_jitable

HORIZON = 5.0  # units of time: a few turns around the attractor, derivatives of order 100
LARGEST_STEP = 0.01
OPERATIONS_PER_STEP = 68


def make(size, rng):
    """Three parameters and three initial coordinates, near the classical ones, and `size` steps."""
    x = np.array([10.0, 28.0, 8.0 / 3.0, 1.0, 1.0, 20.0])
    return x * rng.uniform(0.99, 1.01, x.size), size


@register_jitable
def velocity(sigma, rho, beta, x, y, z):
    """Right-hand side of the Lorenz system: 8 operations."""
    return sigma * (y - x), x * (rho - z) - y, x * y - beta * z


@register_jitable
def step(sigma, rho, beta, x, y, z, dt):
    """One Runge-Kutta step; this and `velocity` are plain Python that Numba may call."""
    half, sixth = 0.5 * dt, dt / 6.0
    ax, ay, az = velocity(sigma, rho, beta, x, y, z)
    bx, by, bz = velocity(sigma, rho, beta, x + half * ax, y + half * ay, z + half * az)
    cx, cy, cz = velocity(sigma, rho, beta, x + half * bx, y + half * by, z + half * bz)
    dx, dy, dz = velocity(sigma, rho, beta, x + dt * cx, y + dt * cy, z + dt * cz)
    x = x + sixth * (ax + 2.0 * (bx + cx) + dx)
    y = y + sixth * (ay + 2.0 * (by + cy) + dy)
    z = z + sixth * (az + 2.0 * (bz + cz) + dz)
    return x, y, z


@register_jitable
def step_length(n_steps):
    """Time between two states."""
    return min(LARGEST_STEP, HORIZON / n_steps)


def plain(inputs, n_steps):
    """Squared distance from the origin after `n_steps` steps; `inputs` is (sigma, rho, beta, x, y, z)."""
    sigma, rho, beta, x, y, z = (inputs[i] for i in range(6))
    dt = step_length(n_steps)
    for _ in range(n_steps):
        x, y, z = step(sigma, rho, beta, x, y, z, dt)
    return x * x + y * y + z * z


@numba.njit
def primal(inputs, n_steps):
    """Squared distance from the origin after `n_steps` steps."""
    sigma, rho, beta, x, y, z = inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5]
    dt = step_length(n_steps)
    for _ in range(n_steps):
        x, y, z = step(sigma, rho, beta, x, y, z, dt)
    return x * x + y * y + z * z


@numba.njit
def pull_back_velocity(sigma, rho, beta, x, y, z, u_bar, v_bar, w_bar, inputs_bar):
    """Adjoints of x, y, z from those of the velocity (u, v, w); those of the parameters are accumulated."""
    inputs_bar[0] += (y - x) * u_bar
    inputs_bar[1] += x * v_bar
    inputs_bar[2] -= z * w_bar
    x_bar = (rho - z) * v_bar - sigma * u_bar + y * w_bar
    y_bar = sigma * u_bar - v_bar + x * w_bar
    z_bar = -x * v_bar - beta * w_bar
    return x_bar, y_bar, z_bar


@numba.njit
def pull_back_step(sigma, rho, beta, x, y, z, dt, x_bar, y_bar, z_bar, inputs_bar):
    """Adjoints of the state before a step from those after it; the stages are recomputed."""
    half, sixth = 0.5 * dt, dt / 6.0
    ax, ay, az = velocity(sigma, rho, beta, x, y, z)
    x1, y1, z1 = x + half * ax, y + half * ay, z + half * az
    bx, by, bz = velocity(sigma, rho, beta, x1, y1, z1)
    x2, y2, z2 = x + half * bx, y + half * by, z + half * bz
    cx, cy, cz = velocity(sigma, rho, beta, x2, y2, z2)
    x3, y3, z3 = x + dt * cx, y + dt * cy, z + dt * cz

    u, v, w = sixth * x_bar, sixth * y_bar, sixth * z_bar
    x3_bar, y3_bar, z3_bar = pull_back_velocity(sigma, rho, beta, x3, y3, z3, u, v, w, inputs_bar)
    u, v, w = 2.0 * u, 2.0 * v, 2.0 * w
    x2_bar, y2_bar, z2_bar = pull_back_velocity(
        sigma, rho, beta, x2, y2, z2, u + dt * x3_bar, v + dt * y3_bar, w + dt * z3_bar, inputs_bar
    )
    x1_bar, y1_bar, z1_bar = pull_back_velocity(
        sigma, rho, beta, x1, y1, z1, u + half * x2_bar, v + half * y2_bar, w + half * z2_bar, inputs_bar
    )
    u, v, w = 0.5 * u + half * x1_bar, 0.5 * v + half * y1_bar, 0.5 * w + half * z1_bar
    x0_bar, y0_bar, z0_bar = pull_back_velocity(sigma, rho, beta, x, y, z, u, v, w, inputs_bar)
    return (
        x_bar + x0_bar + x1_bar + x2_bar + x3_bar,
        y_bar + y0_bar + y1_bar + y2_bar + y3_bar,
        z_bar + z0_bar + z1_bar + z2_bar + z3_bar,
    )


@numba.njit
def gradient(inputs, n_steps):
    """Value and gradient; stores the three coordinates of each step."""
    sigma, rho, beta, x, y, z = inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5]
    dt = step_length(n_steps)
    states = np.empty((n_steps, 3))
    for k in range(n_steps):
        states[k, 0], states[k, 1], states[k, 2] = x, y, z
        x, y, z = step(sigma, rho, beta, x, y, z, dt)
    value = x * x + y * y + z * z

    inputs_bar = np.zeros(6)
    x_bar, y_bar, z_bar = 2.0 * x, 2.0 * y, 2.0 * z
    for k in range(n_steps - 1, -1, -1):
        x, y, z = states[k, 0], states[k, 1], states[k, 2]
        x_bar, y_bar, z_bar = pull_back_step(sigma, rho, beta, x, y, z, dt, x_bar, y_bar, z_bar, inputs_bar)
    inputs_bar[3], inputs_bar[4], inputs_bar[5] = x_bar, y_bar, z_bar
    return value, inputs_bar


def n_operations(args):
    """Arithmetic operations of one primal."""
    return OPERATIONS_PER_STEP * args[1] + 5

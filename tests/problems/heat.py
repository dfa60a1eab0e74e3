"""The heat equation in a rod by the explicit scheme, and the squared misfit of its final profile to a target.

- ``plain``: the unknown is the initial temperature (n,) of a uniform rod with cold ends, in two work arrays. Linear, so that an adjoint
  needs no state but the last.
- ``plain_conductivity``: the unknown is the conductivity between neighbouring points (n - 1,) of an insulated rod, whose temperature
  changes in place; an adjoint needs every state.
"""

import numba
import numpy as np

NUMBER = 0.4  # time step x diffusivity / spacing^2; stable below 0.5
OPERATIONS_PER_POINT = 5


def make(size, rng):
    """An initial temperature, a target, and as many steps as points, `size` (issue: 200 to 1000)."""
    place = np.linspace(0.0, 1.0, size)
    target = np.exp(-((6.0 * place - 3.0) ** 2))
    return np.sin(np.pi * place) + 0.1 * rng.standard_normal(size), target, size


def make_conductivity(size, rng):
    """Conductivities of a rod of `size` points, its initial temperature, a target, and as many steps as points."""
    place = np.linspace(0.0, 1.0, size)
    return rng.uniform(0.5, 1.0, size - 1), np.sin(6.0 * place), np.exp(-((6.0 * place - 3.0) ** 2)), size


def plain(initial, target, n_steps, xp=np):
    """Whole-array form."""
    ends = initial[:1], initial[-1:]
    u = initial
    for _ in range(n_steps):
        inner = u[1:-1] + NUMBER * ((u[:-2] + u[2:]) - 2.0 * u[1:-1])
        u = xp.concatenate([ends[0], inner, ends[1]])
    return xp.sum((u - target) ** 2)


def plain_conductivity(conductivity, initial, target, n_steps, xp=np):
    """Whole-array form."""
    u, none = initial, np.zeros(1)
    for _ in range(n_steps):
        flux = conductivity * (u[1:] - u[:-1])
        u = u + NUMBER * (xp.concatenate([flux, none]) - xp.concatenate([none, flux]))
    return xp.sum((u - target) ** 2)


@numba.njit
def primal(initial, target, n_steps):
    """Misfit, as a function of the initial temperature; the ends stay as they are."""
    n = initial.size
    u, u_next = initial.copy(), initial.copy()
    for _ in range(n_steps):
        for i in range(1, n - 1):
            u_next[i] = u[i] + NUMBER * ((u[i - 1] + u[i + 1]) - 2.0 * u[i])
        u, u_next = u_next, u
    total = 0.0
    for i in range(n):
        residual = u[i] - target[i]
        total += residual * residual
    return total


@numba.njit
def gradient(initial, target, n_steps):
    """Value and gradient; the scheme is linear, so nothing is stored."""
    n = initial.size
    u, u_next = initial.copy(), initial.copy()
    for _ in range(n_steps):
        for i in range(1, n - 1):
            u_next[i] = u[i] + NUMBER * ((u[i - 1] + u[i + 1]) - 2.0 * u[i])
        u, u_next = u_next, u
    total = 0.0
    u_bar, before = np.empty(n), np.empty(n)
    for i in range(n):
        residual = u[i] - target[i]
        total += residual * residual
        u_bar[i] = 2.0 * residual

    # The transposed scheme is the scheme itself, except next to the ends, which give and do not take.
    for _ in range(n_steps):
        for i in range(1, n - 1):
            before[i] = u_bar[i] + NUMBER * ((u_bar[i - 1] + u_bar[i + 1]) - 2.0 * u_bar[i])
        before[0] = u_bar[0] + NUMBER * u_bar[1]
        before[1] -= NUMBER * u_bar[0]
        before[n - 2] -= NUMBER * u_bar[n - 1]
        before[n - 1] = u_bar[n - 1] + NUMBER * u_bar[n - 2]
        u_bar, before = before, u_bar
    return total, u_bar


@numba.njit
def step_conductivity(conductivity, u):
    """Advance the temperature `u` (n,) in place; nothing flows through the ends."""
    flux = 0.0
    for i in range(u.size - 1):
        flux_next = conductivity[i] * (u[i + 1] - u[i])
        u[i] += NUMBER * (flux_next - flux)
        flux = flux_next
    u[u.size - 1] -= NUMBER * flux


@numba.njit
def primal_conductivity(conductivity, initial, target, n_steps):
    """Misfit, as a function of the conductivity."""
    u = initial.copy()
    for _ in range(n_steps):
        step_conductivity(conductivity, u)
    total = 0.0
    for i in range(u.size):
        residual = u[i] - target[i]
        total += residual * residual
    return total


@numba.njit
def pull_back_step_conductivity(conductivity, u, u_bar, conductivity_bar):
    """Turn the adjoint of the temperature after a step into that before it, in place; accumulate that of the conductivity."""
    flux_bar = 0.0
    for i in range(u.size - 1):
        difference = u_bar[i + 1] - u_bar[i]
        conductivity_bar[i] -= difference * (u[i + 1] - u[i])
        flux_bar_next = conductivity[i] * difference  # a step is symmetric in the temperature
        u_bar[i] += NUMBER * (flux_bar_next - flux_bar)
        flux_bar = flux_bar_next
    u_bar[u.size - 1] -= NUMBER * flux_bar


@numba.njit
def gradient_conductivity(conductivity, initial, target, n_steps):
    """Value and gradient; stores the temperature before each step."""
    n = initial.size
    states = np.empty((n_steps, n))
    u = initial.copy()
    for k in range(n_steps):
        for i in range(n):
            states[k, i] = u[i]
        step_conductivity(conductivity, u)
    total = 0.0
    u_bar, conductivity_bar = np.empty(n), np.zeros(n - 1)
    for i in range(n):
        residual = u[i] - target[i]
        total += residual * residual
        u_bar[i] = 2.0 * residual
    for k in range(n_steps - 1, -1, -1):
        pull_back_step_conductivity(conductivity, states[k], u_bar, conductivity_bar)
    for i in range(n - 1):
        conductivity_bar[i] *= NUMBER
    return total, conductivity_bar


def n_operations(args):
    """Arithmetic operations of one primal, of either kind."""
    *_, target, n_steps = args
    n = len(target)
    each_step = OPERATIONS_PER_POINT * (n - 2) if len(args) == 3 else OPERATIONS_PER_POINT * (n - 1) + 2
    return each_step * n_steps + 3 * n

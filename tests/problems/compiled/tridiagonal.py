"""Tridiagonal systems: the heat equation by Crank and Nicolson, and natural cubic splines."""

# Numba's zip has no `strict`:
# ruff: noqa: B905

import numba
import numpy as np


@numba.njit
def solve_tridiagonal(lower, diagonal, upper, rhs):
    """Thomas' algorithm, in place: `rhs` (n,) becomes the solution, `diagonal` (n,) is used up."""
    n = rhs.size
    for i in range(1, n):
        factor = lower[i - 1] / diagonal[i - 1]
        diagonal[i] -= factor * upper[i - 1]
        rhs[i] -= factor * rhs[i - 1]
    rhs[n - 1] /= diagonal[n - 1]
    for i in range(n - 2, -1, -1):
        rhs[i] = (rhs[i] - upper[i] * rhs[i + 1]) / diagonal[i]


@numba.njit
def heat(conductivity, initial, observed, dt, n_steps):
    """Misfit after `n_steps` of the temperature of an insulated rod of n cells; `conductivity` (n - 1,) of their faces."""
    n = initial.size
    temperature = initial.copy()
    coupling = 0.5 * dt * conductivity
    diagonal, rhs = np.empty(n), np.empty(n)
    for _ in range(n_steps):
        diagonal[:] = 1.0
        rhs[:] = temperature
        for face in range(n - 1):
            flux = coupling[face] * (temperature[face + 1] - temperature[face])
            rhs[face] += flux
            rhs[face + 1] -= flux
            diagonal[face] += coupling[face]
            diagonal[face + 1] += coupling[face]
        solve_tridiagonal(-coupling, diagonal, -coupling, rhs)
        temperature, rhs = rhs, temperature
    misfit = 0.0
    for cell in range(n):
        if not np.isnan(observed[cell]):
            misfit += (temperature[cell] - observed[cell]) ** 2
    return misfit


def make_heat(size, rng):
    """A rod of 12 cells, `size` steps; a third of the cells is not observed."""
    observed = rng.standard_normal(12)
    observed[::3] = np.nan
    return rng.uniform(0.5, 2.0, 11), rng.standard_normal(12), observed, 0.1, size


@numba.njit
def second_derivatives(knots, heights):
    """Of the natural cubic spline through (`knots`, `heights`), at the knots (n,)."""
    n = knots.size
    curvature = np.zeros(n)
    steps = np.diff(knots)
    slopes = (heights[1:] - heights[:-1]) / steps
    if n > 2:
        inner = curvature[1:-1]
        inner[:] = 6.0 * (slopes[1:] - slopes[:-1])
        solve_tridiagonal(steps[1:-1], 2.0 * (steps[1:] + steps[:-1]), steps[1:-1], inner)
    return curvature


@numba.njit
def interval(knots, at):
    """Index of the last knot at or before a point, by bisection; the outer intervals extend beyond the ends."""
    low, high = 0, knots.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if knots[middle] <= at:
            low = middle
        else:
            high = middle
    return low


@numba.njit
def spline(heights, knots, curvature, at):
    """Value of the spline at one point."""
    i = interval(knots, at)
    step = knots[i + 1] - knots[i]
    a, b = (knots[i + 1] - at) / step, (at - knots[i]) / step
    bend = (a**3 - a) * curvature[i] + (b**3 - b) * curvature[i + 1]
    return a * heights[i] + b * heights[i + 1] + bend * step**2 / 6.0


@numba.njit
def spline_misfit(heights, points, knots, values):
    """Sum of squares of the spline through `heights` (n,) minus `values`, at `points` (m,)."""
    curvature = second_derivatives(knots, heights)
    total = 0.0
    for point, value in zip(points, values):
        total += (spline(heights, knots, curvature, point) - value) ** 2
    return total


def make_spline(size, rng):
    """Nine knots and `size` points, a few of them outside."""
    knots = np.linspace(0.0, 4.0, 9) + 0.1 * rng.uniform(-1.0, 1.0, 9)
    return rng.standard_normal(9), rng.uniform(-0.3, 4.3, size), knots, rng.standard_normal(size)

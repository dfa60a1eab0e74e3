"""The chained Rosenbrock function: sum over i of 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2, least at all ones.

H. H. Rosenbrock, The Computer Journal 3(3), 1960; chained as in ``scipy.optimize.rosen``.
"""

import numba
import numpy as np

OPERATIONS_PER_TERM = 8


def make(size, rng):
    """A point of `size` coordinates near the minimum."""
    return (rng.uniform(0.5, 1.5, size),)


def plain_array(x, xp=np):
    """Whole-array form."""
    return xp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def plain_scalar(x):
    """Scalar-loop form; `x` is any sequence."""
    total = 0.0
    for i in range(len(x) - 1):
        valley = x[i + 1] - x[i] * x[i]
        slope = 1.0 - x[i]
        total = total + 100.0 * (valley * valley)
        total = total + slope * slope
    return total


@numba.njit
def primal(x):
    """Value of the chained Rosenbrock function."""
    total = 0.0
    for i in range(x.size - 1):
        valley = x[i + 1] - x[i] * x[i]
        slope = 1.0 - x[i]
        total += 100.0 * (valley * valley)
        total += slope * slope
    return total


@numba.njit
def gradient(x):
    """Value and gradient; the terms are independent, so one pass does both and stores nothing."""
    total, valley_bar_before = 0.0, 0.0
    x_bar = np.empty(x.size)
    for i in range(x.size - 1):
        valley = x[i + 1] - x[i] * x[i]
        slope = 1.0 - x[i]
        total += 100.0 * (valley * valley)
        total += slope * slope
        valley_bar = 200.0 * valley
        x_bar[i] = valley_bar_before - 2.0 * (x[i] * valley_bar + slope)
        valley_bar_before = valley_bar
    x_bar[x.size - 1] = valley_bar_before
    return total, x_bar


def n_operations(args):
    """Arithmetic operations of one primal."""
    return OPERATIONS_PER_TERM * (len(args[0]) - 1)

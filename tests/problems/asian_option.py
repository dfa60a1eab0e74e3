"""An arithmetic Asian call by Monte Carlo under geometric Brownian motion: its price and its greeks.

The payoff max(average - strike, 0) has its kink where the average equals the strike, which has probability 0.

`path` is one discounted payoff, of one row of normals; `primal` is their mean.
P. Glasserman, Monte Carlo Methods in Financial Engineering, Springer 2003, sections 3.2 and 7.2.
"""

import math

import numba
import numpy as np

N_STEPS = 100
MATURITY = 1.0
STEP_LENGTH = MATURITY / N_STEPS
ROOT_STEP = math.sqrt(STEP_LENGTH)
OPERATIONS_PER_STEP = 5
OPERATIONS_PER_PATH = OPERATIONS_PER_STEP * N_STEPS + 11


def make(size, rng):
    """Spot, volatility, interest rate and strike, and the standard normals (size, 100) of `size` paths (issue: 10,000)."""
    return np.array([100.0, 0.3, 0.04, 100.0]) * rng.uniform(0.98, 1.02, 4), rng.standard_normal((size, N_STEPS))


def plain_path(x, z, xp=np):
    """Discounted payoff of one path; `x` is (spot, volatility, rate, strike), and `z` any sequence of its normals."""
    spot, volatility, rate, strike = (x[i] for i in range(4))
    drift = (rate - 0.5 * volatility * volatility) * STEP_LENGTH
    scale = volatility * ROOT_STEP
    total = 0.0
    for k in range(N_STEPS):
        spot = spot * xp.exp(drift + scale * z[k])
        total = total + spot
    return xp.exp(-MATURITY * rate) * xp.maximum(total / N_STEPS - strike, 0.0)


def plain_scalar(x, normals, xp=np):
    """Mean over the paths, one after the other."""
    total = 0.0
    for z in normals:
        total = total + plain_path(x, z, xp)
    return total / len(normals)


def plain_array(x, normals, xp=np):
    """Mean over the paths, whole arrays."""
    spot, volatility, rate, strike = (x[i] for i in range(4))
    drift = (rate - 0.5 * volatility * volatility) * STEP_LENGTH
    spots = spot * xp.exp(xp.cumsum(drift + volatility * ROOT_STEP * normals, axis=1))
    return xp.exp(-MATURITY * rate) * xp.mean(xp.maximum(xp.mean(spots, axis=1) - strike, 0.0))


@numba.njit
def path(x, z):
    """Discounted payoff of one path."""
    spot, volatility, rate, strike = x[0], x[1], x[2], x[3]
    drift = (rate - 0.5 * volatility * volatility) * STEP_LENGTH
    scale = volatility * ROOT_STEP
    total = 0.0
    for k in range(N_STEPS):
        spot *= np.exp(drift + scale * z[k])
        total += spot
    return np.exp(-MATURITY * rate) * max(total / N_STEPS - strike, 0.0)


@numba.njit
def primal(x, normals):
    """Price: the mean of the discounted payoffs."""
    total = 0.0
    for row in range(normals.shape[0]):
        total += path(x, normals[row])
    return total / normals.shape[0]


@numba.njit
def gradient(x, normals):
    """Value and gradient; stores the spots of one path, and leaves out the paths that end without a payoff."""
    spot, volatility, rate, strike = x[0], x[1], x[2], x[3]
    n = normals.shape[0]
    drift = (rate - 0.5 * volatility * volatility) * STEP_LENGTH
    scale = volatility * ROOT_STEP
    spots = np.empty(N_STEPS)
    payoffs, n_paid, spots_sum, drift_bar, scale_bar = 0.0, 0, 0.0, 0.0, 0.0
    for row in range(n):
        current, total = spot, 0.0
        for k in range(N_STEPS):
            current *= np.exp(drift + scale * normals[row, k])
            spots[k] = current
            total += current
        if total > N_STEPS * strike:
            payoffs += total / N_STEPS - strike
            n_paid += 1
            spots_sum += total
            rest = 0.0  # the sum of the spots from step k on: the adjoint of the exponent there
            for k in range(N_STEPS - 1, -1, -1):
                rest += spots[k]
                drift_bar += rest
                scale_bar += rest * normals[row, k]
    discount = np.exp(-MATURITY * rate) / n
    each = discount / N_STEPS
    x_bar = np.empty(4)
    x_bar[0] = each * spots_sum / spot
    x_bar[1] = each * (scale_bar * ROOT_STEP - drift_bar * volatility * STEP_LENGTH)
    x_bar[2] = each * drift_bar * STEP_LENGTH - MATURITY * discount * payoffs
    x_bar[3] = -discount * n_paid
    return discount * payoffs, x_bar


def n_operations(args):
    """Arithmetic operations of one primal; exp and max count as one each."""
    return (OPERATIONS_PER_PATH + 1) * len(args[1]) + 1

"""Monte Carlo: an Asian option, and a European one in Heston's model. The random numbers are arguments, so they are passive."""

import math

import numba
import numpy as np


@numba.njit
def asian_option(market, strike, maturity, normals):
    """Price of an arithmetic Asian call; `market` is (spot, rate, volatility), `normals` (paths, steps)."""
    spot, rate, volatility = market
    n_paths, n_steps = normals.shape
    dt = maturity / n_steps
    drift = (rate - 0.5 * volatility**2) * dt
    diffusion = volatility * math.sqrt(dt)
    total = 0.0
    for path in range(n_paths):
        price, mean = spot, 0.0
        for step in range(n_steps):
            price *= math.exp(drift + diffusion * normals[path, step])
            mean += price / n_steps
        if mean > strike:
            total += mean - strike
    return math.exp(-rate * maturity) * total / n_paths


def make_asian_option(size, rng):
    """`size` paths of 8 steps; the market is a tuple of floats."""
    return np.array([100.0, 0.03, 0.25]), 98.0, 1.0, rng.standard_normal((size, 8))


# S. L. Heston, Rev. Financial Studies 6(2), 1993; full truncation: R. Lord, R. Koekkoek, D. van Dijk, Quant. Finance 10(2), 2010.


@numba.njit
def heston(parameters, spot, strike, maturity, normals):
    """Price of a European call; (v, kappa, theta, xi, rho) and `normals` (paths, steps, 2)."""
    start, kappa, theta, xi, rho = parameters
    n_paths, n_steps = normals.shape[:2]
    dt = maturity / n_steps
    root_dt = math.sqrt(dt)
    across = math.sqrt(1.0 - rho * rho)
    total = 0.0
    for path in range(n_paths):
        log_price, variance = math.log(spot), start
        for z, w in normals[path]:
            truncated = max(variance, 0.0)
            volatility = math.sqrt(truncated)
            log_price += volatility * root_dt * z - 0.5 * truncated * dt
            variance += kappa * (theta - truncated) * dt + xi * volatility * root_dt * (rho * z + across * w)
        total += max(math.exp(log_price) - strike, 0.0)
    return total / n_paths


def make_heston(size, rng):
    """`size` paths of 10 steps, some of which meet the truncation: Feller's condition does not hold."""
    return np.array([0.05, 1.5, 0.05, 0.6, -0.6]), 100.0, 100.0, 1.0, rng.standard_normal((size, 10, 2))

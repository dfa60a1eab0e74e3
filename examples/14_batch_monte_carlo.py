"""Price an Asian option and all its greeks by Monte Carlo, thousands of paths side by side in the lanes of the processor.

The derivative is taken path by path: the mean of the gradients of a payoff is the gradient of its mean. One path is Numba code that knows nothing of
derivatives; its loop is serial, for each price follows from the one before, so lanes are filled with paths instead of steps.

Run: python examples/14_batch_monte_carlo.py
"""

import math
import time

import numba
import numpy as np

import tapejit as tj

# An arithmetic average call. P. Glasserman, Monte Carlo Methods in Financial Engineering, Springer, 2003, sections 3.2 and 7.2.
N_STEPS, N_PATHS = 100, 20_000
MATURITY = 1.0
MARKET = np.array([100.0, 0.3, 0.04, 100.0])
NAMES = ("spot: delta", "volatility: vega", "rate: rho", "strike")


@numba.njit
def payoff(market, normals):
    """Discounted payoff of one path; `market` is (spot, volatility, rate, strike), `normals` one number a step."""
    spot, volatility, rate, strike = market
    dt = MATURITY / normals.size
    drift, scale = (rate - 0.5 * volatility**2) * dt, volatility * math.sqrt(dt)
    total = 0.0
    for k in range(normals.size):
        spot *= math.exp(drift + scale * normals[k])
        total += spot
    return math.exp(-rate * MATURITY) * max(total / normals.size - strike, 0.0)


@numba.njit
def price(market, normals):
    """Mean of the payoffs over rows of normals."""
    total = 0.0
    for row in range(normals.shape[0]):
        total += payoff(market, normals[row])
    return total / normals.shape[0]


def seconds(call, repeats):
    """Least time of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


normals = np.random.default_rng(1).standard_normal((N_PATHS, N_STEPS))
rows = np.tile(MARKET, (N_PATHS, 1))  # the inputs of each path: the same here, but they may differ

fast = tj.compile(payoff, MARKET, normals[0])
print(fast)
start = time.perf_counter()
payoffs, gradients = fast.batch(rows, args=(normals,))
print(f"first batch, compiling included: {time.perf_counter() - start:.2f} s")

# Price and greeks with their standard errors.
value, greeks = payoffs.mean(), gradients.mean(axis=0)
errors = gradients.std(axis=0) / math.sqrt(N_PATHS)
print(f"price {value:.3f} +- {payoffs.std() / math.sqrt(N_PATHS):.3f}, from {N_PATHS:,} paths of {N_STEPS} steps")
for name, greek, error in zip(NAMES, greeks, errors, strict=True):
    print(f"  by {name:17s} {greek:8.4f} +- {error:.4f}")

# Every row is what one call gives; the price is the plain function's; the greeks agree with differences at the same paths.
for row in (0, 1, N_PATHS - 1):
    one, gradient = fast.value_and_grad(MARKET, args=(normals[row],))
    assert payoffs[row] == one  # to the bit; adjoints may be added up in another order
    np.testing.assert_allclose(gradients[row], gradient, rtol=1e-12)
assert abs(value - price(MARKET, normals)) < 1e-12 * value
for i in range(4):
    h = 1e-4 * MARKET[i]
    ahead, behind = MARKET.copy(), MARKET.copy()
    ahead[i] += h
    behind[i] -= h
    difference = (price(ahead, normals) - price(behind, normals)) / (2.0 * h)
    assert abs(greeks[i] - difference) < 1e-3 * max(1.0, abs(difference))
# Euler's theorem: the price is homogeneous in spot and strike.
assert abs(np.dot(greeks[[0, 3]], MARKET[[0, 3]]) - value) < 1e-10 * value

# What it costs.
n_few = 500
primal = seconds(lambda: price(MARKET, normals), 5)
batched = seconds(lambda: fast.batch(rows, args=(normals,)), 5)
singly = N_PATHS / n_few * seconds(lambda: [fast.value_and_grad(MARKET, args=(z,)) for z in normals[:n_few]], 2)
recorded = N_PATHS / n_few * seconds(lambda: tj.value_and_grad(price)(MARKET, normals[:n_few]), 2)
print(f"all payoffs and gradients; the payoffs alone take {1e3 * primal:.1f} ms in Numba:")
for what, spent in (
    ("batch, one thread", batched),
    ("compiled, one call a path, extrapolated", singly),
    ("recorded, extrapolated", recorded),
):
    print(f"  {what:42s} {1e3 * spent:8.1f} ms  {spent / batched:6.1f} times as long")
assert recorded / batched > 1.5

# A scenario a row: the price and the delta along a range of spots, with the same paths at each.
spots = np.linspace(80.0, 120.0, 9)
scenarios = np.repeat([[spot, *MARKET[1:]] for spot in spots], 1000, axis=0)
payoffs, gradients = fast.batch(scenarios, args=(np.tile(normals[:1000], (spots.size, 1)),))
prices, deltas = payoffs.reshape(spots.size, -1).mean(axis=1), gradients[:, 0].reshape(spots.size, -1).mean(axis=1)
for spot, one, delta in zip(spots, prices, deltas, strict=True):
    print(f"  spot {spot:5.1f}: price {one:6.2f}, delta {delta:.3f}")
assert (np.diff(prices) > 0).all() and (np.diff(deltas) > 0).all()

"""Fit the Lotka-Volterra equations to a record of hares and lynxes, through an RK4 loop in plain Python.

The main example: it prints the loss, a gradient check and the speed-up over pure Python, and saves
`hare_and_lynx.png` in the current directory, or in $TAPEJIT_EXAMPLES_OUT if that is set.

Run: python examples/07_hare_and_lynx.py
"""

import math
import os
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window: save the picture only
import matplotlib.pyplot as plt
import numpy as np

import tapejit as tj

# Pelts traded by the Hudson's Bay Company, in thousands. P. Howard, "Modeling Basics", Texas A&M, 2009, as in
# B. Carpenter, "Predator-Prey Population Dynamics: the Lotka-Volterra model in Stan", Stan case study, 2018.
YEARS = list(range(1900, 1921))
# fmt: off
HARE = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1,
        40.3, 57, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]
LYNX = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4,
        8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
# fmt: on
STEPS_PER_YEAR = 10
NAMES = ("birth", "predation", "death", "growth", "hare in 1900", "lynx in 1900")


# The model: nothing here knows that it will be differentiated.


def rates(hare, lynx, birth, predation, death, growth):
    """Time derivatives of both populations, per year."""
    return (birth - predation * lynx) * hare, (growth * hare - death) * lynx


def rk4_step(hare, lynx, h, parameters):
    """Populations a time `h` later, by the classical Runge-Kutta method."""
    hare_1, lynx_1 = rates(hare, lynx, *parameters)
    hare_2, lynx_2 = rates(hare + h / 2 * hare_1, lynx + h / 2 * lynx_1, *parameters)
    hare_3, lynx_3 = rates(hare + h / 2 * hare_2, lynx + h / 2 * lynx_2, *parameters)
    hare_4, lynx_4 = rates(hare + h * hare_3, lynx + h * lynx_3, *parameters)
    return (
        hare + h / 6 * (hare_1 + 2 * hare_2 + 2 * hare_3 + hare_4),
        lynx + h / 6 * (lynx_1 + 2 * lynx_2 + 2 * lynx_3 + lynx_4),
    )


def loss(theta, m=np):
    """Sum of squared log residuals. `theta` holds logarithms, so that all six parameters stay positive.

    `m` is where `exp` and `log` come from: NumPy to record, `math` to time plain Python floats.
    """
    *parameters, hare, lynx = [m.exp(t) for t in theta]
    total = 0.0
    for year in range(len(YEARS)):
        if year > 0:
            for _ in range(STEPS_PER_YEAR):
                hare, lynx = rk4_step(hare, lynx, 1 / STEPS_PER_YEAR, parameters)
        total = total + (m.log(hare) - math.log(HARE[year])) ** 2 + (m.log(lynx) - math.log(LYNX[year])) ** 2
    return total


def central_differences(theta, step=1e-6):
    """Gradient from 2 n evaluations of the plain float code."""
    gradient = []
    for i, t in enumerate(theta):
        above, below = list(theta), list(theta)
        above[i], below[i] = t + step, t - step
        gradient.append((loss(above, math) - loss(below, math)) / (2 * step))
    return np.array(gradient)


def seconds(call, repeats):
    """Best time of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


# Record once at a rough guess.
theta_0 = np.log([0.5, 0.02, 0.9, 0.02, 30.0, 4.0])
start = time.perf_counter()
tape = tj.record(loss, theta_0)
elapsed = time.perf_counter() - start
print(f"recorded {tape.n_slots} slots, {tape.nbytes / 1024:.0f} KiB, in {1e3 * elapsed:.0f} ms")

# Check the gradient: reverse against forward mode, and both against differences.
tj.testing.check_grads(loss, (theta_0,))
value, gradient = tape.value_and_grad(theta_0)
differences = central_differences(theta_0.tolist())
error = np.abs(gradient - differences).max() / np.abs(differences).max()
print(f"gradient check: passed; central differences agree to {error:.1e}")
assert abs(value - loss(theta_0.tolist(), math)) < 1e-10 * value
assert error < 1e-6

# Compare speeds on the same function: a gradient from differences in pure Python, and one from the tape.
plain = seconds(lambda: central_differences(theta_0.tolist()), repeats=10)
replayed = seconds(lambda: tape.value_and_grad(theta_0), repeats=100)
print(f"one gradient: central differences in pure Python {1e3 * plain:.2f} ms, tape {1e3 * replayed:.3f} ms")
print(f"speed-up over pure Python: {plain / replayed:.0f} times")
assert plain / replayed > 5

# Fit, on the same tape.
path = [theta_0]
fit = tj.minimize(tape, theta_0, callback=lambda theta: path.append(np.array(theta)))
losses = [tape.value(theta) for theta in path]
print(f"loss {losses[0]:.4f} -> {fit.fun:.6f} in {fit.nit} iterations, {fit.nfev} gradients")
for name, parameter in zip(NAMES, np.exp(fit.x), strict=True):
    print(f"  {name:13s} {parameter:8.4f}")
# What scipy.optimize.least_squares finds. Carpenter's posterior means are close: 0.55, 0.028, 0.80 and 0.024.
assert abs(fit.fun - 2.0186618) < 1e-6
np.testing.assert_allclose(np.exp(fit.x), [0.54016, 0.027165, 0.79639, 0.023695, 34.602, 5.8445], rtol=1e-3)

# Draw the convergence and the fit.
*parameters, hare, lynx = np.exp(fit.x).tolist()
curve = [(hare, lynx)]
for _ in range(STEPS_PER_YEAR * (len(YEARS) - 1)):
    curve.append(rk4_step(*curve[-1], 1 / STEPS_PER_YEAR, parameters))
times = np.linspace(YEARS[0], YEARS[-1], len(curve))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1, 2))
left.semilogy(losses, ".-", color="black")
left.set(xlabel="L-BFGS-B iteration", ylabel="sum of squared log residuals", title="Convergence")
hares, lynxes = zip(*curve, strict=True)
for name, data, simulated, color in (("hare", HARE, hares, "C0"), ("lynx", LYNX, lynxes, "C1")):
    right.plot(YEARS, data, "o", color=color)
    right.plot(times, simulated, color=color, label=name)
right.set(xlabel="year", ylabel="pelts, thousands", title="Hudson's Bay Company pelts and the fitted model")
right.set_xticks(YEARS[::5])
right.legend()
picture = Path(os.environ.get("TAPEJIT_EXAMPLES_OUT", ".")) / "hare_and_lynx.png"
figure.savefig(picture, dpi=120)
print(f"saved {picture}")

"""Find the first state of a chaotic atmosphere from observations over 100,000 time steps, within 64 MiB of memory.

A twin experiment with Lorenz-96, 40 variables: a known trajectory of two units of time, ten days, is observed with noise, every second variable
only; its first state is found again by 4D-Var. A tape of the whole trajectory would need about 3 GB. `tj.loop` keeps as many states as
the budget has room for and computes the others again. Saves `4dvar_within_64_mib.png` in the current directory, or in $TAPEJIT_EXAMPLES_OUT.

Run: python examples/15_lorenz96_4dvar_within_64_mib.py
"""

import os
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window: save the picture only
import matplotlib.pyplot as plt
import numba
import numpy as np
from scipy.optimize import minimize

import tapejit as tj

N, FORCING = 40, 8.0
N_STEPS, DT = 100_000, 2e-5
EVERY = 2_500  # steps from one observation to the next
OBSERVATION_ERROR, BACKGROUND_ERROR = 0.2, 0.3
BUDGET = "64 MiB"


@numba.njit
def tendency(x):
    """dx/dt, on a circle. E. N. Lorenz, Predictability: a problem partly solved, ECMWF, 1996."""
    n = x.size
    rate = np.empty(n)
    for i in range(n):
        rate[i] = (x[(i + 1) % n] - x[i - 2]) * x[i - 1] - x[i] + FORCING
    return rate


@numba.njit
def rk4(x):
    """One Runge-Kutta step."""
    a = tendency(x)
    b = tendency(x + 0.5 * DT * a)
    c = tendency(x + 0.5 * DT * b)
    d = tendency(x + DT * c)
    return x + DT / 6.0 * (a + 2.0 * (b + c) + d)


@numba.njit
def step(state, observation):
    """Advance the state; add to the misfit, with weight 0 where nothing is observed."""
    x, misfit = state
    weight, observed = observation
    x = rk4(x)
    for i in range(observed.size):
        departure = x[2 * i] - observed[i]
        misfit += weight * departure * departure
    return x, misfit


def cost(start, background, observations, **options):
    """Misfit of a start (n,) to the background and of its trajectory to the observations, as a negative logarithm of the posterior."""
    _, misfit = tj.loop(step, (start, 0.0), N_STEPS, inputs=observations, **options)
    departure = (start - background) / BACKGROUND_ERROR
    return 0.5 * misfit / OBSERVATION_ERROR**2 + 0.5 * np.sum(departure**2)


@numba.njit
def trajectory(x, n_steps, every):
    """States (n_steps / every, n)."""
    states = np.empty((n_steps // every, x.size))
    for s in range(n_steps):
        x = rk4(x)
        if (s + 1) % every == 0:
            states[s // every] = x
    return states


def main():
    rng = np.random.default_rng(3)
    truth = trajectory(FORCING + rng.normal(size=N), 500_000, 500_000)[-1]  # ten units of time: on the attractor
    seen = trajectory(truth, N_STEPS, EVERY)[:, ::2]
    weights, rows = np.zeros(N_STEPS), np.zeros((N_STEPS, N // 2))
    weights[EVERY - 1 :: EVERY] = 1.0
    rows[EVERY - 1 :: EVERY] = seen + OBSERVATION_ERROR * rng.normal(size=seen.shape)
    background = truth + BACKGROUND_ERROR * rng.normal(size=N)

    def f(start):
        return cost(start, background, (weights, rows), memory=BUDGET)

    print(tj.plan(f, background))
    begin = time.perf_counter()
    value, gradient = tj.value_and_grad(f)(background)
    print(f"first gradient, with compiling: {time.perf_counter() - begin:.1f} s")
    begin = time.perf_counter()
    tj.value_and_grad(f)(background)
    print(f"a gradient: {time.perf_counter() - begin:.2f} s")

    direction, h = rng.normal(size=N), 1e-5
    difference = (f(background + h * direction) - f(background - h * direction)) / (2.0 * h)
    assert abs(gradient @ direction - difference) < 1e-5 * abs(difference), "the gradient agrees with a difference"

    within_32 = tj.grad(lambda start: cost(start, background, (weights, rows), memory="32 MiB"))(background)
    assert np.array_equal(within_32, gradient), "a budget changes time, not the result"
    print(f"within half of it, the same bits; {tj.memory_report().plan.advances / N_STEPS:.2f} advances a step")

    costs = []

    def objective(start):
        value, gradient = tj.value_and_grad(f)(start)
        costs.append(value)
        return value, gradient

    best = minimize(objective, background, jac=True, method="L-BFGS-B", options={"maxiter": 60})
    print(tj.memory_report())
    before, after = (np.sqrt(np.mean((x - truth) ** 2)) for x in (background, best.x))
    print(f"cost {costs[0]:.1f} -> {best.fun:.1f}; error of the first state {before:.3f} -> {after:.3f}")
    assert after < 0.75 * before and best.fun < 0.01 * costs[0]
    report = tj.memory_report()
    assert report.plan.nbytes <= report.budget

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    left.semilogy(costs, "o-", markersize=3)
    left.set(xlabel="evaluation", ylabel="cost", title="L-BFGS-B")
    times = EVERY * DT * np.arange(1, N_STEPS // EVERY + 1)
    for x, style, label in ((truth, "k-", "truth"), (background, "C1--", "first guess"), (best.x, "C0-", "found")):
        right.plot(times, trajectory(x, N_STEPS, EVERY)[:, 1], style, label=label)
    right.set(xlabel="time", title="a variable that is not observed")
    right.legend()
    figure.tight_layout()
    path = Path(os.environ.get("TAPEJIT_EXAMPLES_OUT", ".")) / "4dvar_within_64_mib.png"
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()

"""Long loops for checkpointing: Lorenz-96, the heat equation, and an LSTM over a long sequence. Each is a step, not a whole problem."""

import numba
import numpy as np

FORCING = 8.0
STEP_LENGTH = 1e-5


@numba.njit
def tendency(x):
    """dx/dt of Lorenz-96, on a circle."""
    n = x.size
    rate = np.empty(n)
    for i in range(n):
        rate[i] = (x[(i + 1) % n] - x[i - 2]) * x[i - 1] - x[i] + FORCING
    return rate


@numba.njit
def lorenz96_step(x):
    """One Runge-Kutta step: about 1,200 operations for n = 40."""
    h = STEP_LENGTH
    a = tendency(x)
    b = tendency(x + 0.5 * h * a)
    c = tendency(x + 0.5 * h * b)
    d = tendency(x + h * c)
    return x + h / 6.0 * (a + 2.0 * (b + c) + d)


def lorenz96_start(n=40):
    """A state on the way to the attractor."""
    return FORCING + np.random.default_rng(0).normal(size=n)


def heat_step(u, conductivity):
    """One explicit step of the heat equation, with fixed ends."""
    flux = conductivity * (u[1:] - u[:-1])
    return np.concatenate([u[:1], u[1:-1] + 0.2 * (flux[1:] - flux[:-1]), u[-1:]])


def lstm_step(state, x, weights, biases):
    """One step of an LSTM; weights (4 n, n + m), biases (4 n,)."""
    h, c = state
    n = h.size
    z = weights @ np.concatenate([h, x]) + biases
    i, f, o = (1.0 / (1.0 + np.exp(-z[k * n : (k + 1) * n])) for k in range(3))
    c = f * c + i * np.tanh(z[3 * n :])
    return o * np.tanh(c), c

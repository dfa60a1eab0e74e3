"""Time series: the likelihoods of a Kalman filter and of a GARCH model, and an LSTM network."""

import math

import numba
import numpy as np

LOG_TWO_PI = math.log(2.0 * math.pi)

# The local linear trend model (A. C. Harvey, Forecasting, Structural Time Series Models and the Kalman Filter, 1989):
# a level with a slope, observed with noise.


@numba.njit
def kalman_scalar(log_variances, observed):
    """Log-likelihood of `observed` (n,); the variances of level, slope and observation. Written out for two states."""
    level_variance, slope_variance, noise = np.exp(log_variances)
    level, slope = observed[0], 0.0
    p00, p01, p11 = 10.0, 0.0, 1.0
    likelihood = 0.0
    for y in observed[1:]:
        level += slope
        p00 += 2.0 * p01 + p11 + level_variance
        p01 += p11
        p11 += slope_variance

        innovation = y - level
        variance = p00 + noise
        likelihood -= 0.5 * (LOG_TWO_PI + math.log(variance) + innovation * innovation / variance)

        gain_level, gain_slope = p00 / variance, p01 / variance
        level += gain_level * innovation
        slope += gain_slope * innovation
        p11 -= gain_slope * p01
        p01 -= gain_level * p01
        p00 -= gain_level * p00
    return likelihood


@numba.njit
def kalman_matrices(log_variances, observed):
    """The same with matrices, and `observed` (n, k): k instruments that see the level with the same noise."""
    n_instruments = observed.shape[1]
    transition = np.array([[1.0, 1.0], [0.0, 1.0]])
    instruments = np.zeros((n_instruments, 2))
    instruments[:, 0] = 1.0
    process = np.diag(np.exp(log_variances[:2]))
    noise = np.exp(log_variances[2]) * np.eye(n_instruments)

    state = np.array([observed[0].mean(), 0.0])
    covariance = np.diag(np.array([10.0, 1.0]))
    likelihood = 0.0
    for t in range(1, observed.shape[0]):
        state = transition @ state
        covariance = transition @ covariance @ transition.T + process

        innovation = observed[t] - instruments @ state
        spread = instruments @ covariance @ instruments.T + noise
        weighted = np.linalg.solve(spread, innovation)
        likelihood -= 0.5 * (n_instruments * LOG_TWO_PI + math.log(np.linalg.det(spread)) + innovation @ weighted)

        gain = covariance @ instruments.T @ np.linalg.inv(spread)
        state = state + gain @ innovation
        covariance = covariance - gain @ instruments @ covariance
    return likelihood


def make_kalman_scalar(size, rng):
    """Log variances and a random walk of `size` points."""
    return np.array([-1.0, -3.0, -0.5]), np.cumsum(rng.standard_normal(size))


def make_kalman_matrices(size, rng):
    """The same seen by two instruments."""
    log_variances, walk = make_kalman_scalar(size, rng)
    return log_variances, walk[:, None] + 0.7 * rng.standard_normal((size, 2))


# GARCH(1, 1): T. Bollerslev, J. Econometrics 31(3), 1986.


@numba.njit
def garch(parameters, returns):
    """Negative log-likelihood; mean, log omega, and alpha and beta as shares of a persistence below 1."""
    mean, omega = parameters[0], math.exp(parameters[1])
    persistence = 1.0 / (1.0 + math.exp(-parameters[2]))
    alpha = persistence / (1.0 + math.exp(-parameters[3]))
    beta = persistence - alpha
    variance = np.var(returns)
    total = 0.0
    for r in returns:
        shock = r - mean
        total += 0.5 * (LOG_TWO_PI + math.log(variance) + shock**2 / variance)
        variance = omega + alpha * shock**2 + beta * variance
    return total


def make_garch(size, rng):
    """Plausible parameters and `size` fat-tailed returns."""
    return np.array([0.05, -2.0, 2.0, -1.5]), rng.standard_t(5, size)


# LSTM: S. Hochreiter and J. Schmidhuber, Neural Computation 9(8), 1997, with forget gates.


@numba.njit
def sigmoid(x):
    """1 / (1 + exp(-x)), of a scalar or an array."""
    return 1.0 / (1.0 + np.exp(-x))


@numba.njit
def lstm_loops(weights, biases, readout, inputs, targets):
    """Mean squared error of a sequence-to-sequence network; the gates in rows of `weights` (4 h, d + h)."""
    n_steps, n_inputs = inputs.shape
    n_hidden = readout.size
    hidden, cell, gates = np.zeros(n_hidden), np.zeros(n_hidden), np.empty(4 * n_hidden)
    loss = 0.0
    for t in range(n_steps):
        for row in range(4 * n_hidden):
            score = biases[row]
            for column in range(n_inputs):
                score += weights[row, column] * inputs[t, column]
            for column in range(n_hidden):
                score += weights[row, n_inputs + column] * hidden[column]
            gates[row] = math.tanh(score) if row >= 3 * n_hidden else sigmoid(score)
        output = 0.0
        for k in range(n_hidden):
            cell[k] = gates[n_hidden + k] * cell[k] + gates[k] * gates[3 * n_hidden + k]
            hidden[k] = gates[2 * n_hidden + k] * math.tanh(cell[k])
            output += readout[k] * hidden[k]
        loss += (output - targets[t]) ** 2
    return loss / n_steps


@numba.njit
def lstm_matrices(weights, biases, readout, inputs, targets):
    """The same with matrix products."""
    n_inputs, n_hidden = inputs.shape[1], readout.size
    from_input = np.ascontiguousarray(weights[:, :n_inputs])
    from_hidden = np.ascontiguousarray(weights[:, n_inputs:])
    hidden, cell = np.zeros(n_hidden), np.zeros(n_hidden)
    loss = 0.0
    for t in range(inputs.shape[0]):
        scores = (from_input @ inputs[t] + from_hidden @ hidden + biases).reshape(4, n_hidden)
        gates = sigmoid(scores[:3])
        cell = gates[1] * cell + gates[0] * np.tanh(scores[3])
        hidden = gates[2] * np.tanh(cell)
        loss += (readout @ hidden - targets[t]) ** 2
    return loss / inputs.shape[0]


def make_lstm(size, rng):
    """Three hidden units, two inputs, `size` steps."""
    weights, biases, readout = rng.standard_normal((12, 5)), rng.standard_normal(12), rng.standard_normal(3)
    return weights, biases, readout, rng.standard_normal((size, 2)), rng.standard_normal(size)

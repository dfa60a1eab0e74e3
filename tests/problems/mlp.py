"""A 2-10-10-1 network with tanh units on two moons: the mean squared error as a function of one flat vector.

The 151 parameters are laid out layer by layer, each as its weights (inputs, outputs) in rows, then its
biases.
"""

import numba
import numpy as np

WIDTH = 10
SECOND = 3 * WIDTH  # where the second layer starts: after 2 x 10 weights and 10 biases
LAST = SECOND + WIDTH * WIDTH + WIDTH
N_PARAMS = LAST + WIDTH + 1
OPERATIONS_PER_POINT = 5 * WIDTH + (2 * WIDTH + 1) * WIDTH + 2 * WIDTH + 3


def make(size, rng):
    """Parameters, `size` points on two noisy half-moons, and targets of -1 and 1."""
    angle = rng.uniform(0.0, np.pi, size)
    upper = rng.random(size) < 0.5
    first = np.where(upper, np.cos(angle), 1.0 - np.cos(angle))
    second = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    points = np.stack([first, second], axis=1) + 0.1 * rng.standard_normal((size, 2))
    return 0.4 * rng.standard_normal(N_PARAMS), points, np.where(upper, 1.0, -1.0)


def plain_array(params, points, targets, xp=np):
    """Whole-array form."""
    weights_1 = xp.reshape(params[: 2 * WIDTH], (2, WIDTH))
    weights_2 = xp.reshape(params[SECOND : SECOND + WIDTH * WIDTH], (WIDTH, WIDTH))
    hidden_1 = xp.tanh(points @ weights_1 + params[2 * WIDTH : SECOND])
    hidden_2 = xp.tanh(hidden_1 @ weights_2 + params[LAST - WIDTH : LAST])
    residual = hidden_2 @ params[LAST : LAST + WIDTH] + params[LAST + WIDTH] - targets
    return xp.mean(residual * residual)


def plain_scalar(params, points, targets, xp=np):
    """Scalar-loop form; `params`, `points` and `targets` are any sequences."""
    total = 0.0
    for point, target in zip(points, targets, strict=True):
        hidden_1 = []
        for k in range(WIDTH):
            score = params[2 * WIDTH + k] + params[k] * point[0]
            hidden_1.append(xp.tanh(score + params[WIDTH + k] * point[1]))
        output = params[LAST + WIDTH]
        for k in range(WIDTH):
            score = params[LAST - WIDTH + k]
            for j in range(WIDTH):
                score = score + params[SECOND + WIDTH * j + k] * hidden_1[j]
            output = output + params[LAST + k] * xp.tanh(score)
        residual = output - target
        total = total + residual * residual
    return total / len(targets)


@numba.njit
def forward_point(params, point, hidden_1, hidden_2):
    """Output of the network at one point; `hidden_1` and `hidden_2` (10,) are filled."""
    for k in range(WIDTH):
        score = params[2 * WIDTH + k] + params[k] * point[0]
        hidden_1[k] = np.tanh(score + params[WIDTH + k] * point[1])
    hidden_2[:] = params[LAST - WIDTH : LAST]
    for j in range(WIDTH):
        for k in range(WIDTH):
            hidden_2[k] += params[SECOND + WIDTH * j + k] * hidden_1[j]
    output = params[LAST + WIDTH]
    for k in range(WIDTH):
        hidden_2[k] = np.tanh(hidden_2[k])
        output += params[LAST + k] * hidden_2[k]
    return output


@numba.njit
def primal(params, points, targets):
    """Mean squared error."""
    hidden_1, hidden_2 = np.empty(WIDTH), np.empty(WIDTH)
    total = 0.0
    for row in range(targets.size):
        residual = forward_point(params, points[row], hidden_1, hidden_2) - targets[row]
        total += residual * residual
    return total / targets.size


@numba.njit
def pull_back_point(params, point, hidden_1, hidden_2, score_2_bar, output_bar, params_bar):
    """Accumulate the adjoints of the parameters from that of the output; `score_2_bar` (10,) is scratch."""
    params_bar[LAST + WIDTH] += output_bar
    for k in range(WIDTH):
        params_bar[LAST + k] += output_bar * hidden_2[k]
        score_2_bar[k] = output_bar * params[LAST + k] * (1.0 - hidden_2[k] * hidden_2[k])
        params_bar[LAST - WIDTH + k] += score_2_bar[k]
    for j in range(WIDTH):
        hidden_bar = 0.0
        for k in range(WIDTH):
            params_bar[SECOND + WIDTH * j + k] += score_2_bar[k] * hidden_1[j]
            hidden_bar += score_2_bar[k] * params[SECOND + WIDTH * j + k]
        score_1_bar = hidden_bar * (1.0 - hidden_1[j] * hidden_1[j])
        params_bar[2 * WIDTH + j] += score_1_bar
        params_bar[j] += score_1_bar * point[0]
        params_bar[WIDTH + j] += score_1_bar * point[1]


@numba.njit
def gradient(params, points, targets):
    """Value and gradient; the points are independent, so one pass does both and stores one point's units."""
    hidden_1, hidden_2, score_2_bar = np.empty(WIDTH), np.empty(WIDTH), np.empty(WIDTH)
    params_bar = np.zeros(params.size)
    total = 0.0
    for row in range(targets.size):
        residual = forward_point(params, points[row], hidden_1, hidden_2) - targets[row]
        total += residual * residual
        output_bar = 2.0 * residual / targets.size
        pull_back_point(params, points[row], hidden_1, hidden_2, score_2_bar, output_bar, params_bar)
    return total / targets.size, params_bar


def n_operations(args):
    """Arithmetic operations of one primal; tanh counts as one."""
    return OPERATIONS_PER_POINT * len(args[2]) + 1

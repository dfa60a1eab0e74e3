"""A Gaussian mixture with diagonal covariances: the negative log-likelihood of points in 10 dimensions under 25 components.

One flat vector holds the logits of the weights (25,), the means (25, 10) and the logarithms of the inverse standard deviations (25, 10).
Each log-sum-exp subtracts the largest of its terms, found by `max`, so that no branch depends on the data.

The objective of ADBench (F. Srajer et al., Optim. Methods Softw. 33, 2018), without its prior.
"""

import math

import numba
import numpy as np

D = 10
K = 25
MEANS = K  # where the means start
SCALES = K + K * D
N_PARAMS = K + 2 * K * D
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def make(size, rng):
    """Parameters (525,) and `size` points (issue: 1000) drawn around 25 centres."""
    centres = 2.0 * rng.standard_normal((K, D))
    points = centres[rng.integers(K, size=size)] + 0.7 * rng.standard_normal((size, D))
    means = centres + 0.3 * rng.standard_normal((K, D))
    return (
        np.concatenate([0.3 * rng.standard_normal(K), means.ravel(), 0.2 * rng.standard_normal(K * D)]),
        points,
    )


def log_sum_exp(x, axis, xp):
    """Logarithm of the sum of exponentials along an axis."""
    largest = xp.max(x, axis=axis)
    return xp.log(xp.sum(xp.exp(x - xp.expand_dims(largest, axis)), axis=axis)) + largest


def plain_array(params, points, xp=np):
    """Whole-array form: the squares expanded, so that the work is in two matrix products."""
    logits = params[:K]
    means, scales = xp.reshape(params[MEANS:SCALES], (K, D)), xp.reshape(params[SCALES:], (K, D))
    precision = xp.exp(2.0 * scales)
    weighted = precision * means
    offset = logits + xp.sum(scales, axis=1) - 0.5 * xp.sum(weighted * means, axis=1)
    scores = points @ xp.transpose(weighted) - (0.5 * points * points) @ xp.transpose(precision) + offset
    total = xp.sum(log_sum_exp(scores, 1, xp))
    return len(points) * (log_sum_exp(logits, 0, xp) + D * HALF_LOG_2PI) - total


def plain_scalar(params, points, xp=np):
    """Scalar-loop form; `params` and `points` are any sequences."""
    inverse = [xp.exp(params[SCALES + i]) for i in range(K * D)]
    offset = []
    for j in range(K):
        score = params[j]
        for i in range(D):
            score = score + params[SCALES + D * j + i]
        offset.append(score)
    total = 0.0
    for point in points:
        scores = []
        for j in range(K):
            squares = 0.0
            for i in range(D):
                z = inverse[D * j + i] * (point[i] - params[MEANS + D * j + i])
                squares = squares + z * z
            scores.append(offset[j] - 0.5 * squares)
        total = total + scalar_log_sum_exp(scores, xp)
    return len(points) * (scalar_log_sum_exp(params[:K], xp) + D * HALF_LOG_2PI) - total


def scalar_log_sum_exp(scores, xp):
    """Logarithm of the sum of exponentials of a sequence of numbers."""
    largest = scores[0]
    for score in scores[1:]:
        largest = xp.maximum(largest, score)
    total = 0.0
    for score in scores:
        total = total + xp.exp(score - largest)
    return largest + xp.log(total)


@numba.njit
def primal(params, points):
    """Negative log-likelihood."""
    inverse, offset, scores = np.empty((K, D)), np.empty(K), np.empty(K)
    largest_logit = params[0]
    for j in range(K):
        largest_logit = max(largest_logit, params[j])
        offset[j] = params[j]
        for i in range(D):
            offset[j] += params[SCALES + D * j + i]
            inverse[j, i] = np.exp(params[SCALES + D * j + i])
    weights = 0.0
    for j in range(K):
        weights += np.exp(params[j] - largest_logit)

    total = 0.0
    for row in range(points.shape[0]):
        largest = -np.inf
        for j in range(K):
            squares = 0.0
            for i in range(D):
                z = inverse[j, i] * (points[row, i] - params[MEANS + D * j + i])
                squares += z * z
            scores[j] = offset[j] - 0.5 * squares
            largest = max(largest, scores[j])
        mass = 0.0
        for j in range(K):
            mass += np.exp(scores[j] - largest)
        total += largest + np.log(mass)
    return points.shape[0] * (largest_logit + np.log(weights) + D * HALF_LOG_2PI) - total


@numba.njit
def gradient(params, points):
    """Value and gradient; the points are independent, so one pass does both and stores one point's scores and z.

    The components are innermost, copied to be contiguous: no sum runs along that loop, so it vectorises.
    """
    n = points.shape[0]
    means, inverse, offset = np.empty((D, K)), np.empty((D, K)), np.empty(K)
    largest_logit = params[0]
    for j in range(K):
        largest_logit = max(largest_logit, params[j])
        offset[j] = params[j]
        for i in range(D):
            offset[j] += params[SCALES + D * j + i]
            means[i, j] = params[MEANS + D * j + i]
            inverse[i, j] = np.exp(params[SCALES + D * j + i])
    weights = 0.0
    for j in range(K):
        weights += np.exp(params[j] - largest_logit)

    total = 0.0
    z, scores = np.empty((D, K)), np.empty(K)
    shares, first, second = np.zeros(K), np.zeros((D, K)), np.zeros((D, K))  # sums of r, r z and r z^2
    for row in range(n):
        for j in range(K):
            scores[j] = 0.0
        for i in range(D):
            for j in range(K):
                z[i, j] = inverse[i, j] * (points[row, i] - means[i, j])
                scores[j] += z[i, j] * z[i, j]
        largest = -np.inf
        for j in range(K):
            scores[j] = offset[j] - 0.5 * scores[j]
            largest = max(largest, scores[j])
        mass = 0.0
        for j in range(K):
            scores[j] = np.exp(scores[j] - largest)
            mass += scores[j]
        total += largest + np.log(mass)
        inverse_mass = 1.0 / mass
        for j in range(K):
            scores[j] *= inverse_mass
            shares[j] += scores[j]
        for i in range(D):
            for j in range(K):
                moment = scores[j] * z[i, j]
                first[i, j] += moment
                second[i, j] += moment * z[i, j]

    params_bar = np.empty(N_PARAMS)
    for j in range(K):
        params_bar[j] = n * np.exp(params[j] - largest_logit) / weights - shares[j]
        for i in range(D):
            params_bar[MEANS + D * j + i] = -first[i, j] * inverse[i, j]
            params_bar[SCALES + D * j + i] = second[i, j] - shares[j]
    return n * (largest_logit + np.log(weights) + D * HALF_LOG_2PI) - total, params_bar


def n_operations(args):
    """Arithmetic operations of one primal; exp, log and max count as one each."""
    return ((4 * D + 6) * K + 3) * len(args[1]) + K * (2 * D + 4) + 5

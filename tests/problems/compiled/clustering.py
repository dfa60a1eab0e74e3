"""Clusters: the objective of k-means, and the likelihood of a Gaussian mixture."""

import math

import numba
import numpy as np


@numba.njit
def k_means(centroids, points):
    """Mean squared distance of the points (n, d) from their nearest centroid (k, d)."""
    n_clusters = centroids.shape[0]
    total = 0.0
    sizes = np.zeros(n_clusters, dtype=np.int64)
    for i in range(points.shape[0]):
        nearest, best = -1, np.inf
        for k in range(n_clusters):
            square = 0.0
            for axis in range(points.shape[1]):
                square += (points[i, axis] - centroids[k, axis]) ** 2
            if square < best:
                nearest, best = k, square
        sizes[nearest] += 1
        total += best
    if sizes.sum() != points.shape[0]:
        raise ValueError("a point has no cluster")
    return total / points.shape[0]


def make_k_means(size, rng):
    """Three centroids among `size` points in the plane."""
    return rng.standard_normal((3, 2)), rng.standard_normal((size, 2))


# As in ADBench and GradBench: Q = exp(q) on the diagonal and l below it is the inverse of the Cholesky factor of a covariance.


@numba.njit
def log_sum_exp(x):
    """log(sum(exp(x))) without overflow."""
    largest = x.max()
    total = 0.0
    for value in x:
        total += math.exp(value - largest)
    return math.log(total) + largest


@numba.njit
def scale_rows(log_diagonal, below, centred, scaled):
    """Fill `scaled` (d,) with Q times `centred` (d,), Q lower triangular; `below` has its columns one after the other."""
    d = centred.size
    for i in range(d):
        scaled[i] = math.exp(log_diagonal[i]) * centred[i]
    position = 0
    for column in range(d):
        for row in range(column + 1, d):
            scaled[row] += below[position] * centred[column]
            position += 1


@numba.njit
def gaussian_mixture(log_weights, means, log_diagonals, belows, points):
    """Log-likelihood of the points (n, d), up to a constant; `means` (k, d), `log_diagonals` (k, d), `belows` (k, d (d - 1) / 2)."""
    n_clusters, d = means.shape
    scores, centred, scaled = np.empty(n_clusters), np.empty(d), np.empty(d)
    total = 0.0
    for point in points:
        for k in range(n_clusters):
            centred[:] = point - means[k]
            scale_rows(log_diagonals[k], belows[k], centred, scaled)
            scores[k] = log_weights[k] + np.sum(log_diagonals[k]) - 0.5 * np.sum(scaled**2)
        total += log_sum_exp(scores)
    return total - points.shape[0] * log_sum_exp(log_weights)


def make_gaussian_mixture(size, rng):
    """Three clusters of `size` points in space."""
    means, log_diagonals, belows = rng.standard_normal((3, 3, 3))
    return rng.standard_normal(3), means, 0.3 * log_diagonals, 0.3 * belows, rng.standard_normal((size, 3))

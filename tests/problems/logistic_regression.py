"""Logistic regression: the mean of softplus(-y X w), labels of -1 and 1, and an L2 penalty on the weights."""

import numba
import numpy as np

N_FEATURES = 100
PENALTY = 1e-3


def make(size, rng):
    """Weights, `size` rows of 100 features (issue: 20000) and noisy labels of a linear rule."""
    features = rng.standard_normal((size, N_FEATURES))
    rule = rng.standard_normal(N_FEATURES)
    labels = np.where(features @ rule + rng.standard_normal(size) > 0.0, 1.0, -1.0)
    return 0.1 * rng.standard_normal(N_FEATURES), features, labels


def plain(weights, features, labels, xp=np):
    """Mean loss over the rows, with the penalty."""
    loss = xp.mean(xp.logaddexp(0.0, -labels * (features @ weights)))
    return loss + 0.5 * PENALTY * xp.sum(weights * weights)


@numba.njit
def primal(weights, features, labels):
    """Mean loss over the rows, with the penalty."""
    margin = labels * (features @ weights)
    loss = 0.0
    for row in range(margin.size):
        loss += max(-margin[row], 0.0) + np.log1p(np.exp(-abs(margin[row])))
    return loss / margin.size + 0.5 * PENALTY * np.sum(weights * weights)


@numba.njit
def gradient(weights, features, labels):
    """Value and gradient; stores one number a row."""
    margin = labels * (features @ weights)
    loss = 0.0
    score_bar = np.empty(margin.size)
    for row in range(margin.size):
        decay = np.exp(-abs(margin[row]))  # at most 1, so nothing below overflows
        loss += max(-margin[row], 0.0) + np.log1p(decay)
        miss = (decay if margin[row] >= 0.0 else 1.0) / (1.0 + decay)
        score_bar[row] = -labels[row] * miss / margin.size
    value = loss / margin.size + 0.5 * PENALTY * np.sum(weights * weights)
    return value, features.T @ score_bar + PENALTY * weights


def n_operations(args):
    """Arithmetic operations of one primal; logaddexp counts as one."""
    n_rows, n_features = args[1].shape
    return 2 * n_rows * n_features + 4 * n_rows + 2 * n_features + 3

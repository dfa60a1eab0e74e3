"""Train a small network in NumPy on scikit-learn's digits, to over 95 % on digits it has not seen.

Run: python examples/08_digits.py
"""

import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tapejit as tj

N_HIDDEN = 32
DECAY = 1e-3  # half the weight of the squared norm of the weights

images, labels = load_digits(return_X_y=True)  # 1797 images of 8 x 8 pixels, from 0 to 16
train_x, test_x, train_y, test_y = train_test_split(images / 16, labels, test_size=0.3, random_state=0)


def logits(theta, x):
    """Ten scores an image: one tanh layer of `N_HIDDEN` neurons and a linear one."""
    cut = 65 * N_HIDDEN
    hidden, output = theta[:cut].reshape(65, N_HIDDEN), theta[cut:].reshape(N_HIDDEN + 1, 10)
    activity = np.tanh(x @ hidden[1:] + hidden[0])
    return activity @ output[1:] + output[0]


def loss(theta):
    """Mean cross entropy of the training images, and weight decay."""
    scores = logits(theta, train_x)
    scores = scores - np.max(scores, axis=1, keepdims=True)  # so that exp cannot overflow
    log_norm = np.log(np.sum(np.exp(scores), axis=1))
    return np.mean(log_norm - scores[np.arange(len(train_y)), train_y]) + DECAY / 2 * np.sum(theta**2)


rng = np.random.default_rng(0)
theta_0 = rng.normal(scale=0.1, size=65 * N_HIDDEN + (N_HIDDEN + 1) * 10)

start = time.perf_counter()
fit = tj.minimize(loss, theta_0, options={"maxiter": 150})
print(f"{theta_0.size} weights: loss {loss(theta_0):.4f} -> {fit.fun:.4f}", end=" ")
print(f"in {fit.nit} iterations, {time.perf_counter() - start:.1f} s")

train_accuracy = np.mean(np.argmax(logits(fit.x, train_x), axis=1) == train_y)
test_accuracy = np.mean(np.argmax(logits(fit.x, test_x), axis=1) == test_y)
print(f"accuracy: {train_accuracy:.1%} on {len(train_y)} training digits, {test_accuracy:.1%} on the others")
assert test_accuracy > 0.95

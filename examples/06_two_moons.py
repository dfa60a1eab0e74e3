"""Train a 2-10-10-1 network, written in plain Python scalars, to tell two moons apart.

Run: python examples/06_two_moons.py
"""

import time
from itertools import pairwise

import numpy as np

import tapejit as tj

LAYERS = (2, 10, 10, 1)
N_WEIGHTS = sum((n_in + 1) * n_out for n_in, n_out in pairwise(LAYERS))

# Two interleaved half circles, 40 points each, a little noise; labels -1 and 1.
rng = np.random.default_rng(0)
angle = rng.uniform(0, np.pi, 40)
upper = np.column_stack([np.cos(angle), np.sin(angle)])
lower = np.column_stack([1 - np.cos(angle), 0.5 - np.sin(angle)])
points = np.concatenate([upper, lower]) + 0.1 * rng.standard_normal((80, 2))
labels = np.repeat([-1.0, 1.0], 40)


def network(weights, signal):
    """Score of one point: tanh neurons, each a plain loop over its inputs, and a linear one at the end."""
    weight = iter(weights)
    for n_out in LAYERS[1:]:
        sums = [next(weight) + sum(next(weight) * s for s in signal) for _ in range(n_out)]
        signal = [np.tanh(s) for s in sums]
    return sums[0]


def loss(weights):
    """Mean logistic loss, and a touch of weight decay."""
    weights = list(weights)
    margins = [label * network(weights, point) for point, label in zip(points.tolist(), labels, strict=True)]
    return sum(np.logaddexp(0.0, -m) for m in margins) / len(labels) + 1e-4 * sum(w * w for w in weights)


weights = rng.normal(scale=0.5, size=N_WEIGHTS)
start = time.perf_counter()
tape = tj.record(loss, weights)
print(f"{N_WEIGHTS} weights, {tape.n_slots} slots, recorded in {time.perf_counter() - start:.2f} s")

# Gradient descent with momentum. The network has no branches, so one tape serves every step.
start = time.perf_counter()
velocity = np.zeros(N_WEIGHTS)
for step in range(401):
    value, gradient = tape.value_and_grad(weights)
    if step % 100 == 0:
        print(f"step {step:3d}: loss {value:.4f}")
    velocity = 0.9 * velocity - 0.1 * gradient
    weights = weights + velocity

scores = np.array([network(weights.tolist(), point) for point in points.tolist()])
accuracy = np.mean(np.sign(scores) == labels)
print(f"accuracy {accuracy:.1%} after {time.perf_counter() - start:.2f} s of replays")
assert value < 0.05
assert accuracy == 1.0

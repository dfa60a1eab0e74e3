"""Replay: record 2 sin(x^3)^2 once, then evaluate and differentiate the same tape elsewhere.

Run: python examples/03_replay.py
"""

import math

import numpy as np

import tapejit as tj

with tj.Tape() as tape:
    x = tape.input(10.0)
    f = 2 * np.sin(x**3) ** 2

for point in (10.0, 5.0, 3.0):
    tape.forward([point])
    tape.zero_grad()
    f.backward()
    print(f"x = {point:4g}: 2 sin(x^3)^2 = {f.value:.12f}, derivative {x.grad:+.9f}")
    assert abs(f.value - 2 * math.sin(point**3) ** 2) < 1e-12
    assert abs(x.grad - 6 * point**2 * math.sin(2 * point**3)) < 1e-9

print(tape.to_string(first=10))

# `tj.record` does the same to a function; its tape checks that no branch changed.
tape = tj.record(lambda x: 2 * np.sin(x**3) ** 2, 10.0)
value, derivative = tape.value_and_grad(3.0)
assert abs(value - f.value) < 1e-15
assert abs(derivative - x.grad) < 1e-15 * 54

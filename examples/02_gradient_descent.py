"""Descend: minimise two quadratics by plain gradient steps of 0.1, and check every digit.

Run: python examples/02_gradient_descent.py
"""

import numpy as np

import tapejit as tj

STEP = 0.1

# (x - 5)^2 from 0: each step multiplies the error by 1 - 2 * STEP = 0.8.
# The function is recorded once; `forward` moves the tape to the new x.
with tj.Tape() as tape:
    x = tape.input(0.0)
    loss = (x - 5) ** 2

position = 0.0
for _ in range(50):
    tape.forward([position])
    tape.zero_grad()  # gradients accumulate until this
    loss.backward()
    position -= STEP * x.grad

print(f"(x - 5)^2 after 50 steps: x = {position:.6f}")
assert abs(position - 5 * (1 - 0.8**50)) < 1e-12
assert abs(position - 5) < 1e-4


# (x - 3)^2 + (y - 4)^2 from (0, 0): the same with `tj.grad`, which records afresh at each call.
def bowl(point):
    x, y = point
    return (x - 3) ** 2 + (y - 4) ** 2


gradient = tj.grad(bowl)
point = np.zeros(2)
for _ in range(100):
    point -= STEP * gradient(point)

print(f"(x - 3)^2 + (y - 4)^2 after 100 steps: ({point[0]:.6f}, {point[1]:.6f})")
np.testing.assert_allclose(point, [3.0, 4.0], atol=1e-8)

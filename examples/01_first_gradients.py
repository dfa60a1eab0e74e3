"""Take the first gradients: write plain expressions on a tape, sweep once, read the derivatives.

Run: python examples/01_first_gradients.py
"""

import numpy as np

import tapejit as tj

# One input: f = x^3 + 2 x^2, so f' = 3 x^2 + 4 x.
with tj.Tape() as tape:
    x = tape.input(3.0)
    f = x**3 + 2 * x**2
f.backward()
print(f"x^3 + 2 x^2 at 3: {f.value:g}, derivative {x.grad:g}")
assert abs(f.value - 45.0) < 1e-12
assert abs(x.grad - 39.0) < 1e-12

# Three inputs: one reverse sweep gives all the partial derivatives.
with tj.Tape() as tape:
    x, y, z = tape.input(2.0), tape.input(3.0), tape.input(4.0)
    f = x * y + y * z + x * z
f.backward()
print(f"xy + yz + xz at (2, 3, 4): {f.value:g}, gradient ({x.grad:g}, {y.grad:g}, {z.grad:g})")
assert f.value == 26.0
assert (x.grad, y.grad, z.grad) == (7.0, 6.0, 5.0)

# A thousand inputs: still one sweep.
points = np.arange(1, 1001) / 1000
with tj.Tape() as tape:
    inputs = [tape.input(point) for point in points]
    f = sum(x**2 for x in inputs)
f.backward()
gradient = np.array([x.grad for x in inputs])
print(f"sum of squares of i/1000: {f.value:.4f}, gradient from {gradient[0]:g} to {gradient[-1]:g}")
assert abs(f.value - 333.8335) < 1e-9  # n (n + 1) (2 n + 1) / 6 / 1000^2
np.testing.assert_allclose(gradient, 2 * points, rtol=1e-14)

# The same without a tape in sight: `tj.grad` turns a function into its gradient.
gradient = tj.grad(lambda x: np.sum(x**2))(points)
np.testing.assert_allclose(gradient, 2 * points, rtol=1e-14)

print(tape)

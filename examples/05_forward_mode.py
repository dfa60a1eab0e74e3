"""Go forward: a directional derivative by forward mode, and second derivatives by reverse over forward.

Run: python examples/05_forward_mode.py
"""

import math

import numpy as np

import tapejit as tj


def cubic(x):
    return x**3 + 2 * x**2


# Forward mode carries a tangent along with the value: no reverse sweep.
value, tangent = tj.jvp(cubic)(3.0, 1.0)
print(f"x^3 + 2 x^2 at 3: {value:g}, tangent {tangent:g}")
assert abs(value - 45) < 1e-12
assert abs(tangent - 39) < 1e-12

# The tangent is a function of x as good as any other, so it has a gradient: f'' = 6 x + 4.
second = tj.grad(lambda x: tj.jvp(cubic)(x, 1.0)[1])(3.0)
print(f"second derivative, reverse over forward: {second:g}")
assert abs(second - 22) < 1e-12
assert abs(tj.grad(tj.grad(cubic))(3.0) - 22) < 1e-12  # and reverse over reverse


# In several dimensions reverse over forward is the product H v, at the cost of a few evaluations.
def survey(x):
    return np.log(x[0]) + x[0] * x[1] - np.sin(x[1])


x, v = np.array([2.0, 5.0]), np.array([0.3, -1.0])
hessian = np.array([[-1 / 4, 1.0], [1.0, math.sin(5.0)]])
product = tj.grad(lambda x: tj.jvp(survey)(x, v)[1])(x)
print(f"H v = {product}")
np.testing.assert_allclose(product, hessian @ v, rtol=1e-13)
np.testing.assert_allclose(tj.hvp(survey)(x, v), hessian @ v, rtol=1e-13)
np.testing.assert_allclose(tj.hessian(survey)(x), hessian, rtol=1e-13, atol=1e-15)

"""Check textbook functions: value and partial derivatives against the formulas worked out by hand.

Run: python examples/04_textbook_partials.py
"""

import math

import numpy as np

import tapejit as tj


def check(text, f, point, value, partials):
    """Print what tapejit finds and compare it with the hand-worked `value` and `partials`."""
    found, gradient = tj.value_and_grad(f, argnums=tuple(range(len(point))))(*point)
    print(f"{text} at {point}: {found:.9f}, partials", ", ".join(f"{partial:.9f}" for partial in gradient))
    np.testing.assert_allclose(found, value, rtol=1e-14)
    np.testing.assert_allclose(gradient, partials, rtol=1e-13)


x, y = 1.5, 0.7
u = (x**2 + math.sin(y)) * x
check(
    "cos((x^2 + sin y) x)",
    lambda x, y: np.cos((x**2 + np.sin(y)) * x),
    (x, y),
    math.cos(u),
    (-math.sin(u) * (3 * x**2 + math.sin(y)), -math.sin(u) * x * math.cos(y)),
)

# A one-weight network with weight decay. At (1, 2, 3) the residual is -1, so dL/dw = 2 (-1) 2 + 2 = -2.
check("(wx - y)^2 + w^2", lambda w, x, y: (w * x - y) ** 2 + w**2, (1.0, 2.0, 3.0), 2.0, (-2.0, -2.0, 2.0))

# The sigmoid s from primitives: s' = s (1 - s).
s = 1 / (1 + math.exp(-0.4))
check("1 / (1 + exp(-x))", lambda x: 1 / (1 + np.exp(-x)), (0.4,), s, (s * (1 - s),))

# The running example of A. G. Baydin et al., "Automatic differentiation in machine learning: a survey",
# JMLR 18, 2018: its tables 2 and 3 find 11.652, 5.5 and 1.716.
check(
    "ln x1 + x1 x2 - sin x2",
    lambda x1, x2: np.log(x1) + x1 * x2 - np.sin(x2),
    (2.0, 5.0),
    math.log(2) + 10 - math.sin(5),
    (5.5, 2 - math.cos(5)),
)

check("xy + log x", lambda x, y: x * y + np.log(x), (2.0, 3.0), 6 + math.log(2), (3.5, 2.0))

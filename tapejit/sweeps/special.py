"""The functions that expressions call by name, as kernels; those that Numba lacks are written out here.

References
----------
.. [1] J. M. Bernardo, Algorithm AS 103: psi (digamma) function, Applied Statistics 25, 1976.
.. [2] M. Abramowitz and I. A. Stegun, *Handbook of Mathematical Functions*, 1964, sections 6.3 and 6.4.
.. [3] J. J. Wrench, Concerning two series for the gamma function, Math. Comp. 22, 1968.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from tapejit.sweeps.kernel import FLAGS

__all__ = ["NAMESPACE"]

inline = numba.njit(**FLAGS)

# B_2k for k = 1 .. 10, the coefficients of the asymptotic series of digamma and polygamma.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)


@inline
def digamma(x):
    """Logarithmic derivative of the gamma function: reflection, recurrence up to 10, asymptotic series [2]_ 6.3.18."""
    if x <= 0.0 and x == math.floor(x):
        return math.nan
    total = 0.0
    if x < 0.0:
        # x - rint(x), not x: the tangent of a large multiple of pi loses the fraction.
        total = -math.pi / math.tan(math.pi * (x - np.rint(x)))
        x = 1.0 - x
    while x < 10.0:
        total -= 1.0 / x
        x += 1.0
    z = 1.0 / (x * x)
    power = z
    series = 0.0
    for k in range(1, 9):
        series += _BERNOULLI[k - 1] / (2.0 * k) * power
        power *= z
    return total + (math.log(x) - 0.5 / x - series)


@inline
def _polygamma_positive(order, x):
    """(-1)**(order + 1) order! sum over k of (x + k)**-(order + 1), for x > 0, by recurrence and [2]_ 6.4.11."""
    factorial = math.gamma(order)  # (order - 1)!
    total = 0.0
    while x < 10.0 + order:
        total += x ** -(order + 1.0)
        x += 1.0
    total *= factorial * order
    power = x**-order
    total += factorial * power + 0.5 * order * factorial * power / x
    # Term k has B_2k (2k + order - 1)! / ((2k)! x**(2k + order)).
    term = factorial * power
    for k in range(1, 11):
        term *= (2.0 * k + order - 2.0) * (2.0 * k + order - 1.0) / ((2.0 * k) * (2.0 * k - 1.0) * x * x)
        total += _BERNOULLI[k - 1] * term
    return total if order % 2.0 == 1.0 else -total


@inline
def _cotangent_derivative(order, x):
    """The derivative of pi cot(pi x) of the given order, through the polynomials p of cot with p' -> -(1 + c*c) p'(c)."""
    c = 1.0 / math.tan(math.pi * (x - np.rint(x)))
    polynomial = np.zeros(order + 2)
    following = np.zeros(order + 2)
    polynomial[1] = 1.0
    for _ in range(order):
        following[:] = 0.0
        for degree in range(1, order + 1):
            slope = degree * polynomial[degree]
            following[degree - 1] -= slope
            following[degree + 1] -= slope
        polynomial, following = following, polynomial
    total = 0.0
    for degree in range(order + 1, -1, -1):
        total = total * c + polynomial[degree]
    return total * math.pi ** (order + 1)


@inline
def polygamma(order, x):
    """Derivative of digamma of the given order, an integer >= 0; NaN where the order is not one, and at the poles."""
    if order != math.floor(order) or order < 0.0 or order > 150.0 or x != x:
        return math.nan
    if order == 0.0:
        return digamma(x)
    if x <= 0.0:
        if x == math.floor(x):
            return math.nan if order % 2.0 == 0.0 else math.inf
        # (-1)**n psi_n(1 - x) - psi_n(x) = d^n/dx^n pi cot(pi x).
        sign = 1.0 if order % 2.0 == 0.0 else -1.0
        return sign * _polygamma_positive(order, 1.0 - x) - _cotangent_derivative(int(order), x)
    return _polygamma_positive(order, x)


@inline
def gammaln(x):
    """Logarithm of the absolute value of the gamma function."""
    return math.lgamma(x)


@inline
def power(x, y):
    """``x**y`` as NumPy has it: NaN for a negative base with a fractional exponent."""
    return math.pow(x, y)


@inline
def remainder(x, y):
    """``np.remainder``: the sign of the divisor; exact where the C function ``fmod`` is."""
    v = np.fmod(x, y)
    if v != 0.0:
        if (v < 0.0) != (y < 0.0):
            v += y
        return v
    return math.copysign(0.0, y) if y == y and v == v else v


@inline
def floor_divide(x, y):
    """``np.floor_divide``: the floor of the exact quotient, not of the rounded one."""
    if y == 0.0:
        return x / y
    v = remainder(x, y)
    quotient = (x - v) / y
    floored = math.floor(quotient) * 1.0 if abs(quotient) < 4503599627370496.0 else quotient
    if quotient - floored > 0.5:
        floored += 1.0
    return floored if floored != 0.0 else math.copysign(0.0, x / y)


NAMESPACE = {
    **{name: getattr(math, name) for name in ("sqrt", "exp", "expm1", "log", "log10", "log1p", "log2")},
    **{name: getattr(math, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{name: getattr(math, name) for name in ("hypot", "copysign", "erf", "erfc", "isnan", "isinf", "isfinite")},
    "abs": abs,
    "arcsin": math.asin,
    "arccos": math.acos,
    "arctan": math.atan,
    "arctan2": math.atan2,
    "arcsinh": math.asinh,
    "arccosh": math.acosh,
    "arctanh": math.atanh,
    "exp2": np.exp2,
    "cbrt": np.cbrt,
    "fmod": np.fmod,
    "floor": np.floor,
    "ceil": np.ceil,
    "rint": np.rint,
    "trunc": np.trunc,
    "digamma": digamma,
    "polygamma": polygamma,
    "gammaln": gammaln,
    "power": power,
    "remainder": remainder,
    "floor_divide": floor_divide,
    "inf": math.inf,
    "nan": math.nan,
}

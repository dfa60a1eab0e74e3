"""The functions that expressions call by name, as kernels: elementary ones, Numba's, and those that both lack, written out here.

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

from tapejit.sweeps.elementary import FUNCTIONS, IN_RANGE
from tapejit.sweeps.kernel import FLAGS
from tapejit.sweeps.lowering import known_to_numba

__all__ = ["CORES", "NAMESPACE", "RANGES"]

inline = numba.njit(**FLAGS)

# B_2k for k = 1 .. 10, the coefficients of the asymptotic series of digamma and polygamma.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)


# The positive root of digamma, in two parts, and digamma's Taylor coefficients there (mpmath, 60 digits).
_ROOT, _ROOT_REST = 1.4616321449683622, 9.549995429965698e-17
_AT_ROOT = (
    0.9676722454476212, -0.4427631689835921, 0.258499760955651, -0.16394270544240652, 0.10782405069126237, -0.07219956125645471,
    0.04880428816414311, -0.03316112647484736, 0.022597648232218104, -0.01542476590494896, 0.010538791616612175,
    -0.007204534386356869, 0.004926781395729853, -0.003369801655439328, 0.002305126326734928, -0.0015769367714301972,
)  # fmt: skip


@inline
def digamma(x):
    """Logarithmic derivative of the gamma function: reflection, recurrence up to 10, asymptotic series [2]_ 6.3.18.

    Next to its positive root, where those cancel, its Taylor series.
    """
    if x == 0.0:
        return -1.0 / x  # As SciPy has it: the pole from the side of the zero's sign.
    if x < 0.0 and x == np.floor(x):
        return math.nan
    delta = (x - _ROOT) - _ROOT_REST
    if abs(delta) < 0.15:
        total = 0.0
        for k in range(15, -1, -1):
            total = (total + _AT_ROOT[k]) * delta
        return total
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
    # order! / x**order is taken out of the sum: factorial and power alone would overflow and underflow.
    scale = 1.0
    for k in range(1, int(order) + 1):
        scale *= k / x
    start = x
    total = 0.0
    while x < 10.0 + order:
        total += (start / x) ** order / x
        x += 1.0
    power = (start / x) ** order
    total += power / order + 0.5 * power / x
    # Term k has B_2k (2k + order - 1)! / ((2k)! x**(2k + order)).
    term = power / order
    for k in range(1, 11):
        term *= (2.0 * k + order - 2.0) * (2.0 * k + order - 1.0) / ((2.0 * k) * (2.0 * k - 1.0) * x * x)
        total += _BERNOULLI[k - 1] * term
    total *= scale
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
    if order != np.floor(order) or order < 0.0 or order > 150.0 or x != x:
        return math.nan
    if order == 0.0:
        return digamma(x)
    if x == math.inf:
        return 0.0
    if x <= 0.0:
        if x == np.floor(x):
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
    v = np.fmod(x, y)
    quotient = (x - v) / y
    if v != 0.0 and (v < 0.0) != (y < 0.0):
        quotient -= 1.0
    if quotient == 0.0:
        return math.copysign(0.0, x / y)
    floored = np.floor(quotient)
    return floored + 1.0 if quotient - floored > 0.5 else floored


NAMESPACE = {
    **{name: getattr(math, name) for name in ("sqrt", "copysign", "isnan", "isinf", "isfinite")},
    "abs": abs,
    "fmod": np.fmod,
    "floor": np.floor,
    "ceil": np.ceil,
    "rint": np.rint,
    "trunc": np.trunc,
    "digamma": digamma,
    "polygamma": polygamma,
    "gammaln": gammaln,
    "remainder": remainder,
    "floor_divide": floor_divide,
    "inf": math.inf,
    "nan": math.nan,
    **{name: known_to_numba(name, *function, IN_RANGE.get(name)) for name, function in FUNCTIONS.items()},
}

# What is right where `RANGES` holds: without the branch that keeps a loop from being vectorised.
CORES = {name: known_to_numba(name, *FUNCTIONS[name]) for name in IN_RANGE}
RANGES = {
    name: known_to_numba(f"{name}_range", IN_RANGE[name], FUNCTIONS[name][1], condition=True) for name in IN_RANGE
}

"""Elementary functions without branches, tables or calls, so that loops over them vectorise; see `lowering` for the notation.

Each is within 2 units in the last place of the true value, and gives what the C library gives for infinities, NaN, both zeros,
subnormal numbers, overflow, and outside the domain. The reductions are published ones; the polynomials are least squares fits in
100 digits at Chebyshev nodes, weighted by the function, with errors below a tenth of a unit in the last place.

Sine, cosine and tangent hold up to `LARGEST_ANGLE`: above, multiples of the parts of pi / 2 are no longer exact. `IN_RANGE` says where.

References
----------
.. [1] W. J. Cody and W. Waite, *Software Manual for the Elementary Functions*, 1980.
.. [2] K. C. Ng et al., *fdlibm*, Sun Microsystems, 1993: reductions and the order of the last additions.
.. [3] J.-M. Muller, *Elementary Functions*, 3rd ed., Birkhauser, 2016.
.. [4] T. J. Dekker, A floating-point technique for extending the available precision, Numer. Math. 18, 1971.
.. [5] M. M. Shepherd and J. G. Laframboise, Chebyshev approximation of (1 + 2x) exp(x**2) erfc x, Math. Comp. 36, 1981.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tapejit.sweeps.lowering import absolute, bits, copysign, floor, from_bits, select, sqrt

__all__ = ["FUNCTIONS", "IN_RANGE", "LARGEST_ANGLE"]

LARGEST_ANGLE = 2.0**25

# Adding it rounds a small number to an integer, which then stands in the low bits of the sum.
_ROUNDER = 1.5 * 2.0**52
_LN2, _LN2_REST = 0.6931471805598903, 5.497923018708371e-14  # 42 bits, so that up to 11 bits times it are exact


def polynomial(z: Any, *coefficients: Any) -> Any:
    """The polynomial with these coefficients, lowest first, by Estrin's scheme [3]_: pairs do not wait for each other."""
    while len(coefficients) > 1:
        pairs = zip(coefficients[::2], coefficients[1::2], strict=False)
        coefficients = (*(low + high * z for low, high in pairs), *coefficients[len(coefficients) // 2 * 2 :])
        z = z * z
    return coefficients[0]


def polynomial_by_halves(z: Any, *coefficients: float) -> Any:
    """The same with fewer roundings: even and odd coefficients by Horner's scheme."""
    square = z * z
    even, odd = _horner(square, coefficients[::2]), _horner(square, coefficients[1::2])
    return even + odd * z


def _horner(z: Any, coefficients: tuple[float, ...]) -> Any:
    total: Any = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * z + coefficient
    return total


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """``a + b`` and what its rounding lost."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def quick_two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """`two_sum` where `a` is the larger or 0."""
    total = a + b
    return total, b - (total - a)


def truncated(x: Any) -> Any:
    """The upper 26 bits of a double."""
    return from_bits(bits(x) & 0xFFFFFFFFF8000000)


# Exponentials.


def power_of_two(n: Any) -> Any:
    """2**n for an integral double `n` from -1022 to 1023."""
    return from_bits(bits(n + (_ROUNDER + 1023.0)) << 52)


def scaled(x: Any, n: Any) -> Any:
    """``x * 2**n``, rounded once, for `n` from -2044 to 2046."""
    half = (n * 0.5 + _ROUNDER) - _ROUNDER
    return x * power_of_two(half) * power_of_two(n - half)


def exp_reduced(x: Any, more: Any = None) -> tuple[Any, Any, Any]:
    """`n` and ``exp(r) - 1``, in two parts, for the `r` of ``x + more = n log(2) + r``, at most half of log(2) [1]_.

    |x| up to 1400, and `more` below its last place.
    """
    n = (x * 1.4426950408889634 + _ROUNDER) - _ROUNDER
    rest = n * _LN2_REST
    r, lost = quick_two_sum(x - n * _LN2, -rest)
    if more is not None:
        r, lost = two_sum(r, lost + more)
    return n, *exp_near_zero(r, lost)


def exp_near_zero(r: Any, lost: Any) -> tuple[Any, Any]:
    """``exp(r + lost) - 1``, in two parts, for |r| up to 0.35."""
    curve = polynomial(
        r,
        0.5, 0.16666666666666685, 0.04166666666666653, 0.008333333333315915, 0.0013888888888962186, 0.00019841269898840584,
        2.480158717067577e-05, 2.75572326202647e-06, 2.7557401504934425e-07, 2.5112764808720822e-08, 2.0876930403809065e-09,
    )  # fmt: skip
    return quick_two_sum(r, r * r * curve + (lost + r * lost))


def clipped(x: Any, low: float, high: float) -> Any:
    """`x` within two bounds; NaN stays."""
    return select(x > high, high, select(x < low, low, x))


def exp(x: Any) -> Any:
    n, p, _ = exp_reduced(clipped(x, -746.0, 710.0))
    return scaled(1.0 + p, n)


def exp2(x: Any) -> Any:
    return exp2_of_sum(clipped(x, -1076.0, 1025.0))


def exp2_of_sum(x: Any, more: Any = None) -> Any:
    """``2**(x + more)``, |x| up to 1100 and the rest below 2**-10."""
    n = (x + _ROUNDER) - _ROUNDER
    r = x - n
    high = truncated(r)
    # log(2) in 26 bits and the rest.
    rest = (r - high) * 0.6931471675634384 + r * 1.2996506893889889e-08
    if more is not None:
        rest = rest + more * 0.6931471805599453
    p, _ = exp_near_zero(*two_sum(high * 0.6931471675634384, rest))
    return scaled(1.0 + p, n)


def expm1_quarter(x: Any) -> tuple[Any, Any]:
    """``(exp(x) - 1) / 4``, in two parts, for `x` from -60 to 710.6, where the whole overflows."""
    n, p, lost = exp_reduced(x)
    scale = power_of_two(n - 2.0)
    quarter, rest = quick_two_sum(scale - 0.25, scale * p)
    return quick_two_sum(quarter, rest + scale * lost)


def expm1(x: Any) -> Any:
    quarter, _ = expm1_quarter(clipped(x, -60.0, 710.0))
    return select(absolute(x) < 2.0**-54, x, 4.0 * quarter)


def sinh(x: Any) -> Any:
    size = absolute(x)
    quarter, _ = expm1_quarter(clipped(size, 0.0, 710.6))
    t = 4.0 * quarter
    u = select(t < 2.0**60, t / (t + 1.0), 1.0)
    v = select(t < 1.0, t - 0.5 * (t * u), 2.0 * quarter + 0.5 * u)
    return select(size < 2.0**-28, x, copysign(v, x))


def cosh(x: Any) -> Any:
    n, p, _ = exp_reduced(clipped(absolute(x), 0.0, 711.0))
    half = scaled(1.0 + p, n - 1.0)
    return half + 0.25 / half


def tanh(x: Any) -> Any:
    size = absolute(x)
    quarter, rest = expm1_quarter(clipped(size + size, 0.0, 60.0))
    # t / (t + 2) with t = 4 quarter, and its derivative 2 / (t + 2)**2 for what the two sums lost.
    denominator, lost = two_sum(quarter, 0.5)
    v = quarter / denominator
    v = v + (rest - v * (lost + rest)) * (2.0 - (v + v))
    return select(size < 2.0**-28, x, copysign(v, x))


# Logarithms.


def log_reduced(x: Any) -> tuple[Any, Any]:
    """`n` and `f` of ``x = 2**n (1 + f)``, with 1 + f between the roots of 1/2 and 2; `x` positive and normal."""
    # In the exponent's place after the sum: n + 1023, one more for fractions above the root of 2.
    shifted = bits(x) + 0x00095F6200000000
    fraction = from_bits((shifted & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E00000000)
    n = from_bits((shifted >> 52) | 0x4330000000000000) - (2.0**52 + 1023.0)
    return n, fraction - 1.0


def normalised(x: Any) -> tuple[Any, Any]:
    """A positive `x`, times 2**54 where it is subnormal, and the power of two it was multiplied by."""
    subnormal = x < 2.0**-1022
    return select(subnormal, x * 2.0**54, x), select(subnormal, 54.0, 0.0)


def log_near_one(f: Any) -> tuple[Any, Any]:
    """`half` and `rest` of ``log(1 + f) = f - (half - rest)`` [2]_."""
    s = f / (2.0 + f)
    z = s * s
    half = 0.5 * f * f
    return half, s * (half + log_series(z))


def log_series(z: Any) -> Any:
    """``log((1 + s) / (1 - s)) / s - 2`` for s * s = z, |s| up to 0.1716."""
    return z * polynomial(
        z,
        0.6666666666666742, 0.3999999999936589, 0.28571428753496697, 0.22222197395522497, 0.18183627726864118,
        0.15312369979787194, 0.14813354863555442,
    )  # fmt: skip


def arcsinh(x: Any) -> Any:
    size = absolute(x)
    large = size > 2.0**28
    # log(x + sqrt(x * x + 1)); for large x, log(1 + x - 1) + log(2).
    limited = select(large, 1.0, size)
    square = limited * limited
    rise, lost = two_sum(limited, square / (1.0 + sqrt(square + 1.0)))
    v = log1p_of_sum(
        select(large, select(size < math.inf, size, 1.0), rise), select(large, -1.0, lost), select(large, 1.0, 0.0)
    )
    v = select(size < math.inf, v, size)
    return select(size < 2.0**-28, x, copysign(v, x))


def arccosh(x: Any) -> Any:
    large = x > 2.0**28
    t = select(large, 1.0, x) - 1.0
    rise, lost = two_sum(t, sqrt(t * (t + 2.0)))
    v = log1p_of_sum(
        select(large, select(x < math.inf, x, 1.0), rise), select(large, -1.0, lost), select(large, 1.0, 0.0)
    )
    return select(x < math.inf, select(x < 1.0, math.nan, v), x)


def arctanh(x: Any) -> Any:
    """Half the logarithm of ``(1 + x) / (1 - x) = 2**n (1 + s) / (1 - s)``; for small `x`, `s` is `x`."""
    size = absolute(x)
    below = select(size < 1.0, size, 0.5)
    above, above_rest = quick_two_sum(1.0, below)
    under, under_rest = quick_two_sum(1.0, -below)
    n, _ = log_reduced(above / under)
    scale = power_of_two(n)
    s = ((above - scale * under) + (above_rest - scale * under_rest)) / (above + scale * under)
    s = select(n == 0.0, below, s)
    z = s * s
    v = n * (0.5 * _LN2) + (s + (0.5 * (s * log_series(z)) + n * (0.5 * _LN2_REST)))
    v = select(size < 1.0, v, select(size == 1.0, math.inf, select(size > 1.0, math.nan, size)))
    return select(size < 2.0**-28, x, copysign(v, x))


def at_the_ends(x: Any, v: Any) -> Any:
    """A logarithm `v` of `x`, with its values at 0, at infinity, and where there is none."""
    v = select(x < math.inf, v, x)  # NaN as well
    return select(x > 0.0, v, select(x == 0.0, -math.inf, select(x < 0.0, math.nan, x)))


def log(x: Any) -> Any:
    positive, lift = normalised(x)
    n, f = log_reduced(positive)
    n = n - lift
    half, rest = log_near_one(f)
    return at_the_ends(x, n * _LN2 - ((half - (rest + n * _LN2_REST)) - f))


def log1p(x: Any) -> Any:
    v = log1p_of_sum(select(x < math.inf, x, 1.0), 0.0, 0.0)
    v = select(x < math.inf, v, x)
    v = select(x > -1.0, v, select(x == -1.0, -math.inf, select(x < -1.0, math.nan, x)))
    return select(absolute(x) < 2.0**-54, x, v)


def log1p_of_sum(x: Any, more: Any, lift: Any) -> Any:
    """``log(1 + x + more) + lift log(2)``, `more` much smaller than `x`."""
    u, lost = two_sum(x, 1.0)
    n, f = log_reduced(u)
    n = n + lift
    half, rest = log_near_one(f)
    # log(u + lost) = log(u) + lost / u.
    return n * _LN2 - ((half - (rest + (n * _LN2_REST + (lost + more) / u))) - f)


def log_to_base(x: Any, high: float, low: float, two: float, two_rest: float) -> Any:
    """``log(x)`` times ``high + low``, `high` of 25 bits, where ``two + two_rest`` is the result for 2 [2]_."""
    positive, lift = normalised(x)
    n, f = log_reduced(positive)
    n = n - lift
    half, rest = log_near_one(f)
    upper = truncated(f - half)
    lower = (f - upper) - half + rest
    value = upper * high
    more = n * two_rest + (lower + upper) * low + lower * high
    total, lost = two_sum(n * two, value)
    return at_the_ends(x, total + (more + lost))


def log2(x: Any) -> Any:
    return log_to_base(x, 1.4426950216293335, 1.9259629911266175e-08, 1.0, 0.0)


def log10(x: Any) -> Any:
    return log_to_base(x, 0.4342944771051407, 4.798111141615973e-09, 0.30102999566395283, 2.8363394551044964e-14)


# The error function.


def erf_near_zero(x: Any) -> Any:
    """erf(x) for |x| up to 1."""
    return x + x * polynomial(
        x * x,
        0.12837916709551256, -0.3761263890318347, 0.11283791670943198, -0.026866170643020746, 0.005223977605665453,
        -0.0008548325916000483, 0.00012055293341129816, -1.4924709882727448e-05, 1.6447119857072677e-06,
        -1.6206322663682368e-07, 1.371132509260696e-08, -7.780523614246079e-10,
    )  # fmt: skip


def erf(x: Any) -> Any:
    size = absolute(x)
    return select(size < 1.0, erf_near_zero(x), copysign(1.0 - erfc_of_positive(size), x))


def erfc(x: Any) -> Any:
    size = absolute(x)
    v = erfc_of_positive(size)
    return select(size < 0.5, 1.0 - erf_near_zero(x), select(x < 0.0, 2.0 - v, v))


def erfc_of_positive(x: Any) -> Any:
    """``(1 + 2 x) exp(x * x) erfc(x)`` is nearly constant: a polynomial in ``(x - 4) / (x + 4)`` [5]_."""
    x = clipped(x, 0.0, 27.5)
    q = (x - 4.0) / (x + 4.0)
    curve, curve_rest = quick_two_sum(1.0, polynomial_by_halves(
        q,
        0.2329951186255525, -0.13962111684056286, 0.01537965210262146, 0.0680970542547339, -0.10103906603637601,
        0.09373283499689355, -0.06633036581112631, 0.03716751556119303, -0.016197734063195756, 0.005031969764811197,
        -0.0007577733152038045, -0.00019925554086255154, 0.00015062213611637031, -2.4403108642542553e-05,
        -1.1224509793381276e-05, 5.717877121275064e-06, 3.009180490393435e-07, -8.353199901926933e-07, 6.305608176721986e-08,
        1.1560503460463485e-07, -7.799095529563847e-09, -1.380059923169728e-08, -1.8545001511449968e-09,
    ))  # fmt: skip
    divisor, divisor_rest = two_sum(1.0, x + x)
    ratio = curve / divisor
    # What the two sums lost, relative to the curve, which is 1.1 within a tenth.
    relative = (curve_rest - ratio * divisor_rest) * 0.9
    high = truncated(x)
    square, square_rest = quick_two_sum(high * high, (x - high) * (x + high))
    n, p, lost = exp_reduced(-square, relative - square_rest)
    return scaled(ratio + (ratio * p + ratio * lost), n)


# Powers and roots.


def power(x: Any, y: Any) -> Any:
    size = absolute(x)
    v = power_of_positive(size, y)
    v = select(size == 0.0, select(y < 0.0, math.inf, 0.0), v)
    v = select(size == math.inf, select(y < 0.0, 0.0, math.inf), v)
    half = y * 0.5
    whole, odd = floor(y) == y, floor(half) != half
    # A negative number has powers with an integer; zero and infinity have all.
    v = select(whole, select(odd, copysign(v, x), v), select(x < 0.0, select(size < math.inf, math.nan, v), v))
    v = select(x == x, select(y == y, v, y), x)
    return select(x == 1.0, 1.0, select(y == 0.0, 1.0, v))


def power_of_positive(x: Any, y: Any) -> Any:
    """``x**y`` as ``2**(y log2(x))``, with log2(x) in 66 bits [2]_."""
    positive, lift = normalised(x)
    n, f = log_reduced(positive)
    n = n - lift
    # log(1 + f) = 2 s (1 + z / 3 + ...), with s = f / (2 + f), z = s * s; all in two parts.
    total, total_rest = quick_two_sum(2.0, f)
    inverse = 1.0 / total
    s = f * inverse
    square = s * s
    s_high = truncated(s)
    total_high = truncated(total)
    s_low = ((f - s_high * total_high) - s_high * ((total - total_high) + total_rest)) * inverse
    z = s_high * s_high
    tail = s_low * (s_high + s) + square * square * polynomial(
        square,
        0.5999999999999996, 0.42857142857168923, 0.3333333332597985, 0.272727283470359, 0.2307683238476265,
        0.20004591065302377, 0.17509854534032107, 0.18003549482590528,
    )  # fmt: skip
    bracket = truncated((z + 3.0) + tail)
    bracket_rest = tail - ((bracket - 3.0) - z)
    product = s_high * bracket
    product_rest = s_low * bracket + bracket_rest * s
    high = truncated(product)
    low = (product - high) + product_rest
    # 2 / (3 log(2)) in 26 bits and the rest.
    value, value_rest = quick_two_sum(n, high * 0.9617966860532761)
    value_rest = value_rest + (low * 0.9617966939259756 + high * 7.872699542894897e-09)
    high = truncated(value)
    low = (value - high) + value_rest
    y = clipped(y, -(2.0**70), 2.0**70)
    y_high = truncated(y)
    product = y_high * high
    product_rest = (y - y_high) * high + y * low
    product_rest = select(absolute(product) < 1100.0, product_rest, 0.0)
    return exp2_of_sum(clipped(product, -1100.0, 1100.0), product_rest)


def cbrt(x: Any) -> Any:
    size = absolute(x)
    subnormal = size < 2.0**-1022
    moved = select(subnormal, size * 2.0**54, size)
    # A third of the exponent, and of the fraction after it, is 5 bits of the root; a polynomial makes it 23, Halley's method 53.
    third = ((bits(moved) >> 32) * 0xAAAAAAAB) >> 33
    t = from_bits((third + 715094163) << 32)
    r = (t * t) * (t / moved) - 1.0
    t = truncated(
        t
        * polynomial(
            r, 0.9999999812279606, -0.3333287116645093, 0.2222402443213102, -0.17453550657577044, 0.1427502750329564
        )
    )
    r = moved / (t * t)
    t = t + t * ((r - t) / (t + t + r))
    t = copysign(select(subnormal, t * 2.0**-18, t), x)
    return select(size < math.inf, select(size == 0.0, x, t), x)


def hypot(x: Any, y: Any) -> Any:
    x, y = absolute(x), absolute(y)
    larger = select(x > y, x, y)
    scale = select(larger > 2.0**500, 2.0**-600, select(larger < 2.0**-400, 2.0**600, 1.0))
    back = select(larger > 2.0**500, 2.0**600, select(larger < 2.0**-400, 2.0**-600, 1.0))
    a, b = x * scale, y * scale
    v = sqrt(a * a + b * b) * back
    return select(x == math.inf, x, select(y == math.inf, y, v))


# Trigonometry.


def angle_reduced(x: Any) -> tuple[Any, Any, Any]:
    """Bits whose last two are the quadrant of an angle, and the angle in it, at most pi / 4, in two parts [1]_."""
    shifted = x * 0.6366197723675814 + _ROUNDER
    n = shifted - _ROUNDER
    # Parts of 28 bits, so that 25 bits times them are exact, and the rest.
    r, first = two_sum(x - n * 1.570796325802803, -(n * 9.920935739593517e-10))
    r, second = two_sum(r, -(n * 5.721188709663575e-18))
    return bits(shifted), r, (first + second) - n * 1.6446256936324258e-26


def sin_in_quadrant(r: Any, rest: Any) -> tuple[Any, Any]:
    """The sine of an angle up to pi / 4, both in two parts."""
    z = r * r
    series = polynomial(
        z,
        -0.16666666666666616, 0.0083333333333184, -0.00019841269826596463, 2.755731257720681e-06, -2.505058360395632e-08,
        1.588669324106645e-10,
    )  # fmt: skip
    return quick_two_sum(r, (z * r) * series + (rest - (0.5 * z) * rest))


def cos_in_quadrant(r: Any, rest: Any) -> tuple[Any, Any]:
    """The cosine of an angle up to pi / 4, both in two parts."""
    z = r * r
    half = 0.5 * z
    series = polynomial(
        z,
        0.04166666666666657, -0.0013888888888868543, 2.480158728599653e-05, -2.755731334546471e-07, 2.087558654323908e-09,
        -1.1352582871719391e-11,
    )  # fmt: skip
    w = 1.0 - half
    return quick_two_sum(w, (((1.0 - w) - half) - r * rest) + (z * z) * series)


def sin(x: Any) -> Any:
    quadrant, r, rest = angle_reduced(x)
    v = select((quadrant & 1) == 0, sin_in_quadrant(r, rest)[0], cos_in_quadrant(r, rest)[0])
    v = from_bits(bits(v) ^ ((quadrant & 2) << 62))
    return select(absolute(x) < 2.0**-27, x, v)


def cos(x: Any) -> Any:
    quadrant, r, rest = angle_reduced(x)
    v = select((quadrant & 1) == 0, cos_in_quadrant(r, rest)[0], sin_in_quadrant(r, rest)[0])
    return from_bits(bits(v) ^ (((quadrant + 1) & 2) << 62))


def tan(x: Any) -> Any:
    quadrant, r, rest = angle_reduced(x)
    (s, s_rest), (c, c_rest) = sin_in_quadrant(r, rest), cos_in_quadrant(r, rest)
    even = (quadrant & 1) == 0
    numerator, n_rest = select(even, s, -c), select(even, s_rest, -c_rest)
    denominator, d_rest = select(even, c, s), select(even, c_rest, s_rest)
    v = numerator / denominator
    return select(absolute(x) < 2.0**-27, x, v + (n_rest - v * d_rest) / denominator)


def is_moderate_angle(x: Any) -> Any:
    """Whether sine, cosine and tangent hold: not too large, or not a number of which there is an angle."""
    size = absolute(x)
    return (size <= LARGEST_ANGLE) | ((size < math.inf) ^ True)


# Inverse trigonometry.


def arctan(x: Any) -> Any:
    size = absolute(x)
    return select(size < 2.0**-27, x, copysign(arctan_of_ratio(size, 1.0), x))


def arctan_of_ratio(y: Any, x: Any) -> Any:
    """arctan(y / x) for positive operands, reduced by the arctangents of 1/2, 1 and 3/2 [2]_."""
    t = y / x if not isinstance(x, float) else y
    above = [t >= bound for bound in (0.4375, 0.6875, 1.1875, 2.4375)]

    def chosen(*choices: Any) -> Any:
        value = choices[0]
        for condition, choice in zip(above, choices[1:], strict=True):
            value = select(condition, choice, value)
        return value

    numerator = chosen(t, 2.0 * t - 1.0, t - 1.0, t - 1.5, -1.0)
    denominator = chosen(1.0, 2.0 + t, t + 1.0, 1.0 + 1.5 * t, t)
    high = chosen(0.0, 0.4636476090008061, 0.7853981633974483, 0.982793723247329, 1.5707963267948966)
    low = chosen(0.0, 2.2698777452961687e-17, 3.061616997868383e-17, 1.3903311031230998e-17, 6.123233995736766e-17)
    r = numerator / denominator
    z = r * r
    series = z * polynomial(
        z,
        -0.33333333333332893, 0.1999999999986745, -0.14285714271742084, 0.1111111037297512, -0.0909088632706834,
        0.07691863733756799, -0.0666094926000668, 0.05832779570843864, -0.04973744833814899, 0.03646139677487454,
        -0.01621794668849993,
    )  # fmt: skip
    return high + (r + (r * series + low))


def arctan2(y: Any, x: Any) -> Any:
    rise, run = absolute(y), absolute(x)
    both = select(rise == math.inf, run, 0.0) == math.inf
    t = select(both, 1.0, rise / select(rise == 0.0, 1.0, run))
    v = arctan_of_ratio(t, 1.0)
    v = select(t < 2.0**-27, t, v)
    v = select(copysign(1.0, x) < 0.0, 3.141592653589793 - (v - 1.2246467991473532e-16), v)
    return select(x == x, copysign(v, y), x)


def arcsin_series(z: Any) -> Any:
    """``arcsin(s) / s - 1`` for s * s = z up to 1/4."""
    return z * polynomial(
        z,
        0.1666666666666676, 0.07499999999971048, 0.044642857174297765, 0.030381942724964518, 0.02237221446897879,
        0.017351621680535938, 0.01398070256804337, 0.011399883105498927, 0.010774824438216462, 0.0037267448301756185,
        0.021658578249008832, -0.020930973186465963, 0.032586801610281546,
    )  # fmt: skip


def arcsin(x: Any) -> Any:
    size = absolute(x)
    small = size < 0.5
    z = select(small, x * x, (1.0 - size) * 0.5)
    s = select(small, size, sqrt(z))
    series = arcsin_series(z)
    # pi / 2 - 2 arcsin(s), where s misses the root by `lost`.
    high = truncated(s)
    lost = (z - high * high) / select(z == 0.0, 1.0, s + high)
    p = 2.0 * (s * series) - (6.123233995736766e-17 - 2.0 * lost)
    v = select(small, s + s * series, 0.7853981633974483 - (p - (0.7853981633974483 - 2.0 * high)))
    return select(size < 2.0**-27, x, copysign(v, x))


def arccos(x: Any) -> Any:
    size = absolute(x)
    small = size < 0.5
    z = select(small, x * x, (1.0 - size) * 0.5)
    s = select(small, x, sqrt(z))
    series = arcsin_series(z)
    high = truncated(s)
    lost = (z - high * high) / select(z == 0.0, 1.0, s + high)
    near_zero = 1.5707963267948966 - (s - (6.123233995736766e-17 - s * series))
    near_one = 2.0 * (high + (s * series + lost))
    near_minus_one = 3.141592653589793 - 2.0 * (s + (s * series - 6.123233995736766e-17))
    return select(small, near_zero, select(x > 0.0, near_one, near_minus_one))


FUNCTIONS: dict[str, tuple[Callable, int]] = {
    **{function.__name__: (function, 1) for function in (exp, exp2, expm1, sinh, cosh, tanh)},
    **{function.__name__: (function, 1) for function in (log, log1p, log2, log10, arcsinh, arccosh, arctanh)},
    **{function.__name__: (function, 1) for function in (erf, erfc, cbrt)},
    **{function.__name__: (function, 1) for function in (sin, cos, tan, arctan, arcsin, arccos)},
    **{function.__name__: (function, 2) for function in (arctan2, hypot, power)},
}
IN_RANGE: dict[str, Callable] = dict.fromkeys(("sin", "cos", "tan"), is_moderate_angle)

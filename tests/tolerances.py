"""The tolerances of the tests, in one place, with what each allows for. All are for float64; `EPS` is its unit roundoff times two."""

EPS = 2.0**-52

# Partials of one primitive, relative, against 50 digits: a handful of correctly rounded operations.
PARTIAL_RTOL = 16 * EPS
SECOND_RTOL = 64 * EPS

# Values, in units in the last place, against 50 digits. Where a row's bound is 0, the result is exact or correctly rounded.
VALUE_ULP = 4

# The kernels' own elementary functions against 60 digits, in units in the last place.
ELEMENTARY_ULP = 2

# A recorded value and a replayed one that are subnormal: some libraries flush such results to zero.
SUBNORMAL = 2.3e-308

# Rows that round an argument before a steep function, as in exp(-(x * x)): the relative error is that of the argument, x * x * EPS.
STEEP = {
    "erf": lambda x: x * x,
    "erfc": lambda x: x * x,
    "ndtr": lambda x: x * x,
    "logaddexp": lambda x, y: abs(x - y),
    "logaddexp2": lambda x, y: abs(x - y),
}

# Rows with a root at which terms of this size cancel: below it the error is absolute.
CANCELLING = {
    "gammaln": lambda x: 10.0 + abs(x),
    "digamma": lambda x: 10.0,
    "polygamma": lambda order, x: 10.0 * 10.0**order,
    "logaddexp": lambda x, y: max(abs(x), abs(y), 1.0),
    "logaddexp2": lambda x, y: max(abs(x), abs(y), 1.0),
}
CANCELLING_SECOND = {"arctan2": lambda x, y: 1.0 / (x * x + y * y)}


def steepness(name, point):
    """How many times the rounding of an argument is amplified at a point."""
    return STEEP[name](*point) if name in STEEP else 0.0


def scale(name, point, order=0):
    """Size of the terms that may cancel at a point in a derivative of this order, or 0."""
    table = CANCELLING | CANCELLING_SECOND if order == 2 else CANCELLING
    return table[name](*point) if name in table else 0.0

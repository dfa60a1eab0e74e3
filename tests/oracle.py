"""What primitives are, told by mpmath at 50 digits: an interpreter of expression trees that shares no code with the kernels.

Values are those of a row's value expression, where every function called by name is mpmath's; partials are mpmath's numerical
derivatives of that value, so a wrong partial, a swapped pair and a lost term all show.
"""

from __future__ import annotations

import math

import mpmath
from mpmath import mp, mpf

from tapejit.expressions import CONSTANTS, OPERANDS, parse
from tapejit.ops import BY_NAME

DIGITS = 50
MOST_DIGITS = 800

# Constants as the exact numbers that they stand for: a rounded one in the table would otherwise agree with itself.
_EXACT = {
    "pi": lambda: mp.pi,
    "LN2": lambda: mp.log(2),
    "LN10": lambda: mp.log(10),
    "LOG2E": lambda: 1 / mp.log(2),
    "TWO_OVER_SQRT_PI": lambda: 2 / mp.sqrt(mp.pi),
    "SQRT_HALF": lambda: mp.sqrt(0.5),
    "ONE_OVER_SQRT_2PI": lambda: 1 / mp.sqrt(2 * mp.pi),
    "DEGREE": lambda: mp.pi / 180,
}
_BY_NUMBER = {CONSTANTS[name]: exact for name, exact in _EXACT.items()}


def _power(x, y):
    if x == 0 and y < 0:
        return mp.inf
    return mp.power(x, y) if x >= 0 or y == mp.floor(y) else mp.nan


def _gammaln(x):
    return mp.re(mp.loggamma(x))


def _copysign(x, y):
    return abs(x) if y > 0 or (y == 0 and math.copysign(1.0, float(y)) > 0) else -abs(x)


def _truncated(x):
    return mp.floor(x) if x >= 0 else mp.ceil(x)


_FUNCTIONS = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
    "abs": abs,
    "sqrt": mp.sqrt,
    "cbrt": lambda x: mp.sign(x) * mp.cbrt(abs(x)),
    "exp": mp.exp,
    "exp2": lambda x: mp.power(2, x),
    "expm1": mp.expm1,
    "log": mp.log,
    "log2": lambda x: mp.log(x, 2),
    "log10": mp.log10,
    "log1p": mp.log1p,
    "sin": mp.sin,
    "cos": mp.cos,
    "tan": mp.tan,
    "arcsin": mp.asin,
    "arccos": mp.acos,
    "arctan": mp.atan,
    "arctan2": mp.atan2,
    "sinh": mp.sinh,
    "cosh": mp.cosh,
    "tanh": mp.tanh,
    "arcsinh": mp.asinh,
    "arccosh": mp.acosh,
    "arctanh": mp.atanh,
    "hypot": mp.hypot,
    "erf": mp.erf,
    "erfc": mp.erfc,
    "gammaln": _gammaln,
    "digamma": mp.digamma,
    "polygamma": lambda n, x: mp.psi(int(n), x),
    "power": _power,
    "floor": mp.floor,
    "ceil": mp.ceil,
    "rint": mp.nint,
    "trunc": _truncated,
    "fmod": lambda x, y: x - y * _truncated(x / y),
    "remainder": lambda x, y: x - y * mp.floor(x / y),
    "floor_divide": lambda x, y: mp.floor(x / y),
    "copysign": _copysign,
    "isnan": mp.isnan,
    "isinf": mp.isinf,
    "isfinite": mp.isfinite,
}


def evaluate(tree, operands):
    """A tree in mpmath; `operands` maps the names of operands to mpf numbers. Complex results are NaN."""
    if isinstance(tree, str):
        return operands[tree]
    if isinstance(tree, float):
        return _BY_NUMBER[tree]() if tree in _BY_NUMBER else mpf(tree)
    name, *children = tree
    if name == "select":
        condition, chosen, other = children
        return evaluate(chosen if evaluate(condition, operands) else other, operands)
    arguments = [evaluate(child, operands) for child in children]
    if any(mp.isnan(argument) for argument in arguments if not isinstance(argument, bool)) and name not in (
        "isnan",
        "not_equal",
    ):
        return mp.nan
    if name in _FUNCTIONS:
        result = _FUNCTIONS[name](*arguments)
    else:
        result = evaluate(parse(BY_NAME[name].value), dict(zip(OPERANDS, arguments, strict=False)))
    return (
        mp.nan
        if isinstance(result, mpmath.mpc) and result.imag != 0
        else mp.re(result)
        if isinstance(result, mpmath.mpc)
        else result
    )


def function(op):
    """The value of a primitive as a function of mpf numbers."""
    tree = parse(op.value)

    def value(*arguments):
        return mpf(evaluate(tree, dict(zip(OPERANDS, arguments, strict=False))))

    return value


def value(op, *point):
    """The value of a primitive at a point of floats, mpf."""
    with mp.workdps(DIGITS):
        return function(op)(*map(mpf, point))


def derivative(op, orders, *point):
    """A derivative of a primitive at a point of floats, mpf; `orders` has one order an operand.

    A derivative much smaller than the value (that of tanh at 80) drowns in 50 digits, so digits are added until two results
    agree. Steps are relative to the operand, which may be 1e-300.
    """
    digits = DIGITS
    before = _derivative(op, orders, point, digits)
    while digits < MOST_DIGITS and not mp.isnan(before):
        digits *= 4
        now = _derivative(op, orders, point, digits)
        if now != 0 and abs(now - before) <= abs(now) * mpf(10) ** -20:
            return now
        before = now
    return before


def _derivative(op, orders, point, digits):
    with mp.workdps(digits):
        f = function(op)
        numbers = [mpf(number) for number in point]
        # In units of the operand itself: x = x0 * (1 + t).
        units = [number if number != 0 else mpf(1) for number in numbers]
        moving = [i for i, order in enumerate(orders) if order]

        def along(*ts):
            moved = list(numbers)
            for i, t in zip(moving, ts, strict=True):
                moved[i] += units[i] * t
            return f(*moved)

        factor = mp.fprod(units[i] ** orders[i] for i in moving)
        if len(moving) == 1:
            return mp.diff(along, 0, orders[moving[0]]) / factor
        return mp.diff(along, (0,) * len(moving), tuple(orders[i] for i in moving)) / factor

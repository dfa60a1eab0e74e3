"""The op table: one row a primitive, read by everything that must know it.

A row gives the value and the partials as expressions (`tapejit.expressions`) over the operands `x`, `y` and the result `v`.
The sweeps, the second partials, the NumPy names a primitive answers to, domain errors, the docs page and the tests are made
from the rows; nothing else in the package knows a derivative.

Where a formula was chosen for accuracy, the row says so. The opcode of a primitive is its position in the table. The four
arithmetic operations come first and at a multiple of four, so that the sweeps can tell them from the rest by two bits.

References
----------
.. [1] A. Griewank and A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM, 2008, chapter 2 (elemental partials).
.. [2] M. Abramowitz and I. A. Stegun, *Handbook of Mathematical Functions*, 1964, chapters 4, 6 and 7.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from functools import cache

from tapejit.expressions import OPERANDS, Tree, differentiate, names, parse, simplified

__all__ = ["BY_NAME", "CODE", "OPS", "Interval", "Op", "op_named", "partial_trees", "second_partial_trees"]


@dataclass(frozen=True)
class Interval:
    """Where an operand may lie; an end is open where the primitive has no finite value there."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, x: float) -> bool:
        above = x > self.low if self.low_open else x >= self.low
        below = x < self.high if self.high_open else x <= self.high
        return above and below

    def __str__(self) -> str:
        if self == REAL:
            return "real"
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"

    def condition(self, name: str) -> str:
        """The condition in words for an error: ``x > -1``."""
        low = f"{name} {'>' if self.low_open else '>='} {self.low:g}" if self.low > -math.inf else ""
        high = f"{name} {'<' if self.high_open else '<='} {self.high:g}" if self.high < math.inf else ""
        return " and ".join(part for part in (low, high) if part) or f"{name} real"


REAL = Interval()
ABOVE_ZERO = Interval(low=0.0, low_open=True)
NONNEGATIVE = Interval(low=0.0)
ABOVE_MINUS_ONE = Interval(low=-1.0, low_open=True)
AT_LEAST_ONE = Interval(low=1.0)
UNIT = Interval(-1.0, 1.0)
OPEN_UNIT = Interval(-1.0, 1.0, low_open=True, high_open=True)
PROBABILITY = Interval(0.0, 1.0, low_open=True, high_open=True)


@dataclass(frozen=True)
class Op:
    """A primitive. Expressions use `x`, `y` for the operands and `v` for the value just computed.

    Attributes
    ----------
    name : str
        What expressions, tapes and errors call it.
    value : str
        The result. The kernels' own implementation where it is just a call of `name` itself (``"exp(x)"``).
    partials : tuple of str
        One expression an operand.
    domain : tuple of Interval
        One interval an operand; outside of it the value and the partials are NaN.
    kink : str
        What the partial is where the derivative does not exist.
    seconds : tuple of str, optional
        Second partials ``(xx,)`` or ``(xx, xy, yy)`` where differentiating `partials` would meet 0 x inf or 0 / 0.
    numpy, math, scipy : tuple of str
        The functions of ``numpy``, ``math`` and ``scipy.special`` that it answers to.
    ulp : int
        Bound on the difference between a recorded value (NumPy's or Python's) and a replayed one, in units in the last place;
        next to a root (logaddexp, gammaln, digamma), in those of the terms that cancel there.
    boolean : bool
        Whether the result is a truth value.
    """

    name: str
    value: str
    partials: tuple[str, ...]
    domain: tuple[Interval, ...]
    kink: str = ""
    seconds: tuple[str, ...] | None = None
    numpy: tuple[str, ...] = ()
    math: tuple[str, ...] = ()
    scipy: tuple[str, ...] = ()
    ulp: int = 4
    boolean: bool = False

    def __post_init__(self) -> None:
        if len(self.partials) != len(self.domain):
            raise ValueError(
                f"primitive {self.name!r} has {len(self.partials)} partials and {len(self.domain)} domains; give one of "
                "each per operand"
            )
        if self.seconds is not None and len(self.seconds) != self.arity * (self.arity + 1) // 2:
            raise ValueError(f"primitive {self.name!r}: seconds are (xx,) for one operand, (xx, xy, yy) for two")
        allowed = {*OPERANDS[: self.arity], "v"}
        for text in (self.value, *self.partials, *(self.seconds or ())):
            strangers = {name for name in names(parse(text)) if name in OPERANDS} - allowed
            if strangers:
                raise ValueError(
                    f"primitive {self.name!r}: {text!r} reads {', '.join(sorted(strangers))}, which it lacks"
                )

    @property
    def arity(self) -> int:
        """Number of operands; `select` has three, of which the condition stands in the slot before it."""
        return len(self.partials)


def _compare(name: str, symbol: str) -> Op:
    return Op(name, f"x {symbol} y", ("0", "0"), (REAL, REAL), kink="0 everywhere", numpy=(name,), ulp=0, boolean=True)


# fmt: off
OPS: tuple[Op, ...] = (
    # Storage. `positive` also carries the third operand of the slot after it; see tape.py.
    Op("constant",      "nan",          (), (), ulp=0),
    Op("input",         "nan",          (), (), ulp=0),
    Op("block",         "nan",          (), (), ulp=0),
    Op("positive",      "x",            ("1",),                     (REAL,),        numpy=("positive",), ulp=0),
    # Arithmetic.
    Op("add",           "x + y",        ("1", "1"),                 (REAL, REAL),   numpy=("add",), ulp=0),
    Op("sub",           "x - y",        ("1", "-1"),                (REAL, REAL),   numpy=("subtract",), ulp=0),
    Op("mul",           "x * y",        ("y", "x"),                 (REAL, REAL),   numpy=("multiply",), ulp=0),
    Op("div",           "x / y",        ("1 / y", "-v / y"),        (REAL, REAL),   numpy=("divide",), ulp=0),
    Op("neg",           "-x",           ("-1",),                    (REAL,),        numpy=("negative",), ulp=0),
    Op("square",        "x * x",        ("x + x",),                 (REAL,),        numpy=("square",)),
    Op("cube",          "x * x * x",    ("3 * (x * x)",),           (REAL,)),
    Op("reciprocal",    "1 / x",        ("-v * v",),                (REAL,),        numpy=("reciprocal",)),
    # Split at x = 0, where y * x**(y - 1) is 0 x inf for y = 0 and v * log(x) is 0 x -inf for y > 0.
    Op("power",         "power(x, y)",  ("select(x == 0, select(y == 0, 0, y * power(x, y - 1)), y * power(x, y - 1))",
                                         "select(x == 0, select(y < 0, nan, 0), v * log(x))"),
       (REAL, REAL), kink="0 at x = 0 with respect to the exponent; NaN for x < 0 with respect to it",
       seconds=("select(y == 0, 0, select(y == 1, 0, y * (y - 1) * power(x, y - 2)))",
                "select(x == 0, select(y > 1, 0, nan), power(x, y - 1) * (1 + y * log(x)))",
                "select(x == 0, select(y < 0, nan, 0), v * log(x) * log(x))"),
       numpy=("power", "float_power"), math=("pow",)),
    # The exponent is passive: no logarithm of a negative base. What `x**y` with a plain number y is lowered to.
    Op("power_constant", "power(x, y)", ("select(y == 0, 0, y * power_constant(x, y - 1))", "0"), (REAL, REAL),
       kink="the exponent is passive"),
    # Powers, exponentials and logarithms. Outside the domain a partial is `v`, which is NaN there, rather than the number nan: so are
    # then its own derivatives.
    Op("sqrt",          "sqrt(x)",      ("1 / (v + v)",),           (NONNEGATIVE,), numpy=("sqrt",), math=("sqrt",), ulp=0,
       kink="inf at x = 0, the one-sided limit"),
    # sqrt of a sum of squares: x = 0 is the origin of a norm, where the adjoint of every coordinate is taken as 0.
    Op("length",        "sqrt(x)",      ("select(x == 0, 0, 1 / (v + v))",), (NONNEGATIVE,), ulp=0,
       kink="0 at x = 0: the norm at the origin"),
    Op("cbrt",          "cbrt(x)",      ("1 / (3 * (v * v))",),     (REAL,),        numpy=("cbrt",), math=("cbrt",), scipy=("cbrt",),
       kink="inf at x = 0"),
    Op("exp",           "exp(x)",       ("v",),                     (REAL,),        numpy=("exp",), math=("exp",)),
    Op("exp2",          "exp2(x)",      ("v * LN2",),               (REAL,),        numpy=("exp2",), math=("exp2",), scipy=("exp2",)),
    # exp(x), not v + 1: for x << 0 the sum cancels.
    Op("expm1",         "expm1(x)",     ("exp(x)",),                (REAL,),        numpy=("expm1",), math=("expm1",), scipy=("expm1",)),
    Op("log",           "log(x)",       ("select(x < 0, v, 1 / x)",),         (ABOVE_ZERO,), numpy=("log",), math=("log",)),
    Op("log2",          "log2(x)",      ("select(x < 0, v, 1 / (x * LN2))",), (ABOVE_ZERO,), numpy=("log2",), math=("log2",)),
    Op("log10",         "log10(x)",     ("select(x < 0, v, 1 / (x * LN10))",), (ABOVE_ZERO,), numpy=("log10",), math=("log10",)),
    Op("log1p",         "log1p(x)",     ("select(x < -1, v, 1 / (1 + x))",), (ABOVE_MINUS_ONE,), numpy=("log1p",), math=("log1p",),
       scipy=("log1p",)),
    # Trigonometry.
    Op("sin",           "sin(x)",       ("cos(x)",),                (REAL,),        numpy=("sin",), math=("sin",)),
    Op("cos",           "cos(x)",       ("-sin(x)",),               (REAL,),        numpy=("cos",), math=("cos",)),
    Op("tan",           "tan(x)",       ("1 + v * v",),             (REAL,),        numpy=("tan",), math=("tan",)),
    # (1 - x) * (1 + x), not 1 - x * x: no cancellation next to 1.
    Op("arcsin",        "arcsin(x)",    ("1 / sqrt((1 - x) * (1 + x))",),  (UNIT,), numpy=("arcsin",), math=("asin",),
       kink="inf at x = -1 and 1"),
    Op("arccos",        "arccos(x)",    ("-1 / sqrt((1 - x) * (1 + x))",), (UNIT,), numpy=("arccos",), math=("acos",),
       kink="-inf at x = -1 and 1"),
    # Second partial by hand: one factor after the other, so that no square of 1 + x * x underflows.
    Op("arctan",        "arctan(x)",    ("1 / (1 + x * x)",),       (REAL,),        numpy=("arctan",), math=("atan",),
       seconds=("-(x + x) / (1 + x * x) / (1 + x * x)",)),
    # y / h / h with h the hypotenuse, not y / (x * x + y * y): the squares overflow past 1e154.
    Op("arctan2",       "arctan2(x, y)", ("y / hypot(x, y) / hypot(x, y)", "-x / hypot(x, y) / hypot(x, y)"), (REAL, REAL),
       numpy=("arctan2",), math=("atan2",), kink="NaN at the origin"),
    Op("sinh",          "sinh(x)",      ("cosh(x)",),               (REAL,),        numpy=("sinh",), math=("sinh",)),
    Op("cosh",          "cosh(x)",      ("sinh(x)",),               (REAL,),        numpy=("cosh",), math=("cosh",)),
    # 1 / cosh(x)**2, not 1 - v * v: v rounds to 1 from x = 19 on.
    Op("tanh",          "tanh(x)",      ("1 / square(cosh(x))",),   (REAL,),        numpy=("tanh",), math=("tanh",),
       seconds=("-2 * v / square(cosh(x))",)),
    Op("arcsinh",       "arcsinh(x)",   ("1 / hypot(1, x)",),       (REAL,),        numpy=("arcsinh",), math=("asinh",)),
    # Two roots, not the root of a product: NaN below -1, as the value; no overflow past 1e154.
    Op("arccosh",       "arccosh(x)",   ("1 / (sqrt(x - 1) * sqrt(x + 1))",), (AT_LEAST_ONE,), numpy=("arccosh",), math=("acosh",),
       kink="inf at x = 1"),
    Op("arctanh",       "arctanh(x)",   ("select(abs(x) > 1, v, 1 / ((1 - x) * (1 + x)))",), (OPEN_UNIT,),
       numpy=("arctanh",), math=("atanh",)),
    # x / v, not x / sqrt(x * x + y * y): the square overflows past 1e154. Second partials by hand: 0 / 0 at the origin.
    Op("hypot",         "hypot(x, y)",  ("select(v == 0, 0, x / v)", "select(v == 0, 0, y / v)"), (REAL, REAL),
       kink="0 at the origin", numpy=("hypot",), math=("hypot",),
       seconds=("select(v == 0, 0, (y / v) * (y / v) / v)", "select(v == 0, 0, -((x / v) * (y / v) / v))",
                "select(v == 0, 0, (x / v) * (x / v) / v)")),
    Op("deg2rad",       "x * DEGREE",   ("DEGREE",),                (REAL,),        numpy=("deg2rad", "radians"), math=("radians",)),
    Op("rad2deg",       "x / DEGREE",   ("1 / DEGREE",),            (REAL,),        numpy=("rad2deg", "degrees"), math=("degrees",)),
    # Piecewise linear.
    Op("abs",           "abs(x)",       ("sign(x)",),               (REAL,),        numpy=("absolute", "fabs"), math=("fabs",), ulp=0,
       kink="0 at x = 0"),
    Op("sign",          "select(x > 0, 1, select(x < 0, -1, x))", ("0",), (REAL,),  numpy=("sign",), ulp=0, kink="0 at the jump"),
    Op("floor",         "floor(x)",     ("0",),                     (REAL,),        numpy=("floor",), ulp=0, kink="0 at the jumps"),
    Op("ceil",          "ceil(x)",      ("0",),                     (REAL,),        numpy=("ceil",), ulp=0, kink="0 at the jumps"),
    Op("rint",          "rint(x)",      ("0",),                     (REAL,),        numpy=("rint",), scipy=("round",), ulp=0,
       kink="0 at the jumps"),
    Op("trunc",         "trunc(x)",     ("0",),                     (REAL,),        numpy=("trunc", "fix"), ulp=0,
       kink="0 at the jumps"),
    # The quotient is (x - v) / y up to rounding, so its nearest integer is exact; trunc(x / y) is off by one next to jumps.
    Op("fmod",          "fmod(x, y)",   ("1", "rint((v - x) / y)"), (REAL, REAL),   numpy=("fmod",), math=("fmod",), ulp=0,
       kink="the partials of the piece that holds x"),
    Op("remainder",     "remainder(x, y)", ("1", "rint((v - x) / y)"), (REAL, REAL), numpy=("remainder",), ulp=0,
       kink="the partials of the piece that holds x"),
    Op("floor_divide",  "floor_divide(x, y)", ("0", "0"),           (REAL, REAL),   numpy=("floor_divide",), ulp=0,
       kink="0 at the jumps"),
    Op("copysign",      "copysign(x, y)", ("copysign(1, x) * copysign(1, y)", "0"), (REAL, REAL), numpy=("copysign",),
       math=("copysign",), ulp=0, kink="at x = 0 the sign bits decide"),
    Op("maximum",       "select(x >= y, x, select(y > x, y, x + y))",
       ("select(x > y, 1, select(x < y, 0, select(x == y, 0.5, nan)))", "select(y > x, 1, select(y < x, 0, select(x == y, 0.5, nan)))"),
       (REAL, REAL), numpy=("maximum",), ulp=0, kink="half to each of two equals"),
    Op("minimum",       "select(x <= y, x, select(y < x, y, x + y))",
       ("select(x < y, 1, select(x > y, 0, select(x == y, 0.5, nan)))", "select(y < x, 1, select(y > x, 0, select(x == y, 0.5, nan)))"),
       (REAL, REAL), numpy=("minimum",), ulp=0, kink="half to each of two equals"),
    Op("fmax",          "select(x >= y, x, select(y > x, y, select(x == x, x, y)))",
       ("select(x > y, 1, select(x < y, 0, select(x == y, 0.5, select(x == x, 1, 0))))",
        "select(y > x, 1, select(y < x, 0, select(x == y, 0.5, select(x == x, 0, 1))))"),
       (REAL, REAL), numpy=("fmax",), ulp=0, kink="half to each of two equals; a NaN operand loses"),
    Op("fmin",          "select(x <= y, x, select(y < x, y, select(x == x, x, y)))",
       ("select(x < y, 1, select(x > y, 0, select(x == y, 0.5, select(x == x, 1, 0))))",
        "select(y < x, 1, select(y > x, 0, select(x == y, 0.5, select(x == x, 0, 1))))"),
       (REAL, REAL), numpy=("fmin",), ulp=0, kink="half to each of two equals; a NaN operand loses"),
    # Sums of exponentials. The larger operand is taken out, so that nothing overflows; inf - inf is half each.
    Op("logaddexp",     "select(x == y, x + LN2, maximum(x, y) + log1p(exp(-abs(x - y))))",
       ("select(isnan(x - y), select(x == y, 0.5, nan), expit(x - y))", "select(isnan(x - y), select(x == y, 0.5, nan), expit(y - x))"),
       (REAL, REAL), numpy=("logaddexp",)),
    Op("logaddexp2",    "select(x == y, x + 1, maximum(x, y) + LOG2E * log1p(exp2(-abs(x - y))))",
       ("select(isnan(x - y), select(x == y, 0.5, nan), expit((x - y) * LN2))",
        "select(isnan(x - y), select(x == y, 0.5, nan), expit((y - x) * LN2))"),
       (REAL, REAL), numpy=("logaddexp2",)),
    # v * expit(-x), not v * (1 - v): v rounds to 1 from x = 37 on. Second partial by hand: the difference cancels next to 0.
    Op("expit",         "1 / (1 + exp(-x))", ("v * expit(-x)",),    (REAL,),        scipy=("expit",),
       seconds=("-(v * expit(-x) * tanh(0.5 * x))",)),
    Op("log_expit",     "minimum(x, 0) - log1p(exp(-abs(x)))", ("expit(-x)",), (REAL,), scipy=("log_expit",)),
    Op("softplus",      "maximum(x, 0) + log1p(exp(-abs(x)))", ("expit(x)",), (REAL,), scipy=("softplus",)),
    # log1p away from 0: x / (1 - x) rounds next to 1, where its logarithm vanishes.
    Op("logit",         "select(x < 0.25, log(x / (1 - x)), log1p((x + x - 1) / (1 - x)))",
       ("select(x < 0, v, select(x > 1, v, 1 / (x * (1 - x))))",), (PROBABILITY,), scipy=("logit",)),
    Op("xlogy",         "select(x == 0, select(isnan(y), nan, 0), x * log(y))",
       ("log(y)", "select(y < 0, v, select(y == 0, select(x == 0, 0, x / y), x / y))"),
       (REAL, NONNEGATIVE), scipy=("xlogy",), kink="at the origin -inf with respect to x, 0 with respect to y"),
    # Special functions.
    # SciPy rounds x * x before the exponential: far out, the libraries' erfc differ by x * x units in the last place.
    Op("erf",           "erf(x)",       ("TWO_OVER_SQRT_PI * exp(-(x * x))",),  (REAL,), math=("erf",), scipy=("erf",)),
    Op("erfc",          "erfc(x)",      ("-TWO_OVER_SQRT_PI * exp(-(x * x))",), (REAL,), math=("erfc",), scipy=("erfc",), ulp=1024),
    Op("ndtr",          "0.5 * erfc(-(x * SQRT_HALF))", ("ONE_OVER_SQRT_2PI * exp(-0.5 * (x * x))",), (REAL,), scipy=("ndtr",), ulp=1024),
    Op("gammaln",       "gammaln(x)",   ("digamma(x)",),            (REAL,),        math=("lgamma",), scipy=("gammaln",), ulp=16,
       kink="NaN at the negative integers, infinite at 0"),
    Op("digamma",       "digamma(x)",   ("select(isnan(v), v, polygamma(1, x))",), (REAL,), scipy=("digamma", "psi"), ulp=64,
       kink="NaN at the negative integers, inf at 0"),
    # The order comes first, as in SciPy; it is an integer and passive.
    Op("polygamma",     "polygamma(x, y)", ("nan", "select(x < 0, v, polygamma(x + 1, y))"), (NONNEGATIVE, REAL), ulp=64,
       kink="NaN with respect to the order"),
    # Truth values: 1.0 or 0.0 on the tape; they become decisions only through a guard.
    _compare("less", "<"),
    _compare("less_equal", "<="),
    _compare("greater", ">"),
    _compare("greater_equal", ">="),
    _compare("equal", "=="),
    _compare("not_equal", "!="),
    Op("logical_and",   "select(x != 0, y != 0, 0)", ("0", "0"),    (REAL, REAL),   numpy=("logical_and", "bitwise_and"), ulp=0, boolean=True),
    Op("logical_or",    "select(x != 0, 1, y != 0)", ("0", "0"),    (REAL, REAL),   numpy=("logical_or", "bitwise_or"), ulp=0, boolean=True),
    Op("logical_xor",   "(x != 0) != (y != 0)", ("0", "0"),         (REAL, REAL),   numpy=("logical_xor", "bitwise_xor"), ulp=0, boolean=True),
    Op("logical_not",   "x == 0",       ("0",),                     (REAL,),        numpy=("logical_not", "invert"), ulp=0, boolean=True),
    Op("isnan",         "x != x",       ("0",),                     (REAL,),        numpy=("isnan",), math=("isnan",), ulp=0, boolean=True),
    Op("isinf",         "abs(x) == inf", ("0",),                    (REAL,),        numpy=("isinf",), math=("isinf",), ulp=0, boolean=True),
    Op("isfinite",      "abs(x) < inf", ("0",),                     (REAL,),        numpy=("isfinite",), math=("isfinite",), ulp=0, boolean=True),
    Op("signbit",       "copysign(1, x) < 0", ("0",),               (REAL,),        numpy=("signbit",), ulp=0, boolean=True),
    # `x` where the condition in the slot before is true, else `y`; the other operand's adjoint is left alone, NaN or not.
    Op("select",        "nan",          ("nan", "nan"),             (REAL, REAL),   ulp=0, kink="the adjoint goes to the chosen operand only"),
    # Adjoint x partial in nested transforms: a zero adjoint contributes nothing, so 0 x inf is 0 (docs/notation.md).
    Op("chain",         "select(x == 0, 0, x * y)", ("y", "x"),     (REAL, REAL),   ulp=0),
)
# fmt: on

BY_NAME: dict[str, Op] = {op.name: op for op in OPS}
CODE: dict[str, int] = {op.name: code for code, op in enumerate(OPS)}

CONSTANT, INPUT, BLOCK, POSITIVE = (CODE[name] for name in ("constant", "input", "block", "positive"))
ADD, SUB, MUL, DIV = (CODE[name] for name in ("add", "sub", "mul", "div"))
SELECT, CHAIN = CODE["select"], CODE["chain"]
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")

# Rows that users add with `tj.primitive` count up from here; the sweeps call them through a table of function pointers.
FIRST_USER = 128
USER: list[Op] = []


def op_named(name: str) -> Op:
    """The row called `name`.

    Raises
    ------
    KeyError
        If there is none; names the nearest.
    """
    try:
        return BY_NAME[name]
    except KeyError:
        nearest = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=0.0)[0]
        raise KeyError(f"no primitive {name!r}; the nearest is {nearest!r}. To add one, see tj.primitive") from None


def op_coded(code: int) -> Op:
    """The row with a given opcode."""
    return OPS[code] if code < FIRST_USER else USER[code - FIRST_USER]


def check_names(op: Op) -> None:
    """Raise ValueError if an expression of a row calls something that is not a primitive, or with another number of operands."""

    def visit(tree: Tree, text: str) -> None:
        if isinstance(tree, tuple):
            name, *children = tree
            arity = op.arity if name == op.name else op_named(name).arity + (name == "select")
            if not arity or len(children) != arity:
                raise ValueError(
                    f"primitive {op.name!r}: {text!r} calls {name} with {len(children)} operands; it takes {arity}"
                )
            for child in children:
                visit(child, text)

    for text in (op.value, *op.partials, *(op.seconds or ())):
        try:
            visit(parse(text), text)
        except KeyError as error:
            raise ValueError(f"primitive {op.name!r}: {text!r}: {error.args[0]}") from None
    if op.name in set(names(parse(op.value))):
        raise ValueError(f"primitive {op.name!r}: its value calls itself")


def add_row(op: Op) -> int:
    """Add a user's row to the table; gives its opcode. The same row again is the one already there.

    Raises
    ------
    ValueError
        If another row has this name, or the table is full (128 user rows).
    """
    if op.name in BY_NAME:
        if BY_NAME[op.name] == op and CODE[op.name] >= FIRST_USER:
            return CODE[op.name]
        raise ValueError(
            f"there is a primitive {op.name!r} already, with another definition: tapes may hold it, so it cannot change; "
            "choose another name"
        )
    code = FIRST_USER + len(USER)
    if code > 255:
        raise ValueError("no room for another primitive: an opcode is one byte, which leaves 128 rows to users")
    USER.append(op)
    BY_NAME[op.name] = op
    CODE[op.name] = code
    return code


@cache
def partial_trees(name: str) -> tuple[Tree, ...]:
    """The partials of a primitive as expression trees, one an operand."""
    return tuple(parse(text) for text in op_named(name).partials)


@cache
def second_partial_trees(name: str) -> tuple[Tree, ...]:
    """Second partials ``(xx,)`` or ``(xx, xy, yy)``: given in the row, else `partials` differentiated."""
    op = op_named(name)
    if op.seconds is not None:
        return tuple(parse(text) for text in op.seconds)
    first = partial_trees(name)
    pairs = ((), ((0, 0),), ((0, 0), (0, 1), (1, 1)))[op.arity]
    return tuple(simplified_second(first[i], OPERANDS[j], first[j]) for i, j in pairs)


def simplified_second(partial: Tree, operand: str, v_dot: Tree) -> Tree:
    """The derivative of a partial along one operand, `v` following along."""
    tree = differentiate(partial, operand, partial_trees, v_dot)
    return simplified(tree[0], *tree[1:]) if isinstance(tree, tuple) else tree

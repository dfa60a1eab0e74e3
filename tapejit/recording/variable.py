"""Active scalars: define-by-run, one small object a value, no lists of parents.

The value a `Variable` carries is the plain function's own: Python's arithmetic, or NumPy's where NumPy was called. Where Python would raise
(1 / 0, an overflow), it is what NumPy gives, so that a line search can step back.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tapejit import ops
from tapejit.errors import PassiveConversionError, TapeError, UnsupportedError
from tapejit.ops import CODE
from tapejit.recording.recorder import Tape, innermost, source_line

__all__ = ["Truth", "Variable", "lift_scalar", "power_lowered", "record_scalar"]

_PLAIN = (float, int, np.floating, np.integer, np.bool_)


class Variable:
    """An active scalar on a tape. Made by `Tape.input` and by arithmetic; never by hand.

    Attributes
    ----------
    tape : Tape
        Where it is recorded.
    slot : int
        Its place there.
    """

    __slots__ = ("_value", "slot", "tape")
    __hash__ = None  # type: ignore[assignment]  # == is recorded, so equal variables could not share a hash

    def __init__(self, tape: Tape, slot: int, value: float) -> None:
        self.tape = tape
        self.slot = slot
        self._value = value

    @property
    def value(self) -> float:
        """The primal, that of the last replay if there was one."""
        return float(self.tape.value[self.slot])

    @property
    def grad(self) -> float:
        """Accumulated gradient of an input; 0.0 before the first `backward`."""
        return float(self.tape.grad_of(np.array([self.slot]))[0])

    def backward(self, seed: float = 1.0) -> None:
        """Reverse sweep from here; adds ``seed * d self / d x`` to the gradient of every input x.

        Parameters
        ----------
        seed : float
            The adjoint of this variable.

        Examples
        --------
        >>> import tapejit as tj
        >>> with tj.Tape() as tape:
        ...     x, y = tape.input(2.0), tape.input(5.0)
        ...     f = x * y + x
        >>> f.backward()
        >>> x.grad, y.grad
        (6.0, 2.0)
        """
        self.tape.backward(np.array([self.slot]), np.array([float(seed)]))

    # What NumPy code asks of a scalar.
    shape = ()
    ndim = 0
    size = 1
    dtype = np.dtype(np.float64)

    @property
    def real(self) -> Variable:
        return self

    @property
    def T(self) -> Variable:
        return self

    def item(self) -> Variable:
        return self

    def conjugate(self) -> Variable:
        return self

    conj = conjugate

    def copy(self) -> Variable:
        return self

    def astype(self, dtype: Any, copy: bool = True) -> Variable:
        if np.dtype(dtype) != np.float64:
            raise UnsupportedError(
                f"active values are float64; astype({np.dtype(dtype)}) would change them ({source_line()})"
            )
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({float(self.tape.value[self.slot])!r})"

    def __format__(self, spec: str) -> str:
        return format(float(self.tape.value[self.slot]), spec)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        # The common case, np.sin(x), short: in scalar code it is most of what a call costs.
        if len(inputs) == 1 and method == "__call__" and not kwargs:
            code = _unary_code(ufunc)
            if code is not None:
                return record_scalar(code, self, value=float(ufunc(self._value)))
        from tapejit.recording.numpy_rules import call_ufunc

        return call_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from tapejit.recording.numpy_rules import call_function

        return call_function(function, args, kwargs, like=self)

    # Decisions.

    def __bool__(self) -> bool:
        return bool(self != 0.0)

    def __index__(self) -> int:
        """An integer-valued result (floor, rint, ...) used as an index: a decision that a replay must find again."""
        if self.tape.code_at(self.slot) not in _INTEGER_VALUED:
            raise PassiveConversionError(
                f"an active value is used as an integer ({source_line()}); say how it is rounded: np.floor(x), np.rint(x), or "
                "pass int(tj.value(x)), which has no derivative"
            )
        self.tape.guard([self.slot], [self._value])
        return int(self._value)

    def __int__(self) -> int:
        if self.tape.code_at(self.slot) in _INTEGER_VALUED:
            return self.__index__()
        raise PassiveConversionError(
            f"int(x) of an active value would drop its derivative ({source_line()}); write np.trunc(x), or int(tj.value(x)) for the "
            "plain number"
        )

    def __float__(self) -> float:
        raise PassiveConversionError(
            f"an active value is being turned into a plain float, which would drop its derivative ({source_line()}): write np.sin(x) "
            "instead of math.sin(x); allocate with np.zeros(n, like=x) instead of np.zeros(n), as a float array cannot hold "
            "active values; or tj.value(x) for the plain number"
        )

    def __complex__(self) -> complex:
        raise PassiveConversionError(f"active values are real ({source_line()}); tj.value(x) gives the plain number")

    def __round__(self, n_digits: int | None = None) -> Variable:
        if n_digits:
            raise UnsupportedError(
                f"round(x, {n_digits}) of an active value is not supported ({source_line()}); write np.rint(x)"
            )
        return record_scalar(CODE["rint"], self, value=float(np.rint(self._value)))

    def __trunc__(self) -> Variable:
        return record_scalar(CODE["trunc"], self, value=float(np.trunc(self._value)))

    def __floor__(self) -> Variable:
        return record_scalar(CODE["floor"], self, value=float(np.floor(self._value)))

    def __ceil__(self) -> Variable:
        return record_scalar(CODE["ceil"], self, value=float(np.ceil(self._value)))

    # Powers, signs.

    def __pow__(self, exponent: Any, modulus: None = None) -> Any:
        if modulus is not None:
            raise TypeError("pow() of an active value takes no third argument")
        if isinstance(exponent, _PLAIN):
            return power_lowered(self, float(exponent), _power(self._value, float(exponent)))
        return _POWER(self, exponent)

    def __neg__(self) -> Variable:
        return record_scalar(CODE["neg"], self, value=-self._value)

    def __pos__(self) -> Variable:
        return self

    def __abs__(self) -> Variable:
        return record_scalar(CODE["abs"], self, value=abs(self._value))

    def __divmod__(self, other: Any) -> tuple:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple:
        return other // self, other % self


class Truth(Variable):
    """The outcome of an active comparison: a slot that holds 1.0 or 0.0. It becomes a decision only through ``bool``."""

    __slots__ = ()
    dtype = np.dtype(bool)  # type: ignore[assignment]

    def __bool__(self) -> bool:
        self.tape.guard([self.slot], [self._value])
        return self._value != 0.0

    def __repr__(self) -> str:
        return f"Truth({bool(self.tape.value[self.slot])})"

    def __invert__(self) -> Truth:
        return record_scalar(CODE["logical_not"], self, value=float(not self._value))  # type: ignore[return-value]


_INTEGER_VALUED = frozenset(CODE[name] for name in ("floor", "ceil", "rint", "trunc", "sign", "floor_divide"))
_BOOLEAN = frozenset(code for code, op in enumerate(ops.OPS) if op.boolean)


@cache
def _unary_code(ufunc: np.ufunc) -> int | None:
    """Opcode of the primitive of one operand that a ufunc is; None if it is none."""
    from tapejit.recording.elementwise import op_of_ufunc

    op = op_of_ufunc(ufunc)
    return CODE[op.name] if op is not None and op.arity == 1 and ufunc is not np.invert else None


def record_scalar(code: int, x: Variable, y: Variable | None = None, *, value: float) -> Variable:
    """Record one primitive of variables of one tape."""
    tape = x.tape
    if tape.careful:
        tape.check_domain(code, (x._value,) if y is None else (x._value, y._value), value)
    slot = tape.push(code, x.slot, 0 if y is None else y.slot, value)
    return (Truth if code in _BOOLEAN else Variable)(tape, slot, value)


def lift_scalar(tape: Tape, x: Any) -> Variable:
    """A plain number, or a variable of this tape or of one around it, as a variable of this tape."""
    if isinstance(x, Variable):
        if x.tape is tape:
            return x
        if innermost((x, Variable(tape, 0, 0.0))) is not tape:
            raise TapeError(
                f"a value of an inner tape is used on an outer one ({source_line()}); return it from the inner function"
            )
        return Variable(tape, tape.link(x.tape, np.array([x.slot])), x._value)
    if isinstance(x, (complex, np.complexfloating)):
        raise UnsupportedError(f"active values are real, got the complex number {x} ({source_line()})")
    return Variable(tape, tape.constant(float(x)), float(x))


def _power(x: float, y: float) -> float:
    try:
        v = x**y
    except (ZeroDivisionError, OverflowError):
        v = None
    if isinstance(v, float):
        return v
    with np.errstate(all="ignore"):
        return float(np.power(x, y))


def _divide(x: float, y: float) -> float:
    try:
        return x / y
    except ZeroDivisionError:
        return math.copysign(math.inf, x) * math.copysign(1.0, y) if x and x == x else math.nan


def _remainder(x: float, y: float) -> float:
    try:
        return x % y
    except ZeroDivisionError:
        return math.nan


def _floor_divide(x: float, y: float) -> float:
    try:
        return x // y
    except ZeroDivisionError:
        return _divide(x, y)


# x**y with a plain number y: one rule for scalars, arrays and compiled code.
_LOWERED = {2.0: CODE["square"], 3.0: CODE["cube"], 0.5: CODE["sqrt"], -1.0: CODE["reciprocal"]}


def power_lowered(x: Variable, exponent: float, value: float) -> Variable:
    """Record ``x**exponent`` for a plain exponent as square, cube, root, reciprocal or a power with a passive exponent."""
    if exponent == 1.0:
        return x
    if exponent == 0.0:
        return lift_scalar(x.tape, 1.0)
    if (code := _LOWERED.get(exponent)) is not None:
        return record_scalar(code, x, value=value)
    return record_scalar(CODE["power_constant"], x, lift_scalar(x.tape, exponent), value=value)


def _binary(code: int, compute: Callable[[float, float], float], result: type[Variable]) -> tuple[Callable, Callable]:
    """The two methods of a binary operator. The common cases stand first and are written out: recording a scalar costs what they cost."""

    def method(self: Variable, other: Any) -> Any:
        tape = self.tape
        kind = other.__class__
        if kind is Variable and other.tape is tape:
            rhs = other.slot
            y = other._value
        elif kind is float or kind is int:
            y = float(other)
            rhs = tape.constant(y)
        else:
            return general(self, other, swapped=False)
        value = compute(self._value, y)
        slot = tape.n_slots
        if slot >= tape.limit:
            return record_scalar(code, self, Variable(tape, rhs, y), value=value)
        tape.push_opcode(code)
        tape.push_lhs(self.slot)
        tape.push_rhs(rhs)
        tape.push_value(value)
        tape.n_slots = slot + 1
        return result(tape, slot, value)

    def reflected(self: Variable, other: Any) -> Any:
        kind = other.__class__
        tape = self.tape
        if kind is not float and kind is not int:
            return general(self, other, swapped=True)
        x = float(other)
        lhs = tape.constant(x)
        value = compute(x, self._value)
        slot = tape.n_slots
        if slot >= tape.limit:
            return record_scalar(code, Variable(tape, lhs, x), self, value=value)
        tape.push_opcode(code)
        tape.push_lhs(lhs)
        tape.push_rhs(self.slot)
        tape.push_value(value)
        tape.n_slots = slot + 1
        return result(tape, slot, value)

    def general(self: Variable, other: Any, swapped: bool) -> Any:
        if isinstance(other, Variable):
            tape = innermost((self, other))
        elif isinstance(other, (*_PLAIN, complex, np.complexfloating)):
            tape = self.tape
        elif isinstance(other, (list, tuple)):
            if code == ops.MUL:  # Python would repeat the list, an integer-valued variable times.
                raise TypeError(
                    f"can't multiply a {type(other).__name__} by an active value ({source_line()}); make it an array first"
                )
            ufunc = getattr(np, ops.op_coded(code).numpy[0])
            return ufunc(other, self) if swapped else ufunc(self, other)
        else:
            return NotImplemented
        x, y = lift_scalar(tape, self), lift_scalar(tape, other)
        if swapped:
            x, y = y, x
        return record_scalar(code, x, y, value=float(compute(x._value, y._value)))

    return method, reflected


def _install() -> None:
    arithmetic = {
        "add": (ops.ADD, operator.add),
        "sub": (ops.SUB, operator.sub),
        "mul": (ops.MUL, operator.mul),
        "truediv": (ops.DIV, _divide),
        "mod": (CODE["remainder"], _remainder),
        "floordiv": (CODE["floor_divide"], _floor_divide),
    }
    for name, (code, compute) in arithmetic.items():
        method, reflected = _binary(code, compute, Variable)
        setattr(Variable, f"__{name}__", method)
        setattr(Variable, f"__r{name}__", reflected)
    comparisons = {
        "lt": "less",
        "le": "less_equal",
        "gt": "greater",
        "ge": "greater_equal",
        "eq": "equal",
        "ne": "not_equal",
    }
    for name, row in comparisons.items():
        setattr(Variable, f"__{name}__", _binary(CODE[row], getattr(operator, name), Truth)[0])
    for name, row in {"and": "logical_and", "or": "logical_or", "xor": "logical_xor"}.items():
        method, reflected = _binary(
            CODE[row], _logical({"and": operator.and_, "or": operator.or_, "xor": operator.xor}[name]), Truth
        )
        setattr(Truth, f"__{name}__", method)
        setattr(Truth, f"__r{name}__", reflected)


def _logical(combine: Callable) -> Callable[[float, float], float]:
    """A logical operator on numbers."""
    return lambda x, y: combine(x != 0.0, y != 0.0)


_POWER, _RPOWER = _binary(CODE["power"], _power, Variable)
Variable.__rpow__ = _RPOWER  # type: ignore[attr-defined]
_install()

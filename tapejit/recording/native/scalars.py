"""Operators, `math` and ufuncs on active scalars in compiled code, generated from the op table.

The value is computed by whatever Numba itself would compile for float64 in the same place, flags of the function included, so it is
bit-identical to the plain function's; what is added is one call that appends the slot. Typing and lowering work on types and LLVM values
directly, without a Python function for each primitive: that is what keeps the compile time of an active version low.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from functools import reduce

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, typing
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin, overload, overload_attribute, overload_method

from tapejit import ops
from tapejit.ops import CODE, Op
from tapejit.recording.native import user_rows
from tapejit.recording.native.active import (
    ActiveBool,
    ActiveFloat,
    active_bool,
    active_float,
    build,
    call_named,
    is_active_type,
    parts,
)
from tapejit.recording.native.header import WATCHING
from tapejit.recording.native.memory import symbol

__all__ = ["functions_of", "register"]

_INT64, _DOUBLE = ir.IntType(64), ir.DoubleType()
_SCALAR = (types.Float, types.Integer, types.Boolean)

# Python's operators and builtin functions; `math` and NumPy names stand in the rows.
OPERATORS: dict[str, tuple[Callable, ...]] = {
    "add": (operator.add, operator.iadd),
    "sub": (operator.sub, operator.isub),
    "mul": (operator.mul, operator.imul),
    "div": (operator.truediv, operator.itruediv),
    "floor_divide": (operator.floordiv, operator.ifloordiv),
    "remainder": (operator.mod, operator.imod),
    "power": (operator.pow, operator.ipow, builtins.pow),
    "neg": (operator.neg,),
    "positive": (operator.pos,),
    "abs": (builtins.abs,),
    "less": (operator.lt,),
    "less_equal": (operator.le,),
    "greater": (operator.gt,),
    "greater_equal": (operator.ge,),
    "equal": (operator.eq,),
    "not_equal": (operator.ne,),
}
# What becomes an integer is a decision: its derivative is 0 between the jumps, and a replay must find the same one.
TO_INTEGER = {
    builtins.int: "trunc",
    builtins.round: "rint",
    math.floor: "floor",
    math.ceil: "ceil",
    math.trunc: "trunc",
}
# By which comparison the later operand replaces the earlier one, as in Python.
EXTREMES = {builtins.max: "greater", builtins.min: "less"}


def functions_of(op: Op) -> tuple[Callable, ...]:
    """The Python, `math` and NumPy functions that a row answers to in compiled code."""
    named = [getattr(module, name, None) for module, names in ((np, op.numpy), (math, op.math)) for name in names]
    return (*OPERATORS.get(op.name, ()), *(function for function in named if function is not None))


def _is_scalar(kind) -> bool:
    return is_active_type(kind) or isinstance(kind, _SCALAR)


def _plain(kind):
    """The type that stands in the plain function where an active one stands here."""
    if isinstance(kind, ActiveFloat):
        return types.float64
    return types.boolean if isinstance(kind, ActiveBool) else kind


def _plain_signature(context, function, args):
    """What Numba makes of a call with plain arguments; None if nothing."""
    kind = context.resolve_value_type(function)
    return kind, kind.get_call_type(context, tuple(_plain(arg) for arg in args), {})


def _template(function, result_of, arities) -> None:
    """Type the calls of a function that have an active scalar among their arguments."""

    class ActiveTemplate(AbstractTemplate):
        key = function

        def generic(self, args, kws):
            if kws or len(args) not in arities or not any(is_active_type(arg) for arg in args):
                return None
            if not all(_is_scalar(arg) for arg in args):
                return None
            _, plain = _plain_signature(self.context, function, args)
            result = result_of(plain.return_type) if plain is not None else None
            if isinstance(result, types.Integer) and any(isinstance(arg, ActiveFloat) for arg in args):
                result = plain.return_type if function in TO_INTEGER else None
            return typing.signature(result, *args) if result is not None else None

    ActiveTemplate.__name__ = f"active_{getattr(function, '__name__', 'function')}"
    infer_global(function, types.Function(ActiveTemplate))


def _plain_value(context, builder, function, signature, args):
    """The plain function's own value for these arguments, and the float64 and word of each."""
    kind, plain = _plain_signature(context.typing_context, function, signature.args)
    pairs = [_parts(context, builder, given, arg) for given, arg in zip(signature.args, args, strict=True)]
    values = []
    for given, wanted, arg, (number, _) in zip(signature.args, plain.args, args, pairs, strict=True):
        if isinstance(given, ActiveFloat):
            values.append(context.cast(builder, number, types.float64, wanted))
        elif isinstance(given, ActiveBool):
            outcome = cgutils.create_struct_proxy(given)(context, builder, value=arg).outcome
            values.append(context.cast(builder, outcome, types.boolean, wanted))
        elif isinstance(wanted, types.Literal):
            values.append(arg)
        else:
            values.append(context.cast(builder, arg, given, wanted))
    context.typing_context.refresh()
    value = context.get_function(kind, plain)(builder, values)
    return plain.return_type, value, pairs


def _parts(context, builder, kind, value):
    if isinstance(kind, types.Literal):
        # A static operand comes as a Python number.
        number = float(kind.literal_value)
        return ir.Constant(_DOUBLE, number), ir.Constant(_INT64, 0)
    return parts(context, builder, kind, value)


def _lower(function, arity, generate) -> None:
    active, plain = (ActiveFloat, ActiveBool), _SCALAR
    shapes = [(a,) for a in active]
    if arity == 2:
        shapes = [(a, b) for a in active for b in (*active, *plain)] + [(b, a) for a in active for b in plain]
    for shape in shapes:
        lower_builtin(function, *shape)(generate)


def _to_active(plain):
    return active_float if plain == types.float64 else plain if isinstance(plain, types.Integer) else None


def _counted(context, builder, function, signature, args):
    """Arithmetic of truth values and integers, which gives an integer: decisions."""
    decided = [types.boolean if isinstance(kind, ActiveBool) else kind for kind in signature.args]
    values = [context.cast(builder, arg, *kinds) for arg, *kinds in zip(args, signature.args, decided, strict=True)]
    return _plain_value(context, builder, function, typing.signature(signature.return_type, *decided), values)[1]


def _arithmetic(op: Op, function: Callable) -> None:
    """A function whose result is a number: the value, and one push."""
    code = ops.CODE.get(op.name, -1) if op in ops.OPS else ops.FIRST_USER + ops.USER.index(op)
    is_power = op.name == "power"

    def generate(context, builder, signature, args):
        if not isinstance(signature.return_type, ActiveFloat):
            return _counted(context, builder, function, signature, args)
        _, value, pairs = _plain_value(context, builder, function, signature, args)
        if is_power:
            word = call_named(builder, "push_power", [*pairs[0], *pairs[1], value])
        elif op.arity == 1:
            word = call_named(builder, "push_one", [ir.Constant(_INT64, code), pairs[0][1], value])
        else:
            word = call_named(builder, "push_two", [ir.Constant(_INT64, code), *pairs[0], *pairs[1], value])
        return build(context, builder, value, word)

    _template(function, _to_active, (op.arity,))
    _lower(function, op.arity, generate)


def _watched(context, builder, words, record, otherwise=None):
    """Call `record` where some tape keeps guards or an operand is poison; the word it gives, else `otherwise`, or 0."""
    flag = builder.load(builder.gep(symbol(builder.module, "tapejit_flags", _INT64), [ir.Constant(_INT64, WATCHING)]))
    word = cgutils.alloca_once(builder, _INT64)
    builder.store(ir.Constant(_INT64, 0) if otherwise is None else otherwise, word)
    negative = builder.ashr(reduce(builder.or_, words), ir.Constant(_INT64, 63))
    rare = builder.icmp_signed("!=", builder.or_(flag, negative), ir.Constant(_INT64, 0))
    with builder.if_then(rare, likely=False):
        builder.store(record(), word)
    return builder.load(word)


def _comparison(op: Op, function: Callable) -> None:
    """A function whose result is a truth value: recorded only where a tape keeps guards."""

    def generate(context, builder, signature, args):
        plain, value, pairs = _plain_value(context, builder, function, signature, args)
        pairs = [*pairs, (ir.Constant(_DOUBLE, 0.0), ir.Constant(_INT64, 0))][:2]

        def record():
            outcome = context.cast(builder, value, plain, types.float64)
            return call_named(
                builder, "push_compare", [ir.Constant(_INT64, CODE[op.name]), *pairs[0], *pairs[1], outcome]
            )

        proxy = cgutils.create_struct_proxy(active_bool)(context, builder)
        proxy.outcome = value
        proxy.word = _watched(context, builder, [word for _, word in pairs], record)
        return proxy._getvalue()

    _template(function, lambda plain: active_bool if plain == types.boolean else None, (op.arity,))
    _lower(function, op.arity, generate)


def _to_integer(name: str, function: Callable) -> None:
    def generate(context, builder, signature, args):
        plain, value, [(_, word)] = _plain_value(context, builder, function, signature, args)

        def record():
            rounded = context.cast(builder, value, plain, types.float64)
            return call_named(builder, "push_integer", [ir.Constant(_INT64, CODE[name]), word, rounded])

        _watched(context, builder, [word], record)
        return value

    _template(function, lambda plain: plain if isinstance(plain, types.Integer) else None, (1,))
    lower_builtin(function, ActiveFloat)(generate)
    lower_builtin(function, ActiveBool)(lambda *call: _counted(call[0], call[1], function, *call[2:]))


def _extreme(name: str, function: Callable) -> None:
    """``max`` and ``min`` of several scalars: pairs, from the left, as Numba does it. The result is one of the operands.

    So is its derivative; for replays the choice is recorded, and needs no guard.
    """

    class ActiveTemplate(AbstractTemplate):
        key = function

        def generic(self, args, kws):
            if kws or len(args) < 2 or not any(isinstance(arg, ActiveFloat) for arg in args):
                return None
            return typing.signature(active_float, *args) if all(_is_scalar(arg) for arg in args) else None

        def get_impl_key(self, signature):
            return key  # not that of Numba's own, which takes any arguments

    key = f"tapejit.{name}"
    infer_global(function)(ActiveTemplate)

    def generate(context, builder, signature, args):
        pairs = [_parts(context, builder, kind, arg) for kind, arg in zip(signature.args, args, strict=True)]
        compare = operator.gt if function is max else operator.lt
        plain = context.get_function(compare, typing.signature(types.boolean, types.float64, types.float64))

        def pair(x, y):
            takes_y = plain(builder, (y[0], x[0]))
            value = builder.select(takes_y, y[0], x[0])

            def record():
                outcome = context.cast(builder, takes_y, types.boolean, types.float64)
                condition = call_named(builder, "push_compare", [ir.Constant(_INT64, CODE[name]), *y, *x, outcome])
                return call_named(builder, "push_choice", [condition, *y, *x, outcome, value])

            chosen = builder.select(takes_y, y[1], x[1])
            return value, _watched(context, builder, [x[1], y[1]], record, chosen)

        return build(context, builder, *reduce(pair, pairs))

    lower_builtin(key, types.VarArg(types.Any))(generate)


def _identity(function: Callable) -> None:
    _template(function, _to_active, (1,))
    lower_builtin(function, ActiveFloat)(lambda context, builder, signature, args: args[0])
    lower_builtin(function, ActiveBool)(
        lambda context, builder, signature, args: context.cast(builder, args[0], active_bool, active_float)
    )


def register(op: Op) -> None:
    """Let compiled code record a row of the op table under all its names."""
    if op.arity == 0 or op.name in ("select", "chain"):
        return
    for function in functions_of(op):
        (_comparison if op.boolean else _arithmetic)(op, function)


def register_primitive(primitive: Callable) -> None:
    """Let compiled code record a primitive of the user's."""
    _arithmetic(primitive.op, primitive)  # type: ignore[attr-defined]


for _op in ops.OPS:
    register(_op)
for _primitive in user_rows.made:
    register_primitive(_primitive)
for _function, _name in TO_INTEGER.items():
    _to_integer(_name, _function)
for _function, _name in EXTREMES.items():
    _extreme(_name, _function)
_identity(builtins.float)


@infer_global(builtins.bool)
class _Decision(AbstractTemplate):
    key = builtins.bool

    def generic(self, args, kws):
        if len(args) == 1 and is_active_type(args[0]):
            return typing.signature(types.boolean, args[0])
        return None


@lower_builtin(builtins.bool, ActiveBool)
def _decide(context, builder, signature, args):
    return context.cast(builder, args[0], active_bool, types.boolean)


@lower_builtin(builtins.bool, ActiveFloat)
def _decide_nonzero(context, builder, signature, args):
    zero = ir.Constant(_DOUBLE, 0.0)
    unequal = typing.signature(active_bool, active_float, types.float64)
    outcome = context.get_function(operator.ne, unequal)(builder, (args[0], zero))
    return context.cast(builder, outcome, active_bool, types.boolean)


@overload(builtins.divmod)
def _divmod(x, y):
    if any(isinstance(kind, ActiveFloat) for kind in (x, y)) and _is_scalar(x) and _is_scalar(y):
        return lambda x, y: (x // y, x % y)
    return None


@overload(operator.getitem)
def _of_no_dimension(x, index):
    """``x[()]``: arrays without dimensions are handed over as numbers."""
    if isinstance(x, ActiveFloat) and isinstance(index, types.BaseTuple) and len(index) == 0:
        return lambda x, index: x
    return None


@overload_attribute(ActiveFloat, "real")
def _real(x):
    return lambda x: x


@overload_attribute(ActiveFloat, "imag")
def _imag(x):
    return lambda x: 0.0


@overload_method(ActiveFloat, "conjugate")
def _conjugate(x):
    return lambda x: x

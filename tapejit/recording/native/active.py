"""The types of active numbers in compiled code, and how they meet plain numbers.

`ActiveFloat` is a float64 with the word that says where it stands on a tape (`tapejit.recording.native.push`); `ActiveBool` is the
outcome of a comparison with the word of its slot. Both are 16 bytes. A plain number becomes an active one with the word 0 wherever
Numba has to unify the two (``s = 0.0; s += x[i]``). The other way there is no conversion: what would drop a derivative does not compile.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typeconv import Conversion
from numba.extending import box, intrinsic, lower_cast, make_attribute_wrapper, models, register_model

from tapejit.recording.native import fast_push
from tapejit.recording.native.header import POISON
from tapejit.recording.native.memory import symbol

__all__ = ["CELL", "active_bool", "active_float", "is_active_array", "is_active_type", "make_active", "parts"]

# One active number in memory, as NumPy sees it.
CELL = np.dtype([("value", np.float64), ("slot", np.int32), ("tape", np.int32)])


class ActiveFloat(types.Type):
    """A float64 on a tape, or a plain one with the word 0."""

    def __init__(self):
        super().__init__("active_float")

    def can_convert_from(self, typingctx, other):
        if isinstance(other, (types.Float, types.Integer, types.Boolean, ActiveBool)) and not _is_wide(other):
            return Conversion.safe
        return None

    def unify(self, typingctx, other):
        if isinstance(other, types.Literal):
            other = other.literal_type
        return self if self.can_convert_from(typingctx, other) is not None else None


class ActiveBool(types.Type):
    """The outcome of a comparison of active numbers; its word is 0 unless the tape keeps guards."""

    def __init__(self):
        super().__init__("active_bool")

    def can_convert_to(self, typingctx, other):
        return Conversion.safe if isinstance(other, types.Boolean) else None

    def unify(self, typingctx, other):
        return types.boolean if isinstance(other, types.Boolean) else None


def _is_wide(number):
    return isinstance(number, types.Float) and number.bitwidth > 64


active_float = ActiveFloat()
active_bool = ActiveBool()


@register_model(ActiveFloat)
class _ActiveFloatModel(models.StructModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, [("value", types.float64), ("word", types.int64)])


@register_model(ActiveBool)
class _ActiveBoolModel(models.StructModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, [("outcome", types.boolean), ("word", types.int64)])


make_attribute_wrapper(ActiveFloat, "value", "_value")
make_attribute_wrapper(ActiveFloat, "word", "_word")
make_attribute_wrapper(ActiveBool, "outcome", "_outcome")
make_attribute_wrapper(ActiveBool, "word", "_word")


def is_active_type(kind) -> bool:
    return isinstance(kind, (ActiveFloat, ActiveBool))


def is_active_array(kind) -> bool:
    return isinstance(kind, types.Array) and isinstance(kind.dtype, ActiveFloat)


def is_active(kind) -> bool:
    """Whether a type holds active numbers anywhere."""
    if isinstance(kind, types.Optional):
        return is_active(kind.type)
    if isinstance(kind, types.BaseTuple):
        return any(is_active(part) for part in kind)
    if isinstance(kind, (types.Array, types.List, types.Set, types.ListType)):
        return is_active(kind.dtype)
    if isinstance(kind, types.DictType):
        return is_active(kind.value_type) or is_active(kind.key_type)
    if isinstance(kind, types.StarArgTuple):
        return any(is_active(part) for part in kind.types)
    return is_active_type(kind)


# Code generation that the lowering functions share.


def parts(context, builder, kind, value):
    """The float64 and the word of a scalar, active or not."""
    if isinstance(kind, ActiveFloat):
        return builder.extract_value(value, 0), builder.extract_value(value, 1)
    if isinstance(kind, ActiveBool):
        proxy = cgutils.create_struct_proxy(kind)(context, builder, value=value)
        return context.cast(builder, proxy.outcome, types.boolean, types.float64), proxy.word
    return context.cast(builder, value, kind, types.float64), ir.Constant(ir.IntType(64), 0)


def build(context, builder, value, word):
    """An active number of a float64 and a word."""
    proxy = cgutils.create_struct_proxy(active_float)(context, builder)
    proxy.value, proxy.word = value, word
    return proxy._getvalue()


_INT64, _DOUBLE = ir.IntType(64), ir.DoubleType()


def call_named(builder, name, args):
    """Call one of the functions that `push.install` registers; all give an int64."""
    kind = ir.FunctionType(_INT64, [arg.type for arg in args])
    callee = symbol(builder.module, f"tapejit_{name}", kind)
    if name in fast_push.NAMES:
        callee.calling_convention = fast_push.CONVENTION
    return builder.call(callee, args, cconv=callee.calling_convention)


@lower_cast(types.Float, ActiveFloat)
@lower_cast(types.Integer, ActiveFloat)
@lower_cast(types.Boolean, ActiveFloat)
@lower_cast(ActiveBool, ActiveFloat)
def _lift(context, builder, given, wanted, value):
    return build(context, builder, *parts(context, builder, given, value))


@lower_cast(ActiveBool, types.Boolean)
def _outcome(context, builder, given, wanted, value):
    """A recorded comparison becomes a decision."""
    proxy = cgutils.create_struct_proxy(given)(context, builder, value=value)
    with builder.if_then(builder.icmp_signed("!=", proxy.word, ir.Constant(_INT64, 0)), likely=False):
        call_named(builder, "decide", [proxy.word, context.cast(builder, proxy.outcome, types.boolean, types.float64)])
    return proxy.outcome


@box(ActiveFloat)
def _as_python(kind, value, c):
    """What ``print`` shows of an active number."""
    return c.box(types.float64, c.builder.extract_value(value, 0))


@intrinsic
def make_active(typingctx, value, word):
    """An active number of its value and its word."""

    def generate(context, builder, signature, args):
        return build(context, builder, *args)

    return active_float(types.float64, types.int64), generate


@intrinsic
def poison(typingctx):
    """What memory holds that was allocated and never written."""

    def generate(context, builder, signature, args):
        return build(context, builder, ir.Constant(_DOUBLE, float("nan")), ir.Constant(_INT64, POISON))

    return active_float(), generate

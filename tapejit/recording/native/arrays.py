"""Operators and ufuncs on whole active arrays in compiled code, for the same functions as on scalars.

An elementwise operation is a loop over scalar ones, each of which records its slot (`tapejit.recording.native.scalars`): no derivative is
repeated here. What a call gives is asked of Numba, for the plain arrays that stand in the plain function: so are its dimensions, its
layout, its broadcasting and what it refuses. The loop is Numba's own too, built as LLVM code without a Python function in between, which
is what keeps the compile time of an active version low.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, typing
from numba.core.errors import TypingError
from numba.core.imputils import force_error_model
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin
from numba.np import arrayobj, npyimpl

from tapejit import ops
from tapejit.ops import Op
from tapejit.recording.native.active import ActiveBool, ActiveFloat, active_float, is_active_array, is_active_type
from tapejit.recording.native.numpy_functions import plain_type
from tapejit.recording.native.scalars import functions_of

__all__ = ["elements", "operand", "register"]

# What Numba calls for ``a += b`` on arrays is the ufunc; for ``a + b``, the operator of the elements.
IN_PLACE: dict[Callable, np.ufunc] = {
    operator.iadd: np.add,
    operator.isub: np.subtract,
    operator.imul: np.multiply,
    operator.itruediv: np.true_divide,
    operator.ifloordiv: np.floor_divide,
    operator.imod: np.remainder,
    operator.ipow: np.power,
}


def _element(kind):
    return kind.dtype if isinstance(kind, types.Array) else kind


def _meets_active(args) -> bool:
    """Whether a call has an array and something active."""
    return any(isinstance(arg, types.Array) for arg in args) and any(is_active_type(_element(arg)) for arg in args)


def _active_result(plain):
    """The type of a result, of the plain one; arrays of no dimensions give scalars."""
    if _element(plain) == types.boolean:
        return plain
    if _element(plain) != types.float64:
        return None
    return plain.copy(dtype=active_float) if isinstance(plain, types.Array) else active_float


def _checked_output(function, kind, plain) -> None:
    """An explicit output must be able to hold the result."""
    if is_active_array(kind) or plain.dtype == types.boolean:
        return
    name = getattr(function, "__name__", "the operation")
    raise TypingError(
        f"{name} writes active values into a plain {kind.dtype} array, which cannot hold them; make the array inside the "
        "differentiated function, or pass it as a float64 argument"
    )


def _template(function: Callable, n_operands: int) -> str:
    """Type the calls of a function that have an array and something active among their arguments; gives the key of its code."""
    in_place = function in IN_PLACE
    code = (
        f"tapejit.{getattr(function, '__name__', function)}.{'ufunc' if isinstance(function, np.ufunc) else 'operator'}"
    )

    class ActiveArrayTemplate(AbstractTemplate):
        key = function
        metadata = {
            "target": "cpu"
        }  # tried before Numba's own, which fails on active in-place operands with an error of its own

        def generic(self, args, kws):
            if kws or not _meets_active(args):
                return None
            kind = self.context.resolve_value_type(function)
            plain = kind.get_call_type(self.context, tuple(map(plain_type, args)), {})
            result = _active_result(plain.return_type)
            if result is None:
                return None
            outputs = args[:1] if in_place else args[n_operands:]
            for output in outputs:
                _checked_output(function, output, plain.return_type)
                result = output
            return typing.signature(result, *args)

        def get_impl_key(self, signature):
            return code

    ActiveArrayTemplate.__name__ = f"active_{getattr(function, '__name__', 'function')}"
    infer_global(function)(ActiveArrayTemplate)
    return code


def operand(context, builder, kind, value):
    """An operand that Numba's loops can read: an active scalar as an array of no dimensions."""
    if isinstance(kind, ActiveBool):
        return types.boolean, context.cast(builder, value, kind, types.boolean)
    if not isinstance(kind, ActiveFloat):
        return kind, value
    array_type = types.Array(active_float, 0, "C")
    array = arrayobj.make_array(array_type)(context, builder)
    data = cgutils.alloca_once_value(builder, context.get_value_as_data(builder, kind, value))
    size = context.get_constant(types.intp, context.get_abi_sizeof(data.type.pointee))
    arrayobj.populate_array(array, data=data, shape=(), strides=(), itemsize=size, meminfo=None)
    return array_type, array._getvalue()


def _kernel(function: Callable) -> type:
    """The body of the loop: the function on scalars."""

    class Kernel(npyimpl._Kernel):
        def generate(self, *values):
            kinds = [
                types.literal(value) if isinstance(value, int) else kind
                for value, kind in zip(values, self.outer_sig.args, strict=True)
            ]
            callee = self.context.typing_context.resolve_value_type(function)
            signature = callee.get_call_type(self.context.typing_context, tuple(kinds), {})
            values = [
                value if isinstance(value, int) else self.cast(value, kind, wanted)
                for value, kind, wanted in zip(values, kinds, signature.args, strict=True)
            ]
            with force_error_model(self.context, "numpy"):
                result = self.context.get_function(callee, signature)(self.builder, values)
            return self.cast(result, signature.return_type, self.outer_sig.return_type)

    return Kernel


def _check_shapes(context, builder, output, operands) -> None:
    """Numba trusts the shapes of explicit outputs; what lies behind the end of an active array would be taken for a slot."""
    bad = cgutils.false_bit
    wanted = _shape(context, builder, *output)
    for operand in operands:
        shape = _shape(context, builder, *operand)
        if len(shape) > len(wanted):
            raise TypingError(f"an operand of {len(shape)} dimensions does not fit into an output of {len(wanted)}")
        for extent, limit in zip(shape[::-1], wanted[::-1], strict=False):
            repeats = builder.icmp_signed("==", extent, ir.Constant(extent.type, 1))
            fits = builder.or_(repeats, builder.icmp_signed("==", extent, limit))
            bad = builder.or_(bad, builder.not_(fits))
    with cgutils.if_unlikely(builder, bad):
        message = "operands could not be broadcast together with the shape of the output"
        context.call_conv.return_user_exc(builder, ValueError, (message,))


def _shape(context, builder, kind, value) -> list:
    if not isinstance(kind, types.Array):
        return []
    array = arrayobj.make_array(kind)(context, builder, value)
    return cgutils.unpack_tuple(builder, array.shape, kind.ndim)


def elements(context, builder, kinds, values) -> list:
    """The scalars that arrays of no dimensions hold, among scalars."""
    pairs = zip(values, kinds, strict=True)
    return [npyimpl._prepare_argument(context, builder, value, kind).load_data(()) for value, kind in pairs]


def _lower(code: str, function: Callable, n_operands: int) -> None:
    kernel = _kernel(IN_PLACE.get(function, function))
    shape = SimpleNamespace(nin=n_operands, nout=1, nargs=n_operands + 1, __name__=code)

    def generate(context, builder, signature, args):
        operands = [operand(context, builder, kind, arg) for kind, arg in zip(signature.args, args, strict=True)]
        if function in IN_PLACE:
            operands.append((signature.args[0], args[0]))
        kinds, values = zip(*operands, strict=True)
        if not isinstance(signature.return_type, types.Array):
            scalars = typing.signature(signature.return_type, *map(_element, kinds))
            return kernel(context, builder, scalars).generate(*elements(context, builder, kinds, values))
        for output in operands[n_operands:]:
            _check_shapes(context, builder, output, operands[:n_operands])
        loop = typing.signature(signature.return_type, *kinds)
        return npyimpl.numpy_ufunc_kernel(context, builder, loop, values, shape, kernel)

    lower_builtin(code, types.VarArg(types.Any))(generate)


def register(op: Op) -> None:
    """Let compiled code record a row of the op table on arrays, under all its names that Numba knows for arrays."""
    if op.arity == 0 or op.name in ("select", "chain"):
        return
    for function in functions_of(op):
        if isinstance(function, np.ufunc) or function.__module__ == "_operator":
            _lower(_template(function, op.arity), function, op.arity)


for _op in ops.OPS:
    register(_op)

"""Memory by address, and calls through function pointers, inside kernels.

Block descriptors hold addresses (index tables, passive arrays), and the C functions of the op table and of BLAS come as addresses too:
so a kernel depends on nothing but its arguments and can be cached on disk.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["call_gemm", "call_partial", "call_value", "load_float", "load_index", "store_float"]

_DOUBLE = ir.DoubleType()
_INT64 = ir.IntType(64)
_INT32 = ir.IntType(32)
_BYTE = ir.IntType(8)


@intrinsic
def load_float(typingctx, address, index):
    """The float64 at ``address + 8 * index``."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _DOUBLE.as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return types.float64(types.int64, types.int64), generate


@intrinsic
def store_float(typingctx, address, index, number):
    """Put a float64 at ``address + 8 * index``."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _DOUBLE.as_pointer())
        builder.store(args[2], builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float64), generate


@intrinsic
def load_index(typingctx, address, index):
    """The int32 at ``address + 4 * index``, as an int64."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _INT32.as_pointer())
        return builder.sext(builder.load(builder.gep(pointer, [args[1]])), _INT64)

    return types.int64(types.int64, types.int64), generate


def _calls(n_integers, n_pointers):
    """Code generation for a call of ``void f(int64 ..., double * ...)``, whose address comes first."""

    def generate(context, builder, signature, args):
        pointer_type = _DOUBLE.as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [_INT64] * n_integers + [pointer_type] * n_pointers)
        function = builder.inttoptr(args[0], function_type.as_pointer())
        pointers = [builder.inttoptr(arg, pointer_type) for arg in args[1 + n_integers :]]
        builder.call(function, [*args[1 : 1 + n_integers], *pointers])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (1 + n_integers + n_pointers)), generate


@intrinsic
def call_value(typingctx, function, code, n, x, y, out):
    """``out[i] = value of primitive code at x[i], y[i]`` for i < n; the arrays are addresses."""
    return _calls(2, 3)


@intrinsic
def call_partial(typingctx, function, code, which, n, x, y, v, out):
    """``out[i] = partial (first or second) number which of primitive code`` for i < n; the arrays are addresses."""
    return _calls(3, 4)


def _blas_arguments(builder, args, kinds):
    """BLAS takes everything by reference: characters, ints and doubles are put on the stack, arrays pass as they are."""
    from numba.core import cgutils

    out = []
    for arg, kind in zip(args, kinds, strict=True):
        if kind == "p":
            out.append(builder.inttoptr(arg, _DOUBLE.as_pointer()))
        else:
            number = {
                "c": lambda a: builder.trunc(a, _BYTE),
                "i": lambda a: builder.trunc(a, _INT32),
                "d": lambda a: a,
            }[kind](arg)
            place = cgutils.alloca_once(builder, number.type)
            builder.store(number, place)
            out.append(place)
    return out


def _blas(kinds):
    def generate(context, builder, signature, args):
        arguments = _blas_arguments(builder, args[1:], kinds)
        function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), arguments)
        return context.get_dummy_value()

    native = {"c": types.int64, "i": types.int64, "d": types.float64, "p": types.int64}
    return types.void(types.int64, *[native[kind] for kind in kinds]), generate


@intrinsic
def call_gemm(typingctx, function, transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """BLAS ``dgemm`` (column-major) at the address `function`."""
    return _blas("cciiidpipidpi")

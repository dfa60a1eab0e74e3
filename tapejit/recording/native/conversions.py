"""Plain numbers as active ones, the plain values of active ones, and values of a library in recorded slots."""

from __future__ import annotations

from types import SimpleNamespace

import numba
import numpy as np
from numba import types
from numba.core import typing
from numba.extending import intrinsic, overload, overload_method
from numba.np import npyimpl

from tapejit.recording.native.active import ActiveFloat, active_float, build, call_named, is_active, parts
from tapejit.recording.native.numpy_functions import implements
from tapejit.sweeps.kernel import FLAGS
from tapejit.sweeps.kernel import _KernelCache as KernelCache

__all__ = ["cells", "helper", "lifted", "to_active", "values", "with_value"]


def helper(function):
    """Compile a function that compiled code calls, once for all callers, and keep it with the kernels."""
    dispatcher = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **FLAGS)(function)
    dispatcher._cache = KernelCache(function)
    return dispatcher


def to_active(x):
    """A copy of float64 numbers that can stand on a tape: of a scalar, an array, a list or a tuple; anything else as it is."""
    raise NotImplementedError("to_active works in compiled code only")


@overload(to_active)
def _to_active(x):
    if not _has_floats(x):
        return lambda x: x
    if isinstance(x, types.BaseTuple):
        return _to_active_tuple(x)
    return (lambda x: [to_active(item) for item in x]) if isinstance(x, types.List) else lambda x: lifted(x)


def _to_active_tuple(kind):
    items = "".join(f"to_active(x[{i}]), " for i in range(len(kind)))
    namespace = {"to_active": to_active}
    exec(f"def convert(x):\n    return ({items})\n", namespace)
    return namespace["convert"]


def _has_floats(kind) -> bool:
    if isinstance(kind, types.BaseTuple):
        return any(_has_floats(item) for item in kind)
    # Not lists of arrays: one of them may stand there twice, or elsewhere too.
    return kind.dtype == types.float64 if isinstance(kind, (types.List, types.Array)) else kind == types.float64


def _elementwise(name: str, n_operands: int, generate, result_of, keeps_layout: bool = True):
    """An intrinsic on scalars and arrays; `generate` builds one element of the operands' types and values."""

    class Kernel(npyimpl._Kernel):
        def generate(self, *given):
            return generate(self.context, self.builder, self.outer_sig.args, given)

    loop = SimpleNamespace(nin=n_operands, nout=1, nargs=n_operands + 1, __name__=name)

    def lower(context, builder, signature, args):
        if isinstance(signature.return_type, types.Array):
            return npyimpl.numpy_ufunc_kernel(context, builder, signature, args, loop, Kernel)
        return generate(context, builder, signature.args, args)

    def typed(*kinds):
        result = result_of
        if isinstance(kinds[0], types.Array):
            layout = "F" if keeps_layout and all(kind.layout == "F" for kind in kinds) else "C"
            result = types.Array(result_of, kinds[0].ndim, layout)
        return typing.signature(result, *kinds), lower

    return typed


def _cast(context, builder, kinds, args):
    return context.cast(builder, args[0], kinds[0], active_float)


_lift = _elementwise("lifted", 1, _cast, active_float)
_copy = _elementwise("cells", 1, _cast, active_float, keeps_layout=False)
_value = _elementwise(
    "values", 1, lambda context, builder, kinds, args: parts(context, builder, kinds[0], args[0])[0], types.float64
)


def _with_value_of(context, builder, kinds, args):
    word = parts(context, builder, kinds[0], args[0])[1]
    return build(context, builder, args[1], call_named(builder, "set_value", [word, args[1]]))


_replace = _elementwise("with_value", 2, _with_value_of, active_float)


@intrinsic
def lifted(typingctx, x):
    """A number, or each of an array's, as an active one: on no tape, unless it is active already."""
    return _lift(x)


@intrinsic
def cells(typingctx, x):
    """A contiguous active copy of an array, active or plain: what functions that are compiled once for all layouts take."""
    return _copy(x)


@intrinsic
def values(typingctx, x):
    """The float64 of an active number, or of each in a new array; plain ones are converted."""
    return _value(x)


@intrinsic
def with_value(typingctx, x, value):
    """Active `x` with another primal, in its slot too: that of the library that the plain function calls."""
    return _replace(x, value)


@overload_method(ActiveFloat, "item")
def _item(x):
    return lambda x: x


@implements(np.conjugate)
def _conjugate(x):
    return (lambda x: lifted(x)) if is_active(x) else None


@implements(np.finfo)
def _limits(dtype):
    is_active_dtype = isinstance(dtype, types.DType) and isinstance(dtype.dtype, ActiveFloat)
    return (lambda dtype: np.finfo(np.float64)) if is_active_dtype or isinstance(dtype, ActiveFloat) else None

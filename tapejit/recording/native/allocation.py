"""Arrays that can hold active numbers: what NumPy's allocators make where the activity analysis asks for it.

Every stub gives what the NumPy function gives, with the same values and on no tape; float64 becomes active, any other dtype stays as it
is. Memory that is allocated and not written holds poison, so that reading it is an error whatever the allocator left there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import types
from numba.core import typing
from numba.core.errors import TypingError
from numba.core.imputils import impl_ret_new_ref
from numba.core.typing.npydecl import parse_dtype, parse_shape
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin
from numba.np import arrayobj
from numba.np.arrayobj import numpy_empty_like_nd, numpy_empty_nd
from numba.np.numpy_support import is_nonelike

from tapejit.errors import UnsupportedError
from tapejit.recording.native.active import (
    ActiveFloat,
    active_float,
    is_active,
    is_active_array,
    is_active_type,
    poison,
)
from tapejit.recording.native.conversions import lifted, to_active
from tapejit.recording.native.numpy_functions import Call, implements

__all__ = ["ALLOCATORS", "check_dtype", "is_default_dtype"]

ACTIVE = active_float  # compiled code sees a dtype
ALLOCATORS: dict[Callable, Callable] = {}


def is_default_dtype(dtype) -> bool:
    """Whether a dtype argument leaves the choice to the function."""
    return is_nonelike(dtype) or dtype is float or (isinstance(dtype, types.Function) and dtype.typing_key is float)


def check_dtype(name: str, dtype) -> None:
    """Refuse to make active numbers something else."""
    if is_default_dtype(dtype):
        return
    kind = parse_dtype(dtype)
    if kind is None:
        raise TypingError(f"{name} needs a dtype that is known when the function is compiled, got {dtype}")
    if kind not in (types.float64, active_float):
        raise UnsupportedError(
            f"{name} converts active numbers to {kind}, which loses the derivative; keep float64, or take int(x) of single "
            "numbers where an integer is meant"
        )


# Allocators.


@intrinsic
def _filled(typingctx, array, number):
    """Fill an array that has just been allocated; gives the array."""

    def generate(context, builder, signature, args):
        view = arrayobj.make_array(array)(context, builder, args[0])
        kind = types.Array(array.dtype, 1, "C")
        with arrayobj.cgutils.for_range(builder, view.nitems) as loop:
            arrayobj.store_item(context, builder, kind, args[1], builder.gep(view.data, [loop.index]))
        return arrayobj.impl_ret_borrowed(context, builder, array, args[0])

    return array(array, array.dtype), generate


@implements(np.empty)
def _empty(shape, dtype=float):
    kind = _of_shape(shape, dtype)
    return None if kind is None else lambda shape, dtype=float: _filled(numpy_empty_nd(shape, dtype, kind), poison())


@implements(np.zeros)
def _zeros(shape, dtype=float):
    kind = _of_shape(shape, dtype)
    return None if kind is None else lambda shape, dtype=float: _filled(numpy_empty_nd(shape, dtype, kind), lifted(0.0))


@implements(np.empty_like)
def _empty_like(arr, dtype=None):
    kind = _of_prototype(arr, dtype)
    return None if kind is None else lambda arr, dtype=None: _filled(numpy_empty_like_nd(arr, dtype, kind), poison())


@implements(np.zeros_like)
def _zeros_like(a, dtype=None):
    kind = _of_prototype(a, dtype)
    return None if kind is None else lambda a, dtype=None: _filled(numpy_empty_like_nd(a, dtype, kind), lifted(0.0))


@implements(np.ones_like)
def _ones_like(a, dtype=None):
    kind = _of_prototype(a, dtype)
    return None if kind is None else lambda a, dtype=None: _filled(numpy_empty_like_nd(a, dtype, kind), lifted(1.0))


def _of_shape(shape, dtype):
    """The type of an active array of some shape; None unless the dtype is active."""
    n_dimensions = parse_shape(shape)
    if is_default_dtype(dtype) or not isinstance(parse_dtype(dtype), ActiveFloat) or n_dimensions is None:
        return None
    return types.Array(active_float, n_dimensions, "C")


def _of_prototype(prototype, dtype):
    """The type of an active array like another, of which Numba keeps the layout; None unless the dtype is active."""
    item = getattr(prototype, "dtype", prototype) if is_nonelike(dtype) else parse_dtype(dtype)
    if not isinstance(item, ActiveFloat):
        return None
    if not isinstance(prototype, types.Array):
        return types.Array(active_float, 0, "C")
    layout = "C" if prototype.layout == "A" else prototype.layout
    return prototype.copy(dtype=active_float, layout=layout, readonly=False)


def _stub(function: Callable) -> Callable:
    """A function of the same arguments whose result is active, where the result of `function` is float64."""

    def stub(*args, **kwargs):
        raise NotImplementedError("active allocators work in compiled code only")

    stub.__name__ = function.__name__
    code = f"tapejit.{function.__name__}"
    calls = {}  # what typing has found, for lowering

    class Template(AbstractTemplate):
        key = stub

        def generic(self, args, kws):
            made = Call(self.context, function, args, kws)
            if function in _TAKE_DTYPE and getattr(made.result, "dtype", None) == types.float64:
                last = Call(self.context, function, (made.args[0], types.TypeRef(active_float)))
                calls[made.args] = None, last
            else:
                last = Call(self.context, to_active, (made.result,))
                calls[made.args] = made, last
            return typing.signature(last.result, *made.args).replace(pysig=made.signature.pysig)

        def get_impl_key(self, signature):
            return code

    def generate(context, builder, signature, args):
        made, last = calls[signature.args]
        if made is None:
            return last.lower(context, builder, [args[0], context.get_dummy_value()])
        plain = made.lower(context, builder, args)
        result = last.lower(context, builder, [plain])
        context.nrt.decref(builder, made.result, plain)
        return result

    infer_global(stub, types.Function(Template))
    lower_builtin(code, types.VarArg(types.Any))(generate)
    return stub


_TAKE_DTYPE = (np.zeros, np.empty, np.zeros_like, np.empty_like)  # of two arguments, and fast
for _function in (
    *_TAKE_DTYPE,
    *(np.ones, np.full, np.ones_like, np.full_like, np.eye, np.identity, np.arange, np.linspace, np.array, np.copy),
):
    ALLOCATORS[_function] = _stub(_function)


# NumPy's functions themselves, where an argument is active.


@intrinsic
def _array_of(typingctx, items):
    """``np.array`` of nested lists and tuples, some number of which is active."""
    n_dimensions, _ = _nested(items)
    result = types.Array(active_float, n_dimensions, "C")

    def generate(context, builder, signature, args):
        shape = arrayobj.compute_sequence_shape(context, builder, n_dimensions, items, args[0])
        arrayobj.check_sequence_shape(context, builder, items, args[0], shape)
        array = arrayobj._empty_nd_impl(context, builder, result, shape)
        arrayobj.assign_sequence_to_array(context, builder, array.data, shape, array.strides, result, items, args[0])
        return impl_ret_new_ref(context, builder, result, array._getvalue())

    return result(items), generate


def _nested(kind) -> tuple[int, bool]:
    """Depth of nested sequences, and whether an active number is among the items."""
    if isinstance(kind, types.Sequence):
        parts = [_nested(kind.dtype)]
    elif isinstance(kind, types.BaseTuple) and len(kind):
        parts = [_nested(item) for item in kind]
    elif is_active_type(kind) or isinstance(kind, (types.Float, types.Integer, types.Boolean)):
        return 0, is_active_type(kind)
    else:
        raise TypingError(f"np.array makes no active array of {kind}; give nested lists or tuples of numbers")
    if len({depth for depth, _ in parts}) > 1:
        raise TypingError(f"np.array needs sequences of the same depth, got {kind}")
    return 1 + parts[0][0], any(active for _, active in parts)


@implements(np.array)
def _array(object, dtype=None):
    if not is_active(object) or is_active_array(object):
        return None
    check_dtype("np.array", dtype)
    if is_active_type(object):
        return lambda object, dtype=None: _filled(np.zeros((), ACTIVE), object)
    return lambda object, dtype=None: _array_of(object)


@implements(np.asarray)
def _asarray(a, dtype=None):
    if not is_active(a):
        return None
    check_dtype("np.asarray", dtype)
    return (lambda a, dtype=None: a) if is_active_array(a) else lambda a, dtype=None: np.array(a)


@implements(np.full)
def _full(shape, fill_value, dtype=None):
    if not is_active_type(fill_value):
        return None
    check_dtype("np.full", dtype)
    return lambda shape, fill_value, dtype=None: _filled(np.zeros(shape, ACTIVE), lifted(fill_value))


@implements(np.full_like)
def _full_like(a, fill_value, dtype=None):
    if not is_active_type(fill_value) and not (is_active_array(a) and is_default_dtype(dtype)):
        return None
    check_dtype("np.full_like", dtype)
    return lambda a, fill_value, dtype=None: _filled(np.zeros_like(a, ACTIVE), lifted(fill_value))


@implements(np.copy)
def _copy(a):
    # As Numba does it, for lists and scalars too.
    return (lambda a: np.array(a)) if is_active(a) and not is_active_array(a) else None


@implements(np.frombuffer)
def _frombuffer(buffer, dtype=float):
    _refuse_memory("np.frombuffer", buffer)


@implements(np.lib.stride_tricks.as_strided)
def _as_strided(x, shape=None, strides=None):
    _refuse_memory("np.lib.stride_tricks.as_strided", x)


def _refuse_memory(name: str, kind) -> None:
    if is_active(kind):
        raise UnsupportedError(
            f"{name} shows the memory of an active array as something else; use slices, reshape or indices"
        )


def _as_type(a, dtype):
    """``a.astype(dtype)``."""
    raise NotImplementedError("works in compiled code only")


@implements(_as_type, method="astype", prefer_literal=True)
def _astype(a, dtype):
    check_dtype("astype", dtype)
    return lambda a, dtype: np.copy(a)


@implements(np.linspace)
def _linspace(start, stop, num=50):
    if not (is_active_type(start) or is_active_type(stop)):
        return None

    # In the order of Numba's own.
    def impl(start, stop, num=50):
        out = np.empty(num, ACTIVE)
        first, last = start * 1.0, stop * 1.0
        if num == 1:
            out[0] = first
        if num > 1:
            step = (last - first) / (num - 1)
            for i in range(num):
                out[i] = first + i * step
            out[-1] = last
        return out

    return impl


@implements(np.arange)
def _arange(start, stop=None, step=None, dtype=None):
    if not any(is_active_type(kind) for kind in (start, stop, step)):
        return None
    check_dtype("np.arange", dtype)
    has_stop, has_step = not is_nonelike(stop), not is_nonelike(step)

    # In the order of Numba's own; how many there are is a decision.
    def impl(start, stop=None, step=None, dtype=None):
        first, last = (start, stop) if has_stop else (0, start)
        width = step if has_step else 1
        if width == 0:
            raise ValueError("Maximum allowed size exceeded")
        out = np.empty(max(int(np.ceil((last - first) / width)), 0), ACTIVE)
        for i in range(out.size):
            out[i] = first + i * width
        return out

    return impl

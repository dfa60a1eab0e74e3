"""``where``, sorting, searching and interpolation on active arrays in compiled code.

Which element stands where is a decision on the values: it is taken by Numba's own function, and then recorded by the comparisons that
confirm it, for tapes that keep guards. Only ``where`` on a single comparison records the choice itself, so that a replay may take the
other one.
"""

from __future__ import annotations

import operator
from types import SimpleNamespace

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, typing
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin, register_jitable
from numba.np import arrayobj, npyimpl
from numba.np.numpy_support import as_dtype, from_dtype, is_nonelike

from tapejit.recording.native import arrays
from tapejit.recording.native.active import (
    ActiveBool,
    active_bool,
    active_float,
    build,
    call_named,
    is_active,
    is_active_array,
    is_active_type,
    parts,
)
from tapejit.recording.native.allocation import ACTIVE
from tapejit.recording.native.conversions import lifted, values, with_value
from tapejit.recording.native.numpy_functions import implements, plain_type

_INT64 = ir.IntType(64)
_NUMBERS = (types.Float, types.Integer, types.Boolean)


# where(condition, x, y).


def _element(kind):
    return kind.dtype if isinstance(kind, types.Array) else kind


def _is_operand(kind) -> bool:
    return is_active_type(_element(kind)) or isinstance(_element(kind), _NUMBERS)


def _layout(kinds) -> str:
    """Of the result, as Numba chooses it."""
    layouts = [kind.layout if isinstance(kind, types.Array) else None for kind in kinds]
    if layouts[0] is None or None not in layouts:
        return "F" if {layout or "C" for layout in layouts} == {"F"} else "C"
    return "F" if layouts[0] == "F" else "C"


@infer_global(np.where)
class _Where(AbstractTemplate):
    key = np.where
    metadata = {"target": "cpu"}

    def generic(self, args, kws):
        if kws or len(args) != 3 or not any(map(is_active, args)) or not all(map(_is_operand, args)):
            return None
        dtype = np.result_type(*(as_dtype(plain_type(_element(kind))) for kind in args[1:]))
        n_dimensions = max(getattr(kind, "ndim", 0) for kind in args)
        item = active_float if dtype == np.float64 else from_dtype(dtype)
        return typing.signature(types.Array(item, n_dimensions, _layout(args)), *args)

    def get_impl_key(self, signature):
        return "tapejit.where"


@lower_builtin("tapejit.where", types.VarArg(types.Any))
def _where(context, builder, signature, args):
    class Kernel(npyimpl._Kernel):
        def generate(self, *elements):
            kinds = self.outer_sig.args
            if condition is None:
                return _chosen(self.context, self.builder, self.outer_sig, kinds, elements)
            return _chosen(self.context, self.builder, self.outer_sig, (active_bool, *kinds), (condition, *elements))

    condition, first = None, 0
    if is_active_type(signature.args[0]):
        condition, first = _truth(context, builder, signature.args[0], args[0]), 1
    pairs = zip(signature.args[first:], args[first:], strict=True)
    kinds, given = zip(*(arrays.operand(context, builder, kind, arg) for kind, arg in pairs), strict=True)
    if not signature.return_type.ndim:
        return _of_no_dimensions(context, builder, signature.return_type, kinds, given, Kernel)
    loop = SimpleNamespace(nin=len(kinds), nout=1, nargs=len(kinds) + 1, __name__="where")
    return npyimpl.numpy_ufunc_kernel(
        context, builder, typing.signature(signature.return_type, *kinds), given, loop, Kernel
    )


def _of_no_dimensions(context, builder, result, kinds, given, kernel):
    """``np.where`` of scalars gives an array of no dimensions."""
    array = arrayobj._empty_nd_impl(context, builder, result, ())
    items = arrays.elements(context, builder, kinds, given)
    item = kernel(context, builder, typing.signature(result.dtype, *map(_element, kinds))).generate(*items)
    arrayobj.store_item(context, builder, result, item, array.data)
    return array._getvalue()


def _truth(context, builder, kind, value):
    """A condition as an `ActiveBool`."""
    if isinstance(kind, ActiveBool):
        return value
    if is_active_type(kind):
        zero = context.get_constant(types.float64, 0.0)
        unequal = typing.signature(active_bool, active_float, types.float64)
        return context.get_function(operator.ne, unequal)(builder, (value, zero))
    proxy = cgutils.create_struct_proxy(active_bool)(context, builder)
    proxy.outcome = context.cast(builder, value, kind, types.boolean)
    proxy.word = ir.Constant(_INT64, 0)
    return proxy._getvalue()


def _chosen(context, builder, signature, kinds, elements):
    """One element of the result: `select` is recorded where the condition is."""
    truth = cgutils.create_struct_proxy(active_bool)(
        context, builder, value=_truth(context, builder, kinds[0], elements[0])
    )
    if signature.return_type != active_float:
        outcome = context.cast(builder, truth._getvalue(), active_bool, types.boolean)
        x, y = (
            context.cast(builder, element, kind, signature.return_type)
            for kind, element in zip(kinds[1:], elements[1:], strict=True)
        )
        return builder.select(outcome, x, y)
    (x, x_word), (y, y_word) = (
        parts(context, builder, kind, element) for kind, element in zip(kinds[1:], elements[1:], strict=True)
    )
    value = builder.select(truth.outcome, x, y)
    word = cgutils.alloca_once_value(builder, builder.select(truth.outcome, x_word, y_word))
    with builder.if_then(builder.icmp_signed("!=", truth.word, ir.Constant(_INT64, 0)), likely=False):
        outcome = context.cast(builder, truth.outcome, types.boolean, types.float64)
        given = [truth.word, x, x_word, y, y_word, outcome, value]
        builder.store(call_named(builder, "push_select", given), word)
    return build(context, builder, value, builder.load(word))


@implements(np.clip)
def _clip(a, a_min, a_max, out=None):
    if is_active(a) or not (is_active(a_min) or is_active(a_max)) or not isinstance(a, types.Array):
        return None
    return lambda a, a_min, a_max, out=None: np.clip(lifted(a), a_min, a_max, out)


# Sorting.


@register_jitable
def _confirm_sorted(a, order):
    """Record, by the comparisons that hold in it, that an order sorts an array; NaN stands last."""
    n_nan = 0
    for i in range(1, order.size):
        x, y = a[order[i - 1]], a[order[i]]
        if x < y or x == y:
            continue
        if np.isnan(x) or np.isnan(y):
            n_nan += 1
    return n_nan


def _order(kind):
    """A function that gives the order in which Numba sorts an array of one dimension."""
    kind = getattr(kind, "literal_value", "quicksort")

    @register_jitable
    def order_of(a):
        order = np.argsort(values(a), kind=kind)
        _confirm_sorted(a, order)
        return order

    return order_of


def _argsort_method(a, kind="quicksort"):
    """``a.argsort()``; not `np.argsort` itself, which for Numba is the method."""
    raise NotImplementedError("works in compiled code only")


@implements(_argsort_method, np.argsort, method="argsort", prefer_literal=True)
def _argsort(a, kind="quicksort"):
    if not is_active_array(a):
        return None
    order_of = _order(kind)
    return lambda a, kind="quicksort": order_of(a)


def _sort_in_place(a, kind="quicksort"):
    """``a.sort()``."""
    raise NotImplementedError("works in compiled code only")


@implements(_sort_in_place, method="sort", prefer_literal=True)
def _sorted_in_place(a, kind="quicksort"):
    order_of, by_rows = _order(kind), a.ndim > 1

    def impl(a, kind="quicksort"):
        if by_rows:
            for at in np.ndindex(a.shape[:-1]):
                a[at].sort(kind)
        else:
            items = a.copy()
            order = order_of(items)
            for i in range(order.size):
                a[i] = items[order[i]]

    return impl


# Interpolation.


@register_jitable
def _interval(x, xp):
    """The last of the points that is not above `x`, which lies between the first and the last."""
    low, high = 0, xp.size
    while high - low > 1:
        middle = (low + high) // 2
        if x < xp[middle]:
            high = middle
        else:
            low = middle
    return low


@register_jitable
def _interpolated(x, xp, fp):
    """One number, in Numba's order."""
    n = xp.size
    if n == 1 or x < xp[0]:
        return lifted(fp[0])
    if np.isnan(x):
        return lifted(x)
    if x > xp[n - 1]:
        return lifted(fp[n - 1])
    # On a point the value is the point's, but the derivative is not 0: it is the slope to the right, on the last point to the left.
    at = _interval(x, xp)
    j = min(at, n - 2)
    slope = (fp[j + 1] - fp[j]) / (xp[j + 1] - xp[j])
    y = lifted(slope * (x - xp[j]) + fp[j])
    if x == xp[at]:
        return with_value(y, values(fp[at]))
    if np.isnan(y):
        y = lifted(slope * (x - xp[j + 1]) + fp[j + 1])
        if np.isnan(y) and fp[j] == fp[j + 1]:
            y = lifted(fp[j])
    return y


@implements(np.interp)
def _interp(x, xp, fp):
    kinds = (x, xp, fp)
    if not any(map(is_active, kinds)) or not all(map(_is_operand, kinds)):
        return None
    is_scalar = not isinstance(x, types.Array)

    def impl(x, xp, fp):
        if len(xp) == 0:
            raise ValueError("array of sample points is empty")
        if len(xp) != len(fp):
            raise ValueError("fp and xp are not of the same size.")
        if is_scalar:
            return _interpolated(x, xp, fp)
        out = np.empty(x.shape, ACTIVE)
        for at in np.ndindex(x.shape):
            out[at] = _interpolated(x[at], xp, fp)
        return out

    return impl


# Rounding, of which every derivative is 0.


@implements(np.round, np.around)
def _round(a, decimals=0, out=None):
    if not is_active(a) or not is_nonelike(out):
        return None

    def impl(a, decimals=0, out=None):
        if decimals == 0:
            return np.rint(a)
        scale = 10.0**decimals
        return with_value(np.rint(a * scale) / scale, np.round(values(a), decimals))

    return impl

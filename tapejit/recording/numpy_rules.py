"""What NumPy's functions do to active values: the table behind ``__array_ufunc__`` and ``__array_function__``.

Structural functions are NumPy's own on slot numbers; the rest stands below, a function a rule. A NumPy function that is not here is
refused by its name, never run on something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapejit.errors import PassiveConversionError, UnsupportedError
from tapejit.recording.array import Array, actives, decided, is_active, lift_array, plain_index, scalar_or_array
from tapejit.recording.elementwise import array_power, call_elementwise, prepared, select, stored
from tapejit.recording.recorder import innermost, source_line
from tapejit.recording.reductions import accumulate, dot, matmul, norm_of_squares, normalised_axes, reduce, sum_of
from tapejit.recording.variable import Truth, Variable

__all__ = ["array_power", "call_function", "call_ufunc"]


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple, kwargs: dict) -> Any:
    """``ufunc.method(*inputs, **kwargs)`` with an active operand."""
    out = kwargs.pop("out", None)
    if kwargs.pop("where", True) is not True and method != "reduce":
        raise UnsupportedError(f"np.{ufunc.__name__} with where= is not supported on active values; use np.where ({source_line()})")
    dtype = kwargs.pop("dtype", None)
    kwargs = {key: given for key, given in kwargs.items() if key not in ("casting", "order", "subok")}
    if any(is_active(x) for x in (out if isinstance(out, tuple) else (out,))) and not any(is_active(x) for x in inputs):
        target = out[0] if isinstance(out, tuple) else out
        target[...] = getattr(ufunc, method if method != "__call__" else "__call__")(*inputs, **kwargs)
        return target
    if method == "__call__" and not kwargs:
        if ufunc is np.matmul:
            return stored(matmul(*inputs), out)
        if ufunc.__name__ == "vecdot":
            return stored(sum_of(inputs[0] * inputs[1], -1), out)
        return call_elementwise(ufunc, inputs, out, dtype)
    if method == "reduce":
        x, axis = inputs[0], kwargs.pop("axis", 0)
        keepdims = kwargs.pop("keepdims", False)
        if not kwargs:
            return stored(reduce(ufunc, x, axis, keepdims), out)
    if method == "accumulate" and set(kwargs) <= {"axis"}:
        return stored(accumulate(ufunc, inputs[0], kwargs.get("axis", 0)), out)
    if method == "outer" and not kwargs:
        a, b = (prepared(x) for x in inputs)
        return call_elementwise(ufunc, (np.reshape(a, np.shape(a) + (1,) * np.ndim(b)), b), out, dtype)
    if method == "at" and ufunc in (np.add, np.subtract):
        return _add_at(ufunc, *inputs)
    extra = f" with {', '.join(f'{key}=' for key in kwargs)}" if kwargs else ""
    raise UnsupportedError(f"np.{ufunc.__name__}.{method}{extra} is not supported on active values ({source_line()})")


def _add_at(ufunc: np.ufunc, target: Any, index: Any, addend: Any) -> None:
    """``np.add.at``: an element that is named several times takes every addend."""
    if not isinstance(target, Array):
        raise PassiveConversionError(
            f"a plain float array cannot hold active values ({source_line()}); allocate it with np.zeros(shape, like=x)"
        )
    places = np.arange(target.size).reshape(target.shape)[plain_index(index)]
    addend = np.broadcast_to(prepared(addend), places.shape) if places.ndim else addend
    if not places.ndim:
        target[plain_index(index)] = ufunc(target[plain_index(index)], addend)
        return
    places, addend = places.reshape(-1), np.reshape(addend, -1)
    flat = np.reshape(target, -1)
    order = np.argsort(places, kind="stable")
    occurrence = np.empty(places.size, int)
    starts = np.flatnonzero(np.r_[True, places[order][1:] != places[order][:-1]]) if places.size else np.zeros(0, int)
    occurrence[order] = np.arange(places.size) - np.repeat(starts, np.diff(np.r_[starts, places.size]))
    for turn in range(occurrence.max(initial=-1) + 1):
        chosen = np.flatnonzero(occurrence == turn)
        flat[places[chosen]] = ufunc(flat[places[chosen]], addend[chosen])
    if not np.shares_memory(flat.view_space(), target.view_space()):
        target[...] = np.reshape(flat, target.shape)


def call_function(function: Callable, args: tuple, kwargs: dict) -> Any:
    """``function(*args, **kwargs)`` of NumPy with an active argument.

    Raises
    ------
    UnsupportedError
        If there is no rule for it; names it.
    """
    rule = _RULES.get(function)
    if rule is None:
        name = f"{function.__module__}.{function.__name__}".replace("numpy", "np", 1)
        raise UnsupportedError(
            f"{name} of active values is not supported ({source_line()}); write it with supported functions, or pass tj.value(x) where its "
            "derivative is not wanted"
        )
    return rule(*args, **kwargs)


_RULES: dict[Callable, Callable] = {}


def rule(*functions: Callable | str) -> Callable:
    """Enter a function into the table, under names that may be missing from an older NumPy."""

    def enter(implementation: Callable) -> Callable:
        for function in functions:
            found = getattr(np, function, None) if isinstance(function, str) else function
            if found is not None:
                _RULES[found] = implementation
        return implementation

    return enter


# Structural functions.


def _wrap(tape: Any, result: Any, boolean: bool) -> Any:
    if isinstance(result, (list, tuple)):
        return type(result)(_wrap(tape, part, boolean) for part in result)
    if isinstance(result, np.ndarray):
        return Array.of_slots(tape, result, boolean)
    return scalar_or_array(tape, int(result), (), boolean)


def _shared(array: Array, result: Any) -> Any:
    """What NumPy made of a view, if all of it still is one; else None."""
    if isinstance(result, (list, tuple)):
        parts = [array.of_view(part) for part in result]
        return None if any(part is None for part in parts) else type(result)(parts)
    return array.of_view(result) if isinstance(result, np.ndarray) else None


def _as_array(x: Any) -> Array:
    return x if isinstance(x, Array) else lift_array(innermost(actives(x)), x)


def _on_first(function: Callable) -> Callable:
    """A structural function of one array: a view where NumPy makes one, else NumPy's copy of the slot numbers."""

    def apply(x: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_active(function, args, kwargs)
        array = _as_array(x)
        shared = _shared(array, function(array.view_space(), *args, **kwargs)) if function in _MAKE_VIEWS else None
        if shared is not None:
            return shared
        return _wrap(array.tape, function(array.slots(), *args, **kwargs), array._storage.boolean)

    return apply


def _on_sequence(function: Callable) -> Callable:
    """A structural function of a (nested) sequence of arrays."""

    def apply(parts: Any, *args: Any, dtype: Any = None, out: Any = None, **kwargs: Any) -> Any:
        _refuse_active(function, args, kwargs)
        _check_dtype(dtype)
        tape = innermost(actives(list(parts) if not isinstance(parts, (Array, np.ndarray)) else parts))
        boolean = all(getattr(x, "dtype", None) == bool for x in actives(parts))
        return stored(_wrap(tape, function(_nested_slots(tape, parts), *args, **kwargs), boolean), out)

    return apply


def _nested_slots(tape: Any, parts: Any) -> Any:
    if isinstance(parts, (list, tuple)):
        return [_nested_slots(tape, part) for part in parts]
    return lift_array(tape, parts).slots()


def _on_all(function: Callable) -> Callable:
    """A structural function of any number of arrays."""

    def apply(*arrays: Any, **kwargs: Any) -> Any:
        tape = innermost(actives(list(arrays)))
        result = function(*(lift_array(tape, x).slots() for x in arrays), **kwargs)
        return _wrap(tape, result, False)

    return apply


def _refuse_active(function: Callable, args: tuple, kwargs: dict) -> None:
    if any(is_active(x) for x in (*args, *kwargs.values())):
        raise UnsupportedError(
            f"np.{function.__name__} takes an active value as its first argument only ({source_line()}); pass tj.value(...) for the rest"
        )


def _check_dtype(dtype: Any) -> None:
    if dtype is not None and np.dtype(dtype) != np.float64:
        raise UnsupportedError(f"active arrays are float64; dtype={np.dtype(dtype)} is not supported ({source_line()})")


_MAKE_VIEWS = {
    getattr(np, name)
    for name in (
        "reshape ravel transpose swapaxes moveaxis rollaxis expand_dims squeeze broadcast_to flip fliplr flipud rot90 diagonal split "
        "array_split hsplit vsplit dsplit matrix_transpose permute_dims unstack"
    ).split()
    if hasattr(np, name)
}
_COPY = "diag diagflat tril triu repeat tile roll delete resize compress"
for _function in [*_MAKE_VIEWS, *(getattr(np, name) for name in _COPY.split())]:
    _RULES[_function] = _on_first(_function)
for _name in "concatenate stack vstack hstack dstack column_stack block row_stack".split():
    if _name in np.__dict__:
        _RULES[getattr(np, _name)] = _on_sequence(getattr(np, _name))
for _name in ("broadcast_arrays", "meshgrid"):
    _RULES[getattr(np, _name)] = _on_all(getattr(np, _name))


def _atleast_rule(function: Callable) -> Callable:
    def apply(*arrays: Any) -> Any:
        results = tuple(_on_view(function, x) if is_active(x) else function(x) for x in arrays)
        return results[0] if len(results) == 1 else results

    return apply


def _on_view(function: Callable, x: Any) -> Array:
    array = _as_array(x)
    shared = _shared(array, function(array.view_space()))
    assert shared is not None
    return shared


for _name in ("atleast_1d", "atleast_2d", "atleast_3d"):
    _RULES[getattr(np, _name)] = _atleast_rule(getattr(np, _name))


@rule("take")
def _take(a: Any, indices: Any, axis: int | None = None, out: Any = None, mode: str = "raise") -> Any:
    array = _as_array(a)
    taken = np.take(array.slots(), plain_index(indices), axis=axis, mode=mode)
    return stored(_wrap(array.tape, taken, array._storage.boolean), out)


@rule("take_along_axis")
def _take_along_axis(arr: Any, indices: Any, axis: int | None = -1) -> Any:
    array = _as_array(arr)
    return _wrap(array.tape, np.take_along_axis(array.slots(), np.asarray(indices), axis), array._storage.boolean)


@rule("pad")
def _pad(array: Any, pad_width: Any, mode: str = "constant", constant_values: Any = 0, **kwargs: Any) -> Array:
    array = _as_array(array)
    if mode in ("edge", "reflect", "symmetric", "wrap"):
        return Array.of_slots(array.tape, np.pad(array.slots(), pad_width, mode=mode, **kwargs))
    if mode == "constant" and not is_active(constant_values):
        numbers = np.pad(np.zeros(array.shape), pad_width, mode=mode, constant_values=constant_values)
        slots = np.pad(array.slots(), pad_width, mode=mode, constant_values=-1)
        for number in np.unique(numbers[slots < 0]):
            slots[(slots < 0) & (numbers == number)] = array.tape.constant(float(number))
        return Array.of_slots(array.tape, slots)
    raise UnsupportedError(f"np.pad with mode={mode!r} is not supported on active values ({source_line()})")


@rule("append")
def _append(arr: Any, values: Any, axis: int | None = None) -> Array:
    if axis is None:
        return np.concatenate([np.ravel(arr), np.ravel(values)])
    return np.concatenate([arr, values], axis=axis)


@rule("insert")
def _insert(arr: Any, obj: Any, values: Any, axis: int | None = None) -> Array:
    tape = innermost(actives([arr, values]))
    slots = np.insert(lift_array(tape, arr).slots(), obj, lift_array(tape, values).slots(), axis)
    return Array.of_slots(tape, slots)


@rule("extract")
def _extract(condition: Any, arr: Any) -> Array:
    return np.ravel(arr)[np.ravel(plain_index(condition))]


@rule("copyto")
def _copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    if not isinstance(dst, Array):
        raise PassiveConversionError(
            f"a plain float array cannot hold active values ({source_line()}); allocate it with np.zeros(shape, like=x)"
        )
    dst[...] = src if where is True else np.where(where, src, dst)


@rule("fill_diagonal")
def _fill_diagonal(a: Any, val: Any, wrap: bool = False) -> None:
    a = _as_array(a)
    n = min(a.shape)
    a[tuple(np.arange(n) for _ in a.shape)] = val


@rule("copy")
def _copy(a: Any, order: str = "K", subok: bool = False) -> Any:
    return _as_array(a).copy()


# Allocation: arrays that accept active values.


@rule("zeros_like", "empty_like")
def _zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **kwargs: Any) -> Any:
    return _full_like(a, 0.0, dtype, shape=shape)


@rule("ones_like")
def _ones_like(a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **kwargs: Any) -> Any:
    return _full_like(a, 1.0, dtype, shape=shape)


@rule("full_like")
def _full_like(a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **kwargs: Any) -> Any:
    if dtype is not None and np.dtype(dtype) != np.float64:
        return np.full(np.shape(a) if shape is None else shape, fill_value, dtype=dtype)
    return _full(np.shape(a) if shape is None else shape, fill_value, like=a)


@rule("full")
def _full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C", *, like: Any = None, **kwargs: Any) -> Array:
    _check_dtype(dtype)
    tape = innermost(actives([fill_value, like]))
    filler = lift_array(tape, fill_value)
    return Array.of_slots(tape, np.broadcast_to(filler.slots(), shape if isinstance(shape, tuple) else tuple(np.atleast_1d(shape))))


@rule("zeros", "empty")
def _zeros(shape: Any, dtype: Any = None, order: str = "C", *, like: Any = None, **kwargs: Any) -> Array:
    return _full(shape, 0.0, dtype, like=like)


@rule("ones")
def _ones(shape: Any, dtype: Any = None, order: str = "C", *, like: Any = None, **kwargs: Any) -> Array:
    return _full(shape, 1.0, dtype, like=like)


@rule("array", "asarray", "ascontiguousarray", "asanyarray")
def _array(object: Any, dtype: Any = None, *, like: Any = None, **kwargs: Any) -> Array:
    _check_dtype(dtype)
    return lift_array(innermost(actives([object, like])), object).copy()


def _like_rule(function: Callable) -> Callable:
    def apply(*args: Any, like: Any = None, **kwargs: Any) -> Array:
        if any(is_active(x) for x in (*args, *kwargs.values())):
            return _linspace(*args, **kwargs) if function is np.linspace else _refuse_like(function)
        return lift_array(innermost(actives(like)), function(*args, **kwargs)).copy()

    return apply


def _refuse_like(function: Callable) -> Array:
    raise UnsupportedError(f"np.{function.__name__} with an active bound is not supported ({source_line()}); scale np.{function.__name__} of numbers")


def _linspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True) -> Array:
    steps = np.arange(num) / max(1, num - 1 if endpoint else num)
    return np.multiply.outer(1.0 - steps, start) + np.multiply.outer(steps, stop)


for _name in ("eye", "identity", "arange", "linspace"):
    _RULES[getattr(np, _name)] = _like_rule(getattr(np, _name))


# Shapes and plain facts.

for _name in ("shape", "ndim", "size"):
    _RULES[getattr(np, _name)] = lambda a, axis=None, _name=_name: (
        getattr(_as_array(a), _name) if axis is None else _as_array(a).shape[axis]
    )


@rule("iscomplexobj", "iscomplex")
def _is_complex(x: Any) -> Any:
    return False


@rule("isrealobj")
def _is_real(x: Any) -> bool:
    return True


@rule("real")
def _real(val: Any) -> Any:
    return val


@rule("result_type", "common_type")
def _result_type(*args: Any) -> np.dtype:
    return np.dtype(np.float64)


@rule("may_share_memory", "shares_memory")
def _may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    if not (isinstance(a, Array) and isinstance(b, Array)) or a._storage is not b._storage:
        return False
    return np.shares_memory(a.view_space(), b.view_space())


@rule("array_repr", "array_str", "array2string")
def _text(a: Any, *args: Any, **kwargs: Any) -> str:
    return repr(a)


# Reductions.


def _masked(x: Any, where: Any, otherwise: float) -> Any:
    return x if where is True else select(where, x, otherwise)


def _reduction(x: Any, initial: Any, combine: np.ufunc, result: Any) -> Any:
    return result if initial is np._NoValue else combine(result, initial)


def _keep(keepdims: Any) -> bool:
    return keepdims is not np._NoValue and bool(keepdims)


@rule("sum")
def _sum(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, initial: Any = np._NoValue, where: Any = True
) -> Any:
    _check_dtype(dtype)
    return stored(_reduction(a, initial, np.add, sum_of(_masked(a, where, 0.0), axis, _keep(keepdims))), out)


def _tree_rule(ufunc: np.ufunc, neutral: float | None) -> Callable:
    def apply(
        a: Any, axis: Any = None, *args: Any, out: Any = None, keepdims: Any = False, initial: Any = np._NoValue, where: Any = True, **kwargs: Any
    ) -> Any:
        if where is not True and neutral is None and initial is np._NoValue:
            raise ValueError("reduction with where= needs an initial value")
        filler = neutral if neutral is not None else initial
        x = _masked(a, where, filler)
        if np.size(x) == 0 and initial is not np._NoValue:
            axes = normalised_axes(axis, np.ndim(x))
            kept = tuple(extent for i, extent in enumerate(np.shape(x)) if i not in axes)
            return _full(kept, initial, like=a)
        return stored(_reduction(a, initial, ufunc, reduce(ufunc, x, axis, _keep(keepdims))), out)

    return apply


for _names, _ufunc, _neutral in (
    (("prod",), np.multiply, 1.0),
    (("max", "amax"), np.maximum, None),
    (("min", "amin"), np.minimum, None),
    (("nanmax",), np.fmax, None),
    (("nanmin",), np.fmin, None),
    (("any",), np.logical_or, 0.0),
    (("all",), np.logical_and, 1.0),
):
    for _name in _names:
        _RULES[getattr(np, _name)] = _tree_rule(_ufunc, _neutral)


def _count(a: Any, axis: Any) -> int:
    shape = np.shape(a)
    count = 1
    for i in normalised_axes(axis, len(shape)):
        count *= shape[i]
    return count


@rule("mean")
def _mean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, *, where: Any = True) -> Any:
    _check_dtype(dtype)
    a = prepared(a)
    n = _count(a, axis) if where is True else np.sum(np.broadcast_to(where, np.shape(a)), axis=axis, keepdims=_keep(keepdims))
    if where is True and n == 0:
        n = np.nan
    return stored(sum_of(_masked(a, where, 0.0), axis, _keep(keepdims)) / n, out)


@rule("average")
def _average(a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: Any = False) -> Any:
    if weights is None:
        result, total = _mean(a, axis, keepdims=keepdims), float(_count(a, axis))
    else:
        if np.ndim(weights) == 1 and np.ndim(a) > 1:
            weights = np.reshape(weights, (-1,) + (1,) * (np.ndim(a) - 1 - normalised_axes(axis, np.ndim(a))[0]))
        total = np.sum(np.broadcast_to(weights, np.shape(a)), axis=axis, keepdims=_keep(keepdims))
        result = np.sum(np.multiply(a, weights), axis=axis, keepdims=_keep(keepdims)) / total
    return (result, total) if returned else result


@rule("var")
def _var(
    a: Any,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    ddof: float = 0,
    keepdims: Any = False,
    *,
    where: Any = True,
    mean: Any = np._NoValue,
    correction: Any = np._NoValue,
) -> Any:
    _check_dtype(dtype)
    ddof = ddof if correction is np._NoValue else correction
    a = prepared(a)
    centre = _mean(a, axis, keepdims=True, where=where) if mean is np._NoValue else mean
    squares = _masked(np.square(a - centre), where, 0.0)
    n = _count(a, axis) if where is True else np.sum(np.broadcast_to(where, np.shape(a)), axis=axis, keepdims=_keep(keepdims))
    return stored(sum_of(squares, axis, _keep(keepdims)) / (n - ddof), out)


@rule("std")
def _std(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, keepdims: Any = False, **kwargs: Any) -> Any:
    return stored(np.sqrt(_var(a, axis, dtype, None, ddof, keepdims, **kwargs)), out)


@rule("ptp")
def _ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    return stored(np.max(a, axis=axis, keepdims=_keep(keepdims)) - np.min(a, axis=axis, keepdims=_keep(keepdims)), out)


@rule("cumsum")
def _cumsum(a: Any, axis: int | None = None, dtype: Any = None, out: Any = None) -> Any:
    _check_dtype(dtype)
    return stored(accumulate(np.add, a, axis), out)


@rule("cumprod")
def _cumprod(a: Any, axis: int | None = None, dtype: Any = None, out: Any = None) -> Any:
    _check_dtype(dtype)
    return stored(accumulate(np.multiply, a, axis), out)


@rule("diff")
def _diff(a: Any, n: int = 1, axis: int = -1, prepend: Any = np._NoValue, append: Any = np._NoValue) -> Any:
    ends = [np.reshape(x, np.shape(x) or (1,)) for x in (prepend, a, append) if x is not np._NoValue]
    a = np.concatenate(ends, axis=axis) if len(ends) > 1 else a
    for _ in range(n):
        a = np.swapaxes(a, axis, -1)
        a = np.swapaxes(a[..., 1:] - a[..., :-1], axis, -1)
    return a


@rule("ediff1d")
def _ediff1d(ary: Any, to_end: Any = None, to_begin: Any = None) -> Any:
    if to_end is not None or to_begin is not None:
        raise UnsupportedError(f"np.ediff1d with to_end or to_begin is not supported on active values ({source_line()})")
    return _diff(np.ravel(ary))


@rule("trapezoid", "trapz")
def _trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    y = np.swapaxes(y, axis, -1)
    steps = dx if x is None else (np.diff(x) if np.ndim(x) == 1 else np.diff(np.swapaxes(x, axis, -1)))
    return np.sum(steps * (y[..., 1:] + y[..., :-1]) / 2.0, axis=-1)


# Products.

_RULES[np.dot] = lambda a, b, out=None: stored(dot(a, b), out)


@rule("vdot")
def _vdot(a: Any, b: Any) -> Any:
    return dot(np.ravel(a), np.ravel(b))


@rule("inner")
def _inner(a: Any, b: Any) -> Any:
    if not np.ndim(a) or not np.ndim(b):
        return np.multiply(a, b)
    return np.tensordot(a, b, axes=(-1, -1))


@rule("outer")
def _outer(a: Any, b: Any, out: Any = None) -> Any:
    return stored(np.multiply(np.reshape(np.ravel(a), (-1, 1)), np.ravel(b)), out)


@rule("tensordot")
def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    if isinstance(axes, int):
        axes = (tuple(range(np.ndim(a) - axes, np.ndim(a))), tuple(range(axes)))
    a_axes, b_axes = (
        [np.lib.array_utils.normalize_axis_index(i, np.ndim(z)) for i in np.atleast_1d(given)] for z, given in zip((a, b), axes, strict=True)
    )
    a_rest = [i for i in range(np.ndim(a)) if i not in a_axes]
    b_rest = [i for i in range(np.ndim(b)) if i not in b_axes]
    shape = tuple(np.shape(a)[i] for i in a_rest) + tuple(np.shape(b)[i] for i in b_rest)
    k = int(np.prod([np.shape(a)[i] for i in a_axes], dtype=int))
    left = np.reshape(np.transpose(a, (*a_rest, *a_axes)), (-1, k) if k else (int(np.prod([np.shape(a)[i] for i in a_rest], dtype=int)), 0))
    right = np.reshape(np.transpose(b, (*b_axes, *b_rest)), (k, -1) if k else (0, int(np.prod([np.shape(b)[i] for i in b_rest], dtype=int))))
    product = matmul(left, right)
    return np.reshape(product, shape) if shape else product.item()


@rule("kron")
def _kron(a: Any, b: Any) -> Any:
    ndim = max(np.ndim(a), np.ndim(b))
    a = np.reshape(a, (1,) * (ndim - np.ndim(a)) + np.shape(a))
    b = np.reshape(b, (1,) * (ndim - np.ndim(b)) + np.shape(b))
    spread = np.reshape(a, tuple(x for extent in a.shape for x in (extent, 1))) * np.reshape(b, tuple(x for extent in b.shape for x in (1, extent)))
    return np.reshape(spread, tuple(x * y for x, y in zip(a.shape, b.shape, strict=True)))


@rule("cross")
def _cross(a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: int | None = None) -> Any:
    axisa, axisb, axisc = (axis,) * 3 if axis is not None else (axisa, axisb, axisc)
    a, b = np.moveaxis(a, axisa, -1), np.moveaxis(b, axisb, -1)
    if np.shape(a)[-1] != 3 or np.shape(b)[-1] != 3:
        raise ValueError("np.cross of active values needs vectors of three components")
    shifted = [np.roll(z, -1, axis=-1) for z in (a, b)]
    product = np.roll(a * shifted[1] - shifted[0] * b, -1, axis=-1)
    return np.moveaxis(product, -1, axisc)


@rule("trace")
def _trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None) -> Any:
    return stored(np.sum(np.diagonal(a, offset, axis1, axis2), axis=-1), out)


@rule(np.linalg.norm)
def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    x = prepared(x)
    if axis is None and (ord is None or np.ndim(x) == 1):
        axis = tuple(range(np.ndim(x)))
    axes = normalised_axes(axis, np.ndim(x))
    if ord is None or (ord == 2 and len(axes) == 1) or (ord == "fro" and len(axes) == 2):
        return norm_of_squares(np.sum(np.square(x), axis=axes, keepdims=keepdims))
    if len(axes) == 2:
        row, column = (axis if axis is not None else (0, 1)) if np.ndim(axis) else axes
        inner, outer = {1: (row, column), -1: (row, column), np.inf: (column, row), -np.inf: (column, row)}.get(ord, (None, None))
        if inner is not None:
            sums = np.sum(np.abs(x), axis=inner, keepdims=True)
            result = (np.max if ord > 0 else np.min)(sums, axis=outer, keepdims=True)
            return result if keepdims else np.squeeze(result, axis=axes)[()]
    elif len(axes) == 1:
        if ord in (np.inf, -np.inf):
            return (np.max if ord > 0 else np.min)(np.abs(x), axis=axes, keepdims=keepdims)
        if ord == 1:
            return np.sum(np.abs(x), axis=axes, keepdims=keepdims)
        if ord == 0:
            return np.sum(np.where(x != 0.0, 1.0, 0.0), axis=axes, keepdims=keepdims)
        if isinstance(ord, (int, float)):
            return np.sum(np.abs(x) ** ord, axis=axes, keepdims=keepdims) ** (1.0 / ord)
    raise UnsupportedError(f"np.linalg.norm with ord={ord!r} over {len(axes)} axes is not supported on active values ({source_line()})")


# Selection.


@rule("where")
def _where(condition: Any, *choices: Any) -> Any:
    if not choices:
        return np.nonzero(condition)
    return select(condition, *choices)


@rule("clip")
def _clip(a: Any, a_min: Any = np._NoValue, a_max: Any = np._NoValue, out: Any = None, *, min: Any = np._NoValue, max: Any = np._NoValue) -> Any:
    low = min if a_min is np._NoValue else a_min
    high = max if a_max is np._NoValue else a_max
    if low is not None and low is not np._NoValue:
        a = np.maximum(a, low)
    if high is not None and high is not np._NoValue:
        a = np.minimum(a, high)
    return stored(a, out)


@rule("select")
def _select(condlist: Any, choicelist: Any, default: Any = 0.0) -> Any:
    result = default
    for condition, choice in reversed(list(zip(condlist, choicelist, strict=True))):
        result = select(condition, choice, result) if is_active([condition, choice, result]) else np.where(condition, choice, result)
    return result


@rule("piecewise")
def _piecewise(x: Any, condlist: Any, funclist: Any, *args: Any, **kwargs: Any) -> Any:
    raise UnsupportedError(f"np.piecewise of active values is not supported ({source_line()}); use np.select or np.where")


@rule("nan_to_num")
def _nan_to_num(x: Any, copy: bool = True, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    largest = np.finfo(float).max
    x = select(np.isnan(x), nan, x)
    x = select(np.equal(x, np.inf), largest if posinf is None else posinf, x)
    return select(np.equal(x, -np.inf), -largest if neginf is None else neginf, x)


@rule("round", "around")
def _round(a: Any, decimals: int = 0, out: Any = None) -> Any:
    if decimals:
        raise UnsupportedError(f"np.round with decimals={decimals} of active values is not supported ({source_line()}); its derivative is 0")
    return stored(np.rint(a), out)


@rule("fix")
def _fix(x: Any, out: Any = None) -> Any:
    return stored(np.trunc(x), out)


@rule("sinc")
def _sinc(x: Any) -> Any:
    # Around 0 the Taylor polynomial, so that value and derivatives are exact there too.
    y = np.pi * x
    near = np.abs(y) < 1e-2
    square = np.square(select(near, y, 0.0))
    series = 1.0 - square / 6.0 * (1.0 - square / 20.0 * (1.0 - square / 42.0 * (1.0 - square / 72.0)))
    away = select(near, 1.0, y)
    return select(near, series, np.sin(away) / away)


# Decisions: results that are integers or plain booleans.


def _order_guard(x: Array, order: np.ndarray) -> None:
    """Remember that the elements stand in this order: neighbours compare the same way in a replay."""
    ordered = Array.of_slots(x.tape, np.take_along_axis(x.slots(), order, axis=-1))
    ties = np.diff(order, axis=-1) > 0
    earlier, later = ordered[..., :-1], ordered[..., 1:]
    decided(_as_array(np.where(ties, earlier <= later, earlier < later) != 0.0))


@rule("argsort")
def _argsort(a: Any, axis: int | None = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> np.ndarray:
    x = _as_array(a)
    if axis is None:
        x, axis = np.ravel(x), -1
    moved = np.moveaxis(x, axis, -1)
    found = np.argsort(moved.numbers(), axis=-1, kind="stable")
    if moved.shape[-1] > 1 and moved.size:
        _order_guard(moved, found)
    return np.moveaxis(found, -1, axis)


@rule("sort")
def _sort(a: Any, axis: int | None = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    if axis is None:
        a, axis = np.ravel(a), -1
    return np.take_along_axis(a, _argsort(a, axis), axis)


@rule("median")
def _median(a: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, keepdims: bool = False) -> Any:
    a = _as_array(a)
    axes = normalised_axes(axis, a.ndim)
    kept = tuple(i for i in range(a.ndim) if i not in axes)
    flat = np.reshape(np.transpose(a, (*kept, *axes)), (*(a.shape[i] for i in kept), -1))
    n = flat.shape[-1]
    ordered = _sort(flat)
    middle = ordered[..., n // 2] if n % 2 else (ordered[..., n // 2 - 1] + ordered[..., n // 2]) / 2.0
    return np.reshape(middle, tuple(1 if i in axes else extent for i, extent in enumerate(a.shape))) if keepdims else middle


def _extremum(x: Array, find: Callable, less: np.ufunc, less_equal: np.ufunc) -> np.ndarray:
    """First position of an extremum along the last axis, remembered as comparisons with every other element."""
    at = find(x.numbers(), axis=-1)
    best = Array.of_slots(x.tape, np.take_along_axis(x.slots(), at[..., None], axis=-1))
    before = np.arange(x.shape[-1]) < at[..., None]
    if x.shape[-1] > 1:
        decided(_as_array(np.where(before, less(x, best), less_equal(x, best)) != 0.0))
    return at


def _arg_rule(find: Callable, less: np.ufunc, less_equal: np.ufunc) -> Callable:
    def apply(a: Any, axis: int | None = None, out: Any = None, *, keepdims: Any = False) -> Any:
        x = _as_array(a)
        if axis is None:
            at = _extremum(np.ravel(x), find, less, less_equal)
            return np.reshape(at, (1,) * x.ndim) if _keep(keepdims) else at[()]
        at = _extremum(np.moveaxis(x, axis, -1), find, less, less_equal)
        return np.expand_dims(at, axis) if _keep(keepdims) else at

    return apply


_RULES[np.argmax] = _arg_rule(np.argmax, np.less, np.less_equal)
_RULES[np.argmin] = _arg_rule(np.argmin, np.greater, np.greater_equal)


@rule("searchsorted")
def _searchsorted(a: Any, v: Any, side: str = "left", sorter: Any = None) -> Any:
    if sorter is not None:
        raise UnsupportedError(f"np.searchsorted with a sorter is not supported on active values ({source_line()}); sort first")
    grid = _as_array(a).numbers() if is_active(a) else np.asarray(a, dtype=float)
    found = np.searchsorted(grid, _as_array(v).numbers() if is_active(v) else v, side=side)
    # The interval that holds v: its ends compare the same way in a replay.
    padded = np.concatenate([[-np.inf], a, [np.inf]])
    below, above = padded[np.asarray(found)], padded[np.asarray(found) + 1]
    if side == "left":
        _decide((np.less(below, v), np.less_equal(v, above)))
    else:
        _decide((np.less_equal(below, v), np.less(v, above)))
    if is_active(a) and np.size(a) > 1:
        _decide((np.less_equal(a[:-1], a[1:]),))
    return found


def _decide(truths: tuple) -> None:
    for truth in truths:
        if isinstance(truth, Truth):
            bool(truth)
        elif isinstance(truth, Array):
            decided(truth)


@rule("interp")
def _interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Any:
    if period is not None:
        raise UnsupportedError(f"np.interp with a period is not supported on active values ({source_line()})")
    n = np.shape(xp)[0]
    if is_active([x, xp]):
        at = np.clip(np.searchsorted(xp, x, side="right"), 1, n - 1)
    else:
        at = np.clip(np.searchsorted(np.asarray(xp), np.asarray(x), side="right"), 1, n - 1)
    if not is_active(xp):
        xp = np.asarray(xp, dtype=float)
    if not is_active(fp):
        fp = np.asarray(fp, dtype=float)
    x0, x1, y0, y1 = xp[at - 1], xp[at], fp[at - 1], fp[at]
    inside = y0 + (y1 - y0) / (x1 - x0) * (x - x0)
    low = select(np.less(x, xp[0]), fp[0] if left is None else left, inside) if is_active([x, xp]) else inside
    return select(np.greater(x, xp[n - 1]), fp[n - 1] if right is None else right, low)


@rule("nonzero")
def _nonzero(a: Any) -> tuple[np.ndarray, ...]:
    return np.nonzero(_decided_nonzero(a))


@rule("flatnonzero")
def _flatnonzero(a: Any) -> np.ndarray:
    return np.flatnonzero(_decided_nonzero(a))


@rule("argwhere")
def _argwhere(a: Any) -> np.ndarray:
    return np.argwhere(_decided_nonzero(a))


@rule("count_nonzero")
def _count_nonzero(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    return np.count_nonzero(_decided_nonzero(a), axis=axis, keepdims=keepdims)


def _decided_nonzero(a: Any) -> np.ndarray:
    x = _as_array(a)
    return decided(x if x._storage.boolean else _as_array(x != 0.0))


@rule("allclose", "isclose", "array_equal")
def _compare(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    raise UnsupportedError(f"np.allclose, np.isclose and np.array_equal of active values are not supported ({source_line()}); compare tj.value(x)")


@rule("imag", "angle")
def _imaginary(x: Any) -> Any:
    raise UnsupportedError(f"active values are real ({source_line()})")


def value(x: Any) -> Any:
    """The plain number or array behind an active value, without its derivative; plain values are returned as they are.

    Parameters
    ----------
    x : Variable, Array, list, or anything else
        Lists and tuples are taken apart.

    Returns
    -------
    float, bool, ndarray, or `x`
        Inside nested transforms, down to plain numbers.

    Examples
    --------
    >>> import tapejit as tj
    >>> tj.grad(lambda x: x * tj.value(x))(3.0)
    3.0
    """
    if isinstance(x, Truth):
        return bool(x._value)
    if isinstance(x, Variable):
        return float(x._value)
    if isinstance(x, Array):
        return x.value
    if isinstance(x, (list, tuple)):
        return type(x)(value(element) for element in x)
    if isinstance(x, np.ndarray) and x.dtype == object:
        return np.array([value(element) for element in x.reshape(-1)], dtype=float).reshape(x.shape)
    return x

"""Structural functions: NumPy's own, on slot numbers. They make views where NumPy makes views, and record nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapejit.errors import UnsupportedError
from tapejit.recording.array import Array, actives, is_active, is_boolean, lift_array, plain_index, scalar_or_array
from tapejit.recording.elementwise import stored
from tapejit.recording.recorder import innermost, source_line
from tapejit.recording.rules import RULES, as_array, check_dtype, refuse_active, refuse_plain_target, rule


def wrapped(tape: Any, result: Any, boolean: bool) -> Any:
    """What NumPy made of slot numbers, as arrays or scalars."""
    if isinstance(result, (list, tuple)):
        return type(result)(wrapped(tape, part, boolean) for part in result)
    if isinstance(result, np.ndarray):
        return Array.of_slots(tape, result, boolean)
    return scalar_or_array(tape, int(result), (), boolean)


def _shared(array: Array, result: Any) -> Any:
    """What NumPy made of a view, if all of it still is one; else None."""
    if isinstance(result, (list, tuple)):
        parts = [array.of_view(part) for part in result]
        return None if any(part is None for part in parts) else type(result)(parts)
    return array.of_view(result) if isinstance(result, np.ndarray) else None


def _on_first(function: Callable) -> Callable:
    """A structural function of one array: a view where NumPy makes one, else NumPy's copy of the slot numbers."""

    def apply(x: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_active(function, args, kwargs)
        array = as_array(x)
        shared = _shared(array, function(array.view_space(), *args, **kwargs)) if function in _MAKE_VIEWS else None
        if shared is not None:
            return shared
        return wrapped(array.tape, function(array.slots(), *args, **kwargs), array._storage.boolean)

    return apply


def _on_sequence(function: Callable) -> Callable:
    """A structural function of a (nested) sequence of arrays."""

    def apply(parts: Any, *args: Any, dtype: Any = None, out: Any = None, **kwargs: Any) -> Any:
        refuse_active(function, args, kwargs)
        check_dtype(dtype)
        tape = innermost([*actives(parts if isinstance(parts, (Array, np.ndarray)) else list(parts)), *actives(out)])
        boolean = dtype is None and _all_boolean(parts)
        return stored(wrapped(tape, function(_nested_slots(tape, parts), *args, **kwargs), boolean), out)

    return apply


def _nested_slots(tape: Any, parts: Any) -> Any:
    if isinstance(parts, (list, tuple)):
        return [_nested_slots(tape, part) for part in parts]
    return lift_array(tape, parts).slots()


def _all_boolean(parts: Any) -> bool:
    if isinstance(parts, (list, tuple)):
        return all(_all_boolean(part) for part in parts)
    return is_boolean(parts)


_MAKE_VIEWS = {
    getattr(np, name)
    for name in (
        "reshape ravel transpose swapaxes moveaxis rollaxis expand_dims squeeze broadcast_to flip fliplr flipud rot90 diagonal split "
        "array_split hsplit vsplit dsplit matrix_transpose permute_dims unstack"
    ).split()
    if hasattr(np, name)
}
for _function in [
    *_MAKE_VIEWS,
    *(getattr(np, name) for name in "diag diagflat tril triu repeat tile roll delete resize".split()),
]:
    RULES[_function] = _on_first(_function)
for _name in "concatenate stack vstack hstack dstack column_stack block row_stack".split():
    if _name in np.__dict__:
        RULES[getattr(np, _name)] = _on_sequence(getattr(np, _name))


@rule("broadcast_arrays")
def _broadcast_arrays(*args: Any, subok: bool = False) -> tuple:
    shape = np.broadcast_shapes(*(np.shape(x) for x in args))
    return tuple(np.broadcast_to(x, shape) for x in args)


@rule("meshgrid")
def _meshgrid(*xi: Any, **kwargs: Any) -> Any:
    tape = innermost(actives(list(xi)))
    return wrapped(tape, np.meshgrid(*(lift_array(tape, x).slots() for x in xi), **kwargs), False)


def _atleast_rule(function: Callable) -> Callable:
    def apply(*arrays: Any) -> Any:
        results = tuple(_on_view(function, x) if is_active(x) else function(x) for x in arrays)
        return results[0] if len(results) == 1 else results

    return apply


def _on_view(function: Callable, x: Any) -> Array:
    array = as_array(x)
    shared = _shared(array, function(array.view_space()))
    assert shared is not None
    return shared


for _name in ("atleast_1d", "atleast_2d", "atleast_3d"):
    RULES[getattr(np, _name)] = _atleast_rule(getattr(np, _name))


# Choosing elements.


@rule("take")
def _take(a: Any, indices: Any, axis: int | None = None, out: Any = None, mode: str = "raise") -> Any:
    array = as_array(a)
    taken = np.take(array.slots(), plain_index(indices), axis=axis, mode=mode)
    return stored(wrapped(array.tape, taken, array._storage.boolean), out)


@rule("take_along_axis")
def _take_along_axis(arr: Any, indices: Any, axis: int | None = -1) -> Any:
    refuse_active(np.take_along_axis, (indices,), {})
    array = as_array(arr)
    return wrapped(array.tape, np.take_along_axis(array.slots(), np.asarray(indices), axis), array._storage.boolean)


@rule("compress")
def _compress(condition: Any, a: Any, axis: int | None = None, out: Any = None) -> Any:
    condition = np.asarray(plain_index(condition))
    if not is_active(a):
        return stored(np.compress(condition, a, axis=axis), out)
    array = as_array(a)
    return stored(wrapped(array.tape, np.compress(condition, array.slots(), axis=axis), array._storage.boolean), out)


@rule("extract")
def _extract(condition: Any, arr: Any) -> Any:
    return np.compress(np.ravel(plain_index(condition)), np.ravel(arr))


# Joining.


@rule("pad")
def _pad(array: Any, pad_width: Any, mode: str = "constant", constant_values: Any = 0, **kwargs: Any) -> Any:
    array = as_array(array)
    boolean = array._storage.boolean
    if mode in ("edge", "reflect", "symmetric", "wrap") and kwargs.get("reflect_type", "even") == "even":
        return Array.of_slots(array.tape, np.pad(array.slots(), pad_width, mode=mode, **kwargs), boolean)
    if mode == "constant" and not is_active(constant_values):
        numbers = np.pad(np.zeros(array.shape), pad_width, mode=mode, constant_values=constant_values)
        slots = np.pad(array.slots(), pad_width, mode=mode, constant_values=-1)
        added = slots < 0
        slots[added] = [array.tape.constant(float(number)) for number in numbers[added]]
        return Array.of_slots(array.tape, slots, boolean)
    raise UnsupportedError(f"np.pad with mode={mode!r} is not supported on active values ({source_line()})")


@rule("append")
def _append(arr: Any, values: Any, axis: int | None = None) -> Any:
    if axis is None:
        return np.concatenate([np.ravel(arr), np.ravel(values)])
    return np.concatenate([arr, values], axis=axis)


@rule("insert")
def _insert(arr: Any, obj: Any, values: Any, axis: int | None = None) -> Array:
    refuse_active(np.insert, (obj,), {})
    tape = innermost(actives([arr, values]))
    slots = np.insert(lift_array(tape, arr).slots(), obj, lift_array(tape, values).slots(), axis)
    return Array.of_slots(tape, slots, is_boolean(arr) and is_boolean(values))


# Writing.


@rule("copyto")
def _copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    refuse_plain_target(dst)
    dst[...] = src if where is True else np.where(where, src, dst)


@rule("fill_diagonal")
def _fill_diagonal(a: Any, val: Any, wrap: bool = False) -> None:
    a = as_array(a)
    places = np.zeros(a.shape, bool)
    np.fill_diagonal(places, True, wrap)
    index = np.nonzero(places)
    val = np.ravel(val)
    n = index[0].size
    a[index] = np.tile(val, -(-n // max(1, val.shape[0])))[:n]


@rule("copy")
def _copy(a: Any, order: str = "K", subok: bool = False) -> Any:
    return as_array(a).copy()


@rule("may_share_memory", "shares_memory")
def _may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    if not (isinstance(a, Array) and isinstance(b, Array)) or a._storage is not b._storage:
        return False
    return np.shares_memory(a.view_space(), b.view_space())

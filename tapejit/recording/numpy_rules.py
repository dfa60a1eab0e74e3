"""What NumPy does to active values: ``__array_ufunc__`` and ``__array_function__``.

Ufuncs are recorded by `elementwise` and `reductions`; every other function has a rule (`tapejit.recording.rules`). A NumPy function
that has none is refused by its name, never run on something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapejit.errors import UnsupportedError

# The modules of rules are imported for what they enter into the table.
from tapejit.recording import aggregates, allocation, decisions, products, selection, structural  # noqa: F401
from tapejit.recording.array import Array, actives, is_active, plain_index
from tapejit.recording.elementwise import array_power, call_elementwise, prepared, stored
from tapejit.recording.recorder import refuse_frozen, source_line
from tapejit.recording.reductions import accumulate, matmul, reduce, sum_of
from tapejit.recording.rules import ALLOCATORS, RULES, check_dtype, refuse_plain_target, rule
from tapejit.recording.variable import Truth, Variable

__all__ = ["array_power", "call_function", "call_ufunc", "rule", "value"]

_VECDOT = getattr(np, "vecdot", None)


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple, kwargs: dict) -> Any:
    """``ufunc.method(*inputs, **kwargs)`` with an active operand."""
    out = kwargs.pop("out", None)
    if kwargs.pop("where", True) is not True:
        raise UnsupportedError(
            f"np.{ufunc.__name__} with where= is not supported on active values; use np.where, or np.sum(x, where=...) ({source_line()})"
        )
    dtype = kwargs.pop("dtype", None)
    kwargs = {key: given for key, given in kwargs.items() if key not in ("casting", "order", "subok")}
    if is_active(out) and not is_active(inputs):
        target = out[0] if isinstance(out, tuple) else out
        return stored(getattr(ufunc, method)(*inputs, **kwargs), target)
    if method == "__call__" and not kwargs:
        if ufunc is np.matmul:
            return stored(matmul(*inputs), out)
        if ufunc is _VECDOT:
            return stored(sum_of(np.multiply(*inputs), -1), out)
        return call_elementwise(ufunc, inputs, out, dtype)
    if method in ("reduce", "accumulate"):
        check_dtype(dtype)
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
    refuse_plain_target(target)
    places = np.arange(target.size).reshape(target.shape)[plain_index(index)]
    addend = np.broadcast_to(prepared(addend), places.shape) if places.ndim else addend
    if not places.ndim:
        target[plain_index(index)] = ufunc(target[plain_index(index)], addend)
        return
    # A copy of the addends, which may be a view of the target.
    places, addend = places.reshape(-1), np.array(np.reshape(addend, -1), like=target)
    flat: Any = np.reshape(target, -1)
    order = np.argsort(places, kind="stable")
    occurrence = np.empty(places.size, int)
    starts = np.flatnonzero(np.r_[True, places[order][1:] != places[order][:-1]]) if places.size else np.zeros(0, int)
    occurrence[order] = np.arange(places.size) - np.repeat(starts, np.diff(np.r_[starts, places.size]))
    for turn in range(occurrence.max(initial=-1) + 1):
        chosen = np.flatnonzero(occurrence == turn)
        flat[places[chosen]] = ufunc(flat[places[chosen]], addend[chosen])
    if not np.shares_memory(flat.view_space(), target.view_space()):
        target[...] = np.reshape(flat, target.shape)


def call_function(function: Callable, args: tuple, kwargs: dict, like: Any = None) -> Any:
    """``function(*args, **kwargs)`` of NumPy with an active argument; `like` is the one that was asked.

    Raises
    ------
    UnsupportedError
        If there is no rule for it; names it.
    """
    found = RULES.get(function)
    if found is None:
        name = f"{function.__module__}.{function.__name__}".replace("numpy", "np", 1)
        raise UnsupportedError(
            f"{name} of active values is not supported ({source_line()}); write it with supported functions, or pass tj.value(x) where its "
            "derivative is not wanted"
        )
    if function in ALLOCATORS:
        return found(*args, like=like, **kwargs)  # NumPy takes like= away before it asks
    return found(*args, **kwargs)


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
    for part in actives(x):
        refuse_frozen(part, "tj.value")
    return plain_value(x)


def plain_value(x: Any) -> Any:
    """What `value` gives, of anything."""
    if isinstance(x, Variable):
        number = x.tape.value_at(x.slot)
        return bool(number) if isinstance(x, Truth) else number
    if isinstance(x, Array):
        return x.value
    if isinstance(x, (list, tuple)):
        parts = [plain_value(element) for element in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    if isinstance(x, np.ndarray) and x.dtype == object:
        return np.array([plain_value(element) for element in x.reshape(-1)], dtype=float).reshape(x.shape)
    return x

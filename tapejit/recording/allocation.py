"""Allocation of arrays that accept active values (``np.zeros(n, like=x)``, ``np.zeros_like(x)``), and plain facts about arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapejit.errors import UnsupportedError
from tapejit.recording.array import Array, actives, is_active, is_boolean, lift_array
from tapejit.recording.recorder import innermost, source_line
from tapejit.recording.rules import ALLOCATORS, RULES, as_array, check_dtype, rule


@rule("zeros_like", "empty_like")
def _zeros_like(
    a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **kwargs: Any
) -> Any:
    return _full_like(a, 0.0, dtype, shape=shape)


@rule("ones_like")
def _ones_like(
    a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **kwargs: Any
) -> Any:
    return _full_like(a, 1.0, dtype, shape=shape)


@rule("full_like")
def _full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **kwargs: Any
) -> Any:
    shape = np.shape(a) if shape is None else shape
    if dtype is not None and np.dtype(dtype) != np.float64:
        return np.full(shape, fill_value, dtype=dtype)
    filled = full(shape, fill_value, like=a)
    return filled != 0.0 if dtype is None and is_boolean(a) else filled


@rule("full")
def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C", *, like: Any = None, **kwargs: Any) -> Array:
    """``np.full`` on the tape of `like` or of `fill_value`."""
    check_dtype(dtype)
    tape = innermost(actives([fill_value, like]))
    filler = lift_array(tape, fill_value)
    return Array.of_slots(
        tape, np.broadcast_to(filler.slots(), shape if isinstance(shape, tuple) else tuple(np.atleast_1d(shape)))
    )


@rule("zeros", "empty")
def _zeros(shape: Any, dtype: Any = None, order: str = "C", *, like: Any = None, **kwargs: Any) -> Array:
    return full(shape, 0.0, dtype, like=like)


@rule("ones")
def _ones(shape: Any, dtype: Any = None, order: str = "C", *, like: Any = None, **kwargs: Any) -> Array:
    return full(shape, 1.0, dtype, like=like)


@rule("array")
def _array(
    object: Any,
    dtype: Any = None,
    *,
    copy: Any = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    like: Any = None,
) -> Any:
    array = _asarray(object, dtype, copy=copy, like=like)
    return np.reshape(array, (1,) * (ndmin - array.ndim) + array.shape) if array.ndim < ndmin else array


@rule("asarray", "asanyarray", "ascontiguousarray")
def _asarray(
    object: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, like: Any = None, **kwargs: Any
) -> Array:
    check_dtype(dtype)
    if isinstance(object, Array) and not copy:
        return object
    return lift_array(innermost(actives([object, like])), object).copy()


def _like_rule(function: Callable) -> Callable:
    def apply(*args: Any, like: Any = None, **kwargs: Any) -> Array:
        if is_active([*args, *kwargs.values()]):
            raise UnsupportedError(
                f"np.{function.__name__} with an active bound is not supported ({source_line()}); scale np.{function.__name__} of numbers"
            )
        check_dtype(kwargs.get("dtype"))
        return lift_array(innermost(actives(like)), function(*args, **kwargs)).copy()

    return apply


for _name in ("eye", "identity", "arange"):
    RULES[getattr(np, _name)] = _like_rule(getattr(np, _name))


@rule("linspace")
def _linspace(
    start: Any,
    stop: Any,
    num: int = 50,
    endpoint: bool = True,
    retstep: bool = False,
    dtype: Any = None,
    axis: int = 0,
    **kwargs: Any,
) -> Any:
    check_dtype(dtype)
    n_steps = num - 1 if endpoint else num
    step = (stop - start) / n_steps if n_steps > 0 else np.nan
    points = start + np.multiply.outer(np.arange(float(num)), step if n_steps > 0 else stop - start)
    if endpoint and num > 1:
        points[-1] = stop
    points = np.moveaxis(points, 0, axis)
    return (points, step) if retstep else points


ALLOCATORS.update(
    getattr(np, _name)
    for _name in "zeros empty ones full array asarray asanyarray ascontiguousarray eye identity arange".split()
)


# Shapes and plain facts.

for _name in ("shape", "ndim", "size"):
    RULES[getattr(np, _name)] = lambda a, axis=None, _name=_name: (
        getattr(as_array(a), _name) if axis is None else as_array(a).shape[axis]
    )


@rule("iscomplexobj")
def _is_complex_object(x: Any) -> bool:
    return False


@rule("iscomplex")
def _is_complex(x: Any) -> Any:
    return np.zeros(np.shape(x), bool)[()]


@rule("isreal")
def _is_real(x: Any) -> Any:
    return np.ones(np.shape(x), bool)[()]


@rule("isrealobj")
def _is_real_object(x: Any) -> bool:
    return True


@rule("real")
def _real(val: Any) -> Any:
    return val


@rule("imag", "angle")
def _imaginary(x: Any, *args: Any, **kwargs: Any) -> Any:
    raise UnsupportedError(f"active values are real ({source_line()})")


@rule("result_type", "common_type")
def _result_type(*args: Any) -> np.dtype:
    return np.dtype(np.float64)


@rule("array_repr", "array_str", "array2string")
def _text(a: Any, *args: Any, **kwargs: Any) -> str:
    return repr(a)

"""What a call may do, for the activity analysis: of NumPy's functions and methods by the tables of `effects`, of anything else the worst."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from typing import Any

import numba
import numpy as np
from numba import types

from tapejit.recording.native import user_rows
from tapejit.recording.native.cells import (
    PASSIVE,
    Array,
    Cell,
    Iterated,
    Known,
    Method,
    Other,
    Passive,
    Scalar,
    Tuple,
    Value,
    absorb,
    cells_in,
)
from tapejit.recording.native.effects import (
    ALLOCATORS,
    COPYING_METHODS,
    ELEMENTWISE,
    NEW_ARRAYS,
    NUMBERS,
    PASSIVE_METHODS,
    PASSIVE_RESULTS,
    REDUCTIONS,
    SAME_NDIM,
    STORING_METHODS,
    TAKING_METHODS,
    VIEW_METHODS,
    VIEWS,
    WRITING,
    is_in,
)

__all__ = ["CallEffects"]

A_SLICE = Known(slice(None))


class CallEffects:
    """The part of `FunctionActivity` that knows the functions that are not the user's own."""

    def cell(self, key: tuple) -> Cell:
        raise NotImplementedError

    def _store(self, target: Value, value: Value) -> None:
        raise NotImplementedError

    def _combined(self, operands: Sequence[Value], place: int, is_comparison: bool = False) -> Value:
        raise NotImplementedError

    def _item(self, base: Value, index: Value, static: Any, place: Any) -> Value:
        raise NotImplementedError

    def _known_call(self, function: Any, arguments: list[Value], keywords: dict[str, Value], place: int) -> Value:
        every = [*arguments, *keywords.values()]
        name = getattr(function, "__name__", "")
        if function is builtins.enumerate:
            return Iterated(Tuple((PASSIVE, self._item_of(arguments[0], (place, 0)))))
        if function is builtins.zip:
            return Iterated(Tuple(tuple(self._item_of(argument, (place, i)) for i, argument in enumerate(arguments))))
        if function in (builtins.reversed, builtins.iter, numba.literal_unroll, builtins.tuple, numba.literally):
            return arguments[0] if arguments else PASSIVE
        if is_in(function, ALLOCATORS):
            return self._allocated(function, arguments, keywords, place)
        if is_in(function, PASSIVE_RESULTS):
            return self._passive_result(every, place, is_in(function, SAME_NDIM))
        if is_in(function, VIEWS):
            return self._viewed(function, arguments, place)
        if function is slice:
            return A_SLICE
        if (getattr(function, "__module__", "") or "").startswith("numpy.random") or name in WRITING:
            return self._written(every, place)
        if "out" in keywords:
            self._store(keywords["out"], self._combined(arguments, place))
            return keywords["out"]
        module = (getattr(function, "__module__", None) or "").split(".")[0]
        if isinstance(function, np.ufunc) or module in ("numpy", "math", "builtins", "operator", "_operator"):
            if isinstance(function, np.ufunc) and len(arguments) > function.nin:
                target = arguments[function.nin]
                self._store(target, self._combined(arguments[: function.nin], place))
                return target
            return self._computed(function, every, place)
        if isinstance(function, types.Type) or isinstance(function, type):
            return self._computed(function, every, place)
        if function in user_rows.made:
            return self._combined(arguments, place)
        return self._unknown_call(every, place)

    def _item_of(self, value: Value, key: tuple) -> Value:
        return value.item if isinstance(value, Iterated) else self._item(value, PASSIVE, None, key)

    def _allocated(self, function: Any, arguments: list[Value], keywords: dict[str, Value], place: int) -> Value:
        """A new array: active if it is filled with active numbers or made like an active one."""
        cell = self.cell((place,))
        shape = arguments[0] if arguments else keywords.get("shape", PASSIVE)
        for value in [*arguments, *keywords.values()]:
            for source in cells_in(value):
                source.flow_to(cell)
        name = function.__name__
        if name.endswith("_like"):
            return Array(cell, shape.ndim if isinstance(shape, Array) else None)
        if name in ("linspace", "arange"):
            return Array(cell, 1)
        if name in ("eye", "identity"):
            return Array(cell, 2)
        if name == "array":
            return Array(cell, None)
        return Array(
            cell,
            len(shape.items)
            if isinstance(shape, Tuple)
            else 1
            if isinstance(shape, (Passive, Known, Scalar))
            else None,
        )

    def _passive_result(self, values: list[Value], place: int, same_ndim: bool = False) -> Value:
        arrays = [value for value in values if isinstance(value, (Array, Other))]
        if not arrays:
            return PASSIVE
        first = arrays[0]
        return Array(self.cell((place,)), first.ndim if same_ndim and isinstance(first, Array) else None)

    def _viewed(self, function: Any, arguments: list[Value], place: int) -> Value:
        base = arguments[0] if arguments else PASSIVE
        if isinstance(base, Array):
            same = function in (np.ravel,)
            ndim = (
                1
                if same
                else base.ndim
                if function in (np.transpose, np.flip, np.ascontiguousarray, np.asarray)
                else None
            )
            if function is np.reshape and len(arguments) > 1:
                ndim = _reshaped(arguments[1:])
            return Array(base.cell, ndim)
        cell = self.cell((place,))
        absorb(cell, base)
        return Array(cell, None)

    def _written(self, values: list[Value], place: int) -> Value:
        """In-place functions of NumPy, and random numbers."""
        if values and isinstance(values[0], (Array, Other)):
            for value in values[1:]:
                self._store(values[0], value)
            values[0].cell.write()
        return Other(self.cell((place,)))

    def _computed(self, function: Any, values: list[Value], place: int) -> Value:
        """A function without side effects: numbers flow from all arguments to the result."""
        if not values:
            return self._unknown(values, place)  # a new container
        if all(isinstance(value, (Scalar, Passive, Known)) for value in values):
            return self._combined(values, place)
        if isinstance(function, np.ufunc) or is_in(function, ELEMENTWISE):
            return self._combined(values, place)
        if is_in(function, NUMBERS) or is_in(function, REDUCTIONS) and len(values) == 1:
            return Scalar(self._flowing(values, place))
        if is_in(function, NEW_ARRAYS) or is_in(function, REDUCTIONS):
            first = values[0] if values else PASSIVE
            ndim = first.ndim if isinstance(first, Array) and is_in(function, SAME_NDIM) else None
            return Array(self._flowing(values, place), ndim)
        return self._unknown(values, place)

    def _flowing(self, values: Iterable[Value], place: int) -> Cell:
        """A new cell that numbers of these values reach."""
        cell = self.cell((place,))
        for value in values:
            for source in cells_in(value):
                source.flow_to(cell)
        return cell

    def _method_call(self, method: Method, arguments: list[Value], place: int) -> Value:
        name, receiver = method.name, method.receiver
        if isinstance(receiver, Known):
            return (
                self._written(arguments, place)
                if name in ("shuffle",)
                else self._unknown_call([receiver, *arguments], place)
            )
        if name in PASSIVE_METHODS:
            return self._passive_result([receiver], place, name == "argsort")
        if name in VIEW_METHODS:
            if isinstance(receiver, Array):
                ndim = (
                    _reshaped(arguments)
                    if name == "reshape"
                    else 1
                    if name == "ravel"
                    else receiver.ndim
                    if name in ("transpose", "swapaxes")
                    else None
                )
                return Array(receiver.cell, ndim)
            return (
                Iterated(Other(receiver.cell))
                if name in ("items", "keys", "values") and isinstance(receiver, Other)
                else receiver
            )
        if name in STORING_METHODS:
            for argument in arguments:
                self._store(receiver, argument)
            return PASSIVE
        if name in TAKING_METHODS and not isinstance(receiver, Array):
            for argument in arguments:
                for cell in cells_in(receiver):
                    absorb(cell, argument)
            return receiver
        if name in ("copy", "astype", "flatten") and isinstance(receiver, Array):
            cell = self.cell((place,))
            receiver.cell.flow_to(cell)
            return Array(cell, 1 if name == "flatten" else receiver.ndim)
        if name == "sort" and isinstance(receiver, Array):
            receiver.cell.write()
            return PASSIVE
        if isinstance(receiver, Scalar):
            return self._combined([receiver, *arguments], place)
        if isinstance(receiver, Array) and name in COPYING_METHODS:
            cell = self._flowing([receiver, *arguments], place)
            reduces = name in ("item", "trace", *(function.__name__ for function in REDUCTIONS)) and not arguments
            same = isinstance(receiver, Array) and name in ("clip", "round", "conj", "conjugate")
            return Scalar(cell) if reduces else Array(cell, receiver.ndim if same else None)
        return self._unknown_call([receiver, *arguments], place)

    def _unknown(self, values: Iterable[Value], place: int) -> Other:
        """Something that may hold references to all of these."""
        other = Other(self.cell((place,)))
        for value in values:
            absorb(other.cell, value)
        return other

    def _unknown_call(self, values: Iterable[Value], place: int) -> Value:
        """A function that cannot be read: it may store anything anywhere."""
        result = self._unknown(values, place)
        result.cell.write()
        return result


def _reshaped(shape: Sequence[Value]) -> int | None:
    """Dimensions of the result of ``reshape``."""
    if len(shape) == 1 and isinstance(shape[0], Tuple):
        return len(shape[0].items)
    return len(shape) if all(isinstance(size, (Passive, Known)) for size in shape) else None

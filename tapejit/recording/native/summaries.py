"""Functions seen from outside: the pattern of a call, what the function does to its arguments, and what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
from numba import types
from numba.core.dispatcher import Dispatcher

from tapejit.recording.native.active import ActiveBool, ActiveFloat, is_active_array
from tapejit.recording.native.cells import (
    PASSIVE,
    Array,
    Cell,
    Iterated,
    Known,
    Method,
    Other,
    Scalar,
    Tuple,
    Value,
    absorb,
    cells_in,
)

__all__ = ["Summary", "folded", "instantiated", "pattern", "settle", "transfer", "value_of_type"]

MAX_ROUNDS = 1000


def value_of_type(kind: types.Type, cell_of: Callable[[tuple], Cell], key: tuple = ()) -> Value:
    """What is known of a parameter of a Numba type."""
    if isinstance(kind, types.Omitted):
        return value_of_type(numba.typeof(kind.value), cell_of, key)
    if isinstance(kind, types.Optional):
        return value_of_type(kind.type, cell_of, key)
    if isinstance(kind, types.Dispatcher):
        return Known(kind.dispatcher)
    if isinstance(kind, types.Array):
        cell = cell_of(key)
        if is_active_array(kind):
            cell.activate()
        return Array(cell, kind.ndim)
    if isinstance(kind, types.BaseTuple):
        return Tuple(tuple(value_of_type(part, cell_of, (*key, i)) for i, part in enumerate(kind)))
    if isinstance(kind, (ActiveFloat, ActiveBool)):
        cell = cell_of(key)
        cell.activate()
        return Scalar(cell)
    if isinstance(kind, types.Float):
        return Scalar(cell_of(key))
    if isinstance(kind, (types.Number, types.Boolean, types.UnicodeType, types.NoneType)):
        return PASSIVE
    if isinstance(kind, (types.List, types.ListType, types.Set)):
        other = Other(cell_of(key))
        absorb(other.cell, value_of_type(kind.dtype, cell_of, (*key, "item")))
        return other
    return Other(cell_of(key))


def settle(step: Callable[[], Any]) -> None:
    """Repeat a step until nothing is learnt."""
    for _ in range(MAX_ROUNDS):
        before = Cell.changes
        step()
        if Cell.changes == before:
            return
    raise AssertionError(f"the activity analysis does not settle in {MAX_ROUNDS} rounds; please report the function")


@dataclass
class Summary:
    """What a function does to its arguments, for one pattern of activity: its own parameters and result, in its own cells."""

    parameters: Sequence[Value]
    result: Value | None


def transfer(parameters: Sequence[Value], arguments: Sequence[Value]) -> dict[Cell, Cell]:
    """Let what a callee did to its parameters happen to the arguments; gives the caller's cell for each of the callee's."""
    here: dict[Cell, Cell] = {}
    for own, given in zip(parameters, arguments, strict=True):
        for inner, outside in zip(cells_in(own), cells_in(given), strict=True):
            inside = inner.root()
            if inside in here:
                here[inside].unify(outside)
            here[inside] = outside
            if inside.is_active:
                outside.activate()
            if inside.is_written:
                outside.write()
    return here


def folded(dispatcher: Dispatcher, arguments: Sequence[Value], keywords: dict[str, Value]) -> list[Value] | None:
    """The value of each parameter, defaults included; None if the call does not fit."""
    try:
        bound = inspect.signature(dispatcher.py_func).bind(*arguments, **keywords)
    except TypeError:
        return None
    bound.apply_defaults()
    out: list[Value] = []
    for name, parameter in bound.signature.parameters.items():
        given = bound.arguments[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            out.append(Tuple(tuple(given)))
        elif not isinstance(given, Value):
            out.append(Known(given))
        else:
            is_number = isinstance(given, Known) and isinstance(given.thing, (int, float, complex))
            out.append(PASSIVE if is_number else given)
    return out


def pattern(values: Sequence[Value]) -> tuple:
    """What of the arguments matters for a summary: kinds, activity, and which of them share memory."""
    numbers: dict[Cell, int] = {}

    def describe(value: Value) -> Any:
        if isinstance(value, (Scalar, Array, Other)):
            cell = value.cell.root()
            number = numbers.setdefault(cell, len(numbers))
            return (type(value).__name__, number, cell.is_active, getattr(value, "ndim", 0))
        if isinstance(value, Tuple):
            return ("Tuple", *(describe(item) for item in value.items))
        if isinstance(value, Iterated):
            return ("Iterated", describe(value.item))
        if isinstance(value, Method):
            return ("Method", value.name, describe(value.receiver))
        return value

    return tuple(describe(value) for value in values)


def instantiated(
    values: Sequence[Value], known: dict[Cell, Cell], cell_of: Callable[[int], Cell] | None = None
) -> list[Value]:
    """The same values in other cells: those of `known`, else new ones with the same activity."""

    def other(cell: Cell) -> Cell:
        cell = cell.root()
        if cell not in known:
            known[cell] = cell_of(len(known)) if cell_of else Cell()
        if cell.is_active:
            known[cell].activate()
        return known[cell]

    def copy(value: Value) -> Value:
        if isinstance(value, Array):
            return Array(other(value.cell), value.ndim)
        if isinstance(value, (Scalar, Other)):
            return type(value)(other(value.cell))
        if isinstance(value, Tuple):
            return Tuple(tuple(copy(item) for item in value.items))
        if isinstance(value, Iterated):
            return Iterated(copy(value.item))
        if isinstance(value, Method):
            return Method(value.name, copy(value.receiver))
        return value

    return [copy(value) for value in values]

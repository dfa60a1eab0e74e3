"""What the activity analysis knows of a variable: cells of memory that may hold active numbers, and the shapes of values around them.

A *cell* stands for all memory that one reference may lead to: arrays that may be views of each other share one (unification, after
Steensgaard, POPL 1996). Between cells run directed flows: where numbers are copied, activity follows them one way only.

References
----------
.. [1] B. Steensgaard, *Points-to analysis in almost linear time*, POPL 1996.
.. [2] L. Hascoet, U. Naumann, V. Pascual, *"To be recorded" analysis in reverse-mode automatic differentiation*, FGCS 21(8), 2005.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Array",
    "Cell",
    "Iterated",
    "Known",
    "Method",
    "Other",
    "Passive",
    "Scalar",
    "Tuple",
    "Value",
    "cells_in",
    "joined",
]


class Cell:
    """Memory, or one scalar: whether active numbers reach it, and whether anything is written there."""

    __slots__ = ("_active", "_parent", "_targets", "_written")

    changes = 0  # counts what the analysis has learnt: it runs until nothing is added

    def __init__(self, active: bool = False) -> None:
        self._parent: Cell | None = None
        self._active = active
        self._written = False
        self._targets: set[Cell] = set()

    def root(self) -> Cell:
        cell = self
        while cell._parent is not None:
            cell = cell._parent
        return cell

    @property
    def is_active(self) -> bool:
        return self.root()._active

    @property
    def is_written(self) -> bool:
        return self.root()._written

    def activate(self) -> None:
        cell = self.root()
        if not cell._active:
            cell._active = True
            Cell.changes += 1
            for target in list(cell._targets):
                target.activate()

    def write(self) -> None:
        cell = self.root()
        if not cell._written:
            cell._written = True
            Cell.changes += 1

    def flow_to(self, other: Cell) -> None:
        """What is active here is active there."""
        source, target = self.root(), other.root()
        if source is not target and target not in source._targets:
            source._targets.add(target)
            if source._active:
                target.activate()

    def unify(self, other: Cell) -> None:
        """Both are the same memory."""
        one, two = self.root(), other.root()
        if one is two:
            return
        Cell.changes += 1
        two._parent = one
        one._targets |= two._targets
        one._written |= two._written
        if one._active != two._active:
            one._active = False
            one.activate()


@dataclass(frozen=True)
class Passive:
    """A number or an object that carries no derivative: an integer, a shape, a truth value."""


@dataclass(frozen=True)
class Known:
    """A constant object: a module, a function, a type, a string, None."""

    thing: Any

    def __hash__(self) -> int:
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and other.thing is self.thing


@dataclass(frozen=True)
class Scalar:
    """A number that may be active."""

    cell: Cell


@dataclass(frozen=True)
class Array:
    """An array; `ndim` is None where it is not known."""

    cell: Cell
    ndim: int | None


@dataclass(frozen=True)
class Tuple:
    """A tuple of known length."""

    items: tuple[Value, ...]


@dataclass(frozen=True)
class Iterated:
    """An iterator, or what it yields."""

    item: Value


@dataclass(frozen=True)
class Method:
    """An attribute of a value that is called."""

    name: str
    receiver: Value


@dataclass(frozen=True)
class Other:
    """Anything else that can lead to memory: a list, a value of several kinds."""

    cell: Cell


Value = Passive | Known | Scalar | Array | Tuple | Iterated | Method | Other

PASSIVE = Passive()


def cells_in(value: Value) -> Iterator[Cell]:
    """All cells that a value leads to."""
    if isinstance(value, (Scalar, Array, Other)):
        yield value.cell
    elif isinstance(value, Tuple):
        for item in value.items:
            yield from cells_in(item)
    elif isinstance(value, Iterated):
        yield from cells_in(value.item)
    elif isinstance(value, Method):
        yield from cells_in(value.receiver)


def is_active(value: Value) -> bool:
    return any(cell.is_active for cell in cells_in(value))


def absorb(cell: Cell, value: Value) -> None:
    """Make what `value` leads to the same memory as `cell`; numbers flow there."""
    if isinstance(value, Scalar):
        value.cell.flow_to(cell)
    else:
        for part in _parts(value):
            if isinstance(part, Scalar):
                part.cell.flow_to(cell)
            else:
                for inner in cells_in(part):
                    inner.unify(cell)


def _parts(value: Value) -> Sequence[Value]:
    if isinstance(value, Tuple):
        return [part for item in value.items for part in _parts(item)]
    if isinstance(value, Iterated):
        return _parts(value.item)
    return [value]


def joined(values: Sequence[Value], cell_of: Callable[[tuple], Cell], key: tuple) -> Value | None:
    """What is known of a variable that may be any of these; new cells come from ``cell_of(key)``."""
    values = [
        value for value in dict.fromkeys(values) if not (isinstance(value, Known) and value.thing is None)
    ] or list(values[:1])
    if not values:
        return None
    first = values[0]
    if len(values) == 1:
        return first
    if all(isinstance(value, Passive) or _is_number(value) for value in values):
        return PASSIVE
    if all(isinstance(value, (Scalar, Passive)) or _is_number(value) for value in values):
        scalar = Scalar(cell_of(key))
        for value in values:
            absorb(scalar.cell, value)
        return scalar
    arrays = [value for value in values if isinstance(value, Array)]
    if len(arrays) == len(values):
        for array in arrays:
            array.cell.unify(arrays[0].cell)
        return Array(arrays[0].cell.root(), arrays[0].ndim if len({array.ndim for array in arrays}) == 1 else None)
    tuples = [value for value in values if isinstance(value, Tuple)]
    if len(tuples) == len(values) and len({len(value.items) for value in tuples}) == 1:
        columns = zip(*(value.items for value in tuples), strict=True)
        return Tuple(tuple(joined(column, cell_of, (*key, i)) or PASSIVE for i, column in enumerate(columns)))
    iterators = [value for value in values if isinstance(value, Iterated)]
    if len(iterators) == len(values):
        return Iterated(joined([value.item for value in iterators], cell_of, (*key, "item")) or PASSIVE)
    other = Other(cell_of(key))
    for value in values:
        absorb(other.cell, value)
    return other


def _is_number(value: Value) -> bool:
    return isinstance(value, Known) and isinstance(value.thing, (int, float, complex, bool))

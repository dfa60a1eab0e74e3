"""The arguments of a compiled call: what is active is held in cells, arrays of value and word, as compiled code sees them.

Arguments that share memory and are changed in place share their cells; in-place changes are written back when the call has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.dispatcher import Dispatcher

from tapejit.errors import UnsupportedError
from tapejit.recording.array import Array, is_active, lift_array
from tapejit.recording.native.active import CELL, active_float
from tapejit.recording.native.refusals import refuse_function
from tapejit.recording.native.words import array_of_words
from tapejit.recording.recorder import Tape

__all__ = ["Leaves", "Plan"]


@dataclass
class Plan:
    """What the analysis says of the leaves: which are held as cells, and which are written."""

    active: list[bool]
    written: list[bool]
    groups: list[list[int]] = field(default_factory=list)  # leaves that share memory and must share cells
    activates: bool = False  # whether passive arguments are held as cells


@cache
def _array_type(ndim: int, layout: str, readonly: bool) -> types.Array:
    return types.Array(active_float, ndim, layout, readonly=readonly)


@dataclass
class Leaf:
    """One argument, or one part of a tuple."""

    given: Any
    source: Any
    slots: np.ndarray | None = None  # of an active one
    values: np.ndarray | None = None

    @property
    def is_scalar(self) -> bool:
        return self.values is not None and self.values.ndim == 0


class Leaves:
    """The arguments of one call, taken apart."""

    def __init__(self, tape: Tape, owned: bool) -> None:
        self._tape = tape
        self._owned = owned
        self.all: list[Leaf] = []

    def add(self, given: Any, source: Any) -> Any:
        """Take an argument in; gives its structure: the number of a leaf, a tuple of such, or a dispatcher."""
        if isinstance(given, Dispatcher):
            refuse_function(given)
            return given
        if isinstance(given, tuple) and type(given) is tuple:
            sources = source if isinstance(source, tuple) and len(source) == len(given) else given
            return tuple(self.add(part, one) for part, one in zip(given, sources, strict=True))
        leaf = Leaf(given, source)
        if is_active(given):
            lifted = lift_array(self._tape, given)
            leaf.slots = lifted.slots()
            leaf.values = np.array(lifted.numbers())
            if isinstance(source, np.ndarray) and source.dtype != np.float64:
                raise UnsupportedError(
                    f"active values of compiled functions are float64, got an argument of dtype {source.dtype}, with which the function "
                    "computes in another precision; pass x.astype(float)"
                )
            if isinstance(source, np.ndarray) and self._owned and not source.flags.writeable:
                # A parameter, kept by the recording: the function may change what it is given. Only the address and the layout of this count.
                leaf.source = np.empty_like(source)
        elif isinstance(given, np.ndarray) and self._owned:
            leaf.given = leaf.source = given.copy(order="K")
        self.all.append(leaf)
        return len(self.all) - 1

    def kinds(self, active: Sequence[bool] | None = None) -> list[types.Type]:
        """The Numba type of each leaf."""
        return [self._type(leaf, active is not None and active[i]) for i, leaf in enumerate(self.all)]

    def _type(self, leaf: Leaf, active: bool) -> types.Type:
        if leaf.slots is not None and leaf.is_scalar:
            return active_float
        if leaf.slots is None and not active:
            try:
                return numba.typeof(leaf.given)
            except ValueError:
                raise UnsupportedError(
                    f"compiled code takes no argument of type {type(leaf.given).__name__}; pass numbers, arrays, tuples or what Numba knows"
                ) from None
        source = leaf.source
        if isinstance(source, np.ndarray):
            flags = source.flags
            layout = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
            return _array_type(source.ndim, layout, not flags.writeable)
        return _array_type(np.ndim(leaf.given if leaf.values is None else leaf.values), "C", False)

    def arrays(self) -> list[tuple[int, np.ndarray]]:
        """Leaves whose memory others may share."""
        out = []
        for i, leaf in enumerate(self.all):
            source = leaf.source if leaf.slots is not None else leaf.given
            if isinstance(source, np.ndarray):
                out.append((i, source))
        return out

    # Cells.

    def buffers(self, plan: Plan, number: int) -> list[Any]:
        """What the driver is called with: cells for what is active, the arguments themselves for the rest."""
        cells: list[Any] = [None] * len(self.all)
        for group in plan.groups:
            for i, view in zip(group, _shared_cells([self.source(i) for i in group]), strict=True):
                cells[i] = view
        for i, leaf in enumerate(self.all):
            if leaf.slots is None and not plan.active[i]:
                cells[i] = leaf.given
                continue
            if cells[i] is None:
                cells[i] = _new_cells(leaf)
            if leaf.slots is None:
                cells[i]["value"] = leaf.given
        # Inputs last, so that cells shared with passive arguments are active.
        for i, leaf in enumerate(self.all):
            if leaf.slots is not None:
                target = cells[i]
                target["value"] = leaf.values
                target["slot"] = leaf.slots
                target["tape"] = number
                if not isinstance(leaf.source, np.ndarray) or leaf.source.flags.writeable:
                    continue
                target.flags.writeable = False
        return cells

    def source(self, i: int) -> Any:
        leaf = self.all[i]
        return leaf.source if leaf.slots is not None else leaf.given

    def write_back(self, plan: Plan, cells: Sequence[Any]) -> None:
        """Leave the caller's arrays as the plain function would."""
        for i, cell in enumerate(cells):
            leaf = self.all[i]
            if not plan.written[i] or not (leaf.slots is not None or plan.active[i]):
                continue
            target = self.source(i)
            if isinstance(target, Array):
                target[...] = array_of_words(
                    self._tape, cell["value"], cell["tape"].astype(np.int64) << 32 | cell["slot"]
                )
            elif isinstance(target, np.ndarray) and target.flags.writeable and not (self._owned and leaf.slots is None):
                # What was never written keeps what the caller had there.
                np.copyto(target, cell["value"], where=cell["tape"] >= 0)


def _new_cells(leaf: Leaf) -> np.ndarray:
    like = leaf.source if isinstance(leaf.source, np.ndarray) else leaf.values
    shape = (like.shape if like is not None else ()) or (1,)
    is_fortran = isinstance(like, np.ndarray) and like.flags.f_contiguous and not like.flags.c_contiguous
    return np.zeros(shape, CELL, order="F" if is_fortran else "C")


def _shared_cells(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Views of one array of cells that overlap as these arrays of float64 do."""
    starts, ends = zip(*(np.lib.array_utils.byte_bounds(array) for array in arrays), strict=True)
    start, end = min(starts), max(ends)
    cells = np.zeros((end - start) // 8, CELL)
    views = []
    for array in arrays:
        offset = (array.__array_interface__["data"][0] - start) // 8
        strides = tuple(stride * CELL.itemsize // 8 for stride in array.strides)
        views.append(np.ndarray(array.shape, CELL, cells, offset * CELL.itemsize, strides))
    return views

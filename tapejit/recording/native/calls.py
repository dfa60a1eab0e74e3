"""A call of a compiled function from Python, recorded: arguments become cells, results become values on the tape.

For each combination of argument types a small *driver* is compiled that takes plain arrays and numbers, calls the active version and takes
its result apart; Numba's own conversions do the rest.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.dispatcher import Dispatcher

from tapejit import ops
from tapejit.errors import UninitializedError, UnsupportedError
from tapejit.recording.array import Array, is_active, lift_array
from tapejit.recording.native.active import CELL, active_float
from tapejit.recording.native.activity import FunctionActivity, Program, value_of_type
from tapejit.recording.native.cells import Cell, Known, Tuple, cells_in
from tapejit.recording.native.drivers import driver_for
from tapejit.recording.native.frontend import untyped_ir
from tapejit.recording.native.refusals import refuse_function, translated
from tapejit.recording.native.session import Session, Stopped
from tapejit.recording.recorder import Tape
from tapejit.recording.variable import Variable

__all__ = ["call"]


def call(
    tape: Tape,
    f: Dispatcher,
    arguments: Sequence[Any],
    keywords: dict[str, Any],
    originals: Sequence[Any] = (),
    replayed: bool = False,
) -> Any:
    """Call a compiled function and record it.

    Parameters
    ----------
    tape : Tape
        An open tape.
    f : Dispatcher
        The user's function.
    arguments, keywords
        Its arguments: active values (`Variable`, `Array`) and plain ones.
    originals : sequence
        What the user passed for each argument: where in-place changes are written back to, and whose layout is kept.
    replayed : bool
        Whether the recording is for replays: decisions are kept, and arguments are copies that nobody else sees.

    Returns
    -------
    object
        As the function returns it, with active values where they are.
    """
    refuse_function(f)
    leaves = _Leaves(tape, replayed)
    sources = list(originals) + list(arguments[len(originals) :])
    structure = [leaves.add(given, source) for given, source in zip(arguments, sources, strict=True)]
    named = {name: leaves.add(given, given) for name, given in keywords.items()}
    kinds = leaves.types()
    with translated(f, _positional(structure, named, kinds)):
        plan = _plan(f, structure, named, leaves, kinds)
        driver = driver_for(f, structure, named, leaves.types(plan.active) if plan.activates else kinds)
    with Session(tape, replayed, f"compiled function {f.py_func.__name__}") as session:
        cells = leaves.buffers(plan, session.number)
        try:
            result = driver.entry(*cells)
        except Stopped:
            result = None
    leaves.write_back(plan, cells)
    return _recorded(tape, result)


def _positional(
    structure: Sequence[Any], named: dict[str, Any], kinds: Sequence[types.Type]
) -> list[types.Type] | None:
    """The types of the arguments where all are positional leaves; None otherwise."""
    if named or not all(isinstance(part, int) for part in structure):
        return None
    return [kinds[part] for part in structure]


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


@dataclass
class _Plan:
    """What the analysis says of the leaves: which are held as cells, and which are written."""

    active: list[bool]
    written: list[bool]
    groups: list[list[int]] = field(default_factory=list)  # leaves that share memory and must share cells
    activates: bool = False  # whether passive arguments are held as cells


class _Leaves:
    """The arguments of one call, taken apart."""

    def __init__(self, tape: Tape, replayed: bool) -> None:
        self._tape = tape
        self._replayed = replayed
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
            leaf.values = self._tape.value[leaf.slots]
            if isinstance(source, np.ndarray) and source.dtype != np.float64:
                raise UnsupportedError(
                    f"active values of compiled functions are float64, got an argument of dtype {source.dtype}, with which the function "
                    "computes in another precision; pass x.astype(float)"
                )
        elif isinstance(given, np.ndarray) and self._replayed:
            leaf.given = given.copy()
        self.all.append(leaf)
        return len(self.all) - 1

    def types(self, active: Sequence[bool] | None = None) -> list[types.Type]:
        """The Numba type of each leaf."""
        return [self._type(leaf, active is not None and active[i]) for i, leaf in enumerate(self.all)]

    def _type(self, leaf: Leaf, active: bool) -> types.Type:
        if leaf.slots is not None and leaf.is_scalar:
            return active_float
        if leaf.slots is None and not active:
            return numba.typeof(leaf.given)
        like = (
            leaf.source
            if isinstance(leaf.source, np.ndarray)
            else np.empty((1,) * np.ndim(leaf.given if leaf.values is None else leaf.values))
        )
        kind = numba.typeof(like)
        return types.Array(active_float, kind.ndim, kind.layout, readonly=not kind.mutable)

    def arrays(self) -> list[tuple[int, np.ndarray]]:
        """Leaves whose memory others may share."""
        out = []
        for i, leaf in enumerate(self.all):
            source = leaf.source if leaf.slots is not None else leaf.given
            if isinstance(source, np.ndarray):
                out.append((i, source))
        return out

    # Cells.

    def buffers(self, plan: _Plan, number: int) -> list[Any]:
        """What the driver is called with: cells for what is active, the arguments themselves for the rest."""
        cells: list[Any] = [None] * len(self.all)
        for group in plan.groups:
            for i, view in zip(group, _shared_cells([self._source(i) for i in group]), strict=True):
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

    def _source(self, i: int) -> np.ndarray:
        leaf = self.all[i]
        return leaf.source if leaf.slots is not None else leaf.given

    def write_back(self, plan: _Plan, cells: Sequence[Any]) -> None:
        """Leave the caller's arrays as the plain function would."""
        if self._replayed:
            return
        for i, leaf in enumerate(self.all):
            if not plan.written[i] or not (leaf.slots is not None or plan.active[i]):
                continue
            target = self._source(i)
            if isinstance(target, np.ndarray) and target.flags.writeable:
                values = cells[i]["value"]
                poisoned = cells[i]["tape"] < 0
                if poisoned.any():
                    np.copyto(target, values, where=~poisoned)
                else:
                    target[...] = values


def _new_cells(leaf: Leaf) -> np.ndarray:
    like = leaf.source if isinstance(leaf.source, np.ndarray) else leaf.values
    shape = np.shape(like) or (1,)
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


def _plan(
    f: Dispatcher, structure: Sequence[Any], named: dict[str, Any], leaves: _Leaves, kinds: Sequence[types.Type]
) -> _Plan:
    plan = _analysed(f, structure, named, kinds, [])
    groups = _overlapping(leaves.arrays(), plan)
    if groups:
        plan = _analysed(f, structure, named, kinds, groups)
        for group in groups:
            for i in group:
                if leaves._source(i).dtype != np.float64:
                    raise UnsupportedError(
                        f"arguments that share memory and are changed in place must all be float64, got {leaves._source(i).dtype}; pass a copy"
                    )
                plan.active[i] = True
        plan.groups = groups
    for i, kind in enumerate(kinds):
        is_float = isinstance(kind, types.Array) and kind.dtype == types.float64
        is_input = leaves.all[i].slots is not None
        plan.active[i] = plan.active[i] and (is_float or is_input)
        plan.activates |= plan.active[i] and not is_input
    return plan


_plans: weakref.WeakKeyDictionary[Dispatcher, dict[tuple, tuple]] = weakref.WeakKeyDictionary()


def _analysed(
    f: Dispatcher,
    structure: Sequence[Any],
    named: dict[str, Any],
    kinds: Sequence[types.Type],
    groups: Sequence[Sequence[int]],
) -> _Plan:
    """Run the activity analysis; leaves of one group share their memory."""
    plans = _plans.setdefault(f, {})
    key = (tuple(structure), tuple(named.items()), tuple(kinds), tuple(map(tuple, groups)))
    if key not in plans:
        cells: dict[int, Any] = {}

        def value(part: Any) -> Any:
            if isinstance(part, Dispatcher):
                return Known(part)
            if isinstance(part, tuple):
                return Tuple(tuple(value(item) for item in part))
            if part not in cells:
                made: dict = {}
                cells[part] = value_of_type(kinds[part], lambda key: made.setdefault(key, Cell()))
            return cells[part]

        program = Program(untyped_ir)
        arguments = FunctionActivity._folded(
            f, [value(part) for part in structure], {n: value(p) for n, p in named.items()}
        )
        for i in range(len(kinds)):
            value(i)
        for group in groups:
            shared = [next(cells_in(cells[i])) for i in group]
            for other in shared[1:]:
                other.unify(shared[0])
        if arguments is not None:
            _to_fixed_point(program, f, arguments)
        flags = [
            (any(c.is_active for c in cells_in(cells[i])), any(c.is_written for c in cells_in(cells[i])))
            for i in range(len(kinds))
        ]
        plans[key] = tuple(flags)
    flags = plans[key]
    return _Plan([active for active, _ in flags], [written for _, written in flags])


def _to_fixed_point(program: Program, f: Dispatcher, arguments: list) -> None:
    """Apply what the function does to its arguments, until nothing changes."""
    before = -1
    while before != Cell.changes:
        before = Cell.changes
        summary = program.summary(f, arguments)
        if summary is None:
            for argument in arguments:
                for cell in cells_in(argument):
                    cell.write()
            return
        here: dict = {}
        for own, given in zip(summary.parameters, arguments, strict=True):
            for inside, outside in zip(cells_in(own), cells_in(given), strict=True):
                FunctionActivity._transfer(inside.root(), outside, here)


def _overlapping(arrays: Sequence[tuple[int, np.ndarray]], plan: _Plan) -> list[list[int]]:
    """Groups of arguments that share memory, of which one is changed and one active."""
    groups: list[list[int]] = []
    for i, array in arrays:
        touching = [
            group for group in groups if any(np.may_share_memory(array, other) for j, other in arrays if j in group)
        ]
        for group in touching:
            groups.remove(group)
        groups.append(sorted([i, *(j for group in touching for j in group)]))
    return [
        group
        for group in groups
        if len(group) > 1 and any(plan.written[i] for i in group) and any(plan.active[i] for i in group)
    ]


# Results.


def _recorded(tape: Tape, result: Any) -> Any:
    """What the driver returned, with active values where there are words."""
    if isinstance(result, tuple) and len(result) == 4 and result[2] is None and result[3] is None:
        values, words = result[:2]
        return _array(tape, values, words) if isinstance(values, np.ndarray) else _scalar(tape, values, words)
    if isinstance(result, tuple):
        return tuple(_recorded(tape, part) for part in result)
    return result


def _scalar(tape: Tape, value: float, word: int) -> Any:
    if word < 0:
        _refuse_poison()
    return Variable(tape, word & 0xFFFFFFFF, value) if word else value


def _array(tape: Tape, values: np.ndarray, words: np.ndarray) -> Any:
    if (words < 0).any():
        _refuse_poison()
    if not words.any():
        return values
    slots = words & 0xFFFFFFFF
    passive = words == 0
    if passive.any():
        first = tape.push_run(ops.CONSTANT, 0, 0, values[passive])
        slots[passive] = np.arange(first, first + int(passive.sum()))
    return Array.of_slots(tape, slots)


def _refuse_poison() -> None:
    raise UninitializedError(
        "the compiled function returned memory that was allocated (np.empty, np.empty_like) and never written; write all of it, or "
        "allocate with np.zeros"
    )

"""What the activity analysis says of one call: which plain arguments receive active numbers, and which are changed in place."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core.dispatcher import Dispatcher

from tapejit.errors import UnsupportedError
from tapejit.recording.native.activity import Program
from tapejit.recording.native.arguments import Leaves, Plan
from tapejit.recording.native.cells import Cell, Known, Tuple, cells_in
from tapejit.recording.native.frontend import untyped_ir
from tapejit.recording.native.summaries import folded, settle, transfer, value_of_type

__all__ = ["plan_for"]


def plan_for(
    f: Dispatcher, structure: Sequence[Any], named: dict[str, Any], leaves: Leaves, kinds: Sequence[types.Type]
) -> Plan:
    plan = _analysed(f, structure, named, kinds, [])
    groups = _overlapping(leaves.arrays(), plan)
    if groups:
        plan = _analysed(f, structure, named, kinds, groups)
        for group in groups:
            for i in group:
                if leaves.source(i).dtype != np.float64:
                    raise UnsupportedError(
                        f"arguments that share memory and are changed in place must all be float64, got {leaves.source(i).dtype}; pass a copy"
                    )
                plan.active[i] = True
        plan.groups = groups
    for i, kind in enumerate(kinds):
        is_float = isinstance(kind, types.Array) and kind.dtype == types.float64
        is_input = leaves.all[i].slots is not None
        plan.active[i] = plan.active[i] and (is_float or is_input)
        plan.activates |= plan.active[i] and not is_input
    return plan


_plans: weakref.WeakKeyDictionary[Dispatcher, dict[tuple, list]] = weakref.WeakKeyDictionary()


def _analysed(
    f: Dispatcher,
    structure: Sequence[Any],
    named: dict[str, Any],
    kinds: Sequence[types.Type],
    groups: Sequence[Sequence[int]],
) -> Plan:
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
        arguments = folded(f, [value(part) for part in structure], {n: value(p) for n, p in named.items()})
        for i in range(len(kinds)):
            value(i)
        for group in groups:
            shared = [next(cells_in(cells[i])) for i in group]
            for other in shared[1:]:
                other.unify(shared[0])
        if arguments is not None:
            settle(lambda: _apply(program, f, arguments))
        plans[key] = [
            (any(c.is_active for c in cells_in(cells[i])), any(c.is_written for c in cells_in(cells[i])))
            for i in range(len(kinds))
        ]
    flags = plans[key]
    return Plan([active for active, _ in flags], [written for _, written in flags])


def _apply(program: Program, f: Dispatcher, arguments: list) -> None:
    """Let what the function does to its arguments happen to them."""
    summary = program.summary(f, arguments)
    if summary is None:
        for argument in arguments:
            for cell in cells_in(argument):
                cell.write()
    else:
        transfer(summary.parameters, arguments)


def _overlapping(arrays: Sequence[tuple[int, np.ndarray]], plan: Plan) -> list[list[int]]:
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

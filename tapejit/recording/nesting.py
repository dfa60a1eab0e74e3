"""Nested transforms: an inner tape copied onto the outer one, and its derivatives recorded there.

A gradient inside a function that is being differentiated is itself a computation on the outer tape. `Transcript` copies the inner tape to
the end of the outer one, its inputs read from the outer values they stand for, and then records the inner reverse or tangent sweep:
partials become slots. Scalar slots are walked by kernels (`tapejit.sweeps.transcribe`), blocks one by one as operations on arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tapejit import ops
from tapejit.blocks import Block, Operand
from tapejit.errors import TapeError
from tapejit.expressions import Tree, compile_program
from tapejit.layout import DATA, ELEMENTWISE, SUM
from tapejit.recording.array import Array, lift_array
from tapejit.recording.elementwise import apply, evaluate, select
from tapejit.recording.recorder import Tape, open_tapes
from tapejit.recording.reductions import matmul, sum_of
from tapejit.sweeps.primitives import primitive_table
from tapejit.sweeps.transcribe import active_run, program_table, reverse_run, slots_needed, tangent_run

__all__ = ["Transcript", "outer_tape"]


def outer_tape(tapes: Sequence[Tape]) -> Tape:
    """The innermost of the open tapes that an inner computation depends on.

    Raises
    ------
    TapeError
        If one of them is not being recorded any more.
    """
    stack = open_tapes()
    for tape in tapes:
        if tape not in stack:
            raise TapeError(
                "a value of a tape that is not being recorded any more is used in a nested transform; pass tj.value(x)"
            )
    return max(tapes, key=stack.index)


class Transcript:
    """An inner tape as a part of an outer one.

    Parameters
    ----------
    inner : Tape
        A finished recording.
    outer : Tape
        Where to put it; must be open.
    sources : sequence of Array
        What the inner inputs are on the outer tape, one entry an input.
    """

    def __init__(self, inner: Tape, outer: Tape, sources: Sequence[Array]) -> None:
        self.inner, self.outer = inner, outer
        slots = [
            (first, array.slots().reshape(-1)) for (first, _), array in zip(inner.input_slots, sources, strict=True)
        ]
        for first, there, tape in inner.links:
            if tape is not outer:
                there = lift_array(outer, Array.of_slots(tape, there)).slots().reshape(-1)
            slots.append((first, there))
        self.shift = outer.append_tape(inner, slots)
        self.active = self._activity([(first, there.size) for first, there in slots])

    def outer_array(self, slots: np.ndarray) -> Array:
        """An array of inner slots on the outer tape."""
        return _array(self.outer, np.asarray(slots, np.int64) + self.shift)

    # Which slots matter.

    def _activity(self, seeds: Sequence[tuple[int, int]]) -> np.ndarray:
        inner = self.inner
        active = np.zeros(inner.n_slots, bool)
        for first, size in seeds:
            active[first : first + size] = True
        for start, stop, block in self._segments():
            if block is None:
                active_run(inner.opcode, inner.lhs, inner.rhs, start, stop, active)
            else:
                reads = block.operands[1:] if block.code == ops.SELECT else block.operands
                active[start:stop] = any(
                    active[slots].any() for slots in map(self._reads(block), reads) if slots is not None
                )
        return active

    def _segments(self) -> Iterator[tuple[int, int, Block | None]]:
        """The inner tape in order: runs of scalar slots (None) and blocks."""
        at = 0
        for block in self.inner.blocks():
            if block.first > at:
                yield at, block.first, None
            yield block.first, block.first + block.size, block
            at = block.first + block.size
        if at < self.inner.n_slots:
            yield at, self.inner.n_slots, None

    def _reads(self, block: Block) -> Callable[[Operand], np.ndarray | None]:
        """Slots that an operand of a block reads, None for plain numbers."""

        def slots(operand: Operand) -> np.ndarray | None:
            return None if operand.mode == DATA else operand.elements(_operand_shape(block, operand))

        return slots

    def _operand(self, block: Block, operand: Operand) -> Any:
        """An operand of a block, on the outer tape."""
        elements = operand.elements(_operand_shape(block, operand))
        return elements if operand.mode == DATA else self.outer_array(elements)

    def _run(self, kernel: Callable, start: int, stop: int, adjoint: np.ndarray) -> None:
        """One of the kernels over a run of scalar slots."""
        inner, outer = self.inner, self.outer
        n_user = max(inner.n_user_rows, outer.n_user_rows)
        steps, entries, numbers = program_table(n_user)
        constants = np.array([outer.constant(float(number)) for number in numbers], np.int64)
        run = slice(start, stop)
        opcode, lhs, rhs, value = outer.room(slots_needed(inner.opcode[run], entries))
        count = np.array([outer.n_slots], np.int64)
        own = (inner.opcode, inner.lhs, inner.rhs)
        functions = primitive_table("value", n_user)
        kernel(
            own,
            start,
            stop,
            self.shift,
            self.active,
            adjoint,
            steps,
            entries,
            constants,
            count,
            (opcode, lhs, rhs),
            value,
            functions,
        )
        outer.took_room(int(count[0]), n_user)

    # Reverse.

    def reverse(self, seeds: Sequence[tuple[np.ndarray, Array]]) -> list[np.ndarray]:
        """Record the reverse sweep.

        Parameters
        ----------
        seeds : sequence of (slots, Array)
            Inner output slots and their adjoints on the outer tape.

        Returns
        -------
        list of ndarray
            For each inner input, the outer slots of its adjoint.
        """
        bar = np.zeros(self.inner.n_slots, np.int64)
        for slots, seed in seeds:
            self._scatter(bar, np.asarray(slots, np.int64).reshape(-1), np.ones(slots.size, bool), np.reshape(seed, -1))
        for start, stop, block in reversed(list(self._segments())):
            if block is None:
                if bar[start:stop].any():
                    self._run(reverse_run, start, stop, bar)
            elif bar[start:stop].any() and self.active[start]:
                self._reverse_block(block, bar)
        return [bar[first : first + size] for first, size in self.inner.input_slots]

    def _reverse_block(self, block: Block, bar: np.ndarray) -> None:
        g: Any = _array(self.outer, bar[block.first : block.first + block.size])
        reads = self._reads(block)
        if block.kind == SUM:
            spread = Operand(0, 0, block.result_strides).elements(block.shape)
            self._scatter_operand(bar, block, block.operands[0], _array(self.outer, g.slots()[spread]))
            return
        if block.kind == ELEMENTWISE:
            operands = [self._operand(block, operand) for operand in block.operands]
            g = np.reshape(g, block.shape)
            v = np.reshape(self.outer_array(np.arange(block.first, block.first + block.size)), block.shape)
            for which, operand in enumerate(block.operands):
                slots = reads(operand)
                if slots is None or not self.active[slots].any():
                    continue
                t = self._contribution(block.code, which, g, operands, v)
                if t is not None:
                    self._scatter_operand(bar, block, operand, t)
            return
        m, k, n = block.shape
        a, b = (self._operand(block, operand) for operand in block.operands)
        g = np.reshape(g, (m, n))
        for operand, product in (
            (block.operands[0], lambda: matmul(g, np.transpose(b))),
            (block.operands[1], lambda: matmul(np.transpose(a), g)),
        ):
            slots = reads(operand)
            if slots is not None and self.active[slots].any():
                self._scatter(bar, slots.reshape(-1), self.active[slots].reshape(-1), np.reshape(product(), -1))

    def _contribution(self, code: int, which: int, factor: Any, operands: Sequence[Any], v: Any) -> Any:
        """``factor * partial`` of an elementwise block, None where the partial is identically zero."""
        if code == ops.SELECT:
            if which == 0:
                return None
            return select(operands[0] != 0.0, factor if which == 1 else 0.0, factor if which == 2 else 0.0)
        tree = ops.partial_trees(ops.op_coded(code).name)[which]
        if tree == 0.0:
            return None
        if tree == 1.0:
            return factor
        if tree == -1.0:
            return -factor
        partial = evaluate_tree(tree, {"x": operands[0], "y": operands[-1], "v": v})
        return apply(ops.BY_NAME["chain"], (factor, partial), _chain)

    def _scatter_operand(self, bar: np.ndarray, block: Block, operand: Operand, t: Any) -> None:
        """Add a contribution to the adjoints of an operand; what was broadcast is summed first."""
        shape = block.shape
        repeated = tuple(axis for axis, stride in enumerate(operand.strides) if stride == 0 and shape[axis] > 1)
        if repeated:
            t = sum_of(np.broadcast_to(t, shape), repeated, keepdims=True)
            shape = tuple(1 if axis in repeated else extent for axis, extent in enumerate(shape))
        slots = operand.elements(shape).reshape(-1)
        self._scatter(bar, slots, self.active[slots], np.reshape(np.broadcast_to(t, shape), -1))

    def _scatter(self, bar: np.ndarray, slots: np.ndarray, wanted: np.ndarray, t: Any) -> None:
        """``bar[slots] += t`` in slots of the outer tape, where a slot may stand several times."""
        there = lift_array(self.outer, t).slots().reshape(-1)[wanted].astype(np.int64)
        slots = slots[wanted]
        if slots.size > 1:
            order = np.argsort(slots, kind="stable")
            slots, there = slots[order], there[order]
            while (slots[1:] == slots[:-1]).any():
                starts = np.flatnonzero(np.r_[True, slots[1:] != slots[:-1]])
                occurrence = np.arange(slots.size) - np.repeat(starts, np.diff(np.r_[starts, slots.size]))
                second = np.flatnonzero(occurrence % 2 == 1)
                there[second - 1] = self._added(there[second - 1], there[second])
                keep = occurrence % 2 == 0
                slots, there = slots[keep], there[keep]
        old = bar[slots]
        both = (old != 0) & (there != 0)
        if both.any():
            there[both] = self._added(old[both], there[both])
        bar[slots] = np.where(there != 0, there, old)

    def _added(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return lift_array(self.outer, np.add(_array(self.outer, a), _array(self.outer, b))).slots()

    # Tangent.

    def tangent(self, dots: Sequence[np.ndarray], output: np.ndarray) -> np.ndarray:
        """Record the tangent sweep.

        Parameters
        ----------
        dots : sequence of ndarray
            For each inner input, the outer slots of its tangent.
        output : ndarray of int
            Inner output slots.

        Returns
        -------
        ndarray of int
            Outer slots of the tangents of `output`.
        """
        dot = np.zeros(self.inner.n_slots, np.int64)
        for (first, size), slots in zip(self.inner.input_slots, dots, strict=True):
            dot[first : first + size] = slots.reshape(-1)
        for start, stop, block in self._segments():
            if block is None:
                self._run(tangent_run, start, stop, dot)
            else:
                t = self._tangent_block(block, dot)
                if t is not None:
                    shape = block.shape if block.kind == ELEMENTWISE else np.shape(t)
                    dot[start:stop] = lift_array(self.outer, np.broadcast_to(t, shape)).slots().reshape(-1)
        return dot[output]

    def _tangent_block(self, block: Block, dot: np.ndarray) -> Any:
        reads = [self._reads(block)(operand) for operand in block.operands]
        dots: list[Any] = [
            None if slots is None or not dot[slots].any() else _array(self.outer, dot[slots]) for slots in reads
        ]
        if all(d is None for d in dots):
            return None
        if block.kind == SUM:
            spread = Operand(0, 0, block.result_strides).elements(block.shape)
            order = np.argsort(spread.reshape(-1), kind="stable")
            return sum_of(np.reshape(np.reshape(dots[0], -1)[order], (block.size, -1)), 1)
        operands = [self._operand(block, operand) for operand in block.operands]
        total = None
        if block.kind == ELEMENTWISE:
            v = np.reshape(self.outer_array(np.arange(block.first, block.first + block.size)), block.shape)
            for which, d in enumerate(dots):
                t = None if d is None else self._contribution(block.code, which, d, operands, v)
                total = t if total is None else total if t is None else total + t
            return total
        if dots[0] is not None:
            total = matmul(dots[0], operands[1])
        if dots[1] is not None:
            t = matmul(operands[0], dots[1])
            total = t if total is None else total + t
        return total


def _operand_shape(block: Block, operand: Operand) -> tuple[int, ...]:
    if block.kind in (ELEMENTWISE, SUM):
        return block.shape
    m, k, n = block.shape
    return (m, k) if operand is block.operands[0] else (k, n)


def _array(tape: Tape, slots: np.ndarray) -> Array:
    """An array of slots; a run stays a run."""
    slots = np.asarray(slots)
    flat = slots.reshape(-1)
    if flat.size and int(flat[-1]) - int(flat[0]) == flat.size - 1 and (np.diff(flat) == 1).all():
        return Array.of_run(tape, int(flat[0]), slots.shape)
    return Array.of_slots(tape, slots)


def _chain(x: Any, y: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.where(np.asarray(x) == 0.0, 0.0, np.multiply(x, y))


def evaluate_tree(tree: Tree, operands: dict[str, Any]) -> Any:
    """An expression on active or plain operands."""
    program = compile_program(tree)
    steps: list[Any] = []

    def argument(given: float | str | int) -> Any:
        return operands[given] if isinstance(given, str) else given if isinstance(given, float) else steps[given]

    with np.errstate(all="ignore"):
        for name, *arguments in program.steps:
            numbers = [argument(given) for given in arguments]
            steps.append(_selected(*numbers) if name == "select" else evaluate(name, *numbers))
        return argument(program.result)


def _selected(condition: Any, x: Any, y: Any) -> Any:
    if any(isinstance(z, Array) or hasattr(z, "slot") for z in (condition, x, y)):
        return select(condition, x, y)
    chosen = np.where(condition, x, y)
    return chosen if chosen.ndim else float(chosen)

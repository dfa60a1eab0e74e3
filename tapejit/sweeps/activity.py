"""Activity: which slots depend on the inputs that are differentiated, and which operands of blocks do not.

What depends on parameters alone takes no adjoint and has no tangent. In a derivative sweep blocks read such operands as plain numbers (DATA, at
their address in the values, instead of SLOTS), so a sweep through ``X @ w`` does not compute the adjoint of the data `X`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapejit.layout import DATA, HEADER, MATMUL, SUM, TABLE
from tapejit.ops import BLOCK, POSITIVE, SELECT
from tapejit.sweeps.blocks import helper, row_offset
from tapejit.sweeps.kernel import kernel
from tapejit.sweeps.pointers import load_index

if TYPE_CHECKING:
    from tapejit.tape import FlatTape

__all__ = ["Passive", "activity", "passive"]


def activity(tape: FlatTape) -> np.ndarray:
    """Which slots depend on an input that is differentiated, (n_slots,) bool; parameters and constants do not.

    A comparison depends on what it compares, although its derivative is zero. Linear time.
    """
    active = np.zeros(tape.n_slots, np.bool_)
    for first, size in tape.input_slots:
        active[first : first + size] = True
    start = tape.first_operation
    for call in tape.calls:
        spread_activity(start, tape.opcode[: call.first], tape.lhs, tape.rhs, tape.word_array(), active)
        start = call.first + call.size
        active[call.first : start] = active[call.operands].any()
    spread_activity(start, tape.opcode, tape.lhs, tape.rhs, tape.word_array(), active)
    return active


@dataclass
class Passive:
    """What a tape with parameters keeps out of its derivative sweeps.

    Attributes
    ----------
    n_slots : int
        The length of the tape that this holds for.
    runs, tables : (k,) int64 ndarray
        Positions in `words` of the operands that read passive slots only, in a regular pattern or through a table.
    touched : list of (first, size)
        The runs of parameters that a reverse sweep may add adjoints to all the same, from scalar slots.
    """

    n_slots: int
    runs: np.ndarray
    tables: np.ndarray
    touched: list[tuple[int, int]]

    def words(self, tape: FlatTape, words: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The descriptions of the blocks for a derivative sweep over `value`, and what must be kept alive while they are used."""
        if not self.runs.size and not self.tables.size:
            return words, []
        changed = words.copy()
        changed[self.runs] = DATA
        changed[self.runs + 1] = value.ctypes.data + 8 * words[self.runs + 1]
        held = []
        if self.tables.size:
            arrays = dict(tape._references)
            for at in self.tables:
                numbers = np.ascontiguousarray(value[arrays[int(at) + 1]])
                changed[at : at + 2] = DATA, numbers.ctypes.data
                held.append(numbers)
        return changed, held


def passive(tape: FlatTape) -> Passive | None:
    """What this tape keeps out of derivative sweeps; None if it has no parameters. Found out once."""
    if not tape.parameter_slots:
        return None
    known = tape.passive_known
    if known is None or known.n_slots != tape.n_slots:
        words, blocks = tape.word_array(), np.array(tape.block_at, np.int64)
        touched = np.zeros(tape.n_slots, np.bool_)
        scalar = ~tape.interior() & (tape.opcode >= POSITIVE)
        for operands in (tape.lhs, tape.rhs):
            touched[operands[scalar]] = True
        places = np.array(passive_operands(words, blocks, activity(tape), touched), np.int64)
        is_table = words[places] == TABLE
        runs = [(first, size) for first, size in tape.parameter_slots if touched[first : first + size].any()]
        tape.passive_known = known = Passive(tape.n_slots, places[~is_table], places[is_table], runs)
    return known


@helper
def slot_at(mode, base, offset):
    """The slot of an element of an operand."""
    return load_index(base, offset) if mode == TABLE else base + offset


@helper
def operand_rows(words, at):
    """``(first operand, words an operand, operands, ndim, rows)`` of an elementwise block or a sum, whose last dimension is a row."""
    ndim = words[at + 4]
    n_rows = 1
    for axis in range(ndim - 1):
        n_rows *= words[at + HEADER + axis]
    return at + HEADER + ndim, 2 + ndim, words[at + 5], ndim, n_rows


@helper
def spread_rows(words, at, active):
    """Activity of an elementwise block or a sum from that of its operands."""
    operand_at, record, n_operands, ndim, n_rows = operand_rows(words, at)
    extent = words[at + HEADER + ndim - 1]
    result_at = operand_at + record  # of a sum
    for which in range(n_operands):
        place = operand_at + which * record
        mode, base = words[place], words[place + 1]
        if mode == DATA:
            continue
        stride = words[place + 1 + ndim]
        for row in range(n_rows):
            offset = row_offset(words, at + HEADER, ndim, place + 2, row)
            result, result_stride = words[at + 1] + row * extent, 1
            if words[at] == SUM:
                result = words[at + 1] + row_offset(words, at + HEADER, ndim, result_at, row)
                result_stride = words[result_at + ndim - 1]
            for i in range(extent):
                active[result + i * result_stride] |= active[slot_at(mode, base, offset + i * stride)]


@helper
def any_active(words, operand_at, offset, stride, n, active):
    """Whether one of `n` elements of an operand, `stride` apart, is active."""
    mode, base = words[operand_at], words[operand_at + 1]
    if mode != DATA:
        for i in range(n):
            if active[slot_at(mode, base, offset + i * stride)]:
                return True
    return False


@helper
def spread_matmul(words, at, active):
    """Activity of a matrix product: that of the row of one factor or of the column of the other."""
    first, k, m, n = words[at + 1], words[at + 3], words[at + 4], words[at + 5]
    a_at, b_at = at + HEADER, at + HEADER + 4
    for i in range(m):
        if any_active(words, a_at, i * words[a_at + 2], words[a_at + 3], k, active):
            active[first + i * n : first + (i + 1) * n] = True
    for j in range(n):
        if any_active(words, b_at, j * words[b_at + 3], words[b_at + 2], k, active):
            for i in range(m):
                active[first + i * n + j] = True


@kernel
def spread_activity(start, opcode, lhs, rhs, words, active):
    """Complete `active` (n_slots,), which is set for the inputs, from the slot `start` on."""
    slot = start
    while slot < opcode.size:
        code = opcode[slot]
        if code == BLOCK:
            at = np.int64(lhs[slot])
            if words[at] == MATMUL:
                spread_matmul(words, at, active)
            else:
                spread_rows(words, at, active)
            slot = words[at + 1] + words[at + 2] - 1
        elif code >= POSITIVE:
            active[slot] = active[lhs[slot]] or active[rhs[slot]] or (code == SELECT and active[slot - 1])
        slot += 1


@helper
def mark_row(mode, base, offset, stride, n, touched):
    for i in range(n):
        touched[slot_at(mode, base, offset + i * stride)] = True


@kernel
def passive_operands(words, blocks, active, touched):
    """Positions in `words` of the operands of blocks that read no active slot; marks what the other operands read in `touched`."""
    found = [np.int64(0) for _ in range(0)]
    for at in blocks:
        if words[at] == MATMUL:
            extents = (words[at + 4], words[at + 3], words[at + 5])
            for which in range(2):
                place = at + HEADER + 4 * which
                if words[place] == DATA:
                    continue
                n_rows, n_columns = extents[which], extents[which + 1]
                is_active = False
                for i in range(n_rows):
                    if any_active(words, place, i * words[place + 2], words[place + 3], n_columns, active):
                        is_active = True
                        break
                if not is_active:
                    found.append(place)
                    continue
                for i in range(n_rows):
                    mark_row(words[place], words[place + 1], i * words[place + 2], words[place + 3], n_columns, touched)
            continue
        operand_at, record, n_operands, ndim, n_rows = operand_rows(words, at)
        extent = words[at + HEADER + ndim - 1]
        for which in range(n_operands):
            place = operand_at + which * record
            mode, base, stride = words[place], words[place + 1], words[place + 1 + ndim]
            if mode == DATA:
                continue
            is_active = False
            for row in range(n_rows):
                offset = row_offset(words, at + HEADER, ndim, place + 2, row)
                if any_active(words, place, offset, stride, extent, active):
                    is_active = True
                    break
            if not is_active:
                found.append(place)
                continue
            for row in range(n_rows):
                mark_row(mode, base, row_offset(words, at + HEADER, ndim, place + 2, row), stride, extent, touched)
    return found

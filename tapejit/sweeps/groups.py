"""Joined blocks: which of them are read outside of their group.

Memory is what a reverse sweep over large arrays costs. Blocks of one length that read each other at the same index only (`tapejit.layout`)
are pulled back together, a tile at a time. The adjoint of a block that nothing outside of its group reads starts and ends as zero in every
tile, so it lives in a small buffer and never in memory.
"""

from __future__ import annotations

import numpy as np

from tapejit.layout import DATA, HEADER, MATMUL, TABLE
from tapejit.ops import BLOCK, POSITIVE
from tapejit.sweeps.blocks import helper
from tapejit.sweeps.kernel import kernel
from tapejit.sweeps.pointers import load_index

__all__ = ["find_escapes", "member_at"]


@helper
def member_at(words, at, base, stride):
    """The block joined by the one at `at`, at any distance, that starts at slot `base`; -1 if there is none."""
    member = words[at + 6]
    while member >= 0:
        if words[member + 1] == base and stride == 1:
            return member
        member = words[member + 6]
    return np.int64(-1)


@helper
def mark_operand(words, at, shape_at, ndim, operand_at, read):
    """Mark the slots that an operand reads; of slots in a regular pattern all that lie between its ends."""
    mode, base = words[operand_at], words[operand_at + 1]
    if mode == DATA or (ndim == 1 and member_at(words, at, base, words[operand_at + 2]) >= 0):
        return
    low = high = 0
    for axis in range(ndim):
        reach = (words[shape_at + axis] - 1) * words[operand_at + 2 + axis]
        low, high = low + min(0, reach), high + max(0, reach)
    if mode == TABLE:
        for offset in range(low, high + 1):
            read[load_index(base, offset)] = 1
    else:
        # The inputs before the first block interest nobody: `read` starts to matter there.
        read[max(base + low, words[1]) : base + high + 1] = 1


@helper
def any_marked(marks):
    """1 if a byte is set, else 0; in steps that vectorise."""
    found = np.uint8(0)
    for start in range(0, marks.size, 4096):
        for mark in marks[start : start + 4096]:
            found |= mark
        if found:
            return 1
    return 0


@kernel
def find_escapes(opcode, lhs, rhs, words, blocks, output):
    """Set word 7 of every block to whether anything outside of its group reads it, or it holds an output.

    Parameters
    ----------
    opcode, lhs, rhs, words : ndarray
        The tape.
    blocks : (n_blocks,) int64 ndarray
        Positions of the blocks.
    output : (m,) int64 ndarray
        Slots that are seeded.
    """
    read = np.zeros(opcode.size, np.uint8)
    shape = np.empty(4, np.int64)
    slot = 0
    while slot < opcode.size:
        if opcode[slot] == BLOCK:
            slot = words[lhs[slot] + 1] + words[lhs[slot] + 2] - 1
        elif opcode[slot] >= POSITIVE:
            read[lhs[slot]] = 1
            read[rhs[slot]] = 1
        slot += 1
    for at in blocks:
        if words[at] == MATMUL:
            # Rows and columns stand in the header: bring them into the order of a shape.
            m, k, n = words[at + 4], words[at + 3], words[at + 5]
            shape[0], shape[1], shape[2], shape[3] = m, k, k, n
            for which in range(2):
                mark_matrix(words, at + HEADER + 4 * which, shape[2 * which], shape[2 * which + 1], read)
        else:
            ndim = words[at + 4]
            for which in range(words[at + 5]):
                mark_operand(words, at, at + HEADER, ndim, at + HEADER + ndim + which * (2 + ndim), read)
    for slot in output:
        read[slot] = 1
    for at in blocks:
        words[at + 7] = any_marked(read[words[at + 1] : words[at + 1] + words[at + 2]])


@helper
def mark_matrix(words, operand_at, n_rows, n_columns, read):
    """Mark what a factor of a matrix product reads."""
    mode, base, rows, columns = words[operand_at], words[operand_at + 1], words[operand_at + 2], words[operand_at + 3]
    if mode == DATA:
        return
    for i in range(n_rows):
        for j in range(n_columns):
            offset = i * rows + j * columns
            read[load_index(base, offset) if mode == TABLE else base + offset] = 1

"""Forward sweep: recompute every value of a tape from its inputs (a replay)."""

from __future__ import annotations

import numpy as np

from tapejit.layout import ELEMENTWISE, HEADER, MAX_JOINED, PITCH, SUM, TILE
from tapejit.ops import ADD, BLOCK, DIV, FIRST_USER, POSITIVE, SELECT
from tapejit.sweeps.blocks import add_compensated, helper, matrix, multiply, operand_tile, sum_block, sum_tile
from tapejit.sweeps.kernel import kernel
from tapejit.sweeps.pointers import call_value, load_float, store_float

__all__ = ["forward_sweep"]


@helper
def function_of(code, functions):
    """The address that serves an opcode: the op table's, or that of a user's primitive."""
    return functions[code - FIRST_USER + 1] if code >= FIRST_USER else functions[0]


@helper
def forward_tile(words, at, start, n, values, functions, scratch):
    """Elements ``start .. start + n`` of an elementwise block."""
    first, code, ndim, n_operands = words[at + 1], words[at + 3], words[at + 4], words[at + 5]
    shape_at = at + HEADER
    operand_at, record = shape_at + ndim, 2 + ndim
    out = values + 8 * (first + start)
    x = operand_tile(words, shape_at, ndim, operand_at, start, n, values, 1, scratch)
    y = x
    if n_operands > 1:
        y = operand_tile(words, shape_at, ndim, operand_at + record, start, n, values, 1, scratch + 8 * PITCH)
    if code == SELECT:
        z = operand_tile(words, shape_at, ndim, operand_at + 2 * record, start, n, values, 1, scratch + 16 * PITCH)
        for i in range(n):
            store_float(out, i, load_float(y, i) if load_float(x, i) != 0.0 else load_float(z, i))
    else:
        call_value(function_of(code, functions), code, n, x, y, out)


@helper
def joined_after(opcode, lhs, words, at):
    """Position of the block that joins the one at `at`, or -1; only constants stand between them."""
    slot = words[at + 1] + words[at + 2]
    while slot < opcode.size and opcode[slot] < BLOCK:
        slot += 1
    if slot < opcode.size and opcode[slot] == BLOCK and words[lhs[slot] + 6] == at:
        return np.int64(lhs[slot])
    return np.int64(-1)


@helper
def forward_group(opcode, lhs, words, at, values, functions, scratch):
    """An elementwise block and those that join it, tile by tile; gives the position of the last."""
    group = np.empty(MAX_JOINED, np.int64)
    n_joined = 0
    following = np.int64(at)
    while following >= 0:
        group[n_joined] = following
        n_joined += 1
        following = joined_after(opcode, lhs, words, following)
    size = words[at + 2]
    last = group[n_joined - 1]
    summed = words[last] == SUM
    n_elementwise = n_joined - 1 if summed else n_joined
    addends = values + 8 * words[last + HEADER + 2]  # of the operand of a sum, which is one of the group
    total = lost = 0.0
    for start in range(0, size, TILE):
        n = min(TILE, size - start)
        for k in range(n_elementwise):
            forward_tile(words, group[k], start, n, values, functions, scratch)
        if summed:
            total, lost = add_compensated(total, lost, sum_tile(addends + 8 * start, n))
    if summed:
        store_float(values, words[last + 1], total + lost if abs(lost) < np.inf else total)
    return last


@helper
def forward_block(opcode, lhs, words, at, values, functions, blas, scratch):
    """Compute the values of a block, and of those that join it; gives the last slot."""
    kind, first, size = words[at], words[at + 1], words[at + 2]
    if kind == ELEMENTWISE:
        last = forward_group(opcode, lhs, words, at, values, functions, scratch)
        return words[last + 1] + words[last + 2] - 1
    if kind == SUM:
        sum_block(words, at, values, values, 1, scratch)
    else:
        k, m, n = words[at + 3], words[at + 4], words[at + 5]
        a, a_rows, a_columns, a_owner = matrix(words, at + HEADER, m, k, values, 1)
        b, b_rows, b_columns, b_owner = matrix(words, at + HEADER + 4, k, n, values, 1)
        multiply(blas[0], m, k, n, a, a_rows, a_columns, b, b_rows, b_columns, 0.0, values + 8 * first, n)
        a_owner[:0] = b_owner[:0]  # Keeps the copies alive until here.
    return first + size - 1


@kernel
def forward_sweep(start, opcode, lhs, rhs, value, words, functions, blas):
    """Recompute `value` (n_slots,) in place from slot `start` on; inputs and constants stay as they are."""
    values = value.ctypes.data
    scratch_array = np.empty(4 * PITCH)
    scratch = scratch_array.ctypes.data
    n_slots = opcode.size
    slot = start
    while slot < n_slots:
        code = opcode[slot]
        # The four arithmetic codes by two bits, the rest out of line: one chain over all codes becomes a jump table, at three
        # times the cost (the prototypes' opcode_dispatch.py).
        if code & 0xFC == ADD:
            x, y = value[lhs[slot]], value[rhs[slot]]
            if code & 2:
                value[slot] = x / y if code == DIV else x * y
            else:
                value[slot] = x + y if code == ADD else x - y
        elif code > DIV or code == POSITIVE:
            if code == SELECT:
                value[slot] = value[lhs[slot]] if value[slot - 1] != 0.0 else value[rhs[slot]]
            else:
                call_value(
                    function_of(code, functions),
                    code,
                    1,
                    values + 8 * lhs[slot],
                    values + 8 * rhs[slot],
                    values + 8 * slot,
                )
        elif code == BLOCK:
            slot = forward_block(opcode, lhs, words, lhs[slot], values, functions, blas, scratch)
        slot += 1
    scratch_array[0] = 0.0  # Keeps the buffer alive until here: kernels know it by its address alone.


@kernel
def value_kernel(code, x, y, out, functions):
    """One primitive on whole arrays: ``out = value`` of contiguous `x` and `y`."""
    call_value(function_of(code, functions), code, out.size, x.ctypes.data, y.ctypes.data, out.ctypes.data)

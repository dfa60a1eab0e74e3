"""Tangent sweep: carry one direction forward. A zero tangent contributes nothing, so that 0 x inf is 0."""

from __future__ import annotations

import numpy as np

from tapejit.layout import DATA, ELEMENTWISE, HEADER, PITCH, SUM, TILE
from tapejit.ops import ADD, BLOCK, DIV, POSITIVE, SELECT
from tapejit.sweeps.blocks import helper, matrix, multiply_derivative, operand_tile, sum_block
from tapejit.sweeps.forward import function_of
from tapejit.sweeps.kernel import kernel
from tapejit.sweeps.pointers import call_partial, load_float, store_float
from tapejit.sweeps.reverse import partial_tile, scale_tile, scaled

__all__ = ["tangent_sweep"]


@helper
def tangent_elementwise(words, at, values, tangents, functions, scratch):
    first, size, code = words[at + 1], words[at + 2], words[at + 3]
    ndim, n_operands = words[at + 4], words[at + 5]
    shape_at = at + HEADER
    operand_at, record = shape_at + ndim, 2 + ndim
    buffer_dot, buffer_p, buffer_t = scratch + 16 * PITCH, scratch + 24 * PITCH, scratch + 32 * PITCH
    for start in range(0, size, TILE):
        n = min(TILE, size - start)
        x = y = operand_tile(words, shape_at, ndim, operand_at, start, n, values, 1, scratch)
        if n_operands == 2:
            y = operand_tile(words, shape_at, ndim, operand_at + record, start, n, values, 1, scratch + 8 * PITCH)
        v = values + 8 * (first + start)
        out = tangents + 8 * (first + start)
        for i in range(n):
            store_float(out, i, 0.0)
        for which in range(1 if code == SELECT else 0, n_operands):
            source_at = operand_at + which * record
            if words[source_at] == DATA:
                continue
            dot = operand_tile(words, shape_at, ndim, source_at, start, n, tangents, 1, buffer_dot)
            if code == SELECT:
                for i in range(n):
                    if (load_float(x, i) != 0.0) == (which == 1):
                        store_float(out, i, load_float(dot, i))
            else:
                p = partial_tile(code, which, n, x, y, v, functions, buffer_p)
                scale_tile(code, dot, p, n, buffer_t)
                for i in range(n):
                    store_float(out, i, load_float(out, i) + load_float(buffer_t, i))


@helper
def tangent_matmul(words, at, values, tangents, blas):
    first, k, m, n = words[at + 1], words[at + 3], words[at + 4], words[at + 5]
    a_at, b_at = at + HEADER, at + HEADER + 4
    out = tangents + 8 * first
    for i in range(m * n):
        store_float(out, i, 0.0)
    a, a_rows, a_columns, a_owner = matrix(words, a_at, m, k, values, 1)
    b, b_rows, b_columns, b_owner = matrix(words, b_at, k, n, values, 1)
    if words[a_at] != DATA:
        dot, rows, columns, owner = matrix(words, a_at, m, k, tangents, 1)
        multiply_derivative(blas, m, k, n, dot, rows, columns, b, b_rows, b_columns, True, out)
        owner[:0] = b_owner[:0]  # Keeps the copies alive until here.
    if words[b_at] != DATA:
        dot, rows, columns, owner = matrix(words, b_at, k, n, tangents, 1)
        multiply_derivative(blas, m, k, n, a, a_rows, a_columns, dot, rows, columns, False, out)
        owner[:0] = a_owner[:0]


@helper
def tangent_block(words, at, values, tangents, functions, blas, scratch):
    """Compute the tangents of a block; gives its last slot."""
    kind = words[at]
    if kind == ELEMENTWISE:
        tangent_elementwise(words, at, values, tangents, functions, scratch)
    elif kind == SUM:
        if words[at + HEADER + words[at + 4]] != DATA:
            sum_block(words, at, tangents, tangents, 1, scratch)
    else:
        tangent_matmul(words, at, values, tangents, blas)
    return words[at + 1] + words[at + 2] - 1


@kernel
def tangent_sweep(start, opcode, lhs, rhs, value, tangent, words, functions, blas):
    """Compute `tangent` (n_slots,) in place from the tangents of the inputs; those of constants are left as they are."""
    values, tangents = value.ctypes.data, tangent.ctypes.data
    scratch_array = np.empty(5 * PITCH)
    scratch = scratch_array.ctypes.data
    partial = scratch_array
    n_slots = opcode.size
    slot = start
    while slot < n_slots:
        code = opcode[slot]
        a, b = lhs[slot], rhs[slot]
        if code == BLOCK:
            slot = tangent_block(words, a, values, tangents, functions, blas, scratch)
        elif code >= POSITIVE:
            x_dot, y_dot = tangent[a], tangent[b]
            total = 0.0
            if code == SELECT:
                total = x_dot if value[slot - 1] != 0.0 else y_dot
            elif code & 0xFC == ADD:
                if code & 2:
                    if code == DIV:
                        if x_dot != 0.0:
                            total = x_dot / value[b]
                        if y_dot != 0.0:
                            total -= y_dot * value[slot] / value[b]
                    else:
                        if x_dot != 0.0:
                            total = x_dot * value[b]
                        if y_dot != 0.0:
                            total += y_dot * value[a]
                else:
                    total = x_dot + y_dot if code == ADD else x_dot - y_dot
            else:
                function = function_of(code, functions)
                if x_dot != 0.0:
                    call_partial(function, code, 0, 1, values + 8 * a, values + 8 * b, values + 8 * slot, scratch)
                    total = scaled(code, x_dot, partial[0])
                if y_dot != 0.0:
                    call_partial(function, code, 1, 1, values + 8 * a, values + 8 * b, values + 8 * slot, scratch)
                    total += scaled(code, y_dot, partial[0])
            tangent[slot] = total
        slot += 1

"""Reverse sweep: accumulate adjoints from the last slot to the first, for one seed or K seeds in one pass.

A zero adjoint contributes nothing, seed by seed, so that 0 x inf is 0 (docs/notation.md).
"""

from __future__ import annotations

import numpy as np

from tapejit.ops import ADD, BLOCK, DIV, MUL, POSITIVE, SELECT, SUB
from tapejit.sweeps.blocks import (
    add_to_matrix,
    gather_run,
    helper,
    matrix,
    multiply_derivative,
    operand_tile,
    scatter_tile,
    spread_sum,
)
from tapejit.sweeps.forward import function_of
from tapejit.sweeps.kernel import kernel
from tapejit.layout import DATA, ELEMENTWISE, HEADER, SLOTS, SUM, TILE
from tapejit.sweeps.pointers import call_partial, load_float, store_float

__all__ = ["reverse_many_sweep", "reverse_sweep"]


@helper
def partial_tile(code, which, n, x, y, v, functions, out):
    """Address of ``out[i] = partial`` of an elementwise block; `out` itself unless the partial is an operand."""
    if code == MUL:
        return x if which == 1 else y
    call_partial(function_of(code, functions), code, which, n, x, y, v, out)
    return out


@helper
def scale_tile(g, p, n, out):
    """``out = g * p`` where g is not zero, else 0."""
    for i in range(n):
        factor = load_float(g, i)
        product = factor * load_float(p, i)
        store_float(out, i, product if factor != 0.0 else 0.0)


@helper
def choose_tile(g, condition, wanted, n, out):
    """``out = g`` where the truth of the condition is `wanted`, else 0."""
    for i in range(n):
        store_float(out, i, load_float(g, i) if (load_float(condition, i) != 0.0) == wanted else 0.0)


@helper
def any_nonzero(tile, n):
    for i in range(n):
        if load_float(tile, i) != 0.0:
            return True
    return False


@helper
def adjoint_tile(first, n, adjoints, step, buffer):
    """Address of the adjoints of slots ``first .. first + n``."""
    if step == 1:
        return adjoints + 8 * first
    gather_run(SLOTS, first, 0, 1, n, adjoints, step, buffer)
    return buffer


@helper
def reverse_elementwise(words, at, values, adjoints, n_seeds, functions, scratch):
    first, size, code = words[at + 1], words[at + 2], words[at + 3]
    ndim, n_operands = words[at + 4], words[at + 5]
    shape_at = at + HEADER
    operand_at, record = shape_at + ndim, 2 + ndim
    buffer_g, buffer_p, buffer_t = scratch + 16 * TILE, scratch + 24 * TILE, scratch + 32 * TILE
    n_first = 1 if code == SELECT else 0  # The condition of a select takes no adjoint.
    for start in range(0, size, TILE):
        n = min(TILE, size - start)
        if n_seeds == 1 and not any_nonzero(adjoints + 8 * (first + start), n):
            continue
        x = y = operand_tile(words, shape_at, ndim, operand_at, start, n, values, 1, scratch)
        if n_operands == 2 and code != ADD and code != SUB:
            y = operand_tile(words, shape_at, ndim, operand_at + record, start, n, values, 1, scratch + 8 * TILE)
        v = values + 8 * (first + start)
        for which in range(n_first, n_operands):
            target_at = operand_at + which * record
            if words[target_at] == DATA:
                continue
            linear = code == ADD or (code == SUB and which == 0)
            p = buffer_p
            if code != SELECT and not linear:
                p = partial_tile(code, which, n, x, y, v, functions, buffer_p)
            for k in range(n_seeds):
                g = adjoint_tile(first + start, n, adjoints + 8 * k, n_seeds, buffer_g)
                t = buffer_t
                if code == SELECT:
                    choose_tile(g, x, which == 1, n, t)
                elif linear:
                    t = g
                else:
                    scale_tile(g, p, n, t)
                scatter_tile(words, shape_at, ndim, target_at, start, n, t, adjoints + 8 * k, n_seeds)


@helper
def reverse_matmul(words, at, values, adjoints, step, blas):
    first, k, m, n = words[at + 1], words[at + 3], words[at + 4], words[at + 5]
    a_at, b_at = at + HEADER, at + HEADER + 4
    g_array = np.empty(m * n)
    g = g_array.ctypes.data
    gather_run(SLOTS, first, 0, 1, m * n, adjoints, step, g)
    if not any_nonzero(g, m * n):
        return
    if words[a_at] != DATA:
        b, b_rows, b_columns, b_owner = matrix(words, b_at, k, n, values, 1)
        a_bar = np.zeros(m * k)
        multiply_derivative(blas, m, n, k, g, n, 1, b, b_columns, b_rows, True, a_bar.ctypes.data)
        add_to_matrix(words, a_at, m, k, a_bar.ctypes.data, adjoints, step)
        b_owner[:0] = a_bar[:0]  # Keeps the copies alive until here.
    if words[b_at] != DATA:
        a, a_rows, a_columns, a_owner = matrix(words, a_at, m, k, values, 1)
        b_bar = np.zeros(k * n)
        multiply_derivative(blas, k, m, n, a, a_columns, a_rows, g, n, 1, False, b_bar.ctypes.data)
        add_to_matrix(words, b_at, k, n, b_bar.ctypes.data, adjoints, step)
        a_owner[:0] = b_bar[:0]
    g_array[0] = 0.0


@helper
def reverse_block(words, at, values, adjoints, n_seeds, functions, blas, scratch):
    """Pull the adjoints of a block back to its operands; gives its first slot."""
    kind = words[at]
    if kind == ELEMENTWISE:
        reverse_elementwise(words, at, values, adjoints, n_seeds, functions, scratch)
    else:
        for k in range(n_seeds):
            if kind == SUM:
                spread_sum(words, at, adjoints + 8 * k, n_seeds, scratch)
            else:
                reverse_matmul(words, at, values, adjoints + 8 * k, n_seeds, blas)
    return words[at + 1]


@kernel
def reverse_sweep(opcode, lhs, rhs, value, adjoint, words, functions, blas):
    """Accumulate `adjoint` (n_slots,) in place, from the last slot to the first."""
    values, adjoints = value.ctypes.data, adjoint.ctypes.data
    scratch_array = np.empty(5 * TILE)
    scratch = scratch_array.ctypes.data
    partial = scratch_array
    slot = opcode.size - 1
    while slot >= 0:
        code = opcode[slot]
        g = adjoint[slot]
        if code == BLOCK:
            slot = reverse_block(words, lhs[slot], values, adjoints, 1, functions, blas, scratch)
        elif g != 0.0 and code >= POSITIVE:
            a, b = lhs[slot], rhs[slot]
            # Accumulate, never assign: a slot used twice has two adjoint contributions.
            if code & 0xFC == ADD:
                if code & 2:
                    if code == DIV:
                        t = g / value[b]
                        adjoint[a] += t
                        adjoint[b] -= t * value[slot]
                    else:
                        x, y = value[a], value[b]
                        adjoint[a] += g * y
                        adjoint[b] += g * x
                else:
                    adjoint[a] += g
                    adjoint[b] += g if code == ADD else -g
            elif code == SELECT:
                adjoint[a if value[slot - 1] != 0.0 else b] += g
            else:
                # Slot 0 is the constant 0: an operand there is absent, or takes no adjoint.
                function = function_of(code, functions)
                x, y, v = values + 8 * a, values + 8 * b, values + 8 * slot
                if a != 0:
                    call_partial(function, code, 0, 1, x, y, v, scratch)
                    adjoint[a] += g * partial[0]
                if b != 0:
                    call_partial(function, code, 1, 1, x, y, v, scratch)
                    adjoint[b] += g * partial[0]
        slot -= 1


@kernel
def reverse_many_sweep(opcode, lhs, rhs, value, adjoint, words, functions, blas):
    """Accumulate `adjoint` (n_slots, K) in place: K seeds in one pass, the K adjoints of a slot side by side."""
    values, adjoints = value.ctypes.data, adjoint.ctypes.data
    n_seeds = adjoint.shape[1]
    scratch_array = np.empty(5 * TILE)
    scratch = scratch_array.ctypes.data
    partials = scratch_array
    slot = opcode.size - 1
    while slot >= 0:
        code = opcode[slot]
        if code == BLOCK:
            slot = reverse_block(words, lhs[slot], values, adjoints, n_seeds, functions, blas, scratch)
        elif code >= POSITIVE and any_nonzero(adjoints + 8 * n_seeds * slot, n_seeds):
            a, b = lhs[slot], rhs[slot]
            if code == SELECT:
                chosen = a if value[slot - 1] != 0.0 else b
                for k in range(n_seeds):
                    adjoint[chosen, k] += adjoint[slot, k]
            else:
                if code & 0xFC == ADD:
                    x, y = value[a], value[b]
                    if code & 2:
                        px = 1.0 / y if code == DIV else y
                        py = -value[slot] / y if code == DIV else x
                    else:
                        px = 1.0
                        py = 1.0 if code == ADD else -1.0
                else:
                    function = function_of(code, functions)
                    call_partial(function, code, 0, 1, values + 8 * a, values + 8 * b, values + 8 * slot, scratch)
                    px = partials[0]
                    py = 0.0
                    if b != 0:
                        call_partial(function, code, 1, 1, values + 8 * a, values + 8 * b, values + 8 * slot, scratch)
                        py = partials[0]
                for k in range(n_seeds):
                    g = adjoint[slot, k]
                    if g != 0.0:
                        adjoint[a, k] += g * px
                        adjoint[b, k] += g * py
        slot -= 1

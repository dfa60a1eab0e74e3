"""Reverse sweep: accumulate adjoints from the last slot to the first, for one seed or K seeds in one pass.

A zero adjoint contributes nothing, seed by seed, so that 0 x inf is 0 (docs/notation.md).
"""

from __future__ import annotations

import numpy as np

from tapejit.layout import DATA, ELEMENTWISE, HEADER, MAX_JOINED, PITCH, SLOTS, SUM, TILE
from tapejit.ops import ADD, BLOCK, CHAIN, CONSTANT, DIV, INPUT, MUL, POSITIVE, SELECT, SUB
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
from tapejit.sweeps.groups import member_at
from tapejit.sweeps.kernel import kernel
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
def scale_tile(code, g, p, n, out):
    """``out = g * p`` where g is not zero, else 0.

    A zero partial of `chain` contributes nothing either: it is a zero adjoint or tangent of the sweep that was recorded.
    """
    if code == CHAIN:
        for i in range(n):
            factor, partial = load_float(g, i), load_float(p, i)
            store_float(out, i, factor * partial if factor != 0.0 and partial != 0.0 else 0.0)
    else:
        for i in range(n):
            factor = load_float(g, i)
            product = factor * load_float(p, i)
            store_float(out, i, product if factor != 0.0 else 0.0)


@helper
def scaled(code, g, p):
    """``g * p`` for a g that is not zero; see `scale_tile`."""
    return g * p if p != 0.0 or code != CHAIN else 0.0


@helper
def divide_tile(g, y, v, which, n, out):
    """Adjoint of an operand of a division from that of its result, by the same two roundings as in the scalar sweep."""
    for i in range(n):
        factor = load_float(g, i)
        t = factor / load_float(y, i)
        if which == 1:
            t = -(t * load_float(v, i))
        store_float(out, i, t if factor != 0.0 else 0.0)


@helper
def choose_tile(g, condition, wanted, n, out):
    """``out = g`` where the truth of the condition is `wanted`, else 0."""
    for i in range(n):
        store_float(out, i, load_float(g, i) if (load_float(condition, i) != 0.0) == wanted else 0.0)


@helper
def clear(tile, n):
    """Set a run to 0."""
    for i in range(n):
        store_float(tile, i, 0.0)


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
def reverse_tile(words, at, start, n, values, adjoints, n_seeds, functions, scratch):
    """Pull the adjoints of elements ``start .. start + n`` of an elementwise block back."""
    first, code, ndim, n_operands = words[at + 1], words[at + 3], words[at + 4], words[at + 5]
    shape_at = at + HEADER
    operand_at, record = shape_at + ndim, 2 + ndim
    buffer_g, buffer_p, buffer_t = scratch + 16 * PITCH, scratch + 24 * PITCH, scratch + 32 * PITCH
    if n_seeds == 1 and not any_nonzero(adjoints + 8 * (first + start), n):
        return
    x = y = operand_tile(words, shape_at, ndim, operand_at, start, n, values, 1, scratch)
    if n_operands == 2 and code != ADD and code != SUB:
        y = operand_tile(words, shape_at, ndim, operand_at + record, start, n, values, 1, scratch + 8 * PITCH)
    v = values + 8 * (first + start)
    for which in range(1 if code == SELECT else 0, n_operands):  # The condition of a select takes no adjoint.
        target_at = operand_at + which * record
        if words[target_at] == DATA:
            continue
        linear = code == ADD or (code == SUB and which == 0)
        p = buffer_p
        if code != SELECT and not linear:
            p = partial_tile(code, which, n, x, y, v, functions, buffer_p) if code != DIV else y
        for k in range(n_seeds):
            g = adjoint_tile(first + start, n, adjoints + 8 * k, n_seeds, buffer_g)
            t = buffer_t
            if code == SELECT:
                choose_tile(g, x, which == 1, n, t)
            elif linear:
                t = g
            elif code == DIV:
                divide_tile(g, y, v, which, n, t)
            else:
                scale_tile(code, g, p, n, t)
            scatter_tile(words, shape_at, ndim, target_at, start, n, t, adjoints + 8 * k, n_seeds)


@helper
def reverse_elementwise(words, at, values, adjoints, n_seeds, functions, scratch, consume):
    """An elementwise block alone, tile by tile."""
    size = words[at + 2]
    for start in range(0, size, TILE):
        n = min(TILE, size - start)
        reverse_tile(words, at, start, n, values, adjoints, n_seeds, functions, scratch)
        if consume:
            clear(adjoints + 8 * (words[at + 1] + start), n)


@helper
def group_of(words, at, group, links):
    """List a block and those it joins, last first; ``links[k, which]`` is the member that operand `which` of member k reads, or -1.

    Returns
    -------
    int
        Number of members.
    """
    n_joined = 0
    member = np.int64(at)
    while member >= 0:
        group[n_joined] = member
        n_joined += 1
        member = words[member + 6]
    for k in range(n_joined):
        ndim = words[group[k] + 4]
        for which in range(words[group[k] + 5]):
            operand_at = group[k] + HEADER + ndim + which * (2 + ndim)
            links[k, which] = -1
            found = np.int64(-1)
            if words[operand_at] == SLOTS:
                found = member_at(words, group[k], words[operand_at + 1], words[operand_at + 2])
            for j in range(k + 1, n_joined):
                if group[j] == found:
                    links[k, which] = j
    return n_joined


@helper
def reverse_group(words, at, values, adjoints, functions, scratch):
    """A block and those it joins, tile by tile together; every adjoint is consumed. Gives the position of the first."""
    group = np.empty(MAX_JOINED, np.int64)
    links = np.empty((MAX_JOINED, 3), np.int64)
    filled = np.empty(MAX_JOINED, np.bool_)
    n_joined = group_of(words, at, group, links)
    local_array = np.empty(n_joined * PITCH)
    local = local_array.ctypes.data
    size = words[group[n_joined - 1] + 2]
    for start in range(0, size, TILE):
        n = min(TILE, size - start)
        filled[:n_joined] = False
        for k in range(n_joined):
            reverse_member(words, group, links, filled, k, start, n, values, adjoints, local, functions, scratch)
    local_array[0] = 0.0  # Keeps the buffer alive until here.
    if words[at] == SUM:
        store_float(adjoints, words[at + 1], 0.0)
    return group[n_joined - 1]


@helper
def reverse_member(words, group, links, filled, k, start, n, values, adjoints, local, functions, scratch):
    """Pull a tile of member `k` of a group back, as `reverse_tile` does for a block alone.

    The adjoint of a member stands in memory if something outside of the group reads the block, else in a tile of `local`, which holds
    nothing until it is `filled`.
    """
    at = group[k]
    if words[at] == SUM:
        if links[k, 0] >= 0:
            g = load_float(adjoints, words[at + 1])
            spread_tile(words, group, links[k, 0], filled, start, n, g, adjoints, local)
        return
    code, ndim, n_operands = words[at + 3], words[at + 4], words[at + 5]
    shape_at = at + HEADER
    operand_at, record = shape_at + ndim, 2 + ndim
    g = local + 8 * PITCH * k
    if words[at + 7] != 0:
        g = adjoints + 8 * (words[at + 1] + start)
        if not any_nonzero(g, n):
            return
    elif not filled[k]:
        return
    x = y = operand_tile(words, shape_at, ndim, operand_at, start, n, values, 1, scratch)
    if n_operands == 2 and code != ADD and code != SUB:
        y = operand_tile(words, shape_at, ndim, operand_at + record, start, n, values, 1, scratch + 8 * PITCH)
    v = values + 8 * (words[at + 1] + start)
    for which in range(1 if code == SELECT else 0, n_operands):
        target_at = operand_at + which * record
        if words[target_at] == DATA:
            continue
        j = links[k, which]
        direct = j >= 0 and words[group[max(j, 0)] + 7] == 0 and not filled[max(j, 0)]
        t = local + 8 * PITCH * j if direct else scratch + 32 * PITCH
        if code == SELECT:
            choose_tile(g, x, which == 1, n, t)
        elif code == ADD or (code == SUB and which == 0):
            if direct:
                copy_tile(g, n, t)
            else:
                t = g
        elif code == DIV:
            divide_tile(g, y, v, which, n, t)
        else:
            scale_tile(code, g, partial_tile(code, which, n, x, y, v, functions, scratch + 24 * PITCH), n, t)
        if direct:
            filled[j] = True
        elif j >= 0:
            outside = words[group[j] + 7] != 0
            add_tile(t, n, adjoints + 8 * (words[group[j] + 1] + start) if outside else local + 8 * PITCH * j)
        else:
            scatter_tile(words, shape_at, ndim, target_at, start, n, t, adjoints, 1)
    if words[at + 7] != 0:
        clear(g, n)


@helper
def spread_tile(words, group, j, filled, start, n, g, adjoints, local):
    """Add the adjoint of a sum to a tile of its operand, member `j`."""
    if g == 0.0:
        return
    if words[group[j] + 7] == 0 and not filled[j]:
        filled[j] = True
        for i in range(n):
            store_float(local + 8 * PITCH * j, i, g)
    else:
        target = adjoints + 8 * (words[group[j] + 1] + start) if words[group[j] + 7] != 0 else local + 8 * PITCH * j
        for i in range(n):
            store_float(target, i, load_float(target, i) + g)


@helper
def clear_between(words, at, adjoints):
    """Clear the adjoints of the constants between the members of a group, which the sweep passes over."""
    while words[at + 6] >= 0:
        before = words[at + 6]
        end = words[before + 1] + words[before + 2]
        clear(adjoints + 8 * end, words[at + 1] - end)
        at = before


@helper
def copy_tile(tile, n, out):
    for i in range(n):
        store_float(out, i, load_float(tile, i))


@helper
def add_tile(tile, n, out):
    for i in range(n):
        store_float(out, i, load_float(out, i) + load_float(tile, i))


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
def reverse_block(words, at, values, adjoints, n_seeds, functions, blas, scratch, consume):
    """Pull the adjoints of a block, and of those it joins, back to their operands; gives the first slot."""
    kind = words[at]
    if consume and words[at + 6] >= 0:
        leader = reverse_group(words, at, values, adjoints, functions, scratch)
        clear_between(words, at, adjoints)
        return words[leader + 1]
    if kind == ELEMENTWISE:
        reverse_elementwise(words, at, values, adjoints, n_seeds, functions, scratch, consume)
        return words[at + 1]
    for k in range(n_seeds):
        if kind == SUM:
            spread_sum(words, at, adjoints + 8 * k, n_seeds, scratch)
        else:
            reverse_matmul(words, at, values, adjoints + 8 * k, n_seeds, blas)
    if consume:
        clear(adjoints + 8 * words[at + 1], words[at + 2])
    return words[at + 1]


@kernel
def reverse_sweep(start, opcode, lhs, rhs, value, adjoint, words, functions, blas, consume):
    """Accumulate `adjoint` (n_slots,) in place, from the last slot down to `start`, where operations begin.

    With `consume`, every adjoint but those of inputs is set to 0 once it has been handed on: the array can serve again without being
    cleared, which for large arrays costs as much as sweeping them.
    """
    values, adjoints = value.ctypes.data, adjoint.ctypes.data
    scratch_array = np.empty(5 * PITCH)
    scratch = scratch_array.ctypes.data
    partial = scratch_array
    slot = opcode.size - 1
    while slot >= start:
        code = opcode[slot]
        g = adjoint[slot]
        if code == BLOCK:
            slot = reverse_block(words, lhs[slot], values, adjoints, 1, functions, blas, scratch, consume)
        elif g != 0.0 and code != INPUT:
            if consume:
                adjoint[slot] = 0.0
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
            elif code != CONSTANT:
                # Slot 0 is the constant 0: an operand there is absent, or takes no adjoint.
                function = function_of(code, functions)
                x, y, v = values + 8 * a, values + 8 * b, values + 8 * slot
                if a != 0:
                    call_partial(function, code, 0, 1, x, y, v, scratch)
                    adjoint[a] += scaled(code, g, partial[0])
                if b != 0:
                    call_partial(function, code, 1, 1, x, y, v, scratch)
                    adjoint[b] += scaled(code, g, partial[0])
        slot -= 1


@kernel
def reverse_many_sweep(start, opcode, lhs, rhs, value, adjoint, words, functions, blas):
    """Accumulate `adjoint` (n_slots, K) in place: K seeds in one pass, the K adjoints of a slot side by side."""
    values, adjoints = value.ctypes.data, adjoint.ctypes.data
    n_seeds = adjoint.shape[1]
    scratch_array = np.empty(5 * PITCH)
    scratch = scratch_array.ctypes.data
    partials = scratch_array
    slot = opcode.size - 1
    while slot >= start:
        code = opcode[slot]
        if code == BLOCK:
            slot = reverse_block(words, lhs[slot], values, adjoints, n_seeds, functions, blas, scratch, False)
        elif code >= POSITIVE and any_nonzero(adjoints + 8 * n_seeds * slot, n_seeds):
            a, b = lhs[slot], rhs[slot]
            if code == SELECT:
                chosen = a if value[slot - 1] != 0.0 else b
                for k in range(n_seeds):
                    adjoint[chosen, k] += adjoint[slot, k]
            else:
                if code == DIV:
                    for k in range(n_seeds):
                        g = adjoint[slot, k]
                        if g != 0.0:
                            t = g / value[b]
                            adjoint[a, k] += t
                            adjoint[b, k] -= t * value[slot]
                    slot -= 1
                    continue
                if code & 0xFC == ADD:
                    x, y = value[a], value[b]
                    if code == MUL:
                        px = y
                        py = x
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
                        adjoint[a, k] += scaled(code, g, px)
                        adjoint[b, k] += scaled(code, g, py)
        slot -= 1

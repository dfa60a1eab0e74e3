"""Second-order reverse sweep, forward over reverse: adjoints and their tangents together, so H v needs no second tape.

With tangents `x_dot` already swept forward, every slot hands on

    x_bar += v_bar * p_x
    x_bar_dot += v_bar_dot * p_x + v_bar * (s_xx * x_dot + s_xy * y_dot)

where p and s are its first and second partials. A factor that is zero contributes nothing.

References
----------
.. [1] A. Griewank and A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM, 2008, section 5.1.
"""

from __future__ import annotations

import numpy as np

from tapejit.layout import DATA, ELEMENTWISE, HEADER, PITCH, SUM, TILE
from tapejit.ops import ADD, BLOCK, DIV, MUL, POSITIVE, SELECT, SUB
from tapejit.sweeps.blocks import (
    add_to_matrix,
    helper,
    matrix,
    multiply_derivative,
    operand_tile,
    scatter_tile,
    spread_sum,
)
from tapejit.sweeps.forward import function_of
from tapejit.sweeps.kernel import kernel
from tapejit.sweeps.pointers import call_partial, load_float, store_float
from tapejit.sweeps.reverse import choose_tile, partial_tile, reverse_matmul, scale_tile, scaled

__all__ = ["second_order_sweep"]


@helper
def product(factor, other):
    """``factor * other``, 0 where either is 0."""
    return factor * other if factor != 0.0 and other != 0.0 else 0.0


@helper
def second_elementwise(words, at, values, tangents, adjoints, adjoint_tangents, functions, seconds, scratch):
    first, size, code = words[at + 1], words[at + 2], words[at + 3]
    ndim, n_operands = words[at + 4], words[at + 5]
    shape_at = at + HEADER
    operand_at, record = shape_at + ndim, 2 + ndim
    buffer_p, buffer_s, buffer_t = scratch + 16 * PITCH, scratch + 24 * PITCH, scratch + 32 * PITCH
    buffer_dot, buffer_curve = scratch + 40 * PITCH, scratch + 48 * PITCH
    for start in range(0, size, TILE):
        n = min(TILE, size - start)
        x = y = operand_tile(words, shape_at, ndim, operand_at, start, n, values, 1, scratch)
        if n_operands == 2:
            y = operand_tile(words, shape_at, ndim, operand_at + record, start, n, values, 1, scratch + 8 * PITCH)
        v = values + 8 * (first + start)
        g, g_dot = adjoints + 8 * (first + start), adjoint_tangents + 8 * (first + start)
        for which in range(1 if code == SELECT else 0, n_operands):
            target_at = operand_at + which * record
            if words[target_at] == DATA:
                continue
            if code == SELECT:
                choose_tile(g, x, which == 1, n, buffer_t)
                scatter_tile(words, shape_at, ndim, target_at, start, n, buffer_t, adjoints, 1)
                choose_tile(g_dot, x, which == 1, n, buffer_t)
                scatter_tile(words, shape_at, ndim, target_at, start, n, buffer_t, adjoint_tangents, 1)
                continue
            # Curvature along the tangents: sum over the operands u of s_wu * u_dot.
            for i in range(n):
                store_float(buffer_curve, i, 0.0)
            if code != ADD and code != SUB:
                for other in range(n_operands):
                    other_at = operand_at + other * record
                    if words[other_at] == DATA:
                        continue
                    dot = operand_tile(words, shape_at, ndim, other_at, start, n, tangents, 1, buffer_dot)
                    call_partial(function_of(code, seconds), code, which + other, n, x, y, v, buffer_s)
                    for i in range(n):
                        curve = product(load_float(dot, i), load_float(buffer_s, i))
                        store_float(buffer_curve, i, load_float(buffer_curve, i) + curve)
            p = partial_tile(code, which, n, x, y, v, functions, buffer_p)
            scale_tile(code, g_dot, p, n, buffer_t)
            for i in range(n):
                curve = product(load_float(g, i), load_float(buffer_curve, i))
                store_float(buffer_t, i, load_float(buffer_t, i) + curve)
            scatter_tile(words, shape_at, ndim, target_at, start, n, buffer_t, adjoint_tangents, 1)
            scale_tile(code, g, p, n, buffer_t)
            scatter_tile(words, shape_at, ndim, target_at, start, n, buffer_t, adjoints, 1)


@helper
def second_matmul(words, at, values, tangents, adjoints, adjoint_tangents, blas):
    first, k, m, n = words[at + 1], words[at + 3], words[at + 4], words[at + 5]
    a_at, b_at = at + HEADER, at + HEADER + 4
    if words[a_at] != DATA and words[b_at] != DATA:
        g = adjoints + 8 * first
        b_dot, rows, columns, owner = matrix(words, b_at, k, n, tangents, 1)
        bar = np.zeros(m * k)
        multiply_derivative(blas, m, n, k, g, n, 1, b_dot, columns, rows, True, bar.ctypes.data)
        add_to_matrix(words, a_at, m, k, bar.ctypes.data, adjoint_tangents, 1)
        owner[:0] = bar[:0]  # Keeps the copies alive until here.
        a_dot, rows, columns, owner = matrix(words, a_at, m, k, tangents, 1)
        bar = np.zeros(k * n)
        multiply_derivative(blas, k, m, n, a_dot, columns, rows, g, n, 1, False, bar.ctypes.data)
        add_to_matrix(words, b_at, k, n, bar.ctypes.data, adjoint_tangents, 1)
        owner[:0] = bar[:0]
    reverse_matmul(words, at, values, adjoint_tangents, 1, blas)
    reverse_matmul(words, at, values, adjoints, 1, blas)


@helper
def second_block(words, at, values, tangents, adjoints, adjoint_tangents, functions, seconds, blas, scratch):
    """Pull adjoints and their tangents back through a block; gives its first slot."""
    kind = words[at]
    if kind == ELEMENTWISE:
        second_elementwise(words, at, values, tangents, adjoints, adjoint_tangents, functions, seconds, scratch)
    elif kind == SUM:
        spread_sum(words, at, adjoints, 1, scratch)
        spread_sum(words, at, adjoint_tangents, 1, scratch)
    else:
        second_matmul(words, at, values, tangents, adjoints, adjoint_tangents, blas)
    return words[at + 1]


@kernel
def second_order_sweep(
    start, opcode, lhs, rhs, value, tangent, adjoint, adjoint_tangent, words, functions, seconds, blas
):
    """Accumulate `adjoint` and `adjoint_tangent` (n_slots,) in place, from the last slot to the first."""
    values, tangents = value.ctypes.data, tangent.ctypes.data
    adjoints, adjoint_tangents = adjoint.ctypes.data, adjoint_tangent.ctypes.data
    scratch_array = np.empty(7 * PITCH)
    scratch = scratch_array.ctypes.data
    partials = scratch_array
    slot = opcode.size - 1
    while slot >= start:
        code = opcode[slot]
        g, g_dot = adjoint[slot], adjoint_tangent[slot]
        a, b = lhs[slot], rhs[slot]
        if code == BLOCK:
            slot = second_block(
                words, a, values, tangents, adjoints, adjoint_tangents, functions, seconds, blas, scratch
            )
        elif code >= POSITIVE and (g != 0.0 or g_dot != 0.0):
            if code == SELECT:
                chosen = a if value[slot - 1] != 0.0 else b
                adjoint[chosen] += g
                adjoint_tangent[chosen] += g_dot
            else:
                x, y, v = value[a], value[b], value[slot]
                x_dot, y_dot = tangent[a], tangent[b]
                px, py, sxx, sxy, syy = 1.0, 1.0, 0.0, 0.0, 0.0
                if code == MUL:
                    px, py, sxy = y, x, 1.0
                elif code == SUB:
                    py = -1.0
                elif code == DIV:
                    px = 1.0 / y
                    py, sxy, syy = -v * px, -px * px, 2.0 * v * px * px
                elif code != ADD:
                    function, second = function_of(code, functions), function_of(code, seconds)
                    at_x, at_y, at_v = values + 8 * a, values + 8 * b, values + 8 * slot
                    call_partial(function, code, 0, 1, at_x, at_y, at_v, scratch)
                    px, py = partials[0], 0.0
                    call_partial(second, code, 0, 1, at_x, at_y, at_v, scratch)
                    sxx = partials[0]
                    if b != 0:
                        call_partial(function, code, 1, 1, at_x, at_y, at_v, scratch)
                        py = partials[0]
                        call_partial(second, code, 1, 1, at_x, at_y, at_v, scratch)
                        sxy = partials[0]
                        call_partial(second, code, 2, 1, at_x, at_y, at_v, scratch)
                        syy = partials[0]
                if g_dot != 0.0:
                    adjoint_tangent[a] += scaled(code, g_dot, px)
                    adjoint_tangent[b] += scaled(code, g_dot, py)
                if g != 0.0:
                    adjoint[a] += scaled(code, g, px)
                    adjoint[b] += scaled(code, g, py)
                    adjoint_tangent[a] += product(g, product(x_dot, sxx) + product(y_dot, sxy))
                    adjoint_tangent[b] += product(g, product(x_dot, sxy) + product(y_dot, syy))
        slot -= 1

"""Blocks inside the sweeps: how to read operands, add to adjoints, and multiply matrices, tile by tile.

Arrays are addresses, and slot `s` of a quantity stands at ``address + 8 * step * s``: `step` is 1 for values, tangents and a single
adjoint, and K for one of K adjoints kept side by side. So every sweep shares these functions.
"""

from __future__ import annotations

import numba
import numpy as np

from tapejit.layout import DATA, HEADER, SLOTS, TABLE, TILE
from tapejit.sweeps.kernel import FLAGS
from tapejit.sweeps.pointers import call_gemm, load_float, load_index, store_float
from tapejit.sweeps.vectors import LANES, TOGETHER, add_columns, dot_rows

helper = numba.njit(**FLAGS)

_NO_TRANSPOSE, _TRANSPOSE = ord("N"), ord("T")


@helper
def row_offset(words, shape_at, ndim, strides_at, row):
    """Offset of the first element of row number `row`, counting all dimensions but the last."""
    offset = 0
    for axis in range(ndim - 2, -1, -1):
        extent = words[shape_at + axis]
        offset += (row % extent) * words[strides_at + axis]
        row //= extent
    return offset


@helper
def gather_run(mode, base, offset, stride, n, source, step, out):
    """Copy `n` elements of an operand, `stride` apart, to the address `out`."""
    if mode == TABLE:
        for i in range(n):
            store_float(out, i, load_float(source, step * load_index(base, offset + i * stride)))
    else:
        if mode == SLOTS:
            address = source + 8 * step * (base + offset)
            stride *= step
        else:
            address = base + 8 * offset
        if stride == 1:
            for i in range(n):
                store_float(out, i, load_float(address, i))
        elif stride == 0:
            number = load_float(address, 0)
            for i in range(n):
                store_float(out, i, number)
        else:
            for i in range(n):
                store_float(out, i, load_float(address, i * stride))


@helper
def run_address(mode, base, offset, stride, n, source, step, buffer):
    """Address of `n` elements of an operand: in place where they are contiguous, else copied to the buffer."""
    if stride == 1:
        if mode == DATA:
            return base + 8 * offset
        if mode == SLOTS and step == 1:
            return source + 8 * (base + offset)
    gather_run(mode, base, offset, stride, n, source, step, buffer)
    return buffer


@helper
def operand_tile(words, shape_at, ndim, operand_at, start, n, source, step, buffer):
    """Address of elements ``start .. start + n`` of an operand, in C order: in place where they are contiguous, else copied."""
    mode, base = words[operand_at], words[operand_at + 1]
    strides_at = operand_at + 2
    stride = words[strides_at + ndim - 1]
    if ndim == 1:
        return run_address(mode, base, start * stride, stride, n, source, step, buffer)
    extent = words[shape_at + ndim - 1]
    row, column = start // extent, start % extent
    done = 0
    while done < n:
        length = min(extent - column, n - done)
        offset = row_offset(words, shape_at, ndim, strides_at, row) + column * stride
        gather_run(mode, base, offset, stride, length, source, step, buffer + 8 * done)
        done += length
        column = 0
        row += 1
    return buffer


@helper
def scatter_run(mode, base, offset, stride, n, tile, target, step):
    """Add `n` numbers to the slots of an operand, `stride` apart, in order: a slot may stand there twice."""
    if mode == TABLE:
        for i in range(n):
            slot = step * load_index(base, offset + i * stride)
            store_float(target, slot, load_float(target, slot) + load_float(tile, i))
    elif stride == 0:
        slot = step * (base + offset)
        total = load_float(target, slot)
        for i in range(n):
            total += load_float(tile, i)
        store_float(target, slot, total)
    elif stride == 1 and step == 1:
        address = target + 8 * (base + offset)
        for i in range(n):
            store_float(address, i, load_float(address, i) + load_float(tile, i))
    else:
        address = target + 8 * step * (base + offset)
        stride *= step
        for i in range(n):
            store_float(address, i * stride, load_float(address, i * stride) + load_float(tile, i))


@helper
def scatter_tile(words, shape_at, ndim, operand_at, start, n, tile, target, step):
    """Add a tile to elements ``start .. start + n`` of an operand; a passive operand takes nothing."""
    mode, base = words[operand_at], words[operand_at + 1]
    if mode == DATA:
        return
    strides_at = operand_at + 2
    stride = words[strides_at + ndim - 1]
    if ndim == 1:
        scatter_run(mode, base, start * stride, stride, n, tile, target, step)
        return
    extent = words[shape_at + ndim - 1]
    row, column = start // extent, start % extent
    done = 0
    while done < n:
        length = min(extent - column, n - done)
        offset = row_offset(words, shape_at, ndim, strides_at, row) + column * stride
        scatter_run(mode, base, offset, stride, length, tile + 8 * done, target, step)
        done += length
        column = 0
        row += 1


@helper
def sum_tile(tile, n):
    """Sum of at most `TILE` numbers in eight lanes."""
    a = b = c = d = e = f = g = h = 0.0
    whole = n - n % 8
    for i in range(0, whole, 8):
        a += load_float(tile, i)
        b += load_float(tile, i + 1)
        c += load_float(tile, i + 2)
        d += load_float(tile, i + 3)
        e += load_float(tile, i + 4)
        f += load_float(tile, i + 5)
        g += load_float(tile, i + 6)
        h += load_float(tile, i + 7)
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, n):
        total += load_float(tile, i)
    return total


@helper
def add_compensated(total, lost, part):
    """``total + part``, and the sum of what rounding has lost so far (Neumaier 1974)."""
    grown = total + part
    if abs(total) >= abs(part):
        return grown, lost + ((total - grown) + part)
    return grown, lost + ((part - grown) + total)


@helper
def sum_block(words, at, source, target, step, buffer):
    """``target[block] = sum of source[operand]``: the value of a sum, or its tangent."""
    first, size, ndim = words[at + 1], words[at + 2], words[at + 4]
    operand_at = at + HEADER + ndim
    result_at = operand_at + 2 + ndim
    for slot in range(first, first + size):
        store_float(target, step * slot, 0.0)
    mode, base = words[operand_at], words[operand_at + 1]
    extent = words[at + HEADER + ndim - 1]
    stride, result_stride = words[operand_at + 1 + ndim], words[result_at + ndim - 1]
    n_rows = 1
    for axis in range(ndim - 1):
        n_rows *= words[at + HEADER + axis]
    for row in range(n_rows):
        offset = row_offset(words, at + HEADER, ndim, operand_at + 2, row)
        slot = first + row_offset(words, at + HEADER, ndim, result_at, row)
        # Compensated over tiles, plain inside: as accurate as pairwise summation.
        total = load_float(target, step * slot)
        lost = 0.0
        for start in range(0, extent, TILE):
            n = min(TILE, extent - start)
            tile = run_address(mode, base, offset + start * stride, stride, n, source, step, buffer)
            if result_stride == 0:
                total, lost = add_compensated(total, lost, sum_tile(tile, n))
            else:
                for i in range(n):
                    place = step * (slot + (start + i) * result_stride)
                    store_float(target, place, load_float(target, place) + load_float(tile, i))
        if result_stride == 0:
            store_float(target, step * slot, total + lost if abs(lost) < np.inf else total)


@helper
def spread_sum(words, at, adjoint, step, buffer):
    """Add the adjoint of a sum to each of its addends."""
    first, ndim = words[at + 1], words[at + 4]
    operand_at = at + HEADER + ndim
    result_at = operand_at + 2 + ndim
    mode, base = words[operand_at], words[operand_at + 1]
    if mode == DATA:
        return
    extent = words[at + HEADER + ndim - 1]
    stride, result_stride = words[operand_at + 1 + ndim], words[result_at + ndim - 1]
    n_rows = 1
    for axis in range(ndim - 1):
        n_rows *= words[at + HEADER + axis]
    for row in range(n_rows):
        offset = row_offset(words, at + HEADER, ndim, operand_at + 2, row)
        result_offset = row_offset(words, at + HEADER, ndim, result_at, row)
        for start in range(0, extent, TILE):
            n = min(TILE, extent - start)
            gather_run(SLOTS, first, result_offset + start * result_stride, result_stride, n, adjoint, step, buffer)
            scatter_run(mode, base, offset + start * stride, stride, n, buffer, adjoint, step)


@helper
def blas_strides(n_rows, n_columns, rows, columns):
    """The strides of a matrix as BLAS may read it in place: (row stride, 1) or (1, column stride); (0, 0) if it must be copied.

    BLAS reads a matrix in which one stride is 1 and the other at least the number of elements along the first.
    """
    if (columns == 1 or n_columns == 1) and rows >= max(1, n_columns):
        return rows, 1
    if (rows == 1 or n_rows == 1) and columns >= max(1, n_rows):
        return 1, columns
    return 0, 0


@helper
def matrix(words, operand_at, n_rows, n_columns, source, step):
    """An operand of a matrix product as ``(address, row stride, column stride, owner)``; copied where BLAS could not read it."""
    mode, base, rows, columns = words[operand_at], words[operand_at + 1], words[operand_at + 2], words[operand_at + 3]
    if mode != TABLE:
        apart = step if mode == SLOTS else 1
        row_stride, column_stride = blas_strides(n_rows, n_columns, rows * apart, columns * apart)
        if row_stride != 0:
            address = base if mode == DATA else source + 8 * step * base
            return address, row_stride, column_stride, np.empty(0)
    copied = np.empty(n_rows * n_columns)
    for i in range(n_rows):
        gather_run(mode, base, i * rows, columns, n_columns, source, step, copied.ctypes.data + 8 * i * n_columns)
    return copied.ctypes.data, n_columns, 1, copied


@helper
def add_to_matrix(words, operand_at, n_rows, n_columns, numbers, target, step):
    """Add a contiguous matrix to the slots of an operand."""
    mode, base, rows, columns = words[operand_at], words[operand_at + 1], words[operand_at + 2], words[operand_at + 3]
    for i in range(n_rows):
        scatter_run(mode, base, i * rows, columns, n_columns, numbers + 8 * i * n_columns, target, step)


@helper
def matrix_vector(m, n, a, rows, columns, x, step, beta, out):
    """``out = a @ x + beta * out`` for an (m, n) matrix of any strides.

    Not dgemv: the product is as fast as memory, and the threads of a second BLAS beside NumPy's would wait for each other.
    """
    for i in range(m):
        store_float(out, i, beta * load_float(out, i) if beta != 0.0 else 0.0)
    if rows == 1 and m > 1:
        whole = n - n % TOGETHER
        for j in range(0, whole, TOGETHER):
            add_scaled_columns(m, a + 8 * j * columns, columns, x + 8 * j * step, step, out)
        for j in range(whole, n):
            factor = load_float(x, j * step)
            column = a + 8 * j * columns
            for i in range(m):
                store_float(out, i, load_float(out, i) + factor * load_float(column, i))
        return
    packed = np.empty(0 if step == 1 else n)
    vector = x
    if step != 1:
        vector = packed.ctypes.data
        gather_run(DATA, x, 0, step, n, 0, 1, vector)
    if columns == 1:
        whole = m - m % TOGETHER
        for i in range(0, whole, TOGETHER):
            add_dot_rows(a + 8 * i * rows, rows, vector, n, out + 8 * i)
        for i in range(whole, m):
            store_float(out, i, load_float(out, i) + dot_run(a + 8 * i * rows, vector, n))
    else:
        row = np.empty(n)
        for i in range(m):
            gather_run(DATA, a, i * rows, columns, n, 0, 1, row.ctypes.data)
            store_float(out, i, load_float(out, i) + dot_run(row.ctypes.data, vector, n))
        row[:0] = 0.0
    packed[:0] = 0.0  # Keeps the buffer alive until here.


@helper
def add_scaled_columns(m, columns, distance, x, step, out):
    """Add four contiguous columns, each times a number, to `out`, one after the other."""
    whole = m - m % LANES
    a, b, c, d = load_float(x, 0), load_float(x, step), load_float(x, 2 * step), load_float(x, 3 * step)
    add_columns(columns, distance, (a, b, c, d), whole, out)
    for i in range(whole, m):
        total = load_float(out, i) + a * load_float(columns, i)
        total += b * load_float(columns, i + distance)
        total += c * load_float(columns, i + 2 * distance)
        total += d * load_float(columns, i + 3 * distance)
        store_float(out, i, total)


@helper
def add_dot_rows(rows, distance, x, n, out):
    """Add the scalar products of four contiguous rows with `x` to four numbers, each as `dot_run` computes it."""
    whole = n - n % LANES
    a, b, c, d = dot_rows(rows, distance, x, whole)
    for j in range(whole, n):
        factor = load_float(x, j)
        a += load_float(rows, j) * factor
        b += load_float(rows, j + distance) * factor
        c += load_float(rows, j + 2 * distance) * factor
        d += load_float(rows, j + 3 * distance) * factor
    store_float(out, 0, load_float(out, 0) + a)
    store_float(out, 1, load_float(out, 1) + b)
    store_float(out, 2, load_float(out, 2) + c)
    store_float(out, 3, load_float(out, 3) + d)


@helper
def dot_run(x, y, n):
    """Scalar product of two contiguous runs in eight lanes."""
    a = b = c = d = e = f = g = h = 0.0
    whole = n - n % 8
    for i in range(0, whole, 8):
        a += load_float(x, i) * load_float(y, i)
        b += load_float(x, i + 1) * load_float(y, i + 1)
        c += load_float(x, i + 2) * load_float(y, i + 2)
        d += load_float(x, i + 3) * load_float(y, i + 3)
        e += load_float(x, i + 4) * load_float(y, i + 4)
        f += load_float(x, i + 5) * load_float(y, i + 5)
        g += load_float(x, i + 6) * load_float(y, i + 6)
        h += load_float(x, i + 7) * load_float(y, i + 7)
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, n):
        total += load_float(x, i) * load_float(y, i)
    return total


@helper
def outer_product(m, n, a, a_step, b, b_step, beta, out, out_rows):
    """``out = a b.T + beta * out`` for two vectors."""
    for i in range(m):
        factor, row = load_float(a, i * a_step), out + 8 * i * out_rows
        if beta == 0.0:
            for j in range(n):
                store_float(row, j, factor * load_float(b, j * b_step))
        else:
            for j in range(n):
                store_float(row, j, factor * load_float(b, j * b_step) + beta * load_float(row, j))


@helper
def multiply(gemm, m, k, n, a, a_rows, a_columns, b, b_rows, b_columns, beta, out, out_rows):
    """Row-major ``out = a @ b + beta * out`` for an (m, k) and a (k, n) matrix that BLAS can read.

    Rows of `out` stand `out_rows` numbers apart; a single column is contiguous.
    """
    # out.T = b.T @ a.T in column-major terms: a row-major matrix is its own transpose there.
    if n == 1:
        matrix_vector(m, k, a, a_rows, a_columns, b, b_rows if k > 1 else 1, beta, out)
        return
    if m == 1:
        matrix_vector(n, k, b, b_columns, b_rows, a, a_columns if k > 1 else 1, beta, out)
        return
    if k == 1:
        outer_product(m, n, a, a_rows, b, b_columns, beta, out, out_rows)
        return
    trans_b, ldb = (_NO_TRANSPOSE, max(b_rows, n)) if b_columns == 1 else (_TRANSPOSE, max(b_columns, k))
    trans_a, lda = (_NO_TRANSPOSE, max(a_rows, k)) if a_columns == 1 else (_TRANSPOSE, max(a_columns, m))
    call_gemm(gemm, trans_b, trans_a, n, m, k, 1.0, b, ldb, a, lda, beta, out, max(out_rows, n))


@helper
def multiply_derivative(blas, m, k, n, a, a_rows, a_columns, b, b_rows, b_columns, derivative_first, out):
    """Add ``a @ b`` to `out` where one factor is an adjoint or a tangent, whose zeros contribute nothing (0 x inf is 0).

    BLAS knows no such rule: where its result is not finite, the product is done again with the test.
    """
    product = np.empty(m * n)
    multiply(blas[0], m, k, n, a, a_rows, a_columns, b, b_rows, b_columns, 0.0, product.ctypes.data, n)
    finite = True
    for i in range(m * n):
        finite &= abs(product[i]) < np.inf
    if not finite:
        for i in range(m):
            for j in range(n):
                total = 0.0
                for l in range(k):  # noqa: E741
                    x = load_float(a, i * a_rows + l * a_columns)
                    y = load_float(b, l * b_rows + j * b_columns)
                    if (x if derivative_first else y) != 0.0:
                        total += x * y
                product[i * n + j] = total
    for i in range(m * n):
        store_float(out, i, load_float(out, i) + product[i])

"""Four rows or columns of a matrix at a time, in vectors: what LLVM does not find by itself.

A row alone waits for each of its additions; four rows share the loads of the vector, and wait for four additions at once. Four columns
that are added to a vector load and store it once. Neither changes the order of any sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["LANES", "TOGETHER", "add_columns", "dot_rows"]

TOGETHER = 4  # rows or columns
LANES = 8
_DOUBLE, _INT32, _INT64 = ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_DOUBLE, LANES)


@intrinsic
def dot_rows(typingctx: Any, rows: Any, distance: Any, x: Any, n: Any) -> Any:
    """Scalar products of `TOGETHER` contiguous rows, `distance` numbers apart, with `x`; n is a multiple of `LANES`.

    Element j goes to partial sum j modulo 8, and these are added in pairs: the bits of `tapejit.sweeps.blocks.dot_run`.
    """

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        rows, distance, x, n = args
        starts = _starts(b, rows, distance)
        slots = [_slot(b) for _ in starts]
        with _loop(b, n) as j:
            factor = b.load(_at(b, x, j), align=8)
            for start, slot in zip(starts, slots, strict=True):
                b.store(b.fadd(b.load(slot), b.fmul(b.load(_at(b, start, j), align=8), factor)), slot)
        return context.make_tuple(b, signature.return_type, [_added_up(b, b.load(slot)) for slot in slots])

    return types.UniTuple(types.float64, TOGETHER)(*[types.int64] * 4), generate


@intrinsic
def add_columns(typingctx: Any, columns: Any, distance: Any, factors: Any, n: Any, out: Any) -> Any:
    """Add `TOGETHER` contiguous columns, `distance` numbers apart, times a factor each, to `out`; n is a multiple of `LANES`."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        columns, distance, factors, n, out = args
        starts = _starts(b, columns, distance)
        spread = [_spread(b, b.extract_value(factors, k)) for k in range(TOGETHER)]
        with _loop(b, n) as i:
            total = b.load(_at(b, out, i), align=8)
            for start, factor in zip(starts, spread, strict=True):
                total = b.fadd(total, b.fmul(factor, b.load(_at(b, start, i), align=8)))
            b.store(total, _at(b, out, i), align=8)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(integer, integer, types.UniTuple(types.float64, TOGETHER), integer, integer), generate


def _number(n: int) -> ir.Constant:
    return ir.Constant(_INT64, n)


def _starts(b: ir.IRBuilder, first: ir.Value, distance: ir.Value) -> list[ir.Value]:
    """Addresses of rows or columns that are so many numbers apart."""
    return [b.add(first, b.mul(distance, _number(8 * k))) for k in range(TOGETHER)]


def _slot(b: ir.IRBuilder) -> ir.Value:
    """A variable of zeros; LLVM makes a register of it."""
    with b.goto_entry_block():
        slot = b.alloca(_VECTOR)
    b.store(ir.Constant(_VECTOR, [0.0] * LANES), slot)
    return slot


@contextmanager
def _loop(b: ir.IRBuilder, n: ir.Value) -> Iterator[ir.Value]:
    """A loop over 0, 8, ... below n."""
    before = b.block
    loop, after = b.append_basic_block("vectors"), b.append_basic_block("after")
    b.cbranch(b.icmp_signed(">", n, _number(0)), loop, after)
    b.position_at_end(loop)
    i = b.phi(_INT64)
    yield i
    following = b.add(i, _number(LANES))
    i.add_incoming(_number(0), before)
    i.add_incoming(following, loop)
    b.cbranch(b.icmp_signed("<", following, n), loop, after)
    b.position_at_end(after)


def _at(b: ir.IRBuilder, start: ir.Value, i: ir.Value) -> ir.Value:
    """Where elements i ... of the run at the address `start` stand."""
    return b.inttoptr(b.add(start, b.mul(i, _number(8))), _VECTOR.as_pointer())


def _spread(b: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """A number in all lanes."""
    one = b.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(_INT32, 0))
    return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES))


def _added_up(b: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    """``((v0 + v1) + (v2 + v3)) + ((v4 + v5) + (v6 + v7))``."""
    width = LANES
    while width > 1:
        width //= 2
        even, odd = (
            b.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_INT32, width), list(range(k, 2 * width, 2))))
            for k in (0, 1)
        )
        vector = b.fadd(even, odd)
    return b.extract_element(vector, ir.Constant(_INT32, 0))

"""A tape with its blocks written out as scalar slots: the oracle in tests, and the compiler's view of a NumPy program."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

from tapejit import ops
from tapejit.blocks import Block, Operand, WholeProduct
from tapejit.errors import UnsupportedError
from tapejit.layout import DATA, ELEMENTWISE, MATMUL, SUM
from tapejit.tape import FlatTape

__all__ = ["expand"]

AnyTape = TypeVar("AnyTape", bound=FlatTape)


def expand(tape: FlatTape, into: AnyTape, from_zero: bool = False, largest_product: int | None = None) -> AnyTape:
    """Write `tape` to the empty tape `into` without blocks; inputs, outputs and guards keep their order.

    A sum becomes a chain of additions in C order, a matrix product its multiplications and the chains that add them. With `from_zero`
    chains begin with 0.0, so that they are as long as what they add: the compiler then makes one loop of both. `into.sums` then lists the
    runs of slots that add up whole blocks. Products of more multiplications than `largest_product` stay whole: `into.products` lists them, and
    `lhs` of each of their slots is the position in this list.
    """
    if tape.calls:
        raise UnsupportedError("a tape with a tj.loop or tj.checkpoint is not written out: their steps are not on it")
    place = np.zeros(tape.n_slots, np.int64)
    into.sums, into.products = [], []
    factors: dict[tuple, np.ndarray] = {}
    at = 1
    for block in tape.blocks():
        _scalars(tape, at, block.first, into, place)
        if block.kind == MATMUL and largest_product is not None and math.prod(block.shape) > largest_product:
            slots = _whole(tape, block, into, place, factors)
        else:
            slots = _expanded(tape, block, into, place, from_zero)
        place[block.first : block.first + block.size] = slots
        at = block.first + block.size
    _scalars(tape, at, tape.n_slots, into, place)
    into.input_slots = [(int(place[first]) if size else 0, size) for first, size in tape.input_slots]
    into.parameter_slots = [(int(place[first]) if size else 0, size) for first, size in tape.parameter_slots]
    into.output_slots = place[tape.output_slots]
    into.guards.extend(tape.guards, 0)
    for i, slot in enumerate(tape.guards.slot):
        into.guards.slot[i] = int(place[slot])
    into.n_user_rows = tape.n_user_rows
    return into


def _scalars(tape: FlatTape, start: int, stop: int, into: FlatTape, place: np.ndarray) -> None:
    """Copy a run of scalar slots."""
    if stop > start:
        run = slice(start, stop)
        place[run] = into.n_slots + np.arange(stop - start)
        into.push_run(tape.opcode[run], place[tape.lhs[run]], place[tape.rhs[run]], tape.value[run])


def _expanded(tape: FlatTape, block: Block, into: FlatTape, place: np.ndarray, from_zero: bool) -> np.ndarray:
    """Write one block out; gives the slots of its results."""
    value = tape.value
    if block.kind == ELEMENTWISE:
        operands = [_slots(operand, block.shape, into, place) for operand in block.operands]
        results = value[block.first : block.first + block.size]
        if block.code != ops.SELECT:
            rhs = operands[1] if len(operands) > 1 else 0
            return into.push_run(block.code, operands[0], rhs, results) + np.arange(block.size)
        condition, x, y = operands
        code = np.tile(np.array([ops.POSITIVE, ops.SELECT], np.uint8), block.size)
        zeros = np.zeros_like(condition)
        pairs = [
            np.stack(pair, axis=1).reshape(-1)
            for pair in ((condition, x), (zeros, y), (into.value[condition], results))
        ]
        return into.push_run(code, *pairs) + 1 + 2 * np.arange(block.size)
    if block.kind == SUM:
        addends = _slots(block.operands[0], block.shape, into, place)
        result = Operand(0, 0, block.result_strides).elements(block.shape).reshape(-1)
        return _chains(addends[np.argsort(result, kind="stable")].reshape(block.size, -1), into, from_zero)
    m, k, n = block.shape
    a = _slots(block.operands[0], (m, k), into, place).reshape(m, 1, k)
    b = _slots(block.operands[1], (k, n), into, place).reshape(k, n).T.reshape(1, n, k)
    lhs, rhs = (slots.reshape(-1) for slots in np.broadcast_arrays(a, b))
    first = into.push_run(ops.MUL, lhs, rhs, into.value[lhs] * into.value[rhs])
    return _chains((first + np.arange(m * n * k)).reshape(m * n, k), into, from_zero)


def _whole(tape: FlatTape, block: Block, into: FlatTape, place: np.ndarray, known: dict) -> np.ndarray:
    """Keep a matrix product whole; gives the slots of its results. `known`: what factors read, so that a matrix in a loop stands there once."""
    m, k, n = block.shape
    reads: list[np.ndarray | None] = []
    for operand, shape in zip(block.operands, ((m, k), (k, n)), strict=True):
        key = (operand.mode, operand.base, operand.strides, shape)
        if operand.mode != DATA and key not in known:
            known[key] = place[operand.elements(shape).reshape(-1)].astype(np.int32)
        reads.append(known.get(key))
    results = tape.value[block.first : block.first + block.size]
    first = into.push_run(ops.BLOCK, len(into.products), 0, results)
    into.products.append(WholeProduct(block, first, tuple(reads)))
    return first + np.arange(block.size)


def _slots(operand: Operand, shape: tuple[int, ...], into: FlatTape, place: np.ndarray) -> np.ndarray:
    """Where the elements of an operand stand, in C order; plain numbers become constants."""
    elements = operand.elements(shape).reshape(-1)
    if operand.mode == DATA:
        if elements.size and not any(operand.strides):
            return np.full(elements.size, into.constant(float(elements[0])))
        return into.push_run(ops.CONSTANT, 0, 0, np.array(elements)) + np.arange(elements.size)
    return place[elements]


def _chains(addends: np.ndarray, into: FlatTape, from_zero: bool) -> np.ndarray:
    """Add up every row of a matrix of slots, all rows one step at a time; gives the slots of the sums."""
    if from_zero:
        addends = np.concatenate(
            [np.zeros((len(addends), 1), addends.dtype), addends], axis=1
        )  # slot 0 is the constant 0.0
    n_rows, n_steps = addends.shape
    if n_steps == 1:
        return addends[:, 0]
    with np.errstate(all="ignore"):
        partial_sums = np.cumsum(into.value[addends], axis=1)[:, 1:]
    first = into.n_slots
    own = first + np.arange(n_rows * (n_steps - 1)).reshape(n_steps - 1, n_rows)
    before = np.concatenate([addends[:, :1].T, own[:-1]])
    if from_zero and n_rows == 1:
        into.sums.append((first, n_steps - 1))
    into.push_run(ops.ADD, before.reshape(-1), addends[:, 1:].T.reshape(-1), partial_sums.T.reshape(-1))
    return own[-1]

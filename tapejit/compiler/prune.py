"""The first stage: a tape without blocks becomes a `Program`, the instructions that outputs and guards need, in order.

Inputs, parameters and constants are *leaves*: they are no instructions, and are numbered apart. An operand is the number of an instruction
(from 0), or ``~leaf`` for a leaf. Linear time: one pass from the end that marks, one from the beginning that copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tapejit import ops
from tapejit.blocks import Operand
from tapejit.layout import TABLE
from tapejit.ops import BLOCK, CONSTANT, INPUT, POSITIVE, SELECT
from tapejit.sweeps.blocks import blas_strides
from tapejit.sweeps.kernel import kernel
from tapejit.tape import FlatTape

__all__ = [
    "ABSENT",
    "EXPECTS_FALSE",
    "EXPECTS_TRUE",
    "NO_GUARD",
    "OUTPUT",
    "PRODUCT",
    "SUM_STEP",
    "Matmul",
    "Program",
    "prune",
]

ABSENT = np.iinfo(np.int32).min  # an operand that a primitive lacks
OUTPUT = BLOCK  # the code of an instruction that hands its operand out; a program has no blocks
PRODUCT = INPUT  # the code of a result of a matrix product that stays whole; inputs are no instructions
NO_GUARD, EXPECTS_FALSE, EXPECTS_TRUE, SUM_STEP = range(4)


@dataclass(frozen=True)
class Matmul:
    """A matrix product that stays whole: ``m * n`` instructions from `first` on, which have no operands of their own.

    Attributes
    ----------
    first : int
    shape : tuple of int
        ``(m, k, n)``.
    operands : tuple of Operand
        The two factors as the sweeps read them.
    reads : tuple of ndarray or None
        The instructions and leaves that each factor reads, in C order; None for plain numbers. Products that read the same have the same array.
    """

    first: int
    shape: tuple[int, int, int]
    operands: tuple[Operand, ...]
    reads: tuple[np.ndarray | None, ...]

    @property
    def layouts(self) -> list[tuple[int, int] | None]:
        """How BLAS reads each factor in the sweeps, which decides how sums are rounded: its strides, None for a copy in C order."""
        m, k, n = self.shape
        found = []
        for operand, shape in zip(self.operands, ((m, k), (k, n)), strict=True):
            strides = (0, 0) if operand.mode == TABLE else blas_strides.py_func(*shape, *operand.strides)
            found.append(strides if any(strides) else None)
        return found

    @property
    def kind(self) -> tuple:
        """What products have in common that may be iterations of one loop."""
        factors = []
        for reads, strides in zip(self.reads, self.layouts, strict=True):
            is_transposed = strides is not None and strides[1] != 1
            factors.append((is_transposed, strides if reads is None else ()))
        return (self.shape, *factors)


@dataclass(frozen=True)
class Program:
    """What is left of a tape.

    Attributes
    ----------
    code : (n,) uint8 ndarray
        Opcode of each instruction; the last ones are the outputs, `OUTPUT`.
    operands : (3, n) int32 ndarray
        Operands x and y, and the condition of a `select`; `ABSENT` where there is none.
    guard : (n,) uint8 ndarray
        Whether the result decided something, and which way; `SUM_STEP` for an addition in the sum of a block.
    n_inputs, n_parameters, n_constants : int
        Leaves, which are numbered in this order.
    constants : (n_constants,) float64 ndarray
    n_outputs : int
    matmuls : tuple of Matmul
        In order.
    """

    code: np.ndarray
    operands: np.ndarray
    guard: np.ndarray
    n_inputs: int
    n_parameters: int
    constants: np.ndarray
    n_outputs: int
    matmuls: tuple[Matmul, ...] = ()

    @property
    def n_constants(self) -> int:
        return self.constants.size

    @property
    def size(self) -> int:
        """Number of instructions."""
        return self.code.size


@kernel
def _mark(opcode, lhs, rhs, arity, live, first_of, reads, starts, ends):
    """Mark every slot that a marked one reads; product p as a whole, and what ``reads[starts[p, i] : ends[p, i]]`` lists for both factors."""
    slot = opcode.size
    while slot > 1:
        slot -= 1
        if opcode[slot] == BLOCK:
            product = lhs[slot]
            first = first_of[product]
            if live[first : slot + 1].any():
                live[first : slot + 1] = True
                for which in range(2):
                    for i in range(starts[product, which], ends[product, which]):
                        live[reads[i]] = True
            slot = first
        elif live[slot]:
            code = opcode[slot]
            n = arity[code]
            if n > 0:
                live[lhs[slot]] = True
            if n > 1:
                live[rhs[slot]] = True
            if code == SELECT:
                live[lhs[slot - 1]] = True


@kernel
def _copy(opcode, lhs, rhs, arity, live, decided, number, code, operands, guard, constant_slots, first_constant):
    """Number the instructions and leaves that live, and copy the instructions; gives how many of each there are."""
    n, n_constants = 0, 0
    for slot in range(opcode.size):
        if not live[slot]:
            continue
        own = opcode[slot]
        if own == INPUT:
            continue
        if own == CONSTANT:
            number[slot] = ~(first_constant + n_constants)
            constant_slots[n_constants] = slot
            n_constants += 1
            continue
        number[slot] = n
        if own == BLOCK:
            code[n] = PRODUCT
            guard[n] = NO_GUARD
            n += 1
            continue
        code[n] = own
        operands[0, n] = number[lhs[slot]]
        operands[1, n] = number[rhs[slot]] if arity[own] > 1 else ABSENT
        operands[2, n] = number[lhs[slot - 1]] if own == SELECT else ABSENT
        guard[n] = decided[slot]
        n += 1
    return n, n_constants


def prune(tape: FlatTape) -> Program:
    """The program of a tape without blocks.

    Parameters
    ----------
    tape : FlatTape
        With its `output_slots`, and `products` that stay whole; guards must have outcomes 0.0 or 1.0, or be numbers that the recording
        computed (then compared).

    Returns
    -------
    Program
    """
    n_slots = tape.n_slots
    opcode, lhs, rhs = tape.opcode, tape.lhs, tape.rhs
    assert not len(tape.block_at), "expand the tape first"
    live = np.zeros(n_slots, np.bool_)
    outputs = np.asarray(tape.output_slots, np.int64).reshape(-1)
    live[outputs] = True
    guard_slots = np.array(tape.guards.slot, np.int64)
    expected = np.array(tape.guards.expected, np.float64)
    live[guard_slots] = True
    _mark_live(tape, live)

    number = np.zeros(n_slots, np.int32)
    n_leaves = 0
    counts = []
    for runs in (tape.input_slots, tape.parameter_slots):
        start = n_leaves
        for first, size in runs:
            number[first : first + size] = ~np.arange(n_leaves, n_leaves + size)
            n_leaves += size
        counts.append(n_leaves - start)
    n_inputs, n_parameters = counts

    # A decision that was no truth value (the integer that `round` gave) is compared with what it was.
    plain = (expected == 0.0) | (expected == 1.0)
    plain &= ~np.isin(opcode[guard_slots], (INPUT, CONSTANT, BLOCK))
    decided = np.zeros(n_slots, np.uint8)
    for first, size in tape.sums:  # before the decisions: one on a sum is what counts
        decided[first : first + size] = SUM_STEP
    decided[guard_slots[plain]] = np.where(expected[plain] == 1.0, EXPECTS_TRUE, EXPECTS_FALSE)
    n_live = int(np.count_nonzero(live))
    room = n_live + outputs.size + int(np.count_nonzero(~plain))
    code, guard = np.empty(room, np.uint8), np.zeros(room, np.uint8)
    operands = np.full((3, room), ABSENT, np.int32)
    constant_slots = np.empty(n_live, np.int64)
    n, n_constants = _copy(
        opcode, lhs, rhs, _arity(), live, decided, number, code, operands, guard, constant_slots, n_leaves
    )
    constants = tape.value[constant_slots[:n_constants]]
    if not plain.all():
        wanted, place = np.unique(expected[~plain], return_inverse=True)
        run = slice(n, n + place.size)
        code[run], guard[run] = ops.CODE["equal"], EXPECTS_TRUE
        operands[0, run] = number[guard_slots[~plain]]
        operands[1, run] = ~(n_leaves + n_constants + place).astype(np.int32)
        constants = np.concatenate([constants, wanted])
        n += place.size
    run = slice(n, n + outputs.size)
    code[run], operands[0, run] = OUTPUT, number[outputs]
    n += outputs.size
    operands = operands[:, :n]
    matmuls = _numbered(tape, live, number)
    readers = [operands, *(reads[None] for reads in _distinct(reads for matmul in matmuls for reads in matmul.reads))]
    constants = _once_each(constants, readers, n_leaves)
    return Program(code[:n], operands, guard[:n], n_inputs, n_parameters, constants, outputs.size, matmuls)


def _mark_live(tape: FlatTape, live: np.ndarray) -> None:
    """Complete `live` (n_slots,), which is set for what is asked for."""
    first_of = np.array([product.first for product in tape.products], np.int64)
    distinct = _distinct(slots for product in tape.products for slots in product.reads)
    edges = np.cumsum([0, *(slots.size for slots in distinct)])
    place = {id(slots): i for i, slots in enumerate(distinct)}
    places = np.array([[place.get(id(slots), -1) for slots in product.reads] for product in tape.products])
    places = places.reshape(-1, 2).astype(np.int64)
    starts, ends = edges[places], np.where(places < 0, 0, edges[places + 1])
    reads = np.concatenate([np.zeros(0, np.int32), *distinct])
    _mark(tape.opcode, tape.lhs, tape.rhs, _arity(), live, first_of, reads, starts, ends)


def _distinct(arrays: Iterable[np.ndarray | None]) -> list[np.ndarray]:
    """Each array once, in order."""
    return list({id(array): array for array in arrays if array is not None}.values())


def _numbered(tape: FlatTape, live: np.ndarray, number: np.ndarray) -> tuple[Matmul, ...]:
    """The matrix products that live, in the numbers of the program."""
    living = [product for product in tape.products if live[product.first]]
    numbered = {id(slots): number[slots] for slots in _distinct(slots for product in living for slots in product.reads)}
    return tuple(
        Matmul(
            int(number[product.first]),
            product.block.shape,  # type: ignore[arg-type]
            product.block.operands,
            tuple(None if slots is None else numbered[id(slots)] for slots in product.reads),
        )
        for product in living
    )


def _once_each(constants: np.ndarray, readers: list[np.ndarray], first: int) -> np.ndarray:
    """The distinct constants in the order in which they come; the readers (k, n) of a later copy read the first."""
    _, first_of, place = np.unique(constants.view(np.int64), return_index=True, return_inverse=True)
    if first_of.size == constants.size:
        return constants
    order = np.argsort(first_of)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    for operands in readers:
        _renumber(operands, first, rank[place])
    return constants[first_of[order]]


@kernel
def _renumber(operands, first, places):
    for k in range(operands.shape[0]):
        for m in range(operands.shape[1]):
            leaf = -np.int64(operands[k, m]) - 1
            if first <= leaf < first + places.size:
                operands[k, m] = -(first + places[leaf - first]) - 1


def _arity() -> np.ndarray:
    """Operands that a slot of each opcode reads itself."""
    arity = np.zeros(256, np.int8)
    for code in [*range(len(ops.OPS)), *range(ops.FIRST_USER, ops.FIRST_USER + len(ops.USER))]:
        arity[code] = ops.op_coded(code).arity
    arity[[CONSTANT, INPUT, BLOCK]] = 0
    arity[POSITIVE] = 1
    return arity

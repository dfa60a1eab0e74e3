"""How a tape prints itself: a summary, a histogram of its primitives, and its instructions one a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapejit import ops
from tapejit.blocks import Operand
from tapejit.layout import SLOTS, TABLE

if TYPE_CHECKING:
    from tapejit.tape import FlatTape

__all__ = ["histogram", "listing", "summary"]


def histogram(tape: FlatTape) -> dict[str, int]:
    """How many slots each primitive has, most first; a block counts all its slots under its own name in brackets."""
    plain = tape.opcode[~tape.interior() & (tape.opcode != ops.BLOCK)]
    codes, counts = np.unique(plain, return_counts=True)
    table = {ops.op_coded(int(code)).name: int(count) for code, count in zip(codes, counts, strict=True)}
    for block in tape.blocks():
        name = f"[{block.name}]"
        table[name] = table.get(name, 0) + block.size
    return dict(sorted(table.items(), key=lambda item: -item[1]))


def summary(tape: FlatTape) -> str:
    """Slots, bytes, inputs, outputs, and how many of each primitive."""
    lines = [
        f"Tape of {tape.n_slots} slots, {tape.nbytes} bytes ({tape.nbytes / tape.n_slots:.1f} a slot)",
        f"  inputs {tape.n_inputs}, {_parameters(tape)}outputs {tape.output_slots.size}, blocks {len(tape.block_at)}, guards {len(tape.guards.slot)}",
        "  opcodes " + ", ".join(f"{name} {count}" for name, count in histogram(tape).items()),
    ]
    return "\n".join(lines)


def listing(tape: FlatTape, first: int) -> str:
    """The first instructions, one a line; a block shows its run of slots."""
    opcode, lhs, rhs, value = tape.opcode, tape.lhs, tape.rhs, tape.value
    blocks = {block.first: block for block in tape.blocks()} if len(tape.block_at) else {}
    lines: list[str] = []
    slot = 0
    while slot < tape.n_slots and len(lines) < first:
        if slot in blocks:
            block = blocks[slot]
            operands = " ".join(_operand_text(operand) for operand in block.operands)
            shape = "x".join(str(extent) for extent in block.shape)
            lines.append(f"%{slot}..%{slot + block.size - 1} = [{block.name} {shape}] {operands}")
            slot += block.size
            continue
        op = ops.op_coded(int(opcode[slot]))
        operands = "".join(f" %{operand}" for operand in (lhs[slot], rhs[slot])[: op.arity])
        is_parameter = any(start <= slot < start + size for start, size in tape.parameter_slots)
        lines.append(f"%{slot} = {'parameter' if is_parameter else op.name}{operands} -> {value[slot]}")
        slot += 1
    if slot < tape.n_slots:
        lines.append(f"... {tape.n_slots - slot} more slots")
    return "\n".join(lines)


def _parameters(tape: FlatTape) -> str:
    n = sum(size for _, size in tape.parameter_slots)
    return f"parameters {n}, " if n else ""


def _operand_text(operand: Operand) -> str:
    if operand.mode == SLOTS:
        return f"%{operand.base}"
    return "table" if operand.mode == TABLE else "data"

"""Domain errors of compiled code, under ``tj.debug()``: found on the tape after the call, since checks inside would cost every call."""

from __future__ import annotations

import numpy as np

from tapejit import ops
from tapejit.errors import DomainError
from tapejit.recording.recorder import Tape

__all__ = ["check_domains"]


def check_domains(tape: Tape, first: int, line: str) -> None:
    """Raise for the first slot from `first` on whose operands lie outside the domain of its primitive, or that brings a new NaN.

    Raises
    ------
    DomainError
        Names the primitive, the operands and the slot.
    """
    opcode, value = tape.opcode[first:], tape.value
    faults = []
    for code in np.unique(opcode):
        op = ops.op_coded(int(code))
        if op.arity == 0 or op.name == "select":
            continue
        slots = first + np.flatnonzero(opcode == code)
        operands = [value[operand[slots]] for operand in (tape.lhs, tape.rhs)[: op.arity]]
        clean = ~np.logical_or.reduce([np.isnan(numbers) for numbers in operands])
        outside = np.isnan(value[slots])
        for interval, numbers in zip(op.domain, operands, strict=True):
            above = numbers > interval.low if interval.low_open else numbers >= interval.low
            below = numbers < interval.high if interval.high_open else numbers <= interval.high
            outside |= ~(above & below)
        bad = np.flatnonzero(clean & outside)
        if bad.size:
            faults.append((int(slots[bad[0]]), op, [float(numbers[bad[0]]) for numbers in operands]))
    if faults:
        slot, op, numbers = min(faults, key=lambda fault: fault[0])
        for name, interval, number in zip("xy", op.domain, numbers, strict=False):
            if number not in interval:
                arguments = ", ".join("xy"[: op.arity])
                raise DomainError(
                    f"{op.name}({arguments}) needs {interval.condition(name)}, got {name} = {number} in slot {slot} ({line})"
                )
        got = ", ".join(f"{name} = {number}" for name, number in zip("xy", numbers, strict=False))
        raise DomainError(f"{op.name} of {got} is NaN in slot {slot} ({line})")

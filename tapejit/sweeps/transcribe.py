"""Derivatives of one tape recorded on another: how transforms nest.

The inner tape has been copied to the end of the outer one. These kernels walk over its scalar slots and push, for every partial, the
steps of its program (`tapejit.expressions.Program`) as slots of the outer tape: a reverse or a tangent sweep whose adjoints and
tangents are slot numbers, not floats. Slot 0, the constant 0.0, stands for "zero", which contributes nothing.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from tapejit import ops
from tapejit.expressions import Program, compile_program
from tapejit.ops import ADD, BLOCK, CODE, CONSTANT, INPUT, POSITIVE, SELECT, SUB
from tapejit.sweeps.blocks import helper
from tapejit.sweeps.forward import function_of
from tapejit.sweeps.kernel import kernel
from tapejit.sweeps.pointers import call_value

__all__ = ["active_run", "program_table", "reverse_run", "tangent_run"]

_CHAIN, _NEG = CODE["chain"], CODE["neg"]
# Arguments of a step: a step before it (>= 0), an operand of the slot, or a number from the table of constants.
_X, _Y, _V, _FIRST_NUMBER = -1, -2, -3, -4
# Results that need no multiplication.
_ZERO, _ONE, _MINUS_ONE, _PROGRAM = range(4)
_RESULT_KINDS = {0.0: _ZERO, 1.0: _ONE, -1.0: _MINUS_ONE}


@cache
def program_table(n_user: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """The programs of all partials as data.

    Returns
    -------
    steps : (n, 3) int64 ndarray
        Opcode and two arguments of every step.
    entries : (512, 4) int64 ndarray
        Of partial `which` of `code`, in row ``2 * code + which``: first step, end of steps, result, kind of result.
    numbers : tuple of float
        The plain numbers that steps refer to.
    """
    steps: list[tuple[int, int, int]] = []
    entries = np.zeros((512, 4), np.int64)
    numbers: dict[str, int] = {}
    rows = [*enumerate(ops.OPS), *((ops.FIRST_USER + i, op) for i, op in enumerate(ops.USER[:n_user]))]
    for code, op in rows:
        if op.name != "select":
            for which, tree in enumerate(ops.partial_trees(op.name)):
                program = compile_program(tree)
                start = len(steps)
                result = _append(program, steps, numbers)
                kind = _RESULT_KINDS.get(program.result, _PROGRAM) if isinstance(program.result, float) else _PROGRAM
                entries[2 * code + which] = start, len(steps), result, kind
    return np.array(steps, np.int64).reshape(-1, 3), entries, tuple(float(number) for number in numbers)


def _append(program: Program, steps: list, numbers: dict[str, int]) -> int:
    """Append the steps of a program; gives the argument that is its result."""
    start = len(steps)
    place: list[int] = []  # A select takes two steps, so step i of the program may stand further on.

    def number(given: float) -> int:
        # By its text: NaN is the same number twice, 0.0 and -0.0 are not.
        return _FIRST_NUMBER - numbers.setdefault(repr(given), len(numbers))

    def argument(given: float | str | int) -> int:
        if isinstance(given, str):
            return {"x": _X, "y": _Y, "v": _V}[given]
        if isinstance(given, float):
            return number(given)
        return place[given]

    for name, *arguments in program.steps:
        codes = [argument(given) for given in arguments]
        if name == "select":
            steps.append((POSITIVE, codes[0], number(0.0)))
            steps.append((SELECT, codes[1], codes[2]))
        else:
            second = codes[1] if len(codes) > 1 else number(0.0)
            steps.append((CODE[name], codes[0], second))
        place.append(len(steps) - 1 - start)
    return argument(program.result)


@helper
def push(out, opcode, lhs, rhs, value, functions, code, a, b):
    """Append a slot and compute its value; `out` counts the slots."""
    slot = out[0]
    opcode[slot], lhs[slot], rhs[slot] = code, a, b
    if code == SELECT:
        value[slot] = value[a] if value[slot - 1] != 0.0 else value[b]
    else:
        base = value.ctypes.data
        call_value(function_of(code, functions), code, 1, base + 8 * a, base + 8 * b, base + 8 * slot)
    out[0] = slot + 1
    return slot


@helper
def partial_slot(out, opcode, lhs, rhs, value, functions, steps, entry, numbers, x, y, v):
    """Push the steps of a partial; gives the slot that holds it."""
    start = out[0]
    result = entry[2]
    for i in range(entry[0], entry[1] + 1):
        # The pass after the last step resolves the result.
        a = steps[i, 1] if i < entry[1] else result
        b = steps[i, 2] if i < entry[1] else 0
        at_a = start + a if a >= 0 else x if a == _X else y if a == _Y else v if a == _V else numbers[_FIRST_NUMBER - a]
        at_b = start + b if b >= 0 else x if b == _X else y if b == _Y else v if b == _V else numbers[_FIRST_NUMBER - b]
        if i == entry[1]:
            return at_a
        push(out, opcode, lhs, rhs, value, functions, steps[i, 0], at_a, at_b)
    return 0


@helper
def contribution(out, opcode, lhs, rhs, value, functions, steps, entry, numbers, factor, x, y, v):
    """The slot of ``factor * partial``; 0 where the partial is identically zero."""
    if entry[3] == _ZERO:
        return 0
    if entry[3] == _ONE:
        return factor
    if entry[3] == _MINUS_ONE:
        return push(out, opcode, lhs, rhs, value, functions, _NEG, factor, 0)
    p = partial_slot(out, opcode, lhs, rhs, value, functions, steps, entry, numbers, x, y, v)
    return push(out, opcode, lhs, rhs, value, functions, _CHAIN, factor, p)


@helper
def add_slots(out, opcode, lhs, rhs, value, functions, a, b):
    """The slot of a sum; slot 0 is zero."""
    if a == 0:
        return b
    if b == 0:
        return a
    return push(out, opcode, lhs, rhs, value, functions, ADD, a, b)


@helper
def choice(out, opcode, lhs, rhs, value, functions, condition, x, y):
    """The slot of ``x if condition else y``."""
    push(out, opcode, lhs, rhs, value, functions, POSITIVE, condition, 0)
    return push(out, opcode, lhs, rhs, value, functions, SELECT, x, y)


@kernel
def active_run(opcode, lhs, rhs, start, stop, active):
    """Mark the scalar slots ``start .. stop`` that depend on an active one; inputs and links are marked already."""
    for slot in range(start, stop):
        code = opcode[slot]
        if code >= POSITIVE:
            active[slot] = active[lhs[slot]] or active[rhs[slot]]
            if code == SELECT:
                active[slot - 1] = False  # The condition hands nothing on.


@kernel
def reverse_run(inner, start, stop, shift, active, bar, steps, entries, numbers, out, arrays, value, functions):
    """Reverse sweep over the scalar slots ``start .. stop`` of the inner tape, pushed onto the outer one.

    Parameters
    ----------
    inner : tuple of (opcode, lhs, rhs)
        The inner tape.
    shift : int
        Slot `s` of the inner tape stands at ``s + shift`` of the outer one.
    active : (n_inner,) bool ndarray
        Slots that take an adjoint.
    bar : (n_inner,) int64 ndarray
        Slots of the outer tape that hold adjoints; updated.
    steps, entries, numbers
        See `program_table`; `numbers` are slots here.
    out : (1,) int64 ndarray
        Number of slots of the outer tape; updated.
    arrays : tuple of (opcode, lhs, rhs)
        The outer tape, with room.
    value : ndarray
        Its values, with room.
    functions : ndarray
        Addresses of the value functions.
    """
    opcode, lhs, rhs = arrays
    for slot in range(stop - 1, start - 1, -1):
        code = inner[0][slot]
        g = bar[slot]
        if g == 0 or not active[slot] or code < POSITIVE or code == BLOCK:
            continue
        a, b = inner[1][slot], inner[2][slot]
        x, y, v = a + shift, b + shift, slot + shift
        if code == SELECT:
            condition = slot - 1 + shift
            if active[a]:
                t = choice(out, opcode, lhs, rhs, value, functions, condition, g, 0)
                bar[a] = add_slots(out, opcode, lhs, rhs, value, functions, bar[a], t)
            if active[b]:
                t = choice(out, opcode, lhs, rhs, value, functions, condition, 0, g)
                bar[b] = add_slots(out, opcode, lhs, rhs, value, functions, bar[b], t)
            continue
        for which in range(2):
            operand = a if which == 0 else b
            if operand != 0 and active[operand]:
                entry = entries[2 * code + which]
                t = contribution(out, opcode, lhs, rhs, value, functions, steps, entry, numbers, g, x, y, v)
                bar[operand] = add_slots(out, opcode, lhs, rhs, value, functions, bar[operand], t)


@kernel
def tangent_run(inner, start, stop, shift, active, dot, steps, entries, numbers, out, arrays, value, functions):
    """Tangent sweep over the scalar slots ``start .. stop`` of the inner tape, pushed onto the outer one; as `reverse_run`."""
    opcode, lhs, rhs = arrays
    for slot in range(start, stop):
        code = inner[0][slot]
        if not active[slot] or code < POSITIVE or code == BLOCK:
            continue
        a, b = inner[1][slot], inner[2][slot]
        x, y, v = a + shift, b + shift, slot + shift
        if code == SELECT:
            if dot[a] != 0 or dot[b] != 0:
                dot[slot] = choice(out, opcode, lhs, rhs, value, functions, slot - 1 + shift, dot[a], dot[b])
            continue
        for which in range(2):
            operand = a if which == 0 else b
            if operand != 0 and dot[operand] != 0:
                entry = entries[2 * code + which]
                t = contribution(out, opcode, lhs, rhs, value, functions, steps, entry, numbers, dot[operand], x, y, v)
                dot[slot] = add_slots(out, opcode, lhs, rhs, value, functions, dot[slot], t)


def slots_needed(opcode: np.ndarray, entries: np.ndarray) -> int:
    """Upper bound on the slots that a run pushes."""
    cost = np.maximum(entries[:, 1] - entries[:, 0], 0) + 2
    by_code = cost[0::2] + cost[1::2]
    by_code[SELECT] = 6
    by_code[[CONSTANT, INPUT, BLOCK, SUB]] = [0, 0, 0, 4]
    return int(by_code[opcode].sum())

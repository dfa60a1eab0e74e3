"""How compiled code appends to a tape: the functions that write slots, by way of its `header`.

The functions here are compiled once in the life of an installation and called by name (a symbol) from the user's compiled functions, so
those stay small. The two that write almost every slot are LLVM IR (`fast_push`); the others, and what those two leave to them, are here.
What is rare (the tape is full, poison was read) calls back into Python, which knows the recording by its thread.
"""

from __future__ import annotations

from functools import cache

import llvmlite.binding
import numba
from numba import types

from tapejit import ops
from tapejit.recording.native.fast_push import compile_fast_push
from tapejit.recording.native.header import (
    CALLBACK,
    CAPACITY,
    CONSTANT_SETS,
    CONSTANTS,
    DEAD,
    FLAGS,
    GUARD_CAPACITY,
    GUARD_EXPECTED,
    GUARD_SLOT,
    HEADERS,
    KEEPS_GUARDS,
    LHS,
    N_GUARDS,
    NEXT,
    OPCODE,
    RHS,
    SPREAD,
    VALUE,
)
from tapejit.recording.native.memory import bits_of, call_back, call_symbol, load, load_symbol, store
from tapejit.sweeps.kernel import FLAGS as KERNEL_FLAGS
from tapejit.sweeps.kernel import primitive_kernel

__all__ = ["install"]

# What a callback is asked.
GROW_TAPE, GROW_GUARDS, READ_POISON, STOPPED = range(4)

_CONSTANT, _POSITIVE, _SELECT = ops.CONSTANT, ops.POSITIVE, ops.SELECT
_POWER, _POWER_CONSTANT, _SQUARE, _CUBE, _SQRT, _RECIPROCAL = (
    ops.CODE[name] for name in ("power", "power_constant", "square", "cube", "sqrt", "reciprocal")
)


_inside = numba.njit(**KERNEL_FLAGS)
_I, _D = types.int64, types.float64
_ONE, _TWO = _I(_I, _I, _D), _I(_I, _D, _I, _D, _I, _D)
_rare_one, _rare_two = call_symbol("tapejit_rare_one", _ONE), call_symbol("tapejit_rare_two", _TWO)


@_inside
def _unrecorded(word):
    if word < 0:
        call_back(load_symbol("tapejit_flags", CALLBACK), READ_POISON, 0)
    return 0


@_inside
def _written(header, word, code, lhs, rhs, value):
    slot = word & 0xFFFFFFFF
    store(load(header, OPCODE, types.int64), slot, code, types.uint8)
    store(load(header, LHS, types.int64), slot, lhs, types.int32)
    store(load(header, RHS, types.int64), slot, rhs, types.int32)
    store(load(header, VALUE, types.int64), slot, value, types.float64)
    store(header, NEXT, word + 1, types.int64)
    return word


@_inside
def _appended(header, number, code, lhs, rhs, value):
    word = load(header, NEXT, types.int64)
    capacity = load(header, CAPACITY, types.int64)
    if word >= capacity:
        if capacity == DEAD or call_back(load_symbol("tapejit_flags", CALLBACK), GROW_TAPE, number) == 0:
            return 0
    return _written(header, word, code, lhs, rhs, value)


@_inside
def _place_of(value):
    return CONSTANTS + 4 * ((bits_of(value) * SPREAD >> 40) & (CONSTANT_SETS - 1))


@_inside
def _constant(header, number, value):
    """The slot of a plain number: looked up among the last used, so that a constant in a loop is recorded once."""
    bits = bits_of(value)
    at = _place_of(value)
    if load(header, at, types.int64) == bits:
        return load(header, at + 1, types.int64)
    slot = load(header, at + 3, types.int64)
    if load(header, at + 2, types.int64) != bits:
        slot = _appended(header, number, _CONSTANT, 0, 0, value) & 0xFFFFFFFF
    # To the front of its set; the other moves back.
    store(header, at + 2, load(header, at, types.int64), types.int64)
    store(header, at + 3, load(header, at + 1, types.int64), types.int64)
    store(header, at, bits, types.int64)
    store(header, at + 1, slot, types.int64)
    return slot


def rare_one(code, x_word, value):
    """What `push_one` leaves: a full tape, poison."""
    if x_word <= 0:
        return _unrecorded(x_word)
    number = x_word >> 32
    header = load_symbol("tapejit_headers", number)
    return _appended(header, number, code, x_word & 0xFFFFFFFF, 0, value)


def rare_two(code, x_value, x_word, y_value, y_word, value):
    """What `push_two` leaves: a constant that was not used lately, a full tape, poison."""
    word = x_word | y_word
    if word <= 0:
        return _unrecorded(word)
    number = word >> 32
    header = load_symbol("tapejit_headers", number)
    if x_word == 0:
        lhs = _constant(header, number, x_value)
    else:
        lhs = x_word & 0xFFFFFFFF
    if y_word == 0:
        rhs = _constant(header, number, y_value)
    else:
        rhs = y_word & 0xFFFFFFFF
    return _appended(header, number, code, lhs, rhs, value)


def push_power(x_value, x_word, y_value, y_word, value):
    """Record ``value = x**y``. A passive exponent is lowered by the rule of `tapejit.recording.variable.power_lowered`."""
    if y_word != 0:
        return _rare_two(_POWER, x_value, x_word, y_value, y_word, value)
    if x_word <= 0:
        return _unrecorded(x_word)
    if y_value == 1.0:
        return x_word
    if y_value == 0.0:
        return 0
    code = _POWER_CONSTANT
    if y_value == 2.0:
        code = _SQUARE
    elif y_value == 3.0:
        code = _CUBE
    elif y_value == 0.5:
        code = _SQRT
    elif y_value == -1.0:
        code = _RECIPROCAL
    if code != _POWER_CONSTANT:
        return _rare_one(code, x_word, value)
    return _rare_two(code, x_value, x_word, y_value, y_word, value)


def decide(word, outcome):
    """Keep a decision on a recorded value as a guard, if the tape keeps guards."""
    if word <= 0:
        return _unrecorded(word)
    number = word >> 32
    header = load_symbol("tapejit_headers", number)
    if load(header, KEEPS_GUARDS, types.int64) == 0:
        return 0
    n = load(header, N_GUARDS, types.int64)
    if n >= load(header, GUARD_CAPACITY, types.int64):
        if call_back(load_symbol("tapejit_flags", CALLBACK), GROW_GUARDS, number) == 0:
            return 0
    store(load(header, GUARD_SLOT, types.int64), n, word & 0xFFFFFFFF, types.int32)
    store(load(header, GUARD_EXPECTED, types.int64), n, outcome, types.float64)
    store(header, N_GUARDS, n + 1, types.int64)
    return 0


_decide = _inside(decide)


def push_compare(code, x_value, x_word, y_value, y_word, outcome):
    """Record a comparison if the tape keeps guards; gives its word, else 0."""
    word = x_word | y_word
    if word <= 0:
        return _unrecorded(word)
    if load(load_symbol("tapejit_headers", word >> 32), KEEPS_GUARDS, types.int64) == 0:
        return 0
    return _rare_two(code, x_value, x_word, y_value, y_word, outcome)


def push_integer(code, x_word, rounded):
    """Keep the decision by which an active number became an integer, if the tape keeps guards."""
    if x_word <= 0:
        return _unrecorded(x_word)
    if load(load_symbol("tapejit_headers", x_word >> 32), KEEPS_GUARDS, types.int64) == 0:
        return 0
    return _decide(_rare_one(code, x_word, rounded), rounded)


def push_select(condition_word, x_value, x_word, y_value, y_word, condition, value):
    """Record ``value = x if condition else y`` for a recorded condition; gives its word."""
    word = x_word | y_word | condition_word
    if word <= 0:
        return _unrecorded(word)
    number = word >> 32
    header = load_symbol("tapejit_headers", number)
    if x_word == 0:
        lhs = _constant(header, number, x_value)
    else:
        lhs = x_word & 0xFFFFFFFF
    if y_word == 0:
        rhs = _constant(header, number, y_value)
    else:
        rhs = y_word & 0xFFFFFFFF
    # The pair stands together.
    if _appended(header, number, _POSITIVE, condition_word & 0xFFFFFFFF, 0, condition) == 0:
        return 0
    return _appended(header, number, _SELECT, lhs, rhs, value)


_push_select = _inside(push_select)


def push_choice(condition_word, x_value, x_word, y_value, y_word, condition, value):
    """The word of ``x if condition else y``: a select where the condition was recorded, else that of the one chosen."""
    if condition_word != 0:
        return _push_select(condition_word, x_value, x_word, y_value, y_word, condition, value)
    if condition != 0.0:
        return x_word
    return y_word


def set_value(word, value):
    """Put another primal into a recorded slot: that of the library which computed the same number in another order."""
    if word <= 0:
        return _unrecorded(word)
    header = load_symbol("tapejit_headers", word >> 32)
    if word < load(header, NEXT, types.int64):
        store(load(header, VALUE, types.int64), word & 0xFFFFFFFF, value, types.float64)
    return word


def stopped():
    """Whether the recording of this thread must stop; called only while some recording must."""
    return call_back(load_symbol("tapejit_flags", CALLBACK), STOPPED, 0)


_SIGNATURES = {
    rare_one: _ONE,
    rare_two: _TWO,
    push_power: _I(_D, _I, _D, _I, _D),
    push_compare: _I(_I, _D, _I, _D, _I, _D),
    push_integer: _I(_I, _I, _D),
    push_select: _I(_I, _D, _I, _D, _I, _D, _D),
    push_choice: _I(_I, _D, _I, _D, _I, _D, _D),
    decide: _I(_I, _D),
    set_value: _I(_I, _D),
    stopped: _I(),
}
_compiled = []  # for the life of the process, as are the addresses


@cache
def install(callback_address: int) -> None:
    """Give the names that compiled code refers to their addresses in this process."""
    FLAGS[CALLBACK] = callback_address
    llvmlite.binding.add_symbol("tapejit_headers", HEADERS.ctypes.data)
    llvmlite.binding.add_symbol("tapejit_flags", FLAGS.ctypes.data)
    for function, signature in _SIGNATURES.items():
        compiled = primitive_kernel(signature, function)
        _compiled.append(compiled)
        llvmlite.binding.add_symbol(f"tapejit_{function.__name__}", compiled.address)
    _compiled.append(compile_fast_push())

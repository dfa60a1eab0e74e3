"""Sweeps: loops over a tape in compiled code. Each takes a tape and the arrays that it works on, all (n_slots,) float64.

| sweep | from | computes |
|---|---|---|
| `forward` | values of inputs and constants | every value (a replay) |
| `tangent` | tangents of inputs | every tangent |
| `reverse` | adjoints of outputs, one seed or K | every adjoint |
| `second_order` | tangents, adjoints of outputs | adjoints and their tangents (H v) |

Derivatives are those with respect to the inputs: adjoints of parameters are left out where that saves work, and mean nothing elsewhere
(`tapejit.sweeps.activity`). `value` defaults to the tape's own; another array of values lets several threads replay one tape.

A loop or region that is computed again (`tape.calls`) stands on the tape as a run of results. The kernels sweep what lies between such runs, and the
call does the rest itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tapejit.layout import DATA, MATMUL
from tapejit.sweeps.activity import activity, passive
from tapejit.sweeps.forward import forward_sweep
from tapejit.sweeps.groups import find_escapes
from tapejit.sweeps.primitives import primitive_table
from tapejit.sweeps.reverse import reverse_many_sweep, reverse_sweep
from tapejit.sweeps.second_order import second_order_sweep
from tapejit.sweeps.tangent import tangent_sweep
from tapejit.workspace import cleared_workspace

if TYPE_CHECKING:
    from tapejit.tape import FlatTape

_PIECE = 1 << 14

__all__ = ["activity", "blas_addresses", "forward", "input_adjoint", "reverse", "second_order", "tangent"]


@cache
def blas_addresses() -> np.ndarray:
    """SciPy's dgemm, for kernels to call."""
    import scipy.linalg.cython_blas  # noqa: F401 - makes the functions known
    from numba.extending import get_cython_function_address

    return np.array([get_cython_function_address("scipy.linalg.cython_blas", "dgemm")], np.int64)


def _blas(tape: FlatTape) -> np.ndarray:
    words = tape.words
    needed = any(words[at] == MATMUL for at in tape.block_at)
    return blas_addresses() if needed else np.zeros(1, np.int64)


def forward(tape: FlatTape, value: np.ndarray | None = None) -> None:
    """Recompute `value` in place from the inputs and constants in it."""
    value = tape.value if value is None else value
    table = primitive_table("value", tape.n_user_rows)
    words, blas = tape.word_array(), _blas(tape)
    for start, stop, call in _runs(tape):
        forward_sweep(start, tape.opcode[:stop], tape.lhs, tape.rhs, value, words, table, blas)
        if call is not None:
            call.forward(value)


def _runs(tape: FlatTape) -> Iterator[tuple[int, int, Any]]:
    """The operations of a tape in order, in runs: where one begins and ends, and the call that follows it (None after the last)."""
    start = tape.first_operation
    for call in tape.calls:
        yield start, call.first, call
        start = call.first + call.size
    yield start, tape.n_slots, None


def reverse(tape: FlatTape, adjoint: np.ndarray, value: np.ndarray | None = None) -> None:
    """Accumulate `adjoint` in place, (n_slots,) for one seed or (n_slots, K) for K seeds in one pass."""
    value = tape.value if value is None else value
    table = primitive_table("partial", tape.n_user_rows)
    with _derivative_words(tape, tape.word_array(), value) as words:
        arrays = (tape.lhs, tape.rhs, value, adjoint, words, table, _blas(tape))
        for start, stop, call in reversed(list(_runs(tape))):
            if call is not None:
                call.reverse(value, adjoint)
            if adjoint.ndim == 1:
                reverse_sweep(start, tape.opcode[:stop], *arrays, False)
            else:
                reverse_many_sweep(start, tape.opcode[:stop], *arrays)


def input_adjoint(tape: FlatTape, output: np.ndarray, y_bar: np.ndarray, value: np.ndarray | None = None) -> np.ndarray:
    """Adjoints of the inputs, (n_inputs,), for adjoints `y_bar` of the slots `output`; a slot may stand there twice."""
    value = tape.value if value is None else value
    table = primitive_table("partial", tape.n_user_rows)
    with (
        cleared_workspace(tape.n_slots) as adjoint,
        _derivative_words(tape, _words_for(tape, output), value) as words,
    ):
        np.add.at(adjoint, output, y_bar)
        arrays = (tape.lhs, tape.rhs, value, adjoint, words, table, _blas(tape))
        for start, stop, call in reversed(list(_runs(tape))):
            if call is not None:
                call.reverse(value, adjoint)
                adjoint[call.first : call.first + call.size] = 0.0
            reverse_sweep(start, tape.opcode[:stop], *arrays, True)
        adjoint[0] = 0.0
        inputs = np.empty(tape.n_inputs)
        start = 0
        for first, size in tape.input_slots:
            # In pieces that stay in the cache between the copy and the clearing.
            for piece in range(0, size, _PIECE):
                taken = adjoint[first + piece : first + min(size, piece + _PIECE)]
                inputs[start + piece : start + piece + taken.size] = taken
                taken[:] = 0.0
            start += size
        if (known := passive(tape)) is not None:
            # What has arrived at parameters nobody asks for, but the workspace must be left as zeros.
            for first, size in known.touched:
                adjoint[first : first + size] = 0.0
            adjoint[output] = 0.0
            for call in tape.calls:
                adjoint[call.operands] = 0.0
    return inputs


@contextmanager
def _derivative_words(tape: FlatTape, words: np.ndarray, value: np.ndarray) -> Iterator[np.ndarray]:
    """The descriptions of the blocks for a sweep over derivatives at these values: operands that depend on parameters alone are plain numbers."""
    known = passive(tape)
    if known is None:
        yield words
    else:
        changed, held = known.words(tape, words, value)
        yield changed
        del held  # The addresses in `changed` are good until here.


def _words_for(tape: FlatTape, output: np.ndarray) -> np.ndarray:
    """The descriptions of the blocks with word 7 right for these outputs: a copy, as other outputs may be swept from at the same time."""
    if not tape.has_joined:
        return tape.word_array()
    if tape.calls:
        output = np.concatenate([output, *(call.operands for call in tape.calls)])
    key = (tape.n_slots, output.tobytes())
    known = tape.words_known
    if known is None or known[0] != key:
        words = tape.word_array().copy()
        if (passively := passive(tape)) is not None:
            words[passively.runs] = DATA
            words[passively.tables] = DATA
        blocks = np.array(tape.block_at, np.int64)
        find_escapes(tape.opcode, tape.lhs, tape.rhs, words, blocks, np.asarray(output, np.int64).reshape(-1))
        tape.words_known = known = (key, words)
    return known[1]


def tangent(tape: FlatTape, tangent: np.ndarray, value: np.ndarray | None = None) -> None:
    """Compute `tangent` in place from the tangents of the inputs in it; elsewhere it must start as zeros."""
    value = tape.value if value is None else value
    table = primitive_table("partial", tape.n_user_rows)
    with _derivative_words(tape, tape.word_array(), value) as words:
        arrays = (tape.lhs, tape.rhs, value, tangent, words, table, _blas(tape))
        for start, stop, call in _runs(tape):
            tangent_sweep(start, tape.opcode[:stop], *arrays)
            if call is not None:
                call.tangent(value, tangent)


def second_order(
    tape: FlatTape,
    tangent: np.ndarray,
    adjoint: np.ndarray,
    adjoint_tangent: np.ndarray,
    value: np.ndarray | None = None,
) -> None:
    """Accumulate `adjoint` and its tangent in place; `tangent` has been swept forward."""
    value = tape.value if value is None else value
    n_user = tape.n_user_rows
    with _derivative_words(tape, tape.word_array(), value) as words:
        tables = primitive_table("partial", n_user), primitive_table("second", n_user), _blas(tape)
        arrays = (tape.lhs, tape.rhs, value, tangent, adjoint, adjoint_tangent, words, *tables)
        for start, stop, call in reversed(list(_runs(tape))):
            if call is not None:
                call.second_order(value, tangent, adjoint, adjoint_tangent)
            second_order_sweep(start, tape.opcode[:stop], *arrays)

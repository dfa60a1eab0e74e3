"""Sweeps: loops over a tape in compiled code. Each takes a tape and the arrays that it works on, all (n_slots,) float64.

| sweep | from | computes |
|---|---|---|
| `forward` | values of inputs and constants | every value (a replay) |
| `tangent` | tangents of inputs | every tangent |
| `reverse` | adjoints of outputs, one seed or K | every adjoint |
| `second_order` | tangents, adjoints of outputs | adjoints and their tangents (H v) |

`value` defaults to the tape's own; another array of values lets several threads replay one tape.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tapejit.layout import MATMUL
from tapejit.sweeps.forward import forward_sweep
from tapejit.sweeps.primitives import primitive_table
from tapejit.sweeps.reverse import reverse_many_sweep, reverse_sweep
from tapejit.sweeps.second_order import second_order_sweep
from tapejit.sweeps.tangent import tangent_sweep

if TYPE_CHECKING:
    from tapejit.tape import FlatTape

__all__ = ["forward", "reverse", "second_order", "tangent"]


@cache
def _blas_addresses() -> np.ndarray:
    """SciPy's dgemm and dgemv, for kernels to call."""
    import scipy.linalg.cython_blas  # noqa: F401 - makes the functions known
    from numba.extending import get_cython_function_address

    return np.array([get_cython_function_address("scipy.linalg.cython_blas", name) for name in ("dgemm", "dgemv")], np.int64)


def _blas(tape: FlatTape) -> np.ndarray:
    words = tape.words
    needed = any(words[at] == MATMUL for at in tape.block_at)
    return _blas_addresses() if needed else np.zeros(2, np.int64)


def forward(tape: FlatTape, value: np.ndarray | None = None) -> None:
    """Recompute `value` in place from the inputs and constants in it."""
    value = tape.value if value is None else value
    table = primitive_table("value", tape.n_user_rows)
    forward_sweep(tape.opcode, tape.lhs, tape.rhs, value, tape.word_array(), table, _blas(tape))


def reverse(tape: FlatTape, adjoint: np.ndarray, value: np.ndarray | None = None) -> None:
    """Accumulate `adjoint` in place, (n_slots,) for one seed or (n_slots, K) for K seeds in one pass."""
    value = tape.value if value is None else value
    sweep = reverse_sweep if adjoint.ndim == 1 else reverse_many_sweep
    table = primitive_table("partial", tape.n_user_rows)
    sweep(tape.opcode, tape.lhs, tape.rhs, value, adjoint, tape.word_array(), table, _blas(tape))


def tangent(tape: FlatTape, tangent: np.ndarray, value: np.ndarray | None = None) -> None:
    """Compute `tangent` in place from the tangents of the inputs in it; elsewhere it must start as zeros."""
    value = tape.value if value is None else value
    table = primitive_table("partial", tape.n_user_rows)
    tangent_sweep(tape.opcode, tape.lhs, tape.rhs, value, tangent, tape.word_array(), table, _blas(tape))


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
    second_order_sweep(
        tape.opcode,
        tape.lhs,
        tape.rhs,
        value,
        tangent,
        adjoint,
        adjoint_tangent,
        tape.word_array(),
        primitive_table("partial", n_user),
        primitive_table("second", n_user),
        _blas(tape),
    )

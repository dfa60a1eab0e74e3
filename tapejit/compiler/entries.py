"""Ways into a compiled kernel from other compiled code: many rows of inputs in one call, and a function for the user's own Numba code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapejit.compiler.kernel import Kernel
from tapejit.sweeps.kernel import kernel
from tapejit.sweeps.pointers import load_float

__all__ = ["as_numba_function", "call_forward", "call_reverse", "run_rows"]

_INT64 = ir.IntType(64)
_PINNED: list[Any] = []  # what addresses in compiled code of others refer to, for the life of the process


def _status_of(n: int) -> Any:
    """Code generation for a call of ``int64 f(void * ...)``; all arguments are addresses, the function's first."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(_INT64, [pointer] * n)
        function = builder.inttoptr(args[0], function_type.as_pointer())
        return builder.call(function, [builder.inttoptr(arg, pointer) for arg in args[1:]])

    return types.int64(*[types.int64] * (1 + n)), generate


@intrinsic
def call_forward(typingctx, function, inputs, memory, tables):
    return _status_of(3)


@intrinsic
def call_reverse(typingctx, function, inputs, memory, input_adjoints, adjoints, tables):
    return _status_of(5)


@kernel
def _rows(
    forward,
    reverse,
    tables,
    memory,
    adjoint,
    sizes,
    inputs,
    parameters,
    seed,
    outputs_at,
    seeds_at,
    values,
    bars,
    failed,
):
    """Run a kernel for every row of `inputs`; marks those for which the interpreter must be asked."""
    n_inputs, adjoint_size, parameters_at = sizes
    for row in range(inputs.shape[0]):
        memory[:n_inputs] = inputs[row]
        if row < parameters.shape[0]:  # one row of them serves all
            own = parameters[row]
            memory[parameters_at : parameters_at + own.size] = own
        failed[row] = call_forward(forward, memory.ctypes.data, memory.ctypes.data, tables) != 0
        for i in range(outputs_at.size):
            values[row, i] = memory[outputs_at[i]]
        if bars.shape[0] == 0 or failed[row]:
            continue
        adjoint[:adjoint_size] = 0.0
        for i in range(seeds_at.size):
            adjoint[seeds_at[i]] = seed[i]
        failed[row] = (
            call_reverse(
                reverse, memory.ctypes.data, memory.ctypes.data, adjoint.ctypes.data, adjoint.ctypes.data, tables
            )
            != 0
        )
        total = 0.0
        for i in range(n_inputs):
            bars[row, i] = adjoint[i]
            total += 0.0 * adjoint[i]
        if total != 0.0:
            failed[row] = True
    if bars.shape[0] > 0:
        adjoint[:adjoint_size] = 0.0  # as `Kernel.run` expects what it is given back


def run_rows(
    made: Kernel, inputs: np.ndarray, parameters: np.ndarray, seed: np.ndarray, values: np.ndarray, bars: np.ndarray
) -> np.ndarray:
    """Run a kernel for every row of inputs, in this thread and without the GIL.

    Parameters
    ----------
    made : Kernel
    inputs : (B, n_inputs) ndarray
    parameters : (B, n_parameters) or (1, n_parameters) ndarray
    seed : (m,) ndarray
        Adjoints of the outputs.
    values, bars : (B, m), (B, n_inputs) ndarray
        Written.

    Returns
    -------
    failed : (B,) bool ndarray
        Rows that the interpreter must do.
    """
    assert made.linked is not None
    failed = np.zeros(len(inputs), np.bool_)
    work = made.take()
    try:
        work.holds = None
        adjoint = work.add_adjoint(made) if work.adjoint is None else work.adjoint
        _rows(
            made.linked.address("forward"),
            made.linked.address("reverse"),
            made.tables.ctypes.data,
            work.memory,
            adjoint,
            (made.n_inputs, made.adjoint_size, made.parameters_at),
            inputs,
            parameters,
            seed,
            made.outputs_at,
            made.output_adjoints_at,
            values,
            bars,
            failed,
        )
    finally:
        made.give(work)
    return failed


def as_numba_function(made: Kernel, parameters: np.ndarray, is_scalar: bool) -> Callable:
    """``kernel(x, gradient) -> value`` for Numba code, with the parameters as they are; keeps the code for the life of the process."""
    assert made.linked is not None
    made.linked.pin()
    fixed = np.concatenate([parameters, made.constants])
    _PINNED.append((made, fixed))
    forward, reverse, tables = made.linked.address("forward"), made.linked.address("reverse"), made.tables.ctypes.data
    fixed_address, n_fixed, fixed_at = fixed.ctypes.data, fixed.size, made.parameters_at
    size, n_inputs, output_at = made.size + 8, made.n_inputs, int(made.outputs_at[0])
    adjoint_size, seed_at = made.adjoint_size + 8, int(made.output_adjoints_at[0])

    @numba.njit(nogil=True, error_model="numpy")
    def evaluate(memory, gradient):
        for i in range(n_fixed):
            memory[fixed_at + i] = load_float(fixed_address, i)
        status = call_forward(forward, memory.ctypes.data, memory.ctypes.data, tables)
        if status == 0:
            adjoint = np.zeros(adjoint_size)
            adjoint[seed_at] = 1.0
            status = call_reverse(
                reverse, memory.ctypes.data, memory.ctypes.data, adjoint.ctypes.data, adjoint.ctypes.data, tables
            )
            if status == 0:
                for i in range(n_inputs):
                    gradient.flat[i] = adjoint[i]
                return memory[output_at]
        for i in range(n_inputs):
            gradient.flat[i] = np.nan
        return np.nan

    if is_scalar:

        @numba.njit(nogil=True, error_model="numpy")
        def kernel(x, gradient):
            if gradient.size != 1:
                raise ValueError("gradient must have one entry for each entry of x")
            memory = np.empty(size)
            memory[0] = x
            return evaluate(memory, gradient)

    else:

        @numba.njit(nogil=True, error_model="numpy")
        def kernel(x, gradient):
            if x.size != n_inputs or gradient.size != n_inputs:
                raise ValueError("x and gradient must have as many entries as the differentiated arguments together")
            memory = np.empty(size)
            i = 0
            for number in x.flat:
                memory[i] = number
                i += 1
            return evaluate(memory, gradient)

    return kernel

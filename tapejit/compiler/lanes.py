"""Many independent inputs through one kernel: `n` rows at a time, side by side in the lanes of the processor's vectors.

A kernel in lanes has n numbers wherever a kernel of one input has one. Each lane computes the values that the other kernel would, to the last
bit, except for sums of whole arrays, which are plain chains here; adjoints are added up one iteration after the other, without tiles.
"""

from __future__ import annotations

import numpy as np

from tapejit.compiler.entries import call_forward, call_reverse
from tapejit.compiler.kernel import Kernel, compile_tape
from tapejit.sweeps.kernel import kernel
from tapejit.tape import FlatTape

__all__ = ["FEWEST_LANES", "compile_in_lanes", "run_in_lanes"]

MOST_LANES = 32  # four vectors of the widest kind, which work while one waits
CACHE = 1 << 20  # bytes that the values of all lanes may take before fewer lanes are better
FEWEST_LANES = 8
LARGEST = 1 << 26  # bytes above which rows go one by one


def compile_in_lanes(tape: FlatTape, size: int, fast: bool, max_compile_seconds: float) -> Kernel | None:
    """The kernel of a tape in lanes, None if rows had better go one by one; `size` is the number of values of one row."""
    n_lanes = MOST_LANES
    while n_lanes > FEWEST_LANES and 16 * size * n_lanes > CACHE:
        n_lanes //= 2
    if 16 * size * n_lanes > LARGEST:
        return None
    made = compile_tape(tape, fast=fast, max_compile_seconds=max_compile_seconds, n_lanes=n_lanes)
    return None if made.why_interpreted else made


@kernel
def _rows_in_lanes(
    forward,
    reverse,
    tables,
    memory,
    adjoint,
    n_lanes,
    parameters_at,
    inputs,
    parameters,
    outputs_at,
    seeds_at,
    values,
    bars,
    failed,
):
    """Run a kernel for every `n_lanes` rows of `inputs`; marks the rows that must be done again one by one."""
    n_rows, n_inputs = inputs.shape
    for start in range(0, n_rows, n_lanes):
        n = min(n_lanes, n_rows - start)
        for lane in range(n_lanes):
            row = start + min(lane, n - 1)
            for i in range(n_inputs):
                memory[i, lane] = inputs[row, i]
                adjoint[i, lane] = 0.0
        if start == 0 or parameters.shape[0] > 1:
            for lane in range(n_lanes):
                row = min(start + min(lane, n - 1), parameters.shape[0] - 1)
                for i in range(parameters.shape[1]):
                    memory[parameters_at + i, lane] = parameters[row, i]
        status = call_forward(forward, memory.ctypes.data, memory.ctypes.data, tables)
        for i in range(outputs_at.size):
            for lane in range(n):
                values[start + lane, i] = memory[outputs_at[i], lane]
            for lane in range(n_lanes):
                adjoint[seeds_at[i], lane] = 1.0
        address = adjoint.ctypes.data
        status |= call_reverse(reverse, memory.ctypes.data, memory.ctypes.data, address, address, tables)
        for lane in range(n):
            failed[start + lane] = status != 0
        for i in range(n_inputs):
            for lane in range(n):
                bar = adjoint[i, lane]
                bars[start + lane, i] = bar
                failed[start + lane] |= not abs(bar) < np.inf


def run_in_lanes(
    made: Kernel, inputs: np.ndarray, parameters: np.ndarray, values: np.ndarray, bars: np.ndarray
) -> np.ndarray:
    """Values and gradients of every row of inputs, in this thread and without the GIL.

    Parameters
    ----------
    made : Kernel
        From `compile_in_lanes`.
    inputs : (B, n_inputs) ndarray
    parameters : (B, n_parameters) or (1, n_parameters) ndarray
    values, bars : (B, 1), (B, n_inputs) ndarray
        Written.

    Returns
    -------
    failed : (B,) bool ndarray
        Rows that must be done one by one: a decision changed in them or beside them, or a result is not finite.
    """
    assert made.linked is not None
    n_lanes = made.n_lanes
    failed = np.zeros(len(inputs), np.bool_)
    memory, adjoint = _aligned(made.size, n_lanes), _aligned(made.adjoint_size, n_lanes)
    memory[made.constants_at : made.constants_at + made.constants.size] = made.constants[:, None]
    _rows_in_lanes(
        made.linked.address("forward"),
        made.linked.address("reverse"),
        made.tables.ctypes.data,
        memory,
        adjoint,
        n_lanes,
        made.parameters_at,
        inputs,
        parameters,
        made.outputs_at,
        made.output_adjoints_at,
        values,
        bars,
        failed,
    )
    return failed


def _aligned(n: int, n_lanes: int) -> np.ndarray:
    """Zeros (n, n_lanes) that begin where vectors may."""
    width = 8 * n_lanes
    raw = np.zeros(n * n_lanes + n_lanes)
    first = (-raw.ctypes.data % width) // 8
    return raw[first : first + n * n_lanes].reshape(n, n_lanes)

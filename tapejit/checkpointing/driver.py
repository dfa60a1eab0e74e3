"""The driver of compiled steps: carries out the rows of a schedule without coming back to Python between two steps.

A step of a thousand operations takes less than a microsecond, a call from Python several. So advances, snapshots and reverse steps are one
loop in compiled code, which comes back where Python is needed: before the first step is reversed, when the kernel cannot answer (another decision,
a result that is not finite), when it has worked for a while (so that Ctrl-C is heard), and when a recomputed state differs.
"""

from __future__ import annotations

import numpy as np

from tapejit.checkpointing.streams import ADVANCE, FREE, RESTORE, REVERSE, STORE
from tapejit.compiler.entries import call_forward, call_reverse
from tapejit.sweeps.kernel import kernel

__all__ = ["DIFFERS", "DONE", "REFUSED", "TO_REVERSE", "WORKED", "drive"]

DONE, TO_REVERSE, REFUSED, WORKED, DIFFERS = range(5)


@kernel
def _copy(source, target):
    for i in range(target.size):
        target[i] = source[i]


@kernel
def _forward(code, work, sizes, outputs_at, s, state, rows, passive):
    """Run the kernel of the step at a state; 0 if that went well."""
    forward, _, tables = code
    memory = work[0]
    n, n_params, n_rows, n_passive, parameters_at, _ = sizes
    _copy(state, memory[:n])
    if n_rows > 0:
        _copy(rows[s], memory[n + n_params : n + n_params + n_rows])
    if n_passive > 0:
        _copy(passive[s], memory[parameters_at : parameters_at + n_passive])
    return call_forward(forward, memory.ctypes.data, memory.ctypes.data, tables)


@kernel
def _is_same(work, outputs_at, state):
    """Whether the state that was computed is the one given, NaN for NaN."""
    memory = work[0]
    for i in range(state.size):
        x, y = memory[outputs_at[i]], state[i]
        if x != y and not (x != x and y != y):
            return False
    return True


@kernel
def _reverse(code, work, sizes, seeds_at, bars, output_bars, found):
    """Fill `found` (K, n inputs) with the adjoints of the inputs of the step; 0 if that went well."""
    _, reverse, tables = code
    memory, adjoint = work
    n, adjoint_size = sizes[0], sizes[5]
    for k in range(found.shape[0]):
        adjoint[:adjoint_size] = 0.0
        for i in range(n):
            adjoint[seeds_at[i]] = bars[k, i]
        for i in range(output_bars.shape[1]):
            adjoint[seeds_at[n + i]] = output_bars[k, i]
        if call_reverse(
            reverse, memory.ctypes.data, memory.ctypes.data, adjoint.ctypes.data, adjoint.ctypes.data, tables
        ):
            return 1
        total = 0.0
        for i in range(found.shape[1]):
            found[k, i] = adjoint[i]
            total += 0.0 * adjoint[i]
        if total != 0.0:
            return 1
    return 0


@kernel
def drive(
    actions,
    first,
    until_reverse,
    most,
    code,
    work,
    sizes,
    places,
    state,
    after,
    rows,
    passive,
    outputs,
    snapshots,
    bars,
    params_bar,
    rows_bar,
    outputs_bar,
):
    """Carry out actions from row `first` on.

    Parameters
    ----------
    actions : (k, 3) int64 ndarray
        Rows of a schedule; the step of an advance that is broken off is moved on.
    until_reverse : bool
        Whether to stop before the first step that is reversed.
    most : int
        Steps after which to come back.
    code : tuple of int
        Addresses of the forward and the reverse function, and of the tables.
    work : tuple of ndarray
        Values and adjoints of the kernel.
    places : tuple of ndarray
        Where the outputs stand among values, and among adjoints.
    sizes : tuple of int
        Floats of the state, active parameters, active and passive floats of a row of inputs, where passive ones begin, and adjoints to clear.
    state, after : (n,) ndarray
        The state at hand, and the one from which the step after was reversed.
    rows, passive : (n_steps, .) ndarray
        The inputs.
    outputs : (n_steps, .) or (0, .) ndarray
        Written by advances, if there are rows.
    snapshots : (memory, disk, place)
        See `Snapshots`.
    bars : (K, n) ndarray
        Adjoints of the state; updated. The others are those of parameters, inputs and outputs: (K, .), (K, n_steps, .), (K, n_steps, .).

    Returns
    -------
    row, why : int
    """
    memory, disk, place = snapshots
    outputs_at = places[0]
    n, n_params, n_rows = sizes[0], sizes[1], sizes[2]
    found = np.empty((bars.shape[0], n + n_params + n_rows))
    done = 0
    for row in range(first, actions.shape[0]):
        kind, step, other = actions[row]
        if kind == ADVANCE:
            for s in range(step, other):
                if done >= most:
                    actions[row, 1] = s
                    return row, WORKED
                if _forward(code, work, sizes, outputs_at, s, state, rows, passive) != 0:
                    actions[row, 1] = s
                    return row, REFUSED
                for i in range(n):
                    state[i] = work[0][outputs_at[i]]
                if outputs.shape[0] > 0:
                    for i in range(outputs.shape[1]):
                        outputs[s, i] = work[0][outputs_at[n + i]]
                done += 1
        elif kind == STORE:
            at = place[other]
            if at >= 0:
                _copy(state, memory[at])
            else:
                _copy(state, disk[-1 - at])
        elif kind == RESTORE:
            at = place[other]
            if at >= 0:
                _copy(memory[at], state)
            else:
                _copy(disk[-1 - at], state)
        elif kind == REVERSE:
            if until_reverse:
                return row, TO_REVERSE
            if done >= most:
                return row, WORKED
            if _forward(code, work, sizes, outputs_at, step, state, rows, passive) != 0:
                return row, REFUSED
            if not _is_same(work, outputs_at, after):
                return row, DIFFERS
            if _reverse(code, work, sizes, places[1], bars, outputs_bar[:, step], found) != 0:
                return row, REFUSED
            for k in range(found.shape[0]):
                for i in range(n):
                    bars[k, i] = found[k, i]
                for i in range(n_params):
                    params_bar[k, i] += found[k, n + i]
                for i in range(n_rows):
                    rows_bar[k, step, i] += found[k, n + n_params + i]
            _copy(state, after)
            done += 1
        else:
            assert kind == FREE
    return actions.shape[0], DONE

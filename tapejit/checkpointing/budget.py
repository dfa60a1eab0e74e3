"""What a loop under a schedule takes in memory, before it runs; and how many snapshots a budget has room for.

Counted is what the run allocates above the level at its start: snapshots, the step's tape or the memory of its kernel, adjoints, inputs and outputs,
and the schedule's own arrays. Compiled code is not: it stays in the process from the first call on.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from tapejit.checkpointing.schedules import fewest_advances
from tapejit.checkpointing.steps import Recorded, Step
from tapejit.errors import MemoryBudgetError, ScheduleError

__all__ = ["LoopPlan", "bytes_of", "checkpoints_within", "peak", "plan_loop", "reset_peak"]

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SCHEDULE = 32  # bytes a slot: where it is in the stack, what it holds, whether it is free, and its row
_FIXED = 1 << 20  # rows of actions, small arrays and Python's objects
_VECTORS = (
    14  # of the size of the state: at hand, the one after, the first, adjoints, what the results are copied through
)
_PARAMETERS = 8  # of the size of the active parameters: operands, values, adjoints, and temporaries
_RESULTS = 40  # bytes a float of the results: 17 on the tape, which grows in steps, and adjoints
_ROWS = 80  # bytes a float of the inputs: operands, values, rows, and adjoints of each
_TAPE = (
    2.5  # of the bytes of a recorded step: it grows in steps, and stands beside the one before until that is collected
)
_HUGE_PAGE = 2 << 20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def bytes_of(memory: int | str) -> int:
    """A budget in bytes.

    Parameters
    ----------
    memory : int or str
        Bytes, or a number with a unit: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB.

    Returns
    -------
    int

    Raises
    ------
    ScheduleError
        If it is neither.

    Examples
    --------
    >>> from tapejit.checkpointing.budget import bytes_of
    >>> bytes_of("64 MiB"), bytes_of("1.5 GB"), bytes_of(4096)
    (67108864, 1500000000, 4096)
    """
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]+)\s*", memory)
        if found and found[2] in _UNITS and found[1].count(".") <= 1 and found[1] != ".":
            return int(float(found[1]) * _UNITS[found[2]])
    elif isinstance(memory, int) and not isinstance(memory, bool) and memory > 0:
        return memory
    raise ScheduleError(f'memory is a number of bytes or a text such as "64 MiB", got {memory!r}')


def in_words(n_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError


@dataclass(frozen=True)
class LoopPlan:
    """What one loop takes.

    Attributes
    ----------
    n_steps : int or None
        None where it is not known.
    checkpoints : int
        Snapshots, the first state included.
    step_slots : int
        On the tape of one step.
    snapshot_bytes, step_bytes, data_bytes : int
        Of all snapshots; of the tape or the kernel of a step with values and adjoints; of inputs, outputs and vectors.
    advances : int or None
        Steps that are computed without being reversed, where `n_steps` is known.
    """

    n_steps: int | None
    checkpoints: int
    step_slots: int
    snapshot_bytes: int
    step_bytes: int
    data_bytes: int
    advances: int | None

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.snapshot_bytes + self.step_bytes + self.data_bytes

    def __str__(self) -> str:
        if self.n_steps is None or self.advances is None:
            steps = "a number of steps that is not known"
            advances = ""
        else:
            steps = f"{self.n_steps:,} steps"
            advances = f", {self.advances / max(1, self.n_steps):.2f} advances a step"
        return (
            f"loop of {steps}, {self.step_slots:,} slots each: {self.checkpoints:,} checkpoints{advances}\n"
            f"  {in_words(self.nbytes)}: snapshots {in_words(self.snapshot_bytes)}, one step {in_words(self.step_bytes)}, "
            f"inputs, outputs and adjoints {in_words(self.data_bytes)}"
        )


def plan_loop(step: Step, recorded: Recorded, n_steps: int | None, checkpoints: int, pairs: bool = False) -> LoopPlan:
    """What a loop takes with so many snapshots; of states together with their tangents if `pairs`."""
    if n_steps is not None:
        checkpoints = max(1, min(checkpoints, n_steps - 1))
    factor = 2 if pairs else 1
    advances = None if n_steps is None else fewest_advances(n_steps, checkpoints)
    return LoopPlan(
        n_steps,
        checkpoints,
        recorded.tape.n_slots,
        checkpoints * (8 * factor * step.state.size + _SCHEDULE),
        _step_bytes(step, recorded, pairs),
        _FIXED + factor * _data_bytes(step, n_steps or 0),
        advances,
    )


def _step_bytes(step: Step, recorded: Recorded, pairs: bool) -> int:
    tape = recorded.tape
    rounded = 5 * _HUGE_PAGE if tape.nbytes > 2 * _HUGE_PAGE else 0  # Large arrays come in whole pages.
    if step.kernel is not None and not pairs:
        return tape.nbytes + step.kernel.nbytes + rounded
    return tape.nbytes + 8 * tape.n_slots * (4 if pairs else 1) + rounded


def _data_bytes(step: Step, n_steps: int) -> int:
    floats = _RESULTS * (step.state.size + n_steps * step.n_outputs) + 8 * _PARAMETERS * step.n_params
    rows = n_steps * (_ROWS * step.n_rows + 8 * step.n_passive)
    return 8 * _VECTORS * step.state.size + floats + rows


def checkpoints_within(memory: int, step: Step, recorded: Recorded, n_steps: int | None, pairs: bool = False) -> int:
    """The most snapshots that a budget has room for.

    Raises
    ------
    MemoryBudgetError
        If there is no room for one; says what the smallest budget is.
    """
    one = plan_loop(step, recorded, n_steps, 1, pairs)
    if one.nbytes > memory:
        what = "a Hessian-vector product of this loop" if pairs else "this loop"
        raise MemoryBudgetError(
            f"{what} needs at least {one.nbytes:,} bytes ({math.ceil(one.nbytes / (1 << 20))} MiB), with 1 checkpoint; memory is {memory:,} bytes. "
            f"It takes {in_words(one.step_bytes)} for one step, and {in_words(one.data_bytes)} for inputs, outputs and adjoints"
        )
    room = 1 + (memory - one.nbytes) // one.snapshot_bytes
    return max(1, min(room, n_steps - 1)) if n_steps is not None else room


# What the process takes, where the system tells (Linux).


def reset_peak() -> int | None:
    """Forget the largest resident memory so far; gives the resident memory now, None where the system does not tell."""
    try:
        _CLEAR.write_text("5")
        return _resident("VmRSS")
    except OSError:
        return None


def peak() -> int | None:
    """The largest resident memory since `reset_peak`."""
    try:
        return _resident("VmHWM")
    except OSError:
        return None


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])

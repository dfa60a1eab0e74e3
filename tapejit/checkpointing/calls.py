"""A loop as one instruction of a tape: a run of results, and the operands that they depend on.

The kernels of the sweeps stop before it and go on behind it (`tapejit.sweeps`); what lies between is done here, by a `Run`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapejit.checkpointing.budget import peak
from tapejit.checkpointing.online import OnlineSchedule
from tapejit.checkpointing.plans import MemoryReport
from tapejit.checkpointing.runs import Numbers, Run, SecondOrderRun, push_forward
from tapejit.checkpointing.schedules import Schedule, binomial
from tapejit.checkpointing.steps import Step
from tapejit.parameters import static_key
from tapejit.recording.recorder import Tape

__all__ = ["LoopCall"]


class LoopCall:
    """A loop on a tape.

    Parameters
    ----------
    step : Step
    numbers : Numbers
        At the time of recording; what is passive in them stays.
    active_start : (n,) bool ndarray
        Which floats of the first state are operands.
    row_sizes : sequence of int
        Floats in a row of each active input.
    n_steps : int
        0 where it is not known.
    directory : str or path or None
    goes_on : callable or None

    Attributes
    ----------
    schedule : Schedule or OnlineSchedule
        To be set by the caller.
    pair_schedule : callable
        The schedule for states together with their tangents, where a budget has room for fewer of them.
    report : MemoryReport or None
        To be filled in after a reverse sweep.
    first, size : int
        The run of results: the floats of the last state, then the outputs, (n_steps, .); then, if there are static parts, whether they are as
        when recorded.
    operands : (k,) int64 ndarray
        Slots: the active floats of the first state, the active parameters, and the active inputs one after the other.
    """

    def __init__(
        self,
        step: Step,
        numbers: Numbers,
        active_start: np.ndarray,
        row_sizes: Sequence[int],
        n_steps: int,
        directory: Any = None,
        goes_on: Callable[[Any], bool] | None = None,
    ) -> None:
        self.step, self.numbers, self.active_start, self.row_sizes = step, numbers, active_start, row_sizes
        self.n_steps, self.directory, self.goes_on = n_steps, directory, goes_on
        self.schedule: Schedule | OnlineSchedule = binomial(n_steps, 1)
        self.pair_schedule: Callable[[], Schedule | OnlineSchedule] = lambda: self.schedule
        self.report: MemoryReport | None = None
        self.first = self.size = 0
        self.operands = np.zeros(0, np.int64)
        self._static_keys: list[Any] = []
        self._forwarded: tuple[np.ndarray, Run] | None = None  # operands, and a run that is ready to go back
        self._lock = threading.Lock()

    def start(self, operands: np.ndarray) -> tuple[np.ndarray, list[Any], np.ndarray]:
        """Run forwards: the last state, its static parts, and the outputs."""
        run = Run(self.step, self.numbers_at(operands), self.schedule, self.directory, self.goes_on)
        result = run.forward()
        self._forwarded = operands.copy(), run
        return result

    def place(
        self, tape: Tape, last: np.ndarray, static: list[Any], outputs: np.ndarray, is_planned: bool = False
    ) -> None:
        """Put the results on a tape. What is no float among them goes to Python code, which decides by it: a replay must find the same."""
        self._static_keys = [static_key(part) for part in static]
        values = [last, outputs.reshape(-1), np.ones(1 if static else 0)]
        self.first = tape.add_call(np.concatenate(values))
        self.size = last.size + outputs.size + (1 if static else 0)
        if not is_planned:
            tape.calls.append(self)
            if static:
                tape.guard([self.first + self.size - 1], [1.0])

    def _fill(self, numbers: np.ndarray, last: np.ndarray, outputs: np.ndarray, same: float) -> None:
        n = last.size + outputs.size
        run = numbers[self.first : self.first + self.size]
        run[: last.size], run[last.size : n], run[n:] = last, outputs.reshape(-1), same

    # Operands.

    def numbers_at(self, operands: np.ndarray) -> Numbers:
        """What a run begins with and reads, for these values of the operands."""
        return self._numbers(operands, self.numbers)

    def _numbers(self, operands: np.ndarray, passive: Numbers) -> Numbers:
        """The numbers of a run, or their tangents, from those of the operands; what is passive comes from elsewhere."""
        n_start, n_params = int(self.active_start.sum()), self.step.n_params
        start = passive.start.copy()
        start[self.active_start] = operands[:n_start]
        rows = np.empty((self.n_steps, self.step.n_rows))
        at, column = n_start + n_params, 0
        for size in self.row_sizes:
            part = operands[at : at + self.n_steps * size]
            rows[:, column : column + size] = part.reshape(self.n_steps, size)
            at, column = at + part.size, column + size
        return Numbers(start, passive.static, operands[n_start : n_start + n_params].copy(), rows, passive.passive)

    def _dots(self, tangent: np.ndarray) -> Numbers:
        zeros = Numbers(np.zeros(self.step.state.size), (), np.empty(0), np.empty(0), np.empty(0))
        return self._numbers(tangent[self.operands], zeros)

    def _operand_bars(self, bars: np.ndarray, params_bar: np.ndarray, rows_bar: np.ndarray) -> np.ndarray:
        """Adjoints of the operands, (K, k), from those of the first state, the parameters and the rows."""
        parts, column = [bars[:, self.active_start], params_bar], 0
        for size in self.row_sizes:
            parts.append(rows_bar[:, :, column : column + size].reshape(len(bars), -1))
            column += size
        return np.concatenate(parts, axis=1)

    def _result_bars(self, adjoint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adjoints (K, .) of the last state, and of the outputs, (K, n_steps, .); `adjoint` is (K, n_slots) or (n_slots,)."""
        bars = np.atleast_2d(adjoint)[:, self.first : self.first + self.size]
        n, n_outputs = self.step.state.size, self.n_steps * self.step.n_outputs
        outputs_bar = np.ascontiguousarray(bars[:, n : n + n_outputs])
        return np.ascontiguousarray(bars[:, :n]), outputs_bar.reshape(len(bars), self.n_steps, self.step.n_outputs)

    def _outputs(self, value: np.ndarray) -> np.ndarray:
        first, n_outputs = self.first + self.step.state.size, self.step.n_outputs
        return value[first : first + self.n_steps * n_outputs].reshape(self.n_steps, n_outputs)

    # What sweeps ask for.

    def forward(self, value: np.ndarray) -> None:
        """Run again, from other values of the operands."""
        last, static, outputs = self.start(value[self.operands])
        same = [static_key(part) for part in static] == self._static_keys
        self._fill(value, last, outputs, float(same))

    def tangent(self, value: np.ndarray, tangent: np.ndarray) -> None:
        """Fill in the tangents of the results."""
        numbers = self.numbers_at(value[self.operands])
        dot, outputs_dot = push_forward(self.step, numbers, self._dots(tangent), self.n_steps, self.goes_on)
        self._fill(tangent, dot, outputs_dot, 0.0)

    def reverse(self, value: np.ndarray, adjoint: np.ndarray) -> None:
        """Add to the adjoints of the operands; `adjoint` is (n_slots,) or (n_slots, K)."""
        bars, outputs_bar = self._result_bars(adjoint.T)
        if not bars.any() and not outputs_bar.any():
            return
        run = self._take_run(value[self.operands])
        found = self._operand_bars(*run.reverse(bars, outputs_bar, self._outputs(value)))
        np.add.at(adjoint, self.operands, found[0] if adjoint.ndim == 1 else found.T)
        if self.report is not None and self.report.before is not None:
            self.report.measured = (peak() or 0) - self.report.before

    def _take_run(self, operands: np.ndarray) -> Run:
        """A run from these numbers that has come to its end: the one that is left from going forwards, or a new one."""
        with self._lock:
            forwarded, self._forwarded = self._forwarded, None
        # Bit by bit: 0.0 and -0.0 are equal, but a step may tell them apart.
        if forwarded is not None and np.array_equal(forwarded[0].view(np.int64), operands.view(np.int64)):
            return forwarded[1]
        run = Run(self.step, self.numbers_at(operands), self.schedule, self.directory, self.goes_on)
        run.forward()
        return run

    def second_order(
        self, value: np.ndarray, tangent: np.ndarray, adjoint: np.ndarray, adjoint_tangent: np.ndarray
    ) -> None:
        """Add to the adjoints of the operands and to their tangents."""
        both = np.stack([adjoint, adjoint_tangent])
        bars, outputs_bar = self._result_bars(both)
        if not bars.any() and not outputs_bar.any():
            return
        with self._lock:
            self._forwarded = None  # Its snapshots would stand beside those of the pairs.
        numbers = self.numbers_at(value[self.operands])
        run = SecondOrderRun(
            self.step, numbers, self._dots(tangent), self.pair_schedule(), self.directory, self.goes_on
        )
        run.forward()
        found = self._operand_bars(*run.reverse(bars, outputs_bar, self._outputs(value)))
        np.add.at(adjoint, self.operands, found[0])
        np.add.at(adjoint_tangent, self.operands, found[1])

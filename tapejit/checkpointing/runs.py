"""A run of a loop under a schedule: forwards once, and back, with every step computed again where the schedule says so.

A run ends with its way back. Whoever wants to go back twice, or from other numbers, makes another run, and pays for its way forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tapejit.checkpointing import driver
from tapejit.checkpointing.online import OnlineSchedule
from tapejit.checkpointing.schedules import Schedule
from tapejit.checkpointing.snapshots import Snapshots
from tapejit.checkpointing.steps import Recorded, Step, not_deterministic, require_same
from tapejit.checkpointing.streams import ADVANCE, FREE, RESTORE, REVERSE, STORE

__all__ = ["Numbers", "Run", "SecondOrderRun", "push_forward"]

_FIRST_COMPARED = 64  # compiled steps before the function is asked again
_SLOTS_AT_A_TIME = 20_000_000  # of compiled steps before Python may handle signals: some 30 ms


class Numbers:
    """What a loop begins with, and reads on the way.

    Parameters
    ----------
    start : (n,) ndarray
        Floats of the first state.
    static : sequence
        Its other parts.
    params : (p,) ndarray
        Floats of the active parameters.
    rows, passive : (n_steps, .) ndarray
        Floats of the active and the passive inputs.
    """

    def __init__(
        self, start: np.ndarray, static: Sequence[Any], params: np.ndarray, rows: np.ndarray, passive: np.ndarray
    ) -> None:
        self.start, self.static, self.params, self.rows, self.passive = start, static, params, rows, passive


class Run:
    """One run of a loop.

    Parameters
    ----------
    step : Step
    numbers : Numbers
    schedule : Schedule or OnlineSchedule
        The latter with `goes_on`.
    directory : str or path, optional
        For snapshots on disk.
    goes_on : callable, optional
        Whether another step follows, of the state as plain numbers.

    Attributes
    ----------
    n_steps : int
        Known after `forward`.
    """

    def __init__(
        self,
        step: Step,
        numbers: Numbers,
        schedule: Schedule | OnlineSchedule,
        directory: Any = None,
        goes_on: Callable[[Any], bool] | None = None,
    ) -> None:
        self.step, self.numbers, self.schedule, self.goes_on = step, numbers, schedule, goes_on
        self.n_steps = schedule.n_steps if isinstance(schedule, Schedule) else 0
        self.vector, self.static = self._first(), list(numbers.static)
        self.params = step.plain_params(numbers.params)
        on_disk = schedule.on_disk if isinstance(schedule, Schedule) else frozenset()
        self.snapshots = Snapshots(schedule.n_slots, self.vector.size, on_disk, directory)
        self.outputs = np.empty((0, 0))
        self._blocks: Iterator[np.ndarray] = iter(())
        self._actions, self._row = np.empty((0, 3), np.int64), 0
        self._until_compared = _FIRST_COMPARED

    def _first(self) -> np.ndarray:
        return self.numbers.start.copy()

    # Forward.

    def forward(self) -> tuple[np.ndarray, list[Any], np.ndarray]:
        """The last state, its static parts, and the outputs of all steps, (n_steps, .)."""
        if self.goes_on is not None:
            self._forward_online()
        elif self.n_steps:
            self.outputs = np.empty((self.n_steps, self.step.n_outputs))
            self._blocks = self.schedule.blocks()  # type: ignore[union-attr]
            self._carry_out(until_reverse=True)
            at_hand = self.vector, self.static
            self.vector = self.vector.copy()
            self._advance(self.n_steps - 1)
            self.after, self.last = self.vector, self.static
            self.vector, self.static = at_hand
        else:
            self.after, self.last = self.vector, self.static
        self.after = self.after.copy()
        outputs, self.outputs = self.outputs, np.empty((0, 0))
        return self.after.copy(), self.last, outputs

    def _forward_online(self) -> None:
        assert self.goes_on is not None and isinstance(self.schedule, OnlineSchedule)
        state, run, s = self.step.state, self.schedule.start(), 0
        before, now = (self.vector, self.static), (self.vector, self.static)
        while self.goes_on(state.numbers(self._state_in(now[0]), now[1])):
            if s:
                for rows in run.blocks_to(s):
                    for kind, _, slot in rows.tolist():
                        if kind == STORE:
                            self.snapshots.store(slot, *before)
                        elif kind == FREE:
                            self.snapshots.free(slot)
            self.vector, self.static = now[0].copy(), now[1]
            self._advance(s)
            before, now, s = now, (self.vector, self.static), s + 1
        self.n_steps = s
        self.vector, self.static = before
        self.after, self.last = now
        if s:
            self._blocks = run.back().blocks()

    def _state_in(self, vector: np.ndarray) -> np.ndarray:
        return vector

    def _advance(self, s: int) -> None:
        """From state `s` to the next."""
        held = self._actions, self._row, self._blocks
        self._actions, self._row, self._blocks = np.array([[ADVANCE, s, s + 1]]), 0, iter(())
        try:
            self._carry_out(until_reverse=False)
        finally:
            self._actions, self._row, self._blocks = held

    # Back.

    def reverse(
        self, bars: np.ndarray, outputs_bar: np.ndarray, outputs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Adjoints of the first state (K, n), of the parameters (K, p) and of the rows of inputs (K, n_steps, .).

        Parameters
        ----------
        bars : (K, n) ndarray
            Adjoints of the last state.
        outputs_bar : (K, n_steps, .) ndarray
        outputs : (n_steps, .) ndarray
            What the steps gave on the way forward.
        """
        self.given = outputs
        k = len(bars)
        self.bars, self.outputs_bar = bars.copy(), outputs_bar
        if not self.step.n_outputs:
            self.outputs_bar = np.empty((k, self.n_steps, 0))
        self.params_bar = np.zeros((k, self.step.n_params))
        self.rows_bar = np.zeros((k, self.n_steps, self.step.n_rows))
        self._carry_out(until_reverse=False)
        return self.bars, self.params_bar, self.rows_bar

    # Actions.

    def _carry_out(self, until_reverse: bool) -> None:
        """Carry out actions to the end of the schedule, or up to the first step that is reversed."""
        while True:
            if self._row == len(self._actions):
                following = next(self._blocks, None)
                if following is None:
                    return
                self._actions, self._row = following, 0
            if self._is_driven:
                why = self._drive(until_reverse)
                if why == driver.WORKED:
                    self._compare(int(self._actions[self._row, 1]))
                if why == driver.DIFFERS:
                    raise not_deterministic(self.step.named(int(self._actions[self._row, 1])))
            else:
                why = driver.REFUSED
            if why == driver.REFUSED:
                if until_reverse and self._actions[self._row, 0] == REVERSE:
                    return
                self._one()
            elif why == driver.TO_REVERSE:
                return

    @property
    def _is_driven(self) -> bool:
        return self.step.kernel is not None

    def _compare(self, s: int) -> None:
        """Ask the function itself whether it still does in this step what was compiled; now and then, ever more seldom."""
        expected, _, output = self.step.values(self.vector, self.static, self.params, self.numbers.rows, s)
        require_same(self._recorded(self.vector, s).results, np.concatenate([expected, output]), self.step.named(s))
        self._until_compared *= 4

    def _drive(self, until_reverse: bool) -> int:
        step, numbers, made = self.step, self.numbers, self.step.kernel
        assert made is not None and made.linked is not None
        work = made.take()
        n, n_params = step.state.size, step.n_params
        k = len(self.bars) if hasattr(self, "bars") else 0
        nothing = np.empty((k, self.n_steps, 0))
        try:
            work.holds = None
            adjoint = work.add_adjoint(made) if work.adjoint is None else work.adjoint
            work.adjoint = None  # A reverse function that gives up, or an exception here, may leave anything in it.
            work.memory[n : n + n_params] = numbers.params
            self._row, why = driver.drive(
                self._actions,
                self._row,
                until_reverse,
                min(self._until_compared, max(1, _SLOTS_AT_A_TIME // (step.n_slots + 1))),
                (made.linked.address("forward"), made.linked.address("reverse"), made.tables.ctypes.data),
                (work.memory, adjoint),
                (n, n_params, step.n_rows, step.n_passive, made.parameters_at, made.adjoint_size),
                (made.outputs_at, made.output_adjoints_at),
                self.vector,
                self.after if k else self.vector,
                numbers.rows,
                numbers.passive,
                self.outputs,
                (self.snapshots.memory, self.snapshots.disk, self.snapshots.place),
                self.bars if k else np.empty((0, n)),
                self.params_bar if k else np.empty((0, n_params)),
                self.rows_bar if k else nothing,
                self.outputs_bar if k else nothing,
            )
            adjoint[: made.adjoint_size] = 0.0
            if why != driver.REFUSED:
                work.adjoint = adjoint
            return why
        finally:
            made.give(work)

    def _one(self) -> None:
        """Carry out one action in Python; of an advance one step."""
        kind, step, other = self._actions[self._row].tolist()
        if kind == ADVANCE:
            self._step_forward(step)
            if step + 1 < other:
                self._actions[self._row, 1] = step + 1
                return
        elif kind == STORE:
            self.snapshots.store(other, self.vector, self.static)
        elif kind == RESTORE:
            self.vector, static = self.snapshots.restore(other)
            self.static = list(static)
        elif kind == REVERSE:
            self._step_back(step)
        else:
            self.snapshots.free(other)
        self._row += 1

    def _step_forward(self, s: int) -> None:
        numbers = self.numbers
        self.vector, self.static, output = self.step.values(self.vector, self.static, self.params, numbers.rows, s)
        if len(self.outputs):
            if self.outputs.shape[1] != output.size:  # The first step shows what the outputs are.
                self.outputs = np.empty((self.n_steps, output.size))
            self.outputs[s] = output

    def _recorded(self, vector: np.ndarray, s: int) -> Recorded:
        numbers = self.numbers
        return self.step.at(vector, self.static, numbers.params, numbers.rows, numbers.passive, s)

    def _step_back(self, s: int) -> None:
        recorded = self._recorded(self.vector, s)
        n, n_params = self.step.state.size, self.step.n_params
        if self.step.kernel is None and n:
            again, _, _ = self.step.values(self.vector, self.static, self.params, self.numbers.rows, s)
            if not np.array_equal(again, self.after, equal_nan=True):
                raise not_deterministic(self.step.named(s))
        require_same(recorded.results[:n], self.after, self.step.named(s))
        if self.step.n_outputs:
            require_same(recorded.results[n:], self.given[s], self.step.named(s))
        seeds = np.concatenate([self.bars, self.outputs_bar[:, s]], axis=1)
        found = recorded.pull_back(seeds)
        self.bars[:] = found[:, :n]
        self.params_bar += found[:, n : n + n_params]
        self.rows_bar[:, s] += found[:, n + n_params :]
        self.after = self.vector.copy()  # The driver writes into `vector`.


class SecondOrderRun(Run):
    """A run of a loop together with its tangent: its snapshots are pairs of a state and its tangent, its way back gives adjoints and their tangents.

    Parameters
    ----------
    dots : Numbers
        Tangents of the first state, the parameters and the inputs.
    """

    def __init__(self, step: Step, numbers: Numbers, dots: Numbers, *args: Any) -> None:
        self.dots = dots
        super().__init__(step, numbers, *args)

    def _first(self) -> np.ndarray:
        return np.concatenate([self.numbers.start, self.dots.start])

    @property
    def _is_driven(self) -> bool:
        return False

    def _state_in(self, vector: np.ndarray) -> np.ndarray:
        return vector[: self.step.state.size]

    def _dots_at(self, s: int) -> np.ndarray:
        rows = self.dots.rows[s] if self.step.n_rows else np.empty(0)
        return np.concatenate([self.vector[self.step.state.size :], self.dots.params, rows])

    def _step_forward(self, s: int) -> None:
        n = self.step.state.size
        recorded = self._recorded(self.vector[:n], s)
        dots, _ = recorded.push_forward(self._dots_at(s))
        self.vector = np.concatenate([recorded.results[:n], dots[:n]])
        self.static = recorded.static

    def _step_back(self, s: int) -> None:
        n, n_params = self.step.state.size, self.step.n_params
        recorded = self._recorded(self.vector[:n], s)
        require_same(recorded.results[:n], self.after[:n], self.step.named(s))
        if self.step.n_outputs:
            require_same(recorded.results[n:], self.given[s], self.step.named(s))
        seeds = np.concatenate([self.bars, self.outputs_bar[:, s]], axis=1)
        found = np.stack(recorded.pull_back_twice(self._dots_at(s), seeds[0], seeds[1]))
        self.bars[:] = found[:, :n]
        self.params_bar += found[:, n : n + n_params]
        self.rows_bar[:, s] += found[:, n + n_params :]
        self.after = self.vector


def push_forward(
    step: Step, numbers: Numbers, dots: Numbers, n_steps: int, goes_on: Callable[[Any], bool] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tangents of the last state, (n,), and of the outputs, (n_steps, .)."""
    n = step.state.size
    vector, static, dot = numbers.start, list(numbers.static), dots.start
    outputs_dot = np.empty((n_steps, step.n_outputs))
    s = 0
    while s < n_steps if goes_on is None else goes_on(step.state.numbers(vector, static)):
        recorded = step.at(vector, static, numbers.params, numbers.rows, numbers.passive, s)
        rows = dots.rows[s] if step.n_rows else np.empty(0)
        results_dot, _ = recorded.push_forward(np.concatenate([dot, dots.params, rows]))
        vector, static, dot = recorded.results[:n].copy(), recorded.static, results_dot[:n]
        if step.n_outputs:
            outputs_dot[s] = results_dot[n:]
        s += 1
    return dot, outputs_dot

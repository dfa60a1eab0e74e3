"""Loops that are named, so that their reverse sweep keeps a few states and computes the others again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapejit.calls import check_callable, is_compiled
from tapejit.checkpointing.budget import LoopPlan, bytes_of, checkpoints_within, plan_loop, reset_peak
from tapejit.checkpointing.calls import LoopCall
from tapejit.checkpointing.context import local
from tapejit.checkpointing.online import OnlineSchedule
from tapejit.checkpointing.plans import MemoryReport
from tapejit.checkpointing.runs import Numbers
from tapejit.checkpointing.schedules import Schedule, binomial, whole_number
from tapejit.checkpointing.steps import (
    Recorded,
    Step,
    Table,
    detached,
    not_deterministic,
    output_structure,
    require_same,
    table_of,
)
from tapejit.checkpointing.structures import Leaf, Structure, active_leaf, plain_copy, plain_of, without_decisions
from tapejit.errors import ScheduleError, ShapeError, TapeError, UnsupportedError
from tapejit.native import native
from tapejit.recording.array import Array, actives, is_active, lift_array
from tapejit.recording.recorder import Tape, innermost, is_debugging, open_tapes
from tapejit.recording.variable import Variable

__all__ = ["loop", "while_loop"]

_WORTH_COMPILING = 2_000_000  # slots of all steps together
_FEWEST_STEPS = 100
_ONLINE = 1000  # snapshots of a loop whose end is not known


def loop(
    step: Callable,
    state: Any,
    n_steps: int,
    *params: Any,
    inputs: Any = None,
    outputs: bool = False,
    checkpoints: int | None = None,
    memory: int | str | None = None,
    schedule: Schedule | None = None,
    directory: Any = None,
    compile: bool | None = None,
) -> Any:
    """Apply `step` to a state `n_steps` times: ``for _ in range(n_steps): state = step(state, *params)``, with a reverse sweep of bounded memory.

    With plain numbers this is that loop. Inside a function that is differentiated, the tape keeps nothing of the steps: the loop stands there
    as one instruction, which keeps `checkpoints` of the states on its way forward. In the reverse sweep one step at a time is
    recorded (or run by machine code), from a state that was kept or is computed again. The number of checkpoints changes memory and
    time, never the result: derivatives have the same bits whatever it is.

    Parameters
    ----------
    step : callable
        ``step(state, *params)`` returns the next state, of the same structure, shapes and dtypes. Python, NumPy or compiled by Numba. It
        must depend on nothing but its arguments, and on what never changes; an active value that it needs is passed in `params`. What it leaves
        behind besides its result, in a list outside for instance, has no derivative.
    state : float, array, or tuple, list or dict of them, nested
        The first state. Integers, booleans, strings and arrays of them in it are carried along, without derivative.
    n_steps : int
    *params
        More arguments, the same for all steps; nested as well.
    inputs : array, or tuple, list or dict of arrays, optional
        One row for each step: step `s` is called as ``step(state, inputs[s], *params)``, leaf by leaf.
    outputs : bool
        Whether a step returns ``(state, output)``. The outputs of all steps are then stacked, leaf by leaf, along a first axis.
    checkpoints : int, optional
        How many states may be kept, the first one included: `tapejit.checkpointing.binomial`. All of them if not given.
    memory : int or str, optional
        A budget, as in ``"64 MiB"``, in the place of `checkpoints`: what the loop may allocate from its start to the end of a gradient's reverse
        sweep, or of the sweep of a Hessian-vector product. As many states are kept as there is room for.
    schedule : Schedule, optional
        A schedule for this number of steps, in the place of `checkpoints`.
    directory : path, optional
        Where the file with the snapshots of a schedule with slots on disk is made.
    compile : bool, optional
        Whether to make machine code of the step. By default if the loop is long enough, and without a word where that is not possible.

    Returns
    -------
    state
        The last state, or ``(state, outputs)``.

    Raises
    ------
    ShapeError
        If the structure, a shape or a dtype of the state changes; names the part.
    DeterminismError
        From a derivative: if a step gives something else when it is computed again.
    MemoryBudgetError
        If the budget is too small; says what the smallest is. Or if there is no room on the disk.
    UnsupportedError
        If a step uses an active value that it was not given.
    ScheduleError
        If a schedule is for another number of steps.

    Notes
    -----
    Inside nested transforms (``tj.grad(tj.grad(f))``) and under `debug` the steps are recorded one after the other on the tape, whole. `hvp` and
    `hessian` are checkpointed.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> def orbit(x, rate):
    ...     return rate * x * (1.0 - x)
    >>> tj.value_and_grad(lambda rate: tj.loop(orbit, 0.3, 1000, rate, checkpoints=10))(3.2)
    (0.7994554904673701, 0.28148215807205...)

    An exponential average of a series, with all averages on the way:

    >>> def average(mean, x, weight):
    ...     mean = mean + weight * (x - mean)
    ...     return mean, mean
    >>> last, means = tj.loop(average, 0.0, 3, 0.5, inputs=np.array([4.0, 8.0, 8.0]), outputs=True)
    >>> last, means
    (6.5, array([2. , 5. , 6.5]))
    """
    check_callable(step)
    options = _Options(checkpoints, memory, schedule, directory, compile)
    n_steps = whole_number(n_steps, "n_steps", 0)
    if schedule is not None and schedule.n_steps != n_steps:
        raise ScheduleError(f"the schedule is for {schedule.n_steps} steps, but the loop has {n_steps}")
    if schedule is not None and schedule.on_disk and directory is None:
        raise ScheduleError("the schedule has slots on disk: name a directory for them")
    loop = _Loop(step, state, params, inputs, n_steps, outputs)
    return loop.run(options)


def while_loop(
    goes_on: Callable[[Any], bool],
    step: Callable,
    state: Any,
    *params: Any,
    checkpoints: int | None = None,
    memory: int | str | None = None,
    compile: bool = False,
) -> Any:
    """Apply `step` to a state as long as ``goes_on(state)``: a loop whose end is not known, with a reverse sweep of bounded memory.

    ``while goes_on(state): state = step(state, *params)``. The states that are kept are replaced on the way, so that they are well placed
    wherever the loop ends (`tapejit.checkpointing.online`). The number of steps is not differentiated: it is as if the loop had been written out.

    Parameters
    ----------
    goes_on : callable
        Takes the state, as plain numbers; says whether another step follows. An active value that it needs is in the state.
    step : callable
        ``step(state, *params)`` returns the next state; see `loop`.
    state
        The first state.
    *params
        More arguments of `step`.
    checkpoints : int, optional
        How many states may be kept, the first one included; 1000 if not given.
    memory : int or str, optional
        A budget in the place of `checkpoints`; see `loop`.
    compile : bool
        Whether to make machine code of the step.

    Returns
    -------
    state
        The last state.

    Examples
    --------
    The square root by Newton's method, and its derivative:

    >>> import tapejit as tj
    >>> def root(a):
    ...     return tj.while_loop(lambda x: abs(x * x - 2.0) > 1e-12, lambda x, a: 0.5 * (x + a / x), 1.0, a)
    >>> tj.value_and_grad(root)(2.0)
    (1.414213562373095, 0.35355339059327...)
    """
    check_callable(step)
    check_callable(goes_on)
    options = _Options(checkpoints, memory, None, None, compile)
    loop = _Loop(step, state, params, None, 0, False, goes_on)
    return loop.run(options)


@dataclass
class _Options:
    """How a loop is to be run."""

    checkpoints: int | None
    memory: int | str | None
    schedule: Schedule | None
    directory: Any
    compile: bool | None
    before: int | None = None  # resident memory at the start

    def __post_init__(self) -> None:
        given = [name for name in ("checkpoints", "memory", "schedule") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ScheduleError(f"pass one of checkpoints, memory and schedule, got {' and '.join(given)}")
        if self.checkpoints is not None:
            whole_number(self.checkpoints, "checkpoints", 1)
        if self.memory is not None:
            bytes_of(self.memory)
            self.before = reset_peak()
        elif local.planned is not None and not given:
            self.memory = local.memory


class _Loop:
    """The arguments of a loop taken apart."""

    def __init__(
        self,
        f: Callable,
        state: Any,
        params: tuple,
        inputs: Any,
        n_steps: int,
        has_outputs: bool,
        goes_on: Callable[[Any], bool] | None = None,
    ) -> None:
        self.f, self.n_steps, self.goes_on, self.has_outputs = f, n_steps, goes_on, has_outputs
        self.state = Structure(state, "state")
        self.start, self.static = self.state.parts(state, "")
        self.params = table_of(params, "params")
        self.inputs = None if inputs is None else table_of(inputs, "inputs")
        if self.inputs is not None:
            self._check_rows(self.inputs)
        tables = [self.params] + ([] if self.inputs is None else [self.inputs])
        self.active = [x for x in self.start if is_active(x)]
        self.active += [x for table in tables for x, is_one in zip(table.floats, table.active, strict=True) if is_one]
        self.active = [part for x in self.active for part in actives(x)]

    def _check_rows(self, table: Table) -> None:
        rows = [(leaf.path, leaf.shape) for leaf in table.structure.leaves]
        rows += [(f"{table.structure.name} (a part that is no float)", np.shape(part)) for part in table.static]
        for path, shape in rows:
            if not shape or shape[0] != self.n_steps:
                raise ShapeError(
                    f"{path} has shape {shape or ()}, but the loop has {self.n_steps} steps; pass one row for each step"
                )

    def run(self, options: _Options) -> Any:
        """Run the loop, recorded if something active goes into it."""
        if not self.active:
            return self.plainly()
        tape = innermost(self.active)
        if len(open_tapes()) > 1 and options.memory is not None:
            raise UnsupportedError(
                "a loop with memory= keeps no budget inside of nested transforms, which record every step; use tj.hvp and tj.hessian, which do, or "
                "leave memory= out"
            )
        if len(open_tapes()) > 1 or is_debugging():
            return self.plainly()
        return self.recorded(tape, options)

    # Without a tape of its own.

    def plainly(self) -> Any:
        """Run the loop as it is, on whatever it is given."""
        f = native(self.f) if is_compiled(self.f) else self.f
        start = [x.copy() if isinstance(x, (np.ndarray, Array)) else x for x in self.start]  # A step may write into it.
        state = self.state.build(_each(start), [plain_copy(part) for part in self.static])
        params = self.params.structure.build(_each(self.params.floats), self.params.static)
        collected: list[Any] = []
        s = 0
        while s < self.n_steps if self.goes_on is None else self.goes_on(plain_of(state)):
            row: tuple = ()
            if self.inputs is not None:
                rows, static = [_row_of(x, s) for x in self.inputs.floats], [x[s] for x in self.inputs.static]
                row = (self.inputs.structure.build(_each(rows), static),)
            result = f(state, *row, *params)
            if self.has_outputs:
                if not isinstance(result, tuple) or len(result) != 2:
                    raise ShapeError(f"with outputs=True a step returns (state, output), got {type(result).__name__}")
                result, output = result
                collected.append(
                    _copy_of(output)
                )  # A step may write into what it has given, if that is its state as well.
            self.state.parts(result, f"changes in step {s}")
            state, s = result, s + 1
        if not self.has_outputs:
            return state
        return state, _stacked(collected)

    # As one instruction of a tape.

    def recorded(self, tape: Tape, options: _Options) -> Any:
        """Run forwards under a schedule, and record that."""
        inputs = self.inputs.without_decisions() if self.inputs is not None else None
        step = Step(self.f, self.state, self.params.without_decisions(), inputs, self.has_outputs)
        active_start = np.zeros(self.state.size, bool)
        for leaf, number in zip(self.state.leaves, self.start, strict=True):
            active_start[leaf.start : leaf.start + leaf.size] = is_active(number)
        row_sizes = [step.row_size(i) for i in self.inputs.leaves(True)] if self.inputs else []
        operands = [x for x in self.start if is_active(x)]
        for table in (self.params, self.inputs):
            operands += [table.floats[i] for i in table.leaves(True)] if table is not None else []
        static = [without_decisions(part) for part in self.static]
        passive = self._passive_rows(step, options.compile)
        numbers = Numbers(self.state.vector(self.start), static, np.empty(0), np.empty(0), passive)
        goes_on = None if self.goes_on is None else _on_plain_numbers(self.goes_on)
        call = LoopCall(step, numbers, active_start, row_sizes, self.n_steps, options.directory, goes_on)
        call.operands = np.concatenate([lift_array(tape, x).slots().reshape(-1).astype(np.int64) for x in operands])
        values = tape.value[call.operands]
        first_step = self._prepare(step, call.numbers_at(values), options.compile, goes_on)
        call.schedule, planned = self._chosen(options, step, first_step)
        if options.memory is not None and first_step is not None:
            call.pair_schedule = lambda: self._chosen(options, step, first_step, pairs=True)[0]
        if local.planned is None:
            if options.memory is not None and planned is not None:
                call.report = local.report = MemoryReport(planned, bytes_of(options.memory), before=options.before)
            last, static, outputs = call.start(values)
        else:
            local.planned += [] if planned is None else [planned]
            last, outputs = call.numbers_at(values).start, np.zeros((self.n_steps, step.n_outputs))
        call.place(tape, last, static, outputs, is_planned=local.planned is not None)
        result = self.state.build(lambda leaf: active_leaf(tape, call.first, leaf), static)
        if not self.has_outputs:
            return result
        if step.outputs is None:
            return result, None
        return result, step.outputs.build(lambda leaf: self._output_leaf(tape, call.first + last.size, step, leaf), [])

    def _chosen(
        self, options: _Options, step: Step, first_step: Recorded | None, pairs: bool = False
    ) -> tuple[Schedule | OnlineSchedule, LoopPlan | None]:
        """The schedule that was asked for, and what it takes."""
        n_steps = self.n_steps if self.goes_on is None else None
        if options.schedule is not None:
            schedule: Schedule | OnlineSchedule = options.schedule
            checkpoints = options.schedule.n_slots - len(options.schedule.on_disk)
        else:
            if options.memory is not None and first_step is not None:
                checkpoints = checkpoints_within(bytes_of(options.memory), step, first_step, n_steps, pairs)
            elif options.checkpoints is not None:
                checkpoints = options.checkpoints
            else:
                checkpoints = _ONLINE if n_steps is None else max(1, n_steps)
            schedule = OnlineSchedule(checkpoints) if n_steps is None else binomial(n_steps, checkpoints)
        return schedule, None if first_step is None else plan_loop(step, first_step, n_steps, checkpoints, pairs)

    def _passive_rows(self, step: Step, compile: bool | None) -> np.ndarray:
        parts = (
            [self.inputs.floats[i].reshape(self.n_steps, step.row_size(i)) for i in self.inputs.leaves(False)]
            if self.inputs
            else []
        )
        if not parts or compile is False:
            return np.empty((self.n_steps, 0))
        return np.ascontiguousarray(np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0])

    def _prepare(
        self, step: Step, numbers: Numbers, compile: bool | None, goes_on: Callable[[Any], bool] | None
    ) -> Recorded | None:
        """Try the first step, and compile it where that pays; gives its recording, None if there is no first step."""
        if self.n_steps == 0 and (goes_on is None or not goes_on(self.state.numbers(numbers.start, numbers.static))):
            return None
        params = step.plain_params(numbers.params)
        first, static, output = step.values(numbers.start, numbers.static, params, numbers.rows, 0)
        arguments = (numbers.start, numbers.static, numbers.params, numbers.rows, numbers.passive)

        def pays(n_slots: int) -> bool:
            return bool(compile) or self.n_steps * n_slots >= _WORTH_COMPILING

        if compile or (compile is None and self.n_steps >= _FEWEST_STEPS):
            step.compile(*arguments, pays)
        if step.kernel is None:
            recorded = step.record(*arguments, 0)
            require_same(recorded.results, np.concatenate([first, output]), step.named(0))
            return recorded
        # A kernel computes what was recorded, the same in every step. So the function is asked twice whether it does.
        again, _, output_again = step.values(numbers.start, numbers.static, params, numbers.rows, 0)
        if not np.array_equal(again, first, equal_nan=True) or not np.array_equal(output_again, output, equal_nan=True):
            raise not_deterministic(step.named(0))
        for s, vector in ((0, numbers.start), (max(0, self.n_steps - 1), first)):
            expected, _, output = step.values(vector, static, params, numbers.rows, s)
            found = step.at(vector, static, numbers.params, numbers.rows, numbers.passive, s)
            require_same(found.results, np.concatenate([expected, output]), step.named(s))
        return step.replayed

    def _output_leaf(self, tape: Tape, first: int, step: Step, leaf: Leaf) -> Any:
        """The outputs of all steps, of one leaf."""
        shape = (self.n_steps, *(leaf.shape or ()))
        if leaf.size == step.n_outputs:
            return Array.of_run(tape, first, shape)
        slots = first + np.arange(self.n_steps)[:, None] * step.n_outputs + leaf.start + np.arange(leaf.size)
        return Array.of_slots(tape, slots.reshape(shape))


def _row_of(x: Any, s: int) -> Any:
    row = x[s]
    return float(row) if isinstance(row, float) else row


def _each(parts: Sequence[Any]) -> Callable[[Leaf], Any]:
    following = iter(parts)
    return lambda leaf: next(following)


def _on_plain_numbers(goes_on: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A stop test that must not ask for active values: those of a recording would decide in its replays as well."""

    def test(state: Any) -> bool:
        with detached():
            try:
                found = goes_on(state)
                if not is_active(found):
                    return bool(found)
            except TapeError as error:
                raise UnsupportedError(f"{message} ({error})") from error
        raise UnsupportedError(message)

    message = "the stop test of tj.while_loop uses an active value that is not in the state: put it into the state, or pass tj.value(x)"
    return test


def _copy_of(x: Any) -> Any:
    structure = output_structure(x)
    floats, static = structure.parts(x, "")
    return structure.build(
        _each([part if isinstance(part, (float, Variable)) else part.copy() for part in floats]), static
    )


def _stacked(outputs: list[Any]) -> Any:
    """The outputs of all steps, leaf by leaf along a first axis."""
    if not outputs:
        return None
    structure = Structure(outputs[0], "output")
    columns: list[list[Any]] = [[] for _ in structure.leaves]
    for s, output in enumerate(outputs):
        for column, part in zip(columns, structure.parts(output, f"changes in step {s}")[0], strict=True):
            column.append(part)
    stacked = [
        lift_array(innermost(actives(column)), column) if is_active(column) else np.array(column) for column in columns
    ]
    return structure.build(_each(stacked), [])

"""One step of a loop: run on plain numbers, recorded on a tape of its own, or compiled.

A step is a function of its state, of its row of the inputs and of the parameters. What a derivative is taken by are the floats of the state and
the *active* ones among parameters and inputs: in this order they are the inputs of the step's tape. Passive parameters are the same in all
steps, and stay plain; passive rows of inputs are parameters of the tape where it is replayed, and plain where it is recorded for each step.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapejit import ops, sweeps
from tapejit.calls import is_compiled
from tapejit.checkpointing.context import local
from tapejit.checkpointing.structures import Leaf, Structure, plain_copy, plain_of, without_decisions
from tapejit.compiler.kernel import MAX_COMPILE_SECONDS, Kernel, compile_tape
from tapejit.errors import DeterminismError, ShapeError, TapeError, TapejitError, UnsupportedError
from tapejit.parameters import static_key
from tapejit.recording.array import Array, is_active, lift_array
from tapejit.recording.recorder import Tape, open_tapes
from tapejit.recording.variable import Variable

__all__ = ["Recorded", "Step", "Table", "detached", "not_deterministic", "output_structure", "require_same", "table_of"]

_MOST_KERNELS = 16
_RTOL = 1e-9
_kernels: dict[bytes, Kernel] = {}
_kernels_lock = threading.Lock()


@dataclass
class Table:
    """Values that differ from step to step, or not: their structure, which leaves are active, and the numbers.

    Attributes
    ----------
    structure : Structure
        Of all steps together for inputs, whose leaves then have a leading axis, the step.
    active : list of bool
        One entry a leaf.
    floats, static : list
        The plain leaves.
    """

    structure: Structure
    active: list[bool]
    floats: list[Any]
    static: list[Any]

    def without_decisions(self) -> Table:
        """With plain booleans for active ones, as steps are recorded on tapes of their own."""
        return Table(self.structure, self.active, self.floats, [without_decisions(part) for part in self.static])

    def leaves(self, active: bool) -> list[int]:
        return [i for i, is_one in enumerate(self.active) if is_one == active]


def table_of(x: Any, name: str) -> Table:
    """The parameters or the inputs of a loop; plain arrays are copied, as the caller may change them as soon as the loop has been recorded."""
    structure = Structure(x, name, is_result=False)
    floats, static = structure.parts(x, "")
    active = [is_active(part) for part in floats]
    own = [part if is_one else _own(part) for part, is_one in zip(floats, active, strict=True)]
    return Table(structure, active, own, [_own(part) if isinstance(part, np.ndarray) else part for part in static])


def _own(x: Any) -> Any:
    if not isinstance(x, np.ndarray):
        return float(x)
    copied = x.copy()
    copied.flags.writeable = False
    return copied


class Step:
    """The step function of a loop, with everything about it that does not change from step to step.

    Parameters
    ----------
    f : callable
    state : Structure
    params : Table
        Of the tuple of parameters.
    inputs : Table or None
    has_outputs : bool
        Whether `f` returns ``(state, output)``.
    """

    def __init__(self, f: Callable, state: Structure, params: Table, inputs: Table | None, has_outputs: bool) -> None:
        self.f, self.state, self.params, self.inputs, self.has_outputs = f, state, params, inputs, has_outputs
        self.is_compiled = is_compiled(f)
        self.outputs: Structure | None = None
        self.n_params = sum(params.structure.leaves[i].size for i in params.leaves(True))
        self.n_rows = sum(self.row_size(i) for i in inputs.leaves(True)) if inputs else 0
        self.n_passive = sum(self.row_size(i) for i in inputs.leaves(False)) if inputs else 0
        self.n_active = state.size + self.n_params + self.n_rows
        self.kernel: Kernel | None = None
        self.n_slots = 0  # of the tape that was compiled
        self.replayed: Recorded | None = None

    @property
    def n_outputs(self) -> int:
        return 0 if self.outputs is None else self.outputs.size

    def row_size(self, i: int) -> int:
        assert self.inputs is not None
        leaf = self.inputs.structure.leaves[i]
        assert leaf.shape is not None
        return int(np.prod(leaf.shape[1:], dtype=np.int64))

    # What errors say.

    def named(self, s: int) -> str:
        """What errors call this step."""
        return f"step {s}"

    def closure(self, error: Exception | None) -> UnsupportedError:
        return UnsupportedError(
            "a step uses an active value that it was not given: pass what it depends on as state, inputs or *params of the loop"
            + (f" ({error})" if error else "")
        )

    # What the function is called with.

    def _params(self, take: Callable[[Leaf], Any]) -> tuple:
        """The parameters, the active ones from `take`, which is given their place among the active ones."""
        table, start = self.params, 0
        made = []
        for i, leaf in enumerate(table.structure.leaves):
            if table.active[i]:
                made.append(take(Leaf(leaf.path, leaf.shape, start)))
                start += leaf.size
            else:
                made.append(table.floats[i])
        leaves = iter(made)
        return table.structure.build(lambda leaf: next(leaves), table.static)

    def _row(self, s: int, take: Callable[[Leaf], Any], take_passive: Callable[[Leaf], Any] | None = None) -> tuple:
        """The inputs of one step, in a tuple; empty if there are none."""
        table = self.inputs
        if table is None:
            return ()
        starts = {True: 0, False: 0}
        made = []
        for i, leaf in enumerate(table.structure.leaves):
            assert leaf.shape is not None
            kind = table.active[i]
            row = Leaf(leaf.path, leaf.shape[1:] or None, starts[kind])
            starts[kind] += row.size
            if kind:
                made.append(take(row))
            elif take_passive is not None:
                made.append(take_passive(row))
            else:
                number = table.floats[i][s]
                made.append(number.copy() if np.ndim(number) else float(number))
        leaves = iter(made)
        return (table.structure.build(lambda leaf: next(leaves), [part[s] for part in table.static]),)

    def plain_params(self, numbers: np.ndarray) -> tuple:
        """The parameters as plain numbers, which a step must not change."""
        return self._params(_plain(numbers, writable=self.is_compiled))

    def values(
        self, vector: np.ndarray, static: Sequence[Any], params: tuple, rows: np.ndarray, s: int
    ) -> tuple[np.ndarray, list[Any], np.ndarray]:
        """The next state, the static parts of it and of the output, and the output, by a plain call of the function."""
        state = self.state.numbers(vector, static)
        row = self._row(s, _plain(rows[s] if self.n_rows else rows))
        with detached():
            try:
                result = self.f(state, *row, *params)
            except TapeError as error:
                raise self.closure(error) from error
        state, output = self._apart(result)
        following, now = self.state.parts(state, f"changes in step {s}")
        self._refuse_active(following)
        numbers, more = self._output(output, s)
        return self.state.vector(following), now + more, numbers

    def _apart(self, result: Any) -> tuple[Any, Any]:
        if not self.has_outputs:
            return result, None
        if not isinstance(result, tuple) or len(result) != 2:
            raise ShapeError(f"with outputs=True a step returns (state, output), got {type(result).__name__}")
        return result

    def _output(self, output: Any, s: int) -> tuple[np.ndarray, list[Any]]:
        if not self.has_outputs:
            return np.empty(0), []
        if self.outputs is None:
            self.outputs = self._output_structure(output)
        floats, static = self.outputs.parts(output, f"changes in step {s}")
        self._refuse_active(floats)
        return self.outputs.vector(floats), static

    def _output_structure(self, output: Any) -> Structure:
        return output_structure(output)

    def _refuse_active(self, floats: Sequence[Any]) -> None:
        if any(map(is_active, floats)):
            raise self.closure(None)

    # Recording.

    def record(
        self,
        vector: np.ndarray,
        static: Sequence[Any],
        params: np.ndarray,
        rows: np.ndarray,
        passive: np.ndarray,
        s: int,
        replayed: bool = False,
    ) -> Recorded:
        """The step on a tape of its own."""
        n, n_params = self.state.size, self.n_params
        numbers = np.concatenate([vector, params, rows[s] if self.n_rows else np.empty(0)])
        tape = Tape()
        tape.short_lived, tape.is_step = not replayed, replayed
        with detached(), tape:
            tape.add_input(numbers)

            def take_from(first: int, source: np.ndarray) -> Callable[[Leaf], Any]:
                def take(leaf: Leaf) -> Any:
                    if leaf.shape is None:
                        return Variable(tape, first + leaf.start, float(source[leaf.start]))
                    return Array.of_run(tape, first + leaf.start, leaf.shape) if leaf.size else np.zeros(leaf.shape)

                return take

            take_passive = None
            if replayed and self.n_passive:
                take_passive = take_from(tape.add_parameter(passive[s]), passive[s])
            state = self.state.build(take_from(1, numbers), [plain_copy(part) for part in static])
            row = self._row(s, take_from(1 + n + n_params, numbers[n + n_params :]), take_passive)
            arguments = (state, *row, *self._params(take_from(1 + n, params)))
            try:
                if self.is_compiled:
                    from tapejit.recording.native.calls import call

                    result = call(tape, self.f, arguments, {}, keeps_guards=replayed)
                else:
                    result = self.f(*arguments)
                state, output = self._apart(result)
                floats, now = self.state.parts(state, f"changes in step {s}")
                if self.has_outputs and self.outputs is not None:
                    floats += self.outputs.parts(output, f"changes in step {s}")[0]
                slots = [lift_array(tape, number).slots().reshape(-1) for number in floats]
            except TapeError as error:
                if isinstance(error, (ShapeError, UnsupportedError)):
                    raise
                raise self.closure(error) from error
            if tape.links:
                raise self.closure(None)
        outputs = np.concatenate(slots).astype(np.int64) if slots else np.zeros(0, np.int64)
        tape.output_slots = outputs
        return Recorded(tape, tape.value, outputs, now)

    def compile(
        self,
        vector: np.ndarray,
        static: Sequence[Any],
        params: np.ndarray,
        rows: np.ndarray,
        passive: np.ndarray,
        wanted: Callable[[int], bool],
    ) -> str:
        """Make machine code of the step as it is recorded here; gives the reason why there is none.

        Parameters
        ----------
        wanted : callable
            Whether that pays for a tape of so many slots.
        """
        try:
            recorded = self.record(vector, static, params, rows, passive, 0, replayed=True)
        except TapejitError as error:
            return f"the step takes plain numbers from what it is given ({error})"  # or it cannot be recorded at all
        tape = recorded.tape
        if tape.calls:
            return "the step has a loop or a checkpoint of its own"
        if [static_key(part) for part in recorded.static] != [static_key(part) for part in static] or any(
            map(is_active, recorded.static)
        ):
            return "the state has something in it that changes and is no float"
        if self.inputs is not None and self.inputs.static:
            return "the inputs have something in them that is no float"
        if not wanted(tape.n_slots):
            return "the loop is too short for that to pay"
        made = _compiled(tape)
        if made.why_interpreted:
            return made.why_interpreted
        self.kernel, self.replayed, self.n_slots = made, recorded, tape.n_slots
        return ""

    def at(
        self,
        vector: np.ndarray,
        static: Sequence[Any],
        params: np.ndarray,
        rows: np.ndarray,
        passive: np.ndarray,
        s: int,
    ) -> Recorded:
        """The step recorded at a state: replayed where it was compiled and takes the same decisions, else recorded afresh."""
        if self.replayed is not None:
            tape = self.replayed.tape
            value = tape.value.copy()
            value[1 : 1 + self.n_active] = np.concatenate([vector, params, rows[s] if self.n_rows else np.empty(0)])
            if self.n_passive:
                first = tape.parameter_slots[0][0]
                value[first : first + self.n_passive] = passive[s]
            sweeps.forward(tape, value)
            if tape.branch_change(value) is None:
                return Recorded(tape, value, self.replayed.outputs, list(static))
        recorded = self.record(vector, static, params, rows, passive, s)
        recorded.static = [plain_of(part) for part in recorded.static]
        return recorded


@dataclass
class Recorded:
    """A step on a tape, with values, where its results stand (state, then output), and the static parts of the next state."""

    tape: Tape
    value: np.ndarray
    outputs: np.ndarray
    static: list[Any]

    @property
    def results(self) -> np.ndarray:
        return self.value[self.outputs]

    def pull_back(self, seeds: np.ndarray) -> np.ndarray:
        """Adjoints of the inputs, (K, n), for K adjoints of the results, (K, m)."""
        tape = self.tape
        if len(seeds) == 1:
            return sweeps.input_adjoint(tape, self.outputs, seeds[0], self.value)[None]
        adjoint = np.zeros((tape.n_slots, len(seeds)))
        np.add.at(adjoint, self.outputs, seeds.T)
        sweeps.reverse(tape, adjoint, self.value)
        return adjoint[tape.input_index()].T

    def push_forward(self, dots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tangents of the results for those of the inputs; and of all slots."""
        tangent = np.zeros(self.tape.n_slots)
        tangent[self.tape.input_index()] = dots
        sweeps.tangent(self.tape, tangent, self.value)
        return tangent[self.outputs], tangent

    def pull_back_twice(
        self, dots: np.ndarray, seeds: np.ndarray, seed_dots: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adjoints of the inputs and their tangents."""
        _, tangent = self.push_forward(dots)
        adjoint, adjoint_dot = np.zeros(self.tape.n_slots), np.zeros(self.tape.n_slots)
        np.add.at(adjoint, self.outputs, seeds)
        np.add.at(adjoint_dot, self.outputs, seed_dots)
        sweeps.second_order(self.tape, tangent, adjoint, adjoint_dot, self.value)
        index = self.tape.input_index()
        return adjoint[index], adjoint_dot[index]


def _plain(source: np.ndarray, writable: bool = True) -> Callable[[Leaf], Any]:
    def take(leaf: Leaf) -> Any:
        if leaf.shape is None:
            return float(source[leaf.start])
        array = source[leaf.start : leaf.start + leaf.size].reshape(leaf.shape).copy()
        array.flags.writeable = writable
        return array

    return take


def _compiled(tape: Tape) -> Kernel:
    """Machine code for the tape of a step; that of an equal tape if there was one."""
    key = _digest(tape)
    with _kernels_lock:
        made = _kernels.pop(key, None)
    if made is None:
        made = compile_tape(tape, max_compile_seconds=MAX_COMPILE_SECONDS)
    with _kernels_lock:
        _kernels[key] = made
        while len(_kernels) > _MOST_KERNELS:
            _kernels.pop(next(iter(_kernels)))
    return made


def _digest(tape: Tape) -> bytes:
    """A key of everything that machine code for a tape is made from: its instructions, its constants and the data that blocks read."""
    digest = hashlib.blake2b()
    at = 1
    ends = [(block, block.first) for block in tape.blocks()]
    for block, first in [*ends, (None, tape.n_slots)]:
        run = slice(at, first)
        opcode, value = tape.opcode[run], tape.value[run]
        for part in (opcode, tape.lhs[run], tape.rhs[run], value[opcode == ops.CONSTANT]):
            digest.update(np.ascontiguousarray(part).tobytes())
        if block is not None:
            at = block.first + block.size
            digest.update(repr((block.kind, first, block.size, block.code, block.shape, block.result_strides)).encode())
            for operand in block.operands:
                base = operand.base if operand.array is None else (operand.array.shape, operand.array.strides)
                digest.update(repr((operand.mode, base, operand.strides)).encode())
                if operand.array is not None:
                    digest.update(operand.array.tobytes("A"))
    guards = tape.guards
    slots = (tape.input_slots, tape.parameter_slots, tape.output_slots.tolist())
    digest.update(repr((*slots, guards.slot.tolist(), guards.expected.tolist())).encode())
    return digest.digest()


@contextmanager
def detached() -> Iterator[None]:
    """Run a step apart from the tapes that are open: it is recorded on its own. Loops in it are run, also while a plan is being made."""
    stack = open_tapes()
    held, planned = stack[:], local.planned
    del stack[:]
    local.planned = None
    try:
        yield
    finally:
        stack[:] = held
        local.planned = planned


def not_deterministic(what: str) -> DeterminismError:
    return DeterminismError(
        f"{what} gave something else when it was computed again from the same state; it must depend on nothing but its arguments: draw random "
        "numbers beforehand and pass them"
    )


def output_structure(output: Any) -> Structure:
    """What the outputs of steps look like, which are stacked: nothing but floats.

    Raises
    ------
    ShapeError
        If there is something else in it.
    """
    structure = Structure(output, "output")
    if structure.n_static:
        raise ShapeError("the output of a step is made of floats and float64 arrays; it has something else in it")
    return structure


def require_same(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Raise unless a recording gave what the plain function gave before, but for rounding: powers may differ in the last bit."""
    scale = np.maximum(np.maximum(np.abs(found), np.abs(expected)), 1.0)
    with np.errstate(invalid="ignore"):
        same = (
            (found == expected) | (np.abs(found - expected) <= _RTOL * scale) | (np.isnan(found) & np.isnan(expected))
        )
    if not same.all():
        at = int((~same).argmax())
        raise DeterminismError(
            f"{what} gave {expected[at]} before and {found[at]} when it was recorded (float {at} of the result): it depends on something besides "
            "its arguments, or computes something else of active values than of floats"
        )

"""The tape that user code records on: which tapes are open, how values of an outer tape enter an inner one, guards, gradients.

Tapes nest: a transform inside a function that is being differentiated opens a tape of its own. An operation is recorded on the innermost
of the tapes whose values it reads; values of the outer ones are constants there, and *links* remember where they came from, so that
the inner derivative can be recorded on the outer tape afterwards (`tapejit.recording.nesting`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from tapejit import ops, sweeps
from tapejit.errors import DomainError, ShapeError, TapeError, UnsupportedError
from tapejit.tape import FlatTape
from tapejit.workspace import give_back, only_here, take

if TYPE_CHECKING:
    from tapejit.compiled import CompiledTape
    from tapejit.recording.array import Array
    from tapejit.recording.variable import Variable

__all__ = ["Tape", "debug", "innermost", "is_debugging", "open_tapes", "refuse_frozen", "source_line"]

_PACKAGE = str(Path(__file__).resolve().parent.parent) + os.sep
_NOT_USERS = (
    _PACKAGE,
    *(str(Path(str(module.__file__)).resolve().parent) + os.sep for module in (np, numba)),
    str(contextlib.__file__),
    str(functools.__file__),
)


class _Local(threading.local):
    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.debugging = 0


_local = _Local()


def open_tapes() -> list[Tape]:
    """The tapes that this thread is recording on, outermost first."""
    return _local.tapes


class debug:
    """Context manager: raise `DomainError` where a primitive is evaluated outside its domain, instead of handing on NaN.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> with tj.debug():
    ...     tj.grad(np.log)(-1.0)
    Traceback (most recent call last):
        ...
    tapejit.errors.DomainError: log(x) needs x > 0, got x = -1.0 in slot 2 (<doctest ...>:2, in <module>)
    """

    def __enter__(self) -> None:
        # Our error comes instead of NumPy's warning, which would come first.
        self._quiet = np.errstate(all="ignore")
        self._quiet.__enter__()
        _local.debugging += 1

    def __exit__(self, *exception: Any) -> None:
        _local.debugging -= 1
        self._quiet.__exit__(*exception)


def is_debugging() -> bool:
    """Whether this thread is under `debug`."""
    return _local.debugging > 0


def source_line() -> str:
    """Where user code stands: ``model.py:57, in drag``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_USERS):
        frame = frame.f_back
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno}, in {code.co_name}"


def innermost(operands: Iterable[Variable | Array]) -> Tape:
    """The tape on which an operation of these active operands is recorded.

    Raises
    ------
    TapeError
        If they stand on tapes that are not nested in each other.
    """
    tapes = {id(operand.tape): operand.tape for operand in operands}
    if len(tapes) == 1:
        return next(iter(tapes.values()))
    stack = _local.tapes
    inner = None
    for tape in tapes.values():
        if tape not in stack:
            raise TapeError(
                f"an operation mixes values of two unrelated tapes ({source_line()}), one of which is not being recorded: a value "
                "has left the function or the `with` block it was recorded in. Return it, or pass tj.value(x)"
            )
        if inner is None or stack.index(tape) > stack.index(inner):
            inner = tape
    assert inner is not None
    return inner


def refuse_frozen(x: Variable | Array, what: str) -> None:
    """Raise where a plain number is taken from what may depend on a parameter: a replay with another value of it would not notice.

    `tapejit.record` then treats the argument as static, and `tapejit.loop` records every step.
    """
    for tape in _local.tapes:
        if tape.is_step:
            raise UnsupportedError(f"{what} takes plain numbers from what differs from step to step ({source_line()})")
        if tape.tries_parameters and not (x.tape is tape and _is_input(x)):
            raise UnsupportedError(
                f"{what} takes plain numbers from what may depend on a parameter, so that a replay would not see another value of it "
                f"({source_line()})"
            )


def _is_input(x: Variable | Array) -> bool:
    """Whether an active value is a part of the inputs that stand at the beginning of its tape."""
    slots = np.atleast_1d(getattr(x, "slot", None) or x.slots())  # type: ignore[union-attr]
    end = 1 + x.tape.n_inputs
    return bool(((slots >= 1) & (slots < end)).all()) and x.tape.input_slots[0][0] == 1


class Tape(FlatTape):
    """A recording of plain Python and NumPy code, and its gradients.

    Use it as a context manager, make inputs, compute, and call ``backward`` on the result; `record` makes one from a function.

    Examples
    --------
    >>> import tapejit as tj
    >>> with tj.Tape() as tape:
    ...     x = tape.input(3.0)
    ...     f = x**3 + 2 * x**2
    >>> f.backward()
    >>> f.value, x.grad
    (45.0, 39.0)
    >>> tape.forward([1.0])
    >>> f.value
    3.0
    """

    def __init__(self) -> None:
        super().__init__()
        self._grad = np.zeros(0)
        self._links: list[tuple[int, np.ndarray, Tape]] = []
        self._linked: dict[tuple[int, int], int] = {}
        self._data: dict[tuple, np.ndarray] = {}
        self._memory: list[np.ndarray] = []
        self.short_lived = False  # whether it ends with the call that made it, so that its memory need not be trimmed
        self._numbers: dict[str, np.ndarray] = {}
        self.is_replayed = False
        # Whether it is replayed as every step of a loop, so that no plain number may be taken from it.
        self.is_step = False
        self.tries_parameters = (
            False  # whether plain numbers may be taken from values that depend on parameters: see `refuse_frozen`
        )

    def __getstate__(self) -> dict:
        if self._links:
            raise TapeError("this tape refers to values of another tape, which is being recorded: it cannot be pickled")
        fresh: dict[str, Any] = {
            "_links": [],
            "_linked": {},
            "_data": {},
            "_memory": [],
            "short_lived": False,
            "_numbers": {},
            "is_step": False,
            "tries_parameters": False,
        }
        return {**super().__getstate__(), **fresh, "_grad": self._grad, "is_replayed": self.is_replayed}

    # Opening and closing.

    def __enter__(self) -> Tape:
        if self.is_replayed:
            raise TapeError(self.why_closed)
        self.careful = _local.debugging > 0
        self.reopen()
        _local.tapes.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _local.tapes.remove(self)
        if self.is_replayed:
            return
        if not self.short_lived:
            self.trim()
        self.close(
            "this tape is not being recorded: its `with` block, or the function that was differentiated, has ended. Compute inside "
            "of it, or pass tj.value(x)"
        )

    # Inputs and constants.

    def input(self, x: Any) -> Variable | Array:
        """An independent variable: a scalar becomes a `Variable`, an array an `Array`.

        Parameters
        ----------
        x : float or array_like
            Its value, converted to float64.

        Returns
        -------
        Variable or Array

        Raises
        ------
        ShapeError
            If `x` is not real numbers.
        """
        numbers = real_array(x, "an input")
        self._check_open(numbers.size)
        return self._active(self.add_input(numbers), numbers)

    def parameter(self, x: Any) -> Variable | Array:
        """A number or an array that a replay may change, but that is not differentiated by; as for `input`.

        Examples
        --------
        >>> import tapejit as tj
        >>> with tj.Tape() as tape:
        ...     x, rate = tape.input(3.0), tape.parameter(2.0)
        ...     f = rate * x**2
        >>> f.backward()
        >>> x.grad, tape.n_inputs, tape.parameter_slots
        (12.0, 1, [(2, 1)])
        """
        numbers = real_array(x, "a parameter")
        self._check_open(numbers.size)
        return self._active(self.add_parameter(numbers), numbers)

    def _active(self, first: int, numbers: np.ndarray) -> Variable | Array:
        from tapejit.recording.array import Array
        from tapejit.recording.variable import Variable

        if numbers.ndim == 0:
            return Variable(self, first, float(numbers))
        return Array.of_run(self, first, numbers.shape)

    def data_for_block(self, data: np.ndarray) -> np.ndarray:
        """A copy of a passive array for a block to read, one for each content: the caller may change the array as soon as it was used.

        Never the array itself: whoever holds it, or a view of it, could change it before a later sweep, and the gradient with it. The copy
        goes into memory that is used again, where it costs less than the passes over it that follow.
        """
        key = (data.__array_interface__["data"][0], data.shape, data.strides, data.dtype.str)
        held = self._data.get(key)
        if held is not None and _same_numbers(held, data):
            return held
        order = "F" if data.flags.f_contiguous and not data.flags.c_contiguous else "C"
        kept = take("data", data.size)
        memory = np.empty(data.size) if kept is None else kept[0]
        self._memory.append(memory)
        copied = memory[: data.size].reshape(data.shape, order=order)
        copied[...] = data
        self._data[key] = copied
        self.count_data(copied.nbytes)
        return copied

    def __del__(self) -> None:
        super().__del__()
        memory = self.__dict__.pop("_memory", [])
        self.__dict__.pop("_data", None)
        self.__dict__.pop("_references", None)
        while memory:
            array = memory.pop()
            if only_here((array,), 1):
                give_back("data", (array,))

    def number_for_block(self, number: float) -> np.ndarray:
        """A plain number as an array of one element that blocks may read; one for each number."""
        key = repr(number)
        if key not in self._numbers:
            self._numbers[key] = np.array([number])
        return self._numbers[key]

    def link(self, outer: Tape, slots: np.ndarray) -> int:
        """Constants here for values of an outer tape, remembered as such; gives the first slot."""
        if slots.size == 1:
            key = (id(outer), int(slots.flat[0]))
            if key not in self._linked:
                self._linked[key] = self._link(outer, slots)
            return self._linked[key]
        return self._link(outer, slots)

    def _link(self, outer: Tape, slots: np.ndarray) -> int:
        first = self.push_run(ops.CONSTANT, 0, 0, outer.value[slots.reshape(-1)])
        self._links.append((first, slots.reshape(-1).astype(np.int64), outer))
        return first

    @property
    def links(self) -> list[tuple[int, np.ndarray, Tape]]:
        """Values of outer tapes that this one read: first slot here, slots there, the outer tape."""
        return self._links

    # Decisions.

    def guard(self, slots: Sequence[int], expected: Sequence[float]) -> None:
        """Remember a decision: a replay in which one of these slots has another value would take another branch."""
        if self.is_replayed:
            raise TapeError(self.why_closed)
        self.guards.append(slots, expected, source_line())

    def check_domain(self, code: int, operands: Sequence[Any], result: Any) -> None:
        """Under `debug`, raise DomainError where an operand lies outside the domain of its primitive or a new NaN appears."""
        if not _local.debugging:
            return
        op = ops.op_coded(code)
        arrays = np.broadcast_arrays(
            *(np.asarray(operand, dtype=float) for operand in operands), np.asarray(result, dtype=float)
        )
        *inputs, outcome = (a.reshape(-1) for a in arrays)
        clean = np.ones(outcome.shape, bool)
        for numbers in inputs:
            clean &= ~np.isnan(numbers)
        for name, interval, numbers in zip(("x", "y"), op.domain, inputs, strict=False):
            inside = (numbers > interval.low) if interval.low_open else (numbers >= interval.low)
            inside &= (numbers < interval.high) if interval.high_open else (numbers <= interval.high)
            bad = clean & ~inside
            if bad.any():
                self._raise_domain(op, interval.condition(name), name, float(numbers[bad.argmax()]))
        bad = clean & np.isnan(outcome)
        if bad.any() and inputs:
            at = bad.argmax()
            got = ", ".join(f"{name} = {float(numbers[at])}" for name, numbers in zip("xy", inputs, strict=False))
            raise DomainError(f"{op.name} of {got} is NaN in slot {self.n_slots} ({source_line()})")

    def _raise_domain(self, op: ops.Op, condition: str, name: str, got: float) -> None:
        arguments = ", ".join("xy"[: op.arity])
        raise DomainError(
            f"{op.name}({arguments}) needs {condition}, got {name} = {got} in slot {self.n_slots} ({source_line()})"
        )

    # Gradients of define-by-run code.

    def backward(self, slots: np.ndarray, seeds: np.ndarray) -> None:
        """Reverse sweep from these slots; adds to the gradients of the inputs (see `Variable.backward`)."""
        if any(tape in _local.tapes for _, _, tape in self._links):
            raise TapeError(
                f"backward() gives plain numbers, but this tape reads values of a function that is itself being differentiated, whose "
                f"derivative would be lost ({source_line()}); use tj.grad or tj.vjp inside of it, or pass tj.value(x) to this tape"
            )
        grad = sweeps.input_adjoint(self, slots, seeds)
        grad[: self._grad.size] += self._grad
        self._grad = grad

    def zero_grad(self) -> None:
        """Forget the gradients that `backward` has accumulated."""
        self._grad = np.zeros(0)

    def grad_of(self, slots: np.ndarray) -> np.ndarray:
        """Accumulated gradients of input slots."""
        starts = np.array([first for first, _ in self.input_slots], dtype=np.int64)
        sizes = np.array([size for _, size in self.input_slots], dtype=np.int64)
        before = np.cumsum(sizes) - sizes
        run = np.searchsorted(starts, slots, side="right") - 1
        if slots.size and (not starts.size or run.min() < 0 or (slots - starts[run] >= sizes[run]).any()):
            raise TapeError("only inputs keep a gradient; make it one with tape.input(...), or use tj.vjp")
        index = before[run] + slots - starts[run] if slots.size else np.zeros(0, np.int64)
        grad = np.zeros(self.n_inputs)
        grad[: self._grad.size] = self._grad
        return grad[index]

    # Other forms.

    def expand(self) -> Tape:
        """This tape with its blocks written out as scalar slots.

        Examples
        --------
        >>> import numpy as np, tapejit as tj
        >>> tape = tj.record(lambda x: np.sum(x * x), np.ones(3))
        >>> print(tape.tape.to_string())
        %0 = constant -> 0.0
        %1 = input -> 1.0
        %2 = input -> 1.0
        %3 = input -> 1.0
        %4..%6 = [mul 3] %1 %1
        %7..%7 = [sum 3] %4
        >>> tape.expand().histogram()
        {'input': 3, 'mul': 3, 'add': 2, 'constant': 1}
        """
        from tapejit.expansion import expand

        return expand(self, Tape())

    def compile(self, fast: bool = False, max_compile_seconds: float = 20.0, threads: int = 1) -> CompiledTape:
        """This tape compiled, as a function of flat inputs; needs `output_slots`. Options as for `tapejit.compile`.

        Examples
        --------
        >>> import tapejit as tj
        >>> with tj.Tape() as tape:
        ...     x = tape.input(3.0)
        ...     f = x**3 + 2 * x**2
        >>> tape.output_slots = [f.slot]
        >>> tape.compile().value_and_grad([1.0])
        (3.0, array([7.]))
        """
        from tapejit.compiled import CompiledTape

        return CompiledTape(self, fast, max_compile_seconds, threads)

    # Replays.

    def set_inputs(self, value: np.ndarray, inputs: Any) -> None:
        """Write new inputs into an array of values."""
        numbers = self.flat_inputs(inputs)
        for first, size in self.input_slots:
            value[first : first + size] = numbers[:size]
            numbers = numbers[size:]

    def flat_inputs(self, inputs: Any) -> np.ndarray:
        """All inputs as one vector, (n_inputs,); one array-like for all of them, or one entry an input."""
        try:
            numbers = real_array(inputs, "the inputs of a replay").reshape(-1)
        except (ShapeError, ValueError):
            numbers = np.concatenate([real_array(part, "an input of a replay").reshape(-1) for part in inputs])
        if numbers.size != self.n_inputs:
            raise ShapeError(
                f"the tape has {self.n_inputs} inputs, but {numbers.size} numbers were given; pass one for each, in the order "
                "in which they were made"
            )
        return numbers

    def forward(self, inputs: Any) -> None:
        """Replay at new inputs: every value on the tape is recomputed, and `Variable.value` reads the new one.

        Parameters
        ----------
        inputs : array_like
            New values of all inputs, in the order in which they were made.

        Raises
        ------
        ShapeError
            If their number differs from what was recorded.
        BranchChangeError
            If a decision (`if`, `while`, a boolean index) would have gone the other way; the old values are kept.
        """
        from tapejit.errors import BranchChangeError

        value = self.value.copy()
        self.set_inputs(value, inputs)
        sweeps.forward(self, value)
        if (message := self.branch_change(value)) is not None:
            raise BranchChangeError(message)
        self.value[:] = value
        self.is_replayed = True
        self.close(
            "this tape was replayed at other inputs, so the values that Python variables were computed with are gone; record again to "
            "compute more"
        )

    def branch_change(self, value: np.ndarray) -> str | None:
        """What decision differs at these values, in words, or None."""
        guards = self.guards
        at = guards.first_change(value)
        if at < 0:
            return None
        slot, expected = guards.slot[at], guards.expected[at]
        line = guards.lines[guards.line[at]]
        decision = self._describe(slot, value)
        return (
            f"{decision} was {_outcome(self, slot, expected)} when recorded, now {_outcome(self, slot, value[slot])} (slot {slot}; {line}); "
            "record again or use np.where"
        )

    def _describe(self, slot: int, value: np.ndarray) -> str:
        if any(call.first <= slot < call.first + call.size for call in self.calls):
            return "that a loop or a region gives the same integers and booleans"
        code = self.code_at(slot)
        op = ops.op_coded(code)
        if op.arity == 0 or self.block_around(slot) >= 0:
            return f"a decision on slot {slot}"
        operands = [
            f"%{operand} ({float(value[operand]):.6g})" for operand in (self.lhs[slot], self.rhs[slot])[: op.arity]
        ]
        return f"{op.name}({', '.join(operands)})"


def _outcome(tape: Tape, slot: int, number: float) -> str:
    code = tape.code_at(slot)
    if code != ops.BLOCK and ops.op_coded(code).boolean:
        return "true" if number else "false"
    return f"{number:g}"


def _same_numbers(held: np.ndarray, data: np.ndarray) -> bool:
    """Whether a copy still has the contents of the array, to the bit."""
    if data.dtype == np.float64:
        return np.array_equal(held.view(np.int64), data.view(np.int64))
    return np.array_equal(held, data)


def real_array(x: Any, what: str) -> np.ndarray:
    """`x` as float64, without losing anything.

    Raises
    ------
    ShapeError
        If it holds something other than real numbers, or more precision than float64.
    """
    if isinstance(x, (np.matrix, np.ma.MaskedArray)):
        raise ShapeError(f"{what} is a {type(x).__name__}, which computes otherwise than an array; pass np.asarray(x)")
    if not isinstance(x, np.ndarray):
        x = np.asarray(x)
        if x.dtype.kind in "iu" or x.size == 0:
            x = x.astype(np.float64)
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        remedy = (
            "pass x.astype(float)"
            if x.dtype.kind in "biu"
            else "pass an array of floats (real and imaginary parts are two inputs)"
        )
        raise ShapeError(f"{what} must be real floating-point numbers, got dtype {x.dtype}; {remedy}")
    return x.astype(np.float64, copy=False)

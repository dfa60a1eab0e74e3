"""Compiled functions: recorded once for each path through their branches, rolled into loops, and replayed by machine code.

Every *variant* is a recording of its own, for one set of static arguments, one set of shapes and one path. What compiled code cannot do
faithfully is done by the interpreted replay of the same recording, so results do not depend on what was compiled.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapejit.calls import (
    check_callable,
    checked,
    jacobian_parts,
    named,
    normalised_argnums,
    tuple_of,
)
from tapejit.compiler.entries import as_numba_function, run_rows
from tapejit.compiler.kernel import MAX_COMPILE_SECONDS, Kernel, compile_tape
from tapejit.compiler.lanes import FEWEST_LANES, compile_in_lanes, run_in_lanes
from tapejit.errors import BranchChangeError, CompileError, ShapeError, TapeError, TapejitError, UnsupportedError
from tapejit.parameters import frozen, parameter_numbers
from tapejit.recording.array import is_active
from tapejit.recording.recorder import Tape, is_debugging, real_array
from tapejit.replays import Given, Recording
from tapejit.sweeps import forward, input_adjoint, reverse

__all__ = ["Compiled", "CompiledTape", "Stats", "VariantStats", "compile"]

MAX_VARIANTS = 16
_MAX_TRIED = 4  # variants that are replayed by the interpreter before the function is recorded again
# How far a compiled gradient may be from the interpreted one, relative to the largest adjoint: the order of additions may differ.
_RTOL = 1e-10
_LOOSE = 1e-7
_FLOAT64 = np.dtype(np.float64)


@dataclass
class VariantStats:
    """How one variant of a compiled function was used.

    Attributes
    ----------
    why : str
        Why it was recorded.
    n_slots, n_guards : int
        Of its tape.
    n_compiled, n_interpreted : int
        Replays by machine code, and by the interpreter.
    record_seconds, compile_seconds : float
        What it took to make it.
    why_interpreted : str
        Why there is no machine code; empty if there is.
    nbytes : int
        Working memory of a compiled value and gradient.
    """

    why: str
    n_slots: int
    n_guards: int
    n_compiled: int
    n_interpreted: int
    record_seconds: float
    compile_seconds: float
    why_interpreted: str
    nbytes: int

    def __str__(self) -> str:
        how = (
            f"compiled in {self.compile_seconds:.3g} s"
            if not self.why_interpreted
            else f"interpreted: {self.why_interpreted}"
        )
        return (
            f"{self.why}: {self.n_slots:,} slots, {self.n_guards:,} decisions, recorded in {self.record_seconds:.3g} s, {how}; "
            f"ran {self.n_compiled} times compiled, {self.n_interpreted} times interpreted"
        )


@dataclass
class Stats:
    """How a compiled function was used, printed a line a variant: the most recently used first.

    Attributes
    ----------
    n_recorded : int
        Recordings in all, those that only checked a compiled result apart.
    n_checked : int
        Compiled variants whose first result was compared with a fresh recording.
    n_dropped : int
        Variants given up for new ones.
    variants : list of VariantStats
    """

    n_recorded: int
    n_checked: int
    n_dropped: int
    variants: list[VariantStats] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"recorded {self.n_recorded} times, {len(self.variants)} variants kept, {self.n_dropped} dropped"
        return "\n".join([head, *(f"  {variant}" for variant in self.variants)])


@dataclass
class _Passive:
    """The arguments of a call that are not differentiated, and whether they are those given to `compile`."""

    others: tuple
    keywords: dict
    is_kept: bool


def _machine_code(tape: Tape, **options: Any) -> Kernel:
    """A tape compiled, unless it has loops that compile their steps themselves."""
    if tape.calls:
        return Kernel("it has a tj.loop or a tj.checkpoint", 0.0)
    return compile_tape(tape, **options)


class _Variant:
    """One recording, and machine code for it from its second use on."""

    def __init__(self, recording: Recording, why: str, seconds: float) -> None:
        self.recording = recording
        self.why, self.record_seconds = why, seconds
        call = recording._current.call
        self.shapes = tuple(call.shapes)
        self.output_shape = call.output_shape
        self.order = recording._current.order
        self.key = recording._given.key
        self.signature = (
            tuple(recording._others),
            recording._has_parameters,
            tuple(recording.why_static),
        )  # how its arguments are compared
        self.n_guards = len(recording.tape.guards.slot)
        self.kernel: Kernel | None = None
        self.wide: tuple[Kernel | None] | None = None  # for `Compiled.batch`, once it was tried
        self.lanes_checked = False
        self.is_checked = False
        self.kept: Given | None = None  # the arguments given to `compile`, if this variant serves them
        self.holds_own = False  # whether it was recorded with them
        self.n_compiled = self.n_interpreted = 0

    @property
    def tape(self) -> Tape:
        return self.recording.tape

    @property
    def runs(self) -> bool:
        """Whether there is machine code."""
        return self.kernel is not None and not self.kernel.why_interpreted

    def stats(self) -> VariantStats:
        made = self.kernel
        return VariantStats(
            self.why,
            self.tape.n_slots,
            self.n_guards,
            self.n_compiled,
            self.n_interpreted,
            self.record_seconds,
            made.seconds if made else 0.0,
            made.why_interpreted if made else "seen once so far",
            made.nbytes if made else 0,
        )

    def __getstate__(self) -> dict:
        return {
            **self.__dict__,
            "kernel": None,
            "wide": None,
            "kept": None,
            "is_checked": False,
            "lanes_checked": False,
        }


class Compiled:
    """A function that is recorded, compiled, and replayed by machine code. Made by `compile`.

    Call it as the function itself for its value; `value_and_grad`, `grad`, `value` and `vjp` take the differentiated argument (a tuple of them
    if `argnums` is a sequence), and the others as ``args=(...)`` and ``kwargs={...}`` where they differ from those it was compiled with.

    **Variants.** Floats and arrays of float64 among the other arguments are parameters, which may change at every call; integers, strings,
    index arrays and all else are compared by value, and another value, or another shape, makes another variant. So does another path
    through the branches: a call that a variant does not fit tries the others first, then records (`on_branch_change` as for `Recording`).
    At most 16 variants are kept, the least recently used is dropped. A variant that was recorded in a call is compiled when it is met
    again, so that a function that branches differently at every call is not compiled at every call.

    **Trust.** The first compiled result of each variant is compared with a fresh recording at that point. Where compiled code cannot be
    faithful (a result that is not finite, an angle beyond 3e7, a decision that changes), the interpreted replay answers. Values have
    the bits of the interpreted replay, but for sums and products of arrays, which may be added up in another order. Under
    `debug` the function is recorded at every call.

    Several threads may use one compiled function at the same time.

    Attributes
    ----------
    n_recorded : int
        How many times the function was recorded.
    """

    def __init__(
        self,
        f: Callable | None,
        argnums: int | Sequence[int],
        on_branch_change: str,
        fast: bool,
        threads: int,
        max_compile_seconds: float,
    ) -> None:
        if on_branch_change not in ("record", "raise", "warn"):
            raise ValueError(f'on_branch_change must be "record", "raise" or "warn", got {on_branch_change!r}')
        check_threads(threads)
        self._f = f
        self._argnums = argnums
        self._single = isinstance(argnums, (int, np.integer))
        self._n = 1 if self._single else len(argnums)  # type: ignore[arg-type]
        self.on_branch_change = on_branch_change
        self.fast, self.threads, self.max_compile_seconds = bool(fast), int(threads), float(max_compile_seconds)
        self.n_recorded = self.n_checked = self.n_dropped = 0
        self._variants: tuple[_Variant, ...] = ()
        self._others: tuple = ()
        self._keywords: dict = {}
        self._kept: dict[tuple, Given] = {}
        self._lock = threading.RLock()
        if f is not None:
            functools.update_wrapper(self, f, updated=())

    # Variants.

    def _start(self, args: tuple, kwargs: dict) -> None:
        """Record at the arguments of `compile`, and compile."""
        positions, _ = normalised_argnums(self._argnums, len(args))
        self._others = tuple(frozen(x) for i, x in enumerate(args) if i not in positions)
        self._keywords = {name: frozen(x) for name, x in kwargs.items()}
        variant = self._record(
            _numbers([real_array(args[i], "x") for i in positions]), self._others, self._keywords, "first recording"
        )
        self._compile(variant)

    def _recording(self, xs: Sequence[Any], others: tuple, keywords: dict) -> Recording:
        """A recording of these arguments alone."""
        if self._f is None:
            raise BranchChangeError(
                "this compiled function was pickled without its function, so it cannot be recorded again; unpickle where it is defined"
            )
        positions, _ = normalised_argnums(self._argnums, len(xs) + len(others))
        # Copies: compiled code may write to its arguments.
        rest, given = iter(others), dict(zip(positions, [x.copy() if np.ndim(x) else x for x in xs], strict=True))
        args = tuple(given[i] if i in given else next(rest) for i in range(len(xs) + len(others)))
        policy = "warn" if self.on_branch_change == "warn" else "raise"
        return Recording(self._f, args, self._argnums, policy, keywords)

    def _record(self, xs: Sequence[Any], others: tuple, keywords: dict, why: str) -> _Variant:
        started = time.perf_counter()
        recording = self._recording(xs, others, keywords)
        with self._lock:
            self.n_recorded += 1
        variant = _Variant(recording, why, time.perf_counter() - started)
        variant.holds_own = others is self._others and keywords is self._keywords
        return self._add(variant)

    def _add(self, variant: _Variant) -> _Variant:
        with self._lock:
            kept = (variant, *self._variants)
            self.n_dropped += max(0, len(kept) - MAX_VARIANTS)
            self._variants = kept[:MAX_VARIANTS]
        return variant

    def _compile(self, variant: _Variant) -> None:
        with self._lock:
            if variant.kernel is None:
                variant.kernel = _machine_code(
                    variant.tape,
                    fast=self.fast,
                    max_compile_seconds=self.max_compile_seconds,
                    n_threads=self.threads,
                )

    def _used(self, variant: _Variant) -> None:
        """Put a variant first."""
        if self._variants and self._variants[0] is not variant:
            with self._lock:
                if variant in self._variants:
                    self._variants = (variant, *(v for v in self._variants if v is not variant))

    def _fitting(self, shapes: tuple, passive: _Passive) -> Iterator[tuple[_Variant, Given]]:
        """The variants for these shapes and arguments, the most recently used first."""
        known: dict[tuple, Given] = self._kept if passive.is_kept else {}
        for variant in self._variants:
            recording = variant.recording
            if variant.shapes != shapes or len(recording._others) != len(passive.others):
                continue
            given = known.get(variant.signature)
            if given is None:
                given = known[variant.signature] = recording._arguments(passive.others, passive.keywords)
            if given is variant.kept or given.key == variant.key:
                if passive.is_kept:
                    variant.kept = given
                yield variant, given

    def _passive(self, args: tuple | None, kwargs: dict | None) -> _Passive:
        """The arguments that are not differentiated."""
        others = self._others if args is None else tuple(args)
        keywords = {**self._keywords, **kwargs} if kwargs else self._keywords
        return _Passive(others, keywords, args is None and not kwargs)

    # Evaluation.

    def _arrays(self, x: Any) -> list[np.ndarray]:
        """The differentiated arguments as arrays of float64, in the order of `argnums`."""
        return [real_array(part, "x") for part in tuple_of(x, self._single, self._n, "x")]

    def _sorted(self, xs: Sequence[Any], n_others: int) -> tuple[list[Any], list[int]]:
        """The same by position, and where each of `argnums` is among them."""
        positions, _ = normalised_argnums(self._argnums, len(xs) + n_others)
        order = [sorted(positions).index(i) for i in positions]
        return [xs[order.index(i)] for i in range(len(xs))], order

    def _evaluated(self, x: Any, passive: _Passive, seeds: Any) -> tuple[_Variant, Any, np.ndarray | None]:
        """The variant that fits, its outputs and, with seeds, the adjoints of all inputs.

        Seeds are None for values only, "scalar" for 1.0 where a scalar is required, or the caller's.
        """
        if is_active([x, *passive.others, *passive.keywords.values()]):
            raise TapejitError(
                "a compiled function replays at plain numbers, so an active value would lose its derivative; call it as a function, or pass "
                "tj.value(x)"
            )
        xs = self._arrays(x)
        by_position, _ = self._sorted(xs, len(passive.others))
        shapes = tuple(part.shape for part in by_position)
        if is_debugging() and self._f is not None:
            return self._result_of(
                _Variant(self._recording(_numbers(xs), passive.others, passive.keywords), "", 0.0), seeds
            )
        flat = _flat(by_position)
        fitting = list(self._fitting(shapes, passive))
        for variant, given in fitting:
            if variant.runs and (found := self._run(variant, flat, given, seeds)) is not None:
                if not variant.is_checked:
                    self._check(variant, xs, given, *found)
                variant.n_compiled += 1
                self._used(variant)
                return variant, found[0], None if seeds is None else found[1]
        why = ""
        for variant, given in fitting[:_MAX_TRIED]:
            try:
                outputs, bars = self._interpreted(variant, x, given, seeds)
            except BranchChangeError as error:
                why = why or str(error)
                continue
            self._used(variant)
            self._compile(variant)
            variant.n_interpreted += 1
            return variant, outputs, bars
        if fitting and self.on_branch_change == "raise":
            raise BranchChangeError(why)
        return self._recorded(xs, passive, seeds, why or self._why_new(shapes))

    def _why_new(self, shapes: tuple) -> str:
        if not self._variants:
            return "first recording"
        if all(variant.shapes != shapes for variant in self._variants):
            return "other shapes: " + ", ".join(map(str, shapes))
        return "other static arguments"

    def _run(
        self, variant: _Variant, flat: np.ndarray, given: Given, seeds: Any
    ) -> tuple[Any, np.ndarray | None, Any] | None:
        """Run the kernel: outputs, adjoints and the seeds for them; None if the interpreter must be asked."""
        assert variant.kernel is not None
        try:
            numbers = self._seeds(variant, seeds)
        except ShapeError:
            return None  # This may not be the variant that the caller means.
        if numbers is None and not variant.is_checked:
            numbers = np.ones(variant.output_shape).reshape(-1) if variant.output_shape else 1.0
        found = variant.kernel.run(flat, given.numbers, numbers, given if given is variant.kept else None)
        return None if found is None else (*found, numbers)

    def _seeds(self, variant: _Variant, seeds: Any) -> Any:
        if seeds is None:
            return None
        if isinstance(seeds, str):
            if seeds == "rows":
                return np.eye(int(np.prod(variant.output_shape, dtype=np.int64)))
            variant.recording._current.call.require_scalar("a gradient")
            return 1.0
        numbers = checked(seeds, variant.output_shape, "y_bar", "the output")
        return numbers.reshape(-1) if variant.output_shape else float(numbers)

    def _interpreted(self, variant: _Variant, x: Any, given: Given, seeds: Any) -> tuple[Any, np.ndarray | None]:
        recording = variant.recording
        others: tuple = (given.others, given.keywords)
        if variant.holds_own and given is variant.kept:
            others = (None, None)  # what it was recorded with: not written again
        if seeds is None:
            return recording.value(x, *others), None
        if isinstance(seeds, str) and seeds == "scalar":
            value, gradient = recording.value_and_grad(x, *others)
        else:
            value, gradient = recording.vjp(x, seeds, *others)
        return value, self._flattened(gradient, variant.order)

    def _flattened(self, gradient: Any, order: Sequence[int]) -> np.ndarray:
        parts = (gradient,) if self._single else gradient
        return np.concatenate([np.reshape(parts[list(order).index(i)], -1) for i in range(len(order))])

    def _recorded(
        self, xs: list[np.ndarray], passive: _Passive, seeds: Any, why: str
    ) -> tuple[_Variant, Any, np.ndarray | None]:
        """Record at this point."""
        return self._result_of(self._record(_numbers(xs), passive.others, passive.keywords, why), seeds)

    def _result_of(self, variant: _Variant, seeds: Any) -> tuple[_Variant, Any, np.ndarray | None]:
        """The result of a recording itself."""
        recorded, tape = variant.recording._current, variant.tape
        recorded.acquire()
        try:
            outputs = recorded.output(tape.value)
            if seeds is None:
                return variant, outputs, None
            numbers = np.reshape(self._seeds(variant, seeds), -1)
            return variant, outputs, input_adjoint(tape, recorded.call.output, numbers, tape.value)
        finally:
            recorded.release()

    def _check(
        self, variant: _Variant, xs: list[np.ndarray], given: Given, outputs: Any, bars: Any, seeds: Any
    ) -> None:
        """Compare the first compiled result with a fresh recording at the same point.

        Raises
        ------
        CompileError
            If they differ.
        """
        if self._f is None:
            variant.is_checked = True
            return
        fresh = self._recording(_numbers(xs), given.others, given.keywords)
        call = fresh._current.call
        if call.output_shape != variant.output_shape:
            self._refuse(variant, f"a result of shape {variant.output_shape}", f"one of shape {call.output_shape}")
        tape = fresh.tape
        forward(tape)
        if tape.branch_change(tape.value) is not None:
            return  # An equality that rounding decides: neither is wrong.
        output, y_bar = np.asarray(tape.output_slots), np.reshape(np.asarray(seeds, float), -1)
        value, gradient = tape.value[output], input_adjoint(tape, output, y_bar)
        outputs = np.reshape(outputs, -1)
        same = np.array_equal(value, outputs, equal_nan=True)
        if not same and (self.fast or len(tape.block_at)):  # Sums of arrays may be added up in another order.
            same = np.allclose(value, outputs, rtol=0.0, atol=_LOOSE * np.nanmax(np.abs(tape.value)), equal_nan=True)
        if not same:
            self._refuse(variant, *_differing(outputs, value, "the value"))
        size = np.abs(gradient).max(initial=0.0)
        rtol = _LOOSE if self.fast or len(tape.block_at) else _RTOL
        if not (np.abs(bars - gradient) <= rtol * size).all():
            # Adjoints inside may be larger than those of the inputs, and cancel.
            size = max(size, _largest_adjoint(tape, output, y_bar))
            if not (np.abs(bars - gradient) <= rtol * size).all():
                self._refuse(variant, *_differing(bars, gradient, "the gradient"))
        with self._lock:
            variant.is_checked = True
            self.n_checked += 1

    def _refuse(self, variant: _Variant, got: str, expected: str) -> None:
        raise CompileError(
            f"the compiled replay gives {got}, a fresh recording {expected}. Does the function draw random numbers, or read state that changes? "
            "If not, this is an error of tapejit's compiler: please report it, and use tj.record meanwhile"
        )

    # What users call.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The value at all arguments of the function. Inside of a transform (``tj.grad``, ...) the function itself is called."""
        if is_active([*args, *kwargs.values()]):
            if self._f is None:
                raise TapejitError("this compiled function was pickled without its function, which a transform needs")
            return self._f(*args, **kwargs)
        try:
            positions, _ = normalised_argnums(self._argnums, len(args))
        except ShapeError:
            raise TypeError(
                f"argnums={self._argnums}, but the call has {len(args)} positional arguments: pass differentiated arguments by position"
            ) from None
        xs = tuple(args[i] for i in positions)
        others = tuple(x for i, x in enumerate(args) if i not in positions)
        # Keyword arguments given to `compile` are not meant here: a function has defaults of its own.
        variant, outputs, _ = self._evaluated(xs[0] if self._single else xs, _Passive(others, kwargs, False), None)
        return _result(outputs, variant.output_shape)

    def value(self, x: Any, args: tuple | None = None, kwargs: dict | None = None) -> Any:
        """The primal at `x`.

        Parameters
        ----------
        x : array_like
            The differentiated argument, a tuple of them if `argnums` is a sequence.
        args : tuple, optional
            The other positional arguments; those given to `compile` by default.
        kwargs : dict, optional
            Keyword arguments that differ from those given to `compile`.

        Returns
        -------
        float or ndarray
        """
        if args is None and kwargs is None and (found := self._quick(x, None)) is not None:
            return _result(found[1], found[0].output_shape)
        variant, outputs, _ = self._evaluated(x, self._passive(args, kwargs), None)
        return _result(outputs, variant.output_shape)

    def value_and_grad(self, x: Any, args: tuple | None = None, kwargs: dict | None = None) -> tuple[float, Any]:
        """The value of a scalar function and its gradient at `x`; arguments as for `value`."""
        if args is None and kwargs is None and (quick := self._quick(x, 1.0)) is not None:
            _, value, bars = quick
            return value, bars.reshape(x.shape) if x.ndim else float(bars[0])
        variant, value, bars = self._evaluated(x, self._passive(args, kwargs), "scalar")
        return value, self._shaped(variant, bars)

    def _quick(self, x: Any, seed: float | None) -> tuple[_Variant, Any, Any] | None:
        """The most frequent call, with as little around the kernel as can be: None if it is another."""
        if (
            type(x) is not np.ndarray
            or x.dtype is not _FLOAT64
            or not self._variants
            or not self._single
            or is_debugging()
        ):
            return None
        variant = self._variants[0]
        if not variant.is_checked or variant.shapes[0] != x.shape or (seed is not None and variant.output_shape):
            return None
        given = variant.kept
        if given is None:
            return None
        found = variant.kernel.run(x.reshape(-1), given.numbers, seed, given)  # type: ignore[union-attr]
        if found is None:
            return None
        variant.n_compiled += 1
        return variant, *found

    def grad(self, x: Any, args: tuple | None = None, kwargs: dict | None = None) -> Any:
        """The gradient of a scalar function at `x`; arguments as for `value`."""
        return self.value_and_grad(x, args, kwargs)[1]

    def vjp(self, x: Any, y_bar: Any, args: tuple | None = None, kwargs: dict | None = None) -> tuple[Any, Any]:
        """Value and adjoint at `x`: ``y = f(x)`` and ``x_bar = J(x).T @ y_bar``.

        Parameters
        ----------
        x, args, kwargs
            As for `value`.
        y_bar : array_like
            The adjoint of the value, in its shape.

        Returns
        -------
        y : float or ndarray
        x_bar : float or ndarray
            In the shape of `x`.
        """
        variant, outputs, bars = self._evaluated(x, self._passive(args, kwargs), real_array(y_bar, "y_bar"))
        return _result(outputs, variant.output_shape), self._shaped(variant, bars)

    def jacobian(self, x: Any, args: tuple | None = None, kwargs: dict | None = None) -> Any:
        """The Jacobian at `x`, of shape ``value.shape + x.shape``; arguments as for `value`.

        A compiled reverse run a row where there are at most four times as many outputs as inputs; else interpreted tangent sweeps.
        """
        passive = self._passive(args, kwargs)
        by_position, _ = self._sorted(self._arrays(x), len(passive.others))
        n = sum(part.size for part in by_position)
        for variant, given in self._fitting(tuple(part.shape for part in by_position), passive):
            m = int(np.prod(variant.output_shape, dtype=np.int64))
            if variant.runs and variant.is_checked and 0 < m <= 4 * n:
                found = self._run(variant, _flat(by_position), given, "rows")
                if found is not None:
                    variant.n_compiled += 1
                    self._used(variant)
                    matrix = np.reshape(found[1], (m, n))  # type: ignore[arg-type]
                    parts = jacobian_parts(matrix, variant.output_shape, variant.shapes)
                    return named(parts, variant.order, self._single)
        return self._swept("jacobian", x, (), args, kwargs)

    def jvp(self, x: Any, x_dot: Any, args: tuple | None = None, kwargs: dict | None = None) -> tuple[Any, Any]:
        """Value and tangent at `x` along `x_dot`, by the interpreted sweep; arguments as for `value`."""
        return self._swept("jvp", x, (x_dot,), args, kwargs)

    def hvp(self, x: Any, v: Any, args: tuple | None = None, kwargs: dict | None = None) -> Any:
        """``H(x) @ v`` of a scalar function, by interpreted sweeps; `v` in the shape of `x`, arguments as for `value`."""
        return self._swept("hvp", x, (v,), args, kwargs)

    def hessian(self, x: Any, args: tuple | None = None, kwargs: dict | None = None) -> Any:
        """The Hessian of a scalar function, of shape ``x.shape + x.shape``, by interpreted sweeps; arguments as for `value`."""
        return self._swept("hessian", x, (), args, kwargs)

    def _swept(self, what: str, x: Any, more: tuple, args: tuple | None, kwargs: dict | None) -> Any:
        """What an interpreted replay of the variant that fits gives."""
        xs, passive = self._arrays(x), self._passive(args, kwargs)
        shapes = tuple(part.shape for part in self._sorted(xs, len(passive.others))[0])
        why = ""
        fitting = list(self._fitting(shapes, passive))
        for variant, given in fitting[:_MAX_TRIED]:
            try:
                found = getattr(variant.recording, what)(x, *more, given.others, given.keywords)
            except BranchChangeError as error:
                why = why or str(error)
                continue
            variant.n_interpreted += 1
            self._used(variant)
            return found
        if fitting and self.on_branch_change == "raise":
            raise BranchChangeError(why)
        variant = self._record(_numbers(xs), passive.others, passive.keywords, why or self._why_new(shapes))
        return getattr(variant.recording, what)(x, *more, passive.others, passive.keywords)

    def batch(
        self, X: Any, args: tuple | list[tuple] | None = None, kwargs: dict | None = None
    ) -> tuple[np.ndarray, Any]:
        """Values and gradients of many independent inputs: in SIMD lanes, 32 at a time, and in `threads`.

        Each row has the value that `value_and_grad` gives; sums of whole arrays, and adjoints, may be added up in another order.

        Parameters
        ----------
        X : (B, ...) array_like
            A row for each input; a tuple of such arrays if `argnums` is a sequence.
        args : tuple or list of tuple, optional
            The other arguments. In a tuple, a float array with one axis more than the argument had when it was recorded, of length B, has a row
            for each input; what has the recorded shape serves all. A list has a tuple of them for each row, which is slower.
        kwargs : dict, optional
            As for `value`.

        Returns
        -------
        values : (B,) ndarray
        gradients : (B, ...) ndarray
            In the shape of `X`; a tuple of arrays if `argnums` is a sequence.
        """
        xs = self._arrays(X)
        if any(part.ndim == 0 or len(part) != len(xs[0]) for part in xs):
            raise ShapeError("batch takes arrays of one length, with a row for each input")
        n_rows = len(xs[0])
        if isinstance(args, list) and len(args) != n_rows:
            raise ShapeError(f"args has {len(args)} entries, but there are {n_rows} rows; pass one tuple for each")
        variants = self._variants  # what a decorated function was recorded with says which arguments have an axis more
        recorded = self._others or (variants[0].recording._given.others if variants else ())
        others = _Rows(args, recorded, n_rows)
        values, gradients = np.empty(n_rows), [np.empty(part.shape) for part in xs]

        def single(row: int) -> None:
            point = [part[row] if part.ndim > 1 else float(part[row]) for part in xs]
            values[row], found = self.value_and_grad(point[0] if self._single else tuple(point), others.of(row), kwargs)
            for out, part in zip(gradients, (found,) if self._single else found, strict=True):
                out[row] = part

        waiting = np.arange(n_rows)
        for _ in range(4):  # The first rows may have to record, compile and check.
            waiting = self._batched(xs, others, kwargs, values, gradients, waiting)
            if waiting.size:
                single(int(waiting[0]))
                waiting = waiting[1:]
        for row in waiting:
            single(int(row))
        return values, gradients[0] if self._single else tuple(gradients)

    def _batched(
        self,
        xs: list[np.ndarray],
        others: _Rows,
        kwargs: dict | None,
        values: np.ndarray,
        gradients: list[np.ndarray],
        rows: np.ndarray,
    ) -> np.ndarray:
        """Do what compiled variants can do of these rows; gives the others."""
        if not rows.size:
            return rows
        passive = self._passive(others.of(int(rows[0])), kwargs)
        by_position, order = self._sorted(xs, len(passive.others))
        for variant, given in self._fitting(tuple(part.shape[1:] for part in by_position), passive):
            if not rows.size:
                break
            if not (variant.runs and variant.is_checked) or variant.output_shape != ():
                continue
            parameters = others.parameters(variant, given, passive, rows)
            if parameters is None:
                break
            flat = np.concatenate([_taken(part, rows) for part in by_position], axis=1)
            found, bars, failed = self._run_rows(variant, flat, parameters)
            right = slice(None) if not failed.any() else ~failed
            done = rows[right]
            variant.n_compiled += done.size
            into = slice(None) if done.size == len(values) else done
            values[into] = found[right]
            start = 0
            for i, part in enumerate(by_position):
                size = int(np.prod(part.shape[1:], dtype=np.int64))
                own_bars = bars[right, start : start + size]
                gradients[order.index(i)][into] = own_bars.reshape(done.size, *part.shape[1:])
                start += size
            rows = rows[failed]
        return rows

    def _in_lanes(self, variant: _Variant) -> Kernel | None:
        """The kernel of a variant for many rows."""
        with self._lock:
            if variant.wide is None:
                assert variant.kernel is not None
                variant.wide = (
                    compile_in_lanes(variant.tape, variant.kernel.size, self.fast, self.max_compile_seconds),
                )
            return variant.wide[0]

    def _check_lanes(
        self, variant: _Variant, inputs: np.ndarray, parameters: np.ndarray, value: np.ndarray, bar: np.ndarray
    ) -> None:
        """Compare the first row that ran in lanes with the kernel that was checked against a recording."""
        expected, gradient = np.empty((1, 1)), np.empty_like(inputs)
        assert variant.kernel is not None
        if not run_rows(variant.kernel, inputs, parameters, np.ones(1), expected, gradient).any():
            tolerance = _LOOSE * np.abs(gradient).max(initial=0.0)
            if not np.allclose(value, expected[0], rtol=_LOOSE, atol=_LOOSE):
                self._refuse(variant, *_differing(value, expected[0], "the value in lanes"))
            if not np.allclose(bar, gradient[0], rtol=_LOOSE, atol=tolerance):
                self._refuse(variant, *_differing(bar, gradient[0], "the gradient in lanes"))
        variant.lanes_checked = True

    def _run_rows(
        self, variant: _Variant, flat: np.ndarray, parameters: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, adjoints, and which rows the interpreter must do; each thread has a fixed part of the rows."""
        assert variant.kernel is not None
        made, n_rows = variant.kernel, len(flat)
        values, bars, failed = np.empty((n_rows, 1)), np.empty(flat.shape), np.zeros(n_rows, np.bool_)
        wide = self._in_lanes(variant) if n_rows >= FEWEST_LANES else None

        def one_by_one(rows: np.ndarray) -> None:
            own = parameters if len(parameters) == 1 else parameters[rows]
            found, found_bars = np.empty((rows.size, 1)), np.empty((rows.size, flat.shape[1]))
            failed[rows] = run_rows(made, flat[rows], own, np.ones(1), found, found_bars)
            values[rows], bars[rows] = found, found_bars

        def run(span: slice) -> None:
            rows = np.arange(span.start, span.stop)
            if wide is not None:
                own = parameters if len(parameters) == 1 else parameters[span]
                again = run_in_lanes(wide, flat[span], own, values[span], bars[span])
                if not variant.lanes_checked and not again.all():
                    at = int(rows[~again][0])
                    self._check_lanes(
                        variant, flat[at : at + 1], own[:1] if len(own) == 1 else own[~again][:1], values[at], bars[at]
                    )
                rows = rows[again]
            if rows.size:
                one_by_one(rows)

        n_threads = min(self.threads, n_rows)
        edges = np.linspace(0, n_rows, n_threads + 1).astype(int)
        spans = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        if n_threads == 1:
            run(spans[0])
        else:
            with ThreadPoolExecutor(n_threads) as pool:
                list(pool.map(run, spans))
        return values[:, 0], bars, failed

    @property
    def kernel(self) -> Callable:
        """``kernel(x, gradient) -> value`` for Numba code (and Python): writes the gradient into an array of the shape of `x`.

        It has the path of the variant used last and, of the other arguments, those given to `compile`. Where it would take another branch, or
        leaves the range of an inlined function, it gives NaN and fills the gradient with NaN; entries of a gradient may also be NaN
        where the interpreter multiplies a zero and an infinity to zero. With several differentiated arguments, `x` and `gradient` are
        vectors of them all. Reading it keeps the machine code for the life of the process. Several threads may call it.
        """
        variant = self._front()
        self._compile(variant)
        if not variant.runs:
            assert variant.kernel is not None
            raise UnsupportedError(f"there is no compiled kernel: {variant.kernel.why_interpreted}")
        variant.recording._current.call.require_scalar("a kernel with its gradient")
        assert variant.kernel is not None
        given = variant.recording._given
        if len(self._others) == len(variant.recording._others):
            kept = variant.recording._arguments(self._others, self._keywords)
            given = kept if kept.key == variant.key else given
        return as_numba_function(variant.kernel, _joined(given.numbers), self._single and variant.shapes[0] == ())

    # What was found.

    def _front(self) -> _Variant:
        if not self._variants:
            raise TapejitError(
                "nothing was recorded yet: call the function first, or pass example arguments to tj.compile"
            )
        return self._variants[0]

    def stats(self) -> Stats:
        """How often each variant ran, and why it was recorded."""
        return Stats(self.n_recorded, self.n_checked, self.n_dropped, [variant.stats() for variant in self._variants])

    @property
    def tape(self) -> Tape:
        """The tape of the variant used last."""
        return self._front().tape

    @property
    def nbytes(self) -> int:
        """Bytes of working memory of a compiled value and gradient, by the variant used last; 0 if it is not compiled."""
        made = self._front().kernel
        return made.nbytes if made else 0

    def llvm(self) -> str:
        """The optimised LLVM IR of the variant used last."""
        return self._linked().llvm

    def asm(self) -> str:
        """The assembly of the variant used last."""
        return self._linked().asm

    def _linked(self) -> Any:
        variant = self._front()
        self._compile(variant)
        assert variant.kernel is not None
        if variant.kernel.linked is None:
            raise UnsupportedError(f"there is no compiled kernel: {variant.kernel.why_interpreted}")
        return variant.kernel.linked

    def __str__(self) -> str:
        lines = [repr(self)]
        for number, variant in enumerate(self._variants):
            made = variant.kernel
            tape = variant.tape
            lines.append(f"variant {number} ({variant.why}): {tape.n_slots:,} slots, {tape.n_inputs:,} inputs")
            if made is None:
                lines.append("  interpreted until it is met again")
            elif made.why_interpreted:
                lines.append(f"  interpreted: {made.why_interpreted}")
            else:
                lines += [made.nest, f"  {made.nbytes:,} bytes for value and gradient"] if made.nest else []
        return "\n".join(lines)

    def __repr__(self) -> str:
        name = getattr(self._f, "__name__", "function")
        return f"<Compiled {name}: {len(self._variants)} variant{'s' if len(self._variants) != 1 else ''}>"

    def _shaped(self, variant: _Variant, bars: np.ndarray | None) -> Any:
        assert bars is not None
        return named(variant.recording._current.call._split(bars), variant.order, self._single)

    # Pickling: machine code is made again, or read from the disk cache.

    def __reduce_ex__(self, protocol: Any) -> Any:
        f = self._f
        module, name = getattr(f, "__module__", None), getattr(f, "__qualname__", None)
        if f is not None and module in sys.modules and name is not None:
            found: Any = sys.modules[module]
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is self:  # decorated: known by its name, as a function is
                return name
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict:
        state = {
            **self.__dict__,
            "_lock": None,
            "_kept": {},
            "was_compiled": [v.kernel is not None for v in self._variants],
        }
        state.pop("__wrapped__", None)
        if self._variants:
            state["_f"] = self._variants[0].recording.__getstate__()["_f"]
        return state

    def __setstate__(self, state: dict) -> None:
        was_compiled = state.pop("was_compiled")
        self.__dict__.update(state)
        self._lock = threading.RLock()
        for variant, again in zip(self._variants, was_compiled, strict=True):
            if again:
                self._compile(variant)


class CompiledTape:
    """A compiled tape: flat inputs, flat outputs. Made by ``tape.compile()``.

    Where the machine code cannot be faithful, the sweeps answer; a decision that changes raises BranchChangeError.
    """

    def __init__(self, tape: Tape, fast: bool, max_compile_seconds: float, threads: int = 1) -> None:
        check_threads(threads)
        if not np.size(tape.output_slots):
            raise TapeError("the tape has no outputs to compile for: make it with tj.record, or set tape.output_slots")
        if tape.links:
            raise TapeError("the tape refers to values of another tape, which is being recorded: it cannot be compiled")
        self.tape = tape
        self._options: dict[str, Any] = {
            "fast": fast,
            "max_compile_seconds": max_compile_seconds,
            "n_threads": threads,
        }
        self._kernel = _machine_code(tape, **self._options)
        self._parameters = [tape.value[first : first + size].copy() for first, size in tape.parameter_slots]

    @property
    def n_outputs(self) -> int:
        return int(np.size(self.tape.output_slots))

    def value(self, x: Any) -> np.ndarray:
        """Outputs (m,) at inputs `x` (n,)."""
        return self._run(x, None)[0]

    def vjp(self, x: Any, y_bar: Any) -> tuple[np.ndarray, np.ndarray]:
        """Outputs (m,) and adjoints of the inputs (n,) for adjoints `y_bar` (m,) of the outputs."""
        outputs, bars = self._run(x, checked(y_bar, (self.n_outputs,), "y_bar", "the output"))
        assert bars is not None
        return outputs, bars

    def value_and_grad(self, x: Any) -> tuple[float, np.ndarray]:
        """The one output and its gradient (n,)."""
        if self.n_outputs != 1:
            raise ShapeError(f"a gradient needs a tape with one output, this one has {self.n_outputs}; use vjp")
        outputs, bars = self.vjp(x, [1.0])
        return float(outputs[0]), bars

    def grad(self, x: Any) -> np.ndarray:
        """The gradient (n,) of the one output."""
        return self.value_and_grad(x)[1]

    def _run(self, x: Any, seeds: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        flat = self.tape.flat_inputs(x)
        if not self._kernel.why_interpreted:
            one = seeds if seeds is None or seeds.size > 1 else float(seeds[0])
            if (found := self._kernel.run(flat, self._parameters, one, self)) is not None:
                return np.reshape(found[0], -1), found[1]
        value = self.tape.value.copy()
        self.tape.set_inputs(value, flat)
        forward(self.tape, value)
        if (message := self.tape.branch_change(value)) is not None:
            raise BranchChangeError(message)
        output = np.asarray(self.tape.output_slots)
        return value[output], None if seeds is None else input_adjoint(self.tape, output, seeds, value)

    @property
    def why_interpreted(self) -> str:
        """Why there is no machine code; empty if there is."""
        return self._kernel.why_interpreted

    @property
    def nbytes(self) -> int:
        return self._kernel.nbytes

    def __str__(self) -> str:
        return f"{self!r}\n{self._kernel.nest or '  interpreted: ' + self.why_interpreted}"

    def __repr__(self) -> str:
        return f"<CompiledTape of {self.tape.n_slots} slots, {self.tape.n_inputs} inputs, {self.n_outputs} outputs>"

    def __reduce__(self) -> tuple:
        return CompiledTape, (self.tape, *self._options.values())


def _numbers(xs: Sequence[np.ndarray]) -> list[Any]:
    return [x if x.ndim else float(x) for x in xs]


class _Rows:
    """The arguments of a batch that are not differentiated: None, a tuple in which some have a row for each input, or a list of tuples."""

    def __init__(self, args: tuple | list[tuple] | None, recorded: tuple, n_rows: int) -> None:
        self.args = args
        self.stacked: set[int] = set()
        if isinstance(args, tuple):
            arrays = [i for i, x in enumerate(args) if isinstance(x, np.ndarray) and x.dtype == np.float64]
            if arrays and len(recorded) != len(args):
                raise ShapeError(
                    f"args has {len(args)} entries, but nothing was recorded with so many, so it cannot be told whether args[{arrays[0]}] has a "
                    "row for each input; call the function once before, or pass a list with a tuple for each row"
                )
            for i in arrays:
                x = args[i]
                if x.ndim == np.ndim(recorded[i]) + 1:
                    if len(x) != n_rows:
                        raise ShapeError(
                            f"args[{i}] has {len(x)} rows, but there are {n_rows} inputs; pass one for each"
                        )
                    self.stacked.add(i)

    def of(self, row: int) -> tuple | None:
        """The arguments of one row."""
        if self.args is None or isinstance(self.args, list):
            return self.args if self.args is None else tuple(self.args[row])
        rows = (x[row] if i in self.stacked else x for i, x in enumerate(self.args))
        return tuple(float(x) if i in self.stacked and np.ndim(x) == 0 else x for i, x in enumerate(rows))

    def parameters(self, variant: _Variant, given: Given, passive: _Passive, rows: np.ndarray) -> np.ndarray | None:
        """The parameters of these rows, or one row for all; None if the variant does not fit them all."""
        recording = variant.recording
        if isinstance(self.args, list):
            every = [recording._arguments(tuple(self.args[row]), passive.keywords) for row in rows]
            return (
                np.stack([_joined(own.numbers) for own in every])
                if all(own.key == variant.key for own in every)
                else None
            )
        if not self.stacked:
            return _joined(given.numbers)[None]
        parts = []
        for i, (name, x) in enumerate(
            [*zip(recording._others, passive.others, strict=True), *passive.keywords.items()]
        ):
            is_parameter = recording._has_parameters and name not in recording.why_static
            if i in self.stacked:
                if not is_parameter:
                    return None
                assert self.args is not None
                parts.append(_taken(self.args[i], rows))
            elif is_parameter:
                own = _joined(parameter_numbers(x, recording._native))
                parts.append(np.broadcast_to(own, (rows.size, own.size)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _taken(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows of an array, each flat; the array itself if they are all."""
    return np.ascontiguousarray(x if rows.size == len(x) else x[rows]).reshape(rows.size, -1)


def _joined(parameters: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.reshape(x, -1) for x in parameters)])


def _flat(xs: Sequence[np.ndarray]) -> np.ndarray:
    return xs[0].reshape(-1) if len(xs) == 1 else np.concatenate([x.reshape(-1) for x in xs])


def _result(outputs: Any, shape: tuple[int, ...]) -> Any:
    if shape == ():
        return float(np.reshape(outputs, ()))
    return np.reshape(outputs, shape)


def _differing(got: np.ndarray, expected: np.ndarray, what: str) -> tuple[str, str]:
    at = int(np.argmax(~(np.abs(got - expected) <= 0.0)))
    return f"{float(got[at])!r} for {what}, entry {at}", f"{float(expected[at])!r}"


def _largest_adjoint(tape: Tape, output: np.ndarray, y_bar: np.ndarray) -> float:
    adjoint = np.zeros(tape.n_slots)
    np.add.at(adjoint, output, y_bar)
    reverse(tape, adjoint)
    return float(np.nanmax(np.abs(adjoint)))


def compiled_recording(
    recording: Recording, fast: bool = False, threads: int = 1, max_compile_seconds: float = MAX_COMPILE_SECONDS
) -> Compiled:
    """A compiled function that starts with the tape of a recording."""
    argnums: Any = recording._argnums[0] if recording._single else recording._argnums
    made = Compiled(recording._f, argnums, recording.on_branch_change, fast, threads, max_compile_seconds)
    made._others, made._keywords = recording._given.others, recording._given.keywords
    current = recording._variants.get(recording._given.key)
    if current is None:
        raise TapejitError("the recording has dropped the variant of its own arguments; call tj.compile")
    own = copy.copy(recording)
    own._lock = threading.RLock()
    own._variants = {recording._given.key: current}
    own._current = current
    own.on_branch_change = "warn" if recording.on_branch_change == "warn" else "raise"
    made._compile(made._add(_Variant(own, "recorded before", 0.0)))
    return made


def check_threads(threads: int) -> None:
    """Refuse a number of threads below one with a ValueError."""
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")


def compile(
    f: Callable | None = None,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    on_branch_change: str = "record",
    fast: bool = False,
    threads: int = 1,
    max_compile_seconds: float = MAX_COMPILE_SECONDS,
    **kwargs: Any,
) -> Any:
    """Compile `f`: record it, find its loops, and replay it by machine code.

    With example arguments it is recorded and compiled at once. Without, as a decorator (``@tj.compile`` or ``@tj.compile(argnums=1)``), the first
    call records and the next one compiles.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code, or a function compiled by Numba; returns a scalar, an array, or a list of either.
    *args
        Example arguments. Later calls may change all floats; other things, and shapes, make another variant (see `Compiled`).
    argnums : int or sequence of int
        Which arguments to differentiate by.
    on_branch_change : {"record", "raise", "warn"}
        What a call does that takes a branch which was not recorded.
    fast : bool
        Let products and sums be contracted: values differ from the interpreter's in the last bits.
    threads : int
        They share loops of more than about 50,000 operations that carry nothing but sums, and the rows of `Compiled.batch`. The results
        do not depend on their number, unless `fast` lets them.
    max_compile_seconds : float
        Where compiling a variant would take longer, it is interpreted.
    **kwargs
        Keyword arguments of `f`.

    Returns
    -------
    Compiled
        Or a decorator that makes one, if `f` is not given.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> def energy(x, k):
    ...     total = 0.0
    ...     for i in range(x.size - 1):
    ...         total = total + k * (x[i + 1] - x[i]) ** 2
    ...     return total
    >>> fast = tj.compile(energy, np.zeros(100), 0.5)
    >>> value, gradient = fast.value_and_grad(np.arange(100.0) ** 2)
    >>> value, gradient[:3]
    (646849.5, array([-1., -2., -2.]))
    >>> fast(np.arange(100.0), 2.0)
    198.0
    """
    if f is None:
        if args or kwargs:
            raise TypeError("tj.compile needs a function before its example arguments")
        return functools.partial(
            compile,
            argnums=argnums,
            on_branch_change=on_branch_change,
            fast=fast,
            threads=threads,
            max_compile_seconds=max_compile_seconds,
        )
    check_callable(f)
    made = Compiled(f, argnums, on_branch_change, fast, threads, max_compile_seconds)
    if args or kwargs:
        made._start(args, kwargs)
    return made

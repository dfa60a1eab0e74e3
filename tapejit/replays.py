"""Recordings: a function recorded once and replayed at new inputs, and with new parameters.

A replay costs a forward sweep instead of a recording, and notices a decision that would have gone the other way. Floats among the other
arguments are parameters: they have slots on the tape, so new data need no new recording (`tapejit.parameters`).
"""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapejit import sweeps
from tapejit.calls import (
    Call,
    check_callable,
    checked,
    hessian_blocks,
    hessian_matrix,
    hessian_product,
    is_compiled,
    jacobian_matrix,
    jacobian_parts,
    named,
    normalised_argnums,
    shaped,
    tuple_of,
)
from tapejit.errors import BranchChangeError, BranchChangeWarning, ShapeError, TapejitError, from_signal_handler
from tapejit.parameters import (
    frozen,
    handed,
    key_with_parameters,
    parameter_numbers,
    static_key,
    thawed,
    write_parameters,
)
from tapejit.recording.array import is_active
from tapejit.recording.recorder import Tape, open_tapes, real_array

if TYPE_CHECKING:
    from tapejit.compiled import Compiled

__all__ = ["Recording", "record"]

_MAX_TRIED = 6  # arguments that are tried one by one as parameters where the function does not take all of them


@dataclass
class Given:
    """The arguments of one replay that are not differentiated: what they are compared by, and the parameters in them."""

    others: tuple
    keywords: dict
    key: tuple
    numbers: list


class Recording:
    """A function recorded once and replayed at new inputs. Made by `record`.

    A replay takes the decisions of the recording (`if`, `while`, a boolean index, `argmax`); if one would go the other way now,
    `on_branch_change` says what happens: ``"record"`` records the function again at the new inputs, ``"raise"`` raises
    BranchChangeError, and ``"warn"`` warns and returns what the recorded branch gives. Globals and closures stay as they were recorded.

    Floats and float64 arrays among the arguments that are not differentiated, also in lists, tuples and dicts, are *parameters*: a replay may
    give others (``args=``, ``kwargs=``) without recording again. All other arguments are *static*: compared by value, and another value
    (or another shape of a parameter) records another variant; 16 are kept. An argument whose floats the function does not take as active
    values (``int(n)``, a table for SciPy) is static as well, and `why_static` says why.

    Several threads may replay one recording at the same time.

    Attributes
    ----------
    tape : Tape
        The current tape.
    n_recorded : int
        How many times the function was recorded.
    parameters : tuple of int and str
        The arguments that hold parameters: positions, and names of keyword arguments.
    why_static : dict
        For each argument whose floats are static instead, what happened when it was recorded as a parameter.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> misfit = tj.record(lambda w, data, scale: np.sum((data - w) ** 2) / scale, 0.0, np.zeros(3), 1.0)
    >>> misfit.value_and_grad(1.0, args=(np.array([1.0, 2.0, 3.0]), 2.0))
    (2.5, -3.0)
    >>> misfit.n_recorded, misfit.parameters
    (1, (1, 2))
    """

    def __init__(
        self,
        f: Callable,
        args: tuple,
        argnums: int | Sequence[int],
        on_branch_change: str,
        kwargs: dict,
        parameters: bool = True,
    ) -> None:
        if on_branch_change not in ("record", "raise", "warn"):
            raise ValueError(f'on_branch_change must be "record", "raise" or "warn", got {on_branch_change!r}')
        if is_active([*args, *kwargs.values()]):
            raise TapejitError(
                "tj.record inside a function that is being differentiated would drop the outer derivative; use tj.value_and_grad"
            )
        self._f: Callable | None = f
        self._native = is_compiled(f)
        self._argnums, self._single = normalised_argnums(argnums, len(args))
        self._others = [i for i in range(len(args)) if i not in self._argnums]
        self._has_parameters = parameters
        self.on_branch_change = on_branch_change
        self.n_recorded = 0
        self.why_static: dict[int | str, str] = {}
        self._variants: dict[tuple, Variant] = {}
        self._lock = threading.RLock()
        self._given = self._arguments(
            tuple(frozen(args[i]) for i in self._others), {name: frozen(x) for name, x in kwargs.items()}
        )
        self._current = self._record(tuple(args[i] for i in self._argnums), self._given)
        self._current.release()

    # Recording.

    def _record(self, xs: Sequence[Any], given: Given) -> Variant:
        """Record at these inputs; replaces the variant of these arguments. Its values are the caller's until released."""
        if self._f is None:
            raise BranchChangeError(
                "this recording was pickled without its function, so it cannot be recorded again; unpickle where it is defined"
            )
        is_kept = given is self._given
        others = given.others if is_kept else tuple(frozen(x) for x in given.others)
        keywords = given.keywords if is_kept else {name: frozen(x) for name, x in given.keywords.items()}
        # Copies: a compiled function may write to its arguments, which are the caller's.
        xs = [x.copy() if isinstance(x, np.ndarray) else x for x in xs]
        with _detached():
            call, refused = self._recorded(xs, others, keywords)
        variant = Variant(call, [sorted(self._argnums).index(i) for i in self._argnums])
        variant.acquire()  # Before other threads can find it: a replay of theirs would overwrite the values of this recording.
        with self._lock:
            self.n_recorded += 1
            if refused:
                self.why_static = {**self.why_static, **refused}
                self._variants.clear()  # they are compared otherwise
                kept = self._arguments(self._given.others, self._given.keywords)
                self._given = kept
            given = self._arguments(others, keywords, call.parameters)
            if is_kept and given.key == self._given.key:
                given = self._given
                variant.holds = given
            self._variants.pop(given.key, None)
            if len(self._variants) >= 16:
                self._variants.pop(next(iter(self._variants)))
            self._variants[given.key] = variant
            self._current = variant
        return variant

    def _recorded(self, xs: Sequence[Any], others: tuple, keywords: dict) -> tuple[Call, dict[int | str, str]]:
        """Record with as many arguments as parameters as the function takes; also says which of them it does not take, and why.

        A function may ask what it is given (``isinstance(x, float)``) and do something else with an active value: the result must be the same.
        """
        wanted = self._parameters(others, keywords)
        whole: Call | None = None
        try:
            whole = self._call(xs, others, keywords, wanted)
        except Exception as error:
            if not wanted or from_signal_handler(error):
                raise
            reason = _reason(error)
        if whole is not None and (not wanted or self._native or self._agrees(whole, xs, others, keywords)):
            return whole, {}
        call = self._call(xs, others, keywords, [])  # What fails here too is an error of the function.
        result = call.value()
        if whole is not None:
            if _is_same(whole.value(), result):
                return whole, {}
            reason = _OTHERWISE
        kept: list[int | str] = []
        refused: dict[int | str, str] = {}
        for name in wanted if len(wanted) <= _MAX_TRIED else []:
            if [*kept, name] == wanted:
                refused[name] = reason
                continue
            try:
                tried = self._call(xs, others, keywords, [*kept, name])
            except Exception as error:
                if from_signal_handler(error):
                    raise
                refused[name] = _reason(error)
                continue
            if _is_same(tried.value(), result):
                call = tried
                kept.append(name)
            else:
                refused[name] = _OTHERWISE
        return call, refused or dict.fromkeys(wanted, reason)

    def _agrees(self, call: Call, xs: Sequence[Any], others: tuple, keywords: dict) -> bool:
        """Whether a recording gives what the function gives for plain numbers, as far as it can be called with them."""
        assert self._f is not None  # checked by `_record`
        numbers = [real_array(x, "an argument").copy() for x in xs]
        arguments = self._in_order([float(x) if x.ndim == 0 else x for x in numbers], thawed(others))
        try:
            with np.errstate(all="ignore"):
                return _is_same(call.value(), self._f(*arguments, **thawed(keywords)))
        except Exception as error:  # Code may be written for active values: np.zeros(n, like=x) with a number x.
            if from_signal_handler(error):
                raise
            return False

    def _in_order(self, xs: Sequence[Any], others: tuple) -> tuple:
        """All positional arguments."""
        rest = iter(others)
        return tuple(
            xs[self._argnums.index(i)] if i in self._argnums else handed(next(rest))
            for i in range(len(xs) + len(others))
        )

    def _call(self, xs: Sequence[Any], others: tuple, keywords: dict, parameters: list[int | str]) -> Call:
        assert self._f is not None  # checked by `_record`
        arguments = self._in_order(xs, others)
        return Call(self._f, arguments, self._argnums, handed(keywords), replayed=True, parameters=parameters)

    def _parameters(self, others: tuple, keywords: dict) -> list[int | str]:
        """The arguments that hold parameters, unless the function does not take them."""
        if not self._has_parameters:
            return []
        named = [*zip(self._others, others, strict=True), *keywords.items()]
        return [name for name, x in named if name not in self.why_static and parameter_numbers(x, self._native)]

    def _arguments(self, others: tuple, keywords: dict, parameters: Collection[int | str] | None = None) -> Given:
        """The arguments that are not differentiated: what they are compared by, and their parameters."""
        numbers: list = []
        keys = []
        for name, x in [*zip(self._others, others, strict=True), *keywords.items()]:
            is_static = name in self.why_static if parameters is None else name not in parameters
            found = [] if is_static or not self._has_parameters else parameter_numbers(x, self._native)
            keys.append((name, key_with_parameters(x, self._native) if found else static_key(x)))
            numbers += found
        return Given(others, keywords, tuple(keys), numbers)

    def _given_now(self, args: tuple | None, kwargs: dict | None) -> Given:
        """The arguments of a replay that are not differentiated; those of the recording where none are given."""
        kept = self._given
        if args is None and not kwargs:
            return kept
        others = kept.others if args is None else tuple(args)
        if len(others) != len(kept.others):
            raise ShapeError(
                f"args has {len(others)} entries, but the function has {len(kept.others)} arguments besides the differentiated ones"
            )
        for name in kwargs or {}:
            if name not in kept.keywords:
                raise TypeError(
                    f"the function was recorded without the keyword argument {name!r}; pass it to tj.record as well"
                )
        return self._arguments(others, {**kept.keywords, **(kwargs or {})})

    @contextmanager
    def _replayed(self, x: Any, args: tuple | None, kwargs: dict | None) -> Iterator[tuple[Variant, np.ndarray]]:
        """The variant for these arguments, with an array of its values at `x`."""
        if is_active([x, *(args or ()), *(kwargs or {}).values()]):
            raise TapejitError(
                "a recording replays at plain numbers, so an active value would lose its derivative; call the function itself, or a "
                "transform of it, or pass tj.value(x)"
            )
        xs = tuple_of(x, self._single, len(self._argnums), "x")
        given = self._given_now(args, kwargs)
        variant = self._variants.get(given.key)
        if variant is not None:
            with variant.values() as value:
                change = variant.replay(xs, given, given is self._given, value)
                if change is None or self.on_branch_change == "warn":
                    if change is not None:
                        warnings.warn(change, BranchChangeWarning, stacklevel=4)
                    yield variant, value
                    return
            if self.on_branch_change == "raise":
                raise BranchChangeError(change)
        variant = self._record(xs, given)
        try:
            yield variant, variant.tape.value
        finally:
            variant.release()

    @property
    def parameters(self) -> tuple[int | str, ...]:
        """The arguments whose floats a replay may change without recording again: positions, and names of keyword arguments."""
        return tuple(self._parameters(self._given.others, self._given.keywords))

    # What a replay gives.

    def value(self, x: Any, args: tuple | None = None, kwargs: dict | None = None) -> Any:
        """The primal at `x`.

        Parameters
        ----------
        x : array_like
            The differentiated argument, a tuple of them if `argnums` is a sequence.
        args : tuple, optional
            The other positional arguments, if they differ from the recorded ones: floats are parameters, which may have any value; the rest is
            compared by value, and another value records another variant.
        kwargs : dict, optional
            Keyword arguments that differ from the recorded ones.

        Returns
        -------
        float or ndarray
        """
        with self._replayed(x, args, kwargs) as (variant, value):
            return variant.output(value)

    def value_and_grad(self, x: Any, args: tuple | None = None, kwargs: dict | None = None) -> tuple[float, Any]:
        """The value of a scalar function and its gradient at `x`; arguments as for `value`."""
        with self._replayed(x, args, kwargs) as (variant, value):
            variant.call.require_scalar("a gradient")
            return variant.output(value), self._ordered(variant, variant.reverse(1.0, value))

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

        Raises
        ------
        ShapeError
            If `x` or `y_bar` differs in shape from what was recorded.

        Examples
        --------
        >>> import tapejit as tj
        >>> tape = tj.record(lambda x: [x[0] * x[1]], [1.0, 1.0])
        >>> tape.vjp([3.0, 4.0], [1.0])
        (array([12.]), array([4., 3.]))
        """
        with self._replayed(x, args, kwargs) as (variant, value):
            return variant.output(value), self._ordered(variant, variant.reverse(y_bar, value))

    def jvp(self, x: Any, x_dot: Any, args: tuple | None = None, kwargs: dict | None = None) -> tuple[Any, Any]:
        """Value and tangent at `x` along `x_dot`, in the shape of `x`; arguments as for `value`."""
        with self._replayed(x, args, kwargs) as (variant, value):
            tangent = np.zeros(variant.tape.n_slots)
            tangent[variant.tape.input_index()] = self._flat(variant, x_dot)
            sweeps.tangent(variant.tape, tangent, value)
            return variant.output(value), shaped(tangent[variant.call.output], variant.call.output_shape)

    def hvp(self, x: Any, v: Any, args: tuple | None = None, kwargs: dict | None = None) -> Any:
        """``H(x) @ v`` of a scalar function; `v` in the shape of `x`, arguments as for `value`."""
        with self._replayed(x, args, kwargs) as (variant, value):
            variant.call.require_scalar("a Hessian-vector product")
            product = hessian_product(variant.tape, variant.call.output, self._flat(variant, v), value)[1]
            return self._ordered(variant, variant.call._split(product))

    def jacobian(self, x: Any, args: tuple | None = None, kwargs: dict | None = None) -> Any:
        """The Jacobian at `x`, of shape ``value.shape + x.shape``; arguments as for `value`."""
        with self._replayed(x, args, kwargs) as (variant, value):
            call = variant.call
            parts = jacobian_parts(jacobian_matrix(variant.tape, call.output, value), call.output_shape, call.shapes)
            return self._ordered(variant, parts)

    def hessian(self, x: Any, args: tuple | None = None, kwargs: dict | None = None) -> Any:
        """The Hessian of a scalar function at `x`, of shape ``x.shape + x.shape``; arguments as for `value`."""
        with self._replayed(x, args, kwargs) as (variant, value):
            variant.call.require_scalar("a Hessian")
            blocks = hessian_blocks(hessian_matrix(variant.tape, variant.call.output, value), variant.call.shapes)
            return (
                blocks[0][0]
                if self._single
                else tuple(tuple(blocks[i][j] for j in variant.order) for i in variant.order)
            )

    def _ordered(self, variant: Variant, parts: Sequence[Any]) -> Any:
        return named(parts, variant.order, self._single)

    def _flat(self, variant: Variant, x_dot: Any) -> np.ndarray:
        dots = tuple_of(x_dot, self._single, len(variant.order), "x_dot")
        return variant.call._flat_dots([dots[variant.order.index(i)] for i in range(len(variant.order))])

    # The tape.

    @property
    def tape(self) -> Tape:
        return self._current.tape

    @property
    def n_slots(self) -> int:
        return self.tape.n_slots

    @property
    def nbytes(self) -> int:
        return self.tape.nbytes

    def compile(self, **options: Any) -> Compiled:
        """This recording compiled; `options` are `fast`, `threads` and `max_compile_seconds` as for `tapejit.compile`."""
        from tapejit.compiled import compiled_recording

        return compiled_recording(self, **options)

    def expand(self) -> Tape:
        """See `Tape.expand`."""
        return self.tape.expand()

    def to_string(self, first: int = 20) -> str:
        """See `Tape.to_string`."""
        return self.tape.to_string(first)

    def __str__(self) -> str:
        return str(self.tape)

    def __repr__(self) -> str:
        return f"<Recording of {self.n_slots} slots, {self.tape.n_inputs} inputs>"

    def __getstate__(self) -> dict:
        state = {**self.__dict__, "_lock": None}
        try:
            pickle.dumps(self._f)
        except (pickle.PicklingError, AttributeError, TypeError):
            state["_f"] = None
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()


class Variant:
    """One recording of a `Recording`: for one set of static arguments and one path through the branches."""

    def __init__(self, call: Call, order: Sequence[int]) -> None:
        self.call = call
        self.order = order
        self.holds: Given | None = None  # whose parameters stand in the tape's own values
        call.args, call.points = (), []
        self._lock = threading.Lock()

    @property
    def tape(self) -> Tape:
        return self.call.tape

    def acquire(self) -> None:
        """Keep the tape's own values for this thread, until `release`."""
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    @contextmanager
    def values(self) -> Iterator[np.ndarray]:
        """An array of values to work in: the tape's own, or a copy while another thread works there."""
        if self._lock.acquire(blocking=False):
            try:
                yield self.tape.value
            finally:
                self._lock.release()
        else:
            yield self.tape.value.copy()

    def replay(self, xs: Sequence[Any], given: Given, is_kept: bool, value: np.ndarray) -> str | None:
        """Recompute `value` at new inputs and parameters; gives the decision that has changed, or None.

        Parameters that the recording keeps (`is_kept`) are not written where they stand already.
        """
        by_position = [xs[self.order.index(i)] for i in range(len(self.order))]
        for (first, size), x, shape in zip(self.tape.input_slots, by_position, self.call.shapes, strict=True):
            value[first : first + size] = checked(x, shape, "x", "the recorded argument").reshape(-1)
        is_own = value.ctypes.data == self.tape.value.ctypes.data
        if not is_own:
            write_parameters(self.tape, given.numbers, value)
        elif self.holds is not given:
            self.holds = None
            write_parameters(self.tape, given.numbers, value)
            self.holds = given if is_kept else None
        sweeps.forward(self.tape, value)
        return self.tape.branch_change(value)

    def output(self, value: np.ndarray) -> Any:
        return shaped(value[self.call.output], self.call.output_shape)

    def reverse(self, y_bar: Any, value: np.ndarray) -> list[Any]:
        seeds = checked(y_bar, self.call.output_shape, "y_bar", "the output")
        return self.call._split(sweeps.input_adjoint(self.tape, self.call.output, seeds.reshape(-1), value))

    def __getstate__(self) -> dict:
        return {"call": self.call, "order": self.order, "holds": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


@contextmanager
def _detached() -> Iterator[None]:
    """Record apart from the tapes that are open: a recording outlives them."""
    stack = open_tapes()
    held = stack[:]
    del stack[:]
    try:
        yield
    finally:
        stack[:] = held


_OTHERWISE = "the function computes something else of active values than of floats: does it ask for their type, or draw random numbers?"


def _is_same(recorded: Any, result: Any) -> bool:
    """Whether two results differ by rounding only."""
    numbers, others = np.asarray(recorded), np.asarray(result, dtype=float)
    return numbers.shape == others.shape and np.allclose(numbers, others, rtol=1e-9, atol=1e-14, equal_nan=True)


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"


def record(
    f: Callable, *args: Any, argnums: int | Sequence[int] = 0, on_branch_change: str = "record", **kwargs: Any
) -> Recording:
    """Record `f` at these arguments, for replays at others.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code; may return a scalar, an array, or a list of either.
    *args
        Arguments of `f`. Those in `argnums` may change at every replay, and so may the floats in the others, as parameters; the rest is
        static. Arrays are copied.
    argnums : int or sequence of int
        Which arguments are independent variables.
    on_branch_change : {"record", "raise", "warn"}
        What a replay does that would take another branch; see `Recording`.
    **kwargs
        Keyword arguments of `f`, as the positional ones that are not differentiated.

    Returns
    -------
    Recording

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> tape = tj.record(lambda x: np.sum(np.exp(x)), np.zeros(3))
    >>> tape.value_and_grad([0.0, 0.0, 1.0])
    (4.718281828459045, array([1.        , 1.        , 2.71828183]))
    """
    check_callable(f)
    return Recording(f, args, argnums, on_branch_change, kwargs)

"""Recordings: a function recorded once and replayed at new inputs.

A replay costs a forward sweep instead of a recording, and notices a decision that would have gone the other way.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tapejit import sweeps
from tapejit.calls import (
    Call,
    check_callable,
    checked,
    hessian_blocks,
    hessian_matrix,
    hessian_product,
    jacobian_matrix,
    jacobian_parts,
    named,
    normalised_argnums,
    shaped,
    tuple_of,
)
from tapejit.errors import BranchChangeError, BranchChangeWarning, ShapeError, TapejitError
from tapejit.recording.array import is_active
from tapejit.recording.recorder import Tape, open_tapes

__all__ = ["Recording", "record"]


class Recording:
    """A function recorded once and replayed at new inputs. Made by `record`.

    A replay takes the decisions of the recording (`if`, `while`, a boolean index, `argmax`); if one would go the other way now,
    `on_branch_change` says what happens: ``"record"`` records the function again at the new inputs, ``"raise"`` raises
    BranchChangeError, and ``"warn"`` warns and returns what the recorded branch gives. Globals and closures stay as they were recorded.

    Several threads may replay one recording at the same time.

    Attributes
    ----------
    tape : Tape
        The current tape.
    n_recorded : int
        How many times the function was recorded.
    """

    def __init__(
        self, f: Callable, args: tuple, argnums: int | Sequence[int], on_branch_change: str, kwargs: dict
    ) -> None:
        if on_branch_change not in ("record", "raise", "warn"):
            raise ValueError(f'on_branch_change must be "record", "raise" or "warn", got {on_branch_change!r}')
        if is_active([*args, *kwargs.values()]):
            raise TapejitError(
                "tj.record inside a function that is being differentiated would drop the outer derivative; use tj.value_and_grad"
            )
        self._f: Callable | None = f
        self._argnums, self._single = normalised_argnums(argnums, len(args))
        self._kwargs = _frozen(kwargs)
        self.on_branch_change = on_branch_change
        self.n_recorded = 0
        self._variants: dict[tuple, Variant] = {}
        self._lock = threading.RLock()
        self._static = tuple(_frozen(x) for i, x in enumerate(args) if i not in self._argnums)
        self._key = tuple(_static_key(x) for x in self._static)
        self._current = self._record(tuple(args[i] for i in self._argnums), self._static, self._key)
        self._current.release()

    # Recording.

    def _record(self, xs: Sequence[Any], static: tuple, key: tuple) -> Variant:
        """Record at these inputs; replaces the variant of these static arguments. Its values are the caller's until released."""
        if self._f is None:
            raise BranchChangeError(
                "this recording was pickled without its function, so it cannot be recorded again; unpickle where it is defined"
            )
        rest = iter(static)
        args = tuple(
            xs[self._argnums.index(i)] if i in self._argnums else next(rest)
            for i in range(len(self._argnums) + len(static))
        )
        with _detached():
            call = Call(self._f, tuple(_handed(x) for x in args), self._argnums, _handed(self._kwargs), replayed=True)
        variant = Variant(call, [sorted(self._argnums).index(i) for i in self._argnums])
        variant.acquire()  # Before other threads can find it: a replay of theirs would overwrite the values of this recording.
        with self._lock:
            self.n_recorded += 1
            self._variants.pop(key, None)
            if len(self._variants) >= 16:
                self._variants.pop(next(iter(self._variants)))
            self._variants[key] = variant
            self._current = variant
        return variant

    def _arguments(self, args: tuple | None) -> tuple[tuple, tuple]:
        """The static arguments, and what they are compared by."""
        if args is None:
            return self._static, self._key
        if len(args) != len(self._static):
            raise ShapeError(
                f"args has {len(args)} entries, but the function has {len(self._static)} arguments besides the differentiated ones"
            )
        static = tuple(_frozen(x) for x in args)
        return static, tuple(_static_key(x) for x in static)

    @contextmanager
    def _replayed(self, x: Any, args: tuple | None) -> Iterator[tuple[Variant, np.ndarray]]:
        """The variant for these arguments, with an array of its values at `x`."""
        if is_active([x, *(args or ())]):
            raise TapejitError(
                "a recording replays at plain numbers, so an active value would lose its derivative; call the function itself, or a "
                "transform of it, or pass tj.value(x)"
            )
        xs = tuple_of(x, self._single, len(self._argnums), "x")
        static, key = self._arguments(args)
        variant = self._variants.get(key)
        if variant is not None:
            with variant.values() as value:
                change = variant.replay(xs, value)
                if change is None or self.on_branch_change == "warn":
                    if change is not None:
                        warnings.warn(change, BranchChangeWarning, stacklevel=4)
                    yield variant, value
                    return
            if self.on_branch_change == "raise":
                raise BranchChangeError(change)
        variant = self._record(xs, static, key)
        try:
            yield variant, variant.tape.value
        finally:
            variant.release()

    # What a replay gives.

    def value(self, x: Any, args: tuple | None = None) -> Any:
        """The primal at `x`.

        Parameters
        ----------
        x : array_like
            The differentiated argument, a tuple of them if `argnums` is a sequence.
        args : tuple, optional
            The other arguments, if they differ from the recorded ones: compared by value, another value records another variant.

        Returns
        -------
        float or ndarray
        """
        with self._replayed(x, args) as (variant, value):
            return variant.output(value)

    def value_and_grad(self, x: Any, args: tuple | None = None) -> tuple[float, Any]:
        """The value of a scalar function and its gradient at `x`; arguments as for `value`."""
        with self._replayed(x, args) as (variant, value):
            variant.call.require_scalar("a gradient")
            return variant.output(value), self._ordered(variant, variant.reverse(1.0, value))

    def grad(self, x: Any, args: tuple | None = None) -> Any:
        """The gradient of a scalar function at `x`; arguments as for `value`."""
        return self.value_and_grad(x, args)[1]

    def vjp(self, x: Any, y_bar: Any, args: tuple | None = None) -> tuple[Any, Any]:
        """Value and adjoint at `x`: ``y = f(x)`` and ``x_bar = J(x).T @ y_bar``.

        Parameters
        ----------
        x, args
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
        with self._replayed(x, args) as (variant, value):
            return variant.output(value), self._ordered(variant, variant.reverse(y_bar, value))

    def jvp(self, x: Any, x_dot: Any, args: tuple | None = None) -> tuple[Any, Any]:
        """Value and tangent at `x` along `x_dot`, in the shape of `x`; arguments as for `value`."""
        with self._replayed(x, args) as (variant, value):
            tangent = np.zeros(variant.tape.n_slots)
            tangent[variant.tape.input_index()] = self._flat(variant, x_dot)
            sweeps.tangent(variant.tape, tangent, value)
            return variant.output(value), shaped(tangent[variant.call.output], variant.call.output_shape)

    def hvp(self, x: Any, v: Any, args: tuple | None = None) -> Any:
        """``H(x) @ v`` of a scalar function; `v` in the shape of `x`, arguments as for `value`."""
        with self._replayed(x, args) as (variant, value):
            variant.call.require_scalar("a Hessian-vector product")
            product = hessian_product(variant.tape, variant.call.output, self._flat(variant, v), value)[1]
            return self._ordered(variant, variant.call._split(product))

    def jacobian(self, x: Any, args: tuple | None = None) -> Any:
        """The Jacobian at `x`, of shape ``value.shape + x.shape``; arguments as for `value`."""
        with self._replayed(x, args) as (variant, value):
            call = variant.call
            parts = jacobian_parts(jacobian_matrix(variant.tape, call.output, value), call.output_shape, call.shapes)
            return self._ordered(variant, parts)

    def hessian(self, x: Any, args: tuple | None = None) -> Any:
        """The Hessian of a scalar function at `x`, of shape ``x.shape + x.shape``; arguments as for `value`."""
        with self._replayed(x, args) as (variant, value):
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

    def replay(self, xs: Sequence[Any], value: np.ndarray) -> str | None:
        """Recompute `value` at new inputs; gives the decision that has changed, or None."""
        by_position = [xs[self.order.index(i)] for i in range(len(self.order))]
        for (first, size), x, shape in zip(self.tape.input_slots, by_position, self.call.shapes, strict=True):
            value[first : first + size] = checked(x, shape, "x", "the recorded argument").reshape(-1)
        sweeps.forward(self.tape, value)
        return self.tape.branch_change(value)

    def output(self, value: np.ndarray) -> Any:
        return shaped(value[self.call.output], self.call.output_shape)

    def reverse(self, y_bar: Any, value: np.ndarray) -> list[Any]:
        seeds = checked(y_bar, self.call.output_shape, "y_bar", "the output")
        return self.call._split(sweeps.input_adjoint(self.tape, self.call.output, seeds.reshape(-1), value))

    def __getstate__(self) -> dict:
        return {"call": self.call, "order": self.order}

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


def _frozen(x: Any) -> Any:
    """A static argument as it is now: its arrays are copied, and read-only, so that a recording made later sees the same."""
    if isinstance(x, np.ndarray):
        frozen = x.copy()
        frozen.flags.writeable = False
        return frozen
    if type(x) in (list, tuple):
        return type(x)(_frozen(element) for element in x)
    if type(x) is dict:
        return {key: _frozen(given) for key, given in x.items()}
    return x


def _handed(x: Any) -> Any:
    """A static argument for the function: its lists and dicts are new ones, which it may change."""
    if type(x) in (list, tuple):
        return type(x)(_handed(element) for element in x)
    if type(x) is dict:
        return {key: _handed(given) for key, given in x.items()}
    return x


class _Same:
    """A static argument that cannot be compared by value: equal to itself only. Kept alive, so that its id is not used again."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.x is self.x

    def __hash__(self) -> int:
        return id(self.x)


def _static_key(x: Any) -> Any:
    """A static argument as something to compare by value."""
    if isinstance(x, np.ndarray):
        if x.dtype.hasobject:
            return ("ndarray", x.dtype.str, x.shape, *(_static_key(element) for element in x.reshape(-1).tolist()))
        return ("ndarray", x.dtype.str, x.shape, x.tobytes())
    if isinstance(x, (list, tuple)):
        return (type(x).__name__, *(_static_key(element) for element in x))
    if isinstance(x, dict):
        return ("dict", *sorted((repr(key), _static_key(given)) for key, given in x.items()))
    if isinstance(x, (int, float, complex, str, bytes, bool, type(None), np.generic)):
        return (type(x).__name__, repr(x))
    if callable(x):
        return _Same(x)  # a pickle names a function, it does not say what it computes
    try:
        return ("pickle", type(x).__name__, pickle.dumps(x))
    except (pickle.PicklingError, AttributeError, TypeError):
        return _Same(x)


def record(
    f: Callable, *args: Any, argnums: int | Sequence[int] = 0, on_branch_change: str = "record", **kwargs: Any
) -> Recording:
    """Record `f` at these arguments, for replays at others.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code; may return a scalar, an array, or a list of either.
    *args
        Arguments of `f`. Those in `argnums` may change at every replay; the others are static, their arrays are copied.
    argnums : int or sequence of int
        Which arguments are independent variables.
    on_branch_change : {"record", "raise", "warn"}
        What a replay does that would take another branch; see `Recording`.
    **kwargs
        Keyword arguments of `f`; static.

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

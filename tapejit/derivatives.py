"""The public transforms: gradients, Jacobians and Hessians of functions, and replays of a recording.

A transform of a function records it afresh at every call, so control flow is always right. Transforms nest: inside a function that is
itself being differentiated, a transform's result is recorded on the outer tape (`tapejit.recording.nesting`). `record` keeps the tape: a
replay at new inputs costs a forward sweep instead of a recording, and notices a decision that would have gone the other way.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np

from tapejit import sweeps
from tapejit.errors import BranchChangeError, BranchChangeWarning, ShapeError, TapejitError
from tapejit.recording.array import Array, actives, is_active, lift_array, scalar_or_array
from tapejit.recording.nesting import Transcript, outer_tape
from tapejit.recording.numpy_rules import value as plain_value
from tapejit.recording.recorder import Tape, open_tapes, real_array

__all__ = ["Recording", "grad", "hessian", "hvp", "jacobian", "jvp", "record", "value_and_grad", "vjp"]

# Bytes of adjoints that one pass of a Jacobian may take.
_JACOBIAN_BYTES = 1 << 28


class Call:
    """A function recorded at one point: the tape, where its inputs and outputs stand, and whether an outer tape is involved.

    Parameters
    ----------
    f : callable
        The function.
    args : tuple
        All its arguments.
    argnums : tuple of int
        Which of them are independent variables.
    lend : bool
        Whether passive arrays may be read in place: the caller then returns them when the tape is done with (`Tape.return_borrowed`).
    tape : Tape, optional
        An empty one to record on.
    """

    def __init__(
        self, f: Callable, args: tuple, argnums: tuple[int, ...], kwargs: dict | None = None, lend: bool = False, tape: Tape | None = None
    ) -> None:
        self.tape = Tape() if tape is None else tape
        self.args = args
        arguments = list(args)
        self.shapes: list[tuple[int, ...]] = []
        self.scalar: list[bool] = []
        self.points: list[Any] = []
        with self.tape as tape:
            for i, x in enumerate(args):
                if i in argnums:
                    arguments[i] = self._input(tape, x)
                elif lend and isinstance(x, np.ndarray) and x.dtype == np.float64:
                    arguments[i] = tape.borrow(x)
            output = f(*arguments, **(kwargs or {}))
            self._take_output(tape, output)
        outer = [operand.tape for x in self.points for operand in actives(x)] + [tape for _, _, tape in self.tape.links]
        self.outer = outer_tape(outer) if outer else None
        self._transcript: Transcript | None = None

    def _input(self, tape: Tape, x: Any) -> Any:
        self.points.append(x)
        numbers = plain_value(x) if is_active(x) else x
        numbers = real_array(numbers, "an argument to differentiate by")
        self.shapes.append(numbers.shape)
        self.scalar.append(numbers.ndim == 0)
        return tape.input(numbers)

    def _take_output(self, tape: Tape, output: Any) -> None:
        if isinstance(output, dict):
            raise ShapeError("the function returned a dict; return a number, an array, or a list of numbers or arrays of one shape")
        if output is None:
            raise ShapeError("the function returned None; did it forget to return its result?")
        try:
            array = lift_array(tape, output)
        except TypeError as error:
            if isinstance(error, TapejitError):
                raise
            raise ShapeError(f"the function returned {type(output).__name__}; return a number or an array of numbers") from None
        self.output_shape = array.shape
        self.output = array.slots().reshape(-1).astype(np.int64)
        tape.output_slots = self.output

    # Values.

    @property
    def n_outputs(self) -> int:
        return self.output.size

    def require_scalar(self, what: str) -> None:
        """Raise ShapeError unless the function returned one number."""
        if self.output_shape != ():
            raise ShapeError(
                f"{what} needs a function that returns a scalar, got one of shape {self.output_shape}; use tj.jacobian or tj.vjp, or sum the result"
            )

    def value(self) -> Any:
        """The primal output: plain numbers, or values on the outer tape."""
        if self.outer is None:
            return _shaped(self.tape.value[self.output], self.output_shape)
        return _active(self.outer, self.output + self.transcript(self.outer).shift, self.output_shape)

    def transcript(self, outer: Tape) -> Transcript:
        """This recording copied to an outer tape, once."""
        if self._transcript is None or self._transcript.outer is not outer:
            sources = [lift_array(outer, x if is_active(x) else np.asarray(x, dtype=float)) for x in self.points]
            self._transcript = Transcript(self.tape, outer, sources)
        return self._transcript

    def _outer_with(self, seeds: Sequence[Any]) -> Tape | None:
        """The tape on which a derivative along these seeds is recorded, None if it is plain numbers."""
        tapes = [operand.tape for seed in seeds for operand in actives(seed)] + ([self.outer] if self.outer else [])
        return outer_tape(tapes) if tapes else None

    # Derivatives.

    def pull_back(self, y_bar: Any) -> list[Any]:
        """Adjoints of the inputs for one adjoint of the output."""
        outer = self._outer_with([y_bar])
        if outer is None:
            seeds = _checked(y_bar, self.output_shape, "y_bar", "the output")
            return self._split(sweeps.input_adjoint(self.tape, self.output, seeds.reshape(-1)))
        seed = _lifted(outer, y_bar, self.output_shape, "y_bar", "the output")
        bars = self.transcript(outer).reverse([(self.output, seed)])
        return [_active(outer, bar, shape) for bar, shape in zip(bars, self.shapes, strict=True)]

    def _split(self, flat: np.ndarray) -> list[Any]:
        out, start = [], 0
        for shape in self.shapes:
            size = int(np.prod(shape, dtype=np.int64))
            out.append(_shaped(flat[start : start + size], shape))
            start += size
        return out

    def push_forward(self, x_dots: Sequence[Any]) -> Any:
        """Tangent of the output for tangents of the inputs."""
        outer = self._outer_with(x_dots)
        if outer is None:
            tangent = np.zeros(self.tape.n_slots)
            tangent[self.tape.input_index()] = self._flat_dots(x_dots)
            sweeps.tangent(self.tape, tangent)
            return _shaped(tangent[self.output], self.output_shape)
        transcript = self.transcript(outer)
        dots = [
            _lifted(outer, x_dot, shape, "x_dot", "the argument").slots()
            for x_dot, shape in zip(x_dots, self.shapes, strict=True)
        ]
        return _active(outer, transcript.tangent(dots, self.output), self.output_shape)

    def _flat_dots(self, x_dots: Sequence[Any]) -> np.ndarray:
        parts = [_checked(x_dot, shape, "x_dot", "the argument") for x_dot, shape in zip(x_dots, self.shapes, strict=True)]
        return np.concatenate([part.reshape(-1) for part in parts]) if parts else np.zeros(0)

    def hessian_product(self, x_dots: Sequence[Any]) -> list[Any]:
        """H v of a scalar function by the second-order sweep; plain numbers only."""
        return self._split(hessian_product(self.tape, self.output, self._flat_dots(x_dots), self.tape.value)[1])


def hessian_product(tape: Tape, output: np.ndarray, x_dot: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and H v, each (n,), of the one output of a tape whose values are up to date."""
    tangent, adjoint, adjoint_tangent = (np.zeros(tape.n_slots) for _ in range(3))
    index = tape.input_index()
    tangent[index] = x_dot
    sweeps.tangent(tape, tangent, value)
    adjoint[output] = 1.0
    sweeps.second_order(tape, tangent, adjoint, adjoint_tangent, value)
    return adjoint[index], adjoint_tangent[index]


def jacobian_matrix(tape: Tape, output: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The Jacobian (m, n) of a tape whose values are up to date: K rows in one reverse pass, or a column in each tangent sweep."""
    index = tape.input_index()
    m, n = output.size, index.size
    matrix = np.zeros((m, n))
    if m <= 4 * n:
        k = int(max(1, min(m, 32, _JACOBIAN_BYTES // (8 * tape.n_slots))))
        for start in range(0, m, k):
            rows = np.arange(start, min(start + k, m))
            adjoint = np.zeros((tape.n_slots, rows.size))
            np.add.at(adjoint, (output[rows], np.arange(rows.size)), 1.0)
            sweeps.reverse(tape, adjoint, value)
            matrix[rows] = adjoint[index].T
        return matrix
    for column in range(n):
        tangent = np.zeros(tape.n_slots)
        tangent[index[column]] = 1.0
        sweeps.tangent(tape, tangent, value)
        matrix[:, column] = tangent[output]
    return matrix


def _shaped(flat: np.ndarray, shape: tuple[int, ...]) -> Any:
    return float(flat[0]) if shape == () else flat.reshape(shape)


def _active(outer: Tape, slots: np.ndarray, shape: tuple[int, ...]) -> Any:
    if shape == ():
        return scalar_or_array(outer, int(slots[0]), ())
    return Array.of_slots(outer, slots.reshape(shape))


def _checked(x: Any, shape: tuple[int, ...], name: str, whose: str) -> np.ndarray:
    numbers = real_array(x, name)
    _check_shape(numbers.shape, shape, name, whose)
    return numbers


def _lifted(outer: Tape, x: Any, shape: tuple[int, ...], name: str, whose: str) -> Array:
    array = lift_array(outer, x if is_active(x) else real_array(x, name))
    _check_shape(array.shape, shape, name, whose)
    return array


def _check_shape(got: tuple[int, ...], shape: tuple[int, ...], name: str, whose: str) -> None:
    if got != shape:
        raise ShapeError(f"{name} has shape {got}, but {whose} has shape {shape}; pass one number for each element")


def _argnums(argnums: int | Sequence[int], n_args: int) -> tuple[tuple[int, ...], bool]:
    """Which arguments, and whether the caller named just one."""
    single = isinstance(argnums, (int, np.integer))
    if not single and not isinstance(argnums, (tuple, list, range, np.ndarray)):
        raise TypeError(f"argnums must be an int or a sequence of ints, got {argnums!r}")
    wanted = (int(argnums),) if single else tuple(int(i) for i in argnums)  # type: ignore[union-attr, arg-type]
    for i in wanted:
        if not -n_args <= i < n_args:
            raise ShapeError(f"argnums={argnums}, but the function was called with {n_args} arguments")
    normalised = tuple(i % n_args for i in wanted)
    if len(set(normalised)) != len(normalised):
        raise ShapeError(f"argnums={argnums} names an argument twice")
    return normalised, single


@contextmanager
def _recorded(
    f: Callable, args: tuple, kwargs: dict, argnums: int | Sequence[int], lend: bool = True
) -> Iterator[tuple[Call, list[int], bool]]:
    """Record a call; also the order in which the caller named the arguments.

    Passive arrays are lent to the tape while the context lasts. A pullback, or a tape around this one, outlives it: the caller may change them.
    """
    wanted, single = _argnums(argnums, len(args))
    tape = Tape()
    try:
        call = Call(f, args, wanted, kwargs, lend and not open_tapes(), tape)
        yield call, [sorted(wanted).index(i) for i in wanted], single
    finally:
        tape.return_borrowed()


def _named(parts: Sequence[Any], order: Sequence[int], single: bool) -> Any:
    return parts[0] if single else tuple(parts[i] for i in order)


def _check_callable(f: Any) -> None:
    if not callable(f):
        raise TypeError(f"expected a function to differentiate, got {type(f).__name__}; write tj.grad(f)(x), not tj.grad(f(x))")


def value_and_grad(f: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns the value of `f` and its gradient.

    One recording and one reverse sweep, whatever the number of inputs [1]_.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code; must return a scalar.
    argnums : int or sequence of int
        Which positional arguments to differentiate by; the others are passive.

    Returns
    -------
    callable
        Takes the arguments of `f`; returns ``(value, gradient)``, the gradient in the shape of the argument, a tuple of gradients if
        `argnums` is a sequence.

    Raises
    ------
    ShapeError
        From the returned function: if `f` does not return a scalar, or an argument is not real floating-point numbers.

    References
    ----------
    .. [1] A. Griewank and A. Walther, *Evaluating Derivatives*, 2nd ed., SIAM, 2008, section 3.3.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> tj.value_and_grad(lambda x: np.sum(x**2))([1.0, 2.0])
    (5.0, array([2., 4.]))
    """
    _check_callable(f)

    @wraps(f)
    def value_and_gradient(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        with _recorded(f, args, kwargs, argnums) as (call, order, single):
            call.require_scalar("a gradient")
            return call.value(), _named(call.pull_back(1.0), order, single)

    return value_and_gradient


def grad(f: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns the gradient of `f`. See `value_and_grad`.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> tj.grad(lambda x, y: x * y + np.sin(x), argnums=(0, 1))(0.0, 3.0)
    (4.0, 0.0)
    >>> tj.grad(tj.grad(lambda x: x**3))(2.0)
    12.0
    """
    both = value_and_grad(f, argnums)

    @wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        return both(*args, **kwargs)[1]

    return gradient


def _tuple_of(x: Any, single: bool, n: int, name: str) -> tuple:
    parts = (x,) if single else tuple(x)
    if len(parts) != n:
        raise ShapeError(f"{name} has {len(parts)} entries, but {n} arguments are differentiated; pass one for each")
    return parts


def _last_apart(args: tuple, name: str) -> tuple[tuple, Any]:
    if len(args) < 2:
        raise TypeError(f"{len(args)} arguments were given; pass those of the function and, last, the direction {name}")
    return args[:-1], args[-1]


def jvp(f: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns the value of `f` and its derivative along a direction, by a tangent sweep.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code; may return a scalar, an array, or a list of either.
    argnums : int or sequence of int
        Which arguments to differentiate by.

    Returns
    -------
    callable
        Takes the arguments of `f` and, last, the tangent: the direction, in the shape of the argument (a tuple of them if `argnums` is a
        sequence). Returns ``(value, tangent of the value)``.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> tj.jvp(np.sin)(0.0, 2.0)
    (0.0, 2.0)
    """
    _check_callable(f)

    @wraps(f)
    def value_and_tangent(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        given, x_dot = _last_apart(args, "x_dot")
        with _recorded(f, given, kwargs, argnums) as (call, order, single):
            x_dots = _tuple_of(x_dot, single, len(order), "x_dot")
            by_position = [x_dots[order.index(i)] for i in range(len(order))]
            tangent = call.push_forward(by_position)
            return call.value(), tangent

    return value_and_tangent


def vjp(f: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns the value of `f` and its pullback, the map from an adjoint of the output to adjoints of the inputs.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code; may return a scalar, an array, or a list of either.
    argnums : int or sequence of int
        Which arguments to differentiate by.

    Returns
    -------
    callable
        Takes the arguments of `f`; returns ``(value, pullback)``. ``pullback(y_bar)`` takes an adjoint in the shape of the value and
        returns ``J.T @ y_bar`` in the shape of the argument; it may be called again.

    Examples
    --------
    >>> import tapejit as tj
    >>> value, pullback = tj.vjp(lambda x: x * x[::-1])([1.0, 2.0])
    >>> value, pullback([1.0, 0.0])
    (array([2., 2.]), array([2., 1.]))
    """
    _check_callable(f)

    @wraps(f)
    def value_and_pullback(*args: Any, **kwargs: Any) -> tuple[Any, Callable]:
        with _recorded(f, args, kwargs, argnums, lend=False) as (call, order, single):

            def pullback(y_bar: Any) -> Any:
                return _named(call.pull_back(y_bar), order, single)

            return call.value(), pullback

    return value_and_pullback


def jacobian(f: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns the Jacobian of `f`.

    The reverse sweep carries up to 32 rows in one pass; if there are far fewer inputs than outputs, tangent sweeps make the columns.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code; may return a scalar, an array, or a list of either.
    argnums : int or sequence of int
        Which arguments to differentiate by.

    Returns
    -------
    callable
        Takes the arguments of `f`; returns an ndarray of shape ``value.shape + argument.shape``, a tuple of them if `argnums` is a sequence.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> tj.jacobian(lambda x: [x[0] * x[1], np.sin(x[0])])([0.0, 3.0])
    array([[3., 0.],
           [1., 0.]])
    """
    _check_callable(f)

    @wraps(f)
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        with _recorded(f, args, kwargs, argnums) as (call, order, single):
            if call.outer is not None:
                return _named(_nested_jacobian(call), order, single)
            matrix = jacobian_matrix(call.tape, call.output, call.tape.value)
            return _named(_jacobian_parts(matrix, call.output_shape, call.shapes), order, single)

    return jacobian_of


def _jacobian_parts(matrix: np.ndarray, output_shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    parts, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape, dtype=np.int64))
        block = matrix[:, start : start + size].reshape(output_shape + shape)
        parts.append(block if block.ndim else float(block))
        start += size
    return parts


def _nested_jacobian(call: Call) -> list[Any]:
    assert call.outer is not None
    rows = [call.pull_back(np.eye(1, call.n_outputs, i).reshape(call.output_shape)) for i in range(call.n_outputs)]
    columns = zip(*rows, strict=True)
    return [
        np.reshape(lift_array(call.outer, list(column)), call.output_shape + shape) if call.output_shape + shape else column[0]
        for column, shape in zip(columns, call.shapes, strict=True)
    ]


def hvp(f: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns the product of the Hessian of `f` with a vector, without forming the Hessian.

    Forward over reverse on one tape: a small multiple of one gradient.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code; must return a scalar.
    argnums : int or sequence of int
        Which arguments to differentiate by.

    Returns
    -------
    callable
        Takes the arguments of `f` and, last, the vector in the shape of the argument (a tuple of them if `argnums` is a sequence); returns
        ``H @ v`` in the same shape.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> tj.hvp(lambda x: np.sum(x**3))([1.0, 2.0], [1.0, 1.0])
    array([ 6., 12.])
    """
    _check_callable(f)

    @wraps(f)
    def hessian_vector_product(*args: Any, **kwargs: Any) -> Any:
        given, v = _last_apart(args, "v")
        if not is_active([*given, v]):
            with _recorded(f, given, kwargs, argnums) as (call, order, single):
                if call.outer is None:
                    call.require_scalar("a Hessian-vector product")
                    parts = _tuple_of(v, single, len(order), "v")
                    return _named(call.hessian_product([parts[order.index(i)] for i in range(len(order))]), order, single)
        gradient = grad(f, argnums)
        if isinstance(argnums, (int, np.integer)):
            return jvp(gradient, argnums)(*args, **kwargs)[1]
        return _hvp_of_several(f, given, kwargs, tuple(argnums), v)

    return hessian_vector_product


def _hvp_of_several(f: Callable, args: tuple, kwargs: dict, argnums: tuple[int, ...], v: Any) -> tuple:
    """H v with several arguments inside a nested transform: the gradient of the derivative along `v`."""

    def along(*xs: Any) -> Any:
        return jvp(f, argnums)(*xs, v, **kwargs)[1]

    return grad(along, argnums)(*args)


def hessian(f: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns the Hessian of `f`, one second-order sweep a row on one recording.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code; must return a scalar.
    argnums : int or sequence of int
        Which arguments to differentiate by.

    Returns
    -------
    callable
        Takes the arguments of `f`; returns an ndarray of shape ``argument.shape + argument.shape``, a tuple of tuples of them if `argnums`
        is a sequence.

    Examples
    --------
    >>> import tapejit as tj
    >>> tj.hessian(lambda x: x[0] ** 2 * x[1])([1.0, 3.0])
    array([[6., 2.],
           [2., 0.]])
    """
    _check_callable(f)

    @wraps(f)
    def hessian_of(*args: Any, **kwargs: Any) -> Any:
        if not is_active(list(args)):
            with _recorded(f, args, kwargs, argnums) as (call, order, single):
                if call.outer is None:
                    call.require_scalar("a Hessian")
                    matrix = hessian_matrix(call.tape, call.output, call.tape.value)
                    blocks = _hessian_blocks(matrix, call.shapes)
                    return blocks[0][0] if single else tuple(tuple(blocks[i][j] for j in order) for i in order)
        return jacobian(grad(f, argnums), argnums)(*args, **kwargs) if np.ndim(argnums) == 0 else _nested_hessian(f, args, kwargs, argnums)

    return hessian_of


def _nested_hessian(f: Callable, args: tuple, kwargs: dict, argnums: Any) -> tuple:
    return tuple(jacobian(grad(f, i), argnums)(*args, **kwargs) for i in argnums)


def hessian_matrix(tape: Tape, output: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The Hessian (n, n) of the one output of a tape whose values are up to date."""
    n = tape.n_inputs
    matrix = np.empty((n, n))
    for row in range(n):
        direction = np.zeros(n)
        direction[row] = 1.0
        matrix[row] = hessian_product(tape, output, direction, value)[1]
    return matrix


def _hessian_blocks(matrix: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[list[Any]]:
    ends = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in shapes])
    starts = [0, *ends[:-1]]
    spans = list(zip(starts, ends, shapes, strict=True))
    blocks = [[matrix[a:b, c:d].reshape(s + t) for c, d, t in spans] for a, b, s in spans]
    return [[block if block.ndim else float(block) for block in row] for row in blocks]


# Recordings: replays at new inputs.


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

    def __init__(self, f: Callable, args: tuple, argnums: int | Sequence[int], on_branch_change: str, kwargs: dict) -> None:
        if on_branch_change not in ("record", "raise", "warn"):
            raise ValueError(f'on_branch_change must be "record", "raise" or "warn", got {on_branch_change!r}')
        if is_active([*args, *kwargs.values()]):
            raise TapejitError("tj.record inside a function that is being differentiated would drop the outer derivative; use tj.value_and_grad")
        self._f: Callable | None = f
        self._argnums, self._single = _argnums(argnums, len(args))
        self._kwargs = kwargs
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
            raise BranchChangeError("this recording was pickled without its function, so it cannot be recorded again; unpickle where it is defined")
        rest = iter(static)
        args = tuple(xs[self._argnums.index(i)] if i in self._argnums else next(rest) for i in range(len(self._argnums) + len(static)))
        with _detached():
            call = Call(self._f, args, self._argnums, self._kwargs)
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
            raise ShapeError(f"args has {len(args)} entries, but the function has {len(self._static)} arguments besides the differentiated ones")
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
        xs = _tuple_of(x, self._single, len(self._argnums), "x")
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
            return variant.output(value), _shaped(tangent[variant.call.output], variant.call.output_shape)

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
            parts = _jacobian_parts(jacobian_matrix(variant.tape, call.output, value), call.output_shape, call.shapes)
            return self._ordered(variant, parts)

    def hessian(self, x: Any, args: tuple | None = None) -> Any:
        """The Hessian of a scalar function at `x`, of shape ``x.shape + x.shape``; arguments as for `value`."""
        with self._replayed(x, args) as (variant, value):
            variant.call.require_scalar("a Hessian")
            blocks = _hessian_blocks(hessian_matrix(variant.tape, variant.call.output, value), variant.call.shapes)
            return blocks[0][0] if self._single else tuple(tuple(blocks[i][j] for j in variant.order) for i in variant.order)

    def _ordered(self, variant: Variant, parts: Sequence[Any]) -> Any:
        return _named(parts, variant.order, self._single)

    def _flat(self, variant: Variant, x_dot: Any) -> np.ndarray:
        dots = _tuple_of(x_dot, self._single, len(variant.order), "x_dot")
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
            value[first : first + size] = _checked(x, shape, "x", "the recorded argument").reshape(-1)
        sweeps.forward(self.tape, value)
        return self.tape.branch_change(value)

    def output(self, value: np.ndarray) -> Any:
        return _shaped(value[self.call.output], self.call.output_shape)

    def reverse(self, y_bar: Any, value: np.ndarray) -> list[Any]:
        seeds = _checked(y_bar, self.call.output_shape, "y_bar", "the output")
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
    """A static argument as it is now: its arrays are copied, and read-only, so that tapes can read them in place."""
    if isinstance(x, np.ndarray):
        frozen = x.copy()
        frozen.flags.writeable = False
        return frozen
    if type(x) in (list, tuple):
        return type(x)(_frozen(element) for element in x)
    if type(x) is dict:
        return {key: _frozen(given) for key, given in x.items()}
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
    _check_callable(f)
    return Recording(f, args, argnums, on_branch_change, kwargs)

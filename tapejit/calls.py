"""A function recorded at one point, and the sweeps that a transform makes of it.

`Call` is what all transforms share: it turns arguments into inputs, runs the function on a tape, and carries adjoints and tangents over it, as
plain numbers or, inside another transform, on the outer tape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher

from tapejit import sweeps
from tapejit.errors import ShapeError, TapejitError
from tapejit.parameters import on_tape
from tapejit.recording.array import Array, actives, is_active, lift_array, scalar_or_array
from tapejit.recording.nesting import Transcript, outer_tape
from tapejit.recording.numpy_rules import plain_value
from tapejit.recording.recorder import Tape, real_array

__all__ = ["Call", "hessian_matrix", "hessian_product", "jacobian_matrix"]

# Bytes of adjoints that one pass of a Jacobian may take.
JACOBIAN_BYTES = 1 << 28


def is_compiled(f: Any) -> bool:
    """Whether `f` was compiled by Numba, so that it is recorded natively."""
    return isinstance(f, Dispatcher)


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
    short_lived : bool
        Whether the tape ends with the transform.
    replayed : bool
        Whether the tape will be replayed: compiled code then keeps its decisions.
    parameters : collection of int and str
        Which of the other arguments, by position or by name, have their floats on the tape, where a replay may change them.
    """

    def __init__(
        self,
        f: Callable,
        args: tuple,
        argnums: tuple[int, ...],
        kwargs: dict | None = None,
        short_lived: bool = False,
        replayed: bool = False,
        parameters: Collection[int | str] = (),
    ) -> None:
        self.tape = Tape()
        self.tape.short_lived = short_lived
        self.args = args
        self.parameters = parameters
        arguments, keywords = list(args), dict(kwargs or {})
        self.shapes: list[tuple[int, ...]] = []
        self.scalar: list[bool] = []
        self.points: list[Any] = []
        with self.tape as tape:
            for i, x in enumerate(args):
                if i in argnums:
                    arguments[i] = self._input(tape, x)
            # After all inputs, so that parameters are one run of slots.
            for i in range(len(args)):
                if i in parameters:
                    arguments[i] = on_tape(tape, arguments[i], is_compiled(f))
            for name in keywords:
                if name in parameters:
                    keywords[name] = on_tape(tape, keywords[name], is_compiled(f))
            tape.tries_parameters = bool(tape.parameter_slots)
            if is_compiled(f):
                from tapejit.recording.native.calls import call

                output = call(tape, f, arguments, keywords, args, keeps_guards=replayed, owns_arguments=replayed)
            else:
                output = f(*arguments, **keywords)
            self._take_output(tape, output)
            tape.tries_parameters = False
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
            raise ShapeError(
                "the function returned a dict; return a number, an array, or a list of numbers or arrays of one shape"
            )
        if output is None:
            raise ShapeError("the function returned None; did it forget to return its result?")
        try:
            array = lift_array(tape, output)
        except TypeError as error:
            if isinstance(error, TapejitError):
                raise
            raise ShapeError(
                f"the function returned {type(output).__name__}; return a number or an array of numbers"
            ) from None
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
            return shaped(self.tape.value[self.output], self.output_shape)
        return active(self.outer, self.output + self.transcript(self.outer).shift, self.output_shape)

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
            seeds = checked(y_bar, self.output_shape, "y_bar", "the output")
            return self._split(sweeps.input_adjoint(self.tape, self.output, seeds.reshape(-1)))
        seed = lifted(outer, y_bar, self.output_shape, "y_bar", "the output")
        bars = self.transcript(outer).reverse([(self.output, seed)])
        return [active(outer, bar, shape) for bar, shape in zip(bars, self.shapes, strict=True)]

    def _split(self, flat: np.ndarray) -> list[Any]:
        out, start = [], 0
        for shape in self.shapes:
            size = int(np.prod(shape, dtype=np.int64))
            out.append(shaped(flat[start : start + size], shape))
            start += size
        return out

    def push_forward(self, x_dots: Sequence[Any]) -> Any:
        """Tangent of the output for tangents of the inputs."""
        outer = self._outer_with(x_dots)
        if outer is None:
            tangent = np.zeros(self.tape.n_slots)
            tangent[self.tape.input_index()] = self._flat_dots(x_dots)
            sweeps.tangent(self.tape, tangent)
            return shaped(tangent[self.output], self.output_shape)
        transcript = self.transcript(outer)
        dots = [
            lifted(outer, x_dot, shape, "x_dot", "the argument").slots()
            for x_dot, shape in zip(x_dots, self.shapes, strict=True)
        ]
        return active(outer, transcript.tangent(dots, self.output), self.output_shape)

    def _flat_dots(self, x_dots: Sequence[Any]) -> np.ndarray:
        parts = [
            checked(x_dot, shape, "x_dot", "the argument") for x_dot, shape in zip(x_dots, self.shapes, strict=True)
        ]
        return np.concatenate([part.reshape(-1) for part in parts]) if parts else np.zeros(0)

    def hessian_product(self, x_dots: Sequence[Any]) -> list[Any]:
        """H v of a scalar function by the second-order sweep; plain numbers only."""
        return self._split(hessian_product(self.tape, self.output, self._flat_dots(x_dots), self.tape.value)[1])


def hessian_product(
    tape: Tape, output: np.ndarray, x_dot: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
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
        k = int(max(1, min(m, 32, JACOBIAN_BYTES // (8 * tape.n_slots))))
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


def hessian_matrix(tape: Tape, output: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The Hessian (n, n) of the one output of a tape whose values are up to date."""
    n = tape.n_inputs
    matrix = np.empty((n, n))
    for row in range(n):
        direction = np.zeros(n)
        direction[row] = 1.0
        matrix[row] = hessian_product(tape, output, direction, value)[1]
    return matrix


def hessian_blocks(matrix: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[list[Any]]:
    ends = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in shapes])
    starts = [0, *ends[:-1]]
    spans = list(zip(starts, ends, shapes, strict=True))
    blocks = [[matrix[a:b, c:d].reshape(s + t) for c, d, t in spans] for a, b, s in spans]
    return [[block if block.ndim else float(block) for block in row] for row in blocks]


def jacobian_parts(matrix: np.ndarray, output_shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    parts, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape, dtype=np.int64))
        block = matrix[:, start : start + size].reshape(output_shape + shape)
        parts.append(block if block.ndim else float(block))
        start += size
    return parts


def shaped(flat: np.ndarray, shape: tuple[int, ...]) -> Any:
    return float(flat[0]) if shape == () else flat.reshape(shape)


def active(outer: Tape, slots: np.ndarray, shape: tuple[int, ...]) -> Any:
    if shape == ():
        return scalar_or_array(outer, int(slots[0]), ())
    return Array.of_slots(outer, slots.reshape(shape))


def checked(x: Any, shape: tuple[int, ...], name: str, whose: str) -> np.ndarray:
    numbers = real_array(x, name)
    check_shape(numbers.shape, shape, name, whose)
    return numbers


def lifted(outer: Tape, x: Any, shape: tuple[int, ...], name: str, whose: str) -> Array:
    array = lift_array(outer, x if is_active(x) else real_array(x, name))
    check_shape(array.shape, shape, name, whose)
    return array


def check_shape(got: tuple[int, ...], shape: tuple[int, ...], name: str, whose: str) -> None:
    if got != shape:
        raise ShapeError(f"{name} has shape {got}, but {whose} has shape {shape}; pass one number for each element")


def normalised_argnums(argnums: int | Sequence[int], n_args: int) -> tuple[tuple[int, ...], bool]:
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


def named(parts: Sequence[Any], order: Sequence[int], single: bool) -> Any:
    return parts[0] if single else tuple(parts[i] for i in order)


def check_callable(f: Any) -> None:
    if not callable(f):
        raise TypeError(
            f"expected a function to differentiate, got {type(f).__name__}; write tj.grad(f)(x), not tj.grad(f(x))"
        )


def tuple_of(x: Any, single: bool, n: int, name: str) -> tuple:
    parts = (x,) if single else tuple(x)
    if len(parts) != n:
        raise ShapeError(f"{name} has {len(parts)} entries, but {n} arguments are differentiated; pass one for each")
    return parts

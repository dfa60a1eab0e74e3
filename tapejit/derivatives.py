"""The public transforms of functions: gradients, Jacobians and Hessians.

A transform records the function afresh at every call, so control flow is always right. Transforms nest: inside a function that is itself
being differentiated, a transform's result is recorded on the outer tape (`tapejit.recording.nesting`). For replays of one recording
see `tapejit.replays`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np

from tapejit.calls import (
    Call,
    check_callable,
    hessian_blocks,
    hessian_matrix,
    jacobian_matrix,
    jacobian_parts,
    named,
    normalised_argnums,
    tuple_of,
)
from tapejit.recording.array import is_active, lift_array

__all__ = ["grad", "hessian", "hvp", "jacobian", "jvp", "value_and_grad", "vjp"]


def _recorded(
    f: Callable, args: tuple, kwargs: dict, argnums: int | Sequence[int], short_lived: bool = True
) -> tuple[Call, list[int], bool]:
    """Record a call; also the order in which the caller named the arguments."""
    wanted, single = normalised_argnums(argnums, len(args))
    call = Call(f, args, wanted, kwargs, short_lived)
    return call, [sorted(wanted).index(i) for i in wanted], single


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
    check_callable(f)

    @wraps(f)
    def value_and_gradient(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        call, order, single = _recorded(f, args, kwargs, argnums)
        call.require_scalar("a gradient")
        return call.value(), named(call.pull_back(1.0), order, single)

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
    check_callable(f)

    @wraps(f)
    def value_and_tangent(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        given, x_dot = _last_apart(args, "x_dot")
        call, order, single = _recorded(f, given, kwargs, argnums)
        x_dots = tuple_of(x_dot, single, len(order), "x_dot")
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
    check_callable(f)

    @wraps(f)
    def value_and_pullback(*args: Any, **kwargs: Any) -> tuple[Any, Callable]:
        call, order, single = _recorded(f, args, kwargs, argnums, short_lived=False)

        def pullback(y_bar: Any) -> Any:
            return named(call.pull_back(y_bar), order, single)

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
    check_callable(f)

    @wraps(f)
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        call, order, single = _recorded(f, args, kwargs, argnums)
        if call.outer is not None:
            return named(_nested_jacobian(call), order, single)
        matrix = jacobian_matrix(call.tape, call.output, call.tape.value)
        return named(jacobian_parts(matrix, call.output_shape, call.shapes), order, single)

    return jacobian_of


def _nested_jacobian(call: Call) -> list[Any]:
    assert call.outer is not None
    rows = [call.pull_back(np.eye(1, call.n_outputs, i).reshape(call.output_shape)) for i in range(call.n_outputs)]
    columns = zip(*rows, strict=True)
    return [
        np.reshape(lift_array(call.outer, list(column)), call.output_shape + shape)
        if call.output_shape + shape
        else column[0]
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
    check_callable(f)

    @wraps(f)
    def hessian_vector_product(*args: Any, **kwargs: Any) -> Any:
        given, v = _last_apart(args, "v")
        if not is_active([*given, v]):
            call, order, single = _recorded(f, given, kwargs, argnums)
            if call.outer is None:
                call.require_scalar("a Hessian-vector product")
                parts = tuple_of(v, single, len(order), "v")
                return named(call.hessian_product([parts[order.index(i)] for i in range(len(order))]), order, single)
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
    check_callable(f)

    @wraps(f)
    def hessian_of(*args: Any, **kwargs: Any) -> Any:
        if not is_active(list(args)):
            call, order, single = _recorded(f, args, kwargs, argnums)
            if call.outer is None:
                call.require_scalar("a Hessian")
                matrix = hessian_matrix(call.tape, call.output, call.tape.value)
                blocks = hessian_blocks(matrix, call.shapes)
                return blocks[0][0] if single else tuple(tuple(blocks[i][j] for j in order) for i in order)
        return (
            jacobian(grad(f, argnums), argnums)(*args, **kwargs)
            if np.ndim(argnums) == 0
            else _nested_hessian(f, args, kwargs, argnums)
        )

    return hessian_of


def _nested_hessian(f: Callable, args: tuple, kwargs: dict, argnums: Any) -> tuple:
    return tuple(jacobian(grad(f, i), argnums)(*args, **kwargs) for i in argnums)

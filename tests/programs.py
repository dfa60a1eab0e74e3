"""Random programs: the same list of instructions run on plain numbers, on active values, and inside transforms.

A program is a list of instructions ``(kind, i, j, k)``. The integers choose operands, shapes and places modulo what there is, so every list
is a program and hypothesis can shrink it. Values stay of moderate size and away from the ends of domains: a difference between two paths
is then a bug and not a condition number. Inputs are random numbers, so no kink is met exactly.
"""

from __future__ import annotations

import inspect
import operator

import hypothesis.strategies as st
import numpy as np
import scipy.special

from tapejit.ops import OPS, REAL

# Into the domain of a row.


def squashed(x):
    """Smoothly into (-1, 1)."""
    return x / np.sqrt(1.0 + x * x)


def into(interval, x):
    """Smoothly into an interval, away from its ends."""
    if interval == REAL:
        return 2.0 * squashed(x)
    low, high = interval.low, interval.high
    if np.isinf(high):
        return low + 1.25 + squashed(x)
    return 0.5 * (low + high) + 0.45 * (high - low) * squashed(x)


def _callables():
    """What answers to a row of the op table: NumPy's or SciPy's function."""
    for op in OPS:
        function = next((getattr(np, name) for name in op.numpy), None)
        if function is None:
            function = next((getattr(scipy.special, name, None) for name in op.scipy), None)
        if op.arity and not op.boolean and isinstance(function, np.ufunc):
            yield op, function


UNARY = [(op, function) for op, function in _callables() if op.arity == 1]
BINARY = [(op, function) for op, function in _callables() if op.arity == 2]
BOOLEAN = [np.less, np.less_equal, np.greater, np.greater_equal, np.not_equal]
POWERS = [2, 3, 0.5, -1, 1, 0, 2.5, -2, 4]


def unary(number, x):
    """One of the rows with one operand."""
    op, function = UNARY[number % len(UNARY)]
    if op.name in ("reciprocal", "cbrt", "gammaln", "digamma"):  # away from their poles
        return function(1.5 + squashed(x))
    if op.name == "tan":
        return function(squashed(x))
    return function(into(op.domain[0], x))


def binary(number, x, y):
    """One of the rows with two operands."""
    op, function = BINARY[number % len(BINARY)]
    if op.name in ("power", "xlogy", "arctan2", "hypot"):
        return function(1.5 + squashed(x), 1.5 + squashed(y))
    if op.name in ("div", "fmod", "remainder", "floor_divide"):
        return function(into(REAL, x), 2.5 + squashed(y))
    return function(into(op.domain[0], x), into(op.domain[1], y))


def power(number, x):
    """A power with a plain exponent."""
    return (1.5 + squashed(x)) ** POWERS[number % len(POWERS)]


_ARITHMETIC = [
    lambda x, y: 0.5 * (x + y),
    lambda x, y: 0.5 * (x - y),
    lambda x, y: np.tanh(x) * y,
    lambda x, y: x / (2.0 + np.sin(y)),
    lambda x, y: -x + 0.25 * y,
    lambda x, y: 0.5 * abs(x) - 0.5 * y,
]


def arithmetic(number, x, y):
    """Python's operators, growing nothing."""
    return _ARITHMETIC[number % len(_ARITHMETIC)](x, y)


# Scalar programs: the values so far in a list, each instruction appends one.


def _s_unary(values, i, j, k):
    return unary(i, values[j % len(values)])


def _s_binary(values, i, j, k):
    return binary(i, values[j % len(values)], values[k % len(values)])


def _s_arithmetic(values, i, j, k):
    return arithmetic(i, values[j % len(values)], values[k % len(values)])


def _s_power(values, i, j, k):
    return power(i, values[j % len(values)])


def _s_constant(values, i, j, k):
    x, number = values[j % len(values)], (k % 7 - 3) * 0.5 + 0.25
    return arithmetic(i, x, number) if k % 2 else arithmetic(i, number, x)


def _s_exponential(values, i, j, k):
    return 2.0 ** (squashed(values[j % len(values)])) if i % 2 else divmod(squashed(values[j % len(values)]), 0.3)[1]


def _s_where(values, i, j, k):
    x, y = values[j % len(values)], values[k % len(values)]
    return np.where(BOOLEAN[i % len(BOOLEAN)](x, y), np.sin(x), 0.5 * y)


def _s_branch(values, i, j, k):
    x, y = values[j % len(values)], values[k % len(values)]
    return np.tanh(x) * y if x < 0.5 + 0.1 * (i % 10) else 0.5 * (x + y)


_SCALAR = {
    "unary": _s_unary,
    "binary": _s_binary,
    "arithmetic": _s_arithmetic,
    "power": _s_power,
    "constant": _s_constant,
    "exponential": _s_exponential,
    "where": _s_where,
    "branch": _s_branch,
}


def scalar_function(program, plain=False):
    """The function of a vector that a scalar program computes."""
    assert all(len(inspect.signature(step).parameters) == 4 for step in _SCALAR.values())

    def f(x):
        values = [x[i] for i in range(len(x))]
        for kind, i, j, k in program:
            new = _SCALAR[kind](values, i, j, k)
            values.append(np.float64(new) if plain else new)
        total = values[-1]
        for x_i in values[:-1][-4:]:
            total = total + 0.5 * x_i
        return total

    return f


# Array programs: the arrays so far in a list.


def _pick(arrays, i):
    return arrays[i % len(arrays)]


def _partner(arrays, x, i):
    """An array so far that broadcasts with `x` to nothing much larger."""
    fitting = [y for y in arrays if _fits(np.shape(x), np.shape(y))]
    return fitting[i % len(fitting)]


def _fits(a, b):
    try:
        return np.prod(np.broadcast_shapes(a, b)) <= 2000
    except ValueError:
        return False


def _data(shape, seed):
    """Passive numbers; C or Fortran order, or strided."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return np.asfortranarray(rng.uniform(-1.5, 1.5, shape))
    if seed % 3 == 1 and len(shape):
        return rng.uniform(-1.5, 1.5, (*shape[:-1], 2 * shape[-1]))[..., ::2]
    return rng.uniform(-1.5, 1.5, shape)


def _slice(extent, i):
    """A slice that is not empty: forwards, backwards, with steps."""
    start = i % extent
    return [
        slice(start, None),
        slice(None, start + 1),
        slice(None, None, -1),
        slice(start, None, 2),
        slice(None),
        slice(start, None, -1),
    ][i % 6]


def _a_unary(arrays, i, j, k):
    return unary(i, _pick(arrays, j))


def _a_binary(arrays, i, j, k):
    x = _pick(arrays, j)
    return binary(i, x, _partner(arrays, x, k))


def _a_arithmetic(arrays, i, j, k):
    x = _pick(arrays, j)
    return arithmetic(i, x, _partner(arrays, x, k))


def _a_power(arrays, i, j, k):
    return power(i, _pick(arrays, j))


def _a_passive(arrays, i, j, k):
    x = _pick(arrays, j)
    data = _data(np.shape(x), k)
    return arithmetic(i, data, x) if k % 2 else arithmetic(i, x, data)


def _a_number(arrays, i, j, k):
    x, number = _pick(arrays, j), 0.25 + 0.5 * (k % 5)
    return arithmetic(i, number, x) if k % 2 else arithmetic(i, x, number)


def _a_chain(arrays, i, j, k):
    """Elementwise steps one after the other: blocks that join."""
    x = y = _pick(arrays, j)
    for step in range(3 + i % 40):
        x, y = y, arithmetic((i >> 2) + 5 * step, x, y) if (step + k) % 3 else np.sin(y) * 0.75 + 0.125 * (k % 4)
    return y


def _a_chain_with_views(arrays, i, j, k):
    """A chain in which a step reads a reversed or shifted view: joined blocks must end there."""
    x = np.ravel(_pick(arrays, j))
    y = np.cos(x)
    for step in range(2 + i % 5):
        view = [y[::-1], np.roll(y, 1 + k % 3), y, y[np.arange(y.size) // 2]][(step + k) % 4]
        y = 0.5 * (y + np.sin(view))
    return y


def _a_slice(arrays, i, j, k):
    x = _pick(arrays, j)
    if not np.ndim(x):
        return x
    key = [slice(None)] * np.ndim(x)
    axis = k % np.ndim(x)
    key[axis] = _slice(np.shape(x)[axis], i)
    return x[tuple(key)]


def _a_item(arrays, i, j, k):
    x = _pick(arrays, j)
    return x[i % np.shape(x)[0]] if np.ndim(x) else x


def _a_fancy(arrays, i, j, k):
    x = _pick(arrays, j)
    if not np.ndim(x):
        return x
    n = np.shape(x)[0]
    return x[np.random.default_rng(i).integers(-n, n, 1 + k % 6)]


def _a_mask(arrays, i, j, k):
    x = np.ravel(_pick(arrays, j))
    mask = np.random.default_rng(i).random(x.size) < 0.6
    mask[k % x.size] = True
    return x[mask]


_SHAPE = [
    lambda x: np.reshape(x, -1),
    np.transpose,
    lambda x: np.reshape(x, (-1, 1)),
    lambda x: x[None],
    lambda x: np.flip(x),
    lambda x: np.roll(x, 2),
    lambda x: np.concatenate([np.ravel(x), np.ravel(x)[:3]]),
    lambda x: np.stack([x, 0.5 * x]) if np.size(x) < 800 else x,
    lambda x: np.tril(x) if np.ndim(x) == 2 else x,
    lambda x: (
        np.array([np.ravel(x)[0], np.ravel(x)[-1]]) * np.ravel(x)[0]
    ),  # an array of objects until it meets an active one
    lambda x: np.broadcast_to(x, (2, *np.shape(x))) if np.size(x) < 800 else x,
    lambda x: np.repeat(x, 2) if np.size(x) < 800 else x,
]


def _a_shape(arrays, i, j, k):
    x = _pick(arrays, j)
    return _SHAPE[i % len(_SHAPE)](x) if np.ndim(x) and np.ndim(x) < 4 else x


_REDUCTIONS = [np.sum, np.mean, np.max, np.cumsum, np.min]


def _a_reduce(arrays, i, j, k):
    x = _pick(arrays, j)
    if not np.ndim(x):
        return x
    axis = [None, *range(np.ndim(x)), -1][k % (np.ndim(x) + 2)]
    return _REDUCTIONS[i % len(_REDUCTIONS)](x, axis=axis) / np.sqrt(np.size(x))


def _a_product(arrays, i, j, k):
    x = _pick(arrays, j)
    n = np.size(x)
    if n > 1000:
        return np.dot(np.ravel(x), np.ravel(x)) / n
    if np.ndim(x) != 2:
        return [lambda: np.dot(np.ravel(x), np.ravel(x)), lambda: _data((4, n), k) @ np.ravel(x)][i % 2]() / n
    rows, columns = np.shape(x)
    if rows > 40 or columns > 40:
        return np.ones(rows) @ x / rows
    return [
        lambda: x @ np.transpose(x) / columns,
        lambda: np.transpose(x) @ x / rows,
        lambda: x @ _data((columns, 3), k) / columns,
        lambda: _data((3, rows), k) @ x / rows,
        lambda: x[::-1] @ x[0] / columns,
        lambda: np.transpose(x)[:, ::2] @ x[::2] / rows,
    ][i % 6]()


def _a_where(arrays, i, j, k):
    x = _pick(arrays, j)
    y = _partner(arrays, x, k)
    return np.where(BOOLEAN[i % len(BOOLEAN)](x, y), np.sin(x), 0.5 * y)


def _a_assign(arrays, i, j, k):
    """In place: a slice, a slice of a view, an element, places that repeat."""
    x = _pick(arrays, j)
    if not np.ndim(x):
        return x
    y = np.zeros_like(x) if i % 5 == 0 else x.copy()
    flat = np.reshape(y, -1)
    n = flat.size
    at = _slice(n, k)
    which = (i // 5) % 6
    if which == 0:
        flat[at] = np.sin(np.ravel(x))[at][::-1]
    elif which == 1:
        flat[at] *= 0.5
    elif which == 2:
        flat[k % n] = np.cos(np.ravel(x)[0])
    elif which == 3:
        flat[np.array([k % n, 0, -1])] -= 0.25
    elif which == 4:
        view = flat[::2]
        view += 0.5 * view[::-1]
    else:
        y[...] = np.tanh(x)
        flat[at] = 1.5
    return y + 0.0 * x if i % 2 else y


_ARRAY = {
    "unary": _a_unary,
    "binary": _a_binary,
    "arithmetic": _a_arithmetic,
    "power": _a_power,
    "passive": _a_passive,
    "number": _a_number,
    "chain": _a_chain,
    "chain_with_views": _a_chain_with_views,
    "slice": _a_slice,
    "item": _a_item,
    "fancy": _a_fancy,
    "mask": _a_mask,
    "shape": _a_shape,
    "reduce": _a_reduce,
    "product": _a_product,
    "where": _a_where,
    "assign": _a_assign,
}
ELEMENTWISE = ("unary", "binary", "arithmetic", "power", "passive", "number", "chain", "where")


def array_function(program):
    """The scalar function of an array that an array program computes: every entry of its last arrays counts."""

    def f(x):
        arrays = [x]
        for kind, i, j, k in program:
            arrays.append(_ARRAY[kind](arrays, i, j, k))
        total = np.sum(arrays[0]) * 0.01
        for n, array in enumerate(arrays[1:][-4:]):
            total = total + np.sum(array * _data(np.shape(array), n)) / np.sqrt(np.size(array))
        return total

    return f


def elementwise_function(program):
    """As `array_function`, without a sum: the last array, by elementwise steps alone."""

    def f(x):
        arrays = [x]
        for kind, i, j, k in program:
            arrays.append(_ARRAY[kind](arrays, i, j, k))
        return operator.add(arrays[-1], 0.5 * arrays[len(arrays) // 2])

    return f


def _instructions(kinds, max_size):
    number = st.integers(0, 4095)
    return st.lists(st.tuples(st.sampled_from(kinds), number, number, number), min_size=1, max_size=max_size)


def scalar_programs(max_size=40):
    """Strategy: scalar programs."""
    return _instructions(list(_SCALAR), max_size)


def array_programs(max_size=8, kinds=tuple(_ARRAY)):
    """Strategy: array programs."""
    return _instructions(list(kinds), max_size)


# Lengths around a tile (256) and beyond two; matrices; the smallest arrays.
SHAPES = [
    (1,),
    (2,),
    (3,),
    (7,),
    (3, 4),
    (5, 1),
    (2, 3, 2),
    (16, 16),
    (255,),
    (256,),
    (257,),
    (2, 257),
    (512,),
    (513,),
    (1000,),
]


def shapes(limit=None):
    """Strategy: shapes of the input, of at most `limit` elements."""
    return st.sampled_from([shape for shape in SHAPES if limit is None or np.prod(shape) <= limit])


def points(shape, seed):
    """Random inputs of a shape."""
    return np.random.default_rng(seed).uniform(-2.0, 2.0, shape)

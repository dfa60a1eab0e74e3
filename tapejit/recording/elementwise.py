"""NumPy's ufuncs on active operands: one scalar slot for scalars, one block for arrays.

The recorded value is NumPy's own. What is recorded is the row of the op table that answers to the ufunc's name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from tapejit import ops
from tapejit.errors import PassiveConversionError, UnsupportedError
from tapejit.layout import ELEMENTWISE
from tapejit.ops import CODE, Op
from tapejit.recording.array import (
    Array,
    actives,
    is_active,
    is_boolean,
    lift_array,
    operand_for,
    refuse_special,
    scalar_or_array,
)
from tapejit.recording.recorder import Tape, innermost, source_line
from tapejit.recording.variable import Truth, Variable, lift_scalar, power_lowered, record_scalar
from tapejit.sweeps.primitives import primitive_table

__all__ = ["apply", "array_power", "call_elementwise", "evaluate", "op_of_ufunc", "select"]


@cache
def _ops_by_ufunc() -> dict[str, Op]:
    return {name: op for op in ops.OPS for name in (*op.numpy, *op.scipy)}


@cache
def op_of_ufunc(ufunc: np.ufunc) -> Op | None:
    """The row that answers to a ufunc of NumPy or ``scipy.special``."""
    name = ufunc.__name__
    # The function itself, not just its name: a user's ufunc may be called `square` too.
    own = any(getattr(module, name, None) is ufunc for module in (np, sys.modules.get("scipy.special")))
    return _ops_by_ufunc().get(name) if own else None


def prepared(x: Any) -> Any:
    """An operand as a plain number, an ndarray, a Variable or an Array; lists and object arrays that hold active values become arrays."""
    if isinstance(x, Array):
        return x.item() if not x.shape else x
    if isinstance(x, (Variable, float, int)):
        return x
    if is_active(x):
        return lift_array(innermost(actives(x)), x)
    refuse_special(x)
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise UnsupportedError(f"active values are real, got an operand of dtype {x.dtype} ({source_line()})")
    return x if x.ndim else x[()]


def plain(x: Any) -> Any:
    """The numbers of a prepared operand."""
    if isinstance(x, Array):
        return x.numbers()
    # float64, not float: NumPy takes a Python float for float32 next to a float32 array.
    return np.float64(x._value) if isinstance(x, Variable) else x


def call_elementwise(ufunc: np.ufunc, inputs: Sequence[Any], out: Any = None, dtype: Any = None) -> Any:
    """Record ``ufunc(*inputs)``."""
    if dtype is not None and np.dtype(dtype) not in (np.float64, np.dtype(bool)):
        raise UnsupportedError(f"active values are float64; dtype={np.dtype(dtype)} is not supported ({source_line()})")
    ufunc = _of_booleans(ufunc, inputs)
    if ufunc is np.power or ufunc is np.float_power:
        result = _power_ufunc(ufunc, *inputs)
    elif ufunc is np.divmod or ufunc is np.modf:
        whole = call_elementwise(*((np.floor_divide, inputs) if ufunc is np.divmod else (np.trunc, inputs)))
        rest = call_elementwise(*((np.remainder, inputs) if ufunc is np.divmod else (np.subtract, (inputs[0], whole))))
        results = (whole, rest) if ufunc is np.divmod else (rest, whole)
        return tuple(stored(part, target) for part, target in zip(results, out or (None, None), strict=True))
    elif ufunc is np.conjugate:
        result = apply(ops.BY_NAME["positive"], inputs, np.positive)
    else:
        op = op_of_ufunc(ufunc)
        if op is None:
            raise UnsupportedError(
                f"np.{ufunc.__name__} is not differentiated by tapejit ({source_line()}); write it with supported functions, add it "
                "with tj.primitive, or pass tj.value(x) where its derivative is not wanted"
            )
        result = apply(op, inputs, ufunc)
    return stored(result, out)


_BITWISE = {
    np.bitwise_and: np.logical_and,
    np.bitwise_or: np.logical_or,
    np.bitwise_xor: np.logical_xor,
    np.invert: np.logical_not,
}
_ON_BOOLEANS = {
    np.add: np.logical_or,
    np.maximum: np.logical_or,
    np.fmax: np.logical_or,
    np.multiply: np.logical_and,
    np.minimum: np.logical_and,
    np.fmin: np.logical_and,
}


def _of_booleans(ufunc: np.ufunc, inputs: Sequence[Any]) -> np.ufunc:
    """What a ufunc is on booleans: ``mask + mask`` is `logical_or`, as in NumPy."""
    if ufunc in _BITWISE:
        if not all(is_boolean(x) for x in inputs):
            raise TypeError(
                f"ufunc '{ufunc.__name__}' not supported for active values that are not booleans; use np.{_BITWISE[ufunc].__name__}"
            )
        return _BITWISE[ufunc]
    if (
        (ufunc in _ON_BOOLEANS or ufunc is np.subtract)
        and all(is_boolean(x) for x in inputs)
        and any(np.ndim(x) for x in inputs)
    ):
        if ufunc is np.subtract:
            raise TypeError(
                "numpy boolean subtract, the `-` operator, is not supported, use the bitwise_xor, the `^` operator instead."
            )
        return _ON_BOOLEANS[ufunc]
    return ufunc


def stored(result: Any, out: Any) -> Any:
    """Write a result into NumPy's ``out=`` argument, if there is one."""
    if out is None:
        return result
    (target,) = out if isinstance(out, tuple) else (out,)
    if target is None:
        return result
    if not isinstance(target, Array):
        raise PassiveConversionError(
            f"a plain float array cannot hold active values ({source_line()}); allocate it with np.zeros(shape, like=x)"
        )
    if is_boolean(target) and not is_boolean(result):
        raise TypeError("a result of dtype float64 cannot be stored into out= of dtype bool")
    if np.shape(result) != target.shape:
        result = np.broadcast_to(result, target.shape)
    target[...] = result
    return target


def apply(op: Op, inputs: Sequence[Any], compute: Callable) -> Any:
    """Record a primitive on active and plain operands; `compute` gives the value of numbers or ndarrays."""
    operands = [prepared(x) for x in inputs]
    tape = innermost([x for x in operands if isinstance(x, (Variable, Array))])
    code = CODE[op.name]
    if not any(isinstance(x, Array) or (isinstance(x, np.ndarray) and x.ndim) for x in operands):
        return _scalar(tape, code, operands, compute)
    shape = np.broadcast_shapes(*(_shape_of(x) for x in operands))
    size = math.prod(shape)
    if size == 0:
        return Array.of_run(tape, 0, shape, op.boolean)
    if size == 1:
        scalars = [_only(x) for x in operands]
        return Array.of_run(tape, _scalar(tape, code, scalars, compute).slot, shape, op.boolean)
    reads = [operand_for(tape, x, shape) for x in operands]
    if tape.careful:
        _check_domain(tape, code, [plain(x) for x in operands], compute)
    first, value = tape.add_block(ELEMENTWISE, code, shape, reads, size)
    target = value.reshape(shape)
    # After `add_block`, which may have moved the values: read the operands where they are now.
    numbers = [plain(x) for x in operands]
    if isinstance(compute, np.ufunc):
        compute(*numbers, out=target, casting="unsafe")
    else:
        target[...] = compute(*numbers)
    return Array.of_run(tape, first, shape, op.boolean)


def _check_domain(tape: Tape, code: int, numbers: Sequence[Any], compute: Callable) -> None:
    with np.errstate(all="ignore"):  # the error says more than NumPy's warning
        result = compute(*numbers)
    tape.check_domain(code, numbers, result)


def _shape_of(x: Any) -> tuple[int, ...]:
    return x.shape if isinstance(x, (Array, np.ndarray)) else ()


def _only(x: Any) -> Any:
    """The one element of an operand of size 1."""
    if isinstance(x, Array):
        return x.item()
    return x.reshape(-1)[0] if isinstance(x, np.ndarray) else x


def _scalar(tape: Tape, code: int, operands: Sequence[Any], compute: Callable) -> Variable:
    lifted = [lift_scalar(tape, x) for x in operands]
    numbers = [np.float64(x._value) for x in lifted]
    if tape.careful:
        _check_domain(tape, code, numbers, compute)
    value = float(compute(*numbers))
    return record_scalar(code, *lifted, value=value)


# Powers.


def _power_ufunc(ufunc: np.ufunc, x: Any, y: Any) -> Any:
    if is_active(y):
        return apply(ops.BY_NAME["power"], (x, y), ufunc)
    y = prepared(y)
    if isinstance(y, np.ndarray):
        return apply(ops.BY_NAME["power_constant"], (x, y), lambda a, b: ufunc(a, b))
    return _lowered(prepared(x), float(y), lambda a: ufunc(a, y))


def array_power(x: Array, exponent: Any) -> Any:
    """``x**exponent``: as `np.power`, with the value that NumPy's operator gives for a plain scalar exponent."""
    if is_active(exponent) or np.ndim(exponent):
        return np.power(x, exponent)
    return _lowered(x, float(exponent), lambda a: a**exponent)


def _lowered(x: Any, exponent: float, compute: Callable) -> Any:
    if isinstance(x, Variable):
        return power_lowered(x, exponent, float(compute(np.float64(x._value))))
    if exponent == 1.0:
        return x.copy()
    if exponent == 0.0:
        return np.ones_like(x)
    row = {2.0: "square", 3.0: "cube", 0.5: "sqrt", -1.0: "reciprocal"}.get(exponent)
    if row is not None:
        return apply(ops.BY_NAME[row], (x,), compute)
    return apply(ops.BY_NAME["power_constant"], (x, exponent), lambda a, _: compute(a))


# Selection.


def select(condition: Any, x: Any, y: Any) -> Any:
    """``np.where(condition, x, y)``; a condition that is active is data on the tape, not a decision."""
    condition, x, y = prepared(condition), prepared(x), prepared(y)
    found = [z for z in (condition, x, y) if isinstance(z, (Variable, Array))]
    tape = innermost(found)
    shape = np.broadcast_shapes(np.shape(condition), np.shape(x), np.shape(y))
    boolean = is_boolean(x) and is_boolean(y)
    if isinstance(condition, (Variable, Array)) and not is_boolean(condition):
        condition = condition != 0.0
    if shape == ():
        if not isinstance(condition, Variable):
            return lift_scalar(tape, x if condition else y)
        c, a, b = (lift_scalar(tape, z) for z in (condition, x, y))
        value = a._value if c._value else b._value
        return (Truth if boolean else Variable)(
            tape, tape.push_select(c.slot, a.slot, b.slot, (c._value, value)), value
        )
    size = math.prod(shape)
    if size == 0:
        return Array.of_run(tape, 0, shape, boolean)
    if not isinstance(condition, (Variable, Array)) and all(
        isinstance(z, (Variable, Array)) or np.ndim(z) == 0 for z in (x, y)
    ):
        # A plain condition chooses slots: nothing to record.
        return Array.of_slots(
            tape, np.where(condition, lift_array(tape, x).slots(), lift_array(tape, y).slots()), boolean
        )
    if size == 1:
        return np.reshape(select(*(_only(z) for z in (condition, x, y))), shape)
    reads = [operand_for(tape, z, shape) for z in (condition, x, y)]
    first, target = tape.add_block(ELEMENTWISE, ops.SELECT, shape, reads, size)
    target.reshape(shape)[...] = np.where(np.asarray(plain(condition), dtype=bool), plain(x), plain(y))
    return scalar_or_array(tape, first, shape, boolean)


# Primitives that no NumPy function answers to.


def evaluate(name: str, *operands: Any) -> Any:
    """A primitive by its name, on plain numbers, arrays or active values.

    Raises
    ------
    KeyError
        If there is no such primitive; names the nearest.
    """
    op = ops.op_named(name)
    if len(operands) != op.arity:
        raise TypeError(f"{name} takes {op.arity} operands, got {len(operands)}")
    if name in ("power", "power_constant") and not any(is_active(x) for x in operands):
        return np.power(*operands)
    compute = _compiled(name)
    if any(is_active(x) for x in operands):
        return apply(op, operands, compute)
    result = compute(*operands)
    return result if result.ndim else float(result)


@cache
def _compiled(name: str) -> Callable:
    """The value of a primitive on numbers or ndarrays, by the kernels' own function."""
    from tapejit.sweeps.forward import value_kernel

    code = CODE[name]

    def compute(*operands: Any) -> np.ndarray:
        arrays = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in operands))
        shape = arrays[0].shape
        flat = [np.ascontiguousarray(a).reshape(-1) for a in arrays]
        out = np.empty(flat[0].size)
        n_user = max(0, code - ops.FIRST_USER + 1)
        value_kernel(code, flat[0], flat[-1], out, primitive_table("value", n_user))
        return out.reshape(shape)

    return compute


# NumPy's loops over object arrays call a method named after the ufunc: np.sin(np.array([x[0], x[1]])) is x[0].sin(), x[1].sin().


def _install_scalar_methods() -> None:
    for op in ops.OPS:
        for name in op.numpy:
            ufunc = getattr(np, name)
            if isinstance(ufunc, np.ufunc) and not hasattr(Variable, name):
                setattr(Variable, name, _scalar_method(ufunc))


def _scalar_method(ufunc: np.ufunc) -> Callable:
    def method(self: Variable, *others: Any) -> Any:
        return ufunc(self, *others)

    method.__name__ = method.__qualname__ = ufunc.__name__
    method.__doc__ = f"``np.{ufunc.__name__}(self, ...)``."
    return method


_install_scalar_methods()

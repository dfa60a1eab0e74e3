"""What `elementary` is written in: arithmetic that works on NumPy arrays and, the same text, on values of LLVM's.

A function of `elementary` is straight-line Python over ``+ - * /``, comparisons, and the functions below. Given arrays it computes;
given `Value` objects it emits one instruction an operation. `lowered` makes an LLVM function of it, which the compiler's modules and the
Numba kernels share, so both have the same bits in scalar and in vector form: no contraction, no reassociation.

Integers are the 64 bits of a double, unsigned; the vector units of ten years ago shift and add them, but convert none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numba
import numpy as np
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature

__all__ = ["Value", "absolute", "bits", "copysign", "floor", "from_bits", "lowered", "select", "sqrt"]

DOUBLE, INT, BOOL = ir.DoubleType(), ir.IntType(64), ir.IntType(1)


def element(kind: ir.Type) -> ir.Type:
    """The type of one number of a vector; a scalar's own."""
    return kind.element if isinstance(kind, ir.VectorType) else kind


def alike(kind: ir.Type, of: ir.Type) -> ir.Type:
    """The type of as many numbers as `kind` has, each an `of`."""
    return ir.VectorType(of, kind.count) if isinstance(kind, ir.VectorType) else of


def constant(kind: ir.Type, number: float | int) -> ir.Constant:
    """A number, in every lane of a vector."""
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


class Value:
    """A double, 64 bits or a truth value in a function that is being built, or a vector of them."""

    __slots__ = ("builder", "ir")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.ir = value

    def _with(self, other: Any) -> ir.Value:
        return other.ir if isinstance(other, Value) else constant(self.ir.type, other)

    def _do(self, doubles: str, integers: str, left: Any, right: Any) -> Value:
        emit = getattr(self.builder, doubles if element(self.ir.type) == DOUBLE else integers)
        return Value(self.builder, emit(self._with(left), self._with(right)))

    def _compare(self, symbol: str, other: Any) -> Value:
        right = self._with(other)
        if element(self.ir.type) == INT:
            return Value(self.builder, self.builder.icmp_unsigned(symbol, self.ir, right))
        ordered = self.builder.fcmp_unordered if symbol == "!=" else self.builder.fcmp_ordered
        return Value(self.builder, ordered(symbol, self.ir, right))

    def __add__(self, other: Any) -> Value:
        return self._do("fadd", "add", self, other)

    def __radd__(self, other: Any) -> Value:
        return self._do("fadd", "add", other, self)

    def __sub__(self, other: Any) -> Value:
        return self._do("fsub", "sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self._do("fsub", "sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return self._do("fmul", "mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self._do("fmul", "mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self._do("fdiv", "", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._do("fdiv", "", other, self)

    def __neg__(self) -> Value:
        return Value(self.builder, self.builder.fneg(self.ir))

    def __and__(self, other: Any) -> Value:
        return self._do("", "and_", self, other)

    def __or__(self, other: Any) -> Value:
        return self._do("", "or_", self, other)

    def __xor__(self, other: Any) -> Value:
        return self._do("", "xor", self, other)

    def __lshift__(self, other: Any) -> Value:
        return self._do("", "shl", self, other)

    def __rshift__(self, other: Any) -> Value:
        return self._do("", "lshr", self, other)

    def __lt__(self, other: Any) -> Value:
        return self._compare("<", other)

    def __le__(self, other: Any) -> Value:
        return self._compare("<=", other)

    def __gt__(self, other: Any) -> Value:
        return self._compare(">", other)

    def __ge__(self, other: Any) -> Value:
        return self._compare(">=", other)

    def __eq__(self, other: Any) -> Value:  # type: ignore[override]
        return self._compare("==", other)

    def __ne__(self, other: Any) -> Value:  # type: ignore[override]
        return self._compare("!=", other)


def select(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`; both are computed."""
    if not isinstance(condition, Value):
        return np.where(condition, a, b)
    default = alike(condition.ir.type, DOUBLE)
    kind = next((side.ir.type for side in (a, b) if isinstance(side, Value)), default)
    sides = (side.ir if isinstance(side, Value) else constant(kind, side) for side in (a, b))
    return Value(condition.builder, condition.builder.select(condition.ir, *sides))


def bits(x: Any) -> Any:
    """The bits of a double."""
    if isinstance(x, Value):
        return Value(x.builder, x.builder.bitcast(x.ir, alike(x.ir.type, INT)))
    return np.asarray(x).view(np.uint64)


def from_bits(i: Any) -> Any:
    """The double with these bits."""
    if isinstance(i, Value):
        return Value(i.builder, i.builder.bitcast(i.ir, alike(i.ir.type, DOUBLE)))
    return np.asarray(i).view(np.float64)


def _intrinsic(name: str, on_arrays: Callable) -> Callable:
    def function(*arguments: Any) -> Any:
        first = next((argument for argument in arguments if isinstance(argument, Value)), None)
        if first is None:
            return on_arrays(*arguments)
        values = [
            argument.ir if isinstance(argument, Value) else constant(first.ir.type, argument) for argument in arguments
        ]
        return Value(first.builder, intrinsic(first.builder, name, values))

    return function


def intrinsic(builder: ir.IRBuilder, name: str, values: list[ir.Value]) -> ir.Value:
    """A call of one of LLVM's own functions of doubles: ``"sqrt"``, ``"floor"``."""
    number = values[0].type
    kind = ir.FunctionType(number, [number] * len(values))
    suffix = f"v{number.count}f64" if isinstance(number, ir.VectorType) else "f64"
    return builder.call(_declared(builder.module, f"llvm.{name}.{suffix}", kind), values)


def _declared(module: ir.Module, name: str, kind: ir.FunctionType) -> ir.Function:
    return module.globals[name] if name in module.globals else ir.Function(module, kind, name)


sqrt = _intrinsic("sqrt", np.sqrt)
floor = _intrinsic("floor", np.floor)
absolute = _intrinsic("fabs", np.abs)
copysign = _intrinsic("copysign", np.copysign)


def lowered(
    module: ir.Module, name: str, function: Callable, arity: int, result: ir.Type = DOUBLE, number: ir.Type = DOUBLE
) -> ir.Function:
    """The LLVM function of an elementary function, in a module: built once, and inlined wherever it is called.

    Its arguments are of the type `number`: a double, or a vector of them.
    """
    symbol = f"tapejit.{name}" + (f".{number.count}" if isinstance(number, ir.VectorType) else "")
    if symbol in module.globals:
        return module.globals[symbol]
    built = ir.Function(module, ir.FunctionType(alike(number, result), [number] * arity), symbol)
    built.linkage = "internal"
    built.attributes.add("alwaysinline")
    built.attributes.add("nounwind")
    builder = ir.IRBuilder(built.append_basic_block())
    builder.ret(function(*(Value(builder, argument) for argument in built.args)).ir)
    return built


def known_to_numba(
    name: str, function: Callable, arity: int, in_range: Callable | None = None, condition: bool = False
) -> Callable:
    """`function` for kernels, which may call what is returned, as Python may.

    Where an argument is not `in_range`, the C library's function of the same name is called. The result is a double, or the truth
    value of a `condition`.
    """
    result_type, result = (numba.boolean, BOOL) if condition else (numba.float64, DOUBLE)

    def elementary(*arguments: float) -> float:
        with np.errstate(all="ignore"):
            if in_range is not None and not in_range(*map(np.float64, arguments)):
                return float(getattr(np, name)(*arguments))
            return np.asarray(function(*map(np.float64, arguments))).item()

    elementary.__name__ = name

    class Template(ConcreteTemplate):
        key = elementary
        cases = [signature(result_type, *[numba.float64] * arity)]

    infer_global(elementary, numba.types.Function(Template))

    @lower_builtin(elementary, *[numba.types.float64] * arity)
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, arguments: list[ir.Value]) -> ir.Value:
        core = lowered(builder.module, name, function, arity, result)
        if in_range is None:
            return builder.call(core, arguments)
        value = cgutils.alloca_once(builder, DOUBLE)
        fine = in_range(*(Value(builder, argument) for argument in arguments)).ir
        with builder.if_else(fine, likely=True) as (inside, outside):
            with inside:
                builder.store(builder.call(core, arguments), value)
            with outside:
                builder.store(builder.call(_library(builder.module, name, arity), arguments), value)
        return builder.load(value)

    return elementary


def _library(module: ir.Module, name: str, arity: int) -> ir.Function:
    """The C library's function, by its plain name: LLVM is to compute nothing itself that it knows of it."""
    if name not in module.globals:
        function = ir.Function(module, ir.FunctionType(DOUBLE, [DOUBLE] * arity), name)
        function.attributes.add("nobuiltin")
        function.attributes.add("nounwind")
    return module.globals[name]

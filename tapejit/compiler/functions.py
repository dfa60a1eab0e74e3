"""The functions that expressions call, and expressions themselves, as LLVM IR: the same bits as the kernels of the sweeps.

A function of `tapejit.sweeps.elementary` becomes an internal function of the module, inlined wherever it is called, so that loops over
it vectorise. LLVM has a few others itself. The rest is called through external symbols ``tapejit_digamma``: Numba's C functions,
which `register` makes known to LLVM.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import llvmlite.binding
import llvmlite.ir as ir

from tapejit import ops
from tapejit.expressions import Tree, compile_program
from tapejit.sweeps.elementary import FUNCTIONS, IN_RANGE
from tapejit.sweeps.kernel import primitive_kernel
from tapejit.sweeps.lowering import BOOL, DOUBLE, Value, alike, constant, element, intrinsic, lowered
from tapejit.sweeps.primitives import inlined
from tapejit.sweeps.special import NAMESPACE

__all__ = ["Functions", "register"]

_INTRINSICS = {name: name for name in ("sqrt", "floor", "ceil", "rint", "trunc", "copysign")} | {"abs": "fabs"}
_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_COMPARISONS = {"less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=", "equal": "=="}


class Functions:
    """What a module calls, for numbers of one type: doubles, or vectors of them.

    Attributes
    ----------
    externals : set of str
        Names of the external functions called so far; `register` them before the module runs.
    """

    def __init__(self, module: ir.Module, number: ir.Type = DOUBLE) -> None:
        self.module, self.number = module, number
        self.externals: set[str] = set()
        self.out_of_line = False  # for code that runs once: inlined, every call costs milliseconds to compile
        self._known: dict[tuple, tuple[ir.Value, ir.Value | None]] = {}

    def call(self, builder: ir.IRBuilder, name: str, args: list[ir.Value]) -> ir.Value:
        """A function of `NAMESPACE` applied to doubles; `isnan`, `isinf` and `isfinite` give an i1, the others a double."""
        if name in FUNCTIONS:
            function = lowered(self.module, name, *FUNCTIONS[name], number=args[0].type)
            call = builder.call(function, args)
            if self.out_of_line:
                call.attributes.add("noinline")
            return call
        if name in _INTRINSICS:
            return intrinsic(builder, _INTRINSICS[name], args)
        if name == "isnan":
            return builder.fcmp_unordered("uno", args[0], args[0])
        if name in ("isinf", "isfinite"):
            size = intrinsic(builder, "fabs", args)
            return builder.fcmp_ordered("==" if name == "isinf" else "<", size, constant(size.type, float("inf")))
        self.externals.add(name)
        external = self._external(name, len(args))
        if not isinstance(args[0].type, ir.VectorType):
            return builder.call(external, args)
        result = ir.Constant(args[0].type, ir.Undefined)
        for lane in range(args[0].type.count):
            at = ir.Constant(ir.IntType(32), lane)
            one = builder.call(external, [builder.extract_element(arg, at) for arg in args])
            result = builder.insert_element(result, one, at)
        return result

    def range_condition(self, builder: ir.IRBuilder, name: str, args: list[ir.Value]) -> ir.Value | None:
        """Whether `call` is right for these arguments, an i1; None where it always is.

        Where it is not, the interpreter is: sine, cosine and tangent of huge angles.
        """
        if name not in IN_RANGE:
            return None
        return IN_RANGE[name](*(Value(builder, argument) for argument in args)).ir

    def expression(
        self,
        builder: ir.IRBuilder,
        tree: Tree,
        operands: dict[str, ir.Value],
        in_range: list[ir.Value] | None = None,
    ) -> ir.Value:
        """The double that a tree over the operands `x`, `y`, `v` stands for, in the arithmetic of the kernels.

        Equal subexpressions of a basic block are computed once, whichever trees they come from, so the builder is to append to its
        block; both sides of a `select` are computed always. The conditions of `range_condition` are appended to `in_range`, once
        each; without one, nothing is reported.
        """
        program = compile_program(inlined(tree))
        steps: list[ir.Value] = []

        def argument(name: float | str | int) -> ir.Value:
            if isinstance(name, float):
                return constant(self.number, name)
            return operands[name] if isinstance(name, str) else steps[name]

        for name, *arguments in program.steps:
            steps.append(self._step(builder, name, [argument(part) for part in arguments], in_range))
        return _as_double(builder, argument(program.result))

    def _step(self, builder: ir.IRBuilder, name: str, args: list[ir.Value], in_range: list | None) -> ir.Value:
        # Constants by their text: 0.0 equals -0.0.
        key = (builder.block, name, *(str(part) if isinstance(part, ir.Constant) else part for part in args))
        if key not in self._known:
            doubles = [_as_double(builder, part) for part in args] if name != "select" else args
            self._known[key] = self._computed(builder, name, doubles), self.range_condition(builder, name, doubles)
        value, condition = self._known[key]
        if in_range is not None and condition is not None and not any(condition is known for known in in_range):
            in_range.append(condition)
        return value

    def _computed(self, builder: ir.IRBuilder, name: str, args: list[ir.Value]) -> ir.Value:
        if name in _ARITHMETIC:
            return getattr(builder, _ARITHMETIC[name])(*args)
        if name == "neg":
            return builder.fneg(*args)
        if name in _COMPARISONS:
            return builder.fcmp_ordered(_COMPARISONS[name], *args)
        if name == "not_equal":
            return builder.fcmp_unordered("!=", *args)
        if name == "select":
            return _select(builder, *args)
        return self.call(builder, name, args)

    def _external(self, name: str, arity: int) -> ir.Function:
        symbol = f"tapejit_{name}"
        if symbol not in self.module.globals:
            function = ir.Function(self.module, ir.FunctionType(DOUBLE, [DOUBLE] * arity), symbol)
            function.attributes.add("nounwind")
            function.attributes.add("readnone")  # LLVM reads it as memory(none)
        return self.module.globals[symbol]


def _select(builder: ir.IRBuilder, condition: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    if element(condition.type) != BOOL:
        condition = builder.fcmp_unordered("!=", condition, constant(condition.type, 0.0))
    if a.type != b.type:
        a, b = _as_double(builder, a), _as_double(builder, b)
    return builder.select(condition, a, b)


def _as_double(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A truth value as 1.0 or 0.0."""
    return builder.uitofp(value, alike(value.type, DOUBLE)) if element(value.type) == BOOL else value


_lock = threading.Lock()
_registered: dict[str, Any] = {}  # For the life of the process, as are the addresses.


def register(names: Iterable[str]) -> None:
    """Make external functions known to LLVM, compiling those that the disk cache lacks."""
    with _lock:
        for name in sorted(set(names) - _registered.keys()):
            function = primitive_kernel(_signature(name), _calling(name))
            llvmlite.binding.add_symbol(f"tapejit_{name}", function.address)
            _registered[name] = function


def _signature(name: str) -> str:
    return f"float64({', '.join(['float64'] * ops.op_named(name).arity)})"


def _calling(name: str) -> Any:
    """A Python function of its own, of which the disk cache knows the name."""
    parameters = ", ".join("xy"[: ops.op_named(name).arity])
    namespace = {name: NAMESPACE[name], "__name__": __name__}
    text = f"def tapejit_{name}({parameters}):\n    return {name}({parameters})\n"
    exec(compile(text, f"function_{name}.py", "exec"), namespace)  # our own text, made from a name of the table
    return namespace[f"tapejit_{name}"]

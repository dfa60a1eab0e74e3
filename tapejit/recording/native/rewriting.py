"""The pass that turns a user's function into its active version, on Numba's own intermediate representation.

Numba compiles the function for active argument types by itself; what it cannot know is changed here, after SSA and before typing:
arrays that active numbers reach are made active where they are made, called functions are replaced by their active versions and NumPy's
functions by ours, and loops look whether the recording must stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import ir
from numba.core.analysis import compute_cfg_from_blocks
from numba.core.dispatcher import Dispatcher, LiftedWith
from numba.core.ir_utils import mk_unique_var
from numba.typed import Dict, List

from tapejit.errors import UnsupportedError
from tapejit.recording.native.active import active_float
from tapejit.recording.native.activity import FunctionActivity, Program
from tapejit.recording.native.cells import Array, Known, Method, Other, Scalar, Tuple, cells_in, is_active
from tapejit.recording.native.effects import ALLOCATORS
from tapejit.recording.native.frontend import compiled_form, untyped_ir
from tapejit.recording.native.session import poll
from tapejit.recording.native.summaries import value_of_type

__all__ = ["rewrite"]

# Attributes of an active array that would show its memory as something else.
_REINTERPRETING = {"view", "ctypes", "tobytes", "data", "byteswap", "tofile", "getfield"}


def rewrite(
    function_ir: ir.FunctionIR, args: Sequence[types.Type], version_of: Callable[[Dispatcher], Dispatcher]
) -> None:
    """Change a function in place so that it compiles for active arguments.

    Parameters
    ----------
    function_ir : FunctionIR
        In SSA form.
    args : sequence of numba types
        Its parameters, active ones among them.
    version_of : callable
        Gives the active version of a called function.
    """
    activity = FunctionActivity(function_ir, None, Program(untyped_ir))
    activity.take([value_of_type(kind, activity.cell, ("parameter", i)) for i, kind in enumerate(args)])
    activity.run()
    _Rewriter(function_ir, activity, version_of).rewrite()


class _Rewriter:
    def __init__(self, function_ir: ir.FunctionIR, activity: FunctionActivity, version_of: Callable) -> None:
        self._ir = function_ir
        self._activity = activity
        self._version_of = version_of
        self._plain_calls: set[int] = set()

    def rewrite(self) -> None:
        polled = self._loops_that_record()
        for label, block in self._ir.blocks.items():
            out: list[Any] = []
            if label in polled:
                self._call(out, poll, [], block.loc, block.scope)
            for statement in block.body:
                self._statement(statement, out, block)
            # Phi nodes stand first in their block.
            phis = [s for s in out if isinstance(s, ir.Assign) and isinstance(s.value, ir.Expr) and s.value.op == "phi"]
            block.body = phis + [s for s in out if not any(s is phi for phi in phis)]
        self._ir._definitions = numba.core.ir_utils.build_definitions(self._ir.blocks)

    def _loops_that_record(self) -> set[int]:
        """Headers of loops in which something active is computed or a function called."""
        loops = compute_cfg_from_blocks(self._ir.blocks).loops()
        return {
            loop.header for loop in loops.values() if any(self._records(self._ir.blocks[label]) for label in loop.body)
        }

    def _records(self, block: ir.Block) -> bool:
        for statement in block.body:
            if isinstance(statement, ir.Assign) and isinstance(statement.value, ir.Expr):
                value = self._activity.value(statement.target.name)
                if (
                    value is not None
                    and is_active(value)
                    and statement.value.op in ("binop", "inplace_binop", "unary", "call")
                ):
                    return True
        return False

    # One statement.

    def _statement(self, statement: Any, out: list, block: ir.Block) -> None:
        if not isinstance(statement, ir.Assign):
            out.append(statement)
            return
        value = statement.value
        if isinstance(value, (ir.Global, ir.FreeVar, ir.Const)) and isinstance(value.value, LiftedWith):
            raise UnsupportedError(
                f"numba.objmode blocks are not recorded ({_line(statement.loc)}); compute there before the function that is differentiated, "
                "and pass the result"
            )
        if isinstance(value, (ir.Global, ir.FreeVar)):
            swapped = self._swapped(value.value)
            if swapped is not value.value:
                statement.value = ir.Global(value.name, swapped, value.loc)
        elif isinstance(value, ir.Expr) and value.op == "getattr":
            self._attribute(statement)
        elif isinstance(value, ir.Expr) and value.op == "call":
            self._called(statement, out, block)
        elif isinstance(value, ir.Expr) and value.op in ("build_list", "build_tuple"):
            self._listed(statement, out, block)
        elif isinstance(value, ir.Yield):
            raise UnsupportedError(
                f"generators are not recorded ({_line(statement.loc)}); return an array or a list instead"
            )
        self._activated(statement, out, block)

    def _swapped(self, thing: Any) -> Any:
        """Functions by their active versions."""
        thing = compiled_form(thing)
        if isinstance(thing, Dispatcher):
            return self._version_of(thing)
        if type(thing) is tuple and any(isinstance(item, (Dispatcher, tuple)) for item in thing):
            return tuple(self._swapped(item) for item in thing)
        return thing

    def _attribute(self, statement: ir.Assign) -> None:
        known = self._activity.value(statement.target.name)
        expr = statement.value
        base = self._activity.value(expr.value.name)
        if isinstance(known, Known) and isinstance(known.thing, Dispatcher):
            statement.value = ir.Global(expr.attr, self._version_of(known.thing), expr.loc)
        elif (
            expr.attr in _REINTERPRETING
            and isinstance(base, (Array, Other))
            and is_active(base)
            and not isinstance(known, Known)
        ):
            raise UnsupportedError(
                f".{expr.attr} of an active array shows its memory as something else ({_line(expr.loc)}); use a copy of the numbers that is "
                "not differentiated, or astype"
            )

    def _called(self, statement: ir.Assign, out: list, block: ir.Block) -> None:
        from tapejit.recording.native.tables import FUNCTIONS, METHODS

        expr = statement.value
        function = self._activity.value(expr.func.name)
        arguments = [self._activity.value(variable.name) for variable in [*expr.args, *(kw for _, kw in expr.kws)]]
        active = any(argument is not None and is_active(argument) for argument in arguments)
        if isinstance(function, Method) and function.name in METHODS and not isinstance(function.receiver, Known):
            if active or is_active(function.receiver):
                receiver = self._receiver(expr.func)
                if receiver is not None:
                    stub = self._constant(out, METHODS[function.name], expr.loc, block.scope)
                    statement.value = ir.Expr.call(stub, [receiver, *expr.args], expr.kws, expr.loc, vararg=expr.vararg)
        elif isinstance(function, Known) and isinstance(function.thing, Dispatcher):
            if not active:
                # The plain function itself: the active version would take the call of a recursive function for one of its own.
                expr.func = self._constant(out, function.thing, expr.loc, block.scope)
                self._plain_calls.add(id(expr))
        elif isinstance(function, Known):
            if _is_container(function.thing):
                self._typed_container(statement, out, block)
                return
            stub = self._stub(function.thing, statement, active, FUNCTIONS)
            if stub is not None:
                expr.func = self._constant(out, stub, expr.loc, block.scope)

    def _typed_container(self, statement: ir.Assign, out: list, block: ir.Block) -> None:
        """``List.empty_list(float64)`` and ``Dict.empty(key, float64)`` that active numbers reach are declared for those."""
        expr = statement.value
        value = self._activity.value(statement.target.name)
        if value is None or not is_active(value):
            return
        arguments = []
        for variable in expr.args:
            known = self._activity.value(variable.name)
            is_float = isinstance(known, Known) and known.thing in (types.float64, np.float64, float)
            arguments.append(self._constant(out, active_float, expr.loc, block.scope) if is_float else variable)
        expr.args = arguments

    def _listed(self, statement: ir.Assign, out: list, block: ir.Block) -> None:
        """A list or tuple with active numbers has active ones only: plain ones among them would give it another type."""
        from tapejit.recording.native.tables import to_active

        expr = statement.value
        value = self._activity.value(statement.target.name)
        known = [self._activity.value(item.name) for item in expr.items]
        if value is None or not is_active(value):
            return
        if expr.op == "build_tuple" and not any(isinstance(item, Scalar) and is_active(item) for item in known):
            return
        items = []
        for item, kind in zip(expr.items, known, strict=True):
            is_float = isinstance(kind, Known) and isinstance(kind.thing, float)
            if is_float or isinstance(kind, Scalar) and not is_active(kind):
                active = ir.Var(block.scope, mk_unique_var(f"{item.name}.active"), statement.loc)
                self._call(out, to_active, [item], statement.loc, block.scope, active)
                item = active
            items.append(item)
        make = ir.Expr.build_list if expr.op == "build_list" else ir.Expr.build_tuple
        statement.value = make(items, expr.loc)

    def _stub(self, function: Any, statement: ir.Assign, active: bool, functions: dict) -> Any:
        from tapejit.recording.native.tables import ALLOCATORS as ACTIVE_ALLOCATORS

        try:
            if function in ALLOCATORS and function in ACTIVE_ALLOCATORS:
                value = self._activity.value(statement.target.name)
                return ACTIVE_ALLOCATORS[function] if value is not None and is_active(value) else None
            if active and function in functions:
                return functions[function]
        except TypeError:  # cannot be looked up
            return None
        if active and function in (np.float64, types.float64):
            return float
        if active and function in (np.int64, np.intp, types.int64, types.intp):
            return int
        return None

    def _receiver(self, variable: ir.Var) -> ir.Var | None:
        definition = self._ir.get_definition(variable.name)
        while isinstance(definition, ir.Var):
            definition = self._ir.get_definition(definition.name)
        return definition.value if isinstance(definition, ir.Expr) and definition.op == "getattr" else None

    def _activated(self, statement: ir.Assign, out: list, block: ir.Block) -> None:
        """Append the statement; where it makes a plain array that active numbers reach later, an active copy takes its place."""
        from tapejit.recording.native.tables import to_active

        value = self._activity.value(statement.target.name)
        if value is None or not self._makes_plain(statement, value):
            out.append(statement)
            return
        plain = ir.Var(block.scope, mk_unique_var(f"{statement.target.name}.plain"), statement.loc)
        out.append(ir.Assign(statement.value, plain, statement.loc))
        self._call(out, to_active, [plain], statement.loc, block.scope, statement.target)

    def _makes_plain(self, statement: ir.Assign, value: Any) -> bool:
        if not isinstance(value, (Array, Other, Tuple)) or not is_active(value):
            return False
        expr = statement.value
        if isinstance(expr, (ir.Global, ir.FreeVar)):
            return isinstance(value, Array)
        if not isinstance(expr, ir.Expr) or expr.op not in ("binop", "unary", "call"):
            return False
        operands = [self._activity.value(variable.name) for variable in expr.list_vars()]
        if any(operand is not None and is_active(operand) for operand in operands):
            return False
        # A copy must be the only one: none of this memory may be known under another name.
        cells = [cell.root() for part in _arrays(value) for cell in cells_in(part)]
        others = {cell.root() for operand in operands if operand is not None for cell in cells_in(operand)}
        if len(set(cells)) < len(cells) or others & set(cells):
            return False
        if expr.op == "call" and id(expr) not in self._plain_calls:
            function = self._activity.value(expr.func.name)
            if (
                function is None
                or isinstance(function, Known)
                and (_is_ours(function.thing) or _is_container(function.thing))
            ):
                return False
        return True

    # New statements.

    def _constant(self, out: list, thing: Any, loc: ir.Loc, scope: ir.Scope) -> ir.Var:
        variable = ir.Var(scope, mk_unique_var("$tapejit"), loc)
        out.append(ir.Assign(ir.Global(getattr(thing, "__name__", "stub"), thing, loc), variable, loc))
        return variable

    def _call(
        self, out: list, thing: Any, args: Sequence[ir.Var], loc: ir.Loc, scope: ir.Scope, target: ir.Var | None = None
    ) -> None:
        function = self._constant(out, thing, loc, scope)
        target = target or ir.Var(scope, mk_unique_var("$tapejit"), loc)
        out.append(ir.Assign(ir.Expr.call(function, list(args), (), loc), target, loc))


def _arrays(value: Any) -> list[Any]:
    """The parts of a value that are more than a number."""
    if isinstance(value, Tuple):
        return [array for item in value.items for array in _arrays(item)]
    return [value] if isinstance(value, (Array, Other)) else []


def _is_container(thing: Any) -> bool:
    """Whether this makes a typed list or dict, whose type is declared or that of its first element."""
    owner = getattr(thing, "__self__", thing)
    return owner in (List, Dict) and getattr(thing, "__name__", "") in ("empty_list", "empty", "List", "Dict")


def _is_ours(thing: Any) -> bool:
    try:
        return thing in ALLOCATORS
    except TypeError:
        return False


def _line(loc: ir.Loc) -> str:
    return f"{loc.filename}:{loc.line}"

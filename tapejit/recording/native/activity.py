"""Which arrays of a compiled function active numbers reach: a dataflow analysis to a fixed point, through all functions it calls.

Numba's intermediate representation in SSA form is read statement by statement until nothing is added. The result says for each place that
makes an array whether active numbers are ever stored there, and for each parameter whether it receives active numbers or is
written. What the analysis takes for active although it is not costs time and memory only; the other way, the function does not
compile (Numba knows no conversion from active to plain): there is no way to a wrong gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numba.core import ir
from numba.core.dispatcher import Dispatcher

from tapejit.recording.native.call_effects import CallEffects
from tapejit.recording.native.cells import (
    PASSIVE,
    Array,
    Cell,
    Iterated,
    Known,
    Method,
    Other,
    Passive,
    Scalar,
    Tuple,
    Value,
    absorb,
    cells_in,
    joined,
)
from tapejit.recording.native.effects import COMPARISONS, PASSIVE_ATTRIBUTES, VIEW_ATTRIBUTES
from tapejit.recording.native.frontend import compiled_form
from tapejit.recording.native.summaries import Summary, folded, instantiated, pattern, settle, transfer

__all__ = ["FunctionActivity", "Program"]


class Program:
    """The functions of one compilation, analysed together.

    Parameters
    ----------
    ir_of : callable
        Gives the SSA form of a dispatcher's Python function; None where it has none.
    """

    def __init__(self, ir_of: Callable[[Dispatcher], ir.FunctionIR | None]) -> None:
        self._ir_of = ir_of
        self._known: dict[tuple, FunctionActivity] = {}
        self._running: set[tuple] = set()

    def summary(self, dispatcher: Dispatcher, arguments: Sequence[Value]) -> Summary | None:
        """The summary of a call; None if the function cannot be read."""
        key = (dispatcher, pattern(arguments))
        if key not in self._known:
            function_ir = self._ir_of(dispatcher)
            if function_ir is None:
                return None
            self._known[key] = FunctionActivity(function_ir, None, self)
            self._known[key].take(instantiated(arguments, {}))
        activity = self._known[key]
        if key not in self._running and activity.read_at != Cell.changes:
            self._running.add(key)
            before = Cell.changes
            try:
                activity.round()
            finally:
                self._running.discard(key)
            activity.read_at = before
        return Summary(activity.parameters, activity.result)


class FunctionActivity(CallEffects):
    """The analysis of one function.

    Attributes
    ----------
    parameters : list of Value
    result : Value or None
        What it returns; None before a return is seen.
    """

    def __init__(self, function_ir: ir.FunctionIR, parameters: Sequence[Value] | None, program: Program) -> None:
        self._ir = function_ir
        self._program = program
        self._cells: dict[tuple, Cell] = {}
        self._assigned: dict[str, dict[int, Value]] = {}
        self._attributes: dict[tuple, Any] = {}
        self.parameters: Sequence[Value] = parameters or ()
        self.result: Value | None = None
        self.read_at = -1  # what was known before it was last read

    def take(self, parameters: Sequence[Value]) -> None:
        self.parameters = parameters

    def cell(self, key: tuple) -> Cell:
        if key not in self._cells:
            self._cells[key] = Cell()
        return self._cells[key]

    def run(self) -> FunctionActivity:
        """Rounds until nothing is learnt."""
        settle(self.round)
        return self

    def round(self) -> None:
        """Read every statement once."""
        for label in sorted(self._ir.blocks):
            for statement in self._ir.blocks[label].body:
                self._statement(statement)

    def value(self, name: str) -> Value | None:
        """What is known of a variable so far."""
        return joined(list(self._assigned.get(name, {}).values()), self.cell, ("variable", name))

    def _read(self, variable: Any) -> Value:
        value = self.value(variable.name) if isinstance(variable, ir.Var) else None
        return PASSIVE if value is None else value

    # Statements.

    def _statement(self, statement: Any) -> None:
        if isinstance(statement, ir.Assign):
            value = self._expression(statement.value, id(statement))
            if value is not None:
                known = self._assigned.setdefault(statement.target.name, {})
                if known.get(id(statement)) != value:
                    known[id(statement)] = value
                    Cell.changes += 1
        elif isinstance(statement, (ir.SetItem, ir.StaticSetItem)):
            self._store(self._read(statement.target), self._read(statement.value))
        elif isinstance(statement, ir.StoreMap):
            self._store(self._read(statement.dct), self._read(statement.value))
        elif isinstance(statement, ir.SetAttr):
            self._store(self._read(statement.target), self._read(statement.value))
        elif isinstance(statement, ir.Return):
            result = joined(
                [value for value in (self.result, self._read(statement.value)) if value is not None],
                self.cell,
                ("result",),
            )
            if result != self.result:
                self.result = result
                Cell.changes += 1

    def _store(self, target: Value, value: Value) -> None:
        for cell in cells_in(target):
            cell.write()
        if isinstance(target, Array):
            # Numbers are copied.
            for cell in cells_in(value):
                cell.flow_to(target.cell)
        else:
            for cell in cells_in(target):
                absorb(cell, value)

    def _expression(self, value: Any, place: int) -> Value | None:
        if isinstance(value, ir.Arg):
            return self.parameters[value.index]
        if isinstance(value, ir.Var):
            return self.value(value.name)
        if isinstance(value, (ir.Global, ir.FreeVar, ir.Const)):
            return self._constant(value.value, place)
        if isinstance(value, ir.Expr):
            method = getattr(self, f"_{value.op}", None)
            if method is not None:
                return method(value, place)
            return self._unknown([self._read(variable) for variable in value.list_vars()], place)
        return PASSIVE

    def _constant(self, thing: Any, place: int) -> Value:
        if isinstance(thing, np.ndarray):
            return Array(self.cell((place,)), thing.ndim)
        if isinstance(thing, tuple):
            return Tuple(tuple(self._constant(item, place) for item in thing))
        return Known(compiled_form(thing))

    # Operations.

    def _binop(self, expr: ir.Expr, place: int) -> Value:
        return self._combined([self._read(expr.lhs), self._read(expr.rhs)], place, expr.fn in COMPARISONS)

    def _unary(self, expr: ir.Expr, place: int) -> Value:
        return self._combined([self._read(expr.value)], place, expr.fn is operator.not_)

    def _inplace_binop(self, expr: ir.Expr, place: int) -> Value:
        target, value = self._read(expr.lhs), self._read(expr.rhs)
        if isinstance(target, Array):
            self._store(target, value)
            return target
        if isinstance(target, Other):
            target.cell.write()
            absorb(target.cell, value)
            return target
        return self._combined([target, value], place)

    def _combined(self, operands: Sequence[Value], place: int, is_comparison: bool = False) -> Value:
        """The result of arithmetic: a new number or a new array."""
        if any(isinstance(operand, Tuple) for operand in operands):
            items = [
                item for operand in operands for item in (operand.items if isinstance(operand, Tuple) else (operand,))
            ]
            return self._unknown(items, place)  # tuples joined or repeated
        if all(isinstance(operand, (Passive, Known)) for operand in operands):
            return PASSIVE
        if not is_comparison and not any(isinstance(operand, (Scalar, Array)) for operand in operands):
            return self._unknown(
                operands, place
            )  # may be a list repeated or joined, which holds what the operands hold
        cell = self.cell((place,))
        if not is_comparison:
            for operand in operands:
                for source in cells_in(operand):
                    source.flow_to(cell)
        arrays = [operand for operand in operands if isinstance(operand, Array)]
        if any(isinstance(operand, (Other, Iterated, Method)) for operand in operands):
            return Other(cell)
        if arrays:
            sizes = [array.ndim for array in arrays]
            return Array(cell, None if None in sizes else max(sizes))
        return PASSIVE if is_comparison else Scalar(cell)

    def _getitem(self, expr: ir.Expr, place: int) -> Value:
        return self._item(self._read(expr.value), self._read(expr.index), None, place)

    def _typed_getitem(self, expr: ir.Expr, place: int) -> Value:
        return self._getitem(expr, place)

    def _static_getitem(self, expr: ir.Expr, place: int) -> Value:
        index = self._read(expr.index_var) if expr.index_var is not None else PASSIVE
        return self._item(self._read(expr.value), index, expr.index, place)

    def _item(self, base: Value, index: Value, static: Any, place: Any) -> Value:
        if isinstance(base, Tuple):
            if isinstance(static, int) and -len(base.items) <= static < len(base.items):
                return base.items[static]
            if isinstance(static, slice):
                return Tuple(base.items[static])
            return joined(base.items, self.cell, (place,)) or PASSIVE
        if isinstance(base, Array):
            return self._element(base, index, static, place)
        if isinstance(base, Other):
            return Other(base.cell)
        if isinstance(base, Known) and isinstance(base.thing, (tuple, list)) and isinstance(static, int):
            return self._constant(base.thing[static], place)
        return PASSIVE

    def _element(self, base: Array, index: Value, static: Any, place: int) -> Value:
        """What an index takes from an array: a number, a view or a copy, which may all be treated as a view."""
        parts = index.items if isinstance(index, Tuple) else (index,)
        kinds = [_index_kind(part) for part in parts]
        if static is not None and not isinstance(index, Tuple):
            kinds = [_static_kind(part) for part in (static if isinstance(static, tuple) else (static,))]
        if base.ndim is None or "unknown" in kinds:
            return Array(base.cell, None)
        ndim = base.ndim - kinds.count("number") + kinds.count("new")
        if ndim == 0 and "array" not in kinds:
            scalar = Scalar(self.cell((place,)))
            base.cell.flow_to(scalar.cell)
            return scalar
        return Array(base.cell, None if "array" in kinds else ndim)

    def _getattr(self, expr: ir.Expr, place: int) -> Value:
        base, name = self._read(expr.value), expr.attr
        if isinstance(base, Known):
            if isinstance(base.thing, ModuleType) or isinstance(base.thing, type):
                # Kept, since a bound method is another object whenever it is asked for.
                thing = self._attributes.setdefault((place, name), getattr(base.thing, name, None))
                return self._constant(thing, place)
            return (
                Method(name, base)
                if not isinstance(base.thing, tuple)
                else self._constant(getattr(base.thing, name), place)
            )
        if name in PASSIVE_ATTRIBUTES:
            return (
                Tuple((PASSIVE,) * base.ndim)
                if name == "shape" and isinstance(base, Array) and base.ndim is not None
                else PASSIVE
            )
        if name in VIEW_ATTRIBUTES:
            return base
        if isinstance(base, (Array, Other, Scalar, Tuple)):
            return Method(name, base)
        return PASSIVE

    def _build_tuple(self, expr: ir.Expr, place: int) -> Value:
        return Tuple(tuple(self._read(item) for item in expr.items))

    def _build_list(self, expr: ir.Expr, place: int) -> Value:
        return self._unknown([self._read(item) for item in expr.items], place)

    _build_set = _build_list

    def _build_map(self, expr: ir.Expr, place: int) -> Value:
        return self._unknown([self._read(item) for pair in expr.items for item in pair], place)

    def _cast(self, expr: ir.Expr, place: int) -> Value:
        return self._read(expr.value)

    def _phi(self, expr: ir.Expr, place: int) -> Value | None:
        incoming = [self.value(variable.name) for variable in expr.incoming_values if isinstance(variable, ir.Var)]
        return joined([value for value in incoming if value is not None], self.cell, (place,))

    def _getiter(self, expr: ir.Expr, place: int) -> Value:
        base = self._read(expr.value)
        if isinstance(base, Iterated):
            return base
        if isinstance(base, Array):
            return Iterated(self._item(base, PASSIVE, None, place))
        return Iterated(self._item(base, PASSIVE, None, place))

    def _iternext(self, expr: ir.Expr, place: int) -> Value:
        iterator = self._read(expr.value)
        return Tuple((iterator.item if isinstance(iterator, Iterated) else PASSIVE, PASSIVE))

    def _pair_first(self, expr: ir.Expr, place: int) -> Value:
        pair = self._read(expr.value)
        return pair.items[0] if isinstance(pair, Tuple) else pair

    def _pair_second(self, expr: ir.Expr, place: int) -> Value:
        return PASSIVE

    def _exhaust_iter(self, expr: ir.Expr, place: int) -> Value:
        base = self._read(expr.value)
        if isinstance(base, Tuple):
            return base
        if isinstance(base, Iterated):
            return Tuple((base.item,) * expr.count)
        return Tuple(tuple(self._item(base, PASSIVE, None, (place, i)) for i in range(expr.count)))

    # Calls.

    def _call(self, expr: ir.Expr, place: int) -> Value | None:
        function = self._read(expr.func)
        arguments = [self._read(argument) for argument in expr.args]
        if expr.vararg is not None:
            vararg = self._read(expr.vararg)
            arguments += vararg.items if isinstance(vararg, Tuple) else [vararg]
        keywords = {name: self._read(argument) for name, argument in expr.kws}
        if isinstance(function, Method):
            return self._method_call(function, [*arguments, *keywords.values()], place)
        if not isinstance(function, Known):
            return self._unknown_call([function, *arguments, *keywords.values()], place)
        if isinstance(function.thing, Dispatcher):
            return self._dispatcher_call(function.thing, arguments, keywords, place)
        return self._known_call(function.thing, arguments, keywords, place)

    def _dispatcher_call(
        self, dispatcher: Dispatcher, arguments: list[Value], keywords: dict[str, Value], place: int
    ) -> Value | None:
        given = folded(dispatcher, arguments, keywords)
        summary = self._program.summary(dispatcher, given) if given is not None else None
        if summary is None or given is None:
            return self._unknown_call([*arguments, *keywords.values()], place)
        here = transfer(summary.parameters, given)
        return (
            instantiated([summary.result], here, lambda i: self.cell((place, i)))[0]
            if summary.result is not None
            else None
        )


def _index_kind(part: Value) -> str:
    if isinstance(part, Known):
        return _static_kind(part.thing)
    if isinstance(part, Array):
        return "array"
    return "number" if isinstance(part, (Passive, Scalar)) else "unknown"


def _static_kind(part: Any) -> str:
    if isinstance(part, (int, np.integer)) and not isinstance(part, bool):
        return "number"
    if part is None:
        return "new"
    return "slice" if isinstance(part, slice) or part is Ellipsis else "unknown"

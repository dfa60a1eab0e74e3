"""Which arrays of a compiled function active numbers reach: a dataflow analysis to a fixed point, through all functions it calls.

Numba's intermediate representation in SSA form is read statement by statement until nothing is added. The result says for each place that
makes an array whether active numbers are ever stored there, and for each parameter whether it receives active numbers or is
written. What the analysis takes for active although it is not costs time and memory only; the other way, the function does not
compile (Numba knows no conversion from active to plain): there is no way to a wrong gradient.
"""

from __future__ import annotations

import builtins
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import ir
from numba.core.dispatcher import Dispatcher

from tapejit.recording.native import user_rows
from tapejit.recording.native.active import ActiveBool, ActiveFloat, is_active_array
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
from tapejit.recording.native.frontend import compiled_form

__all__ = ["FunctionActivity", "Program", "folded", "settle", "transfer", "value_of_type"]


MAX_ROUNDS = 1000


def _functions(module: ModuleType, names: str) -> set[Callable]:
    return {getattr(module, name) for name in names.split() if hasattr(module, name)}


ALLOCATORS = _functions(
    np, "zeros empty ones full zeros_like empty_like ones_like full_like eye identity linspace arange array"
)
# The first argument's memory, seen in another shape.
VIEWS = _functions(
    np,
    "reshape ravel transpose asarray ascontiguousarray asfortranarray atleast_1d atleast_2d atleast_3d swapaxes moveaxis rollaxis squeeze "
    "expand_dims broadcast_to flip fliplr flipud rot90 split array_split hsplit vsplit dsplit real imag diagonal nditer ndenumerate",
)
PASSIVE_RESULTS = (
    _functions(
        np,
        "shape size ndim argmax argmin argsort searchsorted isnan isinf isfinite any all nonzero count_nonzero array_equal allclose isclose "
        "digitize bincount ndindex signbit less less_equal greater greater_equal equal not_equal logical_and logical_or logical_xor "
        "logical_not flatnonzero argwhere unravel_index nanargmax nanargmin isscalar iscomplexobj isrealobj",
    )
    | _functions(math, "floor ceil trunc isnan isinf isfinite isclose gcd comb perm factorial")
    | {
        len,
        int,
        bool,
        round,
        range,
        isinstance,
        hash,
        slice,
        id,
        str,
        repr,
        print,
        type,
        numba.prange,
        operator.contains,
    }
)
VIEW_METHODS = set("reshape ravel transpose view squeeze swapaxes diagonal items keys values".split())
PASSIVE_METHODS = set(
    "argmax argmin argsort searchsorted any all nonzero item_size index count startswith format".split()
)
PASSIVE_ATTRIBUTES = set("shape size ndim strides itemsize nbytes flags".split())
VIEW_ATTRIBUTES = set("T real imag flat base".split())
STORING_METHODS = set("append appendleft insert extend setdefault update add fill put setflags".split())
TAKING_METHODS = set("pop popleft popitem get item remove clear reverse sort".split())
COMPARISONS = {
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    operator.eq,
    operator.ne,
    operator.is_,
    operator.is_not,
    operator.contains,
    operator.not_,
}


def value_of_type(kind: types.Type, cell_of: Callable[[tuple], Cell], key: tuple = ()) -> Value:
    """What is known of a parameter of a Numba type."""
    if isinstance(kind, types.Omitted):
        return value_of_type(numba.typeof(kind.value), cell_of, key)
    if isinstance(kind, types.Optional):
        return value_of_type(kind.type, cell_of, key)
    if isinstance(kind, types.Dispatcher):
        return Known(kind.dispatcher)
    if isinstance(kind, types.Array):
        cell = cell_of(key)
        if is_active_array(kind):
            cell.activate()
        return Array(cell, kind.ndim)
    if isinstance(kind, types.BaseTuple):
        return Tuple(tuple(value_of_type(part, cell_of, (*key, i)) for i, part in enumerate(kind)))
    if isinstance(kind, (ActiveFloat, ActiveBool)):
        cell = cell_of(key)
        cell.activate()
        return Scalar(cell)
    if isinstance(kind, types.Float):
        return Scalar(cell_of(key))
    if isinstance(kind, (types.Number, types.Boolean, types.UnicodeType, types.NoneType)):
        return PASSIVE
    if isinstance(kind, (types.List, types.ListType, types.Set)):
        other = Other(cell_of(key))
        absorb(other.cell, value_of_type(kind.dtype, cell_of, (*key, "item")))
        return other
    return Other(cell_of(key))


def settle(step: Callable[[], Any]) -> None:
    """Repeat a step until nothing is learnt."""
    for _ in range(MAX_ROUNDS):
        before = Cell.changes
        step()
        if Cell.changes == before:
            return
    raise AssertionError(f"the activity analysis does not settle in {MAX_ROUNDS} rounds; please report the function")


@dataclass
class Summary:
    """What a function does to its arguments, for one pattern of activity: its own parameters and result, in its own cells."""

    parameters: Sequence[Value]
    result: Value | None


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
        key = (dispatcher, _pattern(arguments))
        if key not in self._known:
            function_ir = self._ir_of(dispatcher)
            if function_ir is None:
                return None
            self._known[key] = FunctionActivity(function_ir, None, self)
            self._known[key].take(_instantiated(arguments, {}))
        activity = self._known[key]
        if key not in self._running and activity.read_at != Cell.changes:
            self._running.add(key)
            try:
                activity.round()
            finally:
                self._running.discard(key)
            activity.read_at = Cell.changes
        return Summary(activity.parameters, activity.result)


class FunctionActivity:
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
        self.read_at = -1  # what was known when it was last read

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

    def _item(self, base: Value, index: Value, static: Any, place: int) -> Value:
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
            return Other(base.cell)
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
            _instantiated([summary.result], here, lambda i: self.cell((place, i)))[0]
            if summary.result is not None
            else None
        )

    def _known_call(self, function: Any, arguments: list[Value], keywords: dict[str, Value], place: int) -> Value:
        every = [*arguments, *keywords.values()]
        name = getattr(function, "__name__", "")
        if function is builtins.enumerate:
            return Iterated(Tuple((PASSIVE, self._item_of(arguments[0], (place, 0)))))
        if function is builtins.zip:
            return Iterated(Tuple(tuple(self._item_of(argument, (place, i)) for i, argument in enumerate(arguments))))
        if function in (builtins.reversed, builtins.iter, numba.literal_unroll, builtins.tuple, numba.literally):
            return arguments[0] if arguments else PASSIVE
        if _hashed_in(function, ALLOCATORS):
            return self._allocated(function, arguments, keywords, place)
        if _hashed_in(function, PASSIVE_RESULTS):
            return self._passive_result(every, place)
        if _hashed_in(function, VIEWS):
            return self._viewed(function, arguments, place)
        if getattr(function, "__module__", "").startswith("numpy.random") or name in (
            "copyto",
            "fill_diagonal",
            "put",
            "shuffle",
            "place",
            "putmask",
        ):
            return self._written(every, place)
        for key in ("out",):
            if key in keywords:
                self._store(keywords[key], self._combined(arguments, place))
                return keywords[key]
        module = (getattr(function, "__module__", None) or "").split(".")[0]
        if isinstance(function, np.ufunc) or module in ("numpy", "math", "builtins", "operator", "_operator"):
            if isinstance(function, np.ufunc) and len(arguments) > function.nin:
                target = arguments[function.nin]
                self._store(target, self._combined(arguments[: function.nin], place))
                return target
            return self._computed(function, every, place)
        if isinstance(function, types.Type) or isinstance(function, type):
            return self._computed(function, every, place)
        if function in user_rows.made:
            return self._combined(arguments, place)
        return self._unknown_call(every, place)

    def _item_of(self, value: Value, key: tuple) -> Value:
        return value.item if isinstance(value, Iterated) else self._item(value, PASSIVE, None, key)

    def _allocated(self, function: Any, arguments: list[Value], keywords: dict[str, Value], place: int) -> Value:
        """A new array: active if it is filled with active numbers or made like an active one."""
        cell = self.cell((place,))
        shape = arguments[0] if arguments else keywords.get("shape", PASSIVE)
        for value in [*arguments, *keywords.values()]:
            for source in cells_in(value):
                source.flow_to(cell)
        name = function.__name__
        if name.endswith("_like"):
            return Array(cell, shape.ndim if isinstance(shape, Array) else None)
        if name in ("linspace", "arange"):
            return Array(cell, 1)
        if name in ("eye", "identity"):
            return Array(cell, 2)
        if name == "array":
            return Array(cell, None)
        return Array(
            cell,
            len(shape.items)
            if isinstance(shape, Tuple)
            else 1
            if isinstance(shape, (Passive, Known, Scalar))
            else None,
        )

    def _passive_result(self, values: list[Value], place: int) -> Value:
        arrays = [value for value in values if isinstance(value, (Array, Other))]
        return Array(self.cell((place,)), None) if arrays else PASSIVE

    def _viewed(self, function: Any, arguments: list[Value], place: int) -> Value:
        base = arguments[0] if arguments else PASSIVE
        if isinstance(base, Array):
            same = function in (np.ravel,)
            ndim = (
                1
                if same
                else base.ndim
                if function in (np.transpose, np.flip, np.ascontiguousarray, np.asarray)
                else None
            )
            if function is np.reshape and len(arguments) > 1:
                ndim = _reshaped(arguments[1:])
            return Array(base.cell, ndim)
        cell = self.cell((place,))
        absorb(cell, base)
        return Array(cell, None)

    def _written(self, values: list[Value], place: int) -> Value:
        """In-place functions of NumPy, and random numbers."""
        if values and isinstance(values[0], (Array, Other)):
            for value in values[1:]:
                self._store(values[0], value)
            values[0].cell.write()
        return Other(self.cell((place,)))

    def _computed(self, function: Any, values: list[Value], place: int) -> Value:
        """A function without side effects: numbers flow from all arguments to a new result."""
        if all(isinstance(value, (Scalar, Passive, Known)) for value in values):
            return self._combined(values, place)
        if isinstance(function, np.ufunc) or function in _ELEMENTWISE:
            return self._combined(values, place)
        cell = self.cell((place,))
        for value in values:
            for source in cells_in(value):
                source.flow_to(cell)
        if function in (np.linalg.norm, np.linalg.det, builtins.sum, np.trace, np.vdot, builtins.max, builtins.min):
            return Scalar(cell)
        if function in _REDUCTIONS and len(values) == 1:
            return Scalar(cell)
        return Other(cell)

    def _method_call(self, method: Method, arguments: list[Value], place: int) -> Value:
        name, receiver = method.name, method.receiver
        if isinstance(receiver, Known):
            return (
                self._written(arguments, place)
                if name in ("shuffle",)
                else self._unknown_call([receiver, *arguments], place)
            )
        if name in PASSIVE_METHODS:
            return self._passive_result([receiver], place)
        if name in VIEW_METHODS:
            if isinstance(receiver, Array):
                ndim = (
                    _reshaped(arguments)
                    if name == "reshape"
                    else 1
                    if name == "ravel"
                    else receiver.ndim
                    if name in ("transpose", "swapaxes")
                    else None
                )
                return Array(receiver.cell, ndim)
            return (
                Iterated(Other(receiver.cell))
                if name in ("items", "keys", "values") and isinstance(receiver, Other)
                else receiver
            )
        if name in STORING_METHODS:
            for argument in arguments:
                self._store(receiver, argument)
            return PASSIVE
        if name in TAKING_METHODS and not isinstance(receiver, Array):
            for argument in arguments:
                for cell in cells_in(receiver):
                    absorb(cell, argument)
            return receiver
        if name in ("copy", "astype", "flatten") and isinstance(receiver, Array):
            cell = self.cell((place,))
            receiver.cell.flow_to(cell)
            return Array(cell, 1 if name == "flatten" else receiver.ndim)
        if isinstance(receiver, (Array, Scalar)):
            if name == "sort":
                receiver.cell.write()
            cell = self.cell((place,))
            for value in [receiver, *arguments]:
                for source in cells_in(value):
                    source.flow_to(cell)
            reduces = name in ("item", *(function.__name__ for function in _REDUCTIONS)) and not arguments
            return Scalar(cell) if reduces else Other(cell)
        return self._unknown_call([receiver, *arguments], place)

    def _unknown(self, values: Iterable[Value], place: int) -> Value:
        """Something that may hold references to all of these."""
        other = Other(self.cell((place,)))
        for value in values:
            absorb(other.cell, value)
        return other

    def _unknown_call(self, values: Iterable[Value], place: int) -> Value:
        """A function that cannot be read: it may store anything anywhere."""
        result = self._unknown(values, place)
        result.cell.write()
        return result


_IN_PLACE = ("copyto", "fill_diagonal", "put", "shuffle", "place", "putmask")
_ELEMENTWISE = _functions(np, "where clip round around abs real imag nan_to_num sinc interp") | {
    builtins.abs,
    builtins.pow,
    builtins.divmod,
}
_REDUCTIONS = _functions(np, "sum prod mean var std max min amax amin median ptp nansum nanmean trapezoid")


def _hashed_in(function: Any, group: set) -> bool:
    try:
        return function in group
    except TypeError:
        return False


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


def _reshaped(shape: Sequence[Value]) -> int | None:
    """Dimensions of the result of ``reshape``."""
    if len(shape) == 1 and isinstance(shape[0], Tuple):
        return len(shape[0].items)
    return len(shape) if all(isinstance(size, (Passive, Known)) for size in shape) else None


def transfer(parameters: Sequence[Value], arguments: Sequence[Value]) -> dict[Cell, Cell]:
    """Let what a callee did to its parameters happen to the arguments; gives the caller's cell for each of the callee's."""
    here: dict[Cell, Cell] = {}
    for own, given in zip(parameters, arguments, strict=True):
        for inner, outside in zip(cells_in(own), cells_in(given), strict=True):
            inside = inner.root()
            if inside in here:
                here[inside].unify(outside)
            here[inside] = outside
            if inside.is_active:
                outside.activate()
            if inside.is_written:
                outside.write()
    return here


def folded(dispatcher: Dispatcher, arguments: Sequence[Value], keywords: dict[str, Value]) -> list[Value] | None:
    """The value of each parameter, defaults included; None if the call does not fit."""
    try:
        bound = inspect.signature(dispatcher.py_func).bind(*arguments, **keywords)
    except TypeError:
        return None
    bound.apply_defaults()
    out: list[Value] = []
    for name, parameter in bound.signature.parameters.items():
        given = bound.arguments[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            out.append(Tuple(tuple(given)))
        elif not isinstance(given, Value):
            out.append(Known(given))
        else:
            is_number = isinstance(given, Known) and isinstance(given.thing, (int, float, complex))
            out.append(PASSIVE if is_number else given)
    return out


def _pattern(values: Sequence[Value]) -> tuple:
    """What of the arguments matters for a summary: kinds, activity, and which of them share memory."""
    numbers: dict[Cell, int] = {}

    def describe(value: Value) -> Any:
        if isinstance(value, (Scalar, Array, Other)):
            cell = value.cell.root()
            number = numbers.setdefault(cell, len(numbers))
            return (type(value).__name__, number, cell.is_active, getattr(value, "ndim", 0))
        if isinstance(value, Tuple):
            return ("Tuple", *(describe(item) for item in value.items))
        if isinstance(value, Iterated):
            return ("Iterated", describe(value.item))
        if isinstance(value, Method):
            return ("Method", value.name, describe(value.receiver))
        return value

    return tuple(describe(value) for value in values)


def _instantiated(
    values: Sequence[Value], known: dict[Cell, Cell], cell_of: Callable[[int], Cell] | None = None
) -> list[Value]:
    """The same values in other cells: those of `known`, else new ones with the same activity."""

    def other(cell: Cell) -> Cell:
        cell = cell.root()
        if cell not in known:
            known[cell] = cell_of(len(known)) if cell_of else Cell()
        if cell.is_active:
            known[cell].activate()
        return known[cell]

    def copy(value: Value) -> Value:
        if isinstance(value, Array):
            return Array(other(value.cell), value.ndim)
        if isinstance(value, (Scalar, Other)):
            return type(value)(other(value.cell))
        if isinstance(value, Tuple):
            return Tuple(tuple(copy(item) for item in value.items))
        if isinstance(value, Iterated):
            return Iterated(copy(value.item))
        if isinstance(value, Method):
            return Method(value.name, copy(value.receiver))
        return value

    return [copy(value) for value in values]

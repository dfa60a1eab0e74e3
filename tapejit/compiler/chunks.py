"""Chunks of shared loops as functions of their own, called by all threads; and the sums that are left when all are done. See `sharing`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir

from tapejit.compiler.emitter import I64, POINTER, Emitter, number
from tapejit.compiler.nest import Loop, Site
from tapejit.compiler.operands import Carried, Operand, Result, Scope
from tapejit.compiler.team import RUN

__all__ = ["Chunk", "Chunks"]

_OF_FUNCTION = ("function", "b", "entry", "slots", "start_block", "status", "values", "group")


@dataclass
class Context:
    """What the functions of a loop's chunks find in memory, 8 bytes each: the arrays, values that the loop reads, and other numbers."""

    at: ir.Value
    keys: list[Any]
    numbers: list[ir.Value]


@dataclass
class Chunk:
    """A function of a context and the number `k` of a chunk, while it is emitted.

    `numbers` are those of the context, and `places` where they stand. `entry` is the same function as the threads call it.
    """

    k: ir.Value
    numbers: list[ir.Value]
    places: list[ir.Value]
    function: ir.Function
    entry: ir.Function


class Chunks(Emitter):
    """The part of a kernel that hands chunks to threads."""

    def __init__(self, *args: Any) -> None:
        self.deferred: set[object] = set()  # parts of sums, while all else is emitted
        super().__init__(*args)

    def captured(self, loop: Loop) -> list[Any]:
        """What the loop reads that is known when it is entered."""
        found: dict[Any, None] = {}

        def visit(operand: Operand) -> None:
            key = operand.site if isinstance(operand, Scope) else operand
            if key in self.values:
                found[key] = None
            elif isinstance(operand, Carried):
                visit(operand.start)

        for site in loop.sites():
            for operand in site.operands:
                visit(operand)
        return list(found)

    def chunk_bounds(self, loop: Loop, k: ir.Value) -> tuple[ir.Value, ir.Value]:
        at = self.b.add(k, number(self.plan.edges[loop]))
        return self.table(at), self.table(self.b.add(at, number(1)))

    def context(self, loop: Loop, numbers: Sequence[ir.Value]) -> Context:
        """Store what the functions of chunks need."""
        keys = self.captured(loop)
        addresses = [self.b.ptrtoint(array, I64) for array in self.arrays]
        stored = [*addresses, *(self.values[key] for key in keys), *numbers]
        at = self.slots.bitcast(self.slots.alloca(I64, size=len(stored)), POINTER)
        for i, value in enumerate(stored):
            self.b.store(value, self.b.bitcast(self._entry_of(self.b, at, i), value.type.as_pointer()))
        return Context(at, keys, list(numbers))

    def places(self, context: Context) -> list[ir.Value]:
        """Where the numbers of a context stand."""
        n_known = len(self.arguments) + len(context.keys)
        return [self._entry_of(self.b, context.at, n_known + j) for j in range(len(context.numbers))]

    @property
    def arrays(self) -> list[ir.Value]:
        return list(self.function.args[: len(self.arguments)])

    @contextmanager
    def outlined(self, name: str, loop: Loop, context: Context) -> Iterator[Chunk]:
        """Emit a function for one chunk.

        The threads call a function that takes the arrays out of the context; it calls the one that is emitted here, which is told that the
        arrays do not overlap.
        """
        n_arrays = len(self.arguments)
        before = {attribute: getattr(self, attribute) for attribute in _OF_FUNCTION}
        name = f"tapejit.{self.name}.{name}.{loop.position}"
        self.begin(name, [*self.arguments, "context", "k"], [POINTER] * (n_arrays + 1) + [I64])
        self.function.linkage = "internal"
        self.function.attributes.add("noinline")
        at, k = self.function.args[n_arrays:]
        n_known = n_arrays + len(context.keys)
        self.values = {
            key: self.b.load(self._entry_of(self.b, at, n_arrays + i), typ=self.number)
            for i, key in enumerate(context.keys)
        }
        places = [self._entry_of(self.b, at, n_known + j) for j in range(len(context.numbers))]
        numbers = [self.b.load(place, typ=self.number) for place in places]
        self.group = None
        yield Chunk(k, numbers, places, self.function, self._wrapper(self.function, name))
        self.end_function()
        for attribute, value in before.items():
            setattr(self, attribute, value)
        self.use(self.arrays)

    def run_chunks(self, context: Context, compute: Chunk, add: Chunk | None, first: int, n: int) -> None:
        """Chunks `first`, `first` + 1, ... (`n` of them), by all threads if the kernel is for several; goes on when they are done.

        `add` is called for one chunk after the other, in their order, once each has been computed.
        """
        b = self.b
        if not self.plan.threaded:
            with self.counting(number(first), number(first + n)) as k:
                self.note_status(b.call(compute.function, [*self.arrays, context.at, k]))
            return
        team = b.inttoptr(b.load(self.pointer(number(self.plan.team_at)), typ=I64), POINTER)
        functions = [compute.entry, add.entry if add else ir.Constant(POINTER, None)]
        status = b.call(self._team_run(), [team, *functions, context.at, number(first), number(n)])
        self.note_status(status)

    def _entry_of(self, b: ir.IRBuilder, context: ir.Value, i: int) -> ir.Value:
        return b.gep(context, [number(i)], inbounds=True, source_etype=I64)

    def _wrapper(self, inner: ir.Function, name: str) -> ir.Function:
        """``i64 f(context, k)``."""
        wrapper = ir.Function(self.module, ir.FunctionType(I64, [POINTER, I64]), f"{name}.entry")
        wrapper.linkage = "internal"
        wrapper.attributes.add("nounwind")
        b = ir.IRBuilder(wrapper.append_basic_block("entry"))
        context, k = wrapper.args
        arrays = [b.load(self._entry_of(b, context, i), typ=POINTER) for i in range(len(self.arguments))]
        b.ret(b.call(inner, [*arrays, context, k]))
        return wrapper

    def _team_run(self) -> ir.Function:
        """`team.RUN` as a declaration."""
        if RUN not in self.module.globals:
            run = ir.Function(self.module, ir.FunctionType(I64, [POINTER] * 4 + [I64] * 2), RUN)
            run.attributes.add("nounwind")
        return self.module.globals[RUN]

    def keep_addend(self, source: Site | Result, loop: Loop) -> None:
        """Store what is added when all chunks are done."""
        if self.deferred and source in self.plan.addends:
            self.store(self.values[source], self.place(self.plan.addends[source], loop))

"""What the forward and the reverse kernel share: loops, places in memory, loads, and the value of a site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

from tapejit import layout
from tapejit.compiler.functions import Functions
from tapejit.compiler.nest import Loop, Node, Site
from tapejit.compiler.operands import Carried, Constant, Memory, Operand, Scope
from tapejit.compiler.places import Address
from tapejit.compiler.plan import WIDEST_SHIFT, Plan, value_of
from tapejit.compiler.prune import OUTPUT
from tapejit.ops import POSITIVE, SELECT
from tapejit.sweeps.lowering import constant

__all__ = ["BOOL", "DOUBLE", "I32", "I64", "LANES", "POINTER", "TILE", "VECTOR", "Emitter", "number"]

DOUBLE, I32, I64, BOOL, POINTER = ir.DoubleType(), ir.IntType(32), ir.IntType(64), ir.IntType(1), ir.PointerType()
# Iterations of a parallel loop that are worked off together: as in the sweeps, whose sums are the same then.
TILE = layout.TILE
LANES = WIDEST_SHIFT  # partial sums of an adjoint in a parallel loop
VECTOR = ir.VectorType(DOUBLE, LANES)


def number(n: int) -> ir.Constant:
    """An integer."""
    return ir.Constant(I64, int(n))


class Emitter:
    """What both kernels share: loops, places and loads."""

    name = ""
    arguments: tuple[str, ...] = ()
    inputs: ir.Value
    memory: ir.Value
    tables: ir.Value

    def __init__(self, plan: Plan, module: ir.Module, functions: Functions) -> None:
        self.plan, self.functions = plan, functions
        self.number = functions.number  # the type of all that is computed
        self.zero = constant(self.number, 0.0)
        self.parallel = plan.parallel if self.number == DOUBLE else {}  # lanes are vectors enough
        self.shared = plan.shared if self.number == DOUBLE else {}
        self.module = module
        self.begin(self.name, self.arguments)
        self.t: dict[Loop, ir.Value] = {}
        self.first: dict[Loop, ir.Value] = {}
        self.end: dict[Loop, ir.Value] = {}
        self.bases: dict[tuple[Address, Loop], ir.Value] = {}
        self.values: dict[Any, ir.Value] = {}
        self.group: ir.Value | None = None  # the access group of the parallel loop that is being emitted
        self.n_groups = 0
        self.chunk: dict[Loop, tuple[ir.Value, ir.Value]] = {}  # a part of a loop's iterations that is being emitted
        self.hints: ir.Value | None = None  # for LLVM, on the loop that is being emitted
        self.users = self._users()

    def begin(self, name: str, arguments: Sequence[str], types: Sequence[ir.Type] = ()) -> None:
        """A new function, in which the builders stand afterwards. Its first arguments are the arrays."""
        self.function = ir.Function(self.module, ir.FunctionType(I64, types or [POINTER] * len(arguments)), name)
        self.function.attributes.add("nounwind")
        for argument, own_name in zip(self.function.args, arguments, strict=True):
            argument.name = own_name
            if own_name in self.arguments:
                argument.add_attribute("noalias")
        self.entry = self.function.append_basic_block("entry")
        self.start_block = self.function.append_basic_block("start")
        self.b, self.slots = ir.IRBuilder(self.start_block), ir.IRBuilder(self.entry)
        self.status = self.slot(I64, number(0))
        self.use(self.function.args[: len(self.arguments)])

    def use(self, arguments: Sequence[ir.Value]) -> None:
        """Where the arrays are."""
        raise NotImplementedError

    def end_function(self) -> None:
        self.b.ret(self.b.load(self.status, typ=I64))
        self.slots.branch(self.start_block)

    def build(self) -> None:
        self.t[self.plan.root] = number(0)
        self.functions.out_of_line = True
        self.body(self.plan.root)
        self.end_function()

    def body(self, loop: Loop) -> None:
        raise NotImplementedError

    def slot(self, kind: ir.Type | None = None, start: ir.Value | None = None) -> ir.Value:
        """A variable; LLVM makes a register of it."""
        slot = self.slots.alloca(kind or self.number)
        if start is not None:
            self.slots.store(start, slot)
        return slot

    def note(self, wrong: ir.Value) -> None:
        """Remember that something went wrong if this i1 is true."""
        if isinstance(wrong.type, ir.VectorType):
            bits = ir.IntType(wrong.type.count)
            wrong = self.b.icmp_unsigned("!=", self.b.bitcast(wrong, bits), ir.Constant(bits, 0))
        self.note_status(self.b.zext(wrong, I64))

    def note_status(self, status: ir.Value) -> None:
        self.b.store(self.b.or_(self.b.load(self.status, typ=I64), status), self.status)

    # Loops.

    def bounds(self, loop: Loop) -> tuple[ir.Value, ir.Value]:
        """The first iteration of this entry and the end; makes ready what loads need."""
        b = self.b
        parent = loop.loop
        assert parent is not None
        e = self.t[parent]
        if loop.constant_trips:
            first = b.mul(e, number(loop.constant_trips))
            end = b.add(first, number(loop.constant_trips))
        else:
            first = self.table(b.add(e, number(self.plan.trips[loop])))
            end = self.table(b.add(e, number(self.plan.trips[loop] + 1)))
        self.first[loop], self.end[loop] = first, end
        for address in self.addresses(loop):
            self._prepare(address, loop, e)
        return self.chunk.get(loop, (first, end))

    def addresses(self, loop: Loop) -> list[Address]:
        """Those of all that is stored or loaded in the iterations of a loop."""
        plan = self.plan
        found = [memory.address for memory in plan.found.memory if memory.home is loop]
        return [*found, *(address for site, address in plan.stored.items() if site.loop is loop)]

    @contextmanager
    def counting(self, first: ir.Value, end: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """Emit a loop from `first` up to `end`, or down from it; runs at least once. Inside, the builder stands in its body."""
        b = self.b
        before = b.block
        block = self.function.append_basic_block("loop")
        last = b.sub(end, number(1))
        b.branch(block)
        b.position_at_end(block)
        t = b.phi(I64)
        t.add_incoming(last if step < 0 else first, before)
        outside, self.functions.out_of_line = self.functions.out_of_line, False
        yield t
        self.functions.out_of_line = outside
        following = b.add(t, number(step))
        t.add_incoming(following, b.block)
        after = self.function.append_basic_block("after")
        more = b.icmp_signed(">=", following, first) if step < 0 else b.icmp_signed("<", following, end)
        branch = b.cbranch(more, block, after)
        if self.group is not None:
            module = self.function.module
            accesses = module.add_metadata(["llvm.loop.parallel_accesses", self.group])
            branch.set_metadata("llvm.loop", module.add_metadata([f"self {self.number_of_group}", accesses]))
        elif self.hints is not None:
            branch.set_metadata("llvm.loop", self.hints)
        b.position_at_end(after)

    @contextmanager
    def few(self, first: ir.Value, end: ir.Value) -> Iterator[ir.Value]:
        """A loop of so few iterations that LLVM is told to leave it as it is."""
        module = self.function.module
        self.n_groups += 1
        hints = [["llvm.loop.vectorize.width", ir.Constant(I32, 1)], ["llvm.loop.unroll.disable"]]
        self.hints = module.add_metadata([f"self {self.number_of_group}", *map(module.add_metadata, hints)])
        with self.counting(first, end) as t:
            yield t
        self.hints = None

    @contextmanager
    def in_parallel(self, first: ir.Value, end: ir.Value) -> Iterator[ir.Value]:
        """A loop whose iterations do not depend on each other through memory: LLVM is told so, and may use vectors."""
        self.n_groups += 1
        module = self.function.module
        self.group = module.add_metadata([f"group {self.number_of_group}"])
        with self.counting(first, end) as t:
            yield t
        self.group = None

    @contextmanager
    def iterations(self, loop: Loop, backwards: bool) -> Iterator[None]:
        """The iterations of one entry of a loop."""
        with self.counting(*self.bounds(loop), -1 if backwards else 1) as t:
            self.t[loop] = t
            yield

    @contextmanager
    def tiles(
        self, loop: Loop, tile: int | None = TILE, backwards: bool = False
    ) -> Iterator[tuple[ir.Value, ir.Value]]:
        """The iterations of one entry in runs of at most `tile`: (first, end) of each."""
        first, end = self.bounds(loop)
        if tile is None or loop.trips.max() <= tile:
            yield first, end
            return
        if backwards:
            n_tiles = self.b.sdiv(self.b.add(self.b.sub(end, first), number(tile - 1)), number(tile))
            with self.counting(number(0), n_tiles, -1) as k:
                start = self.b.add(first, self.b.mul(k, number(tile)))
                stop = self.b.add(start, number(tile))
                yield start, self.b.select(self.b.icmp_signed("<", stop, end), stop, end)
            return
        with self.counting(first, end, tile) as start:
            stop = self.b.add(start, number(tile))
            yield start, self.b.select(self.b.icmp_signed("<", stop, end), stop, end)

    @property
    def number_of_group(self) -> int:
        return 2 * self.n_groups + (self.name == "reverse")

    def buffer(self) -> ir.Value:
        """A tile of doubles on the stack."""
        return self.slots.bitcast(self.slots.alloca(DOUBLE, size=TILE + LANES), POINTER)

    def buffered(self, buffer: ir.Value, start: ir.Value, t: ir.Value) -> ir.Value:
        return self.pointer(self.b.sub(t, start), buffer)

    def _prepare(self, address: Address, loop: Loop, e: ir.Value) -> None:
        """What an address needs at every entry of its loop."""
        if address.per_entry:
            base = self.b.add(self.table(self.b.add(e, number(address.table))), number(address.base))
            self.bases[address, loop] = self.b.sub(base, self.b.mul(self.first[loop], number(address.stride)))

    def table(self, at: ir.Value) -> ir.Value:
        pointer = self.b.gep(self.tables, [at], inbounds=True, source_etype=I32)
        return self.b.sext(self.marked(self.b.load(pointer, typ=I32)), I64)

    def marked(self, access: Any) -> Any:
        """A load or store, with the access group of the loop around."""
        if self.group is not None:
            access.set_metadata("llvm.access.group", self.group)
        return access

    # Places.

    def place(self, address: Address, loop: Loop) -> ir.Value:
        """Where it is in this iteration of a loop."""
        b, t = self.b, self.t[loop]
        if address.table >= 0 and not address.per_entry:
            return self.table(b.add(t, number(address.table)))
        return b.add(self.origin(address, loop), b.mul(t, number(address.stride)))

    def origin(self, address: Address, loop: Loop) -> ir.Value:
        """Where iteration 0 would be, as seen from this entry."""
        return self.bases[address, loop] if address.per_entry else number(address.base)

    def array_of(self, memory: Memory) -> ir.Value:
        """The array that a load is from."""
        return self.inputs if self.is_input(memory) else self.memory

    def is_input(self, memory: Memory) -> bool:
        return self.number == DOUBLE and self.plan.is_input(memory)

    def load(self, at: ir.Value, array: ir.Value | None = None) -> ir.Value:
        return self.marked(self.b.load(self.pointer(at, array), typ=self.number))

    def store(self, value: ir.Value, at: ir.Value, array: ir.Value | None = None) -> None:
        self.marked(self.b.store(value, self.pointer(at, array)))

    def pointer(self, at: ir.Value, array: ir.Value | None = None) -> ir.Value:
        return self.b.gep(array or self.memory, [at], inbounds=True, source_etype=self.number)

    # Operands.

    def read(self, operand: Operand) -> ir.Value:
        """The value of an operand in this iteration."""
        match operand:
            case Constant(value=value):
                return constant(self.number, value)
            case Scope(site=site):
                return self.values[site]
            case Memory() if operand not in self.values:
                assert isinstance(operand.address, Address)
                self.values[operand] = self.load(self.place(operand.address, operand.home), self.array_of(operand))
        return self.values[operand]

    def value(self, site: Site, check: bool) -> ir.Value:
        """The result of a site from its operands."""
        operands = [self.read(operand) for operand in site.operands]
        if site.code in (OUTPUT, POSITIVE):
            return operands[0]
        if site.code == SELECT:
            return self.b.select(self.b.fcmp_unordered("!=", operands[2], self.zero), operands[0], operands[1])
        in_range: list[ir.Value] = []
        tree = value_of(site.code)
        value = self.functions.expression(self.b, tree, dict(zip("xy", operands, strict=False)), in_range)
        if check:
            for condition in in_range:
                self.note(self.b.not_(condition))
        return value

    def _users(self) -> dict[Loop, list[Any]]:
        """For each loop the loads from outside that something in it uses."""
        users: dict[Loop, dict[Any, None]] = {loop: {} for loop in self.plan.root.loops()}

        def visit(operand: Operand, node: Node) -> None:
            if isinstance(operand, Carried):
                visit(operand.start, operand.home)
            elif isinstance(operand, Memory):
                for loop in node.ancestors():
                    if loop is operand.home:
                        break
                    users[loop][operand] = None

        for site in self.plan.found.sites:
            for operand in site.operands:
                visit(operand, site)
        return {loop: list(found) for loop, found in users.items()}

    def load_for(self, loop: Loop, home: Loop) -> None:
        """Load what is used in `loop` and comes from `home`, before the loop is entered."""
        for memory in self.users[loop]:
            if memory.home is home:
                self.read(memory)

    def forget(self, loop: Loop) -> None:
        """Loads of one iteration are no good in the next."""
        for key in [key for key in self.values if isinstance(key, Memory) and key.home is loop]:
            del self.values[key]

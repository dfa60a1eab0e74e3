"""The fifth stage: LLVM IR for the forward and the reverse kernel of a planned nest.

``forward(inputs, memory, tables)`` computes all values and returns 0; not 0 if a decision changed, or an argument left the range in which the
inlined functions are right. ``reverse(inputs, memory, input_adjoints, adjoints, tables)`` then hands the adjoints of the outputs, which stand in
`adjoints`, back to the inputs. Unless `Plan.inputs_apart`, inputs stand at the beginning of `memory`, their adjoints at that of `adjoints`, and the
arguments for them are not used. Loops count through all iterations of all entries, so that one counter finds every place in memory.

Every loop runs at least once when it is entered. So what its last iteration computed is defined where it is left, and a
`Result` is the register itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import llvmlite.ir as ir

from tapejit import layout
from tapejit.compiler.functions import Functions
from tapejit.compiler.nest import Loop, Node, Site
from tapejit.compiler.operands import Carried, Constant, Memory, Operand, Result, Scope
from tapejit.compiler.plan import WIDEST_SHIFT, Address, Place, Plan, Split, partials_of, value_of
from tapejit.compiler.prune import EXPECTS_FALSE, EXPECTS_TRUE, OUTPUT, SUM_STEP
from tapejit.expressions import names
from tapejit.ops import CHAIN, DIV, POSITIVE, SELECT, SUB
from tapejit.sweeps.lowering import constant

__all__ = ["emit"]

DOUBLE, I32, I64, BOOL, POINTER = ir.DoubleType(), ir.IntType(32), ir.IntType(64), ir.IntType(1), ir.PointerType()
TILE = (
    layout.TILE
)  # iterations of a parallel loop that are worked off together: as in the sweeps, whose sums are the same then
ROOM = 4096  # doubles in all buffers of such a loop backwards, so that they stay in the first-level cache
SMALLEST_TILE = 384  # iterations times sites below which an entry of a parallel loop goes backwards one by one
LANES = WIDEST_SHIFT  # partial sums of an adjoint in a parallel loop
VECTOR = ir.VectorType(DOUBLE, LANES)


def emit(plan: Plan, lanes: int = 1) -> tuple[str, set[str]]:
    """The module as text, and the external functions that it calls.

    With more than one of `lanes`, the kernels work on that many independent inputs at once: every number in `memory` and `adjoints` is that many
    numbers side by side, and so are the inputs, which are never apart.
    """
    module = ir.Module("tapejit")
    functions = Functions(module, ir.VectorType(DOUBLE, lanes) if lanes > 1 else DOUBLE)
    _Forward(plan, module, functions).build()
    _Reverse(plan, module, functions).build()
    # llvmlite writes no distinct or self-referential metadata.
    text = re.sub(r'!{ !"group \d+" }', "distinct !{}", str(module))
    text = re.sub(r'(!\d+) = !{ !"self \d+", ', r"\1 = distinct !{ \1, ", text)
    return text, functions.externals


def _number(n: int) -> ir.Constant:
    return ir.Constant(I64, int(n))


class _Kernel:
    """What both kernels share: loops, places and loads."""

    name = ""
    arguments: tuple[str, ...] = ()

    def __init__(self, plan: Plan, module: ir.Module, functions: Functions) -> None:
        self.plan, self.functions = plan, functions
        self.number = functions.number  # the type of all that is computed
        self.zero = constant(self.number, 0.0)
        self.parallel = plan.parallel if self.number == DOUBLE else {}  # lanes are vectors enough
        self.function = ir.Function(module, ir.FunctionType(I64, [POINTER] * len(self.arguments)), self.name)
        self.function.attributes.add("nounwind")
        for argument, name in zip(self.function.args, self.arguments, strict=True):
            argument.name = name
            argument.add_attribute("noalias")
        self.entry = self.function.append_basic_block("entry")
        body = self.function.append_basic_block("start")
        self.b = ir.IRBuilder(body)
        self.slots = ir.IRBuilder(self.entry)
        self.start_block = body
        self.t: dict[Loop, ir.Value] = {}
        self.first: dict[Loop, ir.Value] = {}
        self.end: dict[Loop, ir.Value] = {}
        self.bases: dict[Memory, ir.Value] = {}
        self.values: dict[Any, ir.Value] = {}
        self.group: ir.Value | None = None  # the access group of the parallel loop that is being emitted
        self.n_groups = 0
        self.status = self.slot(I64, _number(0))
        self.inputs, self.memory, self.tables = self.function.args[0], self.function.args[1], self.function.args[-1]
        self.users = self._users()

    def build(self) -> None:
        self.t[self.plan.root] = _number(0)
        self.body(self.plan.root)
        self.b.ret(self.b.load(self.status, typ=I64))
        self.slots.branch(self.start_block)

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
        so_far = self.b.load(self.status, typ=I64)
        self.b.store(self.b.or_(so_far, self.b.zext(wrong, I64)), self.status)

    # Loops.

    def bounds(self, loop: Loop) -> tuple[ir.Value, ir.Value]:
        """The first iteration of this entry and the end; makes ready what loads need."""
        b = self.b
        parent = loop.loop
        assert parent is not None
        e = self.t[parent]
        if loop.constant_trips:
            first = b.mul(e, _number(loop.constant_trips))
            end = b.add(first, _number(loop.constant_trips))
        else:
            first = self.table(b.add(e, _number(self.plan.trips[loop])))
            end = self.table(b.add(e, _number(self.plan.trips[loop] + 1)))
        self.first[loop], self.end[loop] = first, end
        for memory in self.plan.found.memory:
            if memory.home is loop:
                self._prepare(memory, loop, e)
        return first, end

    @contextmanager
    def counting(self, first: ir.Value, end: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """Emit a loop from `first` up to `end`, or down from it; runs at least once. Inside, the builder stands in its body."""
        b = self.b
        before = b.block
        block = self.function.append_basic_block("loop")
        last = b.sub(end, _number(1))
        b.branch(block)
        b.position_at_end(block)
        t = b.phi(I64)
        t.add_incoming(last if step < 0 else first, before)
        yield t
        following = b.add(t, _number(step))
        t.add_incoming(following, b.block)
        after = self.function.append_basic_block("after")
        more = b.icmp_signed(">=", following, first) if step < 0 else b.icmp_signed("<", following, end)
        branch = b.cbranch(more, block, after)
        if self.group is not None:
            module = self.function.module
            accesses = module.add_metadata(["llvm.loop.parallel_accesses", self.group])
            branch.set_metadata("llvm.loop", module.add_metadata([f"self {self.number_of_group}", accesses]))
        b.position_at_end(after)

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
        self, loop: Loop, tile: int = TILE, backwards: bool = False
    ) -> Iterator[tuple[ir.Value, ir.Value]]:
        """The iterations of one entry in runs of at most `tile`: (first, end) of each."""
        first, end = self.bounds(loop)
        if 0 < loop.constant_trips <= tile:
            yield first, end
            return
        if backwards:
            n_tiles = self.b.sdiv(self.b.add(self.b.sub(end, first), _number(tile - 1)), _number(tile))
            with self.counting(_number(0), n_tiles, -1) as k:
                start = self.b.add(first, self.b.mul(k, _number(tile)))
                stop = self.b.add(start, _number(tile))
                yield start, self.b.select(self.b.icmp_signed("<", stop, end), stop, end)
            return
        with self.counting(first, end, tile) as start:
            stop = self.b.add(start, _number(tile))
            yield start, self.b.select(self.b.icmp_signed("<", stop, end), stop, end)

    @property
    def number_of_group(self) -> int:
        return 2 * self.n_groups + (self.name == "reverse")

    def buffer(self) -> ir.Value:
        """A tile of doubles on the stack."""
        return self.slots.bitcast(self.slots.alloca(DOUBLE, size=TILE + LANES), POINTER)

    def buffered(self, buffer: ir.Value, start: ir.Value, t: ir.Value) -> ir.Value:
        return self.pointer(self.b.sub(t, start), buffer)

    def _prepare(self, memory: Memory, loop: Loop, e: ir.Value) -> None:
        """What a load needs at every entry of its loop."""
        address = memory.address
        assert isinstance(address, Address)
        if address.per_entry:
            base = self.table(self.b.add(e, _number(address.table)))
            self.bases[memory] = self.b.sub(base, self.b.mul(self.first[loop], _number(address.stride)))

    def table(self, at: ir.Value) -> ir.Value:
        pointer = self.b.gep(self.tables, [at], inbounds=True, source_etype=I32)
        return self.b.sext(self.marked(self.b.load(pointer, typ=I32)), I64)

    def marked(self, access: Any) -> Any:
        """A load or store, with the access group of the loop around."""
        if self.group is not None:
            access.set_metadata("llvm.access.group", self.group)
        return access

    # Places.

    def address(self, memory: Memory) -> ir.Value:
        """Where a load finds its value in this iteration."""
        address, b = memory.address, self.b
        assert isinstance(address, Address)
        t = self.t[memory.home]
        if address.per_entry:
            return b.add(self.bases[memory], b.mul(t, _number(address.stride)))
        if address.table >= 0:
            return self.table(b.add(t, _number(address.table)))
        return b.add(_number(address.base), b.mul(t, _number(address.stride)))

    def array_of(self, memory: Memory) -> ir.Value:
        """The array that a load is from."""
        return self.inputs if self.is_input(memory) else self.memory

    def is_input(self, memory: Memory) -> bool:
        return self.number == DOUBLE and self.plan.inputs_apart and memory in self.plan.of_inputs

    def place(self, place: Place, loop: Loop) -> ir.Value:
        return self.b.add(_number(place.base), self.b.mul(self.t[loop], _number(place.stride)))

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
                self.values[operand] = self.load(self.address(operand), self.array_of(operand))
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


class _Forward(_Kernel):
    name, arguments = "forward", ("inputs", "memory", "tables")

    def body(self, loop: Loop) -> None:
        results = [operand for operand in self.plan.kept if isinstance(operand, Result) and operand.home is loop]
        for node in loop.body:
            if isinstance(node, Loop):
                self.load_for(node, loop)
                self.inner(node)
                for result in self._results(loop, node):
                    self.values[result] = self.values[result.site]
                    if result in results:
                        self.store(self.values[result], self.place(self.plan.kept[result], loop))
                continue
            value = self.values[node] = self.value(node, check=True)
            if node in self.plan.stored:
                self.store(value, self.place(self.plan.stored[node], loop))
            self.guard(node, value)

    def _results(self, home: Loop, inner: Loop) -> list[Result]:
        return [result for result in self.plan.found.results if result.home is home and inner.contains(result.site)]

    def inner(self, loop: Loop) -> None:
        if loop in self.parallel:
            self._tiled(loop, self.plan.parallel[loop])
            return
        carried = [operand for operand in self.plan.found.carried if operand.home is loop]
        slots = [self.slot() for _ in carried]
        for operand, slot in zip(carried, slots, strict=True):
            self.b.store(self.read(operand.start), slot)
        with self.iterations(loop, backwards=False):
            for operand, slot in zip(carried, slots, strict=True):
                self.values[operand] = self.b.load(slot, typ=self.number)
                if operand in self.plan.kept:
                    self.store(self.values[operand], self.place(self.plan.kept[operand], loop))
            self.body(loop)
            for operand, slot in zip(carried, slots, strict=True):
                self.b.store(self.values[operand.source], slot)
        self.forget(loop)

    def _tiled(self, loop: Loop, split: Split) -> None:
        """A parallel loop: first what vectorises, into buffers, then stores and sums in order."""
        b, plan = self.b, self.plan
        slots = {carried: self.slot() for carried, _ in split.chains}
        for carried, slot in slots.items():
            b.store(self.read(carried.start), slot)
        lost = {carried: self.slot() for carried, chain in split.chains if self._is_whole_sum(carried, chain)}
        for slot in lost.values():
            b.store(self.zero, slot)
        added = {o.site for _, chain in split.chains for site in chain for o in site.operands if isinstance(o, Scope)}
        added.update(split.handed_over)
        for carried in split.carried:
            slots[carried] = self.slot()
            b.store(self.read(carried.start), slots[carried])
        buffers = {site: self.buffer() for site in split.parallel if site in added}
        with self.tiles(loop) as (start, stop):
            with self.in_parallel(start, stop) as t:
                self.t[loop] = t
                for site in split.parallel:
                    value = self.values[site] = self.value(site, check=True)
                    if site in plan.stored:
                        self.store(value, self.place(plan.stored[site], loop))
                    if site in buffers:
                        self.marked(b.store(value, self.buffered(buffers[site], start, t)))
                    self.guard(site, value)
            self.forget(loop)
            whole = [(carried, chain[0]) for carried, chain in split.chains if self._is_whole_sum(carried, chain)]
            for carried, site in whole:
                addends = buffers[_identity(site.operands[1])]
                self._add_compensated(self._tile_sum(addends, b.sub(stop, start)), slots[carried], lost[carried])
            stepwise = [(carried, chain) for carried, chain in split.chains if carried not in lost]
            if stepwise or split.carried:
                computed = {site: self.values[site] for site in added & buffers.keys()}
                with self.counting(start, stop) as t:
                    self.t[loop] = t
                    for site in computed:
                        self.values[site] = b.load(self.buffered(buffers[site], start, t), typ=self.number)
                    for carried, chain in stepwise:
                        self.values[carried] = b.load(slots[carried], typ=self.number)
                        for site in chain:
                            self.values[site] = self.value(site, check=False)
                        b.store(self.values[carried.source], slots[carried])
                    self._serial_part(loop, split, slots)
                for site in computed.keys() & set(split.parallel):
                    self.values[site] = computed[site]
                self.forget(loop)
        for carried, slot in lost.items():
            total, rest = b.load(slots[carried], typ=self.number), b.load(slot, typ=self.number)
            is_finite = b.fcmp_ordered("<", self._absolute(rest), ir.Constant(DOUBLE, float("inf")))
            self.values[carried.source] = b.select(is_finite, b.fadd(total, rest), total)

    def _serial_part(self, loop: Loop, split: Split, slots: dict[Carried, ir.Value]) -> None:
        """What depends on the iteration before."""
        for carried in split.carried:
            self.values[carried] = self.b.load(slots[carried], typ=self.number)
            if carried in self.plan.kept:
                self.store(self.values[carried], self.place(self.plan.kept[carried], loop))
        for site in split.serial:
            value = self.values[site] = self.value(site, check=True)
            if site in self.plan.stored:
                self.store(value, self.place(self.plan.stored[site], loop))
            self.guard(site, value)
        for carried in split.carried:
            self.b.store(self.values[carried.source], slots[carried])

    def _is_whole_sum(self, carried: Carried, chain: list[Site]) -> bool:
        """Whether a chain is the sum of a block, from its beginning."""
        first = chain[0]
        return (
            len(chain) == 1
            and first.guard == SUM_STEP
            and first.operands[0] is carried
            and isinstance(first.operands[1], Scope)
            and carried.start == Constant(0.0)
        )

    def _absolute(self, x: ir.Value) -> ir.Value:
        return self.functions.call(self.b, "abs", [x])

    def _tile_sum(self, buffer: ir.Value, n: ir.Value) -> ir.Value:
        """Sum of a tile, as `tapejit.sweeps.blocks.sum_tile` has it: eight lanes, then the rest."""
        b = self.b
        total = self.slot()
        lanes = self.slot(VECTOR)
        b.store(ir.Constant(VECTOR, [0.0] * LANES), lanes)
        whole = b.and_(n, _number(-LANES))
        with b.if_then(b.icmp_signed(">", whole, _number(0))):
            with self.counting(_number(0), whole, LANES) as i:
                part = b.load(b.bitcast(self.pointer(i, buffer), VECTOR.as_pointer()), typ=VECTOR)
                part.align = 8
                b.store(b.fadd(b.load(lanes, typ=VECTOR), part), lanes)
        summed = b.load(lanes, typ=VECTOR)
        parts = [b.extract_element(summed, ir.Constant(I32, lane)) for lane in range(LANES)]
        while len(parts) > 1:
            parts = [b.fadd(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        b.store(parts[0], total)
        with b.if_then(b.icmp_signed("<", whole, n)):
            with self.counting(whole, n) as i:
                b.store(b.fadd(b.load(total, typ=self.number), self.load(i, buffer)), total)
        return b.load(total, typ=self.number)

    def _add_compensated(self, part: ir.Value, total_slot: ir.Value, lost_slot: ir.Value) -> None:
        """Add to a sum, and what rounding has lost to another, as `tapejit.sweeps.blocks.add_compensated` has it."""
        b = self.b
        total, lost = b.load(total_slot, typ=self.number), b.load(lost_slot, typ=self.number)
        grown = b.fadd(total, part)
        is_larger = b.fcmp_ordered(">=", self._absolute(total), self._absolute(part))
        large, small = b.select(is_larger, total, part), b.select(is_larger, part, total)
        b.store(b.fadd(lost, b.fadd(b.fsub(large, grown), small)), lost_slot)
        b.store(grown, total_slot)

    def guard(self, site: Site, value: ir.Value) -> None:
        if site.guard in (EXPECTS_FALSE, EXPECTS_TRUE):
            expected = constant(self.number, {EXPECTS_TRUE: 1.0, EXPECTS_FALSE: 0.0}[site.guard])
            self.note(self.b.fcmp_unordered("!=", value, expected))


@dataclass
class _Passing:
    """The variables through which adjoints pass into a loop and out of it.

    Attributes
    ----------
    carried : list of Carried
        What is carried in the loop and active.
    last : dict
        The adjoint with which an iteration, the last one first, finds a site.
    sums : dict
        The adjoints of what comes from outside.
    starts : dict
        The adjoints of what is carried into the first iteration.
    """

    carried: list[Carried]
    last: dict[Site, ir.Value] = field(default_factory=dict)
    sums: dict[Any, ir.Value] = field(default_factory=dict)
    starts: dict[Carried, ir.Value] = field(default_factory=dict)


class _Reverse(_Kernel):
    name, arguments = "reverse", ("inputs", "memory", "input_adjoints", "adjoints", "tables")

    def __init__(self, plan: Plan, module: ir.Module, functions: Functions) -> None:
        super().__init__(plan, module, functions)
        self.input_adjoints, self.adjoints = self.function.args[2:4]
        self.bars: list[dict[Any, ir.Value]] = [{}]
        self.outside = self._outside()

    @property
    def bar(self) -> dict[Any, ir.Value]:
        """The adjoints known in this iteration, by what they belong to."""
        return self.bars[-1]

    def _outside(self) -> dict[Loop, list[Any]]:
        """For each loop what comes from outside and takes adjoints in it."""
        outside: dict[Loop, dict[Any, None]] = {loop: {} for loop in self.plan.root.loops()}

        def visit(operand: Operand, node: Node) -> None:
            key, home = _key(operand), _home(operand)
            if key is None or not self.plan.is_active(operand):
                return
            for loop in node.ancestors():
                if loop is home:
                    break
                outside[loop][key] = None

        for site in self.plan.found.sites:
            if site in self.plan.active:
                for _, operand in self.plan.flows(site):
                    visit(operand, site)
        for carried in self.plan.found.carried:
            if self.plan.is_active(carried):
                visit(carried.start, carried.home)
        return {loop: list(found) for loop, found in outside.items()}

    def body(self, loop: Loop) -> None:
        self._recompute(loop)
        for node in reversed(loop.body):
            if isinstance(node, Loop):
                self._inner(node)
            elif node in self.plan.active:
                self._pull_back(node)
            for key in list(self.bar):
                if isinstance(key, Memory) and key.home is loop and key.first_use == node.position:
                    self._add(key, self.bar.pop(key))
        self.forget(loop)

    def _recompute(self, loop: Loop) -> None:
        for carried in self.plan.found.carried:
            if carried.home is loop and carried in self.plan.kept:
                self.values[carried] = self.load(self.place(self.plan.kept[carried], loop))
        for node in loop.body:
            if isinstance(node, Loop):
                for result, place in self.plan.kept.items():
                    if isinstance(result, Result) and result.home is loop and node.contains(result.site):
                        self.values[result] = self.load(self.place(place, loop))
            elif node in self.plan.recomputed:
                if node in self.plan.stored:
                    self.values[node] = self.load(self.place(self.plan.stored[node], loop))
                else:
                    self.values[node] = self.value(node, check=False)

    # Adjoints.

    def adjoints_of(self, memory: Memory) -> ir.Value:
        """The array that the adjoint of a load is added to."""
        return self.input_adjoints if self.is_input(memory) else self.adjoints

    def _accumulate(self, operand: Operand, contribution: ir.Value) -> None:
        """Add to the adjoint of an operand."""
        key = _key(operand)
        known = self.bar.get(key)
        self.bar[key] = contribution if known is None else self.b.fadd(known, contribution)

    def _add(self, memory: Memory, contribution: ir.Value) -> None:
        pointer = self.pointer(self.address(memory), self.adjoints_of(memory))
        self.b.store(self.b.fadd(self.b.load(pointer, typ=self.number), contribution), pointer)

    def _pull_back(self, site: Site) -> None:
        """Hand the adjoint of a site on to its operands."""
        b, plan = self.b, self.plan
        assert site.loop is not None
        g = self.bar.pop(site, None)
        if site in plan.stored:
            # Now, not earlier: something later in this iteration may have added to it.
            stored = self.load(self.place(plan.stored[site], site.loop), self.adjoints)
            g = stored if g is None else b.fadd(stored, g)
        if g is None:
            return
        flows = [(k, operand) for k, operand in plan.flows(site) if plan.is_active(operand)]
        if site.code in (OUTPUT, POSITIVE):
            self._accumulate(flows[0][1], g)
        elif site.code == SELECT:
            chosen = b.fcmp_unordered("!=", self.read(site.operands[2]), self.zero)
            for k, operand in flows:
                self._accumulate(operand, b.select(chosen, *((g, self.zero) if k == 0 else (self.zero, g))))
        else:
            for k, operand in flows:
                self._accumulate(operand, self._scaled(site, k, g))

    def _scaled(self, site: Site, k: int, g: ir.Value) -> ir.Value:
        """Adjoint times partial, rounded as in the sweep."""
        b = self.b
        tree = partials_of(site.code)[k]
        if tree == 1.0:
            return g
        if tree == -1.0:
            return b.fneg(g)
        if site.code == DIV:
            quotient = b.fdiv(g, self.read(site.operands[1]))
            return quotient if k == 0 else b.fneg(b.fmul(quotient, self.values[site]))
        operands: dict[str, ir.Value] = {}
        wanted = set(names(tree))
        for name, operand in zip("xy", site.operands, strict=False):
            if name in wanted:
                operands[name] = self.read(operand)
        if "v" in wanted:
            operands["v"] = self.values[site]
        in_range: list[ir.Value] = []
        partial = self.functions.expression(b, tree, operands, in_range)
        for condition in in_range:
            self.note(b.not_(condition))
        product = b.fmul(g, partial)
        if site.code == CHAIN:
            return b.select(b.fcmp_unordered("!=", partial, self.zero), product, self.zero)
        return product

    # Loops.

    def _inner(self, loop: Loop) -> None:
        """A loop inside, backwards: adjoints from outside come in through variables, and go out through them."""
        plan, b = self.plan, self.b
        assert loop.loop is not None
        self.load_for(loop, loop.loop)
        carried = [o for o in plan.found.carried if o.home is loop and plan.is_active(o)]
        passing = _Passing(carried)
        left = {site: self.bar.pop(site) for site in list(self.bar) if isinstance(site, Site) and loop.contains(site)}
        for site in {**left, **{o.source: None for o in carried if o.source in plan.active}}:
            passing.last[site] = self.slot()
            b.store(left.get(site, self.zero), passing.last[site])
        for key in self.outside[loop]:
            passing.sums[key] = self.slot()
            b.store(self.bar.pop(key, self.zero), passing.sums[key])
        for operand in carried:
            if plan.is_active(operand.start):
                passing.starts[operand] = self.slot()
        split = self.parallel.get(loop)
        shortest = max(LANES, SMALLEST_TILE // len(loop.body))
        if split is None or loop.trips.max() < shortest:
            self._one_by_one(loop, passing)
        elif loop.trips.min() >= shortest:
            self._tiled(loop, split, passing)
        else:
            first, end = self.bounds(loop)
            known = dict(self.values)
            with b.if_else(b.icmp_signed("<", b.sub(end, first), _number(shortest))) as (short, long):
                with short:
                    self._one_by_one(loop, passing)
                self.values = dict(known)
                with long:
                    self._tiled(loop, split, passing)
                self.values = known
        for key, slot in passing.sums.items():
            self.bar[key] = b.load(slot, typ=self.number)
        for operand, slot in passing.starts.items():
            self._accumulate(operand.start, b.load(slot, typ=self.number))

    def _one_by_one(self, loop: Loop, passing: _Passing) -> None:
        """One iteration after the other."""
        b = self.b
        with self.iterations(loop, backwards=True):
            self.bars.append({})
            for site, slot in passing.last.items():
                self.bar[site] = b.load(slot, typ=self.number)
                b.store(self.zero, slot)
            for key, slot in passing.sums.items():
                self.bar[key] = b.load(slot, typ=self.number)
            self.body(loop)
            for operand in passing.carried:
                contribution = self.bar.pop(operand, self.zero)
                if operand in passing.starts:
                    b.store(contribution, passing.starts[operand])
                if operand.source in passing.last:
                    slot = passing.last[operand.source]
                    b.store(b.fadd(b.load(slot, typ=self.number), contribution), slot)
            for key, slot in passing.sums.items():
                b.store(self.bar.pop(key), slot)
            self.bars.pop()

    def _tiled(self, loop: Loop, split: Split, passing: _Passing) -> None:
        """A parallel loop: contributions into buffers, which vectorises, then into memory one operand after the other; sums in lanes.

        A sum hands its adjoint on to all its addends as it is, so its additions need no pass of their own.
        """
        b, plan = self.b, self.plan
        seeds: list[tuple[Operand, ir.Value]] = []  # what the sums hand on
        for carried, chain in split.chains:
            if carried.source not in passing.last:
                continue
            g = b.load(passing.last[carried.source], typ=self.number)
            link: Operand | Site = carried
            for site in chain:
                k = 1 if _identity(site.operands[0]) is link else 0
                seeds.append((site.operands[k], b.fneg(g) if site.code == SUB else g))
                link = site
            if carried in passing.starts:
                b.store(g, passing.starts[carried])
        left = {}
        if not split.carried:
            left = {site: b.load(passing.last[site], typ=self.number) for site in split.parallel if site in passing.last}
        handed = {site: self.buffer() for site in split.handed_over if site in plan.recomputed}
        taken = [site for site in split.parallel if site in plan.active and (site in split.handed_over or site in passing.last)]
        taking = {site: self.buffer() for site in taken} if split.carried else {}
        buffers: dict[Any, ir.Value] = {}
        lanes = {key: self.slot(VECTOR) for key in passing.sums}
        for slot in lanes.values():
            b.store(ir.Constant(VECTOR, [0.0] * LANES), slot)
        memories = [m for m in plan.found.memory if m.home is loop and plan.is_active(m)]
        tile = TILE
        while tile > 2 * LANES and tile * (len(memories) + len(lanes) + len(handed) + len(taking)) > ROOM:
            tile //= 2
        with self.tiles(loop, tile, backwards=bool(split.carried)) as (start, stop):
            if split.carried:
                self._serial_part(loop, split, passing, start, stop, handed, taking)
            with self.in_parallel(start, stop) as t:
                self.t[loop] = t
                self.bars.append({})
                for site, buffer in taking.items():
                    self.bar[site] = self.marked(b.load(self.buffered(buffer, start, t), typ=self.number))
                self._recompute_parallel(loop, split)
                self._tile_iteration(loop, split, seeds, left)
                written: dict[ir.Value, ir.Value] = {}  # operands of a sum share a buffer
                for key, contribution in self.bars.pop().items():
                    if contribution not in written:
                        written[contribution] = self.padded_buffer()
                        self.marked(b.store(contribution, self.buffered(written[contribution], start, t)))
                    buffers[key] = written[contribution]
            self.forget(loop)
            for buffer in set(written.values()):
                self._clear(self.pointer(b.sub(stop, start), buffer))
            for key in buffers:
                if key in lanes:
                    self._add_lanes(buffers[key], start, stop, lanes[key])
            self._add_tiles(loop, start, stop, {key: buffer for key, buffer in buffers.items() if key not in lanes})
        for key in buffers:
            if key in lanes:
                vector = b.load(lanes[key], typ=VECTOR)
                total = b.extract_element(vector, ir.Constant(I32, 0))
                for lane in range(1, LANES):
                    total = b.fadd(total, b.extract_element(vector, ir.Constant(I32, lane)))
                b.store(b.fadd(b.load(passing.sums[key], typ=self.number), total), passing.sums[key])

    def _recompute_parallel(self, loop: Loop, split: Split) -> None:
        for site in split.parallel:
            if site in self.plan.recomputed:
                if site in self.plan.stored:
                    self.values[site] = self.load(self.place(self.plan.stored[site], loop))
                else:
                    self.values[site] = self.value(site, check=False)

    def _serial_part(
        self,
        loop: Loop,
        split: Split,
        passing: _Passing,
        start: ir.Value,
        stop: ir.Value,
        handed: dict[Site, ir.Value],
        taking: dict[Site, ir.Value],
    ) -> None:
        """What depends on the iteration after: takes values of the parallel part from buffers, and leaves their adjoints in others."""
        b, plan = self.b, self.plan
        if handed:
            with self.in_parallel(start, stop) as t:
                self.t[loop] = t
                self._recompute_parallel(loop, split)
                for site, buffer in handed.items():
                    self.marked(b.store(self.values[site], self.buffered(buffer, start, t)))
            self.forget(loop)
        summed = {carried.source for carried, _ in split.chains}
        last = {site: slot for site, slot in passing.last.items() if site not in summed}
        with self.counting(start, stop, -1) as t:
            self.t[loop] = t
            self.bars.append({})
            for site, slot in last.items():
                self.bar[site] = b.load(slot, typ=self.number)
                b.store(self.zero, slot)
            for key, slot in passing.sums.items():
                self.bar[key] = b.load(slot, typ=self.number)
            for carried in split.carried:
                if carried in plan.kept:
                    self.values[carried] = self.load(self.place(plan.kept[carried], loop))
            for site, buffer in handed.items():
                self.values[site] = b.load(self.buffered(buffer, start, t), typ=self.number)
            for site in split.serial:
                if site in plan.recomputed:
                    stored = site in plan.stored
                    self.values[site] = (
                        self.load(self.place(plan.stored[site], loop)) if stored else self.value(site, check=False)
                    )
            for site in reversed(split.serial):
                if site in plan.active:
                    self._pull_back(site)
            for key in [key for key in self.bar if isinstance(key, Memory) and key.home is loop]:
                self._add(key, self.bar.pop(key))
            for site, buffer in taking.items():
                b.store(self.bar.pop(site, self.zero), self.buffered(buffer, start, t))
            for operand in passing.carried:
                if operand in split.carried:
                    contribution = self.bar.pop(operand, self.zero)
                    if operand in passing.starts:
                        b.store(contribution, passing.starts[operand])
                    if operand.source in last:
                        slot = last[operand.source]
                        b.store(b.fadd(b.load(slot, typ=self.number), contribution), slot)
            for key, slot in passing.sums.items():
                b.store(self.bar.pop(key), slot)
            self.bars.pop()
        self.forget(loop)

    def _tile_iteration(
        self, loop: Loop, split: Split, seeds: list[tuple[Operand, ir.Value]], left: dict[Site, ir.Value]
    ) -> None:
        """One iteration of the parallel part, backwards."""
        plan, b = self.plan, self.b
        if left:
            assert loop.loop is not None
            last = b.icmp_signed("==", b.add(self.t[loop], _number(1)), self.end[loop])
            for site, g in left.items():
                self.bar[site] = b.select(last, g, self.zero)
        for operand, g in reversed(seeds):
            if plan.is_active(operand):
                self._accumulate(operand, g)
        for site in reversed(split.parallel):
            if site in plan.active:
                self._pull_back(site)

    def _clear(self, pointer: ir.Value, builder: ir.IRBuilder | None = None) -> None:
        """Set `LANES` numbers to 0."""
        b = builder or self.b
        b.store(ir.Constant(VECTOR, [0.0] * LANES), b.bitcast(pointer, VECTOR.as_pointer())).align = 8

    def padded_buffer(self) -> ir.Value:
        """A tile with zeros before it; those after it are written when its length is known."""
        buffer = self.slots.bitcast(self.slots.alloca(DOUBLE, size=TILE + 3 * LANES), POINTER)
        self._clear(self.slots.gep(buffer, [_number(0)], source_etype=self.number), self.slots)
        return self.slots.gep(buffer, [_number(LANES)], source_etype=self.number)

    def _add_tiles(self, loop: Loop, start: ir.Value, stop: ir.Value, buffers: dict[Memory, ir.Value]) -> None:
        """Add contributions to adjoints in memory: loads that walk side by side together, so that each place is added to once."""
        b = self.b
        grouped: set[Memory] = set()
        apart = [[m for m in buffers if self.is_input(m) is of_inputs] for of_inputs in (True, False)]
        for group in [*self.plan.shifts(loop, apart[0]), *self.plan.shifts(loop, apart[1])]:
            grouped.update(memory for memory, _ in group)
            differs = ir.Constant(BOOL, 0)
            for memory, shift in group[1:]:
                distance = _number(shift * self._stride(memory))
                differs = b.or_(differs, b.icmp_signed("!=", self._distance(group[0][0], memory), distance))
            with b.if_else(differs) as (separately, together):
                with separately:
                    for memory, _ in group:
                        self._add_tile(loop, start, stop, memory, buffers[memory])
                with together:
                    self._add_group(loop, start, stop, group, buffers)
        for memory, buffer in buffers.items():
            if memory not in grouped:
                self._add_tile(loop, start, stop, memory, buffer)

    def _stride(self, memory: Memory) -> int:
        assert isinstance(memory.address, Address)
        return memory.address.stride

    def _distance(self, a: Memory, b: Memory) -> ir.Value:
        """From where `a` begins in this entry to where `b` does."""
        return self.b.sub(self._origin(b), self._origin(a))

    def _origin(self, memory: Memory) -> ir.Value:
        address = memory.address
        assert isinstance(address, Address)
        return self.bases[memory] if address.per_entry else _number(address.base)

    def _add_tile(self, loop: Loop, start: ir.Value, stop: ir.Value, memory: Memory, buffer: ir.Value) -> None:
        address = memory.address
        assert isinstance(address, Address)
        apart = address.stride != 0 and (address.per_entry or address.table < 0)
        with (self.in_parallel if apart else self.counting)(start, stop) as t:
            self.t[loop] = t
            pointer = self.pointer(self.address(memory), self.adjoints_of(memory))
            part = self.marked(self.b.load(self.buffered(buffer, start, t), typ=self.number))
            so_far = self.marked(self.b.load(pointer, typ=self.number))
            self.marked(self.b.store(self.b.fadd(so_far, part), pointer))

    def _add_group(
        self,
        loop: Loop,
        start: ir.Value,
        stop: ir.Value,
        group: list[tuple[Memory, int]],
        buffers: dict[Memory, ir.Value],
    ) -> None:
        b = self.b
        leader = group[0][0]
        low, high = min(shift for _, shift in group), max(shift for _, shift in group)
        with self.in_parallel(b.add(start, _number(low)), b.add(stop, _number(high))) as t:
            self.t[loop] = t
            pointer = self.pointer(self.address(leader), self.adjoints_of(leader))
            total = self.marked(b.load(pointer, typ=self.number))
            for memory, shift in reversed(group):
                at = self.buffered(buffers[memory], start, b.sub(t, _number(shift)))
                total = b.fadd(total, self.marked(b.load(at, typ=self.number)))
            self.marked(b.store(total, pointer))

    def _add_lanes(self, buffer: ir.Value, start: ir.Value, stop: ir.Value, slot: ir.Value) -> None:
        """Add a tile to partial sums: iteration i to the one of its number modulo `LANES`."""
        b = self.b
        n = b.sub(stop, start)
        before = b.block
        block, after = self.function.append_basic_block("lanes"), self.function.append_basic_block("after")
        so_far = b.load(slot, typ=VECTOR)
        b.branch(block)
        b.position_at_end(block)
        i, total = b.phi(I64), b.phi(VECTOR)
        part = b.load(b.bitcast(self.pointer(i, buffer), VECTOR.as_pointer()), typ=VECTOR)
        part.align = 8
        following, summed = b.add(i, _number(LANES)), b.fadd(total, part)
        for phi, old, new in ((i, _number(0), following), (total, so_far, summed)):
            phi.add_incoming(old, before)
            phi.add_incoming(new, block)
        b.cbranch(b.icmp_signed("<", following, n), block, after)
        b.position_at_end(after)
        b.store(summed, slot)


def _identity(operand: Operand) -> Operand | Site:
    return operand.site if isinstance(operand, Scope) else operand


def _key(operand: Operand) -> Any:
    """What the adjoint of an operand is kept under: the site itself, also for a result; None if it takes none in a register."""
    match operand:
        case Scope(site=site) | Result(site=site):
            return site
        case Constant():
            return None
    return operand


def _home(operand: Operand) -> Loop | None:
    """The loop in which an operand has one value an iteration."""
    match operand:
        case Scope(site=site):
            return site.loop
        case Result(home=home) | Carried(home=home) | Memory(home=home):
            return home
    return None

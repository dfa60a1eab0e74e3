"""The forward kernel: every value of a nest, and of these only what is needed later goes to memory."""

from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from tapejit.compiler.chunks import Chunks
from tapejit.compiler.emitter import DOUBLE, I32, LANES, TILE, VECTOR, number
from tapejit.compiler.multiply import emit_product
from tapejit.compiler.nest import Loop, Product, Site
from tapejit.compiler.operands import Carried, Operand, Result, Scope
from tapejit.compiler.plan import Split
from tapejit.compiler.prune import EXPECTS_FALSE, EXPECTS_TRUE
from tapejit.compiler.sharing import identity, is_whole_sum
from tapejit.sweeps.lowering import constant

__all__ = ["Forward"]


class Forward(Chunks):
    name, arguments = "forward", ("inputs", "memory", "tables")

    def use(self, arguments: Sequence[ir.Value]) -> None:
        self.inputs, self.memory, self.tables = arguments

    def body(self, loop: Loop) -> None:
        results = [operand for operand in self.plan.kept if isinstance(operand, Result) and operand.home is loop]
        for node in loop.body:
            if isinstance(node, Product):
                emit_product(self, node)
                continue
            if isinstance(node, Loop):
                self.load_for(node, loop)
                self.inner(node)
                for result in self.results(loop, node):
                    if result in self.deferred:
                        continue
                    self.values[result] = self.values[result.site]
                    if result in results:
                        self.store(self.values[result], self.place(self.plan.kept[result], loop))
                    self.keep_addend(result, loop)
                continue
            if node in self.deferred:
                continue
            value = self.values[node] = self.value(node, check=True)
            if node in self.plan.stored:
                self.store(value, self.place(self.plan.stored[node], loop))
            self.keep_addend(node, loop)
            self.guard(node, value)

    def inner(self, loop: Loop) -> None:
        if loop in self.shared and self.plan.threaded:
            self.in_chunks(loop)
        else:
            self.run(loop)

    def in_chunks(self, loop: Loop) -> None:
        """A loop that threads share: everything but its sums in chunks, then the sums."""
        sharing = self.shared[loop]
        in_tiles = self.plan.whole_sums(loop)
        totals = [total for total in sharing.totals if total.source not in in_tiles]
        context = self.context(loop, [self.read(total.start) for total in totals])
        with self.outlined("chunk", loop, context) as chunk:
            self.chunk[loop] = self.chunk_bounds(loop, chunk.k)
            self.deferred = sharing.parts
            self.run(loop)
            self.deferred = set()
        add = None
        if totals:
            with self.outlined("sum", loop, context) as add:
                self.chunk[loop] = self.chunk_bounds(loop, add.k)
                slots = {total: self.slot() for total in totals}
                for slot, value in zip(slots.values(), add.numbers, strict=True):
                    self.b.store(value, slot)
                self._add_up(loop, sharing.parts - set(in_tiles), slots)
                for slot, place in zip(slots.values(), add.places, strict=True):
                    self.b.store(self.b.load(slot, typ=self.number), self.b.bitcast(place, DOUBLE.as_pointer()))
        del self.chunk[loop]
        self.run_chunks(context, chunk, add, 0, sharing.n_chunks)
        for total, place in zip(totals, self.places(context), strict=True):
            self.values[total.source] = self.b.load(place, typ=self.number)
        for site in in_tiles:
            self._add_tile_sums(loop, site)

    def _add_tile_sums(self, loop: Loop, site: Site) -> None:
        """The sum of a block from those of its tiles."""
        total, lost = self.slot(), self.slot()
        self.b.store(self.zero, total)
        self.b.store(self.zero, lost)
        first = self.plan.addends[site].base
        with self.counting(number(first), number(first - (-loop.n_iterations // TILE))) as at:
            self.add_compensated(self.load(at), total, lost)
        self.values[site] = self.compensated(total, lost)

    def _add_up(self, loop: Loop, parts: set[object], slots: dict[Carried, ir.Value]) -> None:
        """The parts of sums in a loop, iteration by iteration; what it carries stands in `slots`, the addends in memory."""
        with self.iterations(loop, backwards=False):
            for operand, slot in slots.items():
                self.values[operand] = self.b.load(slot, typ=self.number)
            for node in loop.body:
                if isinstance(node, Site) and node in parts:
                    for operand in node.operands:
                        self._load_addend(operand)
                    self.values[node] = self.value(node, check=False)
                elif isinstance(node, Loop) and not parts.isdisjoint(node.sites()):
                    self.load_for(node, loop)
                    inner = {o: self.slot() for o in self.plan.found.carried if o.home is node and o in parts}
                    for operand, slot in inner.items():
                        self.b.store(self.read(operand.start), slot)
                    self._add_up(node, parts, inner)
                    self.values.update({r: self.values[r.site] for r in self.results(loop, node) if r in parts})
            for operand, slot in slots.items():
                self.b.store(self.values[operand.source], slot)
        self.forget(loop)

    def _load_addend(self, operand: Operand) -> None:
        source = identity(operand)
        if source in self.plan.addends:
            home = source.home if isinstance(source, Result) else source.loop
            assert home is not None
            self.values[source] = self.load(self.place(self.plan.addends[source], home))

    def run(self, loop: Loop) -> None:
        """A loop, or the chunk of it that `chunk` has."""
        if loop in self.parallel:
            self._tiled(loop, self.plan.parallel[loop])
            return
        carried = [o for o in self.plan.found.carried if o.home is loop and o not in self.deferred]
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
        later = [
            chain[0] for carried, chain in split.chains if carried in self.deferred and is_whole_sum(carried, chain)
        ]
        chains = [(carried, chain) for carried, chain in split.chains if carried not in self.deferred]
        others = [carried for carried in split.carried if carried not in self.deferred]
        slots = {carried: self.slot() for carried, _ in chains}
        for carried, slot in slots.items():
            b.store(self.read(carried.start), slot)
        lost = {carried: self.slot() for carried, chain in chains if is_whole_sum(carried, chain)}
        for slot in lost.values():
            b.store(self.zero, slot)
        added = {o.site for _, chain in chains for site in chain for o in site.operands if isinstance(o, Scope)}
        added.update(site.operands[1].site for site in later)
        if others or not self.deferred.issuperset(split.serial):
            added.update(split.handed_over)
        for carried in others:
            slots[carried] = self.slot()
            b.store(self.read(carried.start), slots[carried])
        for carried in split.delayed:
            slots[carried] = self.slot()
            b.store(self.read(carried.start), slots[carried])
        buffers = {site: self.buffer() for site in split.parallel if site in added}
        whole = [(carried, chain[0]) for carried, chain in chains if carried in lost]
        repeated = {
            site.operands[1].site: self.buffer()
            for site in [*later, *(site for _, site in whole)]
            if site.operands[1].site not in buffers
        }  # one number from outside of the loop, over and over
        for site, buffer in repeated.items():
            with self.counting(number(0), number(TILE)) as i:
                b.store(self.values[site], self.pointer(i, buffer))
        addends = {**buffers, **repeated}
        with self.tiles(loop, TILE if addends else None) as (start, stop):
            with self.in_parallel(start, stop) as t:
                self.t[loop] = t
                for carried in split.delayed:
                    self.values[carried] = b.load(slots[carried], typ=self.number)
                    if carried in plan.kept:
                        self.store(self.values[carried], self.place(plan.kept[carried], loop))
                for site in split.parallel:
                    value = self.values[site] = self.value(site, check=True)
                    if site in plan.stored:
                        self.store(value, self.place(plan.stored[site], loop))
                    self.keep_addend(site, loop)
                    if site in buffers:
                        self.marked(b.store(value, self.buffered(buffers[site], start, t)))
                    self.guard(site, value)
                for carried in split.delayed:
                    b.store(self.values[carried.source], slots[carried])
            self.forget(loop)
            for site in later:
                part = self._tile_sum(addends[site.operands[1].site], b.sub(stop, start))
                self.store(part, b.add(number(plan.addends[site].base), b.sdiv(start, number(TILE))))
            for carried, site in whole:
                part = self._tile_sum(addends[site.operands[1].site], b.sub(stop, start))
                self.add_compensated(part, slots[carried], lost[carried])
            stepwise = [(carried, chain) for carried, chain in chains if carried not in lost]
            if stepwise or others:
                computed = {site: self.values[site] for site in buffers}
                with self.counting(start, stop) as t:
                    self.t[loop] = t
                    for site in computed:
                        self.values[site] = b.load(self.buffered(buffers[site], start, t), typ=self.number)
                    for carried, chain in stepwise:
                        self.values[carried] = b.load(slots[carried], typ=self.number)
                        for site in chain:
                            self.values[site] = self.value(site, check=False)
                        b.store(self.values[carried.source], slots[carried])
                    self._serial_part(loop, split, others, slots)
                self.values.update(computed)
                self.forget(loop)
        for carried, slot in lost.items():
            self.values[carried.source] = self.compensated(slots[carried], slot)

    def compensated(self, total_slot: ir.Value, lost_slot: ir.Value) -> ir.Value:
        """A sum and what rounding has lost."""
        b = self.b
        total, lost = b.load(total_slot, typ=self.number), b.load(lost_slot, typ=self.number)
        is_finite = b.fcmp_ordered("<", self._absolute(lost), ir.Constant(DOUBLE, float("inf")))
        return b.select(is_finite, b.fadd(total, lost), total)

    def _serial_part(self, loop: Loop, split: Split, others: list[Carried], slots: dict[Carried, ir.Value]) -> None:
        """What depends on the iteration before."""
        for carried in others:
            self.values[carried] = self.b.load(slots[carried], typ=self.number)
            if carried in self.plan.kept:
                self.store(self.values[carried], self.place(self.plan.kept[carried], loop))
        for site in split.serial:
            if site in self.deferred:
                continue
            value = self.values[site] = self.value(site, check=True)
            if site in self.plan.stored:
                self.store(value, self.place(self.plan.stored[site], loop))
            self.keep_addend(site, loop)
            self.guard(site, value)
        for carried in others:
            self.b.store(self.values[carried.source], slots[carried])

    def _absolute(self, x: ir.Value) -> ir.Value:
        return self.functions.call(self.b, "abs", [x])

    def _tile_sum(self, buffer: ir.Value, n: ir.Value) -> ir.Value:
        """Sum of a tile, as `tapejit.sweeps.blocks.sum_tile` has it: eight lanes, then the rest."""
        b = self.b
        total = self.slot()
        lanes = self.slot(VECTOR)
        b.store(ir.Constant(VECTOR, [0.0] * LANES), lanes)
        whole = b.and_(n, number(-LANES))
        with b.if_then(b.icmp_signed(">", whole, number(0))):
            with self.counting(number(0), whole, LANES) as i:
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

    def add_compensated(self, part: ir.Value, total_slot: ir.Value, lost_slot: ir.Value) -> None:
        """Add to a sum, and what rounding has lost to another, as `tapejit.sweeps.blocks.add_compensated` has it."""
        b = self.b
        total, lost = b.load(total_slot, typ=self.number), b.load(lost_slot, typ=self.number)
        grown = b.fadd(total, part)
        is_larger = b.fcmp_ordered(">=", self._absolute(total), self._absolute(part))
        large, small = b.select(is_larger, total, part), b.select(is_larger, part, total)
        b.store(b.fadd(lost, b.fadd(b.fsub(large, grown), small)), lost_slot)
        b.store(grown, total_slot)

    def results(self, home: Loop, inner: Loop) -> list[Result]:
        """What `inner` hands on in an iteration of `home`."""
        return [result for result in self.plan.found.results if result.home is home and inner.contains(result.site)]

    def guard(self, site: Site, value: ir.Value) -> None:
        if site.guard in (EXPECTS_FALSE, EXPECTS_TRUE):
            expected = constant(self.number, {EXPECTS_TRUE: 1.0, EXPECTS_FALSE: 0.0}[site.guard])
            self.note(self.b.fcmp_unordered("!=", value, expected))

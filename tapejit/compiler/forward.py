"""The forward kernel: every value of a nest, and of these only what is needed later goes to memory."""

from __future__ import annotations

import llvmlite.ir as ir

from tapejit.compiler.emitter import DOUBLE, I32, LANES, VECTOR, Emitter, number
from tapejit.compiler.multiply import emit_product
from tapejit.compiler.nest import Loop, Product, Site
from tapejit.compiler.operands import Carried, Constant, Result, Scope
from tapejit.compiler.plan import Split
from tapejit.compiler.prune import EXPECTS_FALSE, EXPECTS_TRUE, SUM_STEP
from tapejit.sweeps.lowering import constant

__all__ = ["Forward"]


class Forward(Emitter):
    name, arguments = "forward", ("inputs", "memory", "tables")

    def body(self, loop: Loop) -> None:
        results = [operand for operand in self.plan.kept if isinstance(operand, Result) and operand.home is loop]
        for node in loop.body:
            if isinstance(node, Product):
                emit_product(self, node)
                continue
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
                addends = buffers[site.operands[1].site]
                self._add_compensated(self._tile_sum(addends, b.sub(stop, start)), slots[carried], lost[carried])
            stepwise = [(carried, chain) for carried, chain in split.chains if carried not in lost]
            if stepwise or split.carried:
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
                    self._serial_part(loop, split, slots)
                self.values.update(computed)
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

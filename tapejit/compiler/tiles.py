"""Parallel loops backwards: tile by tile, contributions to adjoints first into buffers, which vectorises, and from there to where they belong.

Adjoints of what comes from outside of the loop are added up in `LANES` partial sums, iteration by iteration modulo that number. Those of
loads that walk side by side are added up together, so that each place in memory is added to once a tile. None of it depends on the
number of threads or the width of the processor's vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import llvmlite.ir as ir

from tapejit.compiler.chunks import Chunks
from tapejit.compiler.emitter import BOOL, DOUBLE, I32, I64, LANES, POINTER, TILE, VECTOR, number
from tapejit.compiler.nest import Loop, Site
from tapejit.compiler.operands import Carried, Memory, Operand
from tapejit.compiler.places import Address
from tapejit.compiler.plan import Split
from tapejit.compiler.sharing import identity
from tapejit.ops import SUB

__all__ = ["Passing", "Tiles"]

ROOM = 4096  # doubles in all buffers of a loop, so that they stay in the first-level cache


@dataclass
class Passing:
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


class Tiles(Chunks):
    """The part of the reverse kernel that works parallel loops off; `Reverse` has the rest."""

    bars: list[dict[Any, ir.Value]]
    adjoints: ir.Value
    input_adjoints: ir.Value
    copies: dict[Memory, ir.Value]
    clears = True  # adjoints that are pulled back

    @property
    def bar(self) -> dict[Any, ir.Value]:
        """The adjoints known in this iteration, by what they belong to."""
        return self.bars[-1]

    def adjoints_of(self, memory: Memory) -> ir.Value:
        """The array that the adjoint of a load is added to."""
        return self.input_adjoints if self.is_input(memory) else self.adjoints

    def adjoint_of(self, memory: Memory) -> ir.Value:
        """Where the adjoint of a load is added to in this iteration: a pointer."""
        assert isinstance(memory.adjoint, Address)
        place = self.place(memory.adjoint, memory.home)
        if memory in self.copies:
            return self.pointer(self.b.add(place, self.copies[memory]), self.adjoints)
        return self.pointer(place, self.adjoints_of(memory))

    def _accumulate(self, operand: Operand, contribution: ir.Value) -> None:
        raise NotImplementedError

    def _add(self, memory: Memory, contribution: ir.Value) -> None:
        raise NotImplementedError

    def _pull_back(self, site: Site) -> None:
        raise NotImplementedError

    def _tiled(self, loop: Loop, split: Split, passing: Passing) -> None:
        """A parallel loop: contributions into buffers, which vectorises, then into memory one operand after the other; sums in lanes.

        A sum hands its adjoint on to all its addends as it is, so its additions need no pass of their own.
        """
        b, plan = self.b, self.plan
        seeds = self._seeds(split, passing)
        left = {}
        if not split.carried:
            left = {
                site: b.load(passing.last[site], typ=self.number) for site in split.parallel if site in passing.last
            }
        handed = {site: self.buffer() for site in split.handed_over if site in plan.recomputed}
        taken = [
            site
            for site in split.parallel
            if site in plan.active and (site in split.handed_over or site in passing.last)
        ]
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
            for buffer in written.values():
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

    def _seeds(self, split: Split, passing: Passing) -> list[tuple[Operand, ir.Value]]:
        """What sums hand on to their addends in every iteration."""
        b = self.b
        seeds: list[tuple[Operand, ir.Value]] = []
        for carried, chain in split.chains:
            if carried.source not in passing.last:
                continue
            g = b.load(passing.last[carried.source], typ=self.number)
            link: Operand | Site = carried
            for site in chain:
                k = 1 if identity(site.operands[0]) is link else 0
                seeds.append((site.operands[k], b.fneg(g) if site.code == SUB else g))
                link = site
            if carried in passing.starts:
                b.store(g, passing.starts[carried])
        return seeds

    def _recompute_parallel(self, loop: Loop, split: Split) -> None:
        for carried in split.delayed:
            if carried in self.plan.kept:
                self.values[carried] = self.load(self.place(self.plan.kept[carried], loop))
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
        passing: Passing,
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
            last = b.icmp_signed("==", b.add(self.t[loop], number(1)), self.end[loop])
            for site, g in left.items():
                own = b.select(last, g, self.zero)
                self.bar[site] = b.fadd(own, self.bar[site]) if site in self.bar else own
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
        self._clear(self.slots.gep(buffer, [number(0)], source_etype=self.number), self.slots)
        return self.slots.gep(buffer, [number(LANES)], source_etype=self.number)

    def _add_tiles(self, loop: Loop, start: ir.Value, stop: ir.Value, buffers: dict[Memory, ir.Value]) -> None:
        """Add contributions to adjoints in memory: loads that walk side by side together, so that each place is added to once."""
        b = self.b
        grouped: set[Memory] = set()
        arrays: dict[Any, list[Memory]] = {}
        for memory in buffers:
            arrays.setdefault((self.is_input(memory), self.copies.get(memory)), []).append(memory)
        for group in [group for memories in arrays.values() for group in self.plan.shifts(loop, memories)]:
            grouped.update(memory for memory, _ in group)
            differs = ir.Constant(BOOL, 0)
            for memory, shift in group[1:]:
                distance = number(shift * self._stride(memory))
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
        assert isinstance(memory.adjoint, Address)
        return memory.adjoint.stride

    def _distance(self, a: Memory, b: Memory) -> ir.Value:
        """From where `a` begins in this entry to where `b` does."""
        return self.b.sub(self._origin(b), self._origin(a))

    def _origin(self, memory: Memory) -> ir.Value:
        assert isinstance(memory.adjoint, Address)
        return self.origin(memory.adjoint, memory.home)

    def _add_tile(self, loop: Loop, start: ir.Value, stop: ir.Value, memory: Memory, buffer: ir.Value) -> None:
        address = memory.adjoint
        assert isinstance(address, Address)
        apart = address.stride != 0 and (address.per_entry or address.table < 0)
        with (self.in_parallel if apart else self.counting)(start, stop) as t:
            self.t[loop] = t
            pointer = self.adjoint_of(memory)
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
        with self.in_parallel(b.add(start, number(low)), b.add(stop, number(high))) as t:
            self.t[loop] = t
            pointer = self.adjoint_of(leader)
            total = self.marked(b.load(pointer, typ=self.number))
            for memory, shift in reversed(group):
                at = self.buffered(buffers[memory], start, b.sub(t, number(shift)))
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
        following, summed = b.add(i, number(LANES)), b.fadd(total, part)
        for phi, old, new in ((i, number(0), following), (total, so_far, summed)):
            phi.add_incoming(old, before)
            phi.add_incoming(new, block)
        b.cbranch(b.icmp_signed("<", following, n), block, after)
        b.position_at_end(after)
        b.store(summed, slot)

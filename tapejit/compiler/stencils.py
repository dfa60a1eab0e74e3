"""Parallel loops backwards without buffers: every place adds up what the iterations around it contribute to it.

In ``v[i] = f(u[i - 1], u[i], u[i + 1])`` iterations i - 1, i and i + 1 contribute to the adjoint of u[i]. Where partials are cheap, the body is
evaluated three times, in the three iterations, and the sum is stored once: everything that is read was there before the loop, so
the loop vectorises as it is. What the body hands on to the iteration before (`Split.delayed`) is evaluated there once more. `Plan.stencils` says
where all this is possible. At the ends of an entry some of the iterations do not exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

import llvmlite.ir as ir

from tapejit.compiler.emitter import number
from tapejit.compiler.nest import Loop, Site
from tapejit.compiler.operands import Carried, Memory, Operand
from tapejit.compiler.places import Address
from tapejit.compiler.plan import Split
from tapejit.compiler.tiles import Passing, Tiles

__all__ = ["Stencils"]

Group: TypeAlias = list[tuple[Memory, int]]  # loads side by side: each with its distance from the first


@dataclass
class _Body:
    """What the evaluation of an iteration needs.

    Attributes
    ----------
    seeds : list of (Operand, ir.Value)
        What sums hand on, in every iteration.
    left : dict
        The adjoints with which the loop is entered, of sites in its last iteration.
    delayed : list of Carried
        What hands an adjoint on to the iteration before.
    """

    loop: Loop
    split: Split
    seeds: list[tuple[Operand, ir.Value]]
    left: dict[Site, ir.Value]
    delayed: list[Carried]


def _span(group: Group) -> tuple[int, int]:
    """The lowest and the highest distance in a group."""
    return min(shift for _, shift in group), max(shift for _, shift in group)


class Stencils(Tiles):
    """The part of the reverse kernel that works such loops off."""

    def _differs(self, loop: Loop) -> ir.Value | None:
        """Whether the loads of this entry are not at their usual distances; None if they always are."""
        b = self.b
        groups, always = self.plan.stencils[loop]
        differs: ir.Value | None = None
        for group in [] if always else groups:
            for memory, shift in group[1:]:
                distance = number(shift * self._stride(memory))
                own = b.icmp_signed("!=", self._distance(group[0][0], memory), distance)
                differs = own if differs is None else b.or_(differs, own)
        return differs

    def _gathered(self, loop: Loop, split: Split, passing: Passing) -> None:
        """One entry of the loop."""
        plan, b = self.plan, self.b
        first, end = self.bounds(loop)
        left = {site: b.load(passing.last[site], typ=self.number) for site in split.parallel if site in passing.last}
        delayed = [carried for carried in split.delayed if carried in passing.carried]
        body = _Body(loop, split, self._seeds(split, passing), left, delayed)
        # The last iteration takes what others do not; and what iterations hand back is that of the next one.
        ahead = bool(left) + bool(delayed)
        for groups in self._rounds(loop):
            spans = [(group, *_span(group)) for group in groups]
            low, high = min(low for _, low, _ in spans), max(high for _, _, high in spans)
            # From here to there all contributions exist, if they do anywhere.
            inner, outer = b.add(first, number(high)), b.add(end, number(low - ahead))
            if high - low + ahead == 0:
                self._sum_up(body, groups, inner, outer)
                continue
            with b.if_else(b.icmp_signed("<", inner, outer)) as (is_long, is_short):
                with is_long:
                    for group, own_low, _ in spans:
                        if own_low < high:
                            self._sum_up(body, [group], b.add(first, number(own_low)), inner, at_end=True)
                    self._sum_up(body, groups, inner, outer)
                    for group, _, own_high in spans:
                        if own_high > low - ahead:
                            self._sum_up(body, [group], outer, b.add(end, number(own_high)), at_end=True)
                with is_short:
                    for group, own_low, own_high in spans:
                        begin, stop = b.add(first, number(own_low)), b.add(end, number(own_high))
                        self._sum_up(body, [group], begin, stop, at_end=True)
        for carried in delayed:
            if carried in passing.starts:
                b.store(self._evaluated(body, first, at_end=True).get(carried, self.zero), passing.starts[carried])
        adjoints = [plan.adjoints[site] for site in split.parallel if site in plan.active and site in plan.adjoints]
        if adjoints:
            with self.in_parallel(first, end) as t:
                self.t[loop] = t
                for address in adjoints:
                    self.store(self.zero, self.place(address, loop), self.adjoints)

    def _rounds(self, loop: Loop) -> Iterator[list[Group]]:
        """Groups that are summed up together: one whose adjoints are in the caller's array, and one whose are in ours."""
        groups, _ = self.plan.stencils[loop]
        of_inputs = [group for group in groups if self.is_input(group[0][0])]
        others = [group for group in groups if not self.is_input(group[0][0])]
        for pair in zip_longest(of_inputs, others):
            yield [group for group in pair if group is not None]

    def _sum_up(self, body: _Body, groups: list[Group], first: ir.Value, end: ir.Value, at_end: bool = False) -> None:
        """Add to runs of adjoints what groups of loads contribute; `at_end`: some contributions do not exist."""
        b, loop = self.b, body.loop
        with (self.few if at_end else self.in_parallel)(first, end) as j:
            totals = []
            for group in groups:
                leader = group[0][0]
                assert isinstance(leader.adjoint, Address)
                self.t[loop] = j
                pointer = self.pointer(self.place(leader.adjoint, loop), self.adjoints_of(leader))
                total = self.marked(b.load(pointer, typ=self.number))
                for memory, shift in reversed(group):
                    t = b.sub(j, number(shift))
                    if at_end:
                        exists = b.and_(b.icmp_signed(">=", t, self.first[loop]), b.icmp_signed("<", t, self.end[loop]))
                        t = b.select(exists, t, self.first[loop])
                    part = self._evaluated(body, t, at_end).get(memory, self.zero)
                    total = b.fadd(total, b.select(exists, part, self.zero) if at_end else part)
                totals.append((total, pointer))
            for total, pointer in totals:  # after all loads, so that LLVM sees which are of the same
                self.marked(b.store(total, pointer))
        self.forget(loop)

    def _evaluated(self, body: _Body, t: ir.Value, at_end: bool) -> dict[Any, ir.Value]:
        """What iteration t contributes, by what takes it; `at_end`: it may be the last one."""
        b = self.b
        handed: dict[Site, ir.Value] = {}
        if body.delayed:
            is_last = b.icmp_signed("==", b.add(t, number(1)), self.end[body.loop])
            following = b.add(t, number(1))
            bars = self._pulled_back(body, b.select(is_last, t, following) if at_end else following, {}, at_end)
            for carried in body.delayed:
                own = bars.get(carried, self.zero)
                if at_end:
                    own = b.select(is_last, self.zero, own)
                source = carried.source
                handed[source] = b.fadd(handed[source], own) if source in handed else own
        return self._pulled_back(body, t, handed, at_end)

    def _pulled_back(self, body: _Body, t: ir.Value, handed: dict[Site, ir.Value], at_end: bool) -> dict[Any, ir.Value]:
        """The adjoints that one iteration hands on when some of its sites have taken `handed`."""
        loop = body.loop
        self.forget(loop)
        self.t[loop] = t
        self.bars.append(dict(handed))
        self._recompute_parallel(loop, body.split)
        self.clears = False
        self._tile_iteration(loop, body.split, body.seeds, body.left if at_end else {})
        self.clears = True
        return self.bars.pop()

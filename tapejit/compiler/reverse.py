"""The reverse kernel: through the loops backwards, each iteration recomputed in registers and its adjoints handed on.

Contributions of one iteration to the adjoint of one value are added up first, those of later iterations before those of earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir

from tapejit.compiler.emitter import LANES, number
from tapejit.compiler.functions import Functions
from tapejit.compiler.multiply import emit_adjoints
from tapejit.compiler.nest import Loop, Node, Product, Site
from tapejit.compiler.operands import Carried, Constant, Memory, Operand, Result, Scope
from tapejit.compiler.places import Address
from tapejit.compiler.plan import Plan, partials_of
from tapejit.compiler.prune import OUTPUT
from tapejit.compiler.sharing import Sharing
from tapejit.compiler.stencils import Stencils
from tapejit.compiler.tiles import Passing
from tapejit.expressions import names
from tapejit.ops import CHAIN, DIV, POSITIVE, SELECT

__all__ = ["Reverse"]

SMALLEST_TILE = 128  # iterations times sites below which an entry of a parallel loop goes backwards one by one


class Reverse(Stencils):
    name, arguments = "reverse", ("inputs", "memory", "input_adjoints", "adjoints", "tables")

    def __init__(self, plan: Plan, module: ir.Module, functions: Functions) -> None:
        super().__init__(plan, module, functions)
        self.copies = {}
        self.bars: list[dict[Any, ir.Value]] = [{}]
        self.outside = self._outside()

    def use(self, arguments: Sequence[ir.Value]) -> None:
        self.inputs, self.memory, self.input_adjoints, self.adjoints, self.tables = arguments

    def addresses(self, loop: Loop) -> list[Address]:
        plan = self.plan
        found = [memory.adjoint for memory in plan.found.memory if memory.home is loop and memory.adjoint is not None]
        own = [address for site, address in plan.adjoints.items() if site.loop is loop]
        return [*super().addresses(loop), *found, *own]

    def _outside(self) -> dict[Loop, list[Any]]:
        """For each loop what comes from outside and takes adjoints in it."""
        outside: dict[Loop, dict[Any, None]] = {loop: {} for loop in self.plan.root.loops()}

        def visit(operand: Operand, node: Node) -> None:
            key, home = key_of(operand), home_of(operand)
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
        # By their places, so that those of one vector are next to each other wherever they are written.
        return {loop: sorted(found, key=_base) for loop, found in outside.items()}

    def body(self, loop: Loop) -> None:
        self._recompute(loop)
        for node in reversed(loop.body):
            if isinstance(node, Product):
                emit_adjoints(self, node)
            elif isinstance(node, Loop):
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

    def _accumulate(self, operand: Operand, contribution: ir.Value) -> None:
        """Add to the adjoint of an operand."""
        key = key_of(operand)
        known = self.bar.get(key)
        self.bar[key] = contribution if known is None else self.b.fadd(known, contribution)

    def _add(self, memory: Memory, contribution: ir.Value) -> None:
        pointer = self.adjoint_of(memory)
        self.b.store(self.b.fadd(self.b.load(pointer, typ=self.number), contribution), pointer)

    def _pull_back(self, site: Site) -> None:
        """Hand the adjoint of a site on to its operands."""
        b, plan = self.b, self.plan
        assert site.loop is not None
        g = self.bar.pop(site, None)
        if site in plan.stored:
            # Now, not earlier: something later in this iteration may have added to it. And cleared for the next call.
            place = self.place(plan.adjoints[site], site.loop)
            stored = self.load(place, self.adjoints)
            if self.clears:
                self.store(self.zero, place, self.adjoints)
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
        passing = Passing(carried)
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
        if loop in self.shared:
            self._in_chunks(loop, self.shared[loop], passing)
        else:
            self._run(loop, passing)
        for key, slot in passing.sums.items():
            self.bar[key] = b.load(slot, typ=self.number)
        for operand, slot in passing.starts.items():
            self._accumulate(operand.start, b.load(slot, typ=self.number))

    def _run(self, loop: Loop, passing: Passing) -> None:
        """The iterations of a loop, or of the chunk of it that `chunk` has."""
        b = self.b
        split = self.parallel.get(loop)
        shortest = max(LANES, SMALLEST_TILE // len(loop.body))
        is_stencil = split is not None and loop in self.plan.stencils
        if split is None or (loop.trips.max() < shortest and not is_stencil):
            self._one_by_one(loop, passing)
        else:
            together = self._gathered if is_stencil else self._tiled
            first, end = self.bounds(loop)
            if is_stencil:
                apart = self._differs(loop)
            else:
                is_short = b.icmp_signed("<", b.sub(end, first), number(shortest))
                apart = None if loop.trips.min() >= shortest else is_short
            if apart is None:
                together(loop, split, passing)
            else:
                known = dict(self.values)
                with b.if_else(apart) as (one_by_one, at_once):
                    with one_by_one:
                        self._one_by_one(loop, passing)
                    self.values = dict(known)
                    with at_once:
                        together(loop, split, passing)
                    self.values = known

    def _in_chunks(self, loop: Loop, sharing: Sharing, passing: Passing) -> None:
        """A shared loop: each chunk with sums of its own, and copies of the adjoints that others add to as well."""
        b, plan = self.b, self.plan
        g = {site: b.load(slot, typ=self.number) for site, slot in passing.last.items()}
        for operand, slot in passing.starts.items():
            b.store(g.get(operand.source, self.zero), slot)  # a sum hands its adjoint on as it is
        n = sharing.n_chunks
        turns = [(0, n)] if not sharing.in_turns else [(0, (n + 1) // 2), ((n + 1) // 2, n // 2)]
        context = self.context(loop, list(g.values()))
        with self.outlined("chunk", loop, context) as chunk:
            self.bars.append({})
            own = self._chunk(loop, sharing, chunk.k, passing, dict(zip(g, chunk.numbers, strict=True)))
            at = part_at(self.b, plan.sums_at[loop], chunk.k, len(own.sums))
            for j, slot in enumerate(own.sums.values()):
                self.store(self.b.load(slot, typ=self.number), self.b.add(at, number(j)), self.adjoints)
            self.bars.pop()
        for first, count in turns:
            self.run_chunks(context, chunk, None, first, count)
        if passing.sums:
            with self.counting(number(0), number(n)) as k:
                at = part_at(b, plan.sums_at[loop], k, len(passing.sums))
                for j, slot in enumerate(passing.sums.values()):
                    self._add_to(slot, self.load(b.add(at, number(j)), self.adjoints))
        for (memories, low, high), at in zip(sharing.copied, plan.copies_at[loop], strict=True):
            self._add_copies(memories, low, high, at, n)

    def _chunk(self, loop: Loop, sharing: Sharing, k: ir.Value, passing: Passing, g: dict[Site, ir.Value]) -> Passing:
        """One chunk of a shared loop, where `g` are the adjoints of the sums; gives its own sums."""
        b, plan = self.b, self.plan
        own = Passing(passing.carried)
        for site, adjoint in g.items():
            own.last[site] = self.slot()
            b.store(adjoint, own.last[site])
        for key in passing.sums:
            own.sums[key] = self.slot()
            b.store(self.zero, own.sums[key])
        for (memories, low, high), at in zip(sharing.copied, plan.copies_at[loop], strict=True):
            size = high + 1 - low
            start = part_at(b, at, k, size)
            with self.in_parallel(number(0), number(size)) as i:
                self.store(self.zero, b.add(start, i), self.adjoints)
            self.copies.update(dict.fromkeys(memories, b.sub(start, number(low))))
        if sharing.in_turns:
            middle = number((sharing.n_chunks + 1) // 2)
            is_late = b.icmp_signed(">=", k, middle)
            late = b.add(b.shl(b.sub(k, middle), number(1)), number(1))
            k = b.select(is_late, late, b.shl(k, number(1)))
        backwards = b.sub(number(sharing.n_chunks - 1), k)
        self.chunk[loop] = self.chunk_bounds(loop, backwards)
        self._run(loop, own)
        del self.chunk[loop]
        self.copies.clear()
        return own

    def _add_to(self, slot: ir.Value, contribution: ir.Value) -> None:
        self.b.store(self.b.fadd(self.b.load(slot, typ=self.number), contribution), slot)

    def _add_copies(self, memories: list[Memory], low: int, high: int, at: int, n_chunks: int) -> None:
        """Add the copies of all chunks, in their order, to the adjoints."""
        b = self.b
        array = self.adjoints_of(memories[0])
        with self.counting(number(0), number(n_chunks)) as k:
            start = part_at(b, at, k, high + 1 - low)
            with self.in_parallel(number(0), number(high + 1 - low)) as i:
                part = self.load(b.add(start, i), self.adjoints)
                place = b.add(i, number(low))
                self.store(b.fadd(self.load(place, array), part), place, array)

    def _one_by_one(self, loop: Loop, passing: Passing) -> None:
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


def _base(key: Any) -> int:
    return key.adjoint.base if isinstance(key, Memory) and isinstance(key.adjoint, Address) else -1


def part_at(b: ir.IRBuilder, first: int, k: ir.Value, size: int) -> ir.Value:
    """Where the k-th of several equal parts begins."""
    return b.add(number(first), b.mul(k, number(size)))


def key_of(operand: Operand) -> Any:
    """What the adjoint of an operand is kept under: the site itself, also for a result; None if it takes none in a register."""
    match operand:
        case Scope(site=site) | Result(site=site):
            return site
        case Constant():
            return None
    return operand


def home_of(operand: Operand) -> Loop | None:
    """The loop in which an operand has one value an iteration."""
    match operand:
        case Scope(site=site):
            return site.loop
        case Result(home=home) | Carried(home=home) | Memory(home=home):
            return home
    return None

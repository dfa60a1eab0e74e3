"""Loops whose iterations threads may share: nothing is carried from one to the next but sums.

Such a loop runs in chunks: parts of equal work, whose number depends on the loop alone, so that results do not depend on how many threads there are.

Forward, a chunk computes everything but the sums. What is to be added goes to memory (`Plan.addends`), and is added in recorded order: that of a
chunk as soon as those before have been. So values are those of one thread, to the last bit.

Backwards, the adjoint of a sum is that of all its addends. What comes from before the loop takes adjoints from many chunks: a single number is
added up in each chunk, then over the chunks in their order. Of the adjoints in memory, a chunk has a copy of its own, which is added to the others
when all are done; where the places of a chunk meet those of its two neighbours at most, as in ``x[i + 1] - x[i]``, every other chunk runs
first, then those between, and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tapejit import layout
from tapejit.compiler.nest import Loop, Product, Site
from tapejit.compiler.operands import Carried, Constant, Memory, Operand, Result, Scope
from tapejit.compiler.prune import EXPECTS_FALSE, EXPECTS_TRUE, SUM_STEP
from tapejit.ops import ADD, SUB

if TYPE_CHECKING:
    from tapejit.compiler.plan import Plan

__all__ = ["Sharing", "identity", "is_whole_sum", "shared"]

SMALLEST_SHARED = 50_000  # instructions of a loop that is worth the handing over
MOST_CHUNKS, FEWEST_CHUNKS = 16, 4  # 63 would be the most: each has a bit of a word in `team`, and one is left
COPIED = 0.25  # entries of all copies of adjoints, per instruction of the loop


@dataclass
class Sharing:
    """How a loop is shared.

    Attributes
    ----------
    edges : (n_chunks + 1,) int64 ndarray
        Where the chunks begin and end.
    totals : list of Carried
        The sums.
    parts : set
        Everything between: sites that add, and what is carried and handed out by loops inside.
    addends : list of Site and Result
        What is added and is not in memory already.
    outside : list of Memory
        The loads inside of what was stored before the loop.
    copied : list of (list of Memory, int, int)
        Loads whose adjoints each chunk adds to a copy of its own: of places from here to there.
    in_turns : bool
        Whether every other chunk must be done before those between begin.
    """

    edges: np.ndarray
    totals: list[Carried]
    parts: set[object]
    addends: list[Site | Result]
    outside: list[Memory]
    copied: list[tuple[list[Memory], int, int]] = field(default_factory=list)
    in_turns: bool = False

    @property
    def n_chunks(self) -> int:
        return self.edges.size - 1

    def is_copied(self, memory: Memory) -> bool:
        """Whether the adjoint of a load goes to a copy."""
        return any(memory in memories for memories, _, _ in self.copied)


def identity(operand: Operand) -> Operand | Site:
    """What an operand is known by: a site of the same iteration by itself."""
    return operand.site if isinstance(operand, Scope) else operand


def is_whole_sum(carried: Carried, chain: list[Site]) -> bool:
    """Whether a chain is the sum of a block, from its beginning."""
    first = chain[0]
    return (
        len(chain) == 1
        and first.guard == SUM_STEP
        and first.operands[0] is carried
        and isinstance(first.operands[1], Scope)
        and carried.start == Constant(0.0)
    )


def shared(plan: Plan, loop: Loop) -> Sharing | None:
    """How a loop is shared, None if it is not. What depends on places in memory is left open (see `find_copies`)."""
    if loop.loop is not plan.root or loop.n_iterations < FEWEST_CHUNKS:
        return None
    if any(isinstance(inside, Product) for inside in loop.loops()):
        return None  # products work in memory of their own
    if sum(site.instructions.size for site in loop.sites()) < SMALLEST_SHARED:
        return None
    outside = _outside(plan, loop)
    sums = _sums(plan, loop) if outside is not None else None
    if outside is None or sums is None:
        return None
    return Sharing(_edges(plan, loop, MOST_CHUNKS), *sums, outside)


def _edges(plan: Plan, loop: Loop, n_chunks: int) -> np.ndarray:
    """Chunks of equal work, of whole tiles if their sums are added up."""
    start = plan.found.start(loop)
    wanted = np.linspace(start[0], start[-1], n_chunks + 1)[1:-1]
    inner = np.searchsorted(start, wanted)
    if plan.whole_sums(loop):
        inner = inner // layout.TILE * layout.TILE
    return np.unique(np.concatenate([[0], inner, [loop.n_iterations]]))


def _outside(plan: Plan, loop: Loop) -> list[Memory] | None:
    """The loads inside of what was there before, None if an iteration reads what another one wrote."""
    found = plan.found
    outside = []
    for memory in found.memory:
        home = memory.home
        if home is not loop and not loop.contains(home):
            continue
        numbers = np.where(memory.column >= 0, found.site_of[np.maximum(memory.column, 0)], -1)
        inside = [n for n in np.unique(numbers) if n >= 0 and loop.contains(found.sites[n])]
        n_inside = 0
        for n in inside:
            reads = np.flatnonzero(numbers == n)
            n_inside += reads.size
            producer = found.sites[n].loop
            assert producer is not None
            written = found.up(producer, loop)[found.iteration_of[memory.column[reads]]]
            if (written != found.up(home, loop)[reads]).any():
                return None
        if n_inside == 0:
            outside.append(memory)
        elif n_inside < numbers.size and plan.is_active(memory):
            return None  # its adjoints would have to go to two places
    return outside


def _sums(plan: Plan, loop: Loop) -> tuple[list[Carried], set[object], list[Site | Result]] | None:
    """The sums that a loop carries, their parts and addends; None if it carries anything else."""
    found = plan.found
    carried = [c for c in found.carried if c.home is loop or loop.contains(c.home)]
    results = [r for r in found.results if loop.contains(r.site)]
    sites = list(loop.sites())
    totals = [c for c in carried if c.home is loop]
    parts: set[object] = set(totals)
    n = -1
    while n < len(parts):
        n = len(parts)
        parts.update(site for site in sites if any(identity(o) in parts for o in site.operands))
        parts.update(r for r in results if r.home is not loop.loop and r.site in parts)
        parts.update(c for c in carried if identity(c.start) in parts or c.source in parts)
    carried_parts = [c for c in carried if c in parts]
    for c in carried_parts:
        if c.source not in parts or not (c in totals or identity(c.start) in parts):
            return None
    if any(r.home is loop.loop and r.site not in {c.source for c in totals} for r in results):
        return None
    if not parts.isdisjoint(plan.needed) or not parts.isdisjoint(plan.stores | plan.recomputed):
        return None
    addends: list[Site | Result] = []
    for site in sites:
        if site not in parts:
            continue
        in_sum = [identity(o) in parts for o in site.operands]
        if site.code not in (ADD, SUB) or sum(in_sum) != 1 or site.guard in (EXPECTS_FALSE, EXPECTS_TRUE):
            return None
        if site.code == SUB and not in_sum[0]:
            return None
        other = identity(site.operands[in_sum.index(False)])
        if isinstance(other, Carried) and (other.home is loop or loop.contains(other.home)):
            return None
        is_inside = loop.contains(other) if isinstance(other, Site) else isinstance(other, Result) and other in results
        if is_inside and other not in addends:
            assert isinstance(other, Site | Result)
            addends.append(other)
    if not all(_is_own(carried, parts) for carried in carried_parts):
        return None
    return totals, parts, addends


def _is_own(carried: Carried, parts: set[object]) -> bool:
    """Whether a sum goes on as itself: ``a, b = b + x, a - y`` carries two sums that change places, and so do their adjoints."""
    at: object = carried.source
    while at is not carried:
        if isinstance(at, Site):
            at = next(o for o in map(identity, at.operands) if o in parts)
        elif isinstance(at, Result):
            at = at.site
        elif isinstance(at, Carried) and carried.home.contains(at.home):
            at = identity(at.start)
        else:
            return False
    return True


def find_copies(plan: Plan, loop: Loop, sharing: Sharing, addresses: dict[Memory, np.ndarray]) -> bool:
    """Complete `sharing` by what its chunks may add to directly and what they need copies for; False if copies would be too large."""
    n_instructions = sum(site.instructions.size for site in loop.sites())
    active = [memory for memory in sharing.outside if plan.is_active(memory)]
    arrays = [[m for m in active if plan.is_input(m) is of_inputs] for of_inputs in (True, False)]
    n_chunks = sharing.n_chunks
    while n_chunks >= FEWEST_CHUNKS:
        sharing.edges = _edges(plan, loop, n_chunks)
        sharing.copied, sharing.in_turns = [], False
        n_copied = 0
        for memories in arrays:
            reach = {memory: _reach(plan, loop, sharing.edges, memory, addresses[memory]) for memory in memories}
            direct = [memory for memory in memories if _meets_neighbours(*reach[memory])]
            lows = np.array([reach[memory][0] for memory in direct])
            highs = np.array([reach[memory][1] for memory in direct])
            if direct and not _meets_neighbours(lows.min(axis=0), highs.max(axis=0)):
                direct = []
            copied = [memory for memory in memories if memory not in direct]
            if copied:
                low = int(min(reach[memory][0].min() for memory in copied))
                high = int(max(reach[memory][1].max() for memory in copied))
                for memory in list(direct):  # copied as well where that costs little: it saves the turns
                    wider = min(low, int(reach[memory][0].min())), max(high, int(reach[memory][1].max()))
                    if 2 * (wider[1] + 1 - wider[0]) <= 3 * (high + 1 - low):
                        (low, high) = wider
                        direct.remove(memory)
                        copied.append(memory)
                sharing.copied.append((copied, low, high))
                n_copied += (high + 1 - low) * sharing.n_chunks
            sharing.in_turns |= bool(direct)
        if sharing.n_chunks >= FEWEST_CHUNKS and n_copied <= COPIED * n_instructions:
            return True
        n_chunks //= 2
    return False


def _reach(
    plan: Plan, loop: Loop, edges: np.ndarray, memory: Memory, address: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest place that each chunk reads from."""
    up = plan.found.up(memory.home, loop)
    starts = np.searchsorted(up, edges[:-1])
    return np.minimum.reduceat(address, starts), np.maximum.reduceat(address, starts)


def _meets_neighbours(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether no chunk meets another than the one before it and the one after."""
    order = np.argsort(low, kind="stable")
    if not (np.array_equal(order, np.arange(low.size)) or np.array_equal(order, np.arange(low.size)[::-1])):
        return False
    low, high = low[order], np.maximum.accumulate(high[order])
    return bool((low[2:] > high[:-2]).all())

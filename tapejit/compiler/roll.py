"""The second stage: find the loops in a program again, from its opcodes alone.

Rolling works level by level, from the inside out. On each level the program is a sequence of symbols; a run of at least a few equal periods
becomes one item, a loop, whose symbol names its body but not how often it ran, so that inner loops of varying length look alike to the level
above. This is the idea of nested loop recognition [1]_ with tandem repeats in place of affine functions: what the operands do is
found out afterwards (`operands`), and may be anything, so a repeat that is a coincidence costs speed, never the right answer.

The result is a tree of `Loop` and `Site`. Every site knows all its instructions, one for each time that it ran.

References
----------
.. [1] A. Ketterlin and Ph. Clauss, Prediction and trace compression of data access addresses through nested loop recognition, CGO 2008.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tapejit.compiler.nest import Loop, Product, Site
from tapejit.compiler.prune import Matmul, Program
from tapejit.errors import TapejitError
from tapejit.sweeps.kernel import kernel

__all__ = ["TooLargeError", "roll"]

WINDOW = 12  # instructions that must agree before a period is tried; on the levels above, fewer
WINDOW_ABOVE = 2
TRIES = 256  # earlier occurrences of a window that are tried as periods
SMALLEST = 24  # instructions in all below which a repeat stays written out
# The longest period that is tried, one after the other: so short inner loops are found before long ones around them. For the long ones, a
# window of four times the width must agree.
PERIODS = ((16, 64), (256, 2048, 16384))
PERIODS_ABOVE = ((2, 4, 8, 16), (32, 64, 256, 2048))
TOGETHER = 64  # bounds up to here are tried in one scan
CREDIT = 75  # comparisons an item, on average, after which the search is given up
LARGEST_SHIFT = 512  # items by which a run may begin later than it could
SHORTEST_SHIFTED = 32  # iterations of a run that may lose one by it
LARGEST_SHIFTED = 4096  # instructions in an iteration of such a run
UNROLL = 256  # instructions up to which a loop of constant length is written out inside another
UNROLL_TRIPS = 16
_FIRST_KIND = 1 << 10  # symbols of matrix products; codes with their guards are below


class TooLargeError(TapejitError):
    """A program has more distinct code than may be compiled."""


@kernel
def _next_occurrences(symbols, window, following, heads, hashes):
    """``following[i]`` = the next position with the same `window` symbols as at i, or -1."""
    n = symbols.size
    mask = np.uint64(heads.size - 1)
    factor = np.uint64(0x9E3779B97F4A7C15)
    highest = np.uint64(1)
    for _ in range(window - 1):
        highest *= factor
    running = np.uint64(0)
    for i in range(n - 1, -1, -1):
        following[i] = -1
        # The hash of symbols i .. i + window: shifted by one symbol from that at i + 1.
        if i + window < n:
            running -= np.uint64(symbols[i + window]) * highest
        running = running * factor + np.uint64(symbols[i])
        hashes[i] = running
        if i + window <= n:
            slot = (running ^ (running >> np.uint64(29))) & mask
            j = heads[slot]
            if j >= 0 and hashes[j] == running:
                following[i] = j
            heads[slot] = i


@kernel
def _unlike(operands, usual, other, size):
    """How many operands of an iteration are its own results where those of another are not, or others."""
    n = 0
    for m in range(size):
        for k in range(3):
            v, w = operands[k, usual + m], operands[k, other + m]
            if (v >= usual or w >= other) and v - usual != w - other:
                n += 1
    return n


@kernel
def _best_shift(begins, operands, i, d, n_trips, rest, most_shift, stamps):
    """By how many items a run that begins at item i should begin later, `most_shift` at most.

    So that fewest values are carried on, and the first and last iteration are like the others: there, the run may have caught code from outside.
    """
    best, fewest = 0, np.int64(1 << 40)
    stamps[:] = -1
    for shift in range(min(most_shift, LARGEST_SHIFT) + 1):
        before, first, end = begins[i + shift], begins[i + d + shift], begins[i + 2 * d + shift]
        crossing = 0
        for m in range(first, end):
            for k in range(3):
                v = operands[k, m]
                if before <= v < first and stamps[(v - before) % stamps.size] != shift:
                    stamps[(v - before) % stamps.size] = shift
                    crossing += 1
        last = begins[i + (n_trips - (2 if shift > rest else 1)) * d + shift]
        if end - first == first - before:
            crossing += _unlike(operands, first, before, end - first)
        if last + end - first <= operands.shape[1]:
            crossing += _unlike(operands, first, last, end - first)
        if crossing < fewest:
            best, fewest = shift, crossing
    return best


@kernel
def _find_runs(
    symbols, begins, operands, following, beyond, bounds, few, large, new, known, period, trips, budget, only_bound
):
    """Greedy from the left: ``period[i] > 0`` where a run of ``trips[i]`` periods begins; else one item stays alone. Gives the number of items.

    Periods up to `known` were tried on the level below. A run of such a period that was not found there has a new item, and every new item
    one period later as well; so it begins less than `known` items before one of `new`.

    With `only_bound`, where in `bounds` the least is up to which periods must be tried for any run to be found; their number if none is found.
    """
    n = symbols.size
    i = 0
    n_items = 0
    credit = budget[0]
    stamps = np.empty(LARGEST_SHIFTED, np.int32)
    least = bounds.size
    longest = bounds[least - 1]
    # One past where the repeats at a distance end that were last found to be too few: none that begin before will do.
    ends = np.zeros(longest + 1, np.int64)
    next_new = 0
    while i < n:
        while next_new < new.size and new[next_new] < i:
            next_new += 1
        tried_before = beyond
        if next_new == new.size or new[next_new] >= i + known:
            tried_before = max(beyond, known)
        period[i] = 0
        found = 0
        n_trips = 1
        j = following[i] if tried_before < longest else -1
        tried = 0
        k = 0
        while j >= 0 and tried < TRIES and credit > 0:
            d = j - i
            if j + d > n or d > longest:
                break
            credit -= 2  # may wait for memory
            if d > tried_before and i >= ends[d]:
                k = 0
                while j + k < n and symbols[i + k] == symbols[j + k]:
                    k += 1
                credit -= k + 2
                n_trips = 1 + k // d
                size = n_trips * (begins[j] - begins[i])
                if k >= d and size >= SMALLEST and (n_trips >= few or size > large):
                    found = d
                    break
                ends[d] = i + k + 1
            j = following[j]
            tried += 1
        if only_bound:
            if found > 0:
                while least > 0 and found <= bounds[least - 1]:
                    least -= 1
                if least == 0:
                    break
                longest = bounds[least - 1]
            i += 1
            continue
        if found > 0:
            rest = k - (n_trips - 1) * found
            size = begins[j] - begins[i]
            # Beyond what is left over, it costs an iteration.
            most_shift = found - 1 if n_trips >= max(SHORTEST_SHIFTED, 3) else rest
            if most_shift > 0 and credit > 0 and size < LARGEST_SHIFTED:
                shift = _best_shift(begins, operands, i, found, n_trips, rest, most_shift, stamps)
                if shift > rest:
                    n_trips -= 1
                for _ in range(shift):
                    period[i] = 0
                    n_items += 1
                    i += 1
                credit -= size * min(most_shift, LARGEST_SHIFT) // 4
        n_items += 1
        if found > 0:
            period[i], trips[i] = found, n_trips
            i += found * n_trips
        else:
            i += 1
    budget[0] = credit
    return least if only_bound else n_items


@kernel
def _collapse(symbols, lengths, period, trips, start, item_period, item_trips, key, new_lengths):
    """Write the items of the next level; ``key`` is the symbol, or for a loop a hash of its body with the sign bit set."""
    n = symbols.size
    i = 0
    k = 0
    while i < n:
        d = period[i]
        start[k], item_period[k] = i, d
        if d == 0:
            key[k], new_lengths[k], item_trips[k] = symbols[i], lengths[i], 1
            i += 1
        else:
            item_trips[k] = trips[i]
            hashed = np.uint64(d)
            size = 0
            for m in range(i, i + d):
                hashed = (hashed ^ np.uint64(symbols[m])) * np.uint64(0x100000001B3)
                hashed ^= hashed >> np.uint64(31)
            for m in range(i, i + d * trips[i]):
                size += lengths[m]
            key[k] = -np.int64(hashed >> np.uint64(2)) - 1
            new_lengths[k] = size
            i += d * trips[i]
        k += 1


@kernel
def _bodies_agree(symbols, start, period, loops, models):
    """Whether the body of each loop is that of its model: hashes may collide."""
    for which in range(loops.size):
        k, r = loops[which], models[which]
        d = period[k]
        if period[r] != d:
            return False
        for m in range(d):
            if symbols[start[k] + m] != symbols[start[r] + m]:
                return False
    return True


def _followed(symbols: np.ndarray, window: int, hashes: np.ndarray) -> np.ndarray:
    """See `_next_occurrences`; `hashes` (n,) uint64 is worked in."""
    n = symbols.size
    following = np.empty(n, np.int32)
    heads = np.full(1 << min(20, max(8, int(n).bit_length())), -1, np.int32)
    _next_occurrences(symbols, window, following, heads, hashes)
    return following


def _groups(bounds: tuple[int, ...]) -> list[list[int]]:
    """Which bounds of periods are tried in one scan: the small ones. A scan with a large one might use up the credit before they are tried."""
    together = [bound for bound in bounds if bound <= TOGETHER]
    return ([together] if together else []) + [[bound] for bound in bounds if bound > TOGETHER]


@dataclass
class _Level:
    """One level: items, each one item of the level below (period 0) or a run of `trips` periods of `period` items from `start` on."""

    symbols: np.ndarray
    lengths: np.ndarray  # instructions in all
    start: np.ndarray
    period: np.ndarray
    trips: np.ndarray
    new: np.ndarray  # the items that are runs
    known: int  # the longest period up to which all were tried: a longer one is that of the runs


def _next_level(symbols: np.ndarray, lengths: np.ndarray, operands: np.ndarray, below: _Level | None) -> _Level | None:
    """The level above a sequence of symbols, None if nothing repeats."""
    n = symbols.size
    window, (short, long) = (WINDOW, PERIODS) if below is None else (WINDOW_ABOVE, PERIODS_ABOVE)
    new, known = (np.zeros(0, np.int64), 0) if below is None else (below.new, below.known)
    following: dict[int, np.ndarray] = {}
    period, trips = np.zeros(n, np.int32), np.empty(n, np.int32)
    hashes = np.empty(n, np.uint64)
    begins = np.zeros(n + 1, np.int32)
    np.cumsum(lengths, out=begins[1:])
    budget = np.array([CREDIT * n + (1 << 16)])

    def find(few: int, large: int, known: int) -> tuple[int, int]:
        """Look for runs of some length, the shortest periods first; gives the number of items then, and the longest period before."""
        beyond = 0  # periods up to here have been tried
        for width, bounds in [(window, group) for group in _groups(short)] + [
            (4 * window, group) for group in _groups(long)
        ]:
            if width not in following:
                following[width] = _followed(symbols, width, hashes)
            search = symbols, begins, operands, following[width]
            wanted = few, large, new, known, period, trips, budget
            which = _find_runs(*search, beyond, np.array(bounds), *wanted, True) if len(bounds) > 1 else 0
            if which < len(bounds):
                shorter = bounds[which - 1] if which > 0 else beyond
                n_items = _find_runs(*search, shorter, np.array(bounds[which : which + 1]), *wanted, False)
                if n_items < n:
                    return n_items, shorter
            beyond = bounds[-1]
        return n, beyond

    # First what will stay a loop: a few repeats of little code would be written out again, and might begin where no iteration does.
    n_items, known = find(UNROLL_TRIPS, UNROLL, known)
    if n_items == n:
        n_items, _ = find(3, 2 * SMALLEST, 0)
    if n_items == n:
        return None
    if below is None or budget[0] <= 0:
        known = 0  # other windows are looked for above, or not all was tried
    start, item_period, item_trips = (np.empty(n_items, np.int32) for _ in range(3))
    key, new_lengths = np.empty(n_items, np.int64), np.empty(n_items, np.int32)
    _collapse(symbols, lengths, period, trips, start, item_period, item_trips, key, new_lengths)
    loops = np.flatnonzero(item_period)
    _, first_of, representative = np.unique(key[loops], return_index=True, return_inverse=True)
    if not _bodies_agree(symbols, start, item_period, loops, loops[first_of][representative]):
        return None
    new_symbols = key.astype(np.int32)
    new_symbols[loops] = int(symbols.max()) + 1 + representative
    return _Level(new_symbols, new_lengths, start, item_period, item_trips, loops, known)


def roll(program: Program, max_sites: int = 20_000) -> Loop:
    """The loop nest of a program.

    Parameters
    ----------
    program : Program
    max_sites : int
        The most distinct instructions that the tree may have.

    Returns
    -------
    Loop
        The root, which runs once.

    Raises
    ------
    TooLargeError
        If there are more; costs no more than the search itself.
    """
    symbols = program.code.astype(np.int32) + (program.guard.astype(np.int32) << 8)
    lengths = np.ones(symbols.size, np.int32)
    levels: list[_Level] = []
    level = None
    if program.matmuls:
        levels.append(_product_level(symbols, program.matmuls))
        symbols, lengths = levels[0].symbols, levels[0].lengths
    while len(levels) < 16 and (level := _next_level(symbols, lengths, program.operands, level)) is not None:
        levels.append(level)
        symbols, lengths = level.symbols, level.lengths
    n_top = symbols.size
    if n_top > max_sites:
        raise TooLargeError(
            f"{n_top} instructions do not repeat, of {program.size} in all; at most {max_sites} are compiled"
        )
    builder = _Builder(program, levels, max_sites)
    root = Loop(np.ones(1, np.int64))
    for item in range(n_top):
        builder.add(root, len(levels), np.array([item], np.int64))
    return root


def _product_level(symbols: np.ndarray, matmuls: tuple[Matmul, ...]) -> _Level:
    """The lowest level of a program with matrix products: each is one item, a run of its results."""
    firsts = np.array([matmul.first for matmul in matmuls])
    sizes = np.array([matmul.shape[0] * matmul.shape[2] for matmul in matmuls])
    kinds: dict[tuple, int] = {}
    names = [kinds.setdefault(matmul.kind, len(kinds)) for matmul in matmuls]
    lengths = np.ones(symbols.size, np.int32)
    lengths[firsts] = sizes
    is_inside = np.zeros(symbols.size + 1, np.int32)
    np.add.at(is_inside, firsts + 1, 1)
    np.add.at(is_inside, firsts + sizes, -1)
    start = np.flatnonzero(np.cumsum(is_inside[:-1]) == 0).astype(np.int32)
    period = np.zeros(symbols.size, np.int32)
    period[firsts] = 1
    symbols = symbols.copy()
    symbols[firsts] = _FIRST_KIND + np.array(names, np.int32)
    return _Level(symbols[start], lengths[start], start, period[start], lengths[start], np.zeros(0, np.int64), 0)


class _Builder:
    """Makes the tree from the levels, from the top down: every node is made once, with all the items that it stands for."""

    def __init__(self, program: Program, levels: list[_Level], max_sites: int) -> None:
        self.program, self.levels, self.room = program, levels, max_sites
        self.product_at = {matmul.first: matmul for matmul in program.matmuls}
        self._begins: dict[int, np.ndarray] = {}

    def begins(self, level: int) -> np.ndarray:
        """The first instruction of each item of a level."""
        if level not in self._begins:
            lengths = self.levels[level - 1].lengths
            self._begins[level] = np.cumsum(lengths, dtype=np.int32) - lengths
        return self._begins[level]

    def add(self, parent: Loop, level: int, items: np.ndarray) -> None:
        """Add what these items of a level stand for, which is one instruction or loop seen once an iteration of `parent`."""
        lowest, item = level, int(items[0])
        while lowest > 0 and self.levels[lowest - 1].period[item] == 0:
            item = int(self.levels[lowest - 1].start[item])
            lowest -= 1
        if lowest == 0:
            self.room -= 1
            if self.room < 0:
                raise TooLargeError("the loops that were found have more distinct instructions than are compiled")
            instructions = items if level == 0 else self.begins(level)[items].astype(np.int64)
            parent.append(Site(int(self.program.code[item]), int(self.program.guard[item]), instructions))
            return
        for at in range(level, lowest, -1):
            items = self.levels[at - 1].start[items].astype(np.int64)
        level = lowest
        below = self.levels[level - 1]
        if level == 1 and self.product_at:
            self.room -= 1
            parent.append(Product([self.product_at[first] for first in below.start[items].tolist()]))
            return
        period, trips = int(below.period[items[0]]), below.trips[items].astype(np.int64)
        starts = below.start[items].astype(np.int64)
        constant = bool((trips == trips[0]).all())
        if constant and parent.n_iterations > 1 and trips[0] < UNROLL_TRIPS and below.lengths[items[0]] <= UNROLL:
            for j in range(int(trips[0])):
                for k in range(period):
                    self.add(parent, level - 1, starts + (j * period + k))
            return
        loop = Loop(trips)
        parent.append(loop)
        at = np.repeat(starts, trips) + period * loop.within()
        for k in range(period):
            self.add(loop, level - 1, at + k)

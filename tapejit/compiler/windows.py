"""Windows: places in memory that several values have one after the other.

Most values and adjoints are needed for a while only: in time stepping, a state that the partials do not ask for until the next state is computed, and
an adjoint, which is cleared as soon as it has been handed on, always. `Run` says when each part of a nest runs. A *stream* is what one
site stores in all iterations of its loop, or a few sites side by side. `fold` cuts streams into blocks, finds when each block is read for the last
time, and gives a block the place of another one that nothing reads any more. It works on addresses in a layout where every value has a place of
its own, and looks at every address that is ever read: nothing is assumed of distances or of the shape of the nest.

Blocks consist of whole entries of a loop. They are cut only where no load walks across in one entry, so that what was affine stays so.
"""

from __future__ import annotations

import heapq
from collections.abc import Container
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tapejit.compiler.nest import Loop, Site
from tapejit.compiler.operands import Operands
from tapejit.sweeps.kernel import kernel

__all__ = ["Load", "Run", "Stream", "affine", "fold", "moved"]

SMALLEST_WINDOWED = 2048  # places of a stream from which a window pays: what is smaller stays in the cache
SHORTEST_ENTRY = 6  # places of an entry, on average, which are worth a number in a table

FOREVER = 1 << 62
# Doubles in half a page. Blocks begin so far apart, modulo a page: near multiples of 4 KiB a load from one would wait for stores to the other, which
# takes up to 15 % of the time of the heat equation.
HALF_PAGE = 256
LARGE = 128  # places of a block for which that matters


@kernel
def affine(address, first):
    """Whether addresses walk at one stride: over all iterations, within entries; gives (over all, within, stride)."""
    n = address.size
    everywhere, within = True, True
    stride = np.int64(0)
    known = False
    e = 1
    for t in range(1, n):
        d = address[t] - address[t - 1]
        starts = e < first.size and first[e] == t
        if starts:
            e += 1
        if not known and not starts:
            stride, known = d, True
            for s in range(1, t):  # the entries of one iteration before
                if address[s] - address[s - 1] != stride:
                    everywhere = False
        elif known and d != stride:
            everywhere = False
            if not starts:
                within = False
                break
    if not known:
        everywhere = n < 2
        if n >= 2:
            stride = address[1] - address[0]
            everywhere = True
            for t in range(2, n):
                if address[t] - address[t - 1] != stride:
                    everywhere = False
            if not everywhere:
                stride = np.int64(0)
    return everywhere, within, stride


class Run:
    """When the parts of a nest run: the time is how many sites ran before.

    Parameters
    ----------
    found : Operands
    at_once : container of Loop
        Loops whose iterations may run in any order: all of them run from the beginning of an entry to its end.
    """

    def __init__(self, found: Operands, at_once: Container[Loop]) -> None:
        self.found, self.at_once = found, at_once
        self._size: dict[Loop, np.ndarray] = {}
        self._begin: dict[Loop, np.ndarray] = {}
        self._times: dict[Loop, tuple[np.ndarray, np.ndarray]] = {}

    def _measure(self, loop: Loop) -> np.ndarray:
        """How long each iteration takes."""
        size = np.full(loop.n_iterations, sum(isinstance(node, Site) for node in loop.body), np.int64)
        for node in loop.body:
            if isinstance(node, Loop):
                size += np.add.reduceat(self._measure(node), node.first[:-1])
        self._size[loop] = size
        return size

    def _start(self, loop: Loop) -> None:
        now = self._begin[loop].copy()
        for node in loop.body:
            if isinstance(node, Site):
                now += 1
                continue
            size, first = self._size[node], node.first[:-1]
            before = np.cumsum(size) - size
            self._begin[node] = before + (now - before[first])[node.entry]
            now += np.add.reduceat(size, first)
            self._start(node)

    def times(self, loop: Loop) -> tuple[np.ndarray, np.ndarray]:
        """From when to when each iteration of a loop may run."""
        if not self._begin:
            self._begin[self.found.root] = np.zeros(1, np.int64)
            self._measure(self.found.root)
            self._start(self.found.root)
        if loop not in self._times:
            self._times[loop] = self._found(loop)
        return self._times[loop]

    def _found(self, loop: Loop) -> tuple[np.ndarray, np.ndarray]:
        together = [around for around in (loop, *loop.ancestors()) if around in self.at_once]
        if not together:
            return self._begin[loop], self._begin[loop] + self._size[loop]
        outermost = together[-1]
        entry = outermost.entry[self.found.up(loop, outermost)]
        begin, end = self._begin[outermost], self._begin[outermost] + self._size[outermost]
        return begin[outermost.first[entry]], end[outermost.first[entry + 1] - 1]


@dataclass
class Stream:
    """What stands side by side in the iterations of a loop: `width` places an iteration from `base` on, before anything is moved.

    Attributes
    ----------
    at : (n_entries,) int64 ndarray
        Where the first iteration of each entry stands; set by `fold`.
    """

    loop: Loop
    base: int
    width: int
    lasts: bool  # for the whole run
    at: np.ndarray = field(init=False, repr=False)

    @property
    def has_moved(self) -> bool:
        return not np.array_equal(self.at, self.base + self.width * self.loop.first[:-1])

    @cached_property
    def size(self) -> int:
        return self.width * self.loop.n_iterations

    @property
    def end(self) -> int:
        return self.base + self.size


@dataclass
class Load:
    """The places that a load in `home` reads in all iterations, before anything is moved.

    Attributes
    ----------
    again : bool
        Whether it reads all of them again after the run.
    """

    home: Loop
    address: np.ndarray
    again: bool

    @cached_property
    def walks(self) -> bool:
        """Whether they are affine in every entry."""
        _, walks, _ = affine(self.address, self.home.first)
        return bool(walks)

    @cached_property
    def bounds(self) -> tuple[int, int]:
        return int(self.address.min()), int(self.address.max())

    def touches(self, stream: Stream) -> bool:
        low, high = self.bounds
        return low < stream.end and high >= stream.base


@kernel
def _note_reads(address, ends, base, width, entry, last):
    """Let `last` be the time when each entry of a stream is read for the last time."""
    size = width * entry.size
    for t in range(address.size):
        at = address[t] - base
        if 0 <= at < size:
            e = entry[at // width]
            last[e] = max(last[e], ends[t])


@kernel
def _note_walks(address, first, base, width, entry, joined):
    """Count in `joined` the walks that go on from an entry of a stream to the next; says whether one comes from outside or goes there."""
    size = width * entry.size
    for e in range(first.size - 1):
        a, b = address[first[e]] - base, address[first[e + 1] - 1] - base
        low, high = min(a, b), max(a, b)
        if high < 0 or low >= size:
            continue
        if low < 0 or high >= size:
            return True
        joined[entry[low // width]] += 1
        joined[entry[high // width]] -= 1
    return False


@kernel
def _move(address, base, width, entry, first, at, out):
    size = width * entry.size
    for t in range(address.size):
        k = address[t] - base
        if 0 <= k < size:
            e = entry[k // width]
            out[t] = at[e] + k - width * first[e]


def moved(load: Load, streams: list[Stream]) -> np.ndarray:
    """Where a load finds what it reads when streams have got their places."""
    touched = [stream for stream in streams if load.touches(stream) and stream.has_moved]
    if not touched:
        return load.address
    out = load.address.copy()
    for stream in touched:
        loop = stream.loop
        _move(load.address, stream.base, stream.width, loop.entry, loop.first, stream.at, out)
    return out


@dataclass
class _Blocks:
    """A stream in blocks: the entries with which they begin, their sizes, and from when to when they are needed."""

    stream: Stream
    starts: np.ndarray
    sizes: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def peak(self) -> int:
        """How many places are needed at a time, at most."""
        times = np.concatenate([self.ends, self.begins])
        order = np.argsort(times, kind="stable")  # what ends makes place for what begins
        return int(np.cumsum(np.concatenate([-self.sizes, self.sizes])[order]).max())


def _blocks(stream: Stream, loads: list[Load], run: Run) -> _Blocks | None:
    """The blocks of a stream, None if it had better stay as it is."""
    loop = stream.loop
    if stream.lasts or stream.size < max(SMALLEST_WINDOWED, SHORTEST_ENTRY * loop.n_entries):
        return None
    begin, end = run.times(loop)
    begin, last = begin[loop.first[:-1]], end[loop.first[1:] - 1].copy()
    joined = np.zeros(loop.n_entries, np.int64)
    for load in loads:
        if load.touches(stream):
            ends = np.full(load.address.size, FOREVER) if load.again else run.times(load.home)[1]
            _note_reads(load.address, ends, stream.base, stream.width, loop.entry, last)
            if load.walks and _note_walks(load.address, load.home.first, stream.base, stream.width, loop.entry, joined):
                return None
    starts = np.append(0, 1 + np.flatnonzero(np.cumsum(joined)[:-1] == 0))
    ends = np.append(starts[1:], loop.n_entries)
    sizes = stream.width * (loop.first[ends] - loop.first[starts])
    blocks = _Blocks(stream, starts, sizes, begin[starts], np.maximum.reduceat(last, starts))
    return blocks if 2 * blocks.peak() <= stream.size else None


def fold(streams: list[Stream], loads: list[Load], run: Run, start: int) -> int:
    """Give all streams their places, from `start` on.

    Parameters
    ----------
    streams : list of Stream
    loads : list of Load
        All that read them.
    run : Run
    start : int

    Returns
    -------
    int
        One past the last place.
    """
    folded = []
    for stream in streams:
        blocks = _blocks(stream, loads, run)
        if blocks is None:
            stream.at = start + stream.width * stream.loop.first[:-1]
            start += stream.size
        else:
            folded.append(blocks)
    return _allocate(folded, start)


def _allocate(folded: list[_Blocks], start: int) -> int:
    """Give blocks places that nothing else needs at the time: that of one of the same size, the one that has been free for longest."""
    if not folded:
        return start
    used: dict[int, list[tuple[int, int]]] = {}  # by size: until when, and where
    bases = [np.empty(blocks.starts.size, np.int64) for blocks in folded]
    begins = np.concatenate([blocks.begins for blocks in folded])
    which = np.repeat(np.arange(len(folded)), [base.size for base in bases])
    number = np.concatenate([np.arange(base.size) for base in bases])
    for block in np.argsort(begins, kind="stable").tolist():
        k, i = int(which[block]), int(number[block])
        size, end = int(folded[k].sizes[i]), int(folded[k].ends[i])
        own = used.setdefault(size, [])
        if own and own[0][0] <= begins[block]:
            base = heapq.heapreplace(own, (end, own[0][1]))[1]
        else:
            base = start
            start += size + ((HALF_PAGE - size) % (2 * HALF_PAGE) if size >= LARGE else 0)
            heapq.heappush(own, (end, base))
        bases[k][i] = base
    for blocks, places in zip(folded, bases, strict=True):
        stream, loop = blocks.stream, blocks.stream.loop
        block = np.repeat(np.arange(places.size), np.diff(np.append(blocks.starts, loop.n_entries)))
        stream.at = places[block] + stream.width * (loop.first[:-1] - loop.first[blocks.starts[block]])
    return start

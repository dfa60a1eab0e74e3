"""Where values and adjoints stand in memory, and the tables with which kernels find what does not stand at even distances."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from tapejit.compiler.nest import Loop, Site
from tapejit.compiler.operands import Memory, Operands
from tapejit.compiler.windows import Load, Run, Stream, affine, fold, moved
from tapejit.sweeps.kernel import kernel

__all__ = ["Address", "Layout", "Tables", "most_apart"]

CONTIGUOUS = 8  # stored values of a loop up to which each has an array of its own; above, those of an iteration stand side by side
CONTIGUOUS_IN_VECTORS = 64  # the same for an innermost loop that carries nothing, whose iterations may run in vectors


@dataclass(frozen=True)
class Address:
    """Where a value of iteration t, in entry e of its loop, is stored or found.

    ``base + stride * t`` if there is no table; ``base + table[e] + stride * (t - first[e])`` for a table of entries; ``table[t]`` for one of
    iterations. `table` is its place among all tables, -1 if there is none.
    """

    base: int = 0
    stride: int = 0
    table: int = -1
    per_entry: bool = False


class Tables:
    """The tables of a kernel, one after the other."""

    def __init__(self) -> None:
        self._tables: list[np.ndarray] = []
        self._known: dict[bytes, int] = {}
        self._size = 0

    def add(self, numbers: np.ndarray) -> int:
        """The place of a table; equal ones have one."""
        key = numbers.tobytes()
        if key not in self._known:
            self._known[key] = self._size
            self._tables.append(numbers)
            self._size += numbers.size
        return self._known[key]

    def of_entries(self, bases: np.ndarray, stride: int) -> Address:
        """An address per entry; those that are a fixed distance apart share a table."""
        lowest = int(bases.min())
        return Address(lowest, stride, self.add(bases - lowest), per_entry=True)

    def fitted(self, address: np.ndarray, home: Loop) -> Address:
        """The simplest form of the addresses of all iterations of a loop."""
        everywhere, within, stride = affine(address, home.first)
        if everywhere:
            return Address(int(address[0]), int(stride) if address.size > 1 else 0)
        if within:
            return self.of_entries(address[home.first[:-1]], int(stride))
        return Address(table=self.add(address))

    def walk(self, address: np.ndarray) -> Address:
        """The same for one address an iteration of any loop, whatever its entries."""
        return self.fitted(address, Loop(np.array([address.size])))

    def joined(self) -> np.ndarray:
        """All tables, int32."""
        joined = np.concatenate(self._tables) if self._tables else np.zeros(1, np.int64)
        if joined.max() > np.iinfo(np.int32).max:
            raise OverflowError("addresses beyond 2**31")
        return joined.astype(np.int32)


@kernel
def _places(column, base, width, site_of, iteration_of, out):
    """Where each instruction or leaf of a column stands."""
    for t in range(column.size):
        v = column[t]
        if v < 0:
            out[t] = -v - 1
        else:
            site = site_of[v]
            out[t] = base[site] + width[site] * iteration_of[v]


def most_apart(found: Operands, loop: Loop) -> int:
    """Up to how many stored values of a loop each have an array of their own; above, those of an iteration stand side by side."""
    is_innermost = all(isinstance(node, Site) for node in loop.body)
    is_serial = any(carried.home is loop for carried in found.carried)
    return CONTIGUOUS_IN_VECTORS if is_innermost and not is_serial else CONTIGUOUS


class Layout:
    """Places of stored values, or of adjoints: leaves at their numbers, then what sites store, from `start` on."""

    def __init__(self, found: Operands, tables: Tables, start: int) -> None:
        self.found, self.tables = found, tables
        self.start = self.end = start
        self._streams: list[tuple[Stream, list[Site]]] = []
        self._moved: dict[Memory, np.ndarray] = {}

    def add(self, sites: Container[Site], lasting: Container[Site]) -> None:
        """Give sites places; those of `lasting` for the whole run."""
        groups: dict[tuple[bool, Loop], list[Site]] = {}
        for site in self.found.sites:
            if site in sites:
                assert site.loop is not None
                groups.setdefault((site in lasting, site.loop), []).append(site)
        for (lasts, loop), items in groups.items():
            for own in [[site] for site in items] if len(items) <= most_apart(self.found, loop) else [items]:
                stream = Stream(loop, self.end, len(own), lasts)
                self._streams.append((stream, own))
                self.end = stream.end

    def fold(
        self, memories: list[Memory], run: Run, read_back: Container[Memory] = ()
    ) -> tuple[dict[Site, Address], int]:
        """Put into windows what may be, but what the loads of `read_back` read; gives the places of all sites, and one past the last place."""
        loads = [Load(memory.home, self._before(memory.column), memory in read_back) for memory in memories]
        streams = [stream for stream, _ in self._streams]
        end = fold(streams, loads, run, self.start)
        for memory, load in zip(memories, loads, strict=True):
            self._moved[memory] = moved(load, streams)
        return self._addresses(), end

    def _before(self, column: np.ndarray) -> np.ndarray:
        """Where what a column reads stands before anything is moved."""
        found = self.found
        base, width = np.zeros(len(found.sites), np.int64), np.zeros(len(found.sites), np.int64)
        for stream, own in self._streams:
            for k, site in enumerate(own):
                base[site.number], width[site.number] = stream.base + k, stream.width
        places = np.empty(column.size, np.int64)
        _places(column, base, width, found.site_of, found.iteration_of, places)
        return places

    def after(self, memory: Memory) -> np.ndarray:
        """Where any column of what lasts stands after `fold`."""
        return moved(Load(memory.home, self._before(memory.column), False), [stream for stream, _ in self._streams])

    def _addresses(self) -> dict[Site, Address]:
        addresses = {}
        for stream, own in self._streams:
            straight = stream.at[0] + stream.width * stream.loop.first[:-1]
            is_straight = np.array_equal(stream.at, straight)
            for k, site in enumerate(own):
                if is_straight:
                    addresses[site] = Address(int(stream.at[0]) + k, stream.width)
                else:
                    addresses[site] = self.tables.of_entries(stream.at + k, stream.width)
        return addresses

    def places(self, memory: Memory) -> np.ndarray:
        """Where a load finds what it reads, in all iterations."""
        return self._moved[memory]

    def address(self, memory: Memory) -> Address:
        return self.tables.fitted(self._moved[memory], memory.home)

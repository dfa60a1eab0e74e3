"""A loop nest: loops, and sites in them. What `roll` finds and the later stages work on.

A loop is *entered* once in every iteration of the loop around it. Its iterations are counted through, over all entries: iteration t belongs
to entry ``entry[t]``, which is the number of the iteration of the loop around it. The root is entered once and runs once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from tapejit.compiler.prune import PRODUCT, Matmul

__all__ = ["Loop", "Product", "Site"]


class Node:
    """What a loop and a site have in common: the loop they stand in, and at which position."""

    loop: Loop | None = None
    position: int = 0

    def ancestors(self) -> Iterator[Loop]:
        """The loops around, from the inside out."""
        loop = self.loop
        while loop is not None:
            yield loop
            loop = loop.loop


class Site(Node):
    """One instruction of a body; ``instructions[t]`` is what it was in iteration t of its loop."""

    def __init__(self, code: int, guard: int, instructions: np.ndarray) -> None:
        self.code, self.guard = code, guard
        self.instructions = instructions
        self.number = -1
        self.operands: list[Any] = []

    def __repr__(self) -> str:
        return f"<Site {self.number} code {self.code}>"


class Loop(Node):
    """A loop that ran ``trips[e]`` times when it was entered for the e-th time; at least once."""

    def __init__(self, trips: np.ndarray) -> None:
        self.trips = trips
        self.body: list[Site | Loop] = []

    def append(self, node: Site | Loop) -> None:
        node.loop, node.position = self, len(self.body)
        self.body.append(node)

    def replace(self, old: Loop, new: list[Loop]) -> None:
        """Put other loops in the place of one."""
        at = old.position
        self.body[at : at + 1] = new
        for position, node in enumerate(self.body):
            node.loop, node.position = self, position

    @property
    def n_entries(self) -> int:
        return self.trips.size

    @cached_property
    def n_iterations(self) -> int:
        """Over all entries."""
        return int(self.trips.sum())

    @cached_property
    def first(self) -> np.ndarray:
        """First iteration of each entry, and one past the last of all: (n_entries + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.trips)])

    @cached_property
    def entry(self) -> np.ndarray:
        """The entry to which each iteration belongs, (n_iterations,) int32."""
        return np.repeat(np.arange(self.n_entries, dtype=np.int32), self.trips)

    def within(self) -> np.ndarray:
        """Number of each iteration in its entry."""
        return np.arange(self.n_iterations) - np.repeat(self.first[:-1], self.trips)

    @property
    def constant_trips(self) -> int:
        """How often it runs each time, 0 if that varies."""
        return int(self.trips[0]) if (self.trips == self.trips[0]).all() else 0

    def sites(self) -> Iterator[Site]:
        """All sites, also of inner loops, in order."""
        for node in self.body:
            if isinstance(node, Site):
                yield node
            else:
                yield from node.sites()

    def loops(self) -> Iterator[Loop]:
        """This loop and all inside, outermost first."""
        yield self
        for node in self.body:
            if isinstance(node, Loop):
                yield from node.loops()

    def contains(self, node: Node) -> bool:
        return any(loop is self for loop in node.ancestors())

    @property
    def depth(self) -> int:
        return sum(1 for _ in self.ancestors())

    def start(self) -> np.ndarray:
        """The first instruction of each iteration, (n_iterations,)."""
        node = self.body[0]
        if isinstance(node, Site):
            return node.instructions
        return node.start()[node.first[:-1]]


class Product(Loop):
    """A matrix product that stays whole: a loop over its results, with one site; ``matmuls[e]`` is what it was when it was entered for the e-th time.

    All of them have one shape. What reads results reads them in memory.
    """

    def __init__(self, matmuls: list[Matmul]) -> None:
        m, _, n = self.shape = matmuls[0].shape
        super().__init__(np.full(len(matmuls), m * n))
        self.matmuls = matmuls
        firsts = np.array([matmul.first for matmul in matmuls])
        self.site = Site(PRODUCT, 0, (firsts[:, None] + np.arange(m * n)).reshape(-1))
        self.append(self.site)

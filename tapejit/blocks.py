"""Blocks as they stand on a tape: what they read, in which order, and which of them are swept together.

`tapejit.layout` has the words in which the kernels read the same facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tapejit import ops
from tapejit.layout import ELEMENTWISE, MATMUL, SLOTS, SUM, TABLE

__all__ = ["Block", "Group", "Operand", "WholeProduct", "collapsed"]


@dataclass(frozen=True)
class Operand:
    """What a block reads: slots ``base + offset`` (SLOTS), ``array[offset]`` of slot numbers (TABLE) or of plain numbers (DATA).

    The offset of an element is the sum of its indices times `strides`. `base` is the address of `array` where there is one.
    """

    mode: int
    base: int
    strides: tuple[int, ...]
    array: np.ndarray | None = None

    def elements(self, shape: tuple[int, ...]) -> np.ndarray:
        """Slot numbers (int64), or plain numbers (float64) of a passive operand, of the given shape."""
        if self.array is not None:
            strides = tuple(self.array.itemsize * stride for stride in self.strides)
            taken = np.lib.stride_tricks.as_strided(self.array, shape, strides, writeable=False)
            return taken.astype(np.int64) if self.mode == TABLE else taken
        offsets = np.zeros((), dtype=np.int64)
        for axis, (extent, stride) in enumerate(zip(shape, self.strides, strict=True)):
            index = np.arange(extent, dtype=np.int64) * stride
            offsets = offsets + index.reshape((-1,) + (1,) * (len(shape) - axis - 1))
        return np.broadcast_to(offsets, shape) + self.base


@dataclass(frozen=True)
class Block:
    """A block as it stands in `words`, for printing, expanding and nesting; the sweeps read the words themselves.

    `shape` is that of the result for elementwise blocks, of the operand for sums, ``(m, k, n)`` for products of (m, k) and (k, n).
    """

    kind: int
    first: int
    size: int
    code: int
    shape: tuple[int, ...]
    operands: tuple[Operand, ...]
    result_strides: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return {ELEMENTWISE: ops.op_coded(self.code).name, SUM: "sum", MATMUL: "matmul"}[self.kind]


@dataclass(frozen=True)
class WholeProduct:
    """A matrix product on a tape that is written out otherwise.

    Attributes
    ----------
    block : Block
        As it stands on the tape it comes from.
    first : int
        Its first slot here.
    reads : tuple of ndarray or None
        The slots here that each factor reads, in C order; None for plain numbers. Products that read the same have the same array.
    """

    block: Block
    first: int
    reads: tuple[np.ndarray | None, ...]


@dataclass
class Group:
    """Elementwise blocks that are swept together so far: their length, their first slots, and where the last one ends."""

    size: int
    firsts: list[int] = field(default_factory=list)
    end: int = 0

    def reads(self, operand: Operand, stride: int) -> bool:
        """Whether an operand reads nothing of the group, or a block of it at the same index."""
        if operand.mode == TABLE:
            return False
        if operand.mode != SLOTS:
            return True
        last = operand.base + (self.size - 1) * stride
        return max(operand.base, last) < self.firsts[0] or (stride == 1 and operand.base in self.firsts)


def collapsed(
    shape: tuple[int, ...], strides: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Merge neighbouring dimensions that every operand walks through at one stride: most blocks become one long loop."""
    kept = [axis for axis, extent in enumerate(shape) if extent != 1]
    extents: list[int] = []
    walks: list[list[int]] = [[] for _ in strides]
    for axis in kept:
        extent = shape[axis]
        if extents and all(walk[-1] == s[axis] * extent for walk, s in zip(walks, strides, strict=True)):
            extents[-1] *= extent
            for walk, s in zip(walks, strides, strict=True):
                walk[-1] = s[axis]
        else:
            extents.append(extent)
            for walk, s in zip(walks, strides, strict=True):
                walk.append(s[axis])
    if not extents:
        return (1,), [(0,) for _ in strides]
    return tuple(extents), [tuple(walk) for walk in walks]

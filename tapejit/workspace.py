"""Memory that is used again: the arrays of tapes and sweeps that have ended.

Memory fresh from the system costs a page fault for every 4 KiB that is touched, several times what sweeping it costs. So the arrays of the
last tapes and sweeps are kept for the next ones: at most ``TAPEJIT_KEEP_BYTES`` bytes in all (512 MiB by default, 0 keeps none), the
oldest given up first. `forget` gives everything back to the system.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["cleared_workspace", "extended", "forget", "fresh", "give_back", "held", "take"]

KEPT_BYTES = int(os.environ.get("TAPEJIT_KEEP_BYTES", 512 << 20))
_FROM_SYSTEM = 1 << 20  # bytes
_IS_POSIX = hasattr(mmap, "MAP_PRIVATE")
SMALLEST = 1 << 14  # entries; below, the allocator does as well

_lock = threading.Lock()
_kept: list[tuple[str, tuple[np.ndarray, ...]]] = []


def take(kind: str, n: int, largest: bool = False) -> tuple[np.ndarray, ...] | None:
    """Arrays of at least `n` entries that were given back under this name, the smallest or the largest of them; None if there are none."""
    if n < SMALLEST:
        return None
    with _lock:
        fitting = [i for i, (name, arrays) in enumerate(_kept) if name == kind and arrays[0].size >= n]
        choose = max if largest else min
        return _kept.pop(choose(fitting, key=lambda i: _kept[i][1][0].size))[1] if fitting else None


def fresh(n: int, dtype: np.dtype) -> np.ndarray:
    """An array of any contents. A large one comes from the system and goes back there whole: the allocator keeps what it frees for itself.

    Pages that are never touched take no memory, so room to grow costs nothing.
    """
    n_bytes = n * np.dtype(dtype).itemsize
    if n_bytes < _FROM_SYSTEM:
        return np.empty(n, dtype)
    # Private, not mmap's default of shared: only private memory comes in huge pages (a ninth of the time to touch it) and may be extended.
    memory = (
        mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if _IS_POSIX else mmap.mmap(-1, n_bytes)
    )
    _ask_for_huge_pages(memory)
    return np.frombuffer(memory, dtype)


def extended(holder: list[Any], n: int, used: int) -> np.ndarray:
    """The array in `holder`, of which nobody else has a view, with room for `n` entries; its first `used` entries are kept.

    Where the system can, its pages are moved to other addresses and nothing is copied. Whatever is raised on the way (MemoryError, Ctrl-C),
    `holder` still holds the array, or the memory behind it: see `held`.
    """
    array = holder[0]
    dtype = array.dtype
    base: Any = array.base
    memory = base.obj if isinstance(base, memoryview) else None
    if isinstance(memory, mmap.mmap) and _IS_POSIX and n * dtype.itemsize >= _FROM_SYSTEM:
        size = len(memory)
        holder[0] = memory
        del array
        with contextlib.suppress(BufferError, SystemError, ValueError, OSError):
            memory.resize(n * dtype.itemsize)
            _ask_for_huge_pages(memory)
        if len(memory) != size:
            return np.frombuffer(memory, dtype)
        array = np.frombuffer(memory, dtype)
    try:
        new = fresh(n, dtype)
    except (OSError, MemoryError):
        raise MemoryError(f"the system gave no {n * dtype.itemsize} bytes for {n} slots; nothing is lost") from None
    new[:used] = array[:used]
    return new


def held(holder: list[Any], dtype: np.dtype) -> np.ndarray:
    """The array in the `holder` of a call of `extended` that was broken off."""
    return holder[0] if isinstance(holder[0], np.ndarray) else np.frombuffer(holder[0], dtype)


def _ask_for_huge_pages(memory: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def give_back(kind: str, arrays: tuple[np.ndarray, ...]) -> None:
    """Keep arrays that nobody else refers to for the next `take` of this name."""
    # A tape may be collected, and give its memory back, while this very thread holds the lock: then the memory goes to the system.
    if arrays[0].size < SMALLEST or not _lock.acquire(blocking=False):
        return
    try:
        _kept.append((kind, arrays))
        held = sum(_bytes(kept) for _, kept in _kept)
        while held > KEPT_BYTES and _kept:
            held -= _bytes(_kept.pop(0)[1])
    finally:
        _lock.release()


def forget() -> None:
    """Give the kept memory back to the system."""
    with _lock:
        _kept.clear()


def only_here(arrays: Sequence[np.ndarray], references: int) -> bool:
    """Whether each array has just `references` references besides the sequence itself: no view of it is left."""
    return max(_counts(arrays)) <= references + _COUNT_ALONE


def _counts(arrays: Sequence[np.ndarray]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]


# What is counted for an array in a tuple and nowhere else: versions of Python differ in what they count besides.
_COUNT_ALONE = max(_counts((np.empty(0),)))


def _bytes(arrays: Sequence[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)


@contextmanager
def cleared_workspace(n: int) -> Iterator[np.ndarray]:
    """An array of `n` zeros, which the caller leaves as zeros if it succeeds."""
    kept = take("zeros", n)
    whole = np.zeros(n) if kept is None else kept[0]
    yield whole[:n]
    give_back("zeros", (whole,))

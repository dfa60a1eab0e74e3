"""Where snapshots stand: rows of one array in memory, and rows of one file that is mapped to memory.

The file has no name any more as soon as it is open (where the system allows that), so nothing is left of it however the process ends. Its room is
taken from the disk before the first snapshot: a full disk is an error at the start, where nothing is lost, and not a signal in the middle.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapejit.errors import MemoryBudgetError
from tapejit.workspace import fresh

__all__ = ["Snapshots"]

_UNLINKS_OPEN_FILES = os.name == "posix"


class Snapshots:
    """Slots for vectors of one size, and for the static parts of the states that they come from.

    Parameters
    ----------
    n_slots, size : int
    on_disk : collection of int
        Slots that stand in the file.
    directory : str or path, optional
        Where the file is made.

    Attributes
    ----------
    memory, disk : (k, size) ndarray
    place : (n_slots,) int64 ndarray
        The row of each slot in `memory`; of a slot on disk -1 minus its row in `disk`.
    held : int
        Slots in use; `most_held` is the largest number so far.
    """

    def __init__(self, n_slots: int, size: int, on_disk: frozenset[int] = frozenset(), directory: Any = None) -> None:
        self.size = size
        self.place = np.arange(n_slots)
        n_disk = len(on_disk)
        if on_disk:
            is_on_disk = np.zeros(n_slots, bool)
            is_on_disk[list(on_disk)] = True
            self.place[~is_on_disk] = np.arange(n_slots - n_disk)
            self.place[is_on_disk] = -1 - np.arange(n_disk)
        self.static: dict[int, Sequence[Any]] = {}
        self._file: Any = None
        self.memory = fresh(max(1, (n_slots - n_disk) * size), np.dtype(np.float64))[: (n_slots - n_disk) * size]
        self.memory = self.memory.reshape(n_slots - n_disk, size)
        self.disk = np.empty((0, size))
        if n_disk and size:
            self.disk = self._mapped(n_disk, directory)

    def _mapped(self, n_rows: int, directory: Any) -> np.ndarray:
        n_bytes = 8 * n_rows * self.size
        file = tempfile.NamedTemporaryFile(prefix="tapejit-snapshots-", dir=directory, delete=not _UNLINKS_OPEN_FILES)
        try:
            if _UNLINKS_OPEN_FILES:
                os.unlink(file.name)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                _write_zeros(file, n_bytes)
            mapped = mmap.mmap(file.fileno(), n_bytes)
        except OSError as error:
            where = directory if directory is not None else tempfile.gettempdir()
            raise MemoryBudgetError(
                f"the snapshots on disk need {n_bytes:,} bytes in {where}, which could not be had ({error.strerror}); nothing was computed. "
                "Name another directory, or fewer snapshots on disk"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                file.close()
        return np.frombuffer(mapped, np.float64).reshape(n_rows, self.size)

    def row(self, slot: int) -> np.ndarray:
        place = int(self.place[slot])
        return self.memory[place] if place >= 0 else self.disk[-1 - place]

    def store(self, slot: int, vector: np.ndarray, static: Sequence[Any]) -> None:
        self.row(slot)[:] = vector
        if static:
            self.static[slot] = static

    def restore(self, slot: int) -> tuple[np.ndarray, Sequence[Any]]:
        return self.row(slot).copy(), self.static.get(slot, ())

    def free(self, slot: int) -> None:
        self.static.pop(slot, None)


def _write_zeros(file: Any, n_bytes: int) -> None:
    """Take room on a disk where the system has no call for it."""
    piece = bytes(1 << 20)
    for start in range(0, n_bytes, len(piece)):
        file.write(piece[: n_bytes - start])
    file.flush()

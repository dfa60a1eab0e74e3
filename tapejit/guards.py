"""Guards: the decisions of a recording, which a replay must find again."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Guards"]


@dataclass
class Guards:
    """Decisions: the slots on which Python code branched, what they were, and where in the source."""

    slot: array = field(default_factory=lambda: array("i"))
    expected: array = field(default_factory=lambda: array("d"))
    line: array = field(default_factory=lambda: array("i"))
    lines: list[str] = field(default_factory=list)

    def append(self, slots: Sequence[int] | np.ndarray, expected: Sequence[float] | np.ndarray, line: str) -> None:
        if not self.lines or self.lines[-1] != line:
            self.lines.append(line)
        self.slot.frombytes(np.asarray(slots, np.int32).tobytes())
        self.expected.frombytes(np.asarray(expected, np.float64).tobytes())
        self.line.extend(array("i", [len(self.lines) - 1]) * len(slots))

    def extend(self, other: Guards, shift: int) -> None:
        """Take over the decisions of a tape that was copied to the end of this one."""
        first_line = len(self.lines)
        self.lines.extend(other.lines)
        self.slot.extend(array("i", [slot + shift for slot in other.slot]))
        self.expected.extend(other.expected)
        self.line.extend(array("i", [line + first_line for line in other.line]))

    def first_change(self, value: np.ndarray) -> int:
        """Number of the first guard whose slot has another value now, or -1."""
        if not self.slot:
            return -1
        now = value[np.frombuffer(self.slot, np.int32)]
        expected = np.frombuffer(self.expected, np.float64)
        changed = (now != expected) & ~((now != now) & (expected != expected))
        return int(changed.argmax()) if changed.any() else -1

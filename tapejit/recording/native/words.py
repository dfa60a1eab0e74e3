"""Words that come back from compiled code, as values on the tape."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapejit import ops
from tapejit.errors import UninitializedError
from tapejit.recording.array import Array
from tapejit.recording.recorder import Tape
from tapejit.recording.variable import Variable

__all__ = ["array_of_words", "scalar_of_word"]


def scalar_of_word(tape: Tape, value: float, word: int) -> Any:
    if word < 0:
        _refuse_poison()
    return Variable(tape, word & 0xFFFFFFFF, value) if word else value


def array_of_words(tape: Tape, values: np.ndarray, words: np.ndarray) -> Any:
    if (words < 0).any():
        _refuse_poison()
    if not words.any():
        return values
    slots = words & 0xFFFFFFFF
    passive = words == 0
    if passive.any():
        first = tape.push_run(ops.CONSTANT, 0, 0, values[passive])
        slots[passive] = np.arange(first, first + int(passive.sum()))
    return Array.of_slots(tape, slots)


def _refuse_poison() -> None:
    raise UninitializedError(
        "the compiled function returned memory that was allocated (np.empty, np.empty_like) and never written; write all of it, or "
        "allocate with np.zeros"
    )

"""What Python and compiled code both read of a recording: its header, the list of headers, and the flags.

An *active* number carries a *word*: its slot in the lower half and the number of its tape in the upper half. Zero says passive: the number
is on no tape. A negative word is *poison*: what memory holds that was allocated and never written.

Each tape under native recording has a *header*, an array of int64 with the addresses of its flat arrays; `HEADERS` lists them by number.
"""

from __future__ import annotations

import numpy as np

MAX_TAPES = 64  # recordings at the same time in one process
POISON = -1

# Header, in int64 words. The next slot and the capacity come with the number of the tape in the upper half, as the words of slots do.
NEXT, CAPACITY, NUMBER, OPCODE, LHS, RHS, VALUE = range(7)
KEEPS_GUARDS, N_GUARDS, GUARD_CAPACITY, GUARD_SLOT, GUARD_EXPECTED = range(7, 12)
CONSTANTS = 16  # where the table of constants begins: pairs of bits and slot, two pairs a set
CONSTANT_SETS = 512
SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)  # 2**64 / golden ratio: Fibonacci hashing (Knuth, TAOCP 3, section 6.4)
DEAD = -1  # capacity of a tape that must not grow: an error has happened
HEADER_WORDS = CONSTANTS + 4 * CONSTANT_SETS

HEADERS = np.zeros(MAX_TAPES, np.int64)
NO_TAPE = np.zeros(HEADER_WORDS, np.int64)  # the header to look at while nothing is recorded: number 0, no room

# What compiled code looks at before it does anything rare: recordings that keep guards, recordings that must stop, the callback. And
# the header of the recording that began last, mostly the only one.
FLAGS = np.zeros(4, np.int64)
WATCHING, STOPPING, CALLBACK, LATEST = range(4)
FLAGS[LATEST] = NO_TAPE.ctypes.data

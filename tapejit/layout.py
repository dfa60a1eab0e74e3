"""How a block is described in the tape's `words`, an int64 array: plain data that kernels read and `tape.py` writes.

The slots of a block carry the opcode `block`, and `lhs` of the first and the last is the position `at` of its words:

| word | elementwise | sum | matmul |
|---|---|---|---|
| 0 | kind | kind | kind |
| 1 | first slot | first slot | first slot |
| 2 | number of slots | number of slots | number of slots |
| 3 | opcode | 0 | inner dimension k |
| 4 | ndim | ndim of the operand | rows m |
| 5 | number of operands | 1 | columns n |
| 6 | the block it joins, or -1 | the block it joins, or -1 | -1 |
| 7 | whether read outside its group | 1 | 1 |
| 8 ... | shape (ndim) | shape of the operand (ndim) | operand a, operand b |
| ... | operands | operand, then strides of the result | |

An operand is ``mode, base, strides``: slots ``base + offset`` (SLOTS), slots ``table[offset]`` for an int32 table at the address
`base` (TABLE), or numbers ``data[offset]`` for a float64 array at the address `base` (DATA), where the offset is the sum of index times stride.

Elementwise blocks of one length that follow each other, and read each other at the same index only, *join*; a sum over one of them may end
the group. The sweeps take a group tile by tile together, so that what one writes the next finds in the cache. The adjoint of a block that
nothing outside its group reads never leaves the cache either (word 7; `tapejit.sweeps.groups` finds out).
"""

ELEMENTWISE, SUM, MATMUL = range(3)
SLOTS, TABLE, DATA = range(3)
HEADER = 8
TILE = 256  # elements worked on at once: eight such buffers fit the first-level cache
PITCH = TILE + 40  # from one buffer to the next: at multiples of 4 KiB a load would wait for stores to another buffer
MAX_JOINED = 32  # blocks taken together

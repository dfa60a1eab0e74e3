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
| 6 ... | shape (ndim) | shape of the operand (ndim) | operand a, operand b |
| ... | operands | operand, then strides of the result | |

An operand is ``mode, base, strides``: slots ``base + offset`` (SLOTS), slots ``table[offset]`` for an int32 table at the address
`base` (TABLE), or numbers ``data[offset]`` for a float64 array at the address `base` (DATA), where the offset is the sum of index times stride.
"""

ELEMENTWISE, SUM, MATMUL = range(3)
SLOTS, TABLE, DATA = range(3)
HEADER = 6
TILE = 256  # elements worked on at once: eight such buffers fit the first-level cache

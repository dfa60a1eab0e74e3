"""The tape's storage: four flat arrays, one entry a slot, and a side table for blocks.

Slot `s` is the result of primitive ``opcode[s]`` on the slots ``lhs[s]`` and ``rhs[s]``, and its primal is ``value[s]``; operands stand before
their results, so the slot number is the order of evaluation and no result index is stored. Slot 0 holds the constant 0.0: it is
the operand that a primitive lacks, and what NumPy's own functions fill in when they work on slot numbers (``np.tril``, ``np.diag``).

A primitive of three operands (`select`) takes two slots: a `positive` slot that carries the condition, and the `select` after it.

A *block* is one instruction that owns a run of slots: an elementwise operation on a whole array, a sum, a matrix product. Its
first and last slot carry the opcode `block` and the position of its description in `words` (`tapejit.layout` has the format);
the slots between hold values only.

Scalars recorded from Python are appended to small typed arrays, which costs a third of writing into NumPy's, and moved over in bulk
(`settle`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapejit import ops
from tapejit.blocks import Block, Group, Operand, WholeProduct, collapsed
from tapejit.errors import TapeError, TapeFullError, UnsupportedError
from tapejit.guards import Guards
from tapejit.layout import ELEMENTWISE, HEADER, MATMUL, MAX_JOINED, SUM, TABLE, TILE
from tapejit.printing import histogram, listing, summary
from tapejit.workspace import extended, fresh, give_back, held, only_here, take

if TYPE_CHECKING:
    from tapejit.sweeps.activity import Passive

__all__ = ["MAX_SLOTS", "FlatTape"]

MAX_SLOTS = 2**31 - 1
_FLAT = {
    name: np.dtype(kind)
    for name, kind in (("_opcode", np.uint8), ("_lhs", np.int32), ("_rhs", np.int32), ("_value", np.float64))
}
# The system aligns memory for huge pages where it is a whole number of them, as int32 and float64 of so many slots are. A recording in fresh
# memory takes half the time then; what is not touched takes none.
_HUGE = 1 << 19
NOT_NESTED = (
    "a recording with a tj.loop or tj.checkpoint cannot be differentiated once more after it was made; nest the transforms, as in "
    "tj.grad(tj.grad(f)), or use tj.hvp"
)
STAGED = 1 << 16  # scalar slots kept in the small arrays before they are moved over


class FlatTape:
    """Storage of a recording: grows at the end, never changes what is there.

    Attributes
    ----------
    n_slots : int
        Slots so far.
    guards : Guards
        Decisions that a replay must find again.
    input_slots, parameter_slots : list of (first, size)
        Runs of the slots that are differentiated by, and of those that a replay may change besides.
    """

    def __init__(self) -> None:
        self._opcode = np.zeros(64, np.uint8)
        self._lhs = np.zeros(64, np.int32)
        self._rhs = np.zeros(64, np.int32)
        self._value = np.zeros(64, np.float64)
        self._staged: tuple[array, ...] = (array("B"), array("i"), array("i"), array("d"))
        self._moving: tuple[str, list] | None = None  # the flat array that is just growing
        self._n_settled = 1  # slot 0: the constant 0.0
        self._bind()
        self.n_slots = 1
        self.limit = 1 + STAGED
        self.why_closed = ""
        self.careful = False  # whether every scalar takes the slow path, which checks domains
        self.max_slots = MAX_SLOTS
        self.words = array("q")
        self.block_at = array("q")
        self._words_now = np.zeros(0, np.int64)
        self._references: list[tuple[int, np.ndarray]] = []
        self._n_data_bytes = 0
        self.input_slots: list[tuple[int, int]] = []
        self.parameter_slots: list[tuple[int, int]] = []
        self.output_slots = np.zeros(0, np.int64)
        self.sums: list[tuple[int, int]] = []  # of an expanded tape: the runs of additions that were sums of blocks
        self.products: list[WholeProduct] = []  # and the matrix products that stay whole
        self.n_user_rows = 0
        self._constants: dict[float | str, int] = {}
        self._group = Group(-1)
        self.has_joined = False
        self.words_known: tuple[tuple, np.ndarray] | None = None  # what `sweeps` has found out about joined blocks
        self.passive_known: Passive | None = None  # and about what depends on parameters alone
        self.guards = Guards()
        # Loops and regions that are computed again in a reverse sweep: see `tapejit.checkpointing.calls`.
        self.calls: list[Any] = []

    def _bind(self) -> None:
        # Bound methods, looked up once: recording a scalar is four calls and little else.
        self.push_opcode: Callable[[int], None] = self._staged[0].append
        self.push_lhs: Callable[[int], None] = self._staged[1].append
        self.push_rhs: Callable[[int], None] = self._staged[2].append
        self.push_value: Callable[[float], None] = self._staged[3].append

    # Growth.

    def make_room(self) -> None:
        """What recording calls when `n_slots` reaches `limit`: move the staged slots over, or say why nothing can be recorded.

        Raises
        ------
        TapeError
            If the tape is closed or was replayed.
        TapeFullError
            If the tape would exceed 2**31 - 1 slots; nothing is lost.
        """
        self._check_open(1)
        self.settle()
        self._set_limit()

    def _set_limit(self) -> None:
        self.limit = 0 if self.careful or self.why_closed else min(self.n_slots + STAGED, self.max_slots)

    def _check_open(self, n: int) -> None:
        if self.why_closed:
            raise TapeError(self.why_closed)
        if self.n_slots + n > self.max_slots:
            raise TapeFullError(
                f"the tape would need {self.n_slots + n} slots, but int32 slot numbers end at {self.max_slots}; nothing is lost. "
                "Record a part of the computation at a time: checkpointing (tj.loop) keeps one step on the tape"
            )

    def settle(self) -> None:
        """Move the staged scalar slots into the flat arrays."""
        n_staged = len(self._staged[0])
        if n_staged:
            self._reserve(self._n_settled + n_staged)
            run = slice(self._n_settled, self._n_settled + n_staged)
            for target, part in zip(self._flat(), self._staged, strict=True):
                target[run] = np.frombuffer(part, dtype=target.dtype)
            for part in self._staged:
                del part[:]
            self._n_settled += n_staged

    def _reserve(self, n_slots: int) -> None:
        capacity = self._value.size  # the last to grow
        if n_slots <= capacity:
            return
        capacity = max(n_slots, capacity + capacity // 2)
        if capacity > _HUGE // 2:
            capacity += -capacity % _HUGE
        capacity = min(capacity, MAX_SLOTS)
        used = self._n_settled
        kept = take("tape", capacity, largest=True)
        if kept is not None:
            for source, target in zip(self._flat(), kept, strict=True):
                target[:used] = source[:used]
            self._opcode, self._lhs, self._rhs, self._value = kept
            return
        for name in _FLAT:
            # At every moment the array, or its memory, stands in the dict or in the holder: a signal's handler may raise at any of them.
            holder: list = []
            self._moving = name, holder
            holder.extend(map(self.__dict__.pop, (name,)))
            if only_here(holder, 0):
                self.__dict__[name] = extended(holder, capacity, used)
            else:
                new = fresh(capacity, holder[0].dtype)
                new[:used] = holder[0][:used]
                self.__dict__[name] = new
            self._moving = None

    if not TYPE_CHECKING:  # mypy would take every name for an array

        def __getattr__(self, name: str) -> np.ndarray:
            """One of the flat arrays, whose growth was broken off."""
            moving = self.__dict__.get("_moving")
            if moving is None or moving[0] != name or not moving[1]:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            array = held(moving[1], _FLAT[name])
            self.__dict__[name] = array
            self._moving = None
            return array

    def trim(self) -> None:
        """Give up arrays that are far too large: a recording that is kept grows no more."""
        n = self.n_slots
        if self._opcode.size > 2 * n + 64:
            # Taken over from an earlier, larger tape, which another one may want.
            old = self._flat()
            self._opcode, self._lhs, self._rhs, self._value = (array[:n].copy() for array in old)
            if only_here(old, 0):
                give_back("tape", old)

    def _flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self._opcode, self._lhs, self._rhs, self._value

    def __del__(self) -> None:
        arrays = self.__dict__.get("_value") is not None and self._flat()
        if arrays and only_here(arrays, 1):
            give_back("tape", arrays)

    def extend(self, n: int) -> int:
        """Add `n` slots whose contents the caller writes at once (`opcode`, `lhs`, `rhs`, `value`); gives the first."""
        self._check_open(n)
        self.settle()
        first = self.n_slots
        self._reserve(first + n)
        self.n_slots = self._n_settled = first + n
        self._set_limit()
        return first

    def close(self, why: str) -> None:
        """Let nothing more be recorded: recording then raises TapeError with this text."""
        self.settle()
        self.why_closed = why
        self._set_limit()

    def reopen(self) -> None:
        """Undo `close`."""
        self.why_closed = ""
        self._set_limit()

    def value_at(self, slot: int) -> float:
        """Primal of one slot, wherever it stands; does not move staged slots over."""
        n_settled = self._n_settled
        return self._value.item(slot) if slot < n_settled else self._staged[3][slot - n_settled]

    def block_around(self, slot: int) -> int:
        """Position in `words` of the block that holds a slot, -1 for a scalar slot."""
        at = bisect_right(self.block_at, slot, key=lambda position: self.words[position + 1]) - 1
        if at >= 0:
            position = self.block_at[at]
            if slot < self.words[position + 1] + self.words[position + 2]:
                return position
        return -1

    def code_at(self, slot: int) -> int:
        """Opcode of one slot; in an elementwise block that of the block, whose slots carry none of their own."""
        position = self.block_around(slot)
        if position < 0:
            return int(self.opcode[slot])
        return self.words[position + 3] if self.words[position] == ELEMENTWISE else ops.BLOCK

    # The flat arrays.

    @property
    def opcode(self) -> np.ndarray:
        """Primitive of each slot, (n_slots,) uint8; a view that is good until the tape grows."""
        self.settle()
        return self._opcode[: self.n_slots]

    @property
    def lhs(self) -> np.ndarray:
        """First operand slots, (n_slots,) int32."""
        self.settle()
        return self._lhs[: self.n_slots]

    @property
    def rhs(self) -> np.ndarray:
        """Second operand slots, (n_slots,) int32."""
        self.settle()
        return self._rhs[: self.n_slots]

    @property
    def value(self) -> np.ndarray:
        """Primals, (n_slots,) float64."""
        self.settle()
        return self._value[: self.n_slots]

    def word_array(self) -> np.ndarray:
        """Descriptions of the blocks, as the kernels read them."""
        if self._words_now.size != len(self.words):
            self._words_now = np.array(self.words, dtype=np.int64)
        return self._words_now

    @property
    def nbytes(self) -> int:
        """Bytes of the recording: 17 a slot, the descriptions of blocks, index tables, copies of passive arrays, guards."""
        tables = sum(a.nbytes for _, a in self._references if a.dtype == np.int32)
        return 17 * self.n_slots + 8 * len(self.words) + tables + self._n_data_bytes + 16 * len(self.guards.slot)

    # Recording.

    def push(self, code: int, lhs: int, rhs: int, value: float) -> int:
        """Record one scalar slot; gives its number. (`Variable` has this written out.)"""
        slot = self.n_slots
        if slot >= self.limit:
            self.make_room()
        self.push_opcode(code)
        self.push_lhs(lhs)
        self.push_rhs(rhs)
        self.push_value(value)
        self.n_slots = slot + 1
        if code >= ops.FIRST_USER:
            self.n_user_rows = max(self.n_user_rows, code - ops.FIRST_USER + 1)
        return slot

    def push_select(self, condition: int, x: int, y: int, values: tuple[float, float]) -> int:
        """Record ``x if condition else y`` in two slots; `values` are those of the condition and of the result."""
        self.push(ops.POSITIVE, condition, 0, values[0])
        return self.push(ops.SELECT, x, y, values[1])

    def constant(self, number: float) -> int:
        """The slot of a plain number; equal numbers share one."""
        key = number if number else repr(number)  # 0.0 and -0.0 are equal, but 1 / x tells them apart.
        slot = self._constants.get(key)
        if slot is None:
            slot = 0 if key == "0.0" else self.push(ops.CONSTANT, 0, 0, number)
            self._constants[key] = slot
        return slot

    def push_run(self, code: int | np.ndarray, lhs: np.ndarray | int, rhs: np.ndarray | int, value: np.ndarray) -> int:
        """Record a run of scalar slots at once; gives the first."""
        first = self.extend(value.size)
        run = slice(first, first + value.size)
        self._opcode[run], self._lhs[run], self._rhs[run], self._value[run] = code, lhs, rhs, value
        return first

    def add_input(self, numbers: np.ndarray) -> int:
        """Record the inputs of one array or scalar; gives the first slot."""
        first = self.push_run(ops.INPUT, 0, 0, np.asarray(numbers, dtype=np.float64).reshape(-1))
        self.input_slots.append((first, int(np.size(numbers))))
        return first

    def add_parameter(self, numbers: np.ndarray) -> int:
        """Record numbers that a replay may change, but that are not differentiated by; gives the first slot."""
        first = self.push_run(ops.INPUT, 0, 0, np.asarray(numbers, dtype=np.float64).reshape(-1))
        self.parameter_slots.append((first, int(np.size(numbers))))
        return first

    def add_block(
        self,
        kind: int,
        code: int,
        shape: tuple[int, ...],
        operands: Sequence[Operand],
        size: int,
        result_strides: tuple[int, ...] = (),
    ) -> tuple[int, np.ndarray]:
        """Record a block of `size` slots; gives its first slot and a view of its values, which the caller fills.

        Parameters
        ----------
        kind : int
            ELEMENTWISE, SUM or MATMUL.
        code : int
            Opcode of an elementwise block, else 0.
        shape : tuple of int
            See `Block`.
        operands : sequence of Operand
            What it reads; their strides have one entry a dimension of `shape` (for MATMUL: rows, columns).
        size : int
            Number of slots.
        result_strides : tuple of int
            For SUM: strides of the result along the dimensions of the operand, 0 where summed.
        """
        first = self.extend(size)
        at = len(self.words)
        if kind == MATMUL:
            m, k, n = shape
            self.words.extend((kind, first, size, k, m, n, -1, 1))
            strides = [operand.strides for operand in operands]
        else:
            walks = [operand.strides for operand in operands] + ([result_strides] if kind == SUM else [])
            shape, strides = collapsed(shape, walks)
            joined = self._joins(kind, first, size, shape, operands, strides)
            self.words.extend((kind, first, size, code, len(shape), len(operands), joined, 1, *shape))
        for operand, walk in zip(operands, strides, strict=False):
            if operand.array is not None:
                self._references.append((len(self.words) + 1, operand.array))
            self.words.extend((operand.mode, operand.base, *walk))
        if kind == SUM:
            self.words.extend(strides[-1])
        if code >= ops.FIRST_USER:
            self.n_user_rows = max(self.n_user_rows, code - ops.FIRST_USER + 1)
        self.block_at.append(at)
        for slot in (first, first + size - 1):
            self._opcode[slot], self._lhs[slot], self._rhs[slot] = ops.BLOCK, at, 0
        return first, self._value[first : first + size]

    def _joins(
        self,
        kind: int,
        first: int,
        size: int,
        shape: tuple[int, ...],
        operands: Sequence[Operand],
        strides: Sequence[tuple[int, ...]],
    ) -> int:
        """Position of the block before, if the new one can be swept together with it (see `tapejit.layout`), or -1."""
        group = self._group
        length = shape[0] if kind == SUM and size == 1 else size if kind == ELEMENTWISE else -1
        fits = (
            len(shape) == 1
            and 0 < length == group.size
            and len(group.firsts) < MAX_JOINED - 1
            and first - group.end <= 4
            and (self._opcode[group.end : first] == ops.CONSTANT).all()
            and all(group.reads(operand, walk[0]) for operand, walk in zip(operands, strides, strict=False))
            and (kind == ELEMENTWISE or operands[0].base in group.firsts)
        )
        joined = self.block_at[-1] if fits else -1
        self.has_joined |= bool(fits)
        if not fits or kind == SUM:
            group = Group(size if kind == ELEMENTWISE and len(shape) == 1 and size > TILE else -1)
        group.firsts.append(first)
        group.end = first + size
        self._group = group
        return joined

    def count_data(self, n_bytes: int) -> None:
        """Count a copy of a passive array that this tape keeps."""
        self._n_data_bytes += n_bytes

    def add_call(self, values: np.ndarray) -> int:
        """Record the results of a call, which sweeps hand to `calls`; gives the first slot. The caller appends the call itself."""
        first = self.push_run(ops.CONSTANT, 0, 0, values)
        self._group = Group(-1)  # Blocks before and after it are not swept together.
        return first

    # What nested transforms need: another tape's slots at the end of this one, and room for kernels to write in.

    def append_tape(self, other: FlatTape, sources: Sequence[tuple[int, np.ndarray]]) -> int:
        """Copy all slots of another tape to the end of this one; slot `s` of it then stands at ``s + shift``, which is returned.

        Parameters
        ----------
        other : FlatTape
            The tape to copy.
        sources : sequence of (first, slots)
            Slots of `other` from `first` on that stand for these slots here: they become copies of them. Its other inputs become constants.
        """
        if other.calls:
            raise UnsupportedError(NOT_NESTED)
        n = other.n_slots
        shift = self.extend(n)
        run = slice(shift, shift + n)
        opcode, lhs, rhs = other.opcode.copy(), other.lhs.astype(np.int64), other.rhs.astype(np.int64)
        inside = other.interior()
        is_block = opcode == ops.BLOCK
        shifted = ~(is_block | inside)
        opcode[inside] = ops.CONSTANT
        opcode[opcode == ops.INPUT] = ops.CONSTANT
        # Slot 0 stays slot 0: it says that there is no operand.
        for operands in (lhs, rhs):
            operands[shifted & (operands != 0)] += shift
            operands[inside] = 0
        for first, slots in sources:
            opcode[first : first + slots.size] = ops.POSITIVE
            lhs[first : first + slots.size] = slots
        lhs[is_block] += len(self.words)
        self._opcode[run], self._lhs[run], self._rhs[run], self._value[run] = opcode, lhs, rhs, other.value
        ends = [*other.block_at[1:], len(other.words)] if len(other.block_at) else []
        for block, at, end in zip(other.blocks(), other.block_at, ends, strict=True):
            self._append_words(other.words[at:end], block, shift)
        self._group = Group(-1)
        self.guards.extend(other.guards, shift)
        self.n_user_rows = max(self.n_user_rows, other.n_user_rows)
        return shift

    def _append_words(self, words: array, block: Block, shift: int) -> None:
        own = len(self.words)
        self.block_at.append(own)
        self.words.extend(words)
        self.words[own + 1] += shift
        self.words[own + 6] = -1  # What were constants between joined blocks may be operations here.
        place = own + HEADER + (0 if block.kind == MATMUL else len(block.shape))
        for operand in block.operands:
            if operand.array is None:
                self.words[place + 1] += shift
            else:
                array = operand.array + np.int32(shift) if operand.mode == TABLE else operand.array
                self._references.append((place + 1, array))
                self.words[place + 1] = array.ctypes.data
            place += 2 + len(operand.strides)

    def room(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The flat arrays with room for `n` more slots, for a kernel to append to; say how many it took with `took_room`."""
        self._check_open(n)
        self.settle()
        self._reserve(self.n_slots + n)
        return self._opcode, self._lhs, self._rhs, self._value

    def took_room(self, n_slots: int, n_user_rows: int = 0) -> None:
        """Count the slots that a kernel has appended."""
        self.n_slots = self._n_settled = n_slots
        self.n_user_rows = max(self.n_user_rows, n_user_rows)
        self._set_limit()

    # Reading.

    def blocks(self) -> list[Block]:
        """The blocks, in order."""
        arrays = dict(self._references)
        return [self._block(at, arrays) for at in self.block_at]

    def _block(self, at: int, arrays: dict[int, np.ndarray]) -> Block:
        words = self.words
        kind, first, size = words[at : at + 3]
        code = 0
        shape: tuple[int, ...]
        if kind == MATMUL:
            k, m, n = words[at + 3 : at + 6]
            shape, ndim, n_operands, place = (m, k, n), 2, 2, at + HEADER
        else:
            code, ndim, n_operands = words[at + 3 : at + 6]
            place = at + HEADER + ndim
            shape = tuple(words[at + HEADER : place])
        operands = []
        for _ in range(n_operands):
            operands.append(
                Operand(
                    words[place], words[place + 1], tuple(words[place + 2 : place + 2 + ndim]), arrays.get(place + 1)
                )
            )
            place += 2 + ndim
        strides = tuple(words[place : place + ndim]) if kind == SUM else ()
        return Block(kind, first, size, code, shape, tuple(operands), strides)

    @property
    def n_inputs(self) -> int:
        """Number of input slots."""
        return sum(size for _, size in self.input_slots)

    @property
    def first_operation(self) -> int:
        """The first slot after the inputs and parameters that stand at the beginning: where sweeps begin."""
        end = 1
        given = sorted([*self.input_slots, *self.parameter_slots]) if self.parameter_slots else self.input_slots
        for first, size in given:
            if first != end:
                break
            end += size
        return end

    def input_index(self) -> np.ndarray:
        """Slot numbers of all inputs in order, (n_inputs,) int64."""
        runs = [np.arange(first, first + size) for first, size in self.input_slots]
        return np.concatenate(runs) if runs else np.zeros(0, np.int64)

    def interior(self) -> np.ndarray:
        """Which slots lie strictly inside a block, (n_slots,) bool."""
        inside = np.zeros(self.n_slots + 1, np.int8)
        for at in self.block_at:
            first, size = self.words[at + 1], self.words[at + 2]
            if size > 2:
                inside[first + 1] += 1
                inside[first + size - 1] -= 1
        return np.cumsum(inside[:-1]).astype(bool)

    def histogram(self) -> dict[str, int]:
        """How many slots each primitive has, most first; a block counts all its slots under its own name in brackets."""
        return histogram(self)

    def __str__(self) -> str:
        return summary(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.n_slots} slots, {self.n_inputs} inputs>"

    def to_string(self, first: int = 20) -> str:
        """The first instructions, one a line.

        Parameters
        ----------
        first : int
            How many.

        Returns
        -------
        str
            ``slot = primitive operands -> value``; a block shows its run of slots.

        Examples
        --------
        >>> import tapejit as tj
        >>> with tj.Tape() as tape:
        ...     x = tape.input(3.0)
        ...     y = x * x + 1.0
        >>> print(tape.to_string())
        %0 = constant -> 0.0
        %1 = input -> 3.0
        %2 = mul %1 %1 -> 9.0
        %3 = constant -> 1.0
        %4 = add %2 %3 -> 10.0
        """
        return listing(self, first)

    # Pickling: names of primitives instead of opcodes, no addresses.

    def __getstate__(self) -> dict:
        if self.calls:
            raise TapeError(
                "a tape with a loop or a checkpointed region cannot be pickled: the functions in it are not on the tape"
            )
        state = {name: getattr(self, name) for name in _PLAIN_STATE}
        opcode, lhs, rhs = self.opcode.copy(), self.lhs.copy(), self.rhs.copy()
        inside = self.interior()
        opcode[inside], lhs[inside], rhs[inside] = (
            ops.CONSTANT,
            0,
            0,
        )  # never written: what lies there is not ours to save
        user = {op.name: op for op in ops.USER[: self.n_user_rows]}
        state.update(opcode=opcode, lhs=lhs, rhs=rhs, value=self.value.copy(), user=user, rows=_table_digest())
        return state

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        if state.pop("rows") != _table_digest():
            raise TapeError(
                "this tape was pickled with another table of primitives (another version of tapejit); record it again with this one"
            )
        codes = {ops.FIRST_USER + i: ops.add_row(op) for i, op in enumerate(state.pop("user").values())}
        FlatTape.__init__(self)
        self._opcode, self._lhs, self._rhs, self._value = (
            state.pop(name) for name in ("opcode", "lhs", "rhs", "value")
        )
        self.n_slots = self._n_settled = self._opcode.size
        self.__dict__.update(state)
        for at, referred in self._references:
            self.words[at] = referred.ctypes.data
        self._renumber(codes)

    def _renumber(self, codes: dict[int, int]) -> None:
        """Put the opcodes that users' primitives have in this process in place of those they had where the tape was pickled."""
        moved = {old: new for old, new in codes.items() if old != new}
        if moved:
            table = np.arange(256, dtype=np.uint8)
            for old, new in moved.items():
                table[old] = new
            self._opcode = table[self._opcode]
            for at in self.block_at:
                if self.words[at] == ELEMENTWISE:
                    self.words[at + 3] = int(table[self.words[at + 3]])
        self.n_user_rows = max((new - ops.FIRST_USER + 1 for new in codes.values()), default=0)


_PLAIN_STATE = (
    "limit",
    "why_closed",
    "max_slots",
    "words",
    "block_at",
    "_references",
    "_n_data_bytes",
    "input_slots",
    "parameter_slots",
    "output_slots",
    "_constants",
    "_group",
    "has_joined",
    "guards",
)


def _table_digest() -> tuple:
    """Names and formulas of the table: what makes opcodes of two processes mean the same."""
    return tuple((op.name, op.value, op.partials) for op in ops.OPS)

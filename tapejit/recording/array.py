"""Active arrays: arrays of slot numbers.

An `Array` is a view (offset, shape, strides) of a `Storage`. While the slots of a storage are a run ``base, base + 1, ...`` it is just
that, so an operation on a million elements touches no index; the first in-place assignment writes the slot numbers out as a table. All
views of one storage share it, so they alias as NumPy's views do.

Structural functions (indexing, reshape, transpose, ...) are NumPy's own. Where they make views they are applied to an array of bytes that is
never read, one byte a slot: address arithmetic gives the new offset and strides. Where they copy, they are applied to the slot numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tapejit import ops
from tapejit.blocks import Operand
from tapejit.errors import PassiveConversionError, ShapeError, TapeError, UnsupportedError
from tapejit.layout import DATA, SLOTS, TABLE
from tapejit.recording.recorder import Tape, innermost, real_array, source_line
from tapejit.recording.variable import Truth, Variable, lift_scalar

__all__ = ["Array", "Storage", "lift_array", "operand_for", "scalar_or_array"]


class Storage:
    """The slots behind an array and all its views: a run from `base`, or a table."""

    __slots__ = ("base", "boolean", "size", "space", "table", "tape")

    def __init__(
        self, tape: Tape, size: int, base: int = 0, table: np.ndarray | None = None, boolean: bool = False
    ) -> None:
        self.tape = tape
        self.size = size
        self.base = base
        self.table = table
        self.boolean = boolean
        self.space: np.ndarray | None = None

    def address_space(self) -> np.ndarray:
        """Memory to do address arithmetic on. Never written, so it costs no pages."""
        if self.space is None:
            self.space = np.empty(self.size, np.int8)
        return self.space

    def materialise(self) -> np.ndarray:
        """The table, written out if need be."""
        if self.table is None:
            self.table = np.arange(self.base, self.base + self.size, dtype=np.int32)
        return self.table


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


class Array:
    """An active array on a tape. Made by `Tape.input`, by NumPy functions of active arrays, and by ``np.zeros(n, like=x)``.

    Attributes
    ----------
    tape : Tape
        Where it is recorded.
    shape : tuple of int
        As in NumPy; so are `ndim`, `size`, `dtype`, `T`.
    """

    __slots__ = ("_offset", "_storage", "_strides", "shape")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self._storage = storage
        self._offset = offset
        self.shape = shape
        self._strides = strides

    @classmethod
    def of_run(cls, tape: Tape, first: int, shape: tuple[int, ...], boolean: bool = False) -> Array:
        """The array of the slots from `first` on, in C order."""
        size = math.prod(shape)
        return cls(Storage(tape, size, first, boolean=boolean), 0, tuple(shape), _c_strides(shape))

    @classmethod
    def of_slots(cls, tape: Tape, slots: np.ndarray, boolean: bool = False) -> Array:
        """The array of given slots; copies them."""
        table = np.array(slots, dtype=np.int32, order="C")
        return cls(Storage(tape, table.size, 0, table.reshape(-1), boolean), 0, table.shape, _c_strides(table.shape))

    # Attributes.

    @property
    def tape(self) -> Tape:
        return self._storage.tape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(bool if self._storage.boolean else np.float64)

    @property
    def T(self) -> Array:
        return self.transpose()

    @property
    def real(self) -> Array:
        return self

    @property
    def flat(self) -> Iterator[Variable]:
        return iter(self.reshape(-1))

    @property
    def value(self) -> np.ndarray:
        """The primals as a new ndarray, those of the last replay if there was one."""
        numbers = self.numbers()
        return numbers.astype(bool) if self._storage.boolean else np.array(numbers)

    @property
    def grad(self) -> np.ndarray:
        """Accumulated gradient of an input, in its shape; zeros before the first `backward`."""
        return self.tape.grad_of(self.slots().reshape(-1).astype(np.int64)).reshape(self.shape)

    def backward(self, seed: Any = None) -> None:
        """Reverse sweep from here; adds to the gradients of the inputs.

        Parameters
        ----------
        seed : array_like
            The adjoint of this array, in its shape; may be left out where the array has one element.
        """
        if seed is None:
            if self.size != 1:
                raise ShapeError(
                    f"backward() from an array of shape {self.shape} needs a seed of that shape, one adjoint per element"
                )
            seed = np.ones(self.shape)
        seeds = real_array(seed, "a seed")
        if seeds.shape != self.shape:
            raise ShapeError(
                f"the seed has shape {seeds.shape}, but the array has shape {self.shape}; pass one adjoint per element"
            )
        self.tape.backward(self.slots().reshape(-1), seeds.reshape(-1))

    # Slots and values.

    def slots(self) -> np.ndarray:
        """Slot numbers, int32, in the shape of the array: a view of the table where there is one."""
        storage = self._storage
        if storage.table is None:
            run = Operand(SLOTS, storage.base + self._offset, self._strides).elements(self.shape)
            return run.astype(np.int32)
        return np.ndarray(self.shape, np.int32, storage.table, 4 * self._offset, tuple(4 * s for s in self._strides))

    def numbers(self) -> np.ndarray:
        """The primals as float64, in place where the slots are a run; not to be written to or kept."""
        storage, tape = self._storage, self.tape
        if storage.table is not None:
            return tape.value[self.slots()]
        if self.size == 0:
            return np.zeros(self.shape)
        tape.settle()
        return np.ndarray(
            self.shape, np.float64, tape._value, 8 * (storage.base + self._offset), tuple(8 * s for s in self._strides)
        )

    def view_space(self) -> np.ndarray:
        """An array of bytes with the offset, shape and strides of this one, for NumPy to make views of."""
        return np.ndarray(self.shape, np.int8, self._storage.address_space(), self._offset, self._strides)

    def of_view(self, view: np.ndarray) -> Array | None:
        """What NumPy made of `view_space`, as an array that shares this one's storage; None if it is a copy."""
        space = self._storage.address_space()
        offset = view.__array_interface__["data"][0] - space.__array_interface__["data"][0]
        if view.base is None or (view.size and not np.may_share_memory(view, space)):
            return None
        if not view.size:
            offset = 0
        return Array(self._storage, offset, view.shape, view.strides)

    def _is_parameter(self) -> bool:
        """Whether this is a part of a parameter."""
        storage = self._storage
        return storage.table is None and any(
            first <= storage.base < first + n for first, n in self.tape.parameter_slots
        )

    def is_whole(self) -> bool:
        """Whether this is all of its storage, in order."""
        return self._offset == 0 and self.size == self._storage.size and self._strides == _c_strides(self.shape)

    # Indexing.

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape[0]))

    def __getitem__(self, key: Any) -> Any:
        if key.__class__ is int and len(self.shape) == 1:
            return self._element(key)
        key = plain_index(key)
        view = self.view_space()[key]
        if isinstance(view, np.ndarray):
            shared = self.of_view(view)
            if shared is not None:
                return shared
            return Array.of_slots(self.tape, self.slots()[key], self._storage.boolean)
        return self._variable(int(self.slots()[key]))

    def _element(self, index: int) -> Variable:
        extent = self.shape[0]
        if not -extent <= index < extent:
            raise IndexError(f"index {index} is out of bounds for axis 0 with size {extent}")
        place = self._offset + (index % extent) * self._strides[0]
        storage = self._storage
        return self._variable(storage.base + place if storage.table is None else int(storage.table[place]))

    def _variable(self, slot: int) -> Variable:
        storage = self._storage
        tape = storage.tape
        return (Truth if storage.boolean else Variable)(tape, slot, tape.value_at(slot))

    def __setitem__(self, key: Any, new: Any) -> None:
        storage = self._storage
        tape = storage.tape
        if is_active(new) and innermost((self, *actives(new))) is not tape:
            raise TapeError(
                f"a value of an inner tape is stored into an array of an outer one ({source_line()}); allocate the array inside the "
                "function that is differentiated"
            )
        if any(stride == 0 and extent > 1 for stride, extent in zip(self._strides, self.shape, strict=True)):
            raise ValueError("assignment destination is read-only")
        if storage.boolean and not is_boolean(new):
            new = np.not_equal(new, 0.0)
        source = lift_array(tape, new)
        if (
            isinstance(key, (slice, type(Ellipsis)))
            and key in (..., slice(None))
            and self.is_whole()
            and source.shape == self.shape
        ):
            other = source._storage
            if other.table is None and source._strides == _c_strides(source.shape):
                # The whole array anew: take over the run. Views see it, as they share the storage.
                storage.base, storage.table = other.base + source._offset, None
                return
        slots = source.slots()
        storage.materialise()
        self.slots()[plain_index(key)] = slots

    def item(self, *index: Any) -> Variable:
        """One element as a scalar."""
        if not index:
            if self.size != 1:
                raise ValueError("can only convert an array of size 1 to a Python scalar")
            return self.reshape(-1)[0]
        if len(index) == 1 and not isinstance(index[0], tuple):
            return self.reshape(-1)[index[0]]
        return self[index[0] if len(index) == 1 else index]

    # Conversions that would lose the derivative.

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                "the truth value of an array with more than one element is ambiguous; use np.any or np.all"
            )
        return bool(self.item())

    def __float__(self) -> float:
        if self.size != 1:
            raise TypeError("only arrays of size 1 can be converted to Python scalars")
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.ndim:
            raise TypeError("only integer scalar arrays can be converted to a scalar index")
        return self.item().__index__()

    def __repr__(self) -> str:
        return f"Array({np.array2string(self.value, separator=', ', prefix='Array(')})"

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        from tapejit.recording.numpy_rules import call_ufunc

        return call_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from tapejit.recording.numpy_rules import call_function

        return call_function(function, args, kwargs, like=self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """What ``np.asarray(x)`` gives: an object array of the elements, read-only because it would not alias this one.

        Booleans become plain ones: a decision, as in an index of a plain array.
        """
        if self._storage.boolean:
            return decided(self) if dtype is None else decided(self).astype(dtype)
        if self.tape.tries_parameters and self._is_parameter():
            raise UnsupportedError(
                f"np.asarray of a parameter gives an object array, which records one slot an element ({source_line()}); leave it out"
            )
        if dtype is not None and np.dtype(dtype) != object:
            raise PassiveConversionError(
                f"an active array is being turned into a plain one of dtype {np.dtype(dtype)}, which would drop its derivative "
                f"({source_line()}): a float array cannot hold active values, so allocate with np.zeros(n, like=x) instead of "
                "np.zeros(n), and leave out conversions to float; or tj.value(x) for the plain numbers"
            )
        elements = np.empty(self.shape, dtype=object)
        elements.reshape(-1)[...] = list(self.flat)
        elements.flags.writeable = False
        return elements

    # Methods that are not functions of NumPy under the same name.

    def astype(self, dtype: Any, copy: bool = True, **kwargs: Any) -> Array:
        if np.dtype(dtype) != np.float64:
            raise UnsupportedError(
                f"active arrays are float64; astype({np.dtype(dtype)}) would change their values ({source_line()})"
            )
        if self._storage.boolean:
            return Array(_copied(self), 0, self.shape, _c_strides(self.shape))._as_float()
        return self.copy() if copy else self

    def _as_float(self) -> Array:
        self._storage.boolean = False
        return self

    def copy(self, order: str = "C") -> Array:
        return Array(_copied(self), 0, self.shape, _c_strides(self.shape))

    def __copy__(self) -> Array:
        return self.copy()

    def __deepcopy__(self, memo: dict) -> Array:
        return self.copy()

    def flatten(self, order: str = "C") -> Any:
        return np.ravel(self, order=order).copy()

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        return np.reshape(self, shape[0] if len(shape) == 1 else shape, order=order)

    def transpose(self, *axes: Any) -> Any:
        return np.transpose(self, axes[0] if len(axes) == 1 else axes or None)

    def fill(self, number: Any) -> None:
        self[...] = number

    def conjugate(self) -> Array:
        return self

    conj = conjugate

    def tolist(self) -> Any:
        """Nested lists of variables."""
        if not self.shape:
            return self.item()
        return [self[i].tolist() if self.ndim > 1 else self[i] for i in range(len(self))]

    def __iadd__(self, other: Any) -> Array:
        return _in_place(self, np.add, other)

    def __isub__(self, other: Any) -> Array:
        return _in_place(self, np.subtract, other)

    def __imul__(self, other: Any) -> Array:
        return _in_place(self, np.multiply, other)

    def __itruediv__(self, other: Any) -> Array:
        return _in_place(self, np.divide, other)

    def __ipow__(self, other: Any) -> Array:
        self[...] = _fitting(self, self**other)
        return self

    def __ifloordiv__(self, other: Any) -> Array:
        return _in_place(self, np.floor_divide, other)

    def __imod__(self, other: Any) -> Array:
        return _in_place(self, np.remainder, other)

    def __iand__(self, other: Any) -> Array:
        return _in_place(self, np.bitwise_and, other)

    def __ior__(self, other: Any) -> Array:
        return _in_place(self, np.bitwise_or, other)

    def __ixor__(self, other: Any) -> Array:
        return _in_place(self, np.bitwise_xor, other)

    def __imatmul__(self, other: Any) -> Array:
        return _in_place(self, np.matmul, other)


def _in_place(array: Array, ufunc: np.ufunc, other: Any) -> Array:
    array[...] = _fitting(array, ufunc(array, other))
    return array


def _fitting(array: Array, result: Any) -> Any:
    if is_boolean(array) and not is_boolean(result):
        raise TypeError("a result of dtype float64 cannot be stored in place into an array of dtype bool")
    if np.shape(result) != array.shape:
        raise ValueError(
            f"non-broadcastable output operand with shape {array.shape} doesn't match the broadcast shape {np.shape(result)}"
        )
    return result


def _copied(array: Array) -> Storage:
    storage = array._storage
    if storage.table is None and array._strides == _c_strides(array.shape):
        return Storage(storage.tape, array.size, storage.base + array._offset, boolean=storage.boolean)
    return Storage(storage.tape, array.size, 0, np.array(array.slots(), order="C").reshape(-1), storage.boolean)


def scalar_or_array(tape: Tape, first: int, shape: tuple[int, ...], boolean: bool = False) -> Any:
    """The slots from `first` on as an array, or as a scalar if the shape is (), as NumPy returns one."""
    if shape:
        return Array.of_run(tape, first, shape, boolean)
    return (Truth if boolean else Variable)(tape, first, tape.value_at(first))


# What is active, and how anything becomes an array of a tape.


def is_active(x: Any) -> bool:
    """Whether `x` is active, or a list, tuple or object array that holds active values."""
    if isinstance(x, (Variable, Array)):
        return True
    if isinstance(x, np.ndarray):
        return x.dtype == object and any(is_active(element) for element in x.reshape(-1))
    return isinstance(x, (list, tuple)) and any(is_active(element) for element in x)


def is_boolean(x: Any) -> bool:
    """Whether `x` is a truth value or an array of them, active or not."""
    if isinstance(x, (Variable, Array, np.ndarray, np.generic)):
        return x.dtype == bool
    return isinstance(x, bool) or (
        isinstance(x, (list, tuple)) and len(x) > 0 and all(is_boolean(element) for element in x)
    )


def actives(x: Any) -> list[Variable | Array]:
    """The active values in `x`."""
    if isinstance(x, (Variable, Array)):
        return [x]
    if isinstance(x, np.ndarray) and x.dtype == object:
        x = list(x.reshape(-1))
    return [found for element in x for found in actives(element)] if isinstance(x, (list, tuple)) else []


def refuse_special(x: Any) -> None:
    """Raise UnsupportedError for kinds of ndarray whose meaning the slots would lose: masks, and the products of matrices."""
    if isinstance(x, (np.ma.MaskedArray, np.matrix)):
        raise UnsupportedError(
            f"{type(x).__name__} and active values do not mix ({source_line()}); pass x.filled(...) or np.asarray(x) and write np.where or @"
        )


def lift_array(tape: Tape, x: Any) -> Array:
    """Anything array-like as an array of slots of this tape; plain numbers become constants.

    Raises
    ------
    UnsupportedError
        If it holds something that is not a real number.
    """
    if isinstance(x, Array):
        if x.tape is tape:
            return x
        # An array of a tape around this one: constants here, linked to where they came from.
        if innermost((x, Variable(tape, 0, 0.0))) is not tape:
            raise TapeError(
                f"a value of an inner tape is used on an outer one ({source_line()}); return it from the inner function"
            )
        slots = x.slots()
        return Array.of_run(tape, tape.link(x.tape, slots) if slots.size else 0, x.shape, x._storage.boolean)
    if isinstance(x, Variable):
        return Array.of_run(tape, lift_scalar(tape, x).slot, (), isinstance(x, Truth))
    if isinstance(x, (list, tuple)) and is_active(x):
        return _stacked(tape, [lift_array(tape, element) for element in x])
    refuse_special(x)
    numbers = x if isinstance(x, np.ndarray) else np.asarray(x)
    if numbers.dtype == object:
        slots = np.array([lift_scalar(tape, element).slot for element in numbers.reshape(-1)], dtype=np.int32)
        return Array.of_slots(tape, slots.reshape(numbers.shape))
    if numbers.dtype.kind not in "fiub":
        raise UnsupportedError(f"active values are real, got an array of dtype {numbers.dtype} ({source_line()})")
    if numbers.size == 1:
        return Array.of_run(tape, tape.constant(float(numbers.reshape(-1)[0])), numbers.shape)
    plain = numbers.astype(np.float64)
    return Array.of_run(tape, tape.push_run(ops.CONSTANT, 0, 0, plain.reshape(-1)) if plain.size else 0, plain.shape)


def _stacked(tape: Tape, parts: Sequence[Array]) -> Array:
    if len({part.shape for part in parts}) > 1:
        raise ShapeError(
            f"a list of active values has parts of different shapes ({', '.join(str(part.shape) for part in parts[:4])}); give them one shape"
        )
    return Array.of_slots(tape, np.stack([part.slots() for part in parts]))


def operand_for(tape: Tape, x: Any, shape: tuple[int, ...]) -> Operand:
    """How a block reads `x`, broadcast to `shape`."""
    if isinstance(x, Array):
        array = x if x.tape is tape else lift_array(tape, x)
        storage = array._storage
        if storage.table is None:
            return Operand(SLOTS, storage.base + array._offset, _broadcast(array.shape, array._strides, shape))
        # A snapshot: a later in-place assignment must not change what this block reads.
        table = np.array(array.slots(), order="C")
        return Operand(TABLE, table.ctypes.data, _broadcast(table.shape, _c_strides(table.shape), shape), table)
    if isinstance(x, np.ndarray) and x.ndim:
        data = tape.data_for_block(x)
        strides = tuple(stride // 8 for stride in data.strides)
        return Operand(DATA, data.ctypes.data, _broadcast(data.shape, strides, shape), data)
    if isinstance(x, Variable):
        return Operand(SLOTS, lift_scalar(tape, x).slot, (0,) * len(shape))
    number = tape.number_for_block(float(x))
    return Operand(DATA, number.ctypes.data, (0,) * len(shape), number)


def _broadcast(shape: tuple[int, ...], strides: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    missing = len(target) - len(shape)
    walk = [
        0 if extent == 1 and wide != 1 else s for extent, s, wide in zip(shape, strides, target[missing:], strict=True)
    ]
    return (0,) * missing + tuple(walk)


def plain_index(key: Any) -> Any:
    """An index without active values: booleans and integers in it become decisions that a replay must find again."""
    if isinstance(key, tuple):
        return tuple(plain_index(part) for part in key)
    if isinstance(key, Array):
        if key._storage.boolean:
            return decided(key)
        raise PassiveConversionError(
            f"an active array is used as an index ({source_line()}); say how it is rounded and that it is plain: "
            "np.floor(tj.value(i)).astype(int)"
        )
    if isinstance(key, Truth):
        return bool(key)
    if isinstance(key, Variable):
        return key.__index__()
    return key


def decided(truth: Array) -> np.ndarray:
    """The booleans of an active comparison, as decisions."""
    numbers = np.array(truth.numbers())
    if numbers.size:
        truth.tape.guard(truth.slots().reshape(-1).tolist(), numbers.reshape(-1).tolist())
    return numbers.astype(bool)


def _install_methods() -> None:
    """Operators are NumPy's ufuncs, and most methods are NumPy's functions."""
    binary = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "truediv": np.divide,
        "mod": np.remainder,
        "floordiv": np.floor_divide,
        "matmul": np.matmul,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    for name, ufunc in binary.items():
        setattr(Array, f"__{name}__", _operator(ufunc))
        setattr(Array, f"__r{name}__", _operator(ufunc, swapped=True))
    for name, ufunc in {
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "eq": np.equal,
        "ne": np.not_equal,
    }.items():
        setattr(Array, f"__{name}__", _operator(ufunc))
    for name, ufunc in {"neg": np.negative, "pos": np.positive, "abs": np.absolute, "invert": np.invert}.items():
        setattr(Array, f"__{name}__", lambda self, ufunc=ufunc: ufunc(self))
    Array.__divmod__ = lambda self, other: (self // other, self % other)  # type: ignore[operator]
    Array.__rdivmod__ = lambda self, other: (other // self, other % self)  # type: ignore[attr-defined]
    for name in _FUNCTION_METHODS:
        setattr(Array, name, _method(getattr(np, name)))


def _operator(ufunc: np.ufunc, swapped: bool = False) -> Callable:
    def method(self: Array, other: Any) -> Any:
        return ufunc(other, self) if swapped else ufunc(self, other)

    return method


def _method(function: Callable) -> Callable:
    def method(self: Array, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    method.__name__ = method.__qualname__ = function.__name__
    method.__doc__ = f"``np.{function.__name__}(self, ...)``."
    return method


_FUNCTION_METHODS = (
    "sum prod mean var std max min argmax argmin argsort cumsum cumprod dot clip ravel squeeze swapaxes diagonal trace repeat take all any "
    "round nonzero searchsorted"
).split()


def _power(self: Array, exponent: Any) -> Any:
    from tapejit.recording.numpy_rules import array_power

    return array_power(self, exponent)


Array.__pow__ = _power  # type: ignore[operator]
Array.__rpow__ = _operator(np.power, swapped=True)  # type: ignore[attr-defined]
_install_methods()

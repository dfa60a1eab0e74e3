"""Nested states: tuples, lists and dicts of numbers and arrays, as one flat vector of floats and a list of everything else.

Floats and float64 arrays are what a loop differentiates. All else (integers, booleans, strings, None, index arrays) is *static*: carried along
as it is. What a step gives may hold nothing else: floats inside of an object that is not looked into would lose their derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from tapejit.errors import ShapeError
from tapejit.recording.array import Array, decided, is_active
from tapejit.recording.numpy_rules import plain_value
from tapejit.recording.recorder import Tape
from tapejit.recording.variable import Truth, Variable

__all__ = ["Leaf", "Structure", "active_leaf", "parts_of", "plain_copy", "plain_of", "without_decisions"]


@dataclass(frozen=True)
class Leaf:
    """A float or an array of floats: its path, as in ``state['x'][0]``, its shape (None of a number), and where it begins in the vector."""

    path: str
    shape: tuple[int, ...] | None
    start: int

    @property
    def size(self) -> int:
        return 1 if self.shape is None else int(np.prod(self.shape, dtype=np.int64))


_STATIC = (Truth, bool, int, str, bytes, np.bool_, np.integer, np.datetime64, np.timedelta64, Enum)


class Structure:
    """What a nested value looks like; made from one, and compared with others.

    Parameters
    ----------
    x : nested value
    name : str
        What errors call it.
    is_result : bool
        Whether steps give it, so that everything in it must be known to hold no floats, or be looked into.

    Attributes
    ----------
    leaves : list of Leaf
    size : int
        Floats in all.

    Examples
    --------
    >>> import numpy as np
    >>> from tapejit.checkpointing.structures import Structure
    >>> structure = Structure({"x": np.zeros(3), "n": 7, "v": (1.0, 2.0)}, "state")
    >>> [leaf.path for leaf in structure.leaves], structure.size
    (["state['x']", "state['v'][0]", "state['v'][1]"], 5)
    """

    def __init__(self, x: Any, name: str, is_result: bool = True) -> None:
        self.name, self.is_result = name, is_result
        self.leaves: list[Leaf] = []
        self.size = 0
        self.n_static = 0
        self._spec = self._described(x, name, self._add)

    def _add(self, shape: tuple[int, ...] | None, path: str) -> None:
        leaf = Leaf(path, shape, self.size)
        self.leaves.append(leaf)
        self.size += leaf.size

    def _described(self, x: Any, path: str, add: Callable[[tuple[int, ...] | None, str], None]) -> tuple:
        if _is_container(x):
            children = [
                self._described(part, f"{path}[{key!r}]", add) for key, part in zip(_keys(x), parts_of(x), strict=True)
            ]
            return (type(x), tuple(_keys(x)), *children)
        kind = _kind(x, path)
        if kind is None:
            self._check_static(x, path)
            self.n_static += 1
            return ("static",)
        add(kind[0], path)
        return ("float", kind[0])

    def parts(self, x: Any, what: str) -> tuple[list[Any], list[Any]]:
        """The floats and the static parts of another value of this structure.

        Raises
        ------
        ShapeError
            Names the first part that differs.
        """
        floats: list[Any] = []
        static: list[Any] = []
        self._collect(self._spec, x, self.name, what, floats, static)
        return floats, static

    def _collect(self, spec: tuple, x: Any, path: str, what: str, floats: list, static: list) -> None:
        is_container = _is_container(x)
        if is_container != isinstance(spec[0], type) or (is_container and (type(x), tuple(_keys(x))) != spec[:2]):
            raise ShapeError(
                f"{path} {what}: it began as {_in_words(spec)}, now it is {_described_in_words(x)}; keep its structure"
            )
        if is_container:
            for key, part, child in zip(_keys(x), parts_of(x), spec[2:], strict=True):
                self._collect(child, part, f"{path}[{key!r}]", what, floats, static)
            return
        kind = _kind(x, path)
        if (kind is None) != (spec[0] == "static") or (kind is not None and kind[0] != spec[1]):
            raise ShapeError(
                f"{path} {what}: it began as {_in_words(spec)}, now it is {_described_in_words(x)}; keep its shape and dtype"
            )
        if kind is None:
            self._check_static(x, path)
            static.append(x)
        else:
            floats.append(x)

    def _check_static(self, x: Any, path: str) -> None:
        is_known = x is None or isinstance(x, (*_STATIC, Array)) or (isinstance(x, np.ndarray) and x.dtype.kind != "O")
        if self.is_result and not is_known:
            raise ShapeError(
                f"{path} is of type {type(x).__name__}, and floats in it would lose their derivatives; use a tuple, list, dict or named tuple of "
                "floats, float64 arrays, integers, booleans and strings"
            )

    def flat(self, x: Any, what: str = "") -> tuple[np.ndarray, list[Any]]:
        """The floats of a value as one vector, (size,), their primals where they are active; and its static parts."""
        floats, static = self.parts(x, what)
        return self.vector(floats), static

    def vector(self, floats: Sequence[Any]) -> np.ndarray:
        """The leaves as one vector; of active ones their primals."""
        vector = np.empty(self.size)
        for leaf, number in zip(self.leaves, floats, strict=True):
            part = plain_value(number) if is_active(number) else number
            vector[leaf.start : leaf.start + leaf.size] = np.reshape(part, -1)
        return vector

    def build(self, take: Callable[[Leaf], Any], static: Sequence[Any]) -> Any:
        """A value of this structure with these leaves and static parts."""
        return _built(self._spec, iter(self.leaves), take, iter(static))

    def numbers(self, vector: np.ndarray, static: Sequence[Any], writable: bool = True) -> Any:
        """A value of plain numbers, with arrays of its own."""

        def take(leaf: Leaf) -> Any:
            if leaf.shape is None:
                return float(vector[leaf.start])
            array = vector[leaf.start : leaf.start + leaf.size].reshape(leaf.shape).copy()
            array.flags.writeable = writable
            return array

        return self.build(take, [plain_copy(part) for part in static])


def _built(spec: tuple, leaves: Iterator[Leaf], take: Callable[[Leaf], Any], static: Iterator[Any]) -> Any:
    # No function inside of `build`: one that calls itself is a cycle of references, which would keep the tape of a step alive.
    if spec[0] == "static":
        return next(static)
    if spec[0] == "float":
        return take(next(leaves))
    parts = [_built(child, leaves, take, static) for child in spec[2:]]
    if issubclass(spec[0], dict):
        return dict(zip(spec[1], parts, strict=True))
    return spec[0](*parts) if hasattr(spec[0], "_fields") else spec[0](parts)


def active_leaf(tape: Tape, first: int, leaf: Leaf) -> Any:
    """A leaf that stands on a tape; `first` is the slot of the whole vector."""
    if leaf.shape is None:
        return Variable(tape, first + leaf.start, tape.value_at(first + leaf.start))
    return Array.of_run(tape, first + leaf.start, leaf.shape) if leaf.size else np.zeros(leaf.shape)


def plain_of(x: Any) -> Any:
    """A nested value with plain numbers for active ones."""
    if isinstance(x, dict):
        return {key: plain_of(part) for key, part in x.items()}
    if type(x) in (list, tuple) or hasattr(x, "_fields"):
        parts = [plain_of(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return plain_value(x) if is_active(x) else x


def without_decisions(x: Any) -> Any:
    """A static part as plain booleans; a replay in which an active one would be another takes another branch."""
    if isinstance(x, Truth):
        return bool(x)
    return decided(x) if isinstance(x, Array) else x


def plain_copy(x: Any) -> Any:
    """A static part for somebody who may change it."""
    return x.copy() if isinstance(x, np.ndarray) else x


def parts_of(x: Any) -> list[Any]:
    return list(x.values()) if isinstance(x, dict) else list(x)


def _keys(x: Any) -> list[Any]:
    return list(x) if isinstance(x, dict) else list(range(len(x)))


def _is_container(x: Any) -> bool:
    return type(x) in (tuple, list, dict) or (isinstance(x, tuple) and hasattr(x, "_fields"))


def _kind(x: Any, path: str) -> tuple[tuple[int, ...] | None] | None:
    """The shape of a leaf in a tuple, None for a number; or None for what is static."""
    if isinstance(x, (Truth, bool, np.bool_)) or x is None:
        return None
    if isinstance(x, (Variable, float)):
        return (None,)
    if isinstance(x, Array):
        return None if x.dtype == bool else (x.shape or None,)
    if isinstance(x, np.ndarray):
        if x.dtype == np.float64 or (x.dtype == object and is_active(x)):
            return (x.shape or None,)
        if x.dtype.kind in "fc":
            raise ShapeError(f"{path} has dtype {x.dtype}; tapejit computes in float64: pass {path}.astype(float)")
    if isinstance(x, (np.floating, np.complexfloating, complex)):
        raise ShapeError(f"{path} is a {type(x).__name__}; tapejit computes in float64: pass a float")
    return None


def _in_words(spec: tuple) -> str:
    if spec[0] == "static":
        return "something that is not differentiated (an integer, say)"
    if spec[0] == "float":
        return "a float" if spec[1] is None else f"a float64 array of shape {spec[1]}"
    return f"a {spec[0].__name__} of {len(spec[1])}" + (f" with keys {spec[1]}" if issubclass(spec[0], dict) else "")


def _described_in_words(x: Any) -> str:
    if _is_container(x):
        return f"a {type(x).__name__} of {len(x)}" + (f" with keys {tuple(x)}" if isinstance(x, dict) else "")
    if isinstance(x, (Variable, float)) and not isinstance(x, Truth):
        return "a float"
    if isinstance(x, (Array, np.ndarray)):
        return f"a {x.dtype} array of shape {x.shape}"
    return f"{type(x).__name__} {x!r}"

"""Arguments of a recording that are not differentiated: the numbers in them that a replay may change, and what the rest is compared by.

Floats and arrays of float64 are *parameters*, also inside of lists, tuples and dicts. Everything else is *static*: compared by value. Compiled
functions take active values in tuples only, so lists and dicts that are passed to them are static as a whole.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tapejit
from tapejit.errors import UnsupportedError
from tapejit.recording.array import Array
from tapejit.recording.recorder import Tape, source_line
from tapejit.recording.variable import Variable

__all__ = ["frozen", "handed", "key_with_parameters", "on_tape", "parameter_numbers", "static_key"]


_OWN_CODE = tuple(str(Path(str(module.__file__)).resolve().parent) + os.sep for module in (tapejit, np))


_ASKING = {"isinstance", "__class__"}


def _asked_class(x: Variable | Array, kind: type) -> type:
    """The class of a parameter, for whoever may know that it is no plain number."""
    if x.tape.tries_parameters:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_name == "__instancecheck__":
            frame = frame.f_back  # of an abstract class
        code = frame.f_code
        # NumPy's compiled dispatch asks too, in the name of the function that called it.
        asks = not _ASKING.isdisjoint(code.co_names) and not code.co_filename.startswith(_OWN_CODE)
        if asks or code.co_name == "isscalar":
            raise UnsupportedError(
                f"the type of a parameter is asked for ({source_line()}), which is {kind.__name__} while it is recorded"
            )
    return kind


class ParameterVariable(Variable):
    """A float that a replay may change. ``isinstance`` of it is refused: plain code that asks for a float would take another path."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return _asked_class(self, Variable)


class ParameterArray(Array):
    """An array that a replay may change; see `ParameterVariable`."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return _asked_class(self, Array)


def is_parameter(x: Any) -> bool:
    """Whether `x` is a float or an array of float64; other precisions compute otherwise than a tape does."""
    return type(x) in (float, np.float64) or (type(x) is np.ndarray and x.dtype == np.float64 and x.size > 0)


def _is_entered(x: Any, native: bool) -> bool:
    """Whether a container may hold parameters."""
    return type(x) is tuple or (not native and (type(x) in (list, dict) or _is_named(x)))


def _is_named(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(x, "_fields")


def _like(x: Any, parts: list) -> Any:
    """A container with other contents."""
    if isinstance(x, dict):
        return dict(zip(x, parts, strict=True))
    return type(x)(*parts) if _is_named(x) else type(x)(parts)


def _parts(x: Any) -> list:
    return list(x.values()) if isinstance(x, dict) else list(x)


def rebuilt(x: Any, take: Callable[[Any], Any], native: bool) -> Any:
    """`x` with `take(part)` in the place of every parameter, in order."""
    if is_parameter(x):
        return take(x)
    if _is_entered(x, native):
        return _like(x, [rebuilt(part, take, native) for part in _parts(x)])
    return handed(x)


def parameter_numbers(x: Any, native: bool) -> list:
    """The parameters in an argument, in the order of their slots."""
    found: list = []
    rebuilt(x, found.append, native)
    return found


def on_tape(tape: Tape, x: Any, native: bool) -> Any:
    """An argument with its parameters on a tape, in one run of slots."""
    numbers = parameter_numbers(x, native)
    if not numbers:
        return handed(x)
    flat = np.reshape(numbers[0], -1) if len(numbers) == 1 else np.concatenate([np.reshape(n, -1) for n in numbers])
    slot = tape.add_parameter(flat)

    def active(number: Any) -> Variable | Array:
        nonlocal slot
        first, slot = slot, slot + np.size(number)
        if np.ndim(number):
            return (Array if native else ParameterArray).of_run(tape, first, number.shape)
        return (Variable if native else ParameterVariable)(tape, first, float(number))

    return rebuilt(x, active, native)


def write_parameters(tape: Tape, numbers: list, value: np.ndarray) -> None:
    """Write parameters into an array of values of the tape that `on_tape` has put them on."""
    if not numbers:
        return
    at = tape.parameter_slots[0][0]
    for number in numbers:
        if np.ndim(number):
            value[at : at + number.size].reshape(number.shape)[...] = number
            at += number.size
        else:
            value[at] = number
            at += 1


def key_with_parameters(x: Any, native: bool) -> Any:
    """An argument as something to compare by value, in which parameters count by their shape alone."""
    if is_parameter(x):
        return ("parameter", type(x) is np.ndarray, np.shape(x))
    if _is_entered(x, native):
        names = tuple(repr(name) for name in x) if isinstance(x, dict) else ()
        return (type(x).__name__, names, *(key_with_parameters(part, native) for part in _parts(x)))
    return static_key(x)


# Static arguments.


def frozen(x: Any) -> Any:
    """An argument as it is now: its arrays are copied, and read-only, so that a recording made later sees the same."""
    if isinstance(x, np.ndarray):
        copied = x.copy()
        copied.flags.writeable = False
        return copied
    if type(x) in (list, tuple, dict) or _is_named(x):
        return _like(x, [frozen(part) for part in _parts(x)])
    return x


def handed(x: Any) -> Any:
    """A static argument for the function: its lists and dicts are new ones, which it may change."""
    if type(x) in (list, tuple, dict) or _is_named(x):
        return _like(x, [handed(part) for part in _parts(x)])
    return x


def thawed(x: Any) -> Any:
    """An argument of which everything may be changed."""
    if isinstance(x, np.ndarray):
        return x.copy()
    return _like(x, [thawed(part) for part in _parts(x)]) if type(x) in (list, tuple, dict) or _is_named(x) else x


class _Same:
    """A static argument that cannot be compared by value: equal to itself only. Kept alive, so that its id is not used again."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.x is self.x

    def __hash__(self) -> int:
        return id(self.x)


def static_key(x: Any) -> Any:
    """A static argument as something to compare by value."""
    if isinstance(x, np.ndarray):
        if x.dtype.hasobject:
            return ("ndarray", x.dtype.str, x.shape, *(static_key(element) for element in x.reshape(-1).tolist()))
        return ("ndarray", x.dtype.str, x.shape, x.tobytes())
    if isinstance(x, (list, tuple)):
        return (type(x).__name__, *(static_key(element) for element in x))
    if isinstance(x, dict):
        return ("dict", *sorted((repr(key), static_key(given)) for key, given in x.items()))
    if isinstance(x, (int, float, complex, str, bytes, bool, type(None), np.generic)):
        return (type(x).__name__, repr(x))
    if callable(x):
        return _Same(x)  # a pickle names a function, it does not say what it computes
    try:
        return ("pickle", type(x).__name__, pickle.dumps(x))
    except (pickle.PicklingError, AttributeError, TypeError):
        return _Same(x)

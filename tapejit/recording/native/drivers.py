"""Drivers: compiled functions with plain arguments that call an active version and take its result apart.

A driver is generated for each combination of argument types. Numba's wrapper of it is called directly, with the types that it was compiled for:
arrays of cells are NumPy records to NumPy and arrays of active numbers to compiled code.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import errors
from numba.core.dispatcher import Dispatcher
from numba.extending import overload

from tapejit.recording.native import push, scalars, session  # noqa: F401  (their registrations)
from tapejit.recording.native.active import ActiveBool, ActiveFloat, active_float, is_active, is_active_array
from tapejit.recording.native.caching import digest, driver_cache, wants_cache
from tapejit.recording.native.versions import active_version

__all__ = ["Driver", "driver_for"]


@dataclass
class Driver:
    """A compiled driver: call `entry` with one cell or plain argument for each leaf."""

    entry: Callable
    dispatcher: Dispatcher


_drivers: weakref.WeakKeyDictionary[Dispatcher, dict[tuple, Driver]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def driver_for(f: Dispatcher, structure: Sequence[Any], named: dict[str, Any], kinds: Sequence[types.Type]) -> Driver:
    """The driver of a function for these arguments, compiled at the first call.

    Parameters
    ----------
    f : Dispatcher
    structure : sequence
        The positional arguments: numbers of leaves, tuples of them, dispatchers.
    named : dict
        The same for keyword arguments.
    kinds : sequence of numba types
        The type of each leaf; an active scalar is passed as an array of one cell.
    """
    key = (tuple(structure), tuple(named.items()), tuple(kinds))
    with _lock:
        drivers = _drivers.setdefault(f, {})
        if key not in drivers:
            drivers[key] = _compiled(f, structure, named, kinds)
        return drivers[key]


def _compiled(f: Dispatcher, structure: Sequence[Any], named: dict[str, Any], kinds: Sequence[types.Type]) -> Driver:
    push.install(session._CALLBACK_ADDRESS)
    namespace: dict[str, Any] = {"__name__": __name__, "f": active_version(f), "taken_apart": taken_apart}

    def text(part: Any) -> str:
        if isinstance(part, Dispatcher):
            name = f"g{len(namespace)}"
            namespace[name] = active_version(part)
            return name
        if isinstance(part, tuple):
            return "(" + "".join(f"{text(item)}, " for item in part) + ")"
        return f"a{part}[0]" if isinstance(kinds[part], ActiveFloat) else f"a{part}"

    arguments = [text(part) for part in structure] + [f"{name}={text(part)}" for name, part in named.items()]
    parameters = ", ".join(f"a{i}" for i in range(len(kinds)))
    source = f"def driver({parameters}):\n    return taken_apart(f({', '.join(arguments)}))\n"
    exec(compile(source, f"<tapejit driver of {f.py_func.__name__}>", "exec"), namespace)
    driver = numba.njit(nogil=bool(f.targetoptions.get("nogil")))(namespace["driver"])
    if wants_cache(f) and (name := digest([f, *_functions_in(structure, named)], source)) is not None:
        driver._cache = driver_cache(namespace["driver"], name) or driver._cache
    passed = tuple(types.Array(active_float, 1, "C") if isinstance(kind, ActiveFloat) else kind for kind in kinds)
    driver.compile(passed)
    return Driver(driver.overloads[passed].entry_point, driver)


def _functions_in(structure: Any, named: dict[str, Any]) -> list[Dispatcher]:
    """The functions among the arguments."""
    if isinstance(structure, Dispatcher):
        return [structure]
    if isinstance(structure, (tuple, list)):
        return [f for part in (*structure, *named.values()) for f in _functions_in(part, {})]
    return []


def taken_apart(result):
    """A result without active types: numbers and arrays come with their words. Two entries that are None tell them from a user's tuple."""
    raise NotImplementedError("for compiled code only")


@overload(taken_apart)
def _taken_apart(result):
    if isinstance(result, ActiveFloat):
        return lambda result: (result._value, result._word, None, None)
    if isinstance(result, ActiveBool):
        return lambda result: bool(result)
    if is_active_array(result):
        return _array_apart
    if isinstance(result, (types.List, types.ListType)) and isinstance(result.dtype, ActiveFloat):
        return _list_apart
    if isinstance(result, types.BaseTuple) and is_active(result):
        items = "".join(f"taken_apart(result[{i}]), " for i in range(len(result)))
        namespace = {"taken_apart": taken_apart}
        exec(f"def parts(result):\n    return ({items})\n", namespace)
        return namespace["parts"]
    if is_active(result):
        raise errors.TypingError(
            f"a compiled function that is differentiated returns {result}; return a number, an array or a tuple of them"
        )
    return lambda result: result


def _array_apart(result):
    values = np.empty(result.shape, np.float64)
    words = np.empty(result.shape, np.int64)
    for index, number in np.ndenumerate(result):
        values[index] = number._value
        words[index] = number._word
    return values, words, None, None


def _list_apart(result):
    values = np.empty(len(result), np.float64)
    words = np.empty(len(result), np.int64)
    for i in range(len(result)):
        values[i] = result[i]._value
        words[i] = result[i]._word
    return values, words, None, None

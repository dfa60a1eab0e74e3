"""What native recording refuses, in words: Numba's typing errors become errors that say what was wrong and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from numba import types
from numba.core import errors
from numba.core.dispatcher import Dispatcher

from tapejit.errors import PassiveConversionError, TapejitError, UnsupportedError, from_signal_handler
from tapejit.recording.native.versions import plain_type

__all__ = ["refuse_function", "translated"]

_CALL = re.compile(
    r"No implementation of function Function\((?:<built-in function (?P<builtin>\w+)>|<function (?P<function>\w+)[^>]*>|"
    r"<ufunc '(?P<ufunc>\w+)'>|(?P<name>[\w.]+)|.*?)\) found for signature:\s*\n\s*\n?\s*>>> (?P<call>.*)"
)
_CAST = re.compile(r"(?:Cannot cast|Casting) active_float to (?P<kind>[^\s:]+)")
_OURS = re.compile(r"TypingError: (?P<message>.*?) \[tapejit\]", re.DOTALL)
_PLACE = re.compile(r"at (?P<file>[^\n]*?) \((?P<line>\d+)\)")

_STORE = re.compile(r"setitem\((?:[Oo]ptional\()?array\((?P<dtype>[^,]+(?:\([^)]*\))?), .*active_float")


def refuse_function(f: Dispatcher) -> None:
    """Raise for functions that cannot be compiled for active numbers whatever their arguments."""
    name = f.py_func.__name__
    if f.targetoptions.get("forceobj"):
        raise UnsupportedError(f"{name} is compiled in object mode, which cannot be recorded; compile it with @njit")
    if f.py_func.__code__.co_kwonlyargcount:
        raise UnsupportedError(
            f"{name} has keyword-only parameters, which compiled code cannot call; drop the * from its signature"
        )
    if not hasattr(f, "targetdescr") or type(f).__name__ == "CUDADispatcher":
        raise UnsupportedError(f"{name} is not compiled for the processor, which is the only target that is recorded")


@contextmanager
def translated(f: Dispatcher, kinds: Sequence[types.Type] | None) -> Iterator[None]:
    """Raise what the compilation of an active version raises as our errors; a function that does not compile at all raises Numba's.

    Parameters
    ----------
    f : Dispatcher
    kinds : sequence of numba types, optional
        Types of the positional arguments, active ones among them; None where they cannot be told.
    """
    try:
        yield
    except TapejitError:
        raise
    except Exception as error:  # of all kinds: Numba's passes raise AssertionError and KeyError too
        if from_signal_handler(error):
            raise
        _raise_own_error(f, kinds)
        raise _in_words(f, error) from None


def _raise_own_error(f: Dispatcher, kinds: Sequence[types.Type] | None) -> None:
    """Compile the plain function: what it does not understand is not ours to explain."""
    if kinds is None or not f._can_compile:
        return
    try:
        f.compile(tuple(plain_type(kind) for kind in kinds))
    except errors.NumbaError as error:
        raise error from None


def _in_words(f: Dispatcher, error: Exception) -> TapejitError:
    text = str(error)
    # Colours and the markers of Numba's highlighting.
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    where = _place(text, f)
    if found := _OURS.search(text):
        return UnsupportedError(f"{found['message']} ({where})")
    for sign, what in ((r"jitclass\.\w+#", "jitclass instances"), (r"\b[Rr]ecord\(", "structured records")):
        if re.search(sign, text) and "setitem" not in text.split("found for signature")[0]:
            return UnsupportedError(f"{what} cannot hold active values ({where}); pass arrays and numbers")
    if found := _CAST.search(text):
        return PassiveConversionError(_no_room(found["kind"], where))
    if found := _CALL.search(text):
        return _unsupported_call(found, where)
    if isinstance(error, NotImplementedError):
        return UnsupportedError(
            f"{f.py_func.__name__} or a function it calls enters object mode (numba.objmode), where nothing is recorded ({where}); compute "
            "there before the function that is differentiated, and pass the result"
        )
    return UnsupportedError(f"{f.py_func.__name__} does not compile for active values ({where}): {_first_line(text)}")


def _unsupported_call(found: re.Match, where: str) -> TapejitError:
    call = found["call"].strip()
    name = found["builtin"] or found["function"] or found["ufunc"] or found["name"] or call.split("(")[0]
    if name == "setitem" and (store := _STORE.search(call)):
        return PassiveConversionError(_no_room(f"array of {store['dtype']}", where))
    if "complex" in call:
        why = "complex numbers are not differentiated; write the real and the imaginary part as two floats"
    elif "float32" in call or "float16" in call:
        why = "active values are float64; use float64 throughout"
    elif "jitclass" in call or "Record" in call:
        what = "jitclass instances" if "jitclass" in call else "structured records"
        why = f"{what} cannot hold active values; pass arrays and numbers"
    elif name == "round":
        why = "rounding to decimals is constant between its jumps; round a plain number, or leave it out"
    else:
        why = (
            "it is not differentiated in compiled code; write it with loops or the functions of docs/numba.md, or compute it from plain "
            "numbers"
        )
    return UnsupportedError(f"{_readable(name)}({_readable(call[call.find('(') + 1 : -1])}): {why} ({where})")


def _no_room(kind: str, where: str) -> str:
    if "int" in kind or "bool" in kind:
        remedy = (
            "it would lose its fraction and its derivative; make it float64, or store int(...) of it if that is meant"
        )
    elif "float32" in kind or "complex" in kind:
        remedy = "active values are float64; make it float64"
    else:
        remedy = (
            "its derivative would be lost: what holds plain numbers (a field of a jitclass or a record, a global array, a typed container "
            "declared for floats) cannot hold it; use an array that the function allocates or gets as an argument"
        )
    return f"an active value is put where only {kind} fits ({where}): {remedy}"


def _place(text: str, f: Dispatcher) -> str:
    for found in _PLACE.finditer(text):
        if not any(part in found["file"].replace("\\", "/") for part in ("tapejit driver", "/tapejit/", "/numba/")):
            return f"{found['file']}:{found['line']}"
    return f"{f.py_func.__code__.co_filename}:{f.py_func.__code__.co_firstlineno}"


def _readable(text: str) -> str:
    return text.replace("active_float", "active float64").replace("Literal[int]", "")


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Failed in nopython")]
    return lines[0] if lines else text

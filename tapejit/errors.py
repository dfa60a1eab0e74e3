"""What tapejit raises. Every message says what was wrong, what we got, and what to do."""

from __future__ import annotations

import signal
from typing import Any

__all__ = [
    "BranchChangeError",
    "BranchChangeWarning",
    "CompileError",
    "DeterminismError",
    "DomainError",
    "MemoryBudgetError",
    "PassiveConversionError",
    "ScheduleError",
    "ShapeError",
    "TapeError",
    "TapeFullError",
    "TapejitError",
    "UninitializedError",
    "UnsupportedError",
]


class TapejitError(Exception):
    """Base of everything that tapejit raises on its own account."""


class ShapeError(TapejitError, ValueError):
    """An argument has another shape, length or dtype than the computation needs."""


class DomainError(TapejitError, ArithmeticError):
    """Under ``tj.debug()``: a primitive was evaluated outside its domain."""


class TapeError(TapejitError, RuntimeError):
    """A tape was used in a way it does not allow: a closed tape, two unrelated tapes, an escaped value."""


class TapeFullError(TapeError, MemoryError):
    """A tape would need more slots than an int32 can number."""


class MemoryBudgetError(TapejitError, MemoryError):
    """A memory budget is too small for a computation, or the disk that it may use is full; the message says what the smallest would be."""


class DeterminismError(TapejitError, RuntimeError):
    """A step that was computed again gave something else, so that its derivative would be one of another computation."""


class PassiveConversionError(TapejitError, TypeError):
    """An active value was about to become a plain number and lose its derivative."""


class UnsupportedError(TapejitError, TypeError):
    """A function or an operand type that tapejit cannot differentiate faithfully; the message names it."""


class CompileError(TapejitError, RuntimeError):
    """Machine code could not be made or loaded; the message has what LLVM says."""


class ScheduleError(TapejitError, ValueError):
    """A checkpointing schedule that does not reverse its loop, or that cannot be made."""


class UninitializedError(TapejitError, RuntimeError):
    """Compiled code read memory that was allocated and never written."""


class BranchChangeError(TapejitError, RuntimeError):
    """A replay would have taken another branch than the recording did (``on_branch_change="raise"``)."""


class BranchChangeWarning(UserWarning):
    """A replay took another branch than the recording did (``on_branch_change="warn"``)."""


def from_signal_handler(error: BaseException) -> bool:
    """Whether the handler of a signal has raised an error: a timeout says nothing of the code that it interrupts, and must come out as itself."""
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    codes = {code for handler in handlers if (code := _code_of(handler)) is not None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _code_of(handler: Any) -> Any:
    """The code of a Python function, a method or an object that can be called."""
    for function in (handler, getattr(handler, "__func__", None), vars(type(handler)).get("__call__")):
        if (code := getattr(function, "__code__", None)) is not None:
            return code
    return None

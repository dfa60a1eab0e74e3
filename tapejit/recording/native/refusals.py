"""What native recording refuses, in words: Numba's typing errors become errors that say what was wrong and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import errors
from numba.core.dispatcher import Dispatcher

from tapejit.errors import TapejitError, UnsupportedError

__all__ = ["refuse_function", "translated"]


def refuse_function(f: Dispatcher) -> None:
    """Raise for functions that cannot be compiled for active numbers whatever their arguments."""
    if f.targetoptions.get("forceobj"):
        raise UnsupportedError(f"{f.py_func.__name__} is compiled in object mode, which cannot be recorded; compile it with @njit")


@contextmanager
def translated(f: Dispatcher) -> Iterator[None]:
    """Raise errors of the compilation of an active version as ours."""
    try:
        yield
    except TapejitError:
        raise
    except errors.NumbaError as error:
        raise UnsupportedError(str(error)) from error

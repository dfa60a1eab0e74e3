"""Compiled functions inside Python code that is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from numba.extending import typeof_impl

from tapejit.calls import is_compiled
from tapejit.errors import UnsupportedError
from tapejit.recording.array import Array, actives, is_active
from tapejit.recording.recorder import innermost, source_line
from tapejit.recording.variable import Variable

__all__ = ["native"]


def native(f: Callable) -> Callable:
    """A function compiled by Numba, for calls from Python or NumPy code that is differentiated.

    Transforms such as `grad` take a compiled function as it is; this is for Python code around it. With plain arguments the result is that
    of `f` itself; with active ones the call is recorded natively on the tape that they belong to.

    Parameters
    ----------
    f : numba dispatcher
        A function compiled with ``numba.njit``.

    Returns
    -------
    callable
        Takes the arguments of `f`, active or plain.

    Raises
    ------
    TypeError
        If `f` is not a compiled function.

    Examples
    --------
    >>> import numba, numpy as np, tapejit as tj
    >>> @numba.njit
    ... def distance(x):
    ...     total = 0.0
    ...     for i in range(x.size - 1):
    ...         total += (x[i + 1] - x[i]) ** 2
    ...     return total
    >>> tj.grad(lambda x: np.sqrt(tj.native(distance)(2.0 * x)))(np.array([0.0, 3.0]))
    array([-2.,  2.])
    """
    if not is_compiled(f):
        raise TypeError(f"tj.native takes a function compiled with numba.njit, got {f!r}")

    @wraps(f)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if not is_active(given):
            return f(*args, **kwargs)
        from tapejit.recording.native.calls import call

        return call(innermost(actives(given)), f, args, kwargs)

    return recorded


@typeof_impl.register(Array)
@typeof_impl.register(Variable)
def _refuse(value: Any, context: Any) -> None:
    """What Numba asks when a compiled function is called with an active value."""
    raise UnsupportedError(
        f"a function compiled by Numba was called with an active value ({source_line()}); call it through tj.native(f), or differentiate the "
        "compiled function itself"
    )

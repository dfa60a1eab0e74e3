"""Numba's own implementations of NumPy functions, compiled for active arguments.

Many of them are Python code that chooses by the dtype and then does nothing that an active number cannot do; asked with active types, Numba
refuses, or chooses what it has for integers and forgets about NaN. Asked with plain types, it gives the steps of the plain function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CellType, FunctionType

import numpy as np
from numba import types
from numba.core.registry import cpu_target
from numba.np import arraymath

from tapejit.recording.native.active import active_float, is_active
from tapejit.recording.native.numpy_functions import implements, plain_type

__all__ = ["borrows"]


def borrows(function: Callable, method: str = "") -> None:
    """Compile Numba's own implementation of a NumPy function for active arguments.

    Numba chooses an implementation by the dtype; what it chooses for plain arguments takes the plain function's steps on active ones.
    """
    context = cpu_target.typing_context
    context.refresh()
    try:
        templates = context.resolve_value_type(function).templates
    except ValueError:  # this Numba does not know the function
        return
    for template in templates:
        if template.metadata.get("target") != "cpu":
            implements(function, method=method)(_borrowed(template._overload_func))


def _borrowed(given: Callable) -> Callable:
    @functools.wraps(given)
    def choose(*args, **kwargs):
        if not any(isinstance(arg, types.Type) and is_active(arg) for arg in (*args, *kwargs.values())):
            return None
        return _allocating(given(*map(plain_type, args), **{name: plain_type(arg) for name, arg in kwargs.items()}))

    return choose


def _allocating(implementation: FunctionType | None) -> FunctionType | None:
    """An implementation whose dtype float64, where it has one, is active."""
    if implementation is None or not implementation.__closure__:
        return implementation
    cells = tuple(
        CellType(active_float)
        if isinstance(cell.cell_contents, np.dtype) and cell.cell_contents == np.float64
        else cell
        for cell in implementation.__closure__
    )
    made = FunctionType(
        implementation.__code__, implementation.__globals__, implementation.__name__, implementation.__defaults__, cells
    )
    return made


# Checked by tests/test_native_arrays.py, with NaN where the function knows it; the methods where arrays have them.
_METHODS = "argmax argmin searchsorted"
_FUNCTIONS = (
    "append average convolve correlate cov cross diagflat digitize ediff1d fill_diagonal median nanargmax nanargmin nanmax nanmean nanmedian "
    "nanmin nanprod nanstd nansum nanvar nan_to_num partition select sinc sort trace trapezoid trapz tril triu unwrap vander"
)
for _name in _METHODS.split():
    borrows(getattr(np, _name), method=_name)
for _name in _FUNCTIONS.split():
    if hasattr(np, _name):  # NumPy has dropped some
        borrows(getattr(np, _name))
for _function in (isinstance, arraymath._cross, arraymath._np_correlate_core):
    borrows(_function)

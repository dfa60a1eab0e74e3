"""The table behind ``__array_function__``: what each function of NumPy does to active values, a function a rule.

The rules stand in `structural` (views and copies), `allocation`, `aggregates` (sums, extrema, scans), `products`, `selection` and
`decisions`; `numpy_rules` looks them up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapejit.errors import PassiveConversionError, UnsupportedError
from tapejit.recording.array import Array, actives, is_active, lift_array
from tapejit.recording.recorder import innermost, source_line

__all__ = ["ALLOCATORS", "RULES", "as_array", "check_dtype", "refuse_active", "refuse_plain_target", "rule"]

RULES: dict[Callable, Callable] = {}
ALLOCATORS: set[Callable] = set()  # functions with a like= argument


def rule(*functions: Callable | str) -> Callable:
    """Enter a function into the table, under names that may be missing from an older NumPy."""

    def enter(implementation: Callable) -> Callable:
        for function in functions:
            found = getattr(np, function, None) if isinstance(function, str) else function
            if found is not None:
                RULES[found] = implementation
        return implementation

    return enter


def as_array(x: Any) -> Array:
    """An active operand as an array."""
    return x if isinstance(x, Array) else lift_array(innermost(actives(x)), x)


def check_dtype(dtype: Any) -> None:
    """Refuse a ``dtype=`` that active values cannot have."""
    if dtype is not None and np.dtype(dtype) != np.float64:
        raise UnsupportedError(f"active arrays are float64; dtype={np.dtype(dtype)} is not supported ({source_line()})")


def refuse_active(function: Callable, args: tuple, kwargs: dict) -> None:
    """Refuse active values where only plain numbers make sense: axes, shapes, repeats."""
    if any(is_active(x) for x in (*args, *kwargs.values())):
        raise UnsupportedError(
            f"np.{function.__name__} takes an active value as its first argument only ({source_line()}); pass tj.value(...) for the rest"
        )


def refuse_plain_target(target: Any) -> None:
    """Refuse to write active values into a plain array."""
    if not isinstance(target, Array):
        raise PassiveConversionError(
            f"a plain float array cannot hold active values ({source_line()}); allocate it with np.zeros(shape, like=x)"
        )

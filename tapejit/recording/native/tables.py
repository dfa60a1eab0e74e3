"""What the pass replaces in a user's function; importing this module registers everything that works on whole active arrays.

NumPy's functions and the methods of arrays are not replaced: implementations for active arguments come before Numba's own
(`tapejit.recording.native.numpy_functions`).
"""

from __future__ import annotations

from collections.abc import Callable

from numba.core.registry import cpu_target

from tapejit.recording.native import arrays, borrowing, linalg, reductions, selection  # noqa: F401
from tapejit.recording.native.allocation import ALLOCATORS
from tapejit.recording.native.conversions import to_active

__all__ = ["ALLOCATORS", "FUNCTIONS", "METHODS", "to_active"]

FUNCTIONS: dict[Callable, Callable] = {}
METHODS: dict[str, Callable] = {}

# Where this is imported while a function compiles, Numba has looked for new registrations already.
cpu_target.typing_context.refresh()

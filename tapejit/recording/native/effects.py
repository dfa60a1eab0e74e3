"""What NumPy's functions, builtins and methods do to memory: which make new arrays, which show an argument's, which write.

A result counts as new only if its function stands in a table here; everything else may show memory of its arguments.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numba
import numpy as np

__all__ = [
    "ALLOCATORS",
    "COMPARISONS",
    "COPYING_METHODS",
    "ELEMENTWISE",
    "NEW_ARRAYS",
    "NUMBERS",
    "PASSIVE_ATTRIBUTES",
    "PASSIVE_METHODS",
    "PASSIVE_RESULTS",
    "REDUCTIONS",
    "SAME_NDIM",
    "STORING_METHODS",
    "TAKING_METHODS",
    "VIEWS",
    "VIEW_ATTRIBUTES",
    "VIEW_METHODS",
    "WRITING",
    "is_in",
]


def _functions(module: ModuleType, names: str) -> set[Callable]:
    return {getattr(module, name) for name in names.split() if hasattr(module, name)}


ALLOCATORS = _functions(
    np, "zeros empty ones full zeros_like empty_like ones_like full_like eye identity linspace arange array"
)
# The first argument's memory, seen in another shape.
VIEWS = _functions(
    np,
    "reshape ravel transpose asarray ascontiguousarray asfortranarray atleast_1d atleast_2d atleast_3d swapaxes moveaxis rollaxis squeeze trim_zeros "
    "expand_dims broadcast_to flip fliplr flipud rot90 split array_split hsplit vsplit dsplit real imag diagonal nditer ndenumerate",
)
PASSIVE_RESULTS = (
    _functions(
        np,
        "shape size ndim argmax argmin argsort searchsorted isnan isinf isfinite any all nonzero count_nonzero array_equal allclose isclose "
        "digitize bincount ndindex signbit less less_equal greater greater_equal equal not_equal logical_and logical_or logical_xor "
        "logical_not flatnonzero argwhere unravel_index nanargmax nanargmin isscalar iscomplexobj isrealobj",
    )
    | _functions(math, "floor ceil trunc isnan isinf isfinite isclose gcd comb perm factorial")
    | {
        len,
        int,
        bool,
        round,
        range,
        isinstance,
        hash,
        id,
        str,
        repr,
        print,
        type,
        numba.prange,
        operator.contains,
    }
)
VIEW_METHODS = set("reshape ravel transpose view squeeze swapaxes diagonal items keys values".split())
PASSIVE_METHODS = set(
    "argmax argmin argsort searchsorted any all nonzero item_size index count startswith format".split()
)
PASSIVE_ATTRIBUTES = set("shape size ndim strides itemsize nbytes flags".split())
VIEW_ATTRIBUTES = set("T real imag flat base".split())
STORING_METHODS = set("append appendleft insert extend setdefault update add fill put setflags".split())
TAKING_METHODS = set("pop popleft popitem get item remove clear reverse sort".split())
COMPARISONS = {
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    operator.eq,
    operator.ne,
    operator.is_,
    operator.is_not,
    operator.contains,
    operator.not_,
}

WRITING = ("copyto", "fill_diagonal", "put", "shuffle", "place", "putmask")
ELEMENTWISE = _functions(np, "where clip round around abs nan_to_num sinc interp") | {
    builtins.abs,
    builtins.pow,
    builtins.divmod,
}
REDUCTIONS = _functions(np, "sum prod mean var std max min amax amin median ptp nansum nanmean trapezoid average")
NUMBERS = {np.linalg.norm, np.linalg.det, np.trace, np.vdot, builtins.max, builtins.min}
# Besides allocators, ufuncs and the two tables above.
NEW_ARRAYS = _functions(
    np,
    "sort cumsum cumprod dot outer inner kron concatenate stack vstack hstack column_stack dstack append repeat tile diff roll triu tril "
    "percentile quantile vander convolve correlate cov corrcoef cross delete take copy select gradient ediff1d diag diagflat "
    "nancumsum nancumprod unique histogram bincount partition argpartition unwrap tri meshgrid",
) | _functions(np.linalg, "solve inv cholesky pinv matrix_power svd qr eig eigh eigvals eigvalsh lstsq slogdet")
# Of one dimension, they keep it; of more, with axis=None, they flatten, so that is not known.
SAME_NDIM = _functions(
    np, "sort argsort roll triu tril isnan isinf isfinite signbit less less_equal greater greater_equal equal not_equal"
)
COPYING_METHODS = set(
    "copy astype flatten sum mean std var prod max min ptp cumsum cumprod dot trace clip round repeat take conj conjugate item".split()
)


def is_in(function: Any, group: set) -> bool:
    try:
        return function in group
    except TypeError:
        return False

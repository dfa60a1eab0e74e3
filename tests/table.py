"""The op table as the tests read it: points of a row, drawn from its domain, and its kernels, called without a tape."""

from __future__ import annotations

import ctypes
import math

import numpy as np

from tapejit.ops import CODE, OPS
from tapejit.sweeps.primitives import primitive_table

# Rows with operands and a value expression of their own: storage and `select` are the tape's business.
ROWS = [op for op in OPS if op.arity and op.name != "select"]

# Operands that take no adjoint, whatever the row says of them: the exponent of power_constant, the order of polygamma.
PASSIVE = {("power_constant", 1), ("polygamma", 0)}

_ADDRESS, _INT64 = ctypes.c_void_p, ctypes.c_int64


def interior_points(op, rng, size):
    """Points inside the domain, one tuple of `size` numbers an operand: of all magnitudes, also close to the ends."""
    operands = [_inside(interval, rng, size) for interval in op.domain]
    if op.name == "polygamma":
        operands[0] = rng.integers(0, 7, size).astype(float)
    elif op.name.startswith("power"):
        # Positive bases with any exponent; negative ones with an integer.
        x, y = operands
        half = size // 2
        x[:half], y[:half] = np.abs(x[:half]), y[:half] % 14.0 - 7.0
        y[half:] = rng.integers(-3, 7, size - half)
    return operands


def _inside(interval, rng, size):
    low, high = interval.low, interval.high
    magnitude = 10.0 ** rng.uniform(-6.0, 2.3, size)
    near = np.arange(size) % 2 == 0
    if math.isfinite(low) and math.isfinite(high):
        close = np.minimum(magnitude / 400.0, 0.999) * (high - low)
        return np.where(near, np.where(rng.random(size) < 0.5, low + close, high - close), rng.uniform(low, high, size))
    if math.isfinite(low):
        return low + magnitude
    return np.where(near, rng.choice([-1.0, 1.0], size) * magnitude, rng.normal(0.0, 2.0, size))


def kernel_value(op, *operands):
    """The value kernel on whole arrays: the tiles of a block."""
    return _call("value", op, (), operands, None)


def kernel_partial(op, which, *operands):
    """First partial number `which`, at the kernel's own value."""
    return _call("partial", op, (which,), operands, kernel_value(op, *operands))


def kernel_second(op, which, *operands):
    """Second partial xx, xy or yy."""
    return _call("second", op, (which,), operands, kernel_value(op, *operands))


def functions(op):
    """Every kernel of a row, by name: its value, its first and its second partials."""
    yield "value", lambda *operands: kernel_value(op, *operands)
    for which in range(op.arity):
        yield f"partial {which}", lambda *operands, which=which: kernel_partial(op, which, *operands)
    for which in range(op.arity * (op.arity + 1) // 2):
        yield f"second {which}", lambda *operands, which=which: kernel_second(op, which, *operands)


def _call(kind, op, which, operands, v):
    arrays = [np.ascontiguousarray(np.atleast_1d(operand), dtype=np.float64) for operand in operands]
    out = np.empty(arrays[0].size)
    results = [out] if v is None else [v, out]
    pointers = [array.ctypes.data for array in (arrays[0], arrays[-1], *results)]
    signature = ctypes.CFUNCTYPE(None, *[_INT64] * (2 + len(which)), *[_ADDRESS] * len(pointers))
    signature(int(primitive_table(kind)[0]))(CODE[op.name], *which, out.size, *pointers)
    return out

"""Where the factors of matrix products stand that stay whole: part of the plan.

A product reads its factors in memory. In place, if BLAS can read them there: if what stored them left one of the strides at 1. Else they
are copied to *scratch*, places behind all others that every product may use; adjoints of such factors go the same way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapejit.compiler.nest import Product
from tapejit.compiler.operands import Data, Factor
from tapejit.compiler.places import Address, Tables
from tapejit.sweeps.kernel import kernel

if TYPE_CHECKING:
    from tapejit.compiler.plan import Plan

__all__ = ["Standing", "place_factor", "place_products", "takes_adjoints"]


@dataclass(frozen=True)
class Standing:
    """Where a factor stands, or its adjoint.

    In place, rows are contiguous and `distance` apart, and `address` is that of the first element; else `distance` is 0, and element i of iteration t
    stands at ``address + table[i]`` for the table at ``offsets + offsets_stride * t``.
    """

    address: Address
    distance: int = 0
    offsets: int = -1
    offsets_stride: int = 0


@kernel
def _is_in_place(address, n_rows, n_columns, distance):
    """Whether each of several matrices, one after the other, has contiguous rows that are `distance` apart."""
    size = n_rows * n_columns
    for t in range(address.size):
        i = t % size
        if address[t] != address[t - i] + i // n_columns * distance + i % n_columns:
            return False
    return True


def place_factor(factor: Factor, address: np.ndarray, tables: Tables) -> Standing:
    """Where a factor stands, given the addresses of all its elements in all iterations."""
    by_iteration = address.reshape(-1, factor.size)
    first = by_iteration[:, 0]
    distance = int(address[factor.n_columns] - address[0]) if factor.n_rows > 1 else factor.n_columns
    if distance >= factor.n_columns and _is_in_place(address, factor.n_rows, factor.n_columns, distance):
        return Standing(tables.walk(first), distance)
    offsets = by_iteration - first[:, None]
    if (offsets == offsets[0]).all():
        return Standing(tables.walk(first), 0, tables.add(offsets[0]))
    return Standing(tables.walk(np.zeros_like(first)), 0, tables.add(address), factor.size)


def place_products(plan: Plan) -> tuple[dict[Factor, int], list[np.ndarray]]:
    """Places for copies of factors, for which `plan.size` grows, and the arrays of plain numbers, which are to be kept alive."""
    scratch: dict[Factor, int] = {}
    held: list[np.ndarray] = []
    end = plan.size
    for loop in plan.root.loops():
        if not isinstance(loop, Product):
            continue
        at = plan.size
        for operand in loop.site.operands:
            if isinstance(operand, Data):
                held += operand.arrays
                addresses = np.array([array.ctypes.data for array in operand.arrays], np.int64)
                operand.table_stride = 0 if (addresses == addresses[0]).all() else 2
                words = addresses[: None if operand.table_stride else 1].view(np.int32)
                operand.table = plan.add_table(words.astype(np.int64))
            elif not operand.address.distance or (operand.adjoint is not None and not takes_adjoints(operand)):
                scratch[operand] = at
                at += operand.size
        end = max(end, at)
    plan.size = end
    return scratch, held


def takes_adjoints(factor: Factor) -> bool:
    """Whether a product can be added to the adjoint of a factor in place: a single column must be contiguous for that."""
    distance = factor.adjoint.distance
    return distance > 0 and (factor.n_columns > 1 or factor.n_rows == 1 or distance == 1)

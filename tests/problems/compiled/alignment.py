"""Alignment of two sequences by dynamic programming, with a smooth minimum.

S. B. Needleman and C. D. Wunsch, J. Mol. Biol. 48(3), 1970; smooth as in M. Cuturi and M. Blondel, Soft-DTW, ICML 2017.
"""

import math

import numba
import numpy as np


@numba.njit
def soft_minimum(a, b, c, temperature):
    """-temperature log(sum(exp(-x / temperature))), shifted by the least so that nothing overflows."""
    least = min(a, b, c)
    total = (
        math.exp((least - a) / temperature) + math.exp((least - b) / temperature) + math.exp((least - c) / temperature)
    )
    return least - temperature * math.log(total)


@numba.njit
def alignment(costs, gap, first, second, temperature):
    """Cost of aligning two sequences of letters; `costs` (4, 4) of a letter against another, `gap` of one against none."""
    n, m = len(first), len(second)
    table = np.empty((n + 1, m + 1))
    table[0, 0] = 0.0
    for i in range(1, n + 1):
        table[i, 0] = table[i - 1, 0] + gap
    for j in range(1, m + 1):
        table[0, j] = table[0, j - 1] + gap
        for i in range(1, n + 1):
            match = table[i - 1, j - 1] + costs[first[i - 1], second[j - 1]]
            table[i, j] = soft_minimum(match, table[i - 1, j] + gap, table[i, j - 1] + gap, temperature)
    return table[-1, -1]


def make_alignment(size, rng):
    """Costs, and two sequences of about `size` letters, of one byte each."""
    costs = rng.uniform(0.5, 1.5, (4, 4))
    costs[np.arange(4), np.arange(4)] = rng.uniform(0.0, 0.2, 4)
    return costs, 0.7, rng.integers(0, 4, size).astype(np.uint8), rng.integers(0, 4, size + 2).astype(np.uint8), 0.3

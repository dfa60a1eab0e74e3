"""The Lennard-Jones energy of a cluster: 4 times the sum over pairs of r^-12 - r^-6, in reduced units.

Known minima: D. J. Wales and J. P. K. Doye, J. Phys. Chem. A 101(28), 1997; -44.326801 for 13 atoms.
"""

import numba
import numpy as np

OPERATIONS_PER_PAIR = 14


def make(size, rng):
    """Flat coordinates of `size` atoms, close to a cubic lattice so that no pair comes too near."""
    side = int(np.ceil(size ** (1.0 / 3.0)))
    lattice = np.stack(np.meshgrid(*3 * [np.arange(float(side))], indexing="ij"), axis=-1).reshape(-1, 3)
    return ((1.2 * lattice[:size] + rng.uniform(-0.05, 0.05, (size, 3))).ravel(),)


def plain_array(x, xp=np):
    """Whole-array form, over index arrays of the pairs."""
    positions = xp.reshape(x, (-1, 3))
    i, j = np.tril_indices(positions.shape[0], -1)
    separation = positions[i] - positions[j]
    inverse = 1.0 / xp.sum(separation * separation, axis=1)
    attraction = inverse * inverse * inverse
    return 4.0 * xp.sum(attraction * (attraction - 1.0))


def plain_scalar(x):
    """Scalar pair loop; `x` is any sequence of 3 coordinates an atom."""
    total = 0.0
    for i in range(len(x) // 3):
        xi, yi, zi = x[3 * i], x[3 * i + 1], x[3 * i + 2]
        for j in range(i):
            dx, dy, dz = xi - x[3 * j], yi - x[3 * j + 1], zi - x[3 * j + 2]
            inverse = 1.0 / (dx * dx + dy * dy + dz * dz)
            attraction = inverse * inverse * inverse
            total = total + attraction * (attraction - 1.0)
    return 4.0 * total


@numba.njit
def primal(x):
    """Energy of the cluster."""
    total = 0.0
    for i in range(x.size // 3):
        xi, yi, zi = x[3 * i], x[3 * i + 1], x[3 * i + 2]
        for j in range(i):
            dx, dy, dz = xi - x[3 * j], yi - x[3 * j + 1], zi - x[3 * j + 2]
            inverse = 1.0 / (dx * dx + dy * dy + dz * dz)
            attraction = inverse * inverse * inverse
            total += attraction * (attraction - 1.0)
    return 4.0 * total


@numba.njit
def gradient(x):
    """Energy and minus the forces; the pairs are independent, so one pass does both and stores nothing."""
    total = 0.0
    x_bar = np.zeros(x.size)
    for i in range(x.size // 3):
        xi, yi, zi = x[3 * i], x[3 * i + 1], x[3 * i + 2]
        xi_bar, yi_bar, zi_bar = 0.0, 0.0, 0.0
        for j in range(i):
            dx, dy, dz = xi - x[3 * j], yi - x[3 * j + 1], zi - x[3 * j + 2]
            inverse = 1.0 / (dx * dx + dy * dy + dz * dz)
            attraction = inverse * inverse * inverse
            total += attraction * (attraction - 1.0)
            # Twice the derivative by the squared distance: d(r^2)/d(dx) is 2 dx.
            scale = 24.0 * inverse * attraction * (1.0 - 2.0 * attraction)
            dx_bar, dy_bar, dz_bar = scale * dx, scale * dy, scale * dz
            xi_bar, yi_bar, zi_bar = xi_bar + dx_bar, yi_bar + dy_bar, zi_bar + dz_bar
            x_bar[3 * j] -= dx_bar
            x_bar[3 * j + 1] -= dy_bar
            x_bar[3 * j + 2] -= dz_bar
        x_bar[3 * i] += xi_bar
        x_bar[3 * i + 1] += yi_bar
        x_bar[3 * i + 2] += zi_bar
    return 4.0 * total, x_bar


def n_operations(args):
    """Arithmetic operations of one primal."""
    n_atoms = len(args[0]) // 3
    return OPERATIONS_PER_PAIR * (n_atoms * (n_atoms - 1) // 2) + 1

"""Programs as a user of Numba writes them, and nothing in them for tapejit: work arrays, nested calls, branches, loops in place.

`PROGRAMS` is the table. None has a gradient written by hand, unlike the problems in the modules next to this package, whose
``primal`` is compiled code too and whose names stand in the table as well. Nothing is compiled at import.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from problems import arithmetic, lennard_jones, lorenz, mlp, rosenbrock

from . import alignment, clustering, dynamics, sampling, series, tridiagonal

__all__ = ["PROGRAMS", "Program"]


@dataclass(frozen=True)
class Program:
    """One function with ``make(size, rng)``, which gives its arguments; `argnums` of them are differentiated by.

    `size` is enough for a test; `gradient` is value and gradient by hand, where there is one.
    """

    name: str
    f: Any
    make: Callable
    size: int
    argnums: int | tuple[int, ...] = 0
    gradient: Any = None


def classic(name, module, size, suffix=""):
    """The compiled primal of a problem with a gradient by hand."""
    f, gradient = getattr(module, "primal" + suffix), getattr(module, "gradient" + suffix)
    return Program(name, f, module.make, size, gradient=gradient)


# fmt: off
PROGRAMS = (
    Program("Lorenz-96 4D-Var",     dynamics.four_d_var,          dynamics.make_four_d_var,          5),
    Program("N-body leapfrog",      dynamics.n_body,              dynamics.make_n_body,              20, argnums=(0, 1, 2)),
    Program("Lotka-Volterra",       dynamics.lotka_volterra,      dynamics.make_lotka_volterra,      6),
    Program("heat Crank-Nicolson",  tridiagonal.heat,             tridiagonal.make_heat,             8, argnums=(0, 1)),
    Program("cubic spline",         tridiagonal.spline_misfit,    tridiagonal.make_spline,           20, argnums=(0, 1)),
    Program("Kalman, scalar",       series.kalman_scalar,         series.make_kalman_scalar,         30),
    Program("Kalman, matrices",     series.kalman_matrices,       series.make_kalman_matrices,       20),
    Program("GARCH(1, 1)",          series.garch,                 series.make_garch,                 50),
    Program("LSTM, loops",          series.lstm_loops,            series.make_lstm,                  6, argnums=(0, 1, 2)),
    Program("LSTM, matrices",       series.lstm_matrices,         series.make_lstm,                  6, argnums=(0, 1, 2)),
    Program("Asian option",         sampling.asian_option,        sampling.make_asian_option,        30),
    Program("Heston",               sampling.heston,              sampling.make_heston,              30),
    Program("k-means",              clustering.k_means,           clustering.make_k_means,           30),
    Program("Gaussian mixture",     clustering.gaussian_mixture,  clustering.make_gaussian_mixture,  10, argnums=(0, 1, 2, 3)),
    Program("soft alignment",       alignment.alignment,          alignment.make_alignment,          12, argnums=(0, 1)),
    classic("Lorenz RK4",           lorenz,                       60),
    classic("Lennard-Jones",        lennard_jones,                13),
    classic("Rosenbrock",           rosenbrock,                   30),
    classic("MLP 2-10-10-1",        mlp,                          20),
    classic("arithmetic",           arithmetic,                   1000),
    classic("one tenth exp and sin", arithmetic,                  1000, "_transcendental"),
)
# fmt: on

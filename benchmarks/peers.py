"""The same gradients by other libraries, where they are installed; the others are listed as skipped.

Every peer gets the form of the problem that suits it: whole arrays for Rosenbrock, and the plain scalar loop
of Lorenz, which is what tapejit is for and what array libraries find hard.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from problems import lorenz, rosenbrock

from .measure import median_time, seconds
from .report import Table
from .scalar_code import check

ROSENBROCK_SIZE = {False: 1_000_000, True: 100_000}  # by --quick
LORENZ_STEPS = {False: 1_000, True: 100}
NOTE = (
    "first: everything until the first value and gradient (recording, building, compiling); again: at a new "
    "point, by whatever that library reuses; value and gradient in float64."
)


def tapejit_gradient(plain, x, *data):
    """Record, then replay."""
    import tapejit as tj

    return tj.record(lambda x: plain(x, *data), x).value_and_grad


def native_gradient(plain, x, *data):
    """The same function compiled by Numba, recorded natively at every call."""
    import tapejit as tj

    compiled, n_data = NATIVE[plain]
    return lambda x: tj.value_and_grad(compiled)(x, *data[:n_data])


NATIVE = {rosenbrock.plain_array: (rosenbrock.primal, 0), lorenz.plain: (lorenz.primal, 1)}


def autograd_gradient(plain, x, *data):
    """HIPS autograd: records at every call."""
    import autograd

    return autograd.value_and_grad(lambda x: plain(x, *data))


def jax_gradient(plain, x, *data):
    """Traces and compiles once, in double precision."""
    import jax

    jax.config.update("jax_enable_x64", True)
    compiled = jax.jit(jax.value_and_grad(lambda x: plain(x, *data)))
    return lambda x: jax.block_until_ready(compiled(x))


def jax_lorenz(inputs, n_steps):
    """The loop rewritten with ``lax.scan``: unrolled, 4 steps already took XLA more than half a minute."""
    import jax

    parameters, start = [inputs[i] for i in range(3)], tuple(inputs[i] for i in range(3, 6))
    dt = lorenz.step_length(n_steps)
    end, _ = jax.lax.scan(lambda state, _: (lorenz.step(*parameters, *state, dt), None), start, length=n_steps)
    return sum(coordinate * coordinate for coordinate in end)


def torch_gradient(plain, x, *data):
    """Eager mode: records at every call."""
    import torch

    def value_and_grad(x):
        leaf = torch.tensor(x, requires_grad=True)
        value = plain(leaf, *data)
        value.backward()
        return value.item(), leaf.grad.numpy()

    return value_and_grad


def casadi_gradient(plain, x, *data):
    """Builds a scalar graph (SX), differentiates it and evaluates it in CasADi's virtual machine."""
    import casadi

    symbols = casadi.SX.sym("x", x.size)
    value = plain(symbols, *data)
    function = casadi.Function("f", [symbols], [value, casadi.gradient(value, symbols)])

    def value_and_grad(x):
        value, x_bar = function(x)
        return float(value), np.array(x_bar).ravel()

    return value_and_grad


@dataclass(frozen=True)
class Peer:
    """A library: the module whose `sum` suits its arrays, and how it makes a value-and-gradient function.

    `lorenz` is the plain loop, unless the library needs it rewritten, and `note` says so; `n_steps` is for those that bear fewer.
    """

    name: str
    functions: str
    gradient: Callable
    takes_arrays: bool = True
    lorenz: Callable = lorenz.plain
    note: str = ""
    n_steps: int | None = None


UNROLLED_STEPS = 1000 // lorenz.OPERATIONS_PER_STEP

PEERS = (
    Peer("tapejit", "numpy", tapejit_gradient),
    Peer("tapejit, compiled", "numpy", native_gradient, note="compiled by Numba"),
    Peer("jax", "jax.numpy", jax_gradient, lorenz=jax_lorenz, note="rewritten with lax.scan"),
    Peer("jax, unrolled", "jax.numpy", jax_gradient, takes_arrays=False, note="the plain loop", n_steps=UNROLLED_STEPS),
    Peer("torch", "torch", torch_gradient),
    Peer("autograd", "autograd.numpy", autograd_gradient),
    Peer("casadi", "casadi", casadi_gradient, takes_arrays=False),
)


def run(quick=False):
    """Table of this module; it has no targets."""
    rows = [row for peer in PEERS for row in measure(peer, quick)]
    return [Table("Peers", rows, NOTE)], []


def measure(peer, quick):
    """Rows of one peer, or one row that says it is not installed."""
    try:
        functions = importlib.import_module(peer.functions)
    except ImportError:
        return [row(peer.name, "", "skipped: not installed")]
    rows = []
    args = rosenbrock.make(ROSENBROCK_SIZE[quick], np.random.default_rng(0))
    if peer.takes_arrays:
        rows.append(measure_problem(peer, "Rosenbrock, array", rosenbrock, rosenbrock.plain_array, args, functions))
    args = lorenz.make(peer.n_steps or LORENZ_STEPS[quick], np.random.default_rng(0))
    found = measure_problem(peer, "Lorenz RK4, scalar", lorenz, peer.lorenz, args)
    rows.append({**found, "note": peer.note})
    return rows


def measure_problem(peer, name, module, plain, args, *functions):
    """One row: the first value and gradient, and again."""
    x, *data = args
    made = []
    first = seconds(lambda: made.append(peer.gradient(plain, x, *data, *functions))) + seconds(lambda: made[0](x))
    check([np.asarray(part) for part in made[0](x)], module.gradient(*args), f"{peer.name}, {name}")
    again = median_time(lambda: made[0](x))
    return row(peer.name, name, "", module.n_operations(args), first, again)


def row(peer, problem, note, n_operations=None, first=None, again=None):
    """A row of the table; every row has every column."""
    return {
        "library": peer,
        "problem": problem,
        "operations": n_operations,
        "first s": first,
        "again ms": None if again is None else 1e3 * again,
        "again ns/op": None if again is None else 1e9 * again / n_operations,
        "note": note,
    }

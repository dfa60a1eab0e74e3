"""The same gradients by other libraries, where they are installed; the others are listed as skipped.

Every peer gets the form of the problem that suits it best among those tried: whole arrays, loops rewritten for its compiler, or the plain
scalar loop, which is what tapejit is for and what array libraries find hard. Peers are compared in milliseconds a call, each with as many
threads as it takes by itself.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numba
import numpy as np
from problems import gaussian_mixture, lennard_jones, logistic_regression, lorenz, rosenbrock

import tapejit as tj

from .compiled_replays import compiled
from .measure import median_time, seconds
from .report import Table
from .scalar_code import check

NOTE = (
    "first: everything until the first value and gradient (recording, building, compiling); again: by whatever that library reuses, milliseconds "
    "a call; value and gradient in float64. Where a library cannot bear the size, a smaller one was measured: see operations."
)
# problem: its module, its size and its size with --quick
PROBLEMS = {
    "Lorenz RK4": (lorenz, 10_000, 1_000),
    "Lennard-Jones": (lennard_jones, 500, 100),
    "Rosenbrock": (rosenbrock, 1_000_000, 100_000),
    "logistic regression": (logistic_regression, 20_000, 2_000),
    "Gaussian mixture": (gaussian_mixture, 1_000, 100),
}


@dataclass(frozen=True)
class Form:
    """How a peer writes a problem.

    `function` is what its `gradient` takes, `note` says what was done to it, and `size` is the largest that is measured.
    """

    function: Callable
    note: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Peer:
    """A library: `module` is imported first, and ``gradient(function, args)`` makes a function of x that gives value and gradient."""

    name: str
    module: str
    gradient: Callable
    forms: dict[str, Form] = field(default_factory=dict)


# Ours. Functions for Numba are compiled anew, so that the first result includes that.


def fresh(f):
    """A function as it is before its first call."""
    return numba.njit(f.py_func) if hasattr(f, "py_func") else f


def by_hand(gradient, args):
    """The hand-written gradient."""
    gradient = fresh(gradient)
    return lambda x: gradient(x, *args[1:])


def tapejit_replay(f, args):
    """Recorded once, then interpreted."""
    return tj.record(fresh(f), *args).value_and_grad


def tapejit_compiled(f, args):
    """Recorded and compiled once."""
    return compiled(fresh(f), *args, threads=None).value_and_grad


def tapejit_native(f, args):
    """Recorded natively at every call."""
    f = fresh(f)
    return lambda x: tj.value_and_grad(f)(x, *args[1:])


NUMPY_FORMS = {
    "Lorenz RK4": Form(lorenz.primal, "compiled by Numba"),
    "Lennard-Jones": Form(lennard_jones.plain_array, "NumPy, pairs by index arrays"),
    "Rosenbrock": Form(rosenbrock.plain_array, "NumPy"),
    "logistic regression": Form(logistic_regression.plain, "NumPy"),
    "Gaussian mixture": Form(gaussian_mixture.plain_array, "NumPy"),
}
NATIVE_FORMS = {name: Form(module.primal, "compiled by Numba") for name, (module, *_) in PROBLEMS.items()}
COMPILED_FORMS = NATIVE_FORMS | {name: NUMPY_FORMS[name] for name in ("logistic regression", "Gaussian mixture")}
HAND_FORMS = {name: Form(module.gradient, "Numba, by hand") for name, (module, *_) in PROBLEMS.items()}


# JAX.


def jax_gradient(f, args):
    """Traces and compiles once, in double precision; arrays of data are arguments, everything else is constant."""
    import jax

    jax.config.update("jax_enable_x64", True)
    arrays = {i: jax.numpy.asarray(arg) for i, arg in enumerate(args) if i and isinstance(arg, np.ndarray)}

    def of_arrays(x, data):
        return f(x, *(data.get(i, arg) for i, arg in enumerate(args) if i))

    gradient = jax.jit(jax.value_and_grad(of_arrays))
    return lambda x: jax.block_until_ready(gradient(x, arrays))


def with_jax_numpy(f):
    """A plain function with JAX's NumPy in the place of `xp`."""

    def function(*args):
        import jax

        return f(*args, xp=jax.numpy)

    return function


def jax_lorenz(inputs, n_steps, checkpoint=False):
    """The loop rewritten with ``lax.scan``; with `checkpoint` a step stores its start alone, as the hand-written gradient does."""
    import jax

    parameters, start = [inputs[i] for i in range(3)], tuple(inputs[i] for i in range(3, 6))
    dt = lorenz.step_length(n_steps)

    def step(state, _):
        return lorenz.step(*parameters, *state, dt), None

    end, _ = jax.lax.scan(jax.checkpoint(step) if checkpoint else step, start, length=n_steps)
    return sum(coordinate * coordinate for coordinate in end)


def dense_lennard_jones(x, xp):
    """All pairs as a matrix, each pair twice: no index arrays, whose adjoint is a scatter."""
    positions = x.reshape((-1, 3))
    separation = positions[:, None, :] - positions[None, :, :]
    squared = (separation * separation).sum(2) + xp.eye(len(positions), dtype=x.dtype)
    inverse = 1.0 / squared
    attraction = inverse * inverse * inverse
    # On the diagonal the distance is 1, and so the energy 0; its derivative there is that of a separation of 0, which is 0.
    return 2.0 * (attraction * (attraction - 1.0)).sum()


def jax_dense_lennard_jones(x):
    """`dense_lennard_jones` in JAX."""
    import jax

    return dense_lennard_jones(x, jax.numpy)


JAX_FORMS = {
    "Lorenz RK4": Form(jax_lorenz, "lax.scan"),
    "Lennard-Jones": Form(jax_dense_lennard_jones, "all pairs as a matrix"),
    "Rosenbrock": Form(with_jax_numpy(rosenbrock.plain_array), "arrays"),
    "logistic regression": Form(with_jax_numpy(logistic_regression.plain), "arrays"),
    "Gaussian mixture": Form(with_jax_numpy(gaussian_mixture.plain_array), "arrays"),
}


# PyTorch.


def torch_gradient(f, args, transform=lambda f: f):
    """Eager mode: records at every call."""
    import torch

    data = [torch.from_numpy(arg) if isinstance(arg, np.ndarray) else arg for arg in args[1:]]
    forward = transform(f)

    def value_and_grad(x):
        leaf = torch.tensor(x, requires_grad=True)
        value = forward(leaf, *data)
        value.backward()
        return value.item(), leaf.grad.numpy()

    return value_and_grad


def torch_compiled_gradient(f, args):
    """``torch.compile``, which generates C++."""
    import torch

    torch._dynamo.reset()
    return torch_gradient(f, args, torch.compile)


def torch_rosenbrock(x):
    """`rosenbrock.plain_array`."""
    return rosenbrock.plain_array(x, sys.modules["torch"])


def torch_lennard_jones(x):
    """`dense_lennard_jones`."""
    return dense_lennard_jones(x, sys.modules["torch"])


def torch_logistic_regression(weights, features, labels):
    """`logistic_regression.plain`."""
    import torch

    loss = torch.nn.functional.softplus(-labels * (features @ weights)).mean()
    return loss + 0.5 * logistic_regression.PENALTY * (weights * weights).sum()


def torch_gaussian_mixture(params, points):
    """`gaussian_mixture.plain_array`, with torch's own log-sum-exp."""
    import torch

    g = gaussian_mixture
    logits, means, scales = params[: g.K], params[g.MEANS : g.SCALES].view(g.K, g.D), params[g.SCALES :].view(g.K, g.D)
    precision = torch.exp(2.0 * scales)
    weighted = precision * means
    offset = logits + scales.sum(1) - 0.5 * (weighted * means).sum(1)
    scores = points @ weighted.T - (0.5 * points * points) @ precision.T + offset
    normaliser = torch.logsumexp(logits, 0) + g.D * g.HALF_LOG_2PI
    return len(points) * normaliser - torch.logsumexp(scores, 1).sum()


TORCH_FORMS = {
    "Lorenz RK4": Form(lorenz.plain, "the plain loop", size=1_000),
    "Lennard-Jones": Form(torch_lennard_jones, "all pairs as a matrix"),
    "Rosenbrock": Form(torch_rosenbrock, "arrays"),
    "logistic regression": Form(torch_logistic_regression, "arrays"),
    "Gaussian mixture": Form(torch_gaussian_mixture, "arrays"),
}
TORCH_COMPILED_FORMS = {name: form for name, form in TORCH_FORMS.items() if name != "Lorenz RK4"}


# HIPS autograd.


def autograd_gradient(f, args):
    """Records at every call."""
    import autograd

    return autograd.value_and_grad(lambda x: f(x, *args[1:]))


def with_autograd_numpy(f):
    """A plain function with autograd's NumPy in the place of `xp`."""

    def function(*args):
        import autograd.numpy

        return f(*args, xp=autograd.numpy)

    return function


AUTOGRAD_FORMS = {
    "Lorenz RK4": Form(lorenz.plain, "the plain loop", size=1_000),
    "Lennard-Jones": Form(with_autograd_numpy(lennard_jones.plain_array), "pairs by index arrays"),
    "Rosenbrock": Form(with_autograd_numpy(rosenbrock.plain_array), "arrays"),
    "logistic regression": Form(with_autograd_numpy(logistic_regression.plain), "arrays"),
    "Gaussian mixture": Form(with_autograd_numpy(gaussian_mixture.plain_array), "arrays"),
}


# CasADi.


def casadi_gradient(f, args, symbols="SX", options=None):
    """Builds a graph, differentiates it and evaluates it in CasADi's virtual machine, unless `options` ask for C."""
    import casadi

    x = getattr(casadi, symbols).sym("x", args[0].size)
    value = f(x, *args[1:])
    function = casadi.Function("f", [x], [value, casadi.densify(casadi.gradient(value, x))], options or {})
    buffer, evaluate = function.buffer()  # without conversions, which for long vectors cost more than the function

    def value_and_grad(x):
        value, x_bar = np.empty(1), np.empty(x.size)
        buffer.set_arg(0, memoryview(x))
        buffer.set_res(0, memoryview(value))
        buffer.set_res(1, memoryview(x_bar))
        evaluate()
        return value[0], x_bar

    return value_and_grad


GCC = {"jit": True, "compiler": "shell", "jit_options": {"flags": ["-O3", "-march=native"]}}


def casadi_lorenz(inputs, n_steps):
    """One step as a graph of scalars, repeated by ``Function.fold``."""
    import casadi

    symbols = casadi.SX.sym("s", 3), casadi.SX.sym("p", 3)
    end = lorenz.step(*casadi.vertsplit(symbols[1]), *casadi.vertsplit(symbols[0]), lorenz.step_length(n_steps))
    step = casadi.Function("step", list(symbols), [casadi.vertcat(*end)])
    return casadi.sumsqr(step.fold(n_steps)(inputs[3:6], casadi.repmat(inputs[:3], 1, n_steps)))


def casadi_lennard_jones(x):
    """Vectors of the pairs, by index arrays."""
    import casadi

    i, j = np.tril_indices(x.numel() // 3, -1)
    separations = [x[(3 * i + axis).tolist()] - x[(3 * j + axis).tolist()] for axis in range(3)]
    inverse = 1.0 / sum(separation * separation for separation in separations)
    attraction = inverse * inverse * inverse
    return 4.0 * casadi.sum1(attraction * (attraction - 1.0))


def casadi_rosenbrock(x):
    """Vectors, cut by `vertsplit`: twice as fast as slices."""
    import casadi

    n = x.numel()
    first, _ = casadi.vertsplit(x, [0, n - 1, n])
    _, second = casadi.vertsplit(x, [0, 1, n])
    return 100.0 * casadi.sumsqr(second - first * first) + casadi.sumsqr(1.0 - first)


def casadi_logistic_regression(weights, features, labels):
    """Vectors, and a dense matrix."""
    import casadi

    margin = labels * casadi.mtimes(casadi.DM(features), weights)
    loss = casadi.sum1(casadi.fmax(-margin, 0.0) + casadi.log1p(casadi.exp(-casadi.fabs(margin)))) / labels.size
    return loss + 0.5 * logistic_regression.PENALTY * casadi.sumsqr(weights)


CASADI_FORMS = {
    "Lennard-Jones": Form(casadi_lennard_jones, "MX, pairs by index arrays"),
    "Rosenbrock": Form(casadi_rosenbrock, "MX"),
    "logistic regression": Form(casadi_logistic_regression, "MX"),
}

PEERS = (
    Peer("by hand", "numba", by_hand, HAND_FORMS),
    Peer("tapejit, compiled replay", "tapejit", tapejit_compiled, COMPILED_FORMS),
    Peer("tapejit, interpreted replay", "tapejit", tapejit_replay, NUMPY_FORMS),
    Peer("tapejit, recorded natively", "tapejit", tapejit_native, NATIVE_FORMS),
    Peer("jax", "jax", jax_gradient, JAX_FORMS),
    Peer(
        "jax, checkpoint",
        "jax",
        jax_gradient,
        {"Lorenz RK4": Form(partial(jax_lorenz, checkpoint=True), "lax.scan, jax.checkpoint on the step")},
    ),
    Peer(
        "jax, index arrays",
        "jax",
        jax_gradient,
        {"Lennard-Jones": Form(with_jax_numpy(lennard_jones.plain_array), "pairs by index arrays")},
    ),
    Peer("jax, unrolled", "jax", jax_gradient, {"Lorenz RK4": Form(lorenz.plain, "the plain loop", size=3)}),
    Peer("torch", "torch", torch_gradient, TORCH_FORMS),
    Peer("torch.compile", "torch", torch_compiled_gradient, TORCH_COMPILED_FORMS),
    Peer("autograd", "autograd", autograd_gradient, AUTOGRAD_FORMS),
    Peer("casadi, SX", "casadi", casadi_gradient, {"Lorenz RK4": Form(lorenz.plain, "SX, the plain loop")}),
    Peer("casadi, MX", "casadi", partial(casadi_gradient, symbols="MX"), CASADI_FORMS),
    Peer(
        "casadi, fold",
        "casadi",
        partial(casadi_gradient, symbols="MX"),
        {"Lorenz RK4": Form(casadi_lorenz, "Function.fold of a step")},
    ),
    Peer(
        "casadi, fold and gcc",
        "casadi",
        partial(casadi_gradient, symbols="MX", options=GCC),
        {"Lorenz RK4": Form(casadi_lorenz, "Function.fold of a step, in C by gcc -O3")},
    ),
)


def run(quick=False, only=None):
    """Tables of this module, one a problem; it has no targets. `only` names the peers."""
    peers = [peer for peer in PEERS if only is None or peer.name in only]
    missing = {peer.module for peer in peers if not is_installed(peer)}
    skipped = f" Skipped, not installed: {', '.join(sorted(missing))}." if missing else ""
    if not hasattr(tj, "compile"):
        skipped += " This tapejit has no `tj.compile`."
        peers = [peer for peer in peers if peer.gradient is not tapejit_compiled]
    load_sweeps()
    tables = []
    for name in PROBLEMS:
        rows = [measure(peer, name, quick) for peer in peers if name in peer.forms and peer.module not in missing]
        tables.append(Table(f"Peers: {name}", rows, NOTE + skipped))
    return tables, []


def load_sweeps():
    """Load tapejit's sweeps, or compile them, which is done once per installation and not once per function."""
    for forms in (NUMPY_FORMS, NATIVE_FORMS):
        for name, form in forms.items():
            args = PROBLEMS[name][0].make(3, np.random.default_rng(0))
            tapejit_replay(form.function, args)(args[0])


def is_installed(peer):
    """Whether a peer can be imported."""
    try:
        importlib.import_module(peer.module)
    except ImportError:
        return False
    return True


def measure(peer, name, quick):
    """One row: the first value and gradient, and again."""
    module, *sizes = PROBLEMS[name]
    form: Any = peer.forms[name]
    size = sizes[quick] if form.size is None else min(form.size, sizes[quick])
    args = module.make(size, np.random.default_rng(0))
    x, expected = args[0], module.gradient(*args)
    made = []
    try:
        first = seconds(lambda: made.append(peer.gradient(form.function, args)))
        first += seconds(lambda: made[0](x))
    except Exception as error:  # of any kind: it is the library's, and the others still count
        reason = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        return row(peer.name, size, None, None, None, reason[:150])
    check([np.asarray(part) for part in made[0](x)], expected, f"{peer.name}, {name}")
    return row(peer.name, size, module.n_operations(args), first, median_time(lambda: made[0](x)), form.note)


def row(peer, size, n_operations, first, again, note):
    """A row of a table; every row has every column."""
    return {
        "library": peer,
        "size": size,
        "operations": n_operations,
        "first s": first,
        "again ms": None if again is None else 1e3 * again,
        "again ns/op": None if again is None else 1e9 * again / n_operations,
        "note": note,
    }

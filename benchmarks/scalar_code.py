"""Plain scalar code: pure Python graphs, tapejit recorded and replayed, Numba code written by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from problems import arithmetic, lennard_jones, lorenz, mlp, rosenbrock

import tapejit as tj

from . import pure_python
from .measure import garbage_collector, median_time, seconds
from .report import Table, Target
from .sweeps import reverse_time

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
LARGE = 1_000_000  # the targets are stated for tapes of this size and more
PURE_PYTHON_LIMIT = 300_000  # operations: some seconds and a gigabyte
SLOT_NOTE = (
    "Python: value and gradient by the object graph with closures of `benchmarks/pure_python.py`, garbage "
    "collector on; record: recorded afresh and reversed; replay: replayed and reversed; lean Python: the "
    "object graph with tuples of partials, collector off. "
    "Targets on arithmetic of 1e6 slots and more: Python / record >= 8, Python / replay >= 500."
)
OPERATION_NOTE = (
    "Nanoseconds an arithmetic operation of the primal. Above 3e5 operations the cost of pure Python is that "
    "of its largest run. The hand-written gradient is value and gradient, as are the rows of pure Python."
)


@dataclass(frozen=True)
class ScalarProblem:
    """A problem in its scalar form, and which size of it takes a given number of operations."""

    name: str
    module: Any
    plain: Callable
    primal: Callable
    gradient: Callable
    size_for: Callable
    n_operations: Callable
    needs_functions: bool = False  # plain takes `xp`, where exp, sin and tanh come from

    def function(self, args, functions=np):
        """The plain function of its first argument alone, its data as Python floats."""
        data = [array.tolist() if isinstance(array, np.ndarray) else array for array in args[1:]]
        if self.needs_functions:
            data.append(functions)
        return lambda x: self.plain(x, *data)


def problem(name, module, plain, size_for, suffix="", **options):
    """A `ScalarProblem` with its module's hand-written kernels."""
    kernels = getattr(module, "primal" + suffix), getattr(module, "gradient" + suffix)
    options.setdefault("n_operations", module.n_operations)
    return ScalarProblem(name, module, plain, *kernels, size_for, **options)


def transcendental_operations(args):
    """Operations of the arithmetic program with exp and sin."""
    return arithmetic.n_operations(args, arithmetic.TRANSCENDENTAL_ITERATION)


PROBLEMS = (
    problem("arithmetic", arithmetic, arithmetic.plain, lambda n: n),
    problem(
        "one tenth exp and sin",
        arithmetic,
        arithmetic.plain_transcendental,
        lambda n: n,
        suffix="_transcendental",
        n_operations=transcendental_operations,
        needs_functions=True,
    ),
    problem("Rosenbrock", rosenbrock, rosenbrock.plain_scalar, lambda n: 1 + n // rosenbrock.OPERATIONS_PER_TERM),
    problem("Lorenz RK4", lorenz, lorenz.plain, lambda n: n // lorenz.OPERATIONS_PER_STEP),
    problem(
        "Lennard-Jones",
        lennard_jones,
        lennard_jones.plain_scalar,
        lambda n: round((2 * n / lennard_jones.OPERATIONS_PER_PAIR) ** 0.5),
    ),
    problem(
        "MLP 2-10-10-1",
        mlp,
        mlp.plain_scalar,
        lambda n: max(1, n // mlp.OPERATIONS_PER_POINT),
        needs_functions=True,
    ),
)


def run(quick=False):
    """Tables and targets of this module."""
    sizes = [size for size in SIZES if not quick or size <= 100_000]
    rows = []
    for problem_ in PROBLEMS:
        pure_python_costs = {}
        rows += [measure(problem_, size, pure_python_costs) for size in sizes]
    slots = [slot_figures(*row) for row in rows]
    operations = [operation_figures(*row) for row in rows]
    tables = [Table("Scalar code, by slot", slots, SLOT_NOTE)]
    return [*tables, Table("Scalar code, by operation", operations, OPERATION_NOTE)], targets(slots)


def measure(problem_, size, pure_python_costs):
    """Name, sizes and seconds at about `size` operations; `pure_python_costs` is kept between sizes."""
    args = problem_.module.make(problem_.size_for(size), np.random.default_rng(0))
    x, n_operations = args[0], problem_.n_operations(args)
    if n_operations <= PURE_PYTHON_LIMIT:
        pure_python_costs.update(measure_pure_python(problem_, args))

    f = problem_.function(args)
    tape = tj.record(f, x)
    check(tape.value_and_grad(x), problem_.gradient(*args), problem_.name)
    times = {name: 1e-9 * cost * n_operations for name, cost in pure_python_costs.items()}
    times |= {
        "record": median_time(lambda: tj.record(f, x), warm_up=False),
        "forward": median_time(lambda: tape.value(x)),
        "reverse": reverse_time(tape),
        "record + reverse": median_time(lambda: tj.value_and_grad(f)(x), warm_up=False),
        "replay + reverse": median_time(lambda: tape.value_and_grad(x)),
        "hand-written primal": median_time(lambda: problem_.primal(*args)),
        "hand-written gradient": median_time(lambda: problem_.gradient(*args)),
    }
    sizes = {"operations": n_operations, "slots": tape.n_slots, "bytes": tape.nbytes}
    return problem_.name, sizes, times


def slot_figures(name, sizes, times):
    """Row of the first table: costs a slot and ratios."""
    n_slots, replay = sizes["slots"], times["replay + reverse"]
    return {
        "problem": name,
        "slots": n_slots,
        "record ns/slot": 1e9 * times["record"] / n_slots,
        "forward ns/slot": 1e9 * times["forward"] / n_slots,
        "reverse ns/slot": 1e9 * times["reverse"] / n_slots,
        "bytes/slot": sizes["bytes"] / n_slots,
        "Python / record": times["Python closures"] / times["record + reverse"],
        "Python / replay": times["Python closures"] / replay,
        "lean Python, gc off / replay": times["Python tuples, gc off"] / replay,
        "replay / hand primal": replay / times["hand-written primal"],
        "replay / hand gradient": replay / times["hand-written gradient"],
    }


def operation_figures(name, sizes, times):
    """Row of the second table: everything by arithmetic operation of the primal."""
    n_operations = sizes["operations"]
    costs = {f"{what} ns/op": 1e9 * time / n_operations for what, time in times.items()}
    return {"problem": name, "operations": n_operations, **costs}


def measure_pure_python(problem_, args):
    """Nanoseconds an operation of the object graphs, in both styles, garbage collector on and off."""
    f, x = problem_.function(args, pure_python), args[0].tolist()
    n_operations = problem_.n_operations(args)
    repeats = 3 if n_operations < 50_000 else 1
    expected = problem_.gradient(*args)
    costs = {}
    for style, value_type in {"closures": pure_python.Value, "tuples": pure_python.LeanValue}.items():
        check(pure_python.value_and_grad(f, x, value_type), expected, f"{problem_.name}, Python {style}")
        for enabled in (True, False):
            samples = []
            for _ in range(repeats):
                with garbage_collector(enabled):
                    samples.append(seconds(lambda value_type=value_type: pure_python.value_and_grad(f, x, value_type)))
            name = f"Python {style}" + ("" if enabled else ", gc off")
            costs[name] = 1e9 * float(np.median(samples)) / n_operations
    return costs


def check(measured, expected, name):
    """A benchmark of a wrong gradient is worthless."""
    scale = np.abs(expected[1]).max()
    if not np.allclose(measured[0], expected[0], rtol=1e-9) or not np.allclose(
        measured[1], expected[1], rtol=1e-7, atol=1e-9 * scale
    ):
        raise AssertionError(f"{name}: value and gradient {measured} differ from the hand-written {expected}")


def targets(rows):
    """What issue 2 asks, on the arithmetic tapes."""
    found = []
    for name in ("arithmetic", "one tenth exp and sin"):
        of_problem = [row for row in rows if row["problem"] == name]
        for row in [row for row in of_problem if row["slots"] >= LARGE] or of_problem[-1:]:
            where = f"{name}, {row['slots']:,} slots"
            for what, limit in (("replay", 500.0), ("record", 8.0)):
                ratio = row[f"Python / {what}"]
                found.append(Target(f"pure Python / {what} + reverse", ">=", limit, ratio, "times", where))
    return found

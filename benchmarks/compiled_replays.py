"""Compiled replays: value and gradient beside code written by hand and beside the interpreted replay; what compiling costs, and when it pays."""

import functools
import inspect
import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from problems import (
    asian_option,
    gaussian_mixture,
    heat,
    lennard_jones,
    logistic_regression,
    lorenz,
    lorenz96,
    lotka_volterra,
    mlp,
    rosenbrock,
)

import tapejit as tj

from .measure import interleaved_samples, median_time, seconds
from .report import Table, Target
from .scalar_code import check

ADJOINT_BYTES = 8  # a slot, while an interpreted reverse sweep runs
ROLL_LIMIT = 60.0  # ns a slot
GIVING_UP_LIMIT = 200.0  # ns a slot
REPLAY_NOTE = (
    "Value and gradient of one call, one thread on both sides; *primal*, *gradient*: Numba code written by hand, without fastmath. "
    "Milliseconds are medians of interleaved runs; ratios are of the fastest runs, which a busy neighbour does not lengthen."
)
COST_NOTE = (
    "Warm process, empty kernel cache; record: `tj.record`; whole: `tj.compile`, recording included; again: the same with the kernel at hand; "
    "first value_and_grad: with the check against a fresh recording; roll: that stage alone. breaks even: how many replays repay compiling, "
    "against interpreting the same tape, and against recording afresh at every call (compiled functions natively)."
)
MEMORY_NOTE = "Megabytes of the interpreted replay (the tape and its adjoint) and of the compiled one (`fast.nbytes`)."
OVERHEAD_NOTE = (
    "Microseconds of a whole value and gradient of the chained Rosenbrock function of 1000 inputs, 8000 operations."
)
THREADS_NOTE = "Milliseconds with 1 and with 2 threads; the results are compared bit by bit."
BATCH_NOTE = "`fast.batch` of one path of the option, a row of normals each, one thread; beside the loop over the paths by hand, and its gradient."
REFUSAL_NOTE = (
    "Straight-line tapes without loops: what `tj.compile` costs beyond recording, before it gives up and interprets."
)


@dataclass(frozen=True)
class Case:
    """A problem of the table, and its bounds: against the primal and the gradient written by hand.

    `sizes`: full, with ``--quick``, and for warming up. `is_loop`: most of it runs in loops, so the memory of a replay is bounded.
    `is_parallel`: its iterations carry nothing but sums.
    """

    title: str
    module: Any
    sizes: tuple
    primal_limit: float | None
    gradient_limit: float | None
    plain: str = "primal"  # what is compiled
    suffix: str = ""
    make: str = "make"
    is_loop: bool = False
    is_parallel: bool = False

    def args(self, size):
        return getattr(self.module, self.make)(size, np.random.default_rng(0))

    @property
    def function(self):
        return getattr(self.module, self.plain + self.suffix)

    @property
    def primal(self):
        return getattr(self.module, "primal" + self.suffix)

    @property
    def gradient(self):
        return getattr(self.module, "gradient" + self.suffix)


CONDUCTIVITY = {"suffix": "_conductivity", "make": "make_conductivity"}
CASES = (
    Case("Lorenz RK4, {} steps", lorenz, (10_000, 1_000, 10), 3.0, 2.0, is_loop=True),
    Case("Lorenz RK4, {} steps", lorenz, (100_000, 2_000, 10), 3.0, 2.0, is_loop=True),
    Case("Lennard-Jones, {} atoms", lennard_jones, (200, 50, 8), 4.0, 2.0, is_loop=True, is_parallel=True),
    Case("Lennard-Jones, {} atoms", lennard_jones, (500, 100, 8), 4.0, 2.0, is_loop=True, is_parallel=True),
    Case("Rosenbrock, scalar loop, n = {}", rosenbrock, (1_000_000, 20_000, 10), 3.0, 2.0, is_parallel=True),
    Case("Rosenbrock, NumPy, n = {}", rosenbrock, (1_000_000, 20_000, 10), 3.0, 2.0, "plain_array", is_parallel=True),
    Case("MLP 2-10-10-1, scalar loops, {} points", mlp, (1_000, 100, 5), 4.0, 2.0, is_parallel=True),
    Case("Gaussian mixture, scalar loops, {} points", gaussian_mixture, (1_000, 50, 5), 4.0, 2.0, is_parallel=True),
    Case("Lotka-Volterra fit, {} observations", lotka_volterra, (1_000, 50, 5), 3.5, 2.0, is_loop=True),
    Case("Lorenz-96 4D-Var, {} times", lorenz96, (80, 10, 3), 3.5, 2.0, is_loop=True),
    Case("heat equation, initial profile, {0} x {0}", heat, (500, 100, 10), 3.5, 2.0, is_loop=True),
    Case("heat equation, conductivity, {0} x {0}", heat, (500, 100, 10), 3.5, 2.0, **CONDUCTIVITY, is_loop=True),
    Case("Asian option, one loop, {} paths", asian_option, (10_000, 200, 3), 3.0, 1.5, is_parallel=True),
    Case("Gaussian mixture, NumPy, {} points", gaussian_mixture, (1_000, 50, 5), None, None, "plain_array"),
    Case("logistic regression, NumPy, {} x 100", logistic_regression, (20_000, 500, 5), None, None, "plain"),
)


@dataclass
class Rows:
    """The rows of each table, as far as they could be measured."""

    replays: list = field(default_factory=list)
    costs: list = field(default_factory=list)
    memory: list = field(default_factory=list)
    threads: list = field(default_factory=list)
    batch: list = field(default_factory=list)
    overhead: list = field(default_factory=list)
    refusals: list = field(default_factory=list)


def run(quick=False, only=()):
    """Tables and targets of this module; `only` holds parts of the titles of the cases to measure."""
    rows, targets = Rows(), []
    cases = [case for case in CASES if not only or any(part in case.title for part in only)]
    warm_up(cases)
    with empty_kernel_cache():
        for case in cases:
            targets += measure(case, case.sizes[quick], rows)
        targets += measure_batch(quick, rows)
        targets += measure_overhead(rows)
        targets += measure_refusals(quick, rows)
    note = (
        REPLAY_NOTE
        if hasattr(tj, "compile")
        else "This tapejit has no `tj.compile`, so nothing is compiled. " + REPLAY_NOTE
    )
    tables = [
        Table("Compiled replays", rows.replays, note),
        Table("Compiled replays: what compiling costs", rows.costs, COST_NOTE),
        Table("Compiled replays: memory", rows.memory, MEMORY_NOTE),
        Table("Compiled replays: two threads", rows.threads, THREADS_NOTE),
        Table("Compiled replays: batch", rows.batch, BATCH_NOTE),
        Table("Compiled replays: call overhead", rows.overhead, OVERHEAD_NOTE),
        Table("Compiled replays: tapes that do not roll", rows.refusals, REFUSAL_NOTE),
    ]
    return [table for table in tables if table.rows], targets


def warm_up(cases):
    """Load or compile the functions of the cases and tapejit's own sweeps and stages, by running each case at a small size."""
    for case in cases:
        args = case.args(case.sizes[2])
        case.primal(*args)
        case.gradient(*args)
        recording = tj.record(case.function, *args)
        recording.value_and_grad(args[0])
        roll_seconds(recording)
        if hasattr(tj, "compile"):
            compiled_and_checked(case, args)


@contextmanager
def empty_kernel_cache():
    """Compiled kernels go to an empty folder, so that compiling is measured and not reading what an earlier run has left."""
    before = os.environ.get("TAPEJIT_CACHE_DIR")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TAPEJIT_CACHE_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TAPEJIT_CACHE_DIR"]
            if before is not None:
                os.environ["TAPEJIT_CACHE_DIR"] = before


def compiled(f, *args, **options):
    """`tj.compile` with one thread unless `options` say otherwise (None: as it chooses), as far as it takes the option."""
    options = {"threads": 1, **options}
    known = inspect.signature(tj.compile).parameters
    given = {name: option for name, option in options.items() if name in known and option is not None}
    return tj.compile(f, *args, **given)


def compiled_and_checked(case, args):
    """Seconds of ``tj.compile``, the compiled function, or None if its first result is refused, and seconds of that result."""
    whole, fast = timed(compiled, case.function, *args)
    try:
        first, result = timed(fast.value_and_grad, args[0])
    except tj.errors.CompileError as error:
        print(f"{case.title}: {error}", file=sys.stderr)
        return whole, None, None
    check(result, case.gradient(*args), f"{case.title}, compiled")
    return whole, fast, first


def measure(case, size, rows):
    """Measure one case, add its rows, and return its targets."""
    args, name = case.args(size), case.title.format(f"{size:,}")
    x, expected = args[0], case.gradient(*args)
    recording = tj.record(case.function, *args)
    check(recording.value_and_grad(x), expected, f"{name}, interpreted")
    runs = {
        "primal": functools.partial(case.primal, *args),
        "gradient": functools.partial(case.gradient, *args),
        "interpreted": functools.partial(recording.value_and_grad, x),
    }
    if case.plain != "primal":
        runs["plain"] = functools.partial(case.function, *args)
    if hasattr(tj, "compile"):
        whole, fast, first = compiled_and_checked(case, args)
        if fast is not None:
            runs["compiled"] = functools.partial(fast.value_and_grad, x)
    samples = interleaved_samples(runs)
    n_operations = case.module.n_operations(args)
    rows.replays.append(replay_row(name, n_operations, recording.n_slots, samples))
    rows.costs.append(cost_row(name, case, recording, args))
    if not hasattr(tj, "compile"):
        return cost_targets(rows.costs[-1])

    found = replay_targets(case, rows.replays[-1])
    if fast is None:
        return found + cost_targets(rows.costs[-1])
    rows.costs[-1] |= compile_costs(case, fast, whole, first, rows.costs[-1], args, samples)
    found += cost_targets(rows.costs[-1])
    if hasattr(fast, "nbytes"):
        rows.memory.append(memory_row(name, recording, fast))
        if case.is_loop:
            ratio = rows.memory[-1]["compiled / interpreted"]
            found.append(Target("memory, compiled / interpreted", "<=", 0.1, ratio, "times", name))
    if case.is_parallel and "threads" in inspect.signature(tj.compile).parameters:
        rows.threads.append(threads_row(name, case, args, fast))
        row = rows.threads[-1]
        found.append(Target("1 thread / 2 threads", ">=", 1.6, row["1 / 2 threads"], "times", name))
        found.append(Target("2 threads give the same bits", ">=", 1, int(row["same bits"] == "yes"), "", name))
    return found


def timed(f, *args):
    """Seconds of one call, and its result."""
    results = []
    time = seconds(lambda: results.append(f(*args)))
    return time, results[0]


def replay_row(name, n_operations, n_slots, samples):
    """Row of the main table; without a compiler its columns are empty."""
    median = {run: float(np.median(times)) for run, times in samples.items()}
    fastest = {run: min(times) for run, times in samples.items()}

    def ratio(numerator, denominator):
        return fastest[numerator] / fastest[denominator] if numerator in fastest else None

    return {
        "problem": name,
        "operations": n_operations,
        "slots": n_slots,
        "primal ms": 1e3 * median["primal"],
        "gradient ms": 1e3 * median["gradient"],
        "interpreted ms": 1e3 * median["interpreted"],
        "compiled ms": 1e3 * median["compiled"] if "compiled" in median else None,
        "primal ns/op": 1e9 * fastest["primal"] / n_operations,
        "gradient ns/op": 1e9 * fastest["gradient"] / n_operations,
        "interpreted / primal": ratio("interpreted", "primal"),
        "interpreted / gradient": ratio("interpreted", "gradient"),
        "compiled / primal": ratio("compiled", "primal"),
        "compiled / gradient": ratio("compiled", "gradient"),
        "interpreted / compiled": fastest["interpreted"] / fastest["compiled"] if "compiled" in fastest else None,
        "compiled ns/slot": 1e9 * fastest["compiled"] / n_slots if "compiled" in fastest else None,
    }


def replay_targets(case, row):
    """The bounds of the main table."""
    bounds = (("primal", case.primal_limit), ("gradient", case.gradient_limit))
    found = []
    for what, limit in bounds:
        if limit is not None:
            title, measured = f"compiled value and gradient / hand-written {what}", row[f"compiled / {what}"]
            found.append(Target(title, "<=", limit, np.inf if measured is None else measured, "times", row["problem"]))
    return found


def cost_row(name, case, recording, args):
    """Row of what recording and rolling cost; `compile_costs` has the rest."""
    n_slots = recording.n_slots
    roll = roll_seconds(recording)
    return {
        "problem": name,
        "slots": n_slots,
        "record s": median_time(lambda: tj.record(case.function, *args), max_repeats=3),
        "record and reverse s": median_time(lambda: tj.value_and_grad(case.function)(*args), max_repeats=5),
        "roll ns/slot": None if roll is None else 1e9 * roll / n_slots,
        "compile s": None,
        "compile ns/slot": None,
        "whole s": None,
        "again s": None,
        "first value_and_grad s": None,
        "breaks even, interpreting": None,
        "breaks even, recording": None,
        "interpreted because": "",
    }


def compile_costs(case, fast, whole, first, row, args, samples):
    """The figures of a `cost_row` that need the compiled function."""
    compile_, why = max(whole - row["record s"], 0.0), ""
    if hasattr(fast, "stats"):
        newest = fast.stats().variants[0]
        compile_, why = newest.compile_seconds, newest.why_interpreted
    interpreted, steady = min(samples["interpreted"]), min(samples["compiled"])
    return {
        "compile s": compile_,
        "compile ns/slot": 1e9 * compile_ / row["slots"],
        "whole s": whole,
        "again s": seconds(lambda: compiled(case.function, *args)),
        "first value_and_grad s": first,
        "breaks even, interpreting": replays_to_repay(compile_, interpreted - steady),
        "breaks even, recording": replays_to_repay(whole, row["record and reverse s"] - steady),
        "interpreted because": why,
    }


def replays_to_repay(cost, gain):
    """How many replays that save `gain` seconds each repay `cost` seconds."""
    return "never" if gain <= 0.0 else int(np.ceil(cost / gain))


def cost_targets(row):
    """The bounds of what compiling costs."""
    found = []
    if row["roll ns/slot"] is not None:
        found.append(Target("roll", "<=", ROLL_LIMIT, row["roll ns/slot"], "ns a slot", row["problem"]))
    if row["whole s"] is not None:
        found.append(Target("compile, recording included", "<=", 1.5, row["whole s"], "s", row["problem"]))
    return found


def roll_seconds(recording):
    """Seconds of finding the loops in a tape, pruned before; None where this tapejit has no such stage, or gives the tape up."""
    try:
        from tapejit.compiler.kernel import LARGEST_PRODUCT
        from tapejit.compiler.prune import prune
        from tapejit.compiler.roll import TooLargeError, roll
        from tapejit.expansion import expand
        from tapejit.tape import FlatTape
    except ImportError:
        return None
    program = prune(expand(recording.tape, FlatTape(), True, LARGEST_PRODUCT))
    try:
        return median_time(lambda: roll(program), max_repeats=3)
    except TooLargeError:
        return None


def memory_row(name, recording, fast):
    """Row of the bytes of both kinds of replay."""
    interpreted = recording.nbytes + ADJOINT_BYTES * recording.n_slots
    return {
        "problem": name,
        "slots": recording.n_slots,
        "interpreted MB": 1e-6 * interpreted,
        "compiled MB": 1e-6 * fast.nbytes,
        "compiled / interpreted": fast.nbytes / interpreted,
    }


def threads_row(name, case, args, fast):
    """Row of two threads beside one."""
    two = compiled(case.function, *args, threads=2)
    x = args[0]
    one_result, two_result = fast.value_and_grad(x), two.value_and_grad(x)
    same = one_result[0] == two_result[0] and np.array_equal(one_result[1], two_result[1], equal_nan=True)
    samples = interleaved_samples({"1": lambda: fast.value_and_grad(x), "2": lambda: two.value_and_grad(x)})
    return {
        "problem": name,
        "1 thread ms": 1e3 * float(np.median(samples["1"])),
        "2 threads ms": 1e3 * float(np.median(samples["2"])),
        "1 / 2 threads": min(samples["1"]) / min(samples["2"]),
        "same bits": "yes" if same else "no",
    }


def measure_batch(quick, rows):
    """The option by `fast.batch`: a row, and its targets."""
    if not hasattr(tj, "compile"):
        return []
    x, normals = asian_option.make(asian_option_paths(quick), np.random.default_rng(0))
    fast = compiled(asian_option.path, x, normals[0])
    if not hasattr(fast, "batch"):
        return []
    inputs = np.tile(x, (len(normals), 1))

    def batch():
        values, gradients = fast.batch(inputs, (normals,))
        return values.mean(), gradients.mean(axis=0)

    fast.value_and_grad(x)  # The first replay of a variant is checked against a fresh recording.
    check(batch(), asian_option.gradient(x, normals), "Asian option, batch")
    runs = {
        "primal": lambda: asian_option.primal(x, normals),
        "gradient": lambda: asian_option.gradient(x, normals),
        "batch": batch,
    }
    samples = interleaved_samples(runs)
    fastest = {run: min(times) for run, times in samples.items()}
    row = {
        "paths": len(normals),
        **{f"{name} ms": 1e3 * float(np.median(times)) for name, times in samples.items()},
        "batch / primal": fastest["batch"] / fastest["primal"],
        "batch / gradient": fastest["batch"] / fastest["gradient"],
    }
    rows.batch.append(row)
    where = f"Asian option, {len(normals):,} paths"
    return [
        Target("batch / hand-written primal", "<=", 3.0, row["batch / primal"], "times", where),
        Target("batch / hand-written gradient", "<=", 1.5, row["batch / gradient"], "times", where),
    ]


def asian_option_paths(quick):
    """Number of paths of the option."""
    return next(case for case in CASES if case.module is asian_option).sizes[quick]


def measure_overhead(rows, n=1000, calls=200):
    """What a call costs besides the arithmetic: a row, and its target."""
    (x,) = rosenbrock.make(n, np.random.default_rng(0))
    runs = {"hand-written gradient": rosenbrock.gradient, "interpreted": tj.record(rosenbrock.primal, x).value_and_grad}
    if hasattr(tj, "compile"):
        fast = compiled(rosenbrock.primal, x)
        runs |= {"compiled": fast.value_and_grad, "compiled, value alone": fast.value}

    def repeatedly(f):
        return lambda: [f(x) for _ in range(calls)]

    samples = interleaved_samples({name: repeatedly(f) for name, f in runs.items()})
    row = {"inputs": n, **{f"{name} us": 1e6 * float(np.median(times)) / calls for name, times in samples.items()}}
    rows.overhead.append(row)
    if "compiled us" not in row:
        return []
    return [Target("call of a compiled value and gradient", "<=", 10.0, row["compiled us"], "us", f"n = {n}")]


def irregular(x, codes):
    """Straight-line code in which nothing repeats: `codes` choose the operation and the operands at random."""
    values = [x[0], x[1], x[2], x[3]]
    total = x[0]
    for code in codes.tolist():
        a, b = values[(code >> 2) % 4], values[(code >> 4) % 4]
        kind = code % 4
        if kind == 0:
            v = 0.5 * a + b
        elif kind == 1:
            v = a - 0.3 * b
        elif kind == 2:
            v = a * 0.7 + 0.1
        else:
            v = a / (b * b + 1.0)
        values[(code >> 6) % 4] = v
        total = total + v  # so that no adjoint vanishes
    return total


def measure_refusals(quick, rows):
    """Compile tapes without loops: rows, and their targets."""
    if not hasattr(tj, "compile"):
        return []
    targets = []
    for size in (10_000,) if quick else (10_000, 300_000):
        rng = np.random.default_rng(0)
        x, codes = rng.uniform(0.5, 1.5, 4), rng.integers(256, size=size)
        record, recording = timed(tj.record, irregular, x, codes)
        whole, fast = timed(compiled, irregular, x, codes)
        check(fast.value_and_grad(x), recording.value_and_grad(x), "irregular")
        cost = 1e9 * max(whole - record, 0.0) / recording.n_slots
        rows.refusals.append(
            {
                "slots": recording.n_slots,
                "record s": record,
                "whole s": whole,
                "beyond recording ns/slot": cost,
                "interpreted ms": 1e3 * median_time(lambda recording=recording, x=x: recording.value_and_grad(x)),
                "compiled ms": 1e3 * median_time(lambda fast=fast, x=x: fast.value_and_grad(x)),
            }
        )
        if size == 300_000:  # of a short tape some pieces are compiled
            where = f"{recording.n_slots:,} slots"
            targets.append(Target("tape that does not roll", "<=", GIVING_UP_LIMIT, cost, "ns a slot", where))
    return targets

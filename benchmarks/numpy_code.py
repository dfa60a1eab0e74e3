"""NumPy code: value and gradient, replayed and recorded afresh, as multiples of the plain NumPy primal."""

import numpy as np
from problems import lennard_jones, logistic_regression, mlp, rosenbrock

import tapejit as tj

from .measure import interleaved
from .report import Table, Target
from .scalar_code import check

# problem: its module, its plain form, its size and its size with --quick
PROBLEMS = {
    "Rosenbrock": (rosenbrock, rosenbrock.plain_array, 1_000_000, 100_000),
    "logistic regression": (logistic_regression, logistic_regression.plain, 20_000, 2_000),
    "MLP 2-10-10-1": (mlp, mlp.plain_array, 20_000, 2_000),
    "Lennard-Jones": (lennard_jones, lennard_jones.plain_array, 500, 100),
}
REPLAY, RECORD = "replay / primal", "record / primal"
NOTE = (
    "Medians of interleaved runs; replay: `tape.value_and_grad(x)`, record: `tj.value_and_grad(f)(x, ...)`,"
    " primal: the plain NumPy function. Targets for Rosenbrock and logistic regression: replay <= 4 times "
    "the primal, record <= 8."
)


def run(quick=False):
    """Tables and targets of this module."""
    rows = [measure(name, quick) for name in PROBLEMS]
    targets = []
    for row in rows[:2]:
        where = f"{row['problem']}, size {row['size']:,}"
        targets.append(Target("replay + reverse / NumPy primal", "<=", 4.0, row[REPLAY], "times", where))
        targets.append(Target("record + reverse / NumPy primal", "<=", 8.0, row[RECORD], "times", where))
    return [Table("NumPy code", rows, NOTE)], targets


def measure(name, quick):
    """Figures of one problem."""
    module, plain, full_size, quick_size = PROBLEMS[name]
    size = quick_size if quick else full_size
    args = module.make(size, np.random.default_rng(0))
    x = args[0]
    tape = tj.record(plain, *args)
    check(tape.value_and_grad(x), module.gradient(*args), name)
    times = interleaved(
        {
            "primal": lambda: plain(*args),
            "replay": lambda: tape.value_and_grad(x),
            "record": lambda: tj.value_and_grad(plain)(*args),
            "hand-written primal": lambda: module.primal(*args),
            "hand-written gradient": lambda: module.gradient(*args),
        }
    )
    return {
        "problem": name,
        "size": size,
        "slots": tape.n_slots,
        "bytes/slot": tape.nbytes / tape.n_slots,
        **{f"{what} ms": 1e3 * time for what, time in times.items()},
        REPLAY: times["replay"] / times["primal"],
        RECORD: times["record"] / times["primal"],
        "replay / hand gradient": times["replay"] / times["hand-written gradient"],
    }

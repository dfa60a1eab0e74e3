"""Recording and sweeping synthetic scalar tapes: ns and bytes a slot, and whether they grow with the tape."""

import json

import numpy as np
from problems import arithmetic

import tapejit as tj
import tapejit.sweeps

from .measure import median_time, run_python
from .report import Table, Target

PROGRAMS = {
    "arithmetic": (arithmetic.plain, arithmetic.ITERATION),
    "arithmetic, shuffled": (arithmetic.plain_shuffled, 1),
    "one tenth exp and sin": (arithmetic.plain_transcendental, arithmetic.TRANSCENDENTAL_ITERATION),
}
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
LARGE = 1_000_000  # the targets are stated for tapes of this size and more
NOTE = (
    "record: `tj.record`; forward: `tape.value(x)`; reverse: `tapejit.sweeps.reverse` alone, adjoints "
    "cleared before; bytes: the tape, and the adjoint while a reverse sweep runs. Targets on 1e6 slots and "
    "more: forward <= 3 ns, reverse <= 5 ns."
)


def run(quick=False):
    """Tables and targets of this module."""
    sizes = [size for size in SIZES if not quick or size <= 100_000]
    rows = [measure(name, size) for name in PROGRAMS for size in sizes]
    memory, memory_target = peak_memory(LARGE if quick else SIZES[-1])
    return [Table("Sweeps over scalar tapes", rows, NOTE), memory], targets(rows) + [memory_target]


def measure(name, size):
    """Figures of one program at one size."""
    program, iteration = PROGRAMS[name]
    x, _ = args = arithmetic.make(size, np.random.default_rng(0))
    n_operations = arithmetic.n_operations(args, iteration)

    def record():
        return tj.record(lambda x: program(x, size), x)

    tape = record()
    n_slots = tape.n_slots
    recording = median_time(record, warm_up=False)
    forward = median_time(lambda: tape.value(x))
    reverse = reverse_time(tape)
    both = median_time(lambda: tape.value_and_grad(x))
    return {
        "problem": name,
        "slots": n_slots,
        "operations": n_operations,
        "record ns/slot": 1e9 * recording / n_slots,
        "forward ns/slot": 1e9 * forward / n_slots,
        "reverse ns/slot": 1e9 * reverse / n_slots,
        "tape bytes/slot": tape.nbytes / n_slots,
        "with adjoint bytes/slot": tape.nbytes / n_slots + 8.0,
        "record ns/op": 1e9 * recording / n_operations,
        "forward ns/op": 1e9 * forward / n_operations,
        "reverse ns/op": 1e9 * reverse / n_operations,
        "value_and_grad ns/op": 1e9 * both / n_operations,
    }


def reverse_time(recording):
    """Median seconds of a reverse sweep alone."""
    tape = recording.tape
    adjoint = np.empty(tape.n_slots)

    def seed():
        adjoint.fill(0.0)
        adjoint[tape.output_slots] = 1.0

    return median_time(lambda: tapejit.sweeps.reverse(tape, adjoint), setup=seed)


def targets(rows):
    """What issue 2 asks of the sweeps, on the largest tapes measured."""
    found = []
    for name in PROGRAMS:
        of_program = [row for row in rows if row["problem"] == name]
        large = [row for row in of_program if row["operations"] >= LARGE] or of_program[-1:]
        for row in large:
            where = f"{name}, {row['slots']:,} slots"
            found.append(Target("forward sweep", "<=", 3.0, row["forward ns/slot"], "ns/slot", where))
            found.append(Target("reverse sweep", "<=", 5.0, row["reverse ns/slot"], "ns/slot", where))
        middle = next(row for row in of_program if row["operations"] >= 100_000)
        if large[-1] is not middle:
            growth = sweep_cost(large[-1]) / sweep_cost(middle)
            where = f"{name}, {large[-1]['slots']:,} against {middle['slots']:,} slots"
            found.append(Target("growth of the cost a slot", "<=", 1.5, growth, "times", where))
    return found


def sweep_cost(row):
    """Nanoseconds a slot of both sweeps."""
    return row["forward ns/slot"] + row["reverse ns/slot"]


def peak_memory(n_operations):
    """Peak resident memory in a process of its own."""
    peak = json.loads(run_python("-m", "benchmarks.peak_memory", str(n_operations)))
    n_slots = peak["slots"]
    row = {
        "slots": n_slots,
        "reverse sweep, peak bytes/slot": peak["reverse"] / n_slots,
        "recording, peak bytes/slot": peak["recording"] / n_slots,
    }
    note = "Resident memory above that before recording. Target: reverse sweep <= 26 bytes a slot."
    if not peak["reverse_alone"]:
        note += " This system cannot reset its peak, so the first figure includes the recording."
    target = Target(
        "peak memory of a reverse sweep",
        "<=",
        26.0,
        peak["reverse"] / n_slots,
        "bytes/slot",
        f"{n_slots:,} slots",
    )
    return Table("Peak memory", [row], note), target

"""Loops under a memory budget: time and peak memory against the plan, snapshots on disk, and others' checkpointing beside them.

``python -m benchmarks --only checkpointing``, and ``python -m benchmarks.checkpointing --plot time_and_memory.png`` for a picture. Every figure
comes from a fresh process with a warm kernel cache (``python -m benchmarks.checkpointing PROBLEM STEPS BUDGET``), which prints JSON.
"""

import ctypes
import gc
import json
import sys
import tempfile
import time

import numpy as np
from problems import long_loops

import tapejit as tj
from tapejit.checkpointing import fewest_advances, steps, two_level
from tapejit.workspace import forget

from .measure import run_python
from .peak_memory import reset_peak, resident
from .report import Table, Target

MIB = 1 << 20
# Steps, steps of a run that keeps all states, and budgets in MiB.
PROBLEMS = {
    "Lorenz-96, n = 40": (1_000_000, 20_000, (16, 32, 64, 128, 256)),
    "heat equation, n = 100,000": (500, 100, (120, 160, 200, 300, 400)),
    "LSTM, 32 units": (50_000, 20_000, (16, 20, 24, 28, 32)),
}
NOTE = (
    "Value and gradient. Bytes above the level at the start of the loop; planned before it runs; measured is the largest resident memory. Advances "
    "a step: the theoretical optimum, which the schedule equals (tests/test_checkpointing_schedules.py). Beside it the time of a step over that of a "
    "shorter run that keeps all states."
)


def make(name, n_steps):
    """A function of what is differentiated by and of options of `tj.loop`, and a point."""
    rng = np.random.default_rng(0)
    if name.startswith("Lorenz"):
        return lambda x, n, **options: np.sum(
            tj.loop(long_loops.lorenz96_step, x, n, **options)
        ), long_loops.lorenz96_start()
    if name.startswith("heat"):
        width = 100_000
        profile = np.sin(np.linspace(0.0, 3.0, width))
        return lambda c, n, **options: np.sum(tj.loop(long_loops.heat_step, profile, n, c, **options) ** 2), np.full(
            width - 1, 0.9
        )
    units, width = 32, 16
    rows = rng.normal(size=(n_steps, width))

    def lstm(weights, n, **options):
        start = (np.zeros(units), np.zeros(units))
        return np.sum(
            tj.loop(long_loops.lstm_step, start, n, weights, np.zeros(4 * units), inputs=rows[:n], **options)[0]
        )

    return lstm, 0.1 * rng.normal(size=(4 * units, units + width))


def measured(f):
    """Seconds, and peak bytes above the start."""
    forget()
    for kernel in steps._kernels.values():
        kernel._free.clear()  # its working memory, from the run before
    gc.collect()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).malloc_trim(0)
    can_reset = reset_peak()
    before = resident("VmRSS") if can_reset else 0
    start = time.perf_counter()
    gradient = f()
    seconds = time.perf_counter() - start
    assert np.isfinite(gradient).all()
    return seconds, resident("VmHWM") - before if can_reset else None


def one(name, n_steps, budget):
    """Figures of one problem within one budget."""
    short = PROBLEMS[name][1]
    f, x = make(name, max(n_steps, short))
    tj.grad(f)(x, short)  # compiles
    kept = min(measured(lambda: tj.grad(f)(x, short))[0] for _ in range(3)) / short
    seconds, peak = measured(lambda: tj.value_and_grad(f)(x, n_steps, memory=budget)[1])
    plan = tj.memory_report().plan
    assert plan.advances == fewest_advances(n_steps, plan.checkpoints)
    return {
        "problem": name,
        "steps": n_steps,
        "budget MiB": budget / MIB,
        "planned MiB": plan.nbytes / MIB,
        "measured MiB": None if peak is None else peak / MIB,
        "checkpoints": plan.checkpoints,
        "advances a step": plan.advances / n_steps,
        "us a step": 1e6 * seconds / n_steps,
        "/ all kept": seconds / n_steps / kept,
    }


def on_disk(n_steps, memory):
    """Lorenz-96 with some snapshots in memory and four times as many on disk, beside all in memory and beside those in memory alone."""
    f, x = make("Lorenz-96, n = 40", n_steps)
    tj.grad(f)(x, 20_000)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        schedule = two_level(n_steps, memory, 4 * memory)
        for what, options in (
            ("memory alone", {"checkpoints": memory}),
            ("and four times as many on disk", {"schedule": schedule, "directory": directory}),
            ("the same number, all in memory", {"checkpoints": 5 * memory}),
        ):
            seconds, _ = measured(lambda options=options: tj.grad(f)(x, n_steps, **options))
            rows.append({"snapshots": what, "MiB of them": 320 * memory / MIB, "us a step": 1e6 * seconds / n_steps})
    rows[1]["MiB of them"] = rows[2]["MiB of them"] = 5 * 320 * memory / MIB
    return rows


def with_jax(n_steps):
    """Lorenz-96 by JAX: a scan over blocks of steps under ``jax.checkpoint``, square root of the steps each; None where it is not installed."""
    try:
        import jax
    except ImportError:
        return None
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    h = long_loops.STEP_LENGTH

    def tendency(x):
        return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + long_loops.FORCING

    def step(x, _):
        a = tendency(x)
        b = tendency(x + 0.5 * h * a)
        c = tendency(x + 0.5 * h * b)
        d = tendency(x + h * c)
        return x + h / 6.0 * (a + 2.0 * (b + c) + d), None

    side = round(n_steps**0.5)

    @jax.checkpoint
    def block(x, _):
        return jax.lax.scan(step, x, None, length=side)[0], None

    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jax.lax.scan(block, x, None, length=side)[0])))
    x = jnp.array(long_loops.lorenz96_start())
    start = time.perf_counter()
    compiled = gradient.lower(x).compile()
    compile_seconds = time.perf_counter() - start
    compiled(x).block_until_ready()
    start = time.perf_counter()
    compiled(x).block_until_ready()
    seconds = time.perf_counter() - start
    return {"steps": side * side, "us a step": 1e6 * seconds / side**2, "compile s": compile_seconds}


def with_torch(n_steps):
    """Lorenz-96 by PyTorch: blocks of steps under ``torch.utils.checkpoint``, square root of the steps each; None where it is not installed."""
    try:
        import torch
        from torch.utils.checkpoint import checkpoint
    except ImportError:
        return None
    h = long_loops.STEP_LENGTH

    def tendency(x):
        return (torch.roll(x, -1) - torch.roll(x, 2)) * torch.roll(x, 1) - x + long_loops.FORCING

    def block(x, n):
        for _ in range(n):
            a = tendency(x)
            b = tendency(x + 0.5 * h * a)
            c = tendency(x + 0.5 * h * b)
            d = tendency(x + h * c)
            x = x + h / 6.0 * (a + 2.0 * (b + c) + d)
        return x

    side = round(n_steps**0.5)
    torch.set_num_threads(1)
    x = start = torch.tensor(long_loops.lorenz96_start(), requires_grad=True)
    began = time.perf_counter()
    for _ in range(side):
        x = checkpoint(block, x, side, use_reentrant=False)
    x.sum().backward()
    assert torch.isfinite(start.grad).all()
    return {"steps": side * side, "us a step": 1e6 * (time.perf_counter() - began) / side**2}


def run(quick=False):
    """Tables and targets of this module."""
    rows = []
    for name, (n_steps, _, budgets) in PROBLEMS.items():
        n = n_steps // 10 if quick and name.startswith("Lorenz") else n_steps
        for budget in budgets[:2] if quick else budgets:
            rows.append(json.loads(run_python("-m", "benchmarks.checkpointing", name, str(n), str(budget * MIB))))
    targets = [
        Target(
            "measured / budget",
            "<=",
            1.0,
            row["measured MiB"] / row["budget MiB"],
            "",
            f"{row['problem']}, {row['budget MiB']:.0f} MiB",
        )
        for row in rows
        if row["measured MiB"] is not None
    ]
    targets += [
        Target(
            "measured / planned",
            ">=",
            0.9,
            row["measured MiB"] / row["planned MiB"],
            "",
            f"{row['problem']}, {row['budget MiB']:.0f} MiB",
        )
        for row in rows
        if row["measured MiB"] is not None
    ]
    targets += [
        Target("time / all kept", "<=", 2.0, row["/ all kept"], "", f"{row['problem']}, {row['budget MiB']:.0f} MiB")
        for row in rows
        if row["problem"].startswith("Lorenz") and row["budget MiB"] == 256
    ]
    tables = [Table("Loops under a memory budget", rows, NOTE)]
    n_steps = 100_000 if quick else 1_000_000
    disk = json.loads(run_python("-m", "benchmarks.checkpointing", "--disk", str(n_steps), str(n_steps // 50)))
    tables.append(
        Table(
            "Lorenz-96 with snapshots on disk",
            disk,
            f"{n_steps:,} steps; the file is in the system's folder for temporary files.",
        )
    )
    peers = []
    for name, flag, n in (("JAX", "--jax", n_steps), ("PyTorch", "--torch", 2500)):
        if figures := json.loads(run_python("-m", "benchmarks.checkpointing", flag, str(n))):
            peers.append({"peer": name, **figures})
    if peers:
        note = "The same steps in array code, in as many blocks as each has steps, recomputed in the reverse sweep; PyTorch with one thread."
        tables.append(Table("Lorenz-96 by others", peers, note))
    return tables, targets


def plot(path, rows):
    """Time against memory, next to the theoretical curve; one panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4))
    for axis, name in zip(axes, names, strict=True):
        chosen = [row for row in rows if row["problem"] == name]
        memory = [row["measured MiB"] or row["planned MiB"] for row in chosen]
        axis.plot(memory, [row["us a step"] for row in chosen], "o-", label="measured")
        # A line through the first and the last: time is linear in advances.
        (low, high), n_steps = (chosen[0], chosen[-1]), chosen[0]["steps"]
        slope = (low["us a step"] - high["us a step"]) / (low["advances a step"] - high["advances a step"] or 1.0)
        checkpoints = np.geomspace(low["checkpoints"], high["checkpoints"], 50).astype(int)
        bytes_each = (high["planned MiB"] - low["planned MiB"]) / (high["checkpoints"] - low["checkpoints"])
        advances = np.array([fewest_advances(n_steps, int(c)) / n_steps for c in checkpoints])
        axis.plot(
            low["planned MiB"] + bytes_each * (checkpoints - low["checkpoints"]),
            high["us a step"] + slope * (advances - high["advances a step"]),
            "--",
            label="theory: the fewest advances",
        )
        axis.set(title=name, xlabel="MiB above the start", ylabel="us a step", ylim=(0, None))
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    first, *rest = sys.argv[1:]
    if first == "--plot":
        plot(rest[0], run()[0][0].rows)
    elif first == "--disk":
        print(json.dumps(on_disk(*map(int, rest))))
    elif first == "--jax":
        print(json.dumps(with_jax(int(rest[0]))))
    elif first == "--torch":
        print(json.dumps(with_torch(int(rest[0]))))
    else:
        print(json.dumps(one(first, *map(int, rest))))

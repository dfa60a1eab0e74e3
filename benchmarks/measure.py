"""How the benchmarks measure: medians, interleaved runs, garbage collector on or off, and on what machine."""

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


def seconds(f, setup=None):
    """Seconds of one call of `f`; `setup`, if any, runs before it untimed."""
    if setup is not None:
        setup()
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def median_time(f, setup=None, budget=1.0, max_repeats=25, warm_up=True):
    """Median seconds of a call of `f`: as many calls as fit into `budget` seconds, one at least."""
    if warm_up:
        seconds(f, setup)
    times = []
    while not times or (len(times) < max_repeats and sum(times) + times[-1] < budget):
        times.append(seconds(f, setup))
    return statistics.median(times)


def interleaved(functions, rounds=9):
    """Median seconds of each function of a dict, called in turn so that a busy moment strikes all of them."""
    return {name: statistics.median(times) for name, times in interleaved_samples(functions, rounds).items()}


def interleaved_samples(functions, rounds=9):
    """Seconds of each function of a dict, called in turn, once a round.

    Each is called a few times before it is timed: the function before has filled the caches with its own data, and threads of its BLAS may
    still be waiting for work on the other core.
    """
    for f in functions.values():
        f()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, f in functions.items():
            for _ in range(3):
                f()
            times[name].append(seconds(f))
    return times


@contextmanager
def garbage_collector(enabled):
    """Run a block with the cyclic garbage collector on or off; collect before and after, untimed."""
    was_enabled = gc.isenabled()
    gc.collect()
    (gc.enable if enabled else gc.disable)()
    try:
        yield
    finally:
        gc.collect()
        (gc.enable if was_enabled else gc.disable)()


def run_python(*arguments, env=None):
    """Standard output of a fresh Python process in the repository, with `env` added to the environment."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{result.stderr}")
    return result.stdout


def environment():
    """What the figures depend on: machine, versions, load, and the command that was run."""
    import numba
    import numpy

    return {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "numba": numba.__version__,
    }


def processor_name():
    """Model of the processor, as well as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())

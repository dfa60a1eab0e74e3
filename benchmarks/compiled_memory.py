"""Peak memory of a compiled function recorded natively, and of its gradient: ``python -m benchmarks.compiled_memory N``.

Prints JSON: bytes of resident memory above what the process had before, at their peak while recording and in value and gradient.
"""

import gc
import json
import sys
import time

import numpy as np
from problems import lorenz

import tapejit as tj
from tapejit.calls import Call

from .peak_memory import reset_peak, resident


def measure(n_operations):
    """Peaks and seconds of a Lorenz trajectory of about `n_operations` operations."""
    small = lorenz.make(10, np.random.default_rng(0))
    tj.value_and_grad(lorenz.primal)(*small)
    args = lorenz.make(n_operations // lorenz.OPERATIONS_PER_STEP, np.random.default_rng(0))
    gc.collect()
    before = resident("VmRSS")
    figures = {}
    for name, run in (
        ("recording", lambda: Call(lorenz.primal, args, (0,), short_lived=True).tape.n_slots),
        ("both", lambda: tj.value_and_grad(lorenz.primal)(*args) and None),
    ):
        gc.collect()
        reset_peak()
        start = time.perf_counter()
        n_slots = run()
        figures[f"seconds {name}"] = time.perf_counter() - start
        figures[name] = resident("VmHWM") - before
        figures.setdefault("slots", n_slots)
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(int(float(sys.argv[1])))))

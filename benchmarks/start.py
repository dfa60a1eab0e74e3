"""Starting up: importing tapejit beyond numba, and the first gradient with a cold and with a warm cache."""

import json
import statistics
import tempfile

from .measure import run_python
from .report import Table, Target

PROBE = """
import json, time
import numba
start = time.perf_counter()
import tapejit as tj
imported = time.perf_counter()
import numpy as np
x = np.array([0.5, 1.5])
{gradient}
done = time.perf_counter()
print(json.dumps([imported - start, done - imported]))
"""
GRADIENTS = {
    "scalar code": "tj.grad(lambda x: x[0] * np.sin(x[1]) + x[1] / x[0])(x)",
    "NumPy code": "tj.grad(lambda x: np.sum(np.sin(x) * x))(x)",
}
NOTE = (
    "Seconds in a fresh process; cold: TAPEJIT_CACHE_DIR is an empty directory, warm: the second and later "
    "processes. Targets: import <= 0.5 s beyond numba's, first gradient warm well under 1 s."
)


def run(quick=False):
    """Tables and targets of this module."""
    rows = [measure(name, 1 if quick else 5) for name in GRADIENTS]
    targets = [Target("import beyond numba's", "<=", 0.5, min(row["import s"] for row in rows), "s")]
    targets += [
        Target("first gradient, warm cache", "<=", 1.0, row["first gradient, warm s"], "s", row["problem"])
        for row in rows
    ]
    return [Table("Starting up", rows, NOTE)], targets


def measure(name, repeats):
    """Figures of the first gradient of one function."""
    with tempfile.TemporaryDirectory() as cache:

        def start():
            output = run_python("-c", PROBE.format(gradient=GRADIENTS[name]), env={"TAPEJIT_CACHE_DIR": cache})
            return json.loads(output)

        _, cold = start()
        warm = [start() for _ in range(repeats)]
    return {
        "problem": name,
        "import s": statistics.median(imported for imported, _ in warm),
        "first gradient, cold s": cold,
        "first gradient, warm s": statistics.median(gradient for _, gradient in warm),
    }

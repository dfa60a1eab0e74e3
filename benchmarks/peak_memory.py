"""Peak memory of recording and of reversing a tape: ``python -m benchmarks.peak_memory N``.

Prints JSON: bytes of resident memory above what the process had before it recorded (with everything imported,
loaded and warmed up on a small tape), at their peak while recording and at their peak during the reverse
sweep alone.
"""

import gc
import json
import resource
import sys
from pathlib import Path

import numpy as np
from problems import arithmetic

import tapejit as tj

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field):
    """Bytes of a field of /proc/self/status: VmRSS (now) or VmHWM (peak since the last reset)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def lifetime_peak():
    """Largest resident memory of this process ever, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak():
    """Forget the peak so far; False where the system cannot (other than Linux)."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def measure(n_operations):
    """Peaks of one recording and one reverse sweep of about `n_operations` slots."""
    x, _ = arithmetic.make(0, np.random.default_rng(0))
    warm_up = tj.record(lambda x: arithmetic.plain(x, 1000), x)
    warm_up.value_and_grad(x)
    gc.collect()
    can_reset = reset_peak()
    before = resident("VmRSS") if can_reset else lifetime_peak()

    tape = tj.record(lambda x: arithmetic.plain(x, n_operations), x)
    recording = (resident("VmHWM") if can_reset else lifetime_peak()) - before
    gc.collect()
    reset_peak()
    tape.value_and_grad(x)
    return {
        "slots": tape.n_slots,
        "recording": recording,
        "reverse": (resident("VmHWM") if can_reset else lifetime_peak()) - before,
        "reverse_alone": can_reset,
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(float(sys.argv[1])))))

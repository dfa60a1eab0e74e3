"""What tapejit costs, beside pure Python, hand-written Numba code and its peers: ``python -m benchmarks``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the problems serve the tests too

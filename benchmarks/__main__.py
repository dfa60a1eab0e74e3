"""``python -m benchmarks [--quick] [--only NAME] [--json PATH] [--plot PATH]``."""

import argparse
import importlib
import sys
import time

from . import report
from .measure import environment

NAMES = ("sweeps", "scalar_code", "numpy_code", "compiled_code", "compiled_replays", "checkpointing", "start", "peers")


def main():
    """Run the benchmarks and print the report; progress goes to stderr."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What tapejit costs, and beside what.")
    parser.add_argument("--quick", action="store_true", help="sizes up to 1e5 only: about a minute")
    parser.add_argument("--only", choices=NAMES, action="append", help="one benchmark; may be repeated")
    parser.add_argument("--json", metavar="PATH", help="write all figures, unrounded")
    parser.add_argument("--plot", metavar="PATH", help="write a log-log plot of cost against size (matplotlib)")
    options = parser.parse_args()

    machine, tables, targets = environment(), [], []
    print(report.heading(machine))
    for name in options.only or NAMES:
        start = time.perf_counter()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        new_tables, new_targets = importlib.import_module(f"benchmarks.{name}").run(options.quick)
        tables += new_tables
        targets += new_targets
        print(*map(report.markdown, new_tables), sep="\n", flush=True)
        print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)

    if targets:
        print(report.markdown_targets(targets))
    if options.json:
        report.write_json(options.json, machine, tables, targets)
    if options.plot:
        print(report.plot(options.plot, tables), file=sys.stderr)


if __name__ == "__main__":
    main()

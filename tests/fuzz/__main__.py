"""`make fuzz`: all rooms, or some, with any seed; the exit code says whether anything failed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fuzzing import ROOMS, fuzz, room_named, summary


def main() -> int:
    parser = argparse.ArgumentParser("make fuzz", description=__doc__)
    parser.add_argument("rooms", nargs="*", default=ROOMS, metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1200, help="inputs of each room")
    parser.add_argument("--only", type=int, help="one input, by its number")
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), help="where inputs that fail are kept")
    requested = parser.parse_args()
    total, failures = 0, 0
    for name in requested.rooms:
        numbers = range(requested.count) if requested.only is None else [requested.only]
        report = fuzz(room_named(name), requested.seed, numbers, requested.keep)
        print(summary(name, report), flush=True)
        for failure in report.failures:
            print(failure, flush=True)
        total += report.inputs
        failures += len(report.failures)
    print(f"{total} inputs, seed {requested.seed}: {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

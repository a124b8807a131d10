"""The bench of a fleet: a real controller, and simulated defenders in other processes, on loopback.

    python tests/bench/fleet/run.py [--quick] [--json FILE] [--cases idle,push] [--defenders 5000]

Each defender has a certificate of its own, an address of its own (127.0.0.0/8), a real TLS 1.3 connection and
a real session; what it is pushed it acknowledges without checking the signature. Medians are printed, and at
the end the project's targets beside them. Children are ended by their id."""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.bench.children import TargetError
from tests.bench.fleet.cases import FULL, GROUPS, QUICK
from tests.bench.fleet.goals import fleet_goals
from tests.bench.fleet.session import FleetRun, medians_table
from tests.bench.goals import goals_table
from tests.bench.machine import machine
from tests.bench.run import chosen


def options_parser() -> argparse.ArgumentParser:
    """The command line."""
    groups = "\n".join(f"  {name:9} {words}" for name, words in GROUPS.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog=f"cases:\n{groups}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="under two minutes, for a first look")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--cases", default=",".join(GROUPS), help="comma-separated subset of those below")
    parser.add_argument(
        "--repetitions", type=int, choices=range(1, 51), metavar="N", help=f"default {FULL.repetitions}"
    )
    parser.add_argument(
        "--defenders", type=int, metavar="N", help=f"in the large fleet, 1 to 15000; default {FULL.defenders}"
    )
    parser.add_argument(
        "--directory", default="/var/tmp", help="where files are kept meanwhile, on the disk to be measured"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Parse the options, run, print the tables; 1 when something could not be measured."""
    parser = options_parser()
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL
    defenders = options.defenders or effort.defenders
    if not 1 <= defenders <= 15_000:
        parser.error("--defenders must be between 1 and 15000")
    effort = replace(effort, defenders=defenders, repetitions=options.repetitions or effort.repetitions)
    run = FleetRun(effort, chosen(options.cases, GROUPS, "case", parser))
    # The children inherit it: each holds thousands of connections.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Ended from outside it ends its children too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    try:
        if options.json:
            Path(options.json).touch()  # before the work, not after it
        with tempfile.TemporaryDirectory(prefix="fleet", dir=options.directory) as directory:
            described = machine(Path(directory))
            run.do(Path(directory))
    except (TargetError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    medians = run.medians()
    reached = fleet_goals(medians)
    words = sys.argv[1:] if arguments is None else arguments
    described |= {
        "command": shlex.join(["python", "tests/bench/fleet/run.py", *words]),
        "run": f"{effort.defenders} defenders, {effort.repetitions} repetitions, medians; "
        f"{time.monotonic() - began:.0f} s in all",
    }
    for key, value in described.items():
        if key not in ("haproxy", "go", "dockerd"):
            print(f"{key:13} {value}")
    for text in (medians_table(medians), goals_table(reached)):
        if text:
            print(f"\n{text}")
    for what, reason in run.problems.items():
        print(f"\nnot measured: {what}: {reason}", file=sys.stderr)
    if options.json:
        result = {
            "machine": described,
            "medians": medians,
            "goals": [goal.plain() for goal in reached],
            "problems": run.problems,
            "samples": run.samples,
        }
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main())

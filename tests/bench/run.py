"""The bench: the defender and other proxies over the same Engine, in one run.

    python tests/bench/run.py [--quick] [--json FILE] [--targets defender,haproxy] [--cases keep,get]

Everything goes over mutual TLS 1.3. The targets take turns inside every repetition, so a slow moment of the
machine hits all; medians are printed, and at the end the project's targets beside them. Before the free
Engine the proxy has one core, client and Engine share another; with a real Engine nothing is kept to a
core. Everything is on loopback; children are ended by their id."""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.cases import FULL, GROUPS, QUICK
from tests.bench.children import TargetError
from tests.bench.durable import added
from tests.bench.findings import findings
from tests.bench.goals import goals, goals_table
from tests.bench.machine import machine
from tests.bench.report import tables
from tests.bench.session import Run
from tests.bench.targets import TARGETS


def chosen(text: str, known: Mapping[str, object], what: str, parser: argparse.ArgumentParser) -> list[str]:
    """Read a comma-separated subset, in the order of `known`."""
    names = {name for name in text.split(",") if name}
    if unknown := names - set(known):
        parser.error(f"unknown {what}: {', '.join(sorted(unknown))} (known: {', '.join(known)})")
    return [name for name in known if name in names]


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
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated subset of %(default)s")
    parser.add_argument("--cases", default=",".join(GROUPS), help="comma-separated subset of those below")
    parser.add_argument(
        "--repetitions", type=int, choices=range(1, 51), metavar="N", help=f"default {FULL.repetitions}"
    )
    parser.add_argument("--seconds", type=float, help="length of a timed measurement, 0.2 to 60; default 3")
    parser.add_argument(
        "--directory", default="/var/tmp", help="where files are kept meanwhile, on the disk to be measured"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Parse the options, run, print the tables; 1 when something could not be measured."""
    parser = options_parser()
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL
    seconds = options.seconds or effort.seconds
    if not 0.2 <= seconds <= 60:
        parser.error("--seconds must be between 0.2 and 60")
    effort = replace(effort, seconds=seconds, repetitions=options.repetitions or effort.repetitions)
    groups = chosen(options.cases, GROUPS, "case", parser)
    run = Run(effort, chosen(options.targets, TARGETS, "target", parser), groups)
    # Children hold thousands of connections.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Ended from outside it ends its children too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    try:
        if options.json:
            Path(options.json).touch()  # before the work, not after it
        with tempfile.TemporaryDirectory(prefix="bench", dir=options.directory) as directory:
            described = machine(Path(directory))
            run.do(Path(directory))
    except (TargetError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    medians = run.medians()
    durable = run.found.get("durable")
    reached = goals(
        medians,
        run.found.get("policy"),
        added(durable) if durable else None,
        durable["disk"] if durable else None,
        run.found.get("syncs"),
    )
    command = shlex.join(
        ["python", "tests/bench/run.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    described |= {
        "command": command,
        "run": f"{effort.repetitions} repetitions of {effort.seconds:g} s, medians; "
        f"{time.monotonic() - began:.0f} s in all",
    }
    for key, value in described.items():
        print(f"{key:13} {value}")
    for text in (tables(medians), findings(run.found), goals_table(reached)):
        if text:
            print(f"\n{text}")
    for what, reason in run.problems.items():
        print(f"\nnot measured: {what}: {reason}", file=sys.stderr)
    if options.json:
        result = {
            "machine": described,
            "medians": medians,
            "found": run.found,
            "goals": [goal.plain() for goal in reached],
            "problems": run.problems,
            "samples": run.samples,
        }
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""The soak: hours of mixed load on a real Engine, thousands of idle connections, and 200 kills.

    python -m tests.soak.run [--minutes 120] [--json FILE] [--phases mixed,connections,kills] [--seed N]

Everything is on loopback and below two directories in /tmp, which go at the end; children are ended by their
id. Root only. The exit status is 1 when something did not hold, and the report says what.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deploy.engine import EngineError
from tests.bench.machine import machine
from tests.soak.connections import COUNT, FILES, connections
from tests.soak.crowd import RefusedError
from tests.soak.mixed import Result, mixed
from tests.soak.verdict import Check
from tests.soak.work import WorkError

PHASES = {
    "mixed": "mixed load on a real Engine for --minutes, then a leak check",
    "connections": f"{COUNT} idle TLS connections with {FILES} descriptors",
    "kills": "the spool's writer killed 200 times under load (tests/audit/test_kills.py)",
}
KILLS = 200
MACHINE = frozenset({"cpu", "memory", "disk", "kernel", "python", "twisted", "cryptography", "dockerd"})
LINES = 60.0
"""Seconds between progress lines where there is no terminal."""


class Progress:
    """One line that changes, on a terminal; elsewhere a line a minute."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, line: str) -> None:
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._last >= LINES:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """What comes now starts a line."""
        if self._terminal:
            print(file=sys.stderr)


def kills(count: int) -> Result:
    """The full form of the test that `make test` runs in a short one."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/audit/test_kills.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "AUDIT_KILLS": str(count)},
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    found = last[0] if done.returncode == 0 else done.stdout[-2000:]
    return Result([Check(f"{count} kills", done.returncode == 0, found)])


def held(name: str, phase: Callable[[], Result]) -> Result:
    """What a phase found; one that could not go on has failed, and says nothing against the others."""
    try:
        return phase()
    except (AssertionError, EngineError, RefusedError, WorkError, OSError) as error:
        return Result([Check(f"{name}: to the end", False, f"{type(error).__name__}: {error}")])


def options_parser() -> argparse.ArgumentParser:
    """The command line."""
    words = "\n".join(f"  {name:12} {text}" for name, text in PHASES.items())
    parser = argparse.ArgumentParser(
        prog="make soak",
        description=(__doc__ or "").split("\n")[0],
        epilog=f"phases:\n{words}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=120,
        metavar="N",
        help="of mixed load, default 120; 2 for a first look",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures and samples to FILE")
    parser.add_argument(
        "--phases", "--phase", default=",".join(PHASES), help="comma-separated subset of %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the random choices; default: new"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the phases and print the report; 1 when something did not hold."""
    parser = options_parser()
    options = parser.parse_args(arguments)
    chosen = options.phases.split(",")
    if unknown := set(chosen) - set(PHASES):
        parser.error(f"unknown phase: {', '.join(sorted(unknown))} (known: {', '.join(PHASES)})")
    if not 0.5 <= options.minutes <= 7 * 24 * 60:
        parser.error("--minutes must be between 0.5 and 10080")
    if os.geteuid() != 0:
        parser.error("the soak starts a Docker Engine of its own, and only root can: run it as root")
    # A shell ignores it for what it runs in the background, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    seed = options.seed or int.from_bytes(os.urandom(4), "big")
    if options.json:
        Path(options.json).touch()  # before the work, not after it
    progress = Progress()
    phases: dict[str, Callable[[], Result]] = {
        "mixed": lambda: mixed(options.minutes * 60, seed, progress),
        "connections": lambda: connections(progress),
        "kills": lambda: kills(KILLS),
    }
    with tempfile.TemporaryDirectory(prefix="soak") as directory:
        described = {key: value for key, value in machine(Path(directory)).items() if key in MACHINE}
    given = sys.argv[1:] if arguments is None else arguments
    described |= {"command": shlex.join(["make", "soak", f"SOAK={shlex.join(given)}"]), "seed": str(seed)}
    for key, value in described.items():
        print(f"{key:13} {value}", flush=True)
    results: dict[str, Result] = {}
    try:
        for name in PHASES:
            if name in chosen:
                began = time.monotonic()
                results[name] = result = held(name, phases[name])
                progress.end()
                print(f"\n{name}: {(time.monotonic() - began) / 60:.1f} min\n")
                if result.text:
                    print(f"{result.text}\n")
                for check in result.checks:
                    print(check.line(), flush=True)
    except KeyboardInterrupt:
        print("soak: interrupted", file=sys.stderr)
        return 130
    bad = [check for result in results.values() for check in result.checks if not check.ok]
    if options.json:
        written = {
            "machine": described,
            "phases": {
                name: {
                    "checks": [{"name": c.name, "ok": c.ok, "found": c.found} for c in result.checks],
                    **result.figures,
                }
                for name, result in results.items()
            },
        }
        Path(options.json).write_text(json.dumps(written, indent=1) + "\n", "utf-8")
    print(f"\nsoak: {len(bad)} checks failed" if bad else "\nsoak: everything held")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

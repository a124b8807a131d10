"""Profiles of the defender under load: flame graphs, and the functions that take most time.

    python -m tests.bench.profiling [--seconds N] [--native] [--cases keep,get,new] [DIRECTORY]

py-spy looks at the running defender from outside, as often as it can without being in the way; each case is
recorded twice, for the graph and for the text. Samples of waiting are left out.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.bench.cases import FULL, Case, cases, measure
from tests.bench.children import ROOT, Running, TargetError, pinned, stop_process
from tests.bench.report import layout
from tests.bench.run import chosen
from tests.bench.stage import Stage, free_stage, prepare
from tests.bench.targets import start_defender

PROFILED = {
    "keep": "keep 8",
    "distinct": "distinct 8",
    "new": "new 4",
    "get": "get",
    "put": "put",
    "echo": "echo",
}
"""What ``--cases`` takes, and the case of the bench."""

RATE = 250
SHOWN = 25


def recorder() -> str:
    """Return the path of py-spy; raises `TargetError` without one."""
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise TargetError("py-spy is not installed (python -m pip install py-spy)")
    return found


def record(
    stage: Stage, defender: Running, case: Case, *, seconds: int, kind: str, file: Path, native: bool
) -> None:
    """Keep the load up while py-spy records it to a file of a kind, "raw" or "flamegraph".

    Raises:
        TargetError: with py-spy's words when it cannot look.
    """
    words = ["record", "--pid", defender.pid, "--duration", seconds, "--rate", RATE, "--function"]
    words += ["--format", kind, "--output", file, *(["--native"] if native else [])]
    command = pinned(stage.client.core, [recorder(), *map(str, words)])
    log = file.with_suffix(".log")
    with log.open("wb") as output:
        watching = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        while watching.poll() is None:
            measure(stage, defender, case)
    finally:
        stop_process(watching)
    if watching.returncode or not file.exists():
        end = "\n".join(log.read_text("utf-8", "replace").splitlines()[-5:])
        raise TargetError(f"py-spy could not record the defender (root can):\n{end}")
    log.unlink()


def shares(stacks: Iterable[str]) -> list[tuple[str, float, float]]:
    """Sum up collapsed stacks, ``outer;inner COUNT``.

    Returns:
        (function, percent of samples in itself, percent in it and what it calls), most in itself first.
    """
    inside: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for line in stacks:
        frames, _, count = line.rstrip().rpartition(" ")
        if not frames or not count.isdigit():
            continue
        names = frames.split(";")
        inside[names[-1]] += int(count)
        for name in set(names):
            below[name] += int(count)
    total = sum(inside.values()) or 1
    order = sorted(below, key=lambda name: (-inside[name], -below[name], name))
    return [(name, inside[name] * 100 / total, below[name] * 100 / total) for name in order]


def top(stacks: Iterable[str]) -> str:
    """The functions that take most time, as a table."""
    rows = [(name, f"{own:.1f}", f"{whole:.1f}") for name, own, whole in shares(stacks)[:SHOWN]]
    headings = ("function", "itself %", "with calls %")
    return layout(headings, rows, left=1) if rows else "nothing was recorded"


def profile(directory: Path, names: list[str], seconds: int, native: bool) -> None:
    """Record the cases into a directory, and print the top of each."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench", dir="/var/tmp") as scratch:
        program = prepare(Path(scratch))
        with free_stage(Path(scratch), program) as stage:
            known = {case.name: case for case in cases(FULL, stage.scene)}
            defender = start_defender(stage.scene)
            try:
                for name in names:
                    case = known[PROFILED[name]]
                    raw = directory / f"{name}.txt"
                    graph = directory / f"{name}.svg"
                    for kind, file in (("raw", raw), ("flamegraph", graph)):
                        record(stage, defender, case, seconds=seconds, kind=kind, file=file, native=native)
                    stacks = raw.read_text("utf-8", "replace").splitlines()
                    print(f"{case.name}: {graph}\n\n{top(stacks)}\n", flush=True)
            finally:
                defender.stop()


def main(arguments: list[str] | None = None) -> int:
    """Parse the options and record; 1 when it cannot be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "build" / "profile")
    parser.add_argument("--seconds", type=int, default=10, help="of each recording (default %(default)s)")
    parser.add_argument("--native", action="store_true", help="show the functions of C libraries too")
    parser.add_argument("--cases", default="keep,new,get,put", help=f"of {','.join(PROFILED)}")
    options = parser.parse_args(arguments)
    if not 1 <= options.seconds <= 600:
        parser.error("--seconds must be between 1 and 600")
    # Ended from outside it ends its children too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    names = chosen(options.cases, PROFILED, "case", parser)
    try:
        profile(options.directory, names, options.seconds, options.native)
    except (TargetError, OSError) as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("profile: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

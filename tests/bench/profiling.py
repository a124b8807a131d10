"""Profiles of the defender under load: flame graphs, and the functions that take most time.

    python -m tests.bench.profiling [--seconds N] [--native] [--cases keep,get,new] [DIRECTORY]

py-spy looks at the running defender from outside. What is shown is the thread that serves clients; py-spy
cannot tell whether the spool's thread works or waits for the disk, so of that one only its CPU time is told.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cases import FULL, Case, cases, measure
from tests.bench.children import ROOT, Running, TargetError, cpu_seconds, pinned, stop_process
from tests.bench.flame import flame_graph, shares
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


@dataclass(frozen=True, slots=True)
class Recording:
    """Collapsed stacks of the thread that serves clients, and its part of the process's CPU time."""

    stacks: list[str]
    part: float


def recorder() -> str:
    """Return the path of py-spy; raises `TargetError` without one."""
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise TargetError("py-spy is not installed (python -m pip install py-spy)")
    return found


def record(stage: Stage, defender: Running, case: Case, seconds: int, native: bool) -> Recording:
    """Keep the load up while py-spy looks.

    Raises:
        TargetError: with py-spy's words when it cannot look.
    """
    file = stage.scene.directory / "stacks.txt"
    file.unlink(missing_ok=True)
    words = ["record", "--pid", defender.pid, "--duration", seconds, "--rate", RATE, "--function"]
    words += ["--format", "raw", "--output", file, *(["--native"] if native else [])]
    command = pinned(stage.client.core, [recorder(), *map(str, words)])
    log = stage.scene.log("py-spy")
    before = thread_seconds(defender.pid)
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
    after = thread_seconds(defender.pid)
    spent = after[1] - before[1]
    part = (after[0] - before[0]) / spent if spent else 1.0
    return Recording(serving_stacks(file.read_text("utf-8", "replace").splitlines()), min(part, 1.0))


def serving_stacks(lines: Iterable[str]) -> list[str]:
    """Leave out the stacks of threads that Python started: the serving one is the first."""
    return [line for line in lines if "Thread._bootstrap (" not in line]


def thread_seconds(pid: int) -> tuple[float, float]:
    """CPU seconds of a process's first thread (proc(5), in steps of a clock tick), and of all."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), cpu_seconds(pid)


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
                    recording = record(stage, defender, case, seconds, native)
                    title = (
                        f"{case.name}: {recording.part * 100:.0f} % of the CPU time is the serving thread's"
                    )
                    (directory / f"{name}.txt").write_text("\n".join(recording.stacks) + "\n")
                    graph = directory / f"{name}.svg"
                    graph.write_text(flame_graph(title, recording.stacks))
                    print(f"{title}\n{graph}\n\n{top(recording.stacks)}\n", flush=True)
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

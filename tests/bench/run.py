"""The bench: the defender, a ``twisted.web`` proxy and HAProxy over the same free Engine, in one run.

    python tests/bench/run.py [--quick] [--json FILE] [--targets defender,web,haproxy]

Small requests over mutual TLS 1.3: kept-alive connections (1, 8, 64), and a new connection for each request.
The targets take turns inside every repetition, so a slow moment of the machine hits all; medians are printed.
The proxy has one core, the client and the Engine share another. Everything is on loopback; children are ended
by their id.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.children import HERE, Running, Scene, TargetError, cpu_seconds, pinned, stop_process
from tests.bench.report import table
from tests.bench.targets import TARGETS

TARGET_PATH = "/v1.41/containers/json?all=1"
DISTINCT_TARGETS = tuple(
    f"/v1.41/containers/{number:064x}/json" for number in range(1 << 40, (1 << 40) + 1000)
)
"""Asked for in turn, so that what a proxy remembers of a request's head cannot flatter it."""

CASES = (
    ("keep", 1),
    ("keep", 8),
    ("keep", 64),
    ("distinct", 1),
    ("distinct", 8),
    ("distinct", 64),
    ("new", 4),
)
"""(kind, connections at a time): "distinct" is "keep" with `DISTINCT_TARGETS`."""


def compile_c(name: str, directory: Path, *sources: str) -> Path:
    """Compile one of the bench's C programs, with OpenSSL if it has several sources.

    Raises:
        TargetError: with the compiler's words.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise TargetError("a C compiler is needed (Debian: apt-get install gcc libc6-dev libssl-dev)")
    program = directory / name
    libraries = ("-lssl", "-lcrypto") if sources else ()
    files = [str(HERE / file) for file in (f"{name}.c", *sources)]
    done = subprocess.run(
        [compiler, "-O2", "-o", str(program), *files, *libraries], capture_output=True, text=True
    )
    if done.returncode:
        hint = "the load client needs OpenSSL's headers (Debian: apt-get install libssl-dev)\n"
        raise TargetError(f"{hint if libraries else ''}{name}: {done.stderr[-2000:]}")
    return program


def certificates(directory: Path) -> None:
    """Make a small PKI: server.pem, server.key, users.pem, clients.pem (with the root), and user/."""
    from tests.fakes.authority import TestAuthority

    pki = TestAuthority()
    server = pki.write_server(directory)
    user = pki.write_user(directory / "user", pki.user("bench@example.com", ["Dev team"]))
    users = server.client_ca.read_bytes()
    (directory / "users.pem").write_bytes(users)
    (directory / "clients.pem").write_bytes(users + user.ca.read_bytes())


def cores() -> tuple[int, int]:
    """Return (core of the proxy, core of client and Engine)."""
    known = sorted(os.sched_getaffinity(0))
    return known[-1], known[0]


def start_engine(program: Path, path: Path, core: int) -> subprocess.Popen[bytes]:
    """Start the free Engine and wait for its socket."""
    process = subprocess.Popen(pinned(core, [str(program), str(path)]), stdin=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                pass
            else:
                return process
        if process.poll() is not None:
            break
        time.sleep(0.02)
    stop_process(process)
    raise TargetError("the free Engine did not start")


def measure(
    client: Path,
    engine: subprocess.Popen[bytes],
    scene: Scene,
    target: Running,
    case: tuple[str, int],
    seconds: float,
    core: int,
) -> Any:
    """Run the load client once against a target; return its figures with the proxy's CPU per request."""
    mode, connections = case
    user = scene.directory / "user"
    if mode == "distinct":
        mode, paths = "keep", scene.directory / "targets.txt"
        paths.write_text("\n".join(DISTINCT_TARGETS) + "\n")
        what = f"targets={paths}"
    else:
        what = f"target={TARGET_PATH}"
    command = [
        str(client),
        mode,
        f"port={target.port}",
        *(f"{name}={user / name}.pem" for name in ("ca", "cert", "key")),
        f"connections={connections}",
        f"seconds={seconds}",
        f"pid={target.process.pid}",
        what,
    ]
    others, began = _others_cpu(engine), time.monotonic()
    done = subprocess.run(pinned(core, command), capture_output=True, text=True, timeout=seconds + 60)
    load = (_others_cpu(engine) - others) / (time.monotonic() - began)
    try:
        figures = json.loads(done.stdout)
    except ValueError:
        raise TargetError(f"load client on {target.name}: {done.stderr or done.stdout}") from None
    if figures["errors"]:
        raise TargetError(
            f"{target.name}, {mode} {connections}: {figures['errors']} errors: {figures['error']}"
        )
    figures["cpu_us"] = figures["cpu"] * 1e6 / figures["requests"] if figures["requests"] else 0.0
    figures["load"] = load * 100
    return figures


def _others_cpu(engine: subprocess.Popen[bytes]) -> float:
    """CPU seconds of the Engine and of every client that has ended."""
    clients = resource.getrusage(resource.RUSAGE_CHILDREN)
    return cpu_seconds(engine.pid) + clients.ru_utime + clients.ru_stime


def machine() -> dict[str, str]:
    """Describe what the figures were taken on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    import cryptography
    from cryptography.hazmat.backends.openssl.backend import backend

    import twisted

    haproxy = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    banner = ""
    if haproxy:
        banner = subprocess.run([haproxy, "-v"], capture_output=True, text=True).stdout.split("\n")[0]
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} x {model}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "twisted": twisted.__version__,
        "cryptography": f"{cryptography.__version__}, {backend.openssl_version_text()}",
        "haproxy": " ".join(banner.split()[2:3]),
    }


def run(names: list[str], seconds: float, repetitions: int, directory: Path) -> dict[str, Any]:
    """Do all measurements; return the medians by case and target, the samples, and what could not start."""
    engine_program = compile_c("free_engine", directory)
    client = compile_c("load_client", directory, "load_stream.c")
    certificates(directory)
    proxy_core, other_core = cores()
    socket_path = directory / "engine.sock"
    scene = Scene(
        directory,
        socket_path,
        directory / "server.pem",
        directory / "server.key",
        directory / "clients.pem",
        proxy_core,
    )
    engine = start_engine(engine_program, socket_path, other_core)
    running: list[Running] = []
    absent: dict[str, str] = {}
    samples: dict[str, dict[str, list[Any]]] = {}
    try:
        for name in names:
            try:
                running.append(TARGETS[name](scene))
            except TargetError as error:
                absent[name] = str(error)
        for repetition in range(repetitions):
            for case in CASES:
                # Turn the order, so that nobody always follows the same neighbor.
                turn = repetition % max(1, len(running))
                for target in running[turn:] + running[:turn]:
                    figures = measure(client, engine, scene, target, case, seconds, other_core)
                    samples.setdefault(f"{case[0]} {case[1]}", {}).setdefault(target.name, []).append(figures)
                    print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    finally:
        for target in running:
            target.stop()
        stop_process(engine)
    medians = {
        case: {
            name: {
                key: statistics.median(item[key] for item in items)
                for key in ("rps", "p50_us", "p99_us", "cpu_us", "load")
            }
            for name, items in by_name.items()
        }
        for case, by_name in samples.items()
    }
    return {"medians": medians, "samples": samples, "absent": absent}


def main(arguments: list[str] | None = None) -> int:
    """Parse the options, run, print the table; 1 when a target could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="under a minute: 2 repetitions of 1 s")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated subset of %(default)s")
    parser.add_argument(
        "--repetitions", type=int, choices=range(1, 51), metavar="N", help="default 5 (quick: 2)"
    )
    parser.add_argument(
        "--seconds", type=float, help="length of one measurement, 0.2 to 60; default 3 (quick: 1)"
    )
    options = parser.parse_args(arguments)
    names = [name for name in options.targets.split(",") if name]
    if unknown := set(names) - set(TARGETS):
        parser.error(f"unknown target: {', '.join(sorted(unknown))} (known: {', '.join(TARGETS)})")
    seconds = options.seconds or (1.0 if options.quick else 3.0)
    if not 0.2 <= seconds <= 60:
        parser.error("--seconds must be between 0.2 and 60")
    repetitions = options.repetitions or (2 if options.quick else 5)
    with tempfile.TemporaryDirectory(prefix="bench", dir="/tmp") as directory:
        try:
            result = run(names, seconds, repetitions, Path(directory))
        except TargetError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    result.update(machine=machine(), seconds=seconds, repetitions=repetitions)
    for key, value in result["machine"].items():
        print(f"{key:13} {value}")
    print(f"{'run':13} {repetitions} repetitions of {seconds:g} s, medians; {TARGET_PATH}")
    print()
    print(table(result["medians"]))
    for name, reason in result["absent"].items():
        print(f"\nnot measured: {name}: {reason}", file=sys.stderr)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["absent"] else 0


if __name__ == "__main__":
    sys.exit(main())

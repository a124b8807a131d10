"""What a measurement needs: compiled programs, certificates, the free Engine, the load client."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.children import HERE, Running, Scene, TargetError, cpu_seconds, pinned, stop_process

PATIENCE = 90.0
"""Seconds that a measurement may take beyond its own length."""


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


def start_engine(program: Path, path: Path, core: int | None) -> subprocess.Popen[bytes]:
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


@dataclass(frozen=True, slots=True)
class LoadClient:
    """The load client as one user.

    Attributes:
        program: what `compile_c` made.
        user: directory of ca.pem, cert.pem and key.pem.
        core: that it stays on, or anywhere.
    """

    program: Path
    user: Path
    core: int | None

    def command(
        self, mode: str, target: Running, options: dict[str, object], prefix: Sequence[str] = ()
    ) -> list[str]:
        """Return the command line of one run against a target; `options` as in load_client.c."""
        files = {name: self.user / f"{name}.pem" for name in ("ca", "cert", "key")}
        named = {"port": target.port, "pid": target.pid, **files, **options}
        words = [*prefix, str(self.program), mode, *(f"{name}={value}" for name, value in named.items())]
        return pinned(self.core, words)

    def run(
        self, mode: str, target: Running, options: dict[str, object], prefix: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Run it once and return its figures.

        Raises:
            TargetError: when an answer was wrong or missing, with the first of its complaints.
        """
        command = self.command(mode, target, options, prefix)
        limit = float(str(options.get("seconds", 0))) + PATIENCE
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise TargetError(f"{target.name}, {mode}: no end after {limit:.0f} s") from None
        return self._figures(target, mode, done.stdout, done.stderr)

    @contextmanager
    def holding(self, target: Running, connections: int, path: str) -> Iterator[None]:
        """Hold idle connections, each of which was asked once; see that they are all there at the end."""
        options: dict[str, object] = {"connections": connections, "target": path}
        process = subprocess.Popen(
            self.command("idle", target, options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            self._figures(target, "idle", process.stdout.readline().decode(), "")
            yield
            process.stdin.close()
            self._figures(target, "idle", process.stdout.readline().decode(), "")
            process.wait(PATIENCE)
        finally:
            stop_process(process)
            process.stdin.close()
            process.stdout.close()

    def _figures(self, target: Running, mode: str, output: str, complaint: str) -> dict[str, Any]:
        try:
            figures: dict[str, Any] = json.loads(output)
        except ValueError:
            raise TargetError(f"{target.name}, {mode}: {complaint or output or 'no figures'}") from None
        if figures["errors"]:
            raise TargetError(f"{target.name}, {mode}: {figures['errors']} errors: {figures['error']}")
        if figures.get("requests") == 0:
            raise TargetError(f"{target.name}, {mode}: no request was answered in time")
        return figures


@dataclass(frozen=True, slots=True)
class Stage:
    """A directory with the certificates, an Engine, and a client: all that targets need.

    `helpers` are the processes beside the target whose CPU time is the Engine's.
    """

    scene: Scene
    client: LoadClient
    helpers: tuple[int, ...]

    def others_cpu(self) -> float:
        """CPU seconds of the Engine and of every client that has ended."""
        clients = resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(map(cpu_seconds, self.helpers)) + clients.ru_utime + clients.ru_stime


def prepare(directory: Path) -> Path:
    """Make the certificates and the load client; return the client's program."""
    certificates(directory)
    return compile_c("load_client", directory, "load_stream.c")


def scene_of(directory: Path, engine: Path, core: int | None) -> Scene:
    """The scene of a directory that `prepare` has filled, before an Engine's socket."""
    names = ("server.pem", "server.key", "clients.pem", "users.pem")
    chain, key, clients, users = (directory / name for name in names)
    return Scene(directory, engine, chain, key, clients, users, core)


@contextmanager
def free_stage(directory: Path, program: Path) -> Iterator[Stage]:
    """The stage with the free Engine: the proxy on one core, client and Engine on another."""
    proxy_core, other_core = cores()
    path = directory / "engine.sock"
    engine = start_engine(compile_c("free_engine", directory), path, other_core)
    try:
        client = LoadClient(program, directory / "user", other_core)
        yield Stage(scene_of(directory, path, proxy_core), client, (engine.pid,))
    finally:
        stop_process(engine)

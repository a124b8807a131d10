"""A defender in a process of its own, as people start it, watched from outside."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from defender.contract.actions import OPERATIONS
from tests.proxying.client import Peer, authority, connect_tls, connect_unix
from tests.spool import Follower

ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"

POLICY = f"""\
schema: 1
rules:
  - name: admins
    users: [admin, {pwd.getpwuid(os.geteuid()).pw_name}]
    effect: allow
    actions: ["*"]
  - name: readers
    users: [reader]
    effect: allow
    actions: [container_list, docker_ping]
"""
"""`admin`, and the uid of the tests on the unix socket, may do everything; `reader` may look."""

READABLE = frozenset({"container_list", "docker_ping"})
"""What `reader` may do."""


_RECORDED_FIRST = frozenset(operation.action for operation in OPERATIONS if operation.record_first)


def wait_until(condition: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    """Look until it holds: for what nothing tells of, such as another process's descriptors."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not in {timeout} s: {what}")
        time.sleep(0.005)


def _free_port() -> int:
    """A port that no client gets by chance before the defender has it: below those the kernel gives out."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    while True:
        port = random.randrange(first - 8000, first)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class RunningDefender:
    """``twistd defender`` in front of the Engine at `engine`, on TLS and on a unix socket.

    `settings` maps tables to their lines, such as ``{"limits": "idle_timeout = 1"}``; `files` is the most
    open files that the process may have.
    """

    def __init__(
        self, engine: str, *, settings: dict[str, str] | None = None, policy: str = POLICY, files: int = 0
    ) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="dfp-", dir="/tmp"))
        self.port = _free_port()
        self.unix = str(self.state / "d.sock")
        self._ports: set[str] = set()
        self._trail = Follower(self.state)
        self._taken = 0
        self._attempts: set[str] = set()
        self._log = self.state / "log"
        self._limits = ["prlimit", f"--nofile={files}:{files}", "--"] if files else []
        tables = {
            "defender": f'name = "web1"\nstate = "{self.state}"',
            "engine": f'address = "unix://{engine}"',
            "listen": f'mode = "unix+tcp"\ntcp = ["127.0.0.1:{self.port}"]\nunix = ["{self.unix}"]',
        }
        for table, lines in {"limits": "linger = 1", **(settings or {})}.items():
            tables[table] = f"{tables.get(table, '')}\n{lines}"
        text = "".join(f"[{table}]\n{lines}\n" for table, lines in tables.items())
        (self.state / "defender.toml").write_text(text, "utf-8")
        (self.state / "policy.yaml").write_text(policy, "utf-8")
        authority().write_server(self.state / "tls")
        self._process: subprocess.Popen[bytes] | None = None

    # -- life

    def start(self) -> RunningDefender:
        """Start it and wait until both listeners answer and the Engine's version is known."""
        command = [sys.executable, "-c", _START, "--nodaemon", f"--pidfile={self.state / 'pid'}", "defender"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig=TERM", "--", *self._limits, *command, "--state", str(self.state)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.state,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        wait_until(self._ready, "the defender answers", 60)
        return self

    def _ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"the defender ended:\n{self.log}")
        return os.path.exists(self.unix) and "the Engine speaks API" in self.log

    def stop(self) -> None:
        """End it by its pid and remove its files."""
        process, self._process = self._process, None
        try:
            if process is not None:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
        finally:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(30)
            shutil.rmtree(self.state, ignore_errors=True)

    # -- clients

    def tls(self, user: str = "admin", *, receive_buffer: int = 0) -> Peer:
        """Connect as `user`."""
        peer = connect_tls(self.port, user, receive_buffer=receive_buffer)
        self._ports.add(peer.name)
        return peer

    def local(self) -> Peer:
        """Connect to the unix socket; this process's user may do everything."""
        return connect_unix(self.unix)

    # -- what is seen from outside

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    @property
    def complaints(self) -> list[str]:
        """Lines of its log that tell of a bug."""
        marks = ("Traceback", "Unhandled", "raised; ", "unforeseen", "failed; it is cut", "Error:")
        return [line for line in self.log.splitlines() if any(mark in line for mark in marks)]

    def sockets(self) -> int:
        """Count the sockets it holds."""
        directory = f"/proc/{self.pid}/fd"
        count = 0
        for name in os.listdir(directory):
            try:
                count += os.readlink(f"{directory}/{name}").startswith("socket:")
            except FileNotFoundError:
                pass
        return count

    def memory(self, key: str = "RssAnon") -> int:
        """Return a figure of /proc/PID/status in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text("ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {key} in /proc/PID/status")

    def _check_attempt(self, event: dict[str, Any]) -> None:
        if event["phase"] == "attempt":
            self._attempts.add(event["corr"])
        elif event["req"]["action"] in _RECORDED_FIRST and event["decision"]["effect"] == "allow":
            served = 100 < event["result"].get("status", 0) < 400
            if served and event["corr"] not in self._attempts:
                raise AssertionError(f"served without an attempt on record: {event}")

    def forget_events(self) -> None:
        """Forget the events so far, and those that clients of until now will still cause."""
        self._ports.clear()
        self.take_events()

    def take_events(self, count: int = 0, *, attempts: bool = False) -> list[dict[str, Any]]:
        """Return the Engine calls' events since the last call; blocks until there are at least `count`.

        Of attempts only if they are asked for. That every call which must have one has it, before its result
        and under the same `corr`, is checked here for all tests.
        """
        found: list[dict[str, Any]] = []

        def is_ours(event: dict[str, Any]) -> bool:
            return event["kind"] == "engine" and event["actor"].get("src", "") in self._ports | {""}

        def enough() -> bool:
            events = self._trail.read()
            for event in events[self._taken :]:
                if event["kind"] == "engine":
                    self._check_attempt(event)
                if is_ours(event) and (attempts or event["phase"] != "attempt"):
                    found.append(event)
            self._taken = len(events)
            return len(found) >= count

        if not count:
            self._trail.settle()
        try:
            wait_until(enough, f"{count} events")
        except AssertionError as late:
            raise AssertionError(f"{late}; there are {found}") from None
        return found

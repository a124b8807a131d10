"""Real defenders, started with `twistd defender`, in front of a real Engine.

One of them, `guarded`, serves the whole test process, on TLS and on a unix socket. Tests that switch
listeners, cut an Engine off or count descriptors start one of their own. Each has a state directory of its
own, is ended by its pid, and ends by itself when the test process is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.cli.local import ask
from defender.contract.local import make_request
from deploy.docker_api import ping
from deploy.processes import Process, wait_until
from tests.engine.dockerd import client_environment, engine
from tests.spool import Follower, now

ROOT = Path(__file__).resolve().parent.parent.parent
BRUCE = "bruce@example.com"
CAROL = "carol@example.com"

POLICY = """\
schema: 1
rules:
  - name: admin_rule
    users: [admin]
    effect: allow
  - name: root_rule
    users: [root]
    via: [unix]
    effect: allow
  - name: devs_rule
    groups: ["Dev team"]
    effect: allow
    actions: [container_list, container_logs, container_inspect, docker_ping, docker_version]
  - name: builders_rule
    groups: [Builders]
    effect: allow
    actions: ["image_*", "container_*", "docker_*"]
"""
"""Admin may do everything, Dev team reads, Builders have every ordinary action: neither session nor grpc."""

START_PATIENCE = 60.0
STOP_PATIENCE = 30.0
EVENT_PATIENCE = 30.0

Event = dict[str, Any]


_PREFIX = "dfleet-e2e-"
_HOME = Path("/tmp")


@functools.cache
def scratch() -> Path:
    """Return a directory for this test process, removed at its end; short, for sockets lie in it."""
    for old in _HOME.glob(_PREFIX + "*"):
        owner = re.fullmatch(r"(\d+)-(\d+)", old.name.removeprefix(_PREFIX))
        if owner is not None and not Process(int(owner[1]), int(owner[2])).alive:
            shutil.rmtree(old, ignore_errors=True)
    myself = Process.of(os.getpid())
    assert myself is not None
    directory = _HOME / f"{_PREFIX}{myself.pid}-{myself.started}"
    directory.mkdir(mode=0o700)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def program(name: str, *arguments: str) -> list[str]:
    """Return the command of one of our programs, in the environment that runs the tests."""
    beside = Path(sys.executable).with_name(name)
    if name == "defenderctl" and not beside.exists():
        return [sys.executable, "-c", "from controller.cli.main import main; main()", *arguments]
    return [str(beside), *arguments]


def program_environment() -> dict[str, str]:
    """Return the environment of our programs: the checkout, and nothing that the caller's shell is set to."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT)}


def defenderctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run defenderctl; what it writes is in `stdout`, errors included."""
    done = subprocess.run(
        program("defenderctl", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=program_environment(),
        timeout=60,
        check=False,
    )
    assert not (check and done.returncode), f"defenderctl {' '.join(arguments)}: {done.stdout}"
    return done


@functools.cache
def authority() -> Path:
    """Return a state directory with an authority and a server certificate, shared by all defenders here."""
    state = scratch() / "authority"
    defenderctl("pki", "init", "--state", str(state))
    defenderctl("pki", "server", "--state", str(state), "--name", "127.0.0.1", "--name", "localhost")
    return state


@functools.cache
def certificates(user: str, *groups: str) -> Path:
    """Return the DOCKER_CERT_PATH of a user."""
    out = scratch() / "certificates" / "-".join((user, *groups)).replace(" ", "_")
    options = [word for group in groups for word in ("--group", group)]
    state = str(authority())
    defenderctl("pki", "issue", "--state", state, "--user", user, *options, "--out", str(out))
    return out


def free_port() -> int:
    """Return a TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Trail:
    """The events of one defender, read from its spool as they come."""

    def __init__(self, state: Path) -> None:
        self._follower = Follower(state)

    def mark(self) -> int:
        """Return a mark between the events recorded so far and the next."""
        return now()

    def read(self, since: int = 0, *, running: bool = True) -> list[Event]:
        """Return the events recorded since a mark, those of a `running` defender up to now."""
        if running:
            self._follower.settle()
        return self._follower.read(since)

    def wait_for(
        self,
        wanted: Callable[[Event], bool],
        *,
        since: int = 0,
        count: int = 1,
        patience: float = EVENT_PATIENCE,
    ) -> list[Event]:
        """Wait until `count` events since a mark are wanted, and return all wanted ones.

        Raises:
            AssertionError: with the events that did come, when these do not within `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while True:
            events = self._follower.read(since)
            found = [event for event in events if wanted(event)]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                came = "\n".join(json.dumps(event) for event in events[-20:])
                raise AssertionError(
                    f"{len(found)} of {count} events came in {patience} s; the last:\n{came}"
                )
            time.sleep(0.01)

    def stream(self, action: str, since: int = 0) -> tuple[Event, Event]:
        """Wait for the end of the one stream of an action that began since a mark; return both its events.

        The end of a stream that had begun before may come late, and is not meant.
        """
        (began,) = self.wait_for(of(action), since=since)
        (ended,) = self.wait_for(
            lambda event: event["phase"] == "stream_end" and event["corr"] == began["corr"], since=since
        )
        return began, ended


def of(action: str, phase: str = "result", **path: str) -> Callable[[Event], bool]:
    """Return a test for events of one action and phase; `target="x"` compares `req.target` as well."""

    def wanted(event: Event) -> bool:
        request = event["req"]
        return (
            request["action"] == action
            and event["phase"] == phase
            and all(request.get(key) == value for key, value in path.items())
        )

    return wanted


class Guarded:
    """One defender.

    Args:
        engine_address: the Engine it guards, as in DOCKER_HOST; the shared one by default.
        mode: of its listeners.
        policy: text of its policy file.
        settings: more keys of its settings by table, as TOML text: ``{"limits": "linger = 1"}``.
        tls: directory of server.pem, server.key and client-ca.pem; by default the shared authority's.
        probe: DOCKER_CERT_PATH of the client that asks whether it serves; by default the admin's.
        wrapper: command that it is run under, such as prlimit; it must become the defender.
    """

    def __init__(
        self,
        *,
        engine_address: str | None = None,
        mode: str = "unix+tcp",
        policy: str = POLICY,
        settings: Mapping[str, str] | None = None,
        tls: Path | None = None,
        probe: Path | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="d", dir=scratch()))
        self.port = free_port()
        self.mode = mode
        self.socket = self.state / "docker.sock"
        self.log = self.state / "defender.log"
        self.policy = self.state / "policy.yaml"
        self.policy.write_text(policy, "utf-8")
        self.trail = Trail(self.state)
        self._engine_address = engine_address or engine().address
        self._extra = dict(settings or {})
        self._tls = tls or authority() / "tls"
        self._probe = probe or certificates("admin")
        self._wrapper = wrapper
        self._child: subprocess.Popen[bytes] | None = None
        self.write_settings()

    # -- its files

    def write_settings(self) -> None:
        """Write its settings file from `mode`, `port` and what it was made with."""
        tables = {
            "defender": f'state = "{self.state}"\nname = "e2e"',
            "engine": f'address = "{self._engine_address}"',
            "listen": f'mode = "{self.mode}"\ntcp = ["127.0.0.1:{self.port}"]\nunix = ["{self.socket}"]',
            "tls": "\n".join(
                f'{key} = "{self._tls / name}"'
                for key, name in (
                    ("certificate", "server.pem"),
                    ("key", "server.key"),
                    ("client_ca", "client-ca.pem"),
                )
            ),
        }
        # What a test leaves open is nothing to wait for.
        self._extra.setdefault("streams", 'on_stop = "cut"')
        names = [*tables, *(name for name in self._extra if name not in tables)]
        text = "".join(f"[{name}]\n{tables.get(name, '')}\n{self._extra.get(name, '')}\n" for name in names)
        (self.state / "defender.toml").write_text(text, "utf-8")

    # -- its process

    @property
    def pid(self) -> int:
        assert self._child is not None, "it was not started"
        return self._child.pid

    def start(self) -> Guarded:
        """Start it and wait until it serves where its mode says."""
        command = [
            "setpriv",
            "--pdeathsig=TERM",
            "--",
            *self._wrapper,
            *program("twistd"),
            "--nodaemon",
            f"--pidfile={self.state / 'twistd.pid'}",
            f"--logfile={self.log}",
            "defender",
            "--state",
            str(self.state),
        ]
        with (self.state / "output").open("ab") as output:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.state,
                env=program_environment(),
                start_new_session=True,
            )
        child = self._child
        wait_until(lambda: child.poll() is not None or self.serves(), START_PATIENCE, 0.02)
        if child.poll() is not None or not self.serves():
            words = self.words()
            self.stop()
            raise AssertionError(f"the defender did not come up:\n{words}")
        return self

    def stop(self) -> None:
        """End it by its pid."""
        child, self._child = self._child, None
        if child is None:
            return
        process = Process.of(child.pid)
        if process is not None:
            process.end(STOP_PATIENCE)
        child.wait(STOP_PATIENCE)

    def words(self) -> str:
        """Return what it has written: its log, and what came before that."""
        texts = []
        for file in (self.state / "output", self.log):
            with contextlib.suppress(FileNotFoundError):
                texts.append(file.read_text("utf-8", "replace"))
        return "".join(texts)

    def serves(self) -> bool:
        """Tell whether it answers on every listener of `mode`, be it that there is no Engine."""
        try:
            if "tcp" in self.mode:
                ping(self.tcp_address, self._probe)
            if "unix" in self.mode:
                ping(self.unix_address)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def descriptors(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def status(self) -> Mapping[str, Any]:
        """Ask it over its control socket how it is, as `defenderctl local status --json` does."""
        answer = ask(self.state / "control.sock", make_request("status", {}))
        assert answer.ok, answer.error
        return answer.result

    # -- how clients reach it

    @property
    def tcp_address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def unix_address(self) -> str:
        return f"unix://{self.socket}"

    def tls(self, user: str = "admin", *groups: str) -> dict[str, str]:
        """Return the environment of a docker client that comes with a user's certificate."""
        return client_environment(self.tcp_address, certificates(user, *groups))

    def unix(self) -> dict[str, str]:
        """Return the environment of a docker client on the unix socket."""
        return client_environment(self.unix_address)


@functools.cache
def guarded() -> Guarded:
    """Return this process's defender in front of the shared Engine; it runs."""
    defender = Guarded()
    atexit.register(defender.stop)
    return defender.start()

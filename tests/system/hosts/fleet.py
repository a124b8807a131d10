"""A fleet in the test network: the controller on a node of its own, and defenders that belong to it."""

from __future__ import annotations

import functools
import json
import secrets
import subprocess
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from controller.cli.local import ask
from controller.cli.login import login_file, read_login
from defender.contract.local import make_request
from deploy.docker_api import call, connection
from deploy.processes import wait_until
from tests.engine.guarded import Event, program, program_environment
from tests.system.hosts.host import Host, HostDefender
from tests.system.hosts.node import Node
from tests.system.hosts.program import Clock, Program

HTTPS_PORT = 8083
CHANNEL_PORT = 8084
PATIENCE = 60.0

Json = dict[str, Any]


class FleetController(Program):
    """``twistd controller`` on a node, and `defenderctl` on another one, signed in to it as its admin.

    Args:
        node: where it runs.
        desk: where `defenderctl` is run.
        settings: more keys of its settings by table, as TOML text.
    """

    def __init__(self, node: Node, desk: Node, settings: Mapping[str, str] | None = None) -> None:
        self.state = node.directory / "state"
        self._desk = desk
        self._sign_in = desk.directory / "defenderctl"
        extra = settings or {}
        known = {
            "controller": f'state = "{self.state}"\nnames = ["{node.name}", "{node.address}"]',
            "https": f'listen = "{node.address}:{HTTPS_PORT}"',
            "channel": f'listen = "{node.address}:{CHANNEL_PORT}"',
        }
        text = "".join(
            f"[{name}]\n{known.get(name, '')}\n{extra.get(name, '')}\n" for name in {**known, **extra}
        )
        file = node.directory / "controller.toml"
        file.write_text(text, "utf-8")
        super().__init__(
            node,
            "controller",
            [
                *program("twistd"),
                "--nodaemon",
                f"--pidfile={node.directory / 'controller.pid'}",
                "--logfile=-",
                *("controller", "--config", str(file)),
            ],
            environment=program_environment(),
            ready=self.serves,
        )

    @property
    def channel(self) -> str:
        """Where defenders come, by the node's name."""
        return f"{self.node.name}:{CHANNEL_PORT}"

    @property
    def files(self) -> Path:
        """Its state directory, as seen from outside of the node."""
        return self.node.seen(self.state)

    def serves(self) -> bool:
        """Tell whether both its ports are open."""
        return all(self.node.reaches(self.node.address, port) for port in (HTTPS_PORT, CHANNEL_PORT))

    # -- people

    def sign_in(self) -> None:
        """Sign in as the admin that the first start made, whose password is good for this once."""
        authority, secret = self.files / "pki" / "root.pem", self.files / "first-admin-password"
        own = self._desk.directory / "password"
        own.write_text(secrets.token_urlsafe() + "\n", "ascii")
        passwords = ("--password-file", str(secret), "--new-password-file", str(own))
        where = f"{self.node.name}:{HTTPS_PORT}"
        self.ctl("login", where, "--ca", str(authority), "--user", "admin", *passwords)

    def ctl(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """Run defenderctl; return what it wrote, errors included.

        Raises:
            AssertionError: with that, when it does not end with `code`.
        """
        done = self.run_ctl(*arguments, stdin=stdin)
        said: str = (done.stdout + done.stderr).decode()
        assert done.returncode == code, f"defenderctl {' '.join(arguments)}: {done.returncode}\n{said}"
        return said

    def ask(self, *arguments: str, code: int = 0) -> Any:
        """Run defenderctl with ``--json``; return the document."""
        done = self.run_ctl(*arguments, "--json")
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == code, f"defenderctl {' '.join(arguments)}: {done.returncode}\n{said}"
        return json.loads(done.stdout)

    def run_ctl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[bytes]:
        """Run defenderctl, whatever its exit code is."""
        environment = {**program_environment(), "DEFENDERCTL_CONFIG": str(self._sign_in)}
        command = program("defenderctl", *arguments)
        return self._desk.run(
            *command, environment=environment, stdin=stdin.encode(), check=False, timeout=120
        )

    def token(self, *options: str) -> str:
        """Return a new join token."""
        made: Json = self.ask("tokens", "create", *options)
        return str(made["token"])

    def publish(self, name: str, text: str, *options: str, code: int = 0) -> str:
        """Publish a policy at once, and wait until everybody connected has it; return what was said."""
        options = ("--name", name, "--at-once", "--yes", *options)
        return self.ctl("policy", "publish", "-", *options, code=code, stdin=text)

    def get(self, path: str, **query: str) -> Any:
        """Ask the API itself, as who is signed in: much cheaper than a program, for what is asked often."""
        login = read_login(login_file({"DEFENDERCTL_CONFIG": str(self._sign_in)}))
        where = f"/api/v1{path}?{urlencode(query)}"
        with self.node.entered():
            return call(self._link(), "GET", where, Authorization=f"Bearer {login.token}")

    def _link(self) -> HTTPConnection:
        return connection(f"tcp://{self.node.address}:{HTTPS_PORT}", self.certificates("admin"))

    def defenders(self) -> dict[str, Json]:
        """Return every defender as it is shown, by name."""
        return {each["name"]: each for each in self.get("/defenders")["items"]}

    def await_defenders(
        self, wanted: Callable[[Mapping[str, Json]], bool], what: str, patience: float = PATIENCE
    ) -> dict[str, Json]:
        """Ask for the defenders until `wanted`, given all of them by name, is true of them."""
        seen: dict[str, Json] = {}

        def told() -> bool:
            seen.clear()
            seen.update(self.defenders())
            return wanted(seen)

        assert wait_until(told, patience, 0.2), (
            f"{what}: not within {patience} s\n{json.dumps(seen, indent=1)}"
        )
        return seen

    def export(self, *filters: str) -> list[Event]:
        """Return all events that are stored, in the order in which they came, and holes as `gap`."""
        done = self.run_ctl("audit", "export", *filters)
        assert not done.returncode, done.stderr.decode()
        return [json.loads(line) for line in done.stdout.splitlines()]

    def ready(self) -> tuple[bool, str]:
        """Ask ``/readyz``: whether it can do its work, and what it says."""
        link = self._link()
        with self.node.entered():
            link.connect()
        try:
            link.request("GET", "/readyz")
            answer = link.getresponse()
            return answer.status == HTTPStatus.OK, answer.read().decode()
        finally:
            link.close()

    @functools.cache  # noqa: B019 - as long as the controller
    def certificates(self, user: str, *groups: str) -> Path:
        """Return the DOCKER_CERT_PATH of a user, whose certificate the fleet's authority issued."""
        out = self._desk.directory / "certificates" / "-".join((user, *groups)).replace(" ", "_")
        options = [word for group in groups for word in ("--group", group)]
        state = str(self.files)
        self.ctl("pki", "issue", "--state", state, "--user", user, *options, "--out", str(out))
        return out


class FleetDefender(HostDefender):
    """``twistd defender`` on a host, which belongs to a fleet.

    Args:
        host: where it runs.
        controller: of its fleet.
        clock: its own, if it is not to have the machine's.
        settings: more keys of its settings by table, as TOML text.
    """

    def __init__(
        self,
        host: Host,
        controller: FleetController,
        *,
        clock: Clock | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(host, clock=clock, options=("--controller", controller.channel))
        self._controller = controller
        self._usual = list(self.command)
        names = f'names = ["{host.name}", "{host.address}"]'
        self.write_settings({"controller": names}, settings or {})

    @property
    def probe(self) -> Path:
        return self._controller.certificates("admin")

    def launch(self, token: str | None = None) -> None:
        """Start it and do not wait.

        Args:
            token: what lets it in, at its first start.
        """
        self.command = list(self._usual)
        if token is not None:
            file = self.host.directory / "join-token"
            file.write_text(token + "\n", "ascii")
            file.chmod(0o600)
            self.command += ["--join-token", f"@{file}"]
        super().launch()

    def fleet(self) -> Mapping[str, Any]:
        """What it says of its fleet."""
        found: Mapping[str, Any] = self.status()["fleet"]
        return found

    def linked(self) -> bool:
        """Whether it has a session with its controller, as far as it knows."""
        return bool(self.fleet()["connected"])

    def hurry(self) -> None:
        """Have it try its controller now if it has no link, rather than when its turn has come."""
        if not self.linked():
            answer = ask(self.host.seen(self.state) / "control.sock", make_request("reload", {}))
            assert answer.ok, answer.error

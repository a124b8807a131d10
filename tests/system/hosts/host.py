"""A host of the test network: a node with a Docker Engine, and what all defenders have in common."""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.cli.local import ask
from defender.contract.local import make_request
from deploy.docker_api import ping
from deploy.engine import OwnEngine
from tests.engine.dockerd import client_environment
from tests.engine.guarded import Event, Trail, program, program_environment
from tests.spool import events_in, findings
from tests.system.hosts.node import Node
from tests.system.hosts.program import Clock, Program

PORT = 2376


class Host(Node):
    """A node with an Engine of its own; the Engine's process is in the node's namespaces.

    Args:
        name: see `Node`.
        address: see `Node`.
        directory: see `Node`.
    """

    def __init__(self, name: str, address: str, directory: Path) -> None:
        super().__init__(name, address, directory)
        self._engine: OwnEngine | None = None

    @property
    def engine(self) -> OwnEngine:
        """Its Engine, which knows the machine that it runs on only once that was started."""
        if self._engine is None:
            self._engine = OwnEngine(
                self.directory / "engine",
                isolated=True,
                ends_with_parent=True,
                enter=tuple(self.command()),
            )
        return self._engine

    @property
    def containers(self) -> frozenset[str]:
        """The full ids of all containers of its Engine."""
        folder = self.directory / "engine" / "data" / "containers"
        return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()

    def direct(self, *arguments: str) -> str:
        """Run a docker command here that speaks with the Engine itself, past every defender."""
        return self.docker(*arguments, environment=client_environment(self.engine.address))[1]


class HostDefender(Program):
    """``twistd defender`` on a host, on TLS at `PORT` of its address and on a unix socket.

    Args:
        host: where it runs.
        clock: its own, if it is not to have the machine's.
        options: of the command, after its settings file.
    """

    def __init__(self, host: Host, *, clock: Clock | None = None, options: Sequence[str] = ()) -> None:
        self.host = host
        self.state = host.directory / "state"
        self.socket = self.state / "docker.sock"
        self.settings = host.directory / "defender.toml"
        self.mode = "unix+tcp"
        """Where it listens, as far as the tests know: where they look whether it serves."""
        super().__init__(
            host,
            "defender",
            [
                *program("twistd"),
                "--nodaemon",
                f"--pidfile={host.directory / 'defender.pid'}",
                "--logfile=-",
                *("defender", "--config", str(self.settings), *options),
            ],
            environment={**program_environment(), **(clock.environment if clock else {})},
            ready=self.serves,
        )

    def write_settings(self, tables: Mapping[str, str], extra: Mapping[str, str]) -> None:
        """Write its settings file: what every defender has, `tables`, and more keys by table."""
        known = {
            "defender": f'state = "{self.state}"\nname = "{self.host.name}"',
            "engine": f'address = "{self.host.engine.address}"',
            "listen": f'mode = "unix+tcp"\ntcp = ["{self.host.address}:{PORT}"]\nunix = ["{self.socket}"]',
            **tables,
        }
        text = "".join(
            f"[{name}]\n{known.get(name, '')}\n{extra.get(name, '')}\n" for name in {**known, **extra}
        )
        self.settings.write_text(text, "utf-8")

    # -- how clients reach it

    @property
    def address(self) -> str:
        """For clients in the network, by the host's name."""
        return f"tcp://{self.host.name}:{PORT}"

    def tls(self, certificates: Path) -> dict[str, str]:
        """Return the environment of a docker client on any node, which has a user's certificate."""
        return client_environment(self.address, certificates)

    def unix(self) -> dict[str, str]:
        """Return the environment of a docker client on the host itself."""
        return client_environment(f"unix://{self.socket}")

    @property
    def probe(self) -> Path:
        """DOCKER_CERT_PATH of the client with which the tests ask whether it serves."""
        raise NotImplementedError

    def serves(self) -> bool:
        """Tell whether it answers where its mode says; asked on the host itself, cut off or not."""
        try:
            if "tcp" in self.mode:
                with self.host.entered():
                    ping(f"tcp://{self.host.address}:{PORT}", self.probe)
            if "unix" in self.mode:
                ping(f"unix://{self.host.seen(self.socket)}")
        except (OSError, http.client.HTTPException):
            return False
        return True

    # -- what it says and records

    def status(self) -> Mapping[str, Any]:
        """Ask it over its control socket how it is."""
        answer = ask(self.host.seen(self.state) / "control.sock", make_request("status", {}))
        assert answer.ok, answer.error
        return answer.result

    def trail(self) -> Trail:
        """Return a reader of its events that follows them."""
        return Trail(self.host.seen(self.state))

    @property
    def spool(self) -> Path:
        """The directory of its events."""
        return self.host.seen(self.state) / "audit"

    def events(self) -> list[Event]:
        """Return all events on its disk, in order.

        Raises:
            AssertionError: when a record is damaged or missing.
        """
        assert not findings(self.spool), findings(self.spool)
        return events_in(self.spool)

"""A host of the test network: a node with a Docker Engine, guarded by a defender that has no controller."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.cli.local import ask
from defender.contract.local import make_request
from deploy.docker_api import ping
from deploy.engine import OwnEngine
from tests.engine.dockerd import client_environment
from tests.engine.guarded import POLICY, Event, Trail, program, program_environment
from tests.fakes.authority import TestAuthority
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


class StandaloneDefender(Program):
    """``twistd defender`` on a host, on TLS at `PORT` of its address and on a unix socket.

    Args:
        host: where it runs.
        pki: signs its server certificate, and those of its clients.
        probe: DOCKER_CERT_PATH of the client with which the tests ask whether it serves.
        clock: its own, if it is not to have the machine's.
        settings: more keys of its settings by table, as TOML text: ``{"limits": "linger = 1"}``.
        policy: text of its policy.
    """

    def __init__(
        self,
        host: Host,
        pki: TestAuthority,
        probe: Path,
        *,
        clock: Clock | None = None,
        settings: Mapping[str, str] | None = None,
        policy: str = POLICY,
    ) -> None:
        self.host = host
        self.state = host.directory / "state"
        self.socket = self.state / "docker.sock"
        self.policy = host.directory / "policy.yaml"
        self._probe = probe
        super().__init__(
            host,
            "defender",
            [
                *program("twistd"),
                "--nodaemon",
                f"--pidfile={host.directory / 'defender.pid'}",
                "--logfile=-",
                *("defender", "--config", str(host.directory / "defender.toml")),
            ],
            environment={**program_environment(), **(clock.environment if clock else {})},
            ready=self.serves,
        )
        self.policy.write_text(policy, "utf-8")
        names = (host.name, host.address)
        pki.write_server(host.directory / "tls", pki.server(names, defender=host.name))
        self._write_settings(settings or {})

    def _write_settings(self, extra: Mapping[str, str]) -> None:
        tls = self.host.directory / "tls"
        tables = {
            "defender": f'state = "{self.state}"\nname = "{self.host.name}"',
            "engine": f'address = "{self.host.engine.address}"',
            "listen": f'mode = "unix+tcp"\ntcp = ["{self.host.address}:{PORT}"]\nunix = ["{self.socket}"]',
            "tls": f'certificate = "{tls / "server.pem"}"\nkey = "{tls / "server.key"}"\n'
            f'client_ca = "{tls / "client-ca.pem"}"',
            "policy": f'file = "{self.policy}"',
        }
        text = "".join(
            f"[{name}]\n{tables.get(name, '')}\n{extra.get(name, '')}\n" for name in {**tables, **extra}
        )
        (self.host.directory / "defender.toml").write_text(text, "utf-8")

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

    def serves(self) -> bool:
        """Tell whether it answers on both its listeners; asked on the host itself, cut off or not."""
        try:
            with self.host.entered():
                ping(f"tcp://{self.host.address}:{PORT}", self._probe)
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

    def events(self) -> list[Event]:
        """Return all events on its disk, in order.

        Raises:
            AssertionError: when a record is damaged or missing.
        """
        spool = self.host.seen(self.state) / "audit"
        assert not findings(spool), findings(spool)
        return events_in(spool)

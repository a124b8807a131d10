"""The base of tests of a whole fleet: one network for all tests of a class, and the checker at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from deploy.processes import wait_until
from tests.engine.terminal import Terminal
from tests.system.hosts.checker import Expected, check_fleet
from tests.system.hosts.fleet import FleetController, FleetDefender, Json
from tests.system.hosts.host import Host
from tests.system.hosts.hosts import Hosts
from tests.system.hosts.node import Node

PATIENCE = 60.0
BUILDER = ("bob@example.com", "Builders")


class FleetCase(SynchronousTestCase):
    """Three hosts with an Engine and a defender each, their controller, and a client.

    Attributes:
        options: more arguments of `Hosts`.
        kills: how often tests have killed a defender, by name.
        drops: names of the defenders that tests kept from writing.
    """

    options: ClassVar[Mapping[str, Any]] = {}
    hosts: ClassVar[Hosts]
    controller: ClassVar[FleetController]
    client: ClassVar[Node]
    kills: ClassVar[Counter[str]]
    drops: ClassVar[set[str]]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.kills, cls.drops = Counter(), set()
        cls.hosts = Hosts(3, fleet=True, **cls.options).start()
        cls.controller, cls.client = cls.hosts.controller, cls.hosts.client

    @classmethod
    def tearDownClass(cls) -> None:
        try:
            check_fleet(cls.hosts, Expected(cls.kills, frozenset(cls.drops)))
        finally:
            cls.hosts.stop()  # fails when anything is left
            super().tearDownClass()

    def member(self, host: Host) -> FleetDefender:
        return self.hosts.member(host)

    def docker(
        self, host: Host, *arguments: str, who: tuple[str, ...] = ("admin",), check: bool = True
    ) -> tuple[int, str]:
        """Run a docker command of a user's (name and groups) on the client, against a host."""
        return self.client.docker(*arguments, environment=self.hosts.tls(host, *who), check=check)

    def name_of(self, host: Host) -> str:
        """Ask a host's Engine over the network what the machine is called that it runs on."""
        return self.docker(host, "info", "--format", "{{.Name}}")[1]

    def shell(self, host: Host, who: tuple[str, ...] = ("admin",)) -> Terminal:
        """Open ``docker exec -it`` of a shell on a host, in a container that goes with the test."""
        container = f"c{len(self._cleanups)}"
        self.addCleanup(host.direct, "rm", "-f", container)
        host.direct(
            *("run", "-d", "--network=none", "--stop-signal=KILL", "--name", container, "busybox"),
            *("sleep", "1000000"),
        )
        terminal = self.client.terminal(
            "exec", "-it", container, "sh", environment=self.hosts.tls(host, *who)
        )
        self.addCleanup(terminal.end)
        terminal.expect(rb"# ")
        return terminal

    def await_linked(self, *hosts: Host) -> None:
        """Wait until these have a session with the controller; none waits for its turn to come back."""
        for host in hosts:
            member = self.member(host)

            def linked(member: FleetDefender = member) -> bool:
                member.hurry()
                return member.linked()

            self.await_true(f"{host.name} is linked", linked, 0.3)

    def await_defenders(self, wanted: Callable[[Mapping[str, Json]], bool], what: str) -> Mapping[str, Json]:
        return self.controller.await_defenders(wanted, what)

    def await_true(self, what: str, wanted: Callable[[], bool], pause: float = 0.05) -> None:
        """Ask for something every `pause` seconds; fail with `what` when it does not become true."""
        self.assertTrue(wait_until(wanted, PATIENCE, pause), what)

"""A test network: hosts with an Engine and a defender each, other machines, and a switch between them.

The defenders stand alone, or with ``fleet=True`` belong to a controller, which has a node of its own.

::

    hosts = Hosts(3).start()
    try:
        one, two, three = hosts.hosts
        hosts.client.docker("ps", environment=hosts.tls(one, "admin"))
        hosts.network.cut(two)
    finally:
        hosts.stop()

Everything in it ends by itself when the process that started it is gone, killed or not; the files of such a
one go with the next `start`. ``python -m tests.system.hosts`` starts one to be looked at by hand.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.engine import OwnEngine, ensure_cgroups
from deploy.processes import Process
from tests.engine.guarded import POLICY
from tests.fakes.authority import TestAuthority
from tests.system.hosts.fleet import FleetController, FleetDefender
from tests.system.hosts.host import Host, HostDefender
from tests.system.hosts.network import BRIDGE, Network, address, port_of
from tests.system.hosts.node import Node
from tests.system.hosts.program import Clock, Program
from tests.system.hosts.remains import PATIENCE, Remains
from tests.system.hosts.standalone import StandaloneDefender

_PREFIX = "dfleet-hosts-"
_HOME = Path("/tmp")  # short, for sockets lie below


class Hosts:
    """A test network.

    Args:
        count: hosts, each with an Engine; their names are ``host1`` and so on.
        others: names of nodes without an Engine; the first is the `client`.
        clocks: names of hosts whose defender has a `Clock` of its own.
        disks: size of a small file system, such as ``1m``, for the state directory, by the node's name.
        settings: more keys of every defender's settings, see `HostDefender.write_settings`.
        fleet: start a controller on a node of that name, and let a defender of its fleet guard each host; the
            policy is `POLICY` for all, and each host has the label ``rack=NUMBER``.
        center: more keys of the controller's settings.
    """

    def __init__(
        self,
        count: int = 3,
        *,
        others: Sequence[str] = ("client",),
        clocks: Sequence[str] = (),
        disks: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        fleet: bool = False,
        center: Mapping[str, str] | None = None,
    ) -> None:
        myself = Process.of(os.getpid())
        assert myself is not None
        self.directory = _HOME / f"{_PREFIX}{myself.pid}-{myself.started}"
        assert not self.directory.exists(), "one test network at a time in a process"
        names = [f"host{number}" for number in range(1, count + 1)]
        others = (*others, "controller") if fleet else others
        self.network = Network(self.directory / "switch")
        self.hosts = [
            Host(name, address(number), self.directory / name) for number, name in enumerate(names, 1)
        ]
        self.others = [
            Node(name, address(number), self.directory / name)
            for number, name in enumerate(others, len(names) + 1)
        ]
        self.pki = TestAuthority()
        self.clocks: dict[str, Clock] = {}
        self.defenders: dict[str, HostDefender] = {}
        self.members: dict[str, FleetDefender] = {}
        self.programs: list[Program] = []
        """Ended with the network, the last one first; append your own."""
        self._clocks = clocks
        self._disks = dict(disks or {})
        self._settings = settings
        self._fleet = fleet
        self._center = center
        self._controller: FleetController | None = None

    # -- what is in it

    @property
    def nodes(self) -> list[Node]:
        return [*self.hosts, *self.others]

    @property
    def client(self) -> Node:
        return self.others[0]

    def node(self, name: str) -> Node:
        """Return a node by its name."""
        return next(node for node in self.nodes if node.name == name)

    def defender(self, host: Host) -> HostDefender:
        return self.defenders[host.name]

    def member(self, host: Host) -> FleetDefender:
        """Return the defender of a host in a fleet."""
        return self.members[host.name]

    @property
    def controller(self) -> FleetController:
        """Of the fleet."""
        assert self._controller is not None, "there is no fleet"
        return self._controller

    def certificates(self, user: str, *groups: str) -> Path:
        """Return the DOCKER_CERT_PATH of a user."""
        if self._controller is not None:
            return self._controller.certificates(user, *groups)
        directory = self.directory / "certificates" / "-".join((user, *groups)).replace(" ", "_")
        if not directory.exists():
            self.pki.write_user(directory, self.pki.user(user, groups))
        return directory

    def tls(self, host: Host, user: str = "admin", *groups: str) -> dict[str, str]:
        """Return the environment of a docker client in the network with a user's certificate for a host."""
        return self.defender(host).tls(self.certificates(user, *groups))

    # -- its life

    def start(self) -> Hosts:
        """Start all of it, and wait until every defender serves.

        Raises:
            AssertionError, deploy.engine.EngineError: saying what could not be started; nothing is left.
        """
        clear_stale()
        self.directory.mkdir(mode=0o700)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        ensure_cgroups()  # now, for what is mounted later is not seen on the nodes
        hosts_file = self.directory / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{node.address} {node.name}" for node in self.nodes)]
        hosts_file.write_text("\n".join(lines) + "\n", "ascii")
        self.network.start(hosts_file)
        for node in self.nodes:
            node.start(hosts_file)
            self.network.connect(node)
            if node.name in self._disks:
                node.mount_small_disk(node.directory / "state", self._disks[node.name])
        if self._fleet:
            self._found()
        for host in self.hosts:
            host.engine.start()
        if self._fleet:
            self._gather()
        else:
            for host in self.hosts:
                self._guard(host).launch()
            for defender in self.defenders.values():
                defender.await_ready()

    def _clock(self, host: Host) -> Clock | None:
        if host.name in self._clocks:
            self.clocks[host.name] = Clock(host.directory / "clock")
        return self.clocks.get(host.name)

    def _guard(self, host: Host) -> HostDefender:
        probe, clock = self.certificates("admin"), self._clock(host)
        defender = StandaloneDefender(host, self.pki, probe, clock=clock, settings=self._settings)
        self.defenders[host.name] = defender
        self.programs.append(defender)
        return defender

    # -- a fleet

    def _found(self) -> None:
        """Start the controller; it comes up while the Engines do."""
        self._controller = FleetController(self.node("controller"), self.client, self._center)
        self.programs.append(self._controller)
        self._controller.launch()

    def _gather(self) -> None:
        """Let every host join, and wait until each is served by its own policy."""
        controller = self.controller
        controller.await_ready()
        controller.sign_in()
        controller.publish("fleet", POLICY)
        for number, host in enumerate(self.hosts, 1):
            member = FleetDefender(host, controller, clock=self._clock(host), settings=self._settings)
            self.defenders[host.name] = self.members[host.name] = member
            self.programs.append(member)
            member.launch(controller.token("--name", host.name, "--label", f"rack={number}"))
        for member in self.members.values():
            member.await_ready()
        controller.await_defenders(
            lambda seen: len(seen) == len(self.hosts) and all(_settled(each) for each in seen.values()),
            "the fleet as it should be",
        )

    def remains(self) -> Remains:
        """Return by what to know things of this network when it is gone; ask while it runs."""
        started = [node for node in (*self.nodes, self.network.switch) if node.started]
        return Remains(
            self.directory,
            [node.pid for node in started],
            [container for host in self.hosts for container in host.containers],
            [BRIDGE, *(port_of(node) for node in self.nodes)],
        )

    def stop(self, patience: float = PATIENCE) -> None:
        """End all of it, and look whether anything is left `patience` seconds later.

        Raises:
            AssertionError: when a process, namespace, mount, network interface or file is left.
        """
        with self.remains() as remains:
            with contextlib.ExitStack() as ending:  # each part is ended, whatever comes of the others
                ending.callback(shutil.rmtree, self.directory, ignore_errors=True)
                ending.callback(self.network.stop)
                for node in self.nodes:
                    ending.callback(node.stop)
                for host in self.hosts:
                    if host.started:
                        ending.callback(host.engine.stop)
                for program in self.programs:
                    ending.callback(program.stop)
            left = remains.wait(patience)
        if self.directory.exists():
            left.append(f"directory {self.directory}")
        assert not left, "the test network left behind:\n" + "\n".join(left)


def _settled(shown: Mapping[str, Any]) -> bool:
    """Tell whether a defender is there and has what it should have."""
    return shown["state"] == "online" and all(
        stream["state"] in ("acked", "none") for stream in shown["streams"].values()
    )


def clear_stale() -> None:
    """Remove what is left of test networks whose process was killed."""
    for directory in _HOME.glob(_PREFIX + "*"):
        owner = re.fullmatch(r"(\d+)-(\d+)", directory.name.removeprefix(_PREFIX))
        if owner is not None and not Process(int(owner[1]), int(owner[2])).alive:
            for engine in directory.glob("*/engine"):
                OwnEngine(engine, isolated=True).stop()
            shutil.rmtree(directory, ignore_errors=True)

"""A proxy in memory: one client, as many Engine connections as it asks for, a clock in the test's hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.activation import Activated, PolicyActivation
from defender.contract.facts import Subject
from defender.contract.locks import LockSet
from defender.contract.packing import assemble, identity_text, unpack
from defender.proxy.backend import BackendPool
from defender.proxy.service import Proxy
from defender.settings import Settings, read_settings
from defender.streams.interface import Stream
from tests.fakes.streams import MemoryStream

POLICY = """\
schema: 1
rules:
  - name: readers
    groups: [readers]
    effect: allow
    actions: [container_list, docker_ping, docker_version]
    message: "Ask #platform."
  - name: ops
    users: [bruce]
    effect: allow
"""

PING = (
    b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nDocker-Experimental: false\r\nOstype: linux\r\n"
    b"Server: Docker/20.10.24 (linux)\r\nContent-Length: 2\r\n\r\nOK"
)
LIST = b"GET /v1.41/containers/json?all=1 HTTP/1.1\r\nHost: x\r\nUser-Agent: Docker-Client\r\n\r\n"
EXEC = (
    b"POST /v1.41/exec/abc/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}"
)
SWITCH = (
    b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
    b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
)
EMPTY = b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 3\r\n\r\n[]\n"
CREATE = b"POST /v1.41/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BRUCE = Subject(user="bruce", groups=("ops",), address="10.1.2.3", port=51234, serial="7f")


class Events:
    """A recorder that keeps what it is given. Attempts are on disk at once, unless there is a `problem`; with
    a list as `told`, whoever waits for the disk is in it.
    """

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.told: list[Callable[[str], None]] | None = None
        self.problem = ""

    def record(self, event: dict[str, object]) -> None:
        self.kept.append(json.loads(json.dumps(event, default=identity_text)))

    def append(self, pairs: int, body: bytes, corr: bytes = b"", *, reserved: bool = False) -> bytes:
        identity = len(self.kept).to_bytes(16, "big")
        event = unpack(assemble(pairs, body, identity, 0, 0, corr), agent="web1", epoch=1, seq=1)
        self.kept.append(json.loads(json.dumps(event)))
        return identity

    def append_durable(self, pairs: int, body: bytes, corr: bytes, told: Callable[[str], None]) -> bytes:
        identity = self.append(pairs, body, corr)
        if self.told is None:
            told(self.problem)  # earlier than a recorder of disks can
        else:
            self.told.append(told)
        return identity

    def last(self) -> dict[str, Any]:
        return self.kept[-1]


def settings_in(directory: str, text: str = "") -> Settings:
    """Settings of a defender whose state is `directory`."""
    return read_settings(
        f'[defender]\nname = "web1"\nstate = "{directory}"\n{text}',
        source="defender.toml",
        base=Path(directory),
        host_name="web1",
    )


class House:
    """One proxy and everything around it."""

    def __init__(
        self, directory: str, *, policy: str = POLICY, settings: str = "", known: bool = True
    ) -> None:
        self.clock = Clock()
        self.now = 1_000_000.0
        self.engines: list[MemoryStream] = []
        self.events = Events()
        self.refuse: BaseException | None = None
        self.closed: list[bool] = []
        configured = settings_in(directory, settings)
        self.pool = BackendPool(
            self._connect,
            address=configured.engine.address,
            limit=configured.engine.max_connections,
            idle_limit=configured.engine.pool,
        )
        self.activation = PolicyActivation("web1")
        assert isinstance(self.activation.offer(policy, "policy.yaml"), Activated)
        self.proxy = Proxy(
            self.clock,
            pool=self.pool,
            activation=self.activation,
            recorder=self.events,
            engine=configured.engine,
            limits=configured.limits,
            outlasting=configured.streams,
            prefix=configured.policy.prefix,
            wall=lambda: self.now,
        )
        self.proxy.locks = LockSet()
        self.proxy.startService()
        if known:
            learned: list[object] = []
            self.pool.learn().addCallback(learned.append)
            self.engines[0].deliver(PING)
            assert learned
            self.engines[0].take()

    def _connect(self) -> Deferred[Stream]:
        if self.refuse is not None:
            return fail(self.refuse)
        stream = MemoryStream()
        self.engines.append(stream)
        return succeed(stream)

    @property
    def engine(self) -> MemoryStream:
        """The newest connection to the Engine."""
        return self.engines[-1]

    def client(self, subject: Subject = BRUCE) -> MemoryStream:
        """A connected client."""
        stream = MemoryStream(("10.1.2.3", 51234))
        self.proxy.accept(stream, subject, lambda: self.closed.append(True))
        return stream

    def advance(self, seconds: float) -> None:
        """Let time pass, a sweep at a time."""
        self.now += seconds
        self.clock.pump([0.5] * int(seconds * 2 + 1))

    def stop(self) -> None:
        self.proxy.stopService()


class HouseCase(SynchronousTestCase):
    """A test with a house of its own."""

    def setUp(self) -> None:
        self.house = House("/state")
        self.addCleanup(self.house.stop)


def message_of(answer: bytes) -> str:
    """The `message` of an Engine-shaped error answer."""
    _, _, body = answer.partition(b"\r\n\r\n")
    return str(json.loads(body)["message"])


def status_of(answer: bytes) -> int:
    """The status of an answer."""
    return int(answer.split(b" ", 2)[1])

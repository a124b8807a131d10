"""Cases that run on the fake Engine and on the real one: the fake cannot lie where both say the same.

A test's body is written once, in a class inside a class called `Bodies` (which no loader looks into), and
runs through two subclasses, one with `OnFake` and one with `OnReal`.
"""

from __future__ import annotations

import os
import tempfile
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes.engine import FakeEngine
from tests.proxying.client import Peer, connect_unix
from tests.proxying.reading import Request, get_all
from tests.proxying.running import POLICY, RunningDefender
from tests.proxying.wiretap import Wiretap

PASSED = frozenset(
    [
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "origin",
        "traceparent",
        "tracestate",
        "baggage",
        "x-registry-auth",
        "x-registry-config",
        "content-type",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-protocol",
        "sec-websocket-extensions",
    ]
)
"""Every header that may reach the Engine, but for those of the clients' own X-Meta and X-Docker ones."""


class ProxyCase(SynchronousTestCase):
    """A client, the defender, a wiretap and an Engine; one of each for all tests of a class."""

    settings: ClassVar[dict[str, str]] = {}
    policy: ClassVar[str] = POLICY
    tapped: ClassVar[bool] = True
    engine_path: ClassVar[str]
    defender: ClassVar[RunningDefender]
    tap: ClassVar[Wiretap]

    @classmethod
    def open_engine(cls) -> str:
        """Start the Engine; its socket."""
        raise NotImplementedError

    @classmethod
    def close_engine(cls) -> None:
        """End it."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        directory = tempfile.mkdtemp(prefix="dfw-", dir="/tmp")
        cls.addClassCleanup(os.rmdir, directory)
        cls.engine_path = cls.open_engine()
        cls.addClassCleanup(cls.close_engine)
        path = cls.engine_path
        if cls.tapped:
            path = f"{directory}/tap.sock"
            cls.tap = Wiretap(path, cls.engine_path).start()
            cls.addClassCleanup(cls.tap.stop)
        cls.defender = RunningDefender(path, settings=cls.settings, policy=cls.policy)
        cls.addClassCleanup(cls.defender.stop)
        cls.defender.start()

    def setUp(self) -> None:
        if self.tapped:
            self.tap.take()
        self.defender.forget_events()
        self.addCleanup(self.check_house)

    def check_house(self) -> None:
        """Nothing was logged that tells of a bug, and the Engine got nothing but canonical requests."""
        self.assertEqual(self.defender.complaints, [])
        if self.tapped:
            self.assertEqual(self.tap.faults, [])

    def client(self, user: str = "admin") -> Peer:
        """A TLS client; closed at the end of the test."""
        return self.kept(self.defender.tls(user))

    def direct(self) -> Peer:
        """A client of the Engine itself."""
        return self.kept(connect_unix(self.engine_path))

    def kept(self, peer: Peer) -> Peer:
        self.addCleanup(peer.close)
        return peer

    def assert_canonical(self, request: Request) -> None:
        """The request is one that the defender wrote from what it judged, in form."""
        names = [name for name, _ in request.headers]
        for name in names:
            self.assertTrue(name in PASSED or name.startswith(("x-meta-", "x-docker-")), request.raw_head)
        self.assertEqual(get_all(request.headers, "host"), ["docker"])
        self.assertLessEqual(names.count("content-length") + names.count("transfer-encoding"), 1)
        for name in ("connection", "upgrade", "content-type"):
            self.assertLessEqual(names.count(name), 1, request.raw_head)
        self.assertEqual("connection" in names, "upgrade" in names, request.raw_head)
        self.assertIn(request.get("connection"), (None, "Upgrade"))
        self.assertIn(request.get("upgrade"), (None, "tcp", "h2c", "websocket"))
        self.assertIn(request.get("content-type"), (None, "application/json", "application/x-tar"))
        has_body = request.framing == "chunked" or request.length > 0
        self.assertEqual(request.get("content-type") is not None, has_body, request.raw_head)


class OnFake(ProxyCase):
    """With the fake Engine, as `engine`."""

    engine: ClassVar[FakeEngine]

    @classmethod
    def open_engine(cls) -> str:
        directory = tempfile.mkdtemp(prefix="dfe-", dir="/tmp")
        cls.addClassCleanup(os.rmdir, directory)
        cls.engine = FakeEngine(f"{directory}/engine.sock").start()
        return cls.engine.path

    @classmethod
    def close_engine(cls) -> None:
        cls.engine.stop()


class OnReal(ProxyCase):
    """With the real Engine of the tests."""

    @classmethod
    def open_engine(cls) -> str:
        from tests.engine.dockerd import engine

        return str(engine().socket)

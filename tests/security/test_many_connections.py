"""Thousands of idle connections, and more than there is room for, at a defender in its own process."""

from __future__ import annotations

import functools
import itertools
import os
import resource
import socket
import ssl
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from controller.cli.local import ask
from defender.contract.local import make_request
from tests.fakes.engine import FakeEngine, Gate
from tests.proxying.client import Peer, certificates
from tests.proxying.running import RunningDefender, wait_until
from tests.soak.crowd import (
    Connect,
    Crowd,
    RefusedError,
    connect_tls,
    connect_unix,
    many_files,
    most_files,
    use,
)

TLS = 2000
UNIX = min(10_000, most_files() - 1000)
#: The most that an idle connection may add to the defender's anonymous memory, in bytes.
TLS_BYTES = 48 * 1024
UNIX_BYTES = 16 * 1024

PING = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT = b"POST /v1.41/containers/a/wait HTTP/1.1\r\nHost: x\r\n\r\n"
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class ManyCase(SynchronousTestCase):
    """A defender and a fake Engine of each test's own."""

    def start(self, *, files: int = 0, **limits: int) -> RunningDefender:
        """Start them with these limits; the defender may have so many open `files`, if not 0."""
        directory = tempfile.mkdtemp(prefix="dfm-", dir="/tmp")
        self.addCleanup(os.rmdir, directory)
        self.engine = FakeEngine(f"{directory}/engine.sock").start()
        self.addCleanup(self.engine.stop)
        lines = "".join(f"{key} = {value}\n" for key, value in limits.items())
        self.defender = RunningDefender(self.engine.path, settings={"limits": lines}, files=files)
        self.addCleanup(self.defender.stop)
        self.defender.start()
        self.addCleanup(self.check_log)
        return self.defender

    def check_log(self) -> None:
        self.assertEqual(self.defender.complaints, [])

    def crowd(self) -> Crowd:
        crowd = Crowd()
        self.addCleanup(crowd.close)
        return crowd

    def kept(self, peer: Peer) -> Peer:
        self.addCleanup(peer.close)
        return peer

    @staticmethod
    @functools.cache
    def context() -> ssl.SSLContext:
        files = certificates("admin")
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(files.certificate_chain, files.private_key)
        return context

    def tls(self) -> ssl.SSLSocket:
        return connect_tls(self.defender.port, self.context())

    def unix(self) -> socket.socket:
        return connect_unix(self.defender.unix)

    def over_limit(self) -> int:
        listener = self.status()["listener"]
        assert isinstance(listener, dict)
        return int(listener["over_limit"])

    def status(self) -> dict[str, object]:
        answer = ask(self.defender.state / "control.sock", make_request("status", {}))
        assert answer.ok, answer.error
        return dict(answer.result)

    def assert_refused(self, connect: Connect) -> None:
        """One connection more is closed, at once and whatever it asks."""
        with self.assertRaises(RefusedError):
            self.crowd().open(connect, 1)


class IdleTests(ManyCase):
    """Memory by connection, and the refusal of those for which `limits.connections` has no room."""

    def fill(self, connect: Connect, count: int, most: int) -> None:
        defender = self.defender
        warm = self.crowd()
        warm.open(connect, 50)
        warm.close()
        wait_until(lambda: self.status()["clients"] == {"connections": 0, "streams": 0}, "all are gone")
        crowd = self.crowd()
        before = defender.memory()
        crowd.open(connect, count)
        each = (defender.memory() - before) / count
        self.assertLess(each, most)
        # It is full: who comes now is told by the end of the connection, and those inside do not notice.
        for _ in range(3):
            self.assert_refused(connect)
        self.assertEqual(self.over_limit(), 3)
        self.assertEqual(crowd.lost(), 0)
        self.assertIn(f"connection closed: {count} are open (limits.connections)", defender.log)
        # One goes, one comes.
        crowd.close(1)
        wait_until(
            lambda: self.status()["clients"] == {"connections": count - 1, "streams": 0}, "one is gone"
        )
        crowd.open(connect, 1)
        crowd.close()
        wait_until(lambda: self.status()["clients"] == {"connections": 0, "streams": 0}, "all are gone")
        self.assertLess(defender.sockets(), 20)

    def test_idle_tls_connections(self) -> None:
        with many_files():
            self.start(connections=TLS, connections_per_user=0, requests_per_second=0)
            self.fill(self.tls, TLS, TLS_BYTES)

    def test_idle_unix_connections(self) -> None:
        with many_files():
            self.start(connections=UNIX, connections_per_user=0, requests_per_second=0)
            self.fill(self.unix, UNIX, UNIX_BYTES)

    def test_default_settings_bound_one_user_and_not_the_next(self) -> None:
        """A connection of a user beyond its own limit is answered with 429 and ended."""
        self.start(connections=300, connections_per_user=100)
        crowd = self.crowd()
        crowd.open(self.unix, 100)
        late = self.unix()
        self.addCleanup(late.close)
        self.assertEqual(use(late), 429)
        with self.assertRaises(RefusedError):
            use(late)
        admin = self.tls()
        self.addCleanup(admin.close)
        self.assertEqual(use(admin), 200)


class DescriptorTests(ManyCase):
    """A process that may have few open files."""

    def leave_room(self, count: int) -> None:
        """Let the running defender open `count` more files, and no more."""
        taken = {int(name) for name in os.listdir(f"/proc/{self.defender.pid}/fd")}
        limit = next(itertools.islice((n for n in itertools.count() if n not in taken), count, None))
        resource.prlimit(self.defender.pid, resource.RLIMIT_NOFILE, (limit, most_files()))

    def test_low_limit_from_the_start(self) -> None:
        """Clients get what is left beside the Engine, the record and the locks; those never go short."""
        defender = self.start(files=256)
        self.assertIn("the process may have 256 open files; raise LimitNOFILE= or ulimit -n", defender.log)
        peers = []
        for _ in range(300):
            sock = self.unix()
            self.addCleanup(sock.close)
            try:
                if use(sock) == 200:
                    peers.append(sock)
            except RefusedError:
                pass
        self.assertTrue(100 <= len(peers) < 256 - 64, len(peers))
        self.assertEqual(self.over_limit(), 300 - len(peers))
        self.assertNotIn("cannot accept", defender.log)
        # With all of them open the Engine is reached, by new connections too, and a lock is kept.
        gate = Gate()
        self.addCleanup(gate.open)
        self.engine.exit_gate = gate
        for sock in peers[:15]:
            sock.sendall(WAIT)
        wait_until(lambda: self.engine.open_connections >= 15, "15 calls are with the Engine")
        self.assertEqual(use(peers[-1]), 200)
        added = ask(defender.state / "control.sock", make_request("lock_add", {"kind": "user", "value": "x"}))
        self.assertTrue(added.ok, added.error)

    def assert_served(self, connected: list[socket.socket]) -> None:
        """Shake hands on each connection, and ask."""
        for sock in connected:
            with self.context().wrap_socket(sock, server_hostname="localhost") as tls:
                self.assertEqual(use(tls), 200)

    def test_exhausted_and_then_not(self) -> None:
        """Accepting stops without a busy loop, those inside go on, and it goes on by itself."""
        defender = self.start(handshake_timeout=600)
        inside = [self.kept(defender.tls()), self.kept(defender.local())]
        for peer in inside:
            self.assertEqual(peer.ask(PING).status, 200)
        self.leave_room(6)
        outside = [socket.create_connection(("127.0.0.1", defender.port)) for _ in range(40)]
        for sock in outside:
            self.addCleanup(sock.close)
        wait_until(lambda: "cannot accept: Too many open files" in defender.log, "it says so")
        # One more connection to the Engine cannot be had: that call fails with a reason.
        gate = Gate()
        self.addCleanup(gate.open)
        self.engine.exit_gate = gate
        inside[0].send(WAIT)
        wait_until(
            lambda: any("wait" in request.path for request in self.engine.requests), "it is with the Engine"
        )
        refused = inside[1].ask(PING)
        self.assertEqual(refused.status, 502)
        self.assertIn(b"Too many open files", refused.text)
        gate.open()
        self.assertEqual(inside[0].answer("POST").status, 200)
        # No descriptor is free for seconds now. Nothing tells of work that is not done, so time has to pass.
        before, since = cpu_seconds(defender.pid), time.monotonic()
        time.sleep(2.5)
        used = cpu_seconds(defender.pid) - before
        self.assertLess(used, 0.2 * (time.monotonic() - since))
        for peer in inside:
            self.assertEqual(peer.ask(PING).status, 200)
        self.assertEqual(defender.log.count("cannot accept"), 1)
        # Some go, and as many of those that wait have their turn; with the limit raised all have.
        for sock in outside[:10]:
            sock.close()
        self.assert_served(outside[10:14])
        resource.prlimit(defender.pid, resource.RLIMIT_NOFILE, (most_files(),) * 2)
        self.assert_served(outside[14:])
        late = self.kept(defender.tls())
        self.assertEqual(late.ask(PING).status, 200)

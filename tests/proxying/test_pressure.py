"""One side is slow: the defender holds less than a mebibyte, and everything arrives once it goes on.

What the defender holds is what one side has given away, less what the other side has got, less what lies in
the kernel's queues on the way. The kernel tells those of TCP; of a unix socket it tells what waits at the
reader only, so what waits before the defender there counts as held (some 200 KiB).
"""

from __future__ import annotations

import fcntl
import hashlib
import struct
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from tests.fakes.engine import Gate, Tunnel, faults
from tests.proxying.client import Peer
from tests.proxying.programs import CAT, FakePrograms
from tests.proxying.running import wait_until

MEGA = 1 << 20
WHOLE = 256 * MEGA
BLOCK = bytes(range(256)) * 256


def tcp_queues(*ports: int) -> int:
    """Bytes sent and not acknowledged, or received and not read, on the connections between these ports."""
    total = 0
    for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
        fields = line.split()
        ends = {int(fields[index].rpartition(":")[2], 16) for index in (1, 2)}
        if ends == set(ports):
            sent, received = (int(queue, 16) for queue in fields[4].split(":"))
            total += sent + received
    return total


def settled(figure: Callable[[], int]) -> int:
    """Wait until a figure has not changed for half a second."""
    value, since = figure(), time.monotonic()

    def is_still() -> bool:
        nonlocal value, since
        if (now := figure()) != value:
            value, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    wait_until(is_still, "the transfer stalls", 60)
    return value


def digest(size: int) -> str:
    """The SHA-256 of so many bytes of repeated `BLOCK`."""
    whole = hashlib.sha256()
    for _ in range(size // len(BLOCK)):
        whole.update(BLOCK)
    return whole.hexdigest()


class Sender:
    """Sends a head and repeated `BLOCK` in a thread, so that the test can look at it stall."""

    def __init__(self, peer: Peer, head: bytes, size: int) -> None:
        self.peer = peer
        self._thread = threading.Thread(target=self._run, args=(head, size), daemon=True)
        self._thread.start()

    def _run(self, head: bytes, size: int) -> None:
        self.peer.send(head)
        for _ in range(size // MEGA):
            self.peer.send(BLOCK * (MEGA // len(BLOCK)))

    def finish(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


class PressureTests(FakePrograms):
    """On the fake Engine, without the wiretap: it would hold bytes of its own."""

    tapped: ClassVar[bool] = False
    settings: ClassVar[dict[str, str]] = {"engine": "pool = 0"}

    def setUp(self) -> None:
        super().setUp()
        self.connections = (self.defender.tls, self.defender.local)

    def in_kernel(self, peer: Peer) -> int:
        """What lies between the client and the defender."""
        if not peer.name:
            return 0
        return tcp_queues(self.defender.port, int(peer.name.rpartition(":")[2]))

    def at_engine(self) -> int:
        """What the Engine's kernel holds unread."""
        total = 0
        for wire in list(self.engine._wires.values()):
            (unread,) = struct.unpack("i", fcntl.ioctl(wire.sock, termios.FIONREAD, b"\0" * 4))
            total += unread
        return total

    def assert_little(self, held: int, what: str) -> None:
        self.assertLess(held, MEGA, f"{what}: {held} bytes are held")

    def slow_reader(self, peer: Peer, request: bytes, size: int) -> str:
        """Read nothing but the head, then some, then all; the digest of what came behind the head."""
        before = self.defender.memory()
        known = len(self.engine.requests)
        head = peer.send(request).head("POST")
        asked = self.engine.requests[known]
        self.assertEqual(head.status, 200)
        whole = hashlib.sha256()
        for stop in (0, size // 4):
            while peer.received < stop:
                whole.update(peer.source.take(len(peer.source.buffer)))
                peer.fill()
            written = settled(lambda: asked.written)
            self.assertLess(written, size)
            # Both counts are of nearly the same bytes: the heads differ, and TLS adds a little to a record.
            self.assert_little(written - peer.received - self.in_kernel(peer), f"after {stop}")
        while peer.fill():
            whole.update(peer.source.take(len(peer.source.buffer)))
        self.assertEqual(peer.cut, "")
        self.assertLess(self.defender.memory() - before, 4 * MEGA)
        return whole.hexdigest()

    def test_a_slow_reader_of_an_answer(self) -> None:
        self.engine.save_bytes = WHOLE
        expected = hashlib.sha256()
        for _ in range(WHOLE // MEGA):
            expected.update(b"\x5a" * MEGA)
        # HTTP/1.0 gets its answer without chunks, so that the digest is plain.
        request = b"GET /v1.41/images/get?names=x HTTP/1.0\r\n\r\n"
        for connect in self.connections:
            peer = self.kept(connect())
            self.assertEqual(self.slow_reader(peer, request, WHOLE), expected.hexdigest())

    def test_a_slow_reader_of_a_stream(self) -> None:
        size = 64 * MEGA

        def flood(tunnel: Tunnel) -> None:
            for _ in range(size // len(BLOCK)):
                tunnel.exchange.send(BLOCK)

        for connect in self.connections:
            request = self.exec_request(CAT, upgrade="")
            self.engine.program = flood
            peer = self.kept(connect())
            self.assertEqual(self.slow_reader(peer, request, size), digest(size))
            peer.end().close()

    def slow_engine(self, peer: Peer, head: bytes, size: int, gate: Gate, got: Callable[[], int]) -> Sender:
        """Let the Engine read nothing, then some, then all."""
        before = self.defender.memory()
        sender = Sender(peer, head, size)
        for release in (0, 16):
            gate.release(release)
            settled(lambda: got() + self.at_engine())
            sent = settled(lambda: peer.sent)
            self.assertLess(sent, size)
            held = sent - self.in_kernel(peer) - got() - self.at_engine()
            self.assert_little(held, f"after {release}")
        gate.open()
        sender.finish()
        self.assertLess(self.defender.memory() - before, 4 * MEGA)
        return sender

    def test_a_slow_engine_that_takes_an_upload(self) -> None:
        for connect in self.connections:
            gate = Gate()
            then = faults.stock_answer(200, b"done")
            self.engine.behave("POST", "/images/load", faults.read_later(gate, then, step=MEGA))
            peer = self.kept(connect())
            known = len(self.engine.requests)
            head = f"POST /v1.41/images/load HTTP/1.1\r\nHost: x\r\nContent-Length: {WHOLE}\r\n\r\n".encode()

            def got(known: int = known) -> int:
                return sum(request.body_length for request in self.engine.requests[known:])

            self.slow_engine(peer, head, WHOLE, gate, got)
            self.assertEqual(peer.answer("POST").text, b"done")
            request = self.engine.requests[-1]
            self.assertEqual((request.body_length, request.digest), (WHOLE, digest(WHOLE)))
            peer.close()

    def test_a_slow_engine_that_takes_a_stream(self) -> None:
        size = 64 * MEGA
        gate = Gate()

        def swallow(tunnel: Tunnel) -> None:
            while not tunnel.request.stdin_ended:
                while not gate.take():
                    time.sleep(0.01)
                for _ in range(16):
                    if not tunnel.read():
                        break
            tunnel.write(tunnel.request.digest.encode())

        for connect in self.connections:
            gate = Gate()
            peer = self.kept(connect())
            request = self.exec_request(CAT)
            self.engine.program = swallow
            self.assertEqual(peer.send(request).head("POST").status, 101)
            known = self.engine.requests[-1]
            self.slow_engine(peer, b"", size, gate, lambda known=known: known.stdin_length)  # type: ignore[misc]
            peer.end()
            self.assertEqual(peer.rest()[8:], digest(size).encode())
            peer.close()

"""What a connection held is free when it ends, not when the garbage collector comes by.

A TLS connection holds some 50 kB in OpenSSL, of which the collector knows nothing: thousands that had ended
were kept until a full collection.
"""

from __future__ import annotations

import gc
import socket
import weakref
from typing import Any

from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.streams.interface import Lost
from defender.streams.plain import PlainStream
from tests.defender.listener.test_service import Hall as _Hall
from tests.defender.listener.test_service import Line, a_moment, threaded


class EndTests(_Hall):
    def setUp(self) -> None:
        super().setUp()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)

    async def test_connections_that_were_served(self) -> None:
        service = await self.serve(self.spec("tcp"))
        before = len(SSL.Connection._reverse_mapping)
        lines = [await self.over_tls(self.port(service)) for _ in range(5)]
        for line in lines:
            self.assertTrue(await threaded(line.hear))
        self.assertEqual(len(SSL.Connection._reverse_mapping), before + 5)
        for line in lines:
            line.sock.close()
        await self.gone(service)
        await a_moment()
        self.assertEqual(len(SSL.Connection._reverse_mapping), before)

    def test_idle_connections_keep_no_buffers(self) -> None:
        self.assertTrue(self.context().set_mode(0) & SSL.MODE_RELEASE_BUFFERS)

    async def test_connections_that_were_refused(self) -> None:
        service = await self.serve(self.spec("tcp"))
        before = len(SSL.Connection._reverse_mapping)
        for _ in range(5):
            line = Line(await threaded(lambda: self.stranger(self.port(service))))
            await threaded(line.hear)
            line.sock.close()
        await self.gone(service)
        await a_moment()
        self.assertEqual(len(SSL.Connection._reverse_mapping), before)

    def stranger(self, port: int) -> Any:
        sock = socket.create_connection(("127.0.0.1", port))
        self.addCleanup(sock.close)
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        return sock


class ReceiverTests(SynchronousTestCase):
    def test_streams_let_go_of_their_receivers(self) -> None:
        class Reactor(Clock):
            def addReader(self, reader: object) -> None: ...

            def removeReader(self, reader: object) -> None: ...

        class Served(MemoryReceiver):
            def __init__(self, stream: PlainStream) -> None:
                super().__init__()
                self.stream = stream

        gc.disable()
        self.addCleanup(gc.enable)
        reactor = Reactor()
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        stream = PlainStream(reactor, ours)
        receiver = Served(stream)
        stream.set_receiver(receiver)
        stream.abort()
        reactor.advance(0)
        self.assertTrue(receiver.lost)
        kept = weakref.ref(receiver)
        del receiver, stream
        self.assertIsNone(kept())


class MemoryReceiver:
    """Implements `defender.streams.interface.Receiver`; hears of the end."""

    def __init__(self) -> None:
        self.lost = False

    def data_received(self, data: bytes) -> None: ...

    def end_received(self) -> None: ...

    def write_full(self) -> None: ...

    def write_drained(self) -> None: ...

    def connection_lost(self, reason: Lost) -> None:
        self.lost = True

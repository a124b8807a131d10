"""Syslog over real TLS: slow receivers, receivers that go away, and what counts as delivered."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from controller.peer_tls import host_endpoint, peer_context
from controller.sinks.answers import Taken, Unavailable
from controller.sinks.syslog import SyslogFormat
from controller.sinks.syslog_tls import SyslogReceiver
from tests.controller.sinks.receivers import Certificates, SyslogServer, event, reactor


class SyslogReceiverTests(TestCase):
    """The connection by itself."""

    timeout = 60.0

    def setUp(self) -> None:
        self.certificates = Certificates()
        self.confirmed: list[int] = []
        self.lost: list[str] = []
        self.told: Deferred[None] = Deferred()

    def serve(self, **more: Any) -> SyslogServer:
        server = SyslogServer(self.certificates.proper(), **more)
        self.addCleanup(server.stop)
        return server

    def receiver(self, server: SyslogServer, **more: Any) -> SyslogReceiver:
        context = peer_context(self.certificates.anchors)
        endpoint = host_endpoint(reactor, "localhost", server.port, context)
        receiver = SyslogReceiver(reactor, endpoint, **{"settle": 0.05, "look": 0.01, **more})
        receiver.attach(self._confirmed, self._lost)
        self.addCleanup(receiver.close)
        return receiver

    def _tell(self) -> None:
        told, self.told = self.told, Deferred()
        told.callback(None)

    def _confirmed(self, ticket: int) -> None:
        self.confirmed.append(ticket)
        self._tell()

    def _lost(self, reason: str) -> None:
        self.lost.append(reason)
        self._tell()

    async def test_a_batch_arrives_and_is_confirmed(self) -> None:
        server = self.serve()
        receiver = self.receiver(server)
        frames = [SyslogFormat().encode(event(n)) for n in (1, 2, 3)]
        self.assertEqual(await receiver.deliver(1, frames), Taken(confirmed=False))
        self.assertEqual(self.confirmed, [])
        await self.told
        self.assertEqual(self.confirmed, [1])
        self.assertEqual(server.numbers, [1, 2, 3])
        self.assertTrue(json.loads(server.frames[0].partition(b"] ")[2]))

    async def test_one_connection_carries_many_batches(self) -> None:
        server = self.serve()
        receiver = self.receiver(server)
        for ticket in range(1, 6):
            await receiver.deliver(ticket, [SyslogFormat().encode(event(ticket))])
        while 5 not in self.confirmed:
            await self.told
        self.assertEqual((server.numbers, server.connected), ([1, 2, 3, 4, 5], 1))

    async def test_a_receiver_that_reads_nothing_is_given_up(self) -> None:
        """The kernel of the other side takes some, and TCP acknowledges it; the rest is never confirmed."""
        server = self.serve(reading=False)
        receiver = self.receiver(server, timeout=0.3)
        answer: Any = Taken()
        ticket = 0
        while isinstance(answer, Taken) and not self.lost:
            ticket += 1
            answer = await receiver.deliver(ticket, [b"x" * 1_000_000])
        self.assertIn("it has taken nothing for 0.3 s", (self.lost or [getattr(answer, "reason", "")])[0])
        self.assertLess(len(self.confirmed), ticket)

    async def test_one_that_dies_with_messages_unread_is_noticed(self) -> None:
        server = self.serve(reading=False)
        receiver = self.receiver(server, settle=30.0)
        await receiver.deliver(1, [SyslogFormat().encode(event(1))])
        for connection in list(server.connections):
            connection.transport.abortConnection()
        await self.told
        self.assertEqual(self.confirmed, [])
        self.assertEqual(len(self.lost), 1)

    async def test_a_connection_that_ends_while_idle_is_made_again(self) -> None:
        server = self.serve()
        receiver = self.receiver(server)
        await receiver.deliver(1, [SyslogFormat().encode(event(1))])
        await server.until(1)
        for connection in list(server.connections):
            connection.transport.loseConnection()
        while not self.lost:
            await self.told
        await receiver.deliver(2, [SyslogFormat().encode(event(2))])
        await server.until(2)
        self.assertEqual((server.numbers, server.connected), ([1, 2], 2))

    async def test_a_slow_receiver_gets_everything(self) -> None:
        server = self.serve(reading=False)

        def sip(frames: Any) -> None:
            """Read for an instant, now and then."""

            def sips() -> None:
                frames.transport.resumeProducing()
                naps.append(reactor.callLater(0, frames.transport.pauseProducing))
                naps.append(reactor.callLater(0.01, sips))

            sips()

        naps: list[Any] = []
        self.addCleanup(lambda: [nap.cancel() for nap in naps if nap.active()])
        server.on_connection = sip
        receiver = self.receiver(server, timeout=30.0)
        frame = b"100000 " + b"x" * 100_000
        for ticket in range(1, 31):
            self.assertEqual(await receiver.deliver(ticket, [frame]), Taken(confirmed=False))
        while 30 not in self.confirmed:
            await self.told
        self.assertEqual(len(server.frames), 30)
        self.assertEqual(self.lost, [])

    async def test_nobody_there(self) -> None:
        server = self.serve()
        await server.stop()
        answer = await self.receiver(server).deliver(1, [b"1 x"])
        assert isinstance(answer, Unavailable)
        self.assertIn("cannot connect", answer.reason)

    async def test_a_receiver_without_a_name_in_its_certificate_gets_nothing(self) -> None:
        server = SyslogServer(self.certificates.odd(None))
        self.addCleanup(server.stop)
        answer = await self.receiver(server).deliver(1, [b"1 x"])
        assert isinstance(answer, Unavailable)
        self.assertIn("(san)", answer.reason)
        self.assertEqual(server.octets, 0)

    async def test_the_end_is_in_order(self) -> None:
        server = self.serve()
        receiver = self.receiver(server)
        await receiver.deliver(1, [SyslogFormat().encode(event(1))])
        await receiver.close()
        await server.until(1)
        self.assertEqual(server.numbers, [1])

    async def test_a_delivery_that_is_no_longer_wanted_ends(self) -> None:
        server = self.serve()
        receiver = self.receiver(server)
        delivering = receiver.deliver(1, [b"1 x"])
        delivering.addErrback(lambda _: None)
        delivering.cancel()
        await receiver.close()
        await server.stop()
        self.assertEqual(server.octets, 0)

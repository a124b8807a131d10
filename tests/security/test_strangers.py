"""Peers without a certificate: what they can take from those who have one."""

from __future__ import annotations

import socket
from functools import partial
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.listener.acceptor import Acceptor
from defender.listener.connection import Refusal
from defender.listener.frontend import Reception
from tests.defender.listener.test_service import Hall as _Hall
from tests.defender.listener.test_service import Line, threaded

GREETING = b"bruce@example.com Dev team tls\n"


class CrowdTests(_Hall):
    """Connections that have proven nothing make room for those that come, the oldest first."""

    async def strangers(self, port: int, count: int) -> list[Line]:
        return [self.keep(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]

    async def test_strangers_do_not_keep_others_out(self) -> None:
        self.limit = 5
        service = await self.serve(self.spec("unix+tcp"))
        port = self.port(service)
        waiting = await self.strangers(port, 8)
        for _ in range(4):
            known = await self.over_tls(port)
            self.assertEqual(await threaded(known.hear), GREETING)
        unix = await self.over_unix()
        self.assertEqual(await threaded(unix.hear), b"root wheel unix\n")
        self.assertEqual(await threaded(waiting[0].hear), b"")
        await self.gone(service, 5)
        self.assertEqual(self.refusals, [])

    async def test_known_ones_do_not_make_room(self) -> None:
        self.limit = 2
        service = await self.serve(self.spec("tcp"))
        port = self.port(service)
        known = [await self.over_tls(port) for _ in range(2)]
        for line in known:
            self.assertEqual(await threaded(line.hear), GREETING)
        [late] = await self.strangers(port, 1)
        self.assertEqual(await threaded(late.hear), b"")
        self.assertEqual(service.status()["over_limit"], 1)
        for line in known:
            self.assertEqual(await threaded(partial(line.ask, b"x\n")), b"ok\n")

    async def test_refused_ones_make_room_at_once(self) -> None:
        """A refused peer may read its alert for a while; not at the cost of others."""
        self.limit = 3
        service = await self.serve(self.spec("tcp"))
        port = self.port(service)
        refused = await self.strangers(port, 3)
        for line in refused:
            line.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while len(self.refusals) < 3:
            await threaded(lambda: None)
        for _ in range(3):
            known = await self.over_tls(port)
            self.assertEqual(await threaded(known.hear), GREETING)
        await self.gone(service, 3)


class RecordTests(SynchronousTestCase):
    """Whoever can connect could write events until all others are pushed out of the files that are kept."""

    def test_refusals_are_summed_up(self) -> None:
        clock, kept = Clock(), list[Refusal]()
        terms: Any = SimpleNamespace(refused=kept.append)
        reception = Reception(clock, terms)
        for port in range(6000):
            reception._refuse(Refusal("tls", "protocol", "garbage", "", "10.0.0.1", port))
        self.assertTrue(500 <= len(kept) <= 1500, len(kept))
        first = len(kept)
        for _ in range(600):
            clock.advance(1)
            for port in range(100):
                reception._refuse(Refusal("tls", "protocol", "garbage", "", "10.0.0.1", port))
        self.assertTrue(len(kept) - first <= 6600, len(kept) - first)
        self.assertEqual(reception.refused, 66000)
        clock.advance(3600)
        reception._refuse(Refusal("tls", "protocol", "garbage", "", "10.0.0.1", 7))
        self.assertEqual(kept[-1].port, 7)
        told = sum(int(refusal.detail.split()[0]) for refusal in kept if refusal.check == "flood")
        single = sum(refusal.check == "protocol" for refusal in kept)
        self.assertEqual(told + single, reception.refused)


class AcceptorTests(SynchronousTestCase):
    def test_one_bad_connection_does_not_end_the_listener(self) -> None:
        """Whatever goes wrong with a socket that was accepted (no room in epoll, a bug), others follow."""

        class Reactor(Clock):
            def addReader(self, reader: object) -> None: ...

            def removeReader(self, reader: object) -> None: ...

        taken: list[socket.socket] = []

        def took(sock: socket.socket, _address: object) -> None:
            taken.append(sock)
            raise OSError(28, "No space left on device")

        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            acceptor = Acceptor(Reactor(), server, took, "test")
            for _ in range(2):
                with socket.create_connection(server.getsockname()) as client:
                    acceptor.doRead()
                    self.assertEqual(client.recv(1), b"")
        self.assertEqual([sock.fileno() for sock in taken], [-1, -1])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 2)

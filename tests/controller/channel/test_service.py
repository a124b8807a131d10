"""The channel's port on real sockets: who is let in, how many, how fast, and how it ends."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from controller.channel.protocol import Visit
from controller.channel.service import Reception
from controller.channel.tls import channel_context
from controller.settings import ChannelSettings, read_settings
from defender.channel.joining import NoAnswerError, ask
from defender.channel.protocol import ChannelProtocol
from defender.channel.tls import Credentials, PeerRefusedError, checked_endpoint, client_context
from defender.contract.defender_session import DefenderSession
from defender.contract.join_token import pin_of
from defender.contract.message_fields import Position
from defender.contract.messages import ALPN, Hello, Message, Status, Welcome
from defender.contract.peer_check import fleet_peer
from defender.contract.session import Expired
from tests.fakes.authority import TestAuthority
from tests.fakes.fleet import DEFENDER, controller_of, defender_of, opened

PKI = TestAuthority()
SETTINGS = read_settings(
    '[controller]\nstate = "/state"\n[channel]\nlisten = "127.0.0.1:0"\n',
    source="controller.toml",
    base=Path("/"),
    host_name="hq",
).channel


class Desk:
    """Welcomes whoever comes, and remembers what was said."""

    def __init__(self) -> None:
        self.trust_domain = PKI.trust_domain
        self.visits: list[Visit] = []
        self.said: list[object] = []
        self.over: Deferred[tuple[str, str]] = Deferred()
        self.answer: Callable[[bytes], Deferred[bytes]] = lambda request: succeed(b"answer to " + request)

    def joins(self, request: bytes, source: str, binding: bytes) -> Deferred[bytes]:
        self.said.append((source, len(binding)))
        return self.answer(request)

    def greeted(self, visit: Visit, hello: Hello) -> None:
        self.visits.append(visit)
        assert visit.session is not None
        visit.say(visit.session.welcome(0.0, generation=1, version="1", time=0, cursor=None))

    def heard(self, visit: Visit, message: Message | Expired) -> None:
        self.said.append(message)
        if isinstance(message, Status) and message.state.get("fail"):
            raise RuntimeError("the desk fails")

    def left(self, visit: Visit, code: str, detail: str) -> None:
        if not self.over.called:
            self.over.callback((code, detail))


class Guest:
    """A defender's side of one session."""

    def __init__(self) -> None:
        self.welcome: Deferred[Welcome] = Deferred()
        self.end: Deferred[tuple[str, str, float | None]] = Deferred()

    def welcomed(self, welcome: Welcome) -> None:
        self.welcome.callback(welcome)

    def pushed(self, push: object) -> None: ...
    def shown(self, snapshot: object) -> None: ...
    def stored(self, acknowledged: object) -> None: ...
    def asked(self, command: object) -> None: ...
    def renewed(self, answer: object) -> None: ...

    def lost(self, code: str, detail: str, window: float | None) -> None:
        self.end.callback((code, detail, window))


class ReceptionCase(TestCase):
    def reception(self, settings: ChannelSettings = SETTINGS) -> Reception:
        own = controller_of(PKI)
        self.desk = Desk()
        reception = Reception(
            reactor, settings, channel_context(own.chain, own.key, [PKI.fleet]), self.desk, opened
        )
        reception.startService()
        self.addCleanup(reception.stopService)
        return reception

    def context(self, credentials: Any = None) -> SSL.Context:
        shown = None if credentials is None else Credentials(credentials.chain, credentials.key)
        return client_context(anchors=[PKI.fleet], credentials=shown, alpn=ALPN)

    async def come(self, port: int, context: SSL.Context) -> tuple[ChannelProtocol, Guest]:
        guest = Guest()
        hello = Hello(0, 1, "1.0", "web1", "boot", (), {"policy": Position(0, 0, b"")}, None)
        factory: Any = Factory.forProtocol(
            lambda: ChannelProtocol(DefenderSession(reactor.seconds(), hello), guest, reactor)
        )
        endpoint = checked_endpoint(
            reactor, "127.0.0.1", port, context, fleet_peer(PKI.trust_domain, "controller"), alpn=ALPN
        )
        protocol: Any = await endpoint.connect(factory)
        self.addCleanup(protocol.cut)
        return protocol, guest


class WhoComesTests(ReceptionCase):
    async def test_a_defender_is_let_in_by_its_certificate(self) -> None:
        reception = self.reception()
        protocol, guest = await self.come(reception.port, self.context(defender_of(PKI)))
        await guest.welcome
        visit = self.desk.visits[0]
        assert visit.identity is not None
        self.assertEqual((visit.identity.identifier, visit.source), (DEFENDER, "127.0.0.1"))
        self.assertEqual([each.identity for each in reception.defenders()], [visit.identity])
        protocol.leave("stopping", "the defender stops")
        self.assertEqual(await self.desk.over, ("stopping", "the defender stops"))

    async def test_who_has_no_certificate_hears_why_it_is_refused(self) -> None:
        reception = self.reception()
        _, guest = await self.come(reception.port, self.context())
        code, detail, _ = await guest.end
        self.assertEqual((code, detail.split(":")[0]), ("refused", "no client certificate"))
        self.assertEqual(self.desk.visits, [])

    async def test_certificates_that_do_not_hold_end_the_handshake(self) -> None:
        reception = self.reception()
        foreign = TestAuthority()
        old = TestAuthority(now=PKI.now - timedelta(days=30))
        for credentials in (
            PKI.user("bruce", ["ops"]),
            controller_of(PKI),
            defender_of(foreign),
            defender_of(old),
        ):
            guest: Guest | None = None
            try:
                _, guest = await self.come(reception.port, self.context(credentials))
            except PeerRefusedError:
                continue
            # TLS 1.3: the client learns of it after its own handshake is over.
            await guest.end
            self.assertFalse(guest.welcome.called)
        self.assertEqual(self.desk.visits, [])

    async def test_a_fault_of_the_controller_ends_that_session_alone(self) -> None:
        reception = self.reception()
        protocol, guest = await self.come(reception.port, self.context(defender_of(PKI)))
        other, other_guest = await self.come(reception.port, self.context(defender_of(PKI)))
        await guest.welcome
        await other_guest.welcome
        protocol.say(protocol.session.report({"fail": True}))
        self.assertEqual((await guest.end)[0], "internal")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertFalse(other.session.is_closed)


class JoiningTests(ReceptionCase):
    async def test_one_request_has_one_answer(self) -> None:
        reception = self.reception()
        pins = frozenset([pin_of(PKI.root)])
        answer = await ask(reactor, "localhost", reception.port, pins, lambda binding: b"request")
        self.assertEqual(answer, b"answer to request")
        self.assertEqual(self.desk.said, [("127.0.0.1", 32)])

    async def test_a_request_that_cannot_be_answered(self) -> None:
        reception = self.reception()

        def fail(request: bytes) -> Deferred[bytes]:
            broken: Deferred[bytes] = Deferred()
            broken.errback(RuntimeError("no disk"))
            return broken

        self.desk.answer = fail
        pins = frozenset([pin_of(PKI.root)])
        await self.assertFailure(
            ask(reactor, "localhost", reception.port, pins, lambda binding: b"request"), NoAnswerError
        )
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class HowManyTests(ReceptionCase):
    def connect(self, port: int) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", port))
        self.addCleanup(client.close)
        client.setblocking(False)
        return client

    async def turn(self, seconds: float = 0.0) -> None:
        passed: Deferred[None] = Deferred()
        reactor.callLater(seconds, passed.callback, None)
        await passed

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            await self.turn(0.005)
        self.fail("it never came true")

    async def test_one_address_may_have_so_many_that_say_nothing(self) -> None:
        reception = self.reception(replace(SETTINGS, pending_per_address=3))
        clients = [self.connect(reception.port) for _ in range(5)]
        await self.until(lambda: reception.refused["pending_per_address"] == 2)
        self.assertEqual(len(reception.visits), 3)
        for client in clients:
            client.close()
        await self.until(lambda: not reception.visits)
        _, guest = await self.come(reception.port, self.context(defender_of(PKI)))
        await guest.welcome

    async def test_all_together_may_be_so_many(self) -> None:
        reception = self.reception(replace(SETTINGS, connections=1))
        _, guest = await self.come(reception.port, self.context(defender_of(PKI)))
        await guest.welcome
        self.connect(reception.port)
        await self.until(lambda: reception.refused["connections"] == 1)

    async def test_the_others_wait_in_the_kernel(self) -> None:
        reception = self.reception(replace(SETTINGS, accepted_per_second=40))
        clients = [self.connect(reception.port) for _ in range(30)]
        await self.until(lambda: len(reception.visits) >= 10)
        self.assertLess(len(reception.visits), 30)
        await self.until(lambda: len(reception.visits) == 30)
        self.assertEqual(sum(reception.refused.values()), 0)
        self.assertEqual(len(clients), 30)

    async def test_who_never_shakes_hands_is_cut(self) -> None:
        reception = self.reception(replace(SETTINGS, handshake_timeout=0.1))
        self.connect(reception.port)
        await self.until(lambda: len(reception.visits) == 1)
        await self.until(lambda: not reception.visits)

    async def test_at_the_end_everybody_is_told_when_to_come_back(self) -> None:
        reception = self.reception()
        _, guest = await self.come(reception.port, self.context(defender_of(PKI)))
        await guest.welcome
        await reception.stopService()
        code, detail, window = await guest.end
        self.assertEqual((code, detail, window), ("stopping", "the controller stops", 10.0))
        self.assertEqual(reception.visits, set())

    async def test_a_defender_that_is_removed_is_cut(self) -> None:
        reception = self.reception()
        _, guest = await self.come(reception.port, self.context(defender_of(PKI)))
        await guest.welcome
        self.assertEqual(reception.cut(lambda visit: False), 0)
        self.assertEqual(reception.cut(lambda visit: True), 1)
        self.assertEqual((await guest.end)[0], "refused")

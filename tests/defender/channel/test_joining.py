"""Joining over real TLS on loopback: the whole way from a token to a channel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from controller.pki.renewals import name_of
from defender.channel.joining import NoAnswerError, ask
from defender.channel.store import Member, MemberStore
from defender.channel.tls import PeerRefusedError, channel_binding, checked_endpoint, client_context
from defender.contract.framing import Framer, frame
from defender.contract.join import ALPN, BINDING_LABEL, BINDING_SIZE, MAX_REQUEST
from defender.contract.join_token import JoinToken, pin_of
from defender.contract.peer_check import fleet_peer
from defender.contract.renewal import LIFE
from defender.enrollment import Enrollment, EnrollmentError
from tests.fakes.authority import Credentials, OddLeaf
from tests.fakes.fleet import Conversation, TLSServer, controller_of, odd_server
from tests.fakes.join_controller import JoinController

CHANNEL = b"dfleet/1"


class JoiningCase(TestCase):
    """A controller on a port, and a host."""

    def setUp(self) -> None:
        self.controller = JoinController()
        self.directory = Path(self.mktemp()) / "fleet"

    def serve(self, credentials: Credentials | None = None, answer: Any = None, **more: Any) -> TLSServer:
        server = TLSServer(
            reactor,
            credentials or controller_of(self.controller.pki),
            **{"alpn": ALPN, "answer": answer or self.answer, **more},
        )
        self.addCleanup(server.stop)
        return server

    def answer(self, conversation: Conversation, data: bytes) -> None:
        """What a controller's join port does."""
        for payload in Framer(MAX_REQUEST).feed(conversation.received):
            binding = channel_binding(conversation.transport, BINDING_LABEL, BINDING_SIZE)
            conversation.transport.write(frame(self.controller.answer(payload, binding)))

    def begin(self, server: TLSServer, token: JoinToken | None = None) -> Deferred[Member]:
        enrollment = Enrollment(
            MemberStore(self.directory),
            reactor,
            partial(ask, reactor, "127.0.0.1", server.port),
            name="web1",
            hosts=("web1",),
            clock=lambda: float(self.controller.now),
        )
        return enrollment.begin(token)


class WholeWayTests(JoiningCase):
    """Token, certificate, channel."""

    async def test_a_host_joins_and_dials_its_channel(self) -> None:
        member = await self.begin(self.serve(), self.controller.token())
        channel = self.serve(alpn=CHANNEL, clients=[self.controller.pki.fleet], answer=echo)
        context = client_context(anchors=member.anchors, credentials=member.credentials, alpn=CHANNEL)
        endpoint = checked_endpoint(
            reactor,
            "127.0.0.1",
            channel.port,
            context,
            fleet_peer(member.trust_domain, "controller"),
            alpn=CHANNEL,
        )
        heard: Deferred[bytes] = Deferred()

        class Client(Protocol):
            transport: Any

            def connectionMade(self) -> None:
                self.transport.write(b"HELLO")

            def dataReceived(self, data: bytes) -> None:
                heard.callback(data)
                self.transport.loseConnection()

        await endpoint.connect(Factory.forProtocol(Client))
        self.assertEqual(await heard, b"HELLO")
        client = channel.conversations[0].client
        assert client is not None
        self.assertEqual(self.controller.peer(client).identifier, member.defender)
        await channel.conversations[0].ended

    async def test_a_second_start_asks_nobody(self) -> None:
        server = self.serve()
        member = await self.begin(server, self.controller.token())
        await gatherResults([each.ended for each in server.conversations])
        await server.stop()
        again = await self.begin(server)
        self.assertEqual(again.serial, member.serial)

    async def test_an_expired_certificate_and_its_key(self) -> None:
        """The proof is tied to this connection: what it signs was made by both ends of it."""
        server = self.serve()
        member = await self.begin(server, self.controller.token())
        self.controller.now += LIFE + 86_400
        again = await self.begin(server)
        self.assertEqual(again.defender, member.defender)
        self.assertNotEqual(again.serial, member.serial)
        await gatherResults([each.ended for each in server.conversations])

    async def test_a_proof_that_is_carried_to_another_connection(self) -> None:
        """Somebody in the middle, with a certificate for the port, passes the request on."""
        server = self.serve()
        member = await self.begin(server, self.controller.token())
        self.controller.now += LIFE + 86_400

        def relay(conversation: Conversation, data: bytes) -> None:
            for payload in Framer(MAX_REQUEST).feed(conversation.received):
                elsewhere = bytes(32)  # the binding of the relay's own connection
                conversation.transport.write(frame(self.controller.answer(payload, elsewhere)))

        middle = self.serve(answer=relay)
        with self.assertRaises(EnrollmentError) as caught:
            await self.begin(middle)
        self.assertEqual(caught.exception.code, "proof")
        used = name_of(self.controller.peer(member.certificate))
        self.assertEqual(self.controller.certificates[member.defender].used, used)
        self.assertIsNone(self.controller.certificates[member.defender].offered)
        for each in (server, middle):
            await gatherResults([conversation.ended for conversation in each.conversations])


def echo(conversation: Conversation, data: bytes) -> None:
    conversation.transport.write(data)


class ImpostorTests(JoiningCase):
    """Nobody but the fleet that the token pins hears of its secret."""

    async def kept_from(self, server: TLSServer) -> str:
        with self.assertRaises(EnrollmentError) as caught:
            await self.begin(server, self.controller.token())
        self.assertEqual(caught.exception.code, "unreachable")
        assert isinstance(caught.exception.__cause__, PeerRefusedError)
        await gatherResults([each.ended for each in server.conversations])
        self.assertEqual([each.received for each in server.conversations], [b""])
        self.assertEqual(self.controller.requests, [])
        return caught.exception.__cause__.check

    async def test_another_fleet(self) -> None:
        check = await self.kept_from(self.serve(controller_of(JoinController().pki)))
        self.assertEqual(check, "self-signed certificate in certificate chain")

    async def test_a_defender_of_the_fleet(self) -> None:
        server = self.controller.pki.server()
        with_root = Credentials((*server.chain, self.controller.pki.root), server.key)
        self.assertEqual(await self.kept_from(self.serve(with_root)), "spiffe-role")

    async def test_a_certificate_without_alternative_names(self) -> None:
        def change(leaf: OddLeaf) -> None:
            leaf.alternatives = None

        self.assertEqual(await self.kept_from(self.serve(odd_server(self.controller.pki, change))), "san")


class EndTests(JoiningCase):
    """Answers that do not come, or are none."""

    def ask(self, server: TLSServer, **more: Any) -> Deferred[bytes]:
        pins = frozenset({pin_of(self.controller.pki.root)})
        return ask(reactor, "127.0.0.1", server.port, pins, lambda binding: b"request", **more)

    async def test_who_closes(self) -> None:
        server = self.serve(answer=lambda conversation, data: conversation.transport.loseConnection())
        with self.assertRaises(NoAnswerError):
            await self.ask(server)

    async def test_who_says_too_much(self) -> None:
        server = self.serve(answer=lambda conversation, data: conversation.transport.write(b"\xff" * 8))
        with self.assertRaises(NoAnswerError) as caught:
            await self.ask(server)
        self.assertIn("beyond the limit", str(caught.exception))
        await gatherResults([each.ended for each in server.conversations])

    async def test_who_says_nothing(self) -> None:
        server = self.serve(answer=lambda conversation, data: None)
        with self.assertRaises(NoAnswerError) as caught:
            await self.ask(server, timeout=0.05)
        self.assertIn("no answer", str(caught.exception))
        await gatherResults([each.ended for each in server.conversations])

    async def test_a_request_that_cannot_be_made(self) -> None:
        server = self.serve()

        def build(binding: bytes) -> bytes:
            raise ValueError("no request")

        with self.assertRaises(ValueError):
            await ask(reactor, "127.0.0.1", server.port, frozenset({pin_of(self.controller.pki.root)}), build)
        await gatherResults([each.ended for each in server.conversations])

    async def test_cancelled(self) -> None:
        heard: Deferred[None] = Deferred()
        server = self.serve(answer=lambda conversation, data: heard.callback(None))
        asking = self.ask(server)
        await heard
        asking.cancel()
        with self.assertRaises(CancelledError):
            await asking
        await gatherResults([each.ended for each in server.conversations])

"""A defender of the revision before, as bytes that were recorded, with the controller of today: over real TLS
to a desk with its stores."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.protocol import Factory, Protocol

from controller.store.query import Query
from defender.channel.tls import checked_endpoint, client_context
from defender.contract.framing import Framer
from defender.contract.identity import ROLE_CONTROLLER
from defender.contract.message_bytes import decode_message, push_frames
from defender.contract.messages import ALPN, NEWEST, EvAck, Pong, Push, Renewed, Welcome
from defender.contract.peer_check import fleet_peer
from tests.controller.test_desk import DeskCase, reactor
from tests.test_docs import ROOT


class Recorded(Protocol):
    """Says what was recorded when it is told to, and keeps what it hears."""

    transport: Any

    def __init__(self, frames: list[dict[str, str]]) -> None:
        self.left = [each for each in frames if each["by"] == "defender"]
        self.heard: list[Any] = []
        self._framer = Framer(1 << 20)

    def dataReceived(self, data: bytes) -> None:
        self.heard += [decode_message(payload, 0) for payload in self._framer.feed(data)]

    def say(self, *names: str) -> None:
        for name in names:
            each = self.left.pop(0)
            assert each["name"] == name, each["name"]
            self.transport.write(bytes.fromhex(each["hex"]))

    def of(self, kind: type) -> list[Any]:
        return [each for each in self.heard if isinstance(each, kind)]


class OlderDefenderTests(DeskCase):
    async def test_it_keeps_working(self) -> None:
        [conversation] = [
            each
            for each in json.loads((ROOT / "tests/data/channel/conversations.json").read_text())
            if (each["defender"], each["controller"]) == (NEWEST - 1, NEWEST)
        ]
        member = (await self.joined("web1")).member
        await self.stop_members()
        assert member is not None
        await self.until(lambda: not self.desk.visits)
        peer = Recorded(conversation["frames"])
        context = client_context(anchors=member.anchors, credentials=member.credentials, alpn=ALPN)
        expected = fleet_peer(member.trust_domain, ROLE_CONTROLLER)
        port = self.reception.port
        endpoint = checked_endpoint(reactor, "127.0.0.1", port, context, expected, alpn=ALPN)
        await endpoint.connect(Factory.forProtocol(lambda: peer))

        peer.say("HELLO")
        await self.until(lambda: peer.of(Welcome))
        self.assertEqual(peer.of(Welcome)[0].revision, NEWEST - 1)
        defender = member.defender
        self.assertTrue(self.desk.push(defender, "policy", 501, push_frames("policy", 501, b"a policy")))
        await self.until(lambda: len(peer.of(Push)) == 1)
        peer.say("EVENTS", "ACK")
        await self.until(lambda: self.publisher.of("acked"))
        self.assertEqual(self.publisher.of("acked"), [("acked", defender, "policy", 501, 13)])
        self.assertTrue(self.desk.push(defender, "locks", 502, push_frames("locks", 502, b"locks")))
        await self.until(lambda: len(peer.of(Push)) == 2)
        peer.say("NACK", "EVENTS")
        await self.until(lambda: self.publisher.of("refused"))
        self.assertEqual(self.publisher.of("refused"), [("refused", defender, "locks", 502, "signature")])
        await self.until(lambda: peer.of(EvAck) and peer.of(EvAck)[-1].through == 4)
        stored = await self.events.search(Query())
        self.assertEqual(
            [each.event["seq"] for each in stored.events if each.defender == defender][::-1], [1, 2, 3, 4]
        )
        # What it asks a certificate for is no signing request; it is told so, and goes on.
        peer.say("RENEW")
        await self.until(lambda: peer.of(Renewed))
        self.assertEqual((peer.of(Renewed)[0].chain, peer.of(Renewed)[0].code), ((), "csr"))
        del peer.left[0]
        peer.say("PING")
        await self.until(lambda: peer.of(Pong))
        self.assertEqual(set(self.desk.visits), {defender})
        peer.transport.abortConnection()
        await self.until(lambda: not self.desk.visits)

"""One connection, or one subject, that asks for more than its share."""

from __future__ import annotations

import dataclasses

from defender.streams.interface import HIGH_WATER
from tests.defender.proxy.house import BRUCE, EMPTY, LIST, HouseCase, status_of
from tests.fakes.streams import MemoryStream

DENIED = b"GET /v1.41/nowhere HTTP/1.1\r\nHost:\r\n\r\n"


class PipelineTests(HouseCase):
    """Requests that are answered here, without the Engine, come as fast as a client can write."""

    def test_others_have_their_turn(self) -> None:
        """A read of a quarter of a megabyte holds thousands of requests; some are answered, then others'."""
        client = self.house.client()
        client.deliver(DENIED * 6000)
        first = client.take().count(b"HTTP/1.1 403 ")
        self.assertTrue(0 < first <= 64, first)
        self.assertTrue(client.paused)

    def test_every_one_is_answered_in_the_end(self) -> None:
        client = self.house.client()
        client.deliver(DENIED * 1500 + LIST)
        self.house.clock.pump([0.001] * 200)
        self.assertEqual(client.take().count(b"HTTP/1.1 403 "), 1500)
        self.assertFalse(client.paused)
        self.assertEqual(len(self.house.events.kept), 1500)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(client.take()), 200)

    def test_client_that_does_not_read_its_denials(self) -> None:
        """Answers wait for a reader in bounded memory."""
        client = self.house.client()
        client.deliver(DENIED)
        self.assertEqual(status_of(client.take()), 403)
        client.pending = HIGH_WATER + 1
        client.fill()
        client.deliver(DENIED * 10)
        self.house.clock.pump([0.001] * 20)
        self.assertEqual(client.take(), b"")
        self.assertTrue(client.paused)
        client.pending = 0
        client.drain()
        self.house.clock.pump([0.001] * 20)
        self.assertEqual(client.take().count(b"HTTP/1.1 403 "), 10)
        self.assertFalse(client.paused)

    def test_client_that_goes_meanwhile(self) -> None:
        client = self.house.client()
        client.deliver(DENIED * 6000)
        client.lose(clean=False, detail="reset")
        before = len(self.house.events.kept)
        self.house.clock.pump([0.001] * 20)
        self.assertEqual(len(self.house.events.kept), before)


class DenialRateTests(HouseCase):
    """Denials are cheap to ask for and each becomes an event: a flood would push all others out of the files
    that are kept.
    """

    def denials(self, client: MemoryStream, count: int) -> int:
        client.deliver(DENIED * count)
        self.house.clock.pump([0.0001] * 400)
        return client.take().count(b"HTTP/1.1 403 ")

    def test_sustained_rate_is_bounded(self) -> None:
        clients = [self.house.client() for _ in range(3)]
        burst = sum(self.denials(client, 5000) for client in clients)
        self.assertTrue(1000 <= burst <= 2500, burst)
        self.house.advance(10)
        later = sum(client.take().count(b"HTTP/1.1 403 ") for client in clients)
        self.assertTrue(100 <= later <= 600, later)
        self.assertEqual(len(self.house.events.kept), burst + later)

    def test_others_are_not_held_back(self) -> None:
        self.denials(self.house.client(), 5000)
        client = self.house.client(dataclasses.replace(BRUCE, user="carol", groups=("readers",)))
        self.assertEqual(self.denials(client, 100), 100)

    def test_subject_is_forgiven(self) -> None:
        client = self.house.client()
        self.denials(client, 5000)
        client.lose()
        self.house.advance(200)
        self.assertEqual(self.denials(self.house.client(), 500), 500)
        self.house.advance(200)
        self.assertEqual(self.house.proxy._denials, {})

    def test_unreadable_requests_count_too(self) -> None:
        for _ in range(2500):
            self.house.client().deliver(b"nonsense\r\n\r\n")
        client = self.house.client()
        self.assertEqual(self.denials(client, 1), 0)

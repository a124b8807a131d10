"""One connection, or one subject, that asks for more than its share."""

from __future__ import annotations

import dataclasses

from defender.proxy.budget import ANSWERED, SINGLE
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
        self.assertEqual(len(self.house.events.kept), SINGLE)
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
    """Denials are cheap to ask for and each could become an event: a flood would push all others out of the
    spool. The first ones of a user are events of their own, what comes then is counted.
    """

    def answers(self, client: MemoryStream, count: int) -> dict[int, int]:
        """Ask so often for what is denied; how many answers of each status came at once."""
        client.deliver(DENIED * count)
        self.house.clock.pump([0.0001] * 400)
        return self.read(client)

    def read(self, client: MemoryStream) -> dict[int, int]:
        text = client.take()
        return {status: text.count(b"HTTP/1.1 %d " % status) for status in (403, 429)}

    def recorded(self) -> tuple[int, int]:
        """Requests that events speak of, and how many events those are."""
        events = self.house.events.kept
        return sum(event["result"].get("count", 1) for event in events), len(events)

    def test_answers_and_events_are_bounded_and_no_request_is_lost_count_of(self) -> None:
        """Requests are made faster than the limit: the burst is denied, then answers are 429, then none."""
        clients = [self.house.client() for _ in range(3)]
        burst = sum(sum(self.answers(client, 5000).values()) for client in clients)
        self.assertTrue(ANSWERED <= burst <= ANSWERED + 100, burst)
        self.assertTrue(all(client.paused for client in clients))
        self.house.advance(10)
        later = [self.read(client) for client in clients]
        denied, turned_down = (sum(each[status] for each in later) for status in (403, 429))
        self.assertTrue(100 <= denied + turned_down <= 600, later)
        self.house.stop()
        told, events = self.recorded()
        self.assertEqual(told, burst + denied + turned_down)
        self.assertLess(events, SINGLE + 30)

    def test_others_are_not_held_back(self) -> None:
        self.answers(self.house.client(), 5000)
        before = len(self.house.events.kept)
        client = self.house.client(dataclasses.replace(BRUCE, user="carol", groups=("readers",)))
        self.assertEqual(self.answers(client, 100), {403: 100, 429: 0})
        self.assertEqual(
            [event["actor"]["user"] for event in self.house.events.kept[before:]], ["carol"] * 100
        )

    def test_subject_is_forgiven(self) -> None:
        client = self.house.client()
        self.answers(client, 5000)
        client.lose()
        self.assertEqual(self.house.proxy.budgets.remembered, 1)
        self.house.advance(200)
        before = len(self.house.events.kept)
        self.assertEqual(self.answers(self.house.client(), 500), {403: 500, 429: 0})
        self.assertEqual(len(self.house.events.kept), before + SINGLE)

    def test_unreadable_requests_count_too(self) -> None:
        for _ in range(ANSWERED + 100):
            self.house.client().deliver(b"nonsense\r\n\r\n")
        self.assertEqual(self.answers(self.house.client(), 1), {403: 0, 429: 0})
        self.house.stop()
        told, events = self.recorded()
        self.assertEqual(told, ANSWERED)
        self.assertLess(events, SINGLE + 30)


class RequestRateTests(HouseCase):
    """Requests that would be served, faster than one user may make them."""

    def test_flood_of_one_costs_the_engine_no_more_than_the_limit(self) -> None:
        client = self.house.client()
        limits = self.house.proxy.limits
        allowed = refused = 0
        while refused < 50:
            client.deliver(LIST)
            if self.house.engine.take():
                self.house.engine.deliver(EMPTY)
            answer = client.take()
            allowed, refused = allowed + (status_of(answer) == 200), refused + (status_of(answer) == 429)
        self.assertEqual(allowed, limits.request_burst)
        other = self.house.client(dataclasses.replace(BRUCE, user="carol", groups=("readers",)))
        other.deliver(LIST)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(other.take()), 200)

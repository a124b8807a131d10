"""One user's flood: answered with 429 beyond its share, and recorded in a bounded number of events."""

from __future__ import annotations

import json

from defender.contract.facts import Subject
from defender.proxy.budget import Share
from tests.defender.proxy.house import (
    CREATE,
    EMPTY,
    EXEC,
    LIST,
    SWITCH,
    House,
    HouseCase,
    message_of,
    status_of,
)

EVENTS = b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n"
DENIED = b"DELETE /v1.41/containers/abc HTTP/1.1\r\nHost: x\r\n\r\n"
ANNE = Subject(user="anne", groups=("readers",))


class ShareTests(HouseCase):
    def house_with(self, **limits: int) -> House:
        text = "".join(f"{key} = {value}\n" for key, value in limits.items())
        self.house = House("/state", settings=f"[limits]\n{text}")
        self.addCleanup(self.house.stop)
        return self.house

    def test_requests_beyond_the_rate(self) -> None:
        house = self.house_with(requests_per_second=10, request_burst=3)
        client = house.client()
        for _ in range(3):
            client.deliver(LIST)
            house.engine.deliver(EMPTY)
            self.assertEqual(status_of(client.take()), 200)
        client.deliver(LIST)
        answer = client.take()
        self.assertEqual(status_of(answer), 429)
        self.assertIn(b"\r\nRetry-After: 1\r\n", answer)
        self.assertIn("more than 10 a second", message_of(answer))
        self.assertEqual(house.engine.take().count(b"GET"), 3)
        event = house.events.last()
        self.assertEqual((event["result"]["status"], event["decision"]["effect"]), (429, "deny"))
        self.assertEqual(event["decision"]["rule"], "limits.requests_per_second")
        other = house.client(ANNE)
        other.deliver(LIST)
        house.engine.deliver(EMPTY)
        self.assertEqual(status_of(other.take()), 200)
        house.advance(1)
        client.deliver(LIST)
        house.engine.deliver(EMPTY)
        self.assertEqual(status_of(client.take()), 200)

    def test_calls_with_the_engine(self) -> None:
        house = self.house_with(engine_connections_per_user=2)
        clients = [house.client() for _ in range(3)]
        for client in clients:
            client.deliver(EVENTS)
        answer = clients[2].take()
        self.assertEqual(status_of(answer), 429)
        self.assertIn("2 are with the Engine", message_of(answer))
        other = house.client(ANNE)
        other.deliver(LIST)
        house.engine.deliver(EMPTY)
        self.assertEqual(status_of(other.take()), 200)
        clients[0].lose()
        clients[2].deliver(EVENTS)
        self.assertEqual(clients[2].take(), b"")

    def test_bodies_that_are_held_for_the_record(self) -> None:
        house = self.house_with(engine_connections_per_user=1)
        clients = [house.client() for _ in range(3)]
        for client in clients:
            client.deliver(CREATE + b"Content-Length: 100000\r\n\r\n{")
        self.assertEqual([client.take()[9:12] for client in clients], [b"", b"429", b"429"])
        clients[0].deliver(b" " * 99998 + b"}")
        self.assertIn(b"/containers/create", house.engine.take())
        house.engine.deliver(EMPTY)
        self.assertEqual(status_of(clients[0].take()), 200)
        again = house.client()
        again.deliver(CREATE + b"Content-Length: 100000\r\n\r\n{")
        again.lose()
        last = house.client()
        last.deliver(CREATE + b"Content-Length: 2\r\n\r\n{}")
        self.assertIn(b"/containers/create", house.engine.take())

    def test_all_events_of_a_stream_are_counted_as_large_as_they_are(self) -> None:
        spent: list[float] = []
        self.patch(Share, "spend", lambda share, size, now: spent.append(size))
        client = self.house.client()
        body = json.dumps({"Cmd": ["longword"] * 100}).encode()
        head = b"POST /v1.41/containers/abc/exec HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.deliver(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.house.engine.deliver(b'HTTP/1.1 201 Created\r\nContent-Length: 12\r\n\r\n{"Id":"abc"}')
        client.deliver(EXEC)
        self.house.engine.deliver(SWITCH)
        client.lose()
        self.house.engine.lose()
        self.assertEqual(len(spent), len(self.house.events.kept))
        for size, event in zip(spent, self.house.events.kept, strict=True):
            text = {key: event[key] for key in ("actor", "req", "decision")}
            self.assertGreater(size, len(json.dumps(text, separators=(",", ":"))) * 0.8)

    def test_connections(self) -> None:
        house = self.house_with(connections_per_user=1)
        first, second = house.client(), house.client()
        second.deliver(LIST + LIST)
        answer = second.take()
        self.assertEqual(status_of(answer), 429)
        self.assertEqual(answer.count(b"HTTP/1.1 "), 1)
        self.assertIn(b"\r\nConnection: close\r\n", answer)
        self.assertTrue(second.closed)
        first.deliver(LIST)
        house.engine.deliver(EMPTY)
        self.assertEqual(status_of(first.take()), 200)

    def test_share_of_the_spool(self) -> None:
        house = self.house_with(spool_share=1)
        house.proxy.budgets.resize(house.proxy.limits, 100_000)
        client = house.client()
        statuses = []
        for _ in range(4):
            client.deliver(LIST)
            if len(house.engines) and house.engine.written:
                house.engine.take()
                house.engine.deliver(EMPTY)
            statuses.append(status_of(client.take()))
        self.assertEqual((statuses[0], statuses[-1]), (200, 429))

    def test_flood_of_denials_is_a_bounded_number_of_events_and_no_count_is_lost(self) -> None:
        house = self.house_with(requests_per_second=0)
        client = house.client(ANNE)
        for _ in range(500):
            client.deliver(DENIED)
            self.assertEqual(status_of(client.take()), 403)
        single = len(house.events.kept)
        self.assertLess(single, 150)
        house.advance(12)
        aggregates = house.events.kept[single:]
        self.assertLess(len(aggregates), 3)
        self.assertEqual(single + sum(event["result"]["count"] for event in aggregates), 500)
        self.assertEqual(aggregates[0]["actor"]["user"], "anne")
        self.assertEqual(aggregates[0]["req"]["action"], "container_delete")
        self.assertEqual(aggregates[0]["result"]["status"], 403)

    def test_what_was_counted_is_recorded_at_the_end(self) -> None:
        house = self.house_with(requests_per_second=0)
        client = house.client(ANNE)
        for _ in range(300):
            client.deliver(DENIED)
            client.take()
        house.proxy.stopService()
        total = sum(event["result"].get("count", 1) for event in house.events.kept)
        self.assertEqual(total, 300)

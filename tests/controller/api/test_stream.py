"""Streams deliver every event once, go on where they stopped, and hold no more than one batch."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.api.ports import UnavailableError
from controller.api.stream import BATCH, StreamLimits
from tests.controller.api.doubles import EVERYTHING, example
from tests.controller.api.harness import Connection, Harness, read_reply, request_bytes

STREAM = "/api/v1/audit/stream"
LIMITS = StreamLimits(most=3, each=2)


def event(seq: int, action: str = "image_create") -> dict[str, Any]:
    """An event with a number."""
    made: dict[str, Any] = example("StoredEvent")["event"]
    made["seq"] = seq
    made["req"]["action"] = action
    return made


def chunks(data: bytes) -> bytes:
    """What a stream has carried so far."""
    body = data.partition(b"\r\n\r\n")[2]
    found = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        found.append(rest[:count])
        body = rest[count + 2 :]
    return b"".join(found)


class StreamTestCase(SynchronousTestCase):
    """Has a harness, and a stream of it."""

    def setUp(self) -> None:
        self.harness = Harness(LIMITS)
        self.audit = self.harness.world.audit

    def open(self, query: str = "", *, token: str = EVERYTHING, **headers: str) -> Connection:
        connection = self.harness.connect()
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.send(request_bytes("GET", STREAM + query, headers=fields, token=token))
        self.addCleanup(connection.close)
        return connection

    def lines(self, connection: Connection) -> list[Any]:
        return [json.loads(line) for line in chunks(connection.received).splitlines()]

    def seqs(self, connection: Connection) -> list[int]:
        return [line["event"]["seq"] for line in self.lines(connection) if "event" in line]


class LiveTests(StreamTestCase):
    """The live stream."""

    def test_it_begins_with_what_comes_next(self) -> None:
        self.audit.add(event(1))
        stream = self.open()
        self.audit.add(event(2), event(3))
        self.audit.add(event(4))
        self.assertEqual(self.seqs(stream), [2, 3, 4])
        # Its first line says where it begins, so that nothing is lost with a link that breaks at once.
        self.assertEqual([line["position"] for line in self.lines(stream)], ["1", "2", "3", "4"])

    def test_it_goes_on_from_a_position(self) -> None:
        self.audit.add(*(event(seq) for seq in range(1, 6)))
        self.assertEqual(self.seqs(self.open("?after=3")), [4, 5])
        self.assertEqual(self.seqs(self.open("?after=1", Last_Event_ID="4")), [5])

    def test_it_can_begin_at_the_beginning(self) -> None:
        self.audit.add(*(event(seq) for seq in range(1, 2 * BATCH + 6)))
        stream = self.open("?beginning=true")
        self.assertEqual(self.seqs(stream), list(range(1, 2 * BATCH + 6)))

    def test_what_is_not_wanted_moves_the_position(self) -> None:
        stream = self.open("?action=image_list")
        self.audit.add(event(1), event(2, "image_list"), event(3))
        self.assertEqual(self.seqs(stream), [2])
        self.harness.clock.advance(LIMITS.heartbeat)
        self.assertEqual(self.lines(stream)[-1], {"position": "3"})

    def test_what_is_no_longer_kept_is_a_gap(self) -> None:
        self.audit.add(*(event(seq) for seq in range(1, 6)))
        self.audit.first = 3
        found = self.lines(self.open("?after=1"))
        self.assertEqual(found[0]["gap"], "2 events are no longer kept")
        self.assertEqual([line["event"]["seq"] for line in found[1:]], [4, 5])

    def test_server_sent_events(self) -> None:
        self.audit.add(*(event(seq) for seq in range(1, 4)))
        self.audit.first = 2
        stream = self.open(Accept="text/event-stream", Last_Event_ID="1")
        head = stream.received.partition(b"\r\n\r\n")[0].lower()
        self.assertIn(b"content-type: text/event-stream; charset=utf-8", head)
        self.harness.clock.advance(LIMITS.heartbeat)
        blocks = chunks(stream.received).decode().split("\n\n")
        self.assertEqual(blocks[0], "retry: 2000")
        self.assertEqual(blocks[1], 'id: 3\nevent: gap\ndata: {"gap":"1 events are no longer kept"}')
        kind, name, data = blocks[2].split("\n")
        self.assertEqual((kind, name), ("id: 3", "event: audit"))
        self.assertEqual(json.loads(data.removeprefix("data: "))["seq"], 3)
        self.assertEqual(blocks[3], "id: 3\n: alive")

    def test_positions_that_were_made_up_are_refused(self) -> None:
        for headers, query in (
            ({"Last_Event_ID": "a b"}, ""),
            ({"Last_Event_ID": "x" * 200}, ""),
            ({}, "?after=zz"),
        ):
            reply = read_reply(self.open(query, **headers).received)
            self.assertEqual((reply.status, reply.json["code"]), (400, "invalid"), query)

    def test_a_silent_stream_shows_that_it_lives(self) -> None:
        stream = self.open()
        for _ in range(3):
            self.harness.clock.advance(LIMITS.heartbeat)
        self.assertEqual(self.lines(stream), [{"position": "0"}] * 4)

    def test_a_client_that_goes_leaves_nothing(self) -> None:
        stream = self.open()
        self.assertEqual(self.audit.waiting, 1)
        stream.close()
        self.assertEqual(self.audit.waiting, 0)
        self.assertEqual(self.harness.clock.getDelayedCalls(), [])
        self.audit.add(event(1))
        self.assertIn(b"dfleet_api_streams 0\n", self.harness.request("GET", "/metrics").body)

    def test_a_sign_in_that_ends_ends_the_stream(self) -> None:
        stream = self.open()
        self.harness.world.accounts.ended.add(EVERYTHING)
        self.harness.clock.advance(LIMITS.heartbeat)
        self.harness.clock.advance(LIMITS.heartbeat)
        self.assertIn("the sign-in has ended", self.lines(stream)[-1]["end"])
        self.assertTrue(stream.received.endswith(b"0\r\n\r\n"))

    def test_a_busy_stream_is_looked_after_too(self) -> None:
        stream = self.open()
        self.harness.world.accounts.ended.add(EVERYTHING)
        for seq in range(1, 32):
            self.audit.add(event(seq))
            self.harness.clock.advance(1)
        self.assertIn("end", self.lines(stream)[-1])

    def test_trouble_of_the_store_is_told_and_resumable(self) -> None:
        stream = self.open()
        self.audit.add(event(1))
        self.audit.trouble = UnavailableError("the store is away")
        self.audit.add(event(2))
        found = self.lines(stream)
        self.assertEqual(found[-1], {"end": "the store is away"})
        self.audit.trouble = None
        self.assertEqual(self.seqs(self.open(f"?after={found[-2]['position']}")), [2])

    def test_places_are_bounded_for_each_and_for_all(self) -> None:
        self.open()
        self.open()
        reply = read_reply(self.open().received)
        self.assertEqual((reply.status, reply.json["code"]), (429, "too-many-streams"))
        self.assertIn("retry-after", reply.headers)

    def test_a_place_is_free_again(self) -> None:
        for _ in range(5):
            self.open().close()
        self.open()
        self.assertIn(b"dfleet_api_streams 1\n", self.harness.request("GET", "/metrics").body)

    def test_a_controller_that_stops_ends_its_streams(self) -> None:
        waiting, slow = self.open(), self.open()
        slow.pause()
        self.audit.add(event(1))
        stopped = self.harness.api.stop()
        for stream in (waiting, slow):
            self.assertEqual(self.lines(stream)[-1], {"end": "the controller is stopping"})
        self.successResultOf(stopped)
        self.assertEqual(self.harness.request("GET", STREAM).json["code"], "stopping")

    def test_head_opens_none(self) -> None:
        reply = self.harness.request("HEAD", STREAM)
        self.assertEqual((reply.status, self.audit.asked), (200, 0))


class PaceTests(StreamTestCase):
    """Clients that are slower than the fleet."""

    def test_a_slow_client_costs_one_batch_and_misses_nothing(self) -> None:
        stream = self.open()
        stream.pause()
        self.audit.add(*(event(seq) for seq in range(1, 1001)))
        self.assertEqual(self.seqs(stream), list(range(1, BATCH + 1)))
        self.audit.add(*(event(seq) for seq in range(1001, 1101)))
        self.assertEqual(self.audit.asked, 2)
        stream.resume()
        self.assertEqual(self.seqs(stream), list(range(1, 1101)))

    def test_a_client_that_reads_nothing_is_cut_off(self) -> None:
        stream = self.open()
        stream.pause()
        self.audit.add(event(1))
        self.harness.clock.advance(LIMITS.stall - 1)
        self.assertFalse(stream.transport.disconnecting)
        self.harness.clock.advance(1)
        self.assertTrue(stream.transport.aborted)
        self.assertFalse(stream.received.endswith(b"0\r\n\r\n"))

    @given(st.lists(st.sampled_from(["add", "pause", "resume", "cut", "tick"]), max_size=30))
    @settings(max_examples=100, deadline=None)
    def test_whatever_happens_each_event_comes_once_and_in_order(self, steps: list[str]) -> None:
        self.setUp()
        added, seen, position = 0, list[int](), "0"

        def take(stream: Connection) -> str:
            last = position
            for line in self.lines(stream):
                if "event" in line:
                    seen.append(line["event"]["seq"])
                last = line.get("position", last)
            stream.close()
            return last

        stream = self.open("?after=0")
        for step in steps:
            if step == "add":
                added += 1
                self.audit.add(event(added))
            elif step == "cut":
                position = take(stream)
                stream = self.open(f"?after={position}")
            elif step == "tick":
                self.harness.clock.advance(7)
            elif step == "pause":
                stream.pause()
            else:
                stream.resume()
        position = take(stream)
        take(self.open(f"?after={position}"))
        self.assertEqual(seen, list(range(1, added + 1)))


class ExportTests(StreamTestCase):
    """Exports."""

    def export(self, query: str) -> Any:
        return self.harness.request("GET", f"/api/v1/audit/export{query}")

    def test_json_lines(self) -> None:
        self.audit.add(*(event(seq) for seq in range(1, BATCH + 50)))
        reply = self.export("?format=jsonl")
        self.assertEqual(reply.headers["content-type"], "application/x-ndjson")
        found = [json.loads(line)["seq"] for line in reply.body.splitlines()]
        self.assertEqual(found, list(range(1, BATCH + 50)))

    def test_csv(self) -> None:
        self.audit.add(event(1, "=cmd"), event(2))
        reply = self.export("?format=csv")
        self.assertTrue(reply.headers["content-type"].startswith("text/csv"))
        rows = reply.body.decode().split("\r\n")
        self.assertTrue(rows[0].startswith("time,"))
        self.assertEqual(len(rows), 4)
        self.assertIn("'=cmd", rows[1])

    def test_nothing_is_an_empty_file(self) -> None:
        self.assertEqual(self.export("").body, b"")

    def test_filters_and_gaps(self) -> None:
        self.audit.add(event(1), event(2), event(3, "image_list"), event(4))
        self.audit.first = 1
        reply = self.export("?action=image_list")
        found = [json.loads(line) for line in reply.body.splitlines()]
        self.assertEqual(found[0], {"gap": "1 events are no longer kept"})
        self.assertEqual([line["seq"] for line in found[1:]], [3])

    def test_an_export_that_fails_has_no_end(self) -> None:
        self.audit.add(*(event(seq) for seq in range(1, BATCH + 50)))
        connection = self.harness.connect()
        connection.pause()
        connection.send(request_bytes("GET", "/api/v1/audit/export"))
        self.audit.trouble = UnavailableError("the store is away")
        connection.resume()
        self.assertTrue(connection.transport.aborted)
        self.assertFalse(connection.received.endswith(b"0\r\n\r\n"))
        connection.close()


class SearchTests(StreamTestCase):
    """Conditions of a search."""

    def test_every_field_can_be_asked_for(self) -> None:
        query = (
            "defender=web1&defender=c1f2&field=req.query.fromImage=a=b&user=b*&group=g&action=image_*&effect=deny&rule=r&kind=engine&phase=result&via=tls"
            "&source=10.*&target=nginx&serial=7f&corr=0193&status=403&since=2026-11-21T00:00:00Z"
            "&until=2026-11-22T00:00:00.000001%2B01:00&order=oldest"
        )
        reply = self.harness.request("GET", f"/api/v1/audit/events?{query}")
        self.assertEqual(reply.status, 200)
        wish = self.audit.wishes[0]
        self.assertEqual(wish.defenders, ("web1", "c1f2"))
        self.assertEqual((wish.users, wish.actions, wish.effects), (("b*",), ("image_*",), ("deny",)))
        self.assertEqual((wish.since, wish.until), (1795219200_000_000, 1795302000_000_001))
        self.assertEqual(
            dict(wish.fields),
            {
                "actor.groups": "g",
                "actor.via": "tls",
                "actor.src": "10.*",
                "actor.serial": "7f",
                "req.target": "nginx",
                "decision.rule": "r",
                "kind": "engine",
                "phase": "result",
                "corr": "0193",
                "result.status": "403",
                "req.query.fromImage": "a=b",
            },
        )

    def test_fields_are_paths_and_globs(self) -> None:
        for query in ("field=nothing", "field=a%20b=c", "field==c"):
            reply = self.harness.request("GET", f"/api/v1/audit/events?{query}")
            self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (400, "/field"), query)

    def test_times_that_leave_nothing_between_them(self) -> None:
        query = "since=2026-11-22T00:00:00Z&until=2026-11-21T00:00:00Z"
        reply = self.harness.request("GET", f"/api/v1/audit/events?{query}")
        self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (400, "/until"))

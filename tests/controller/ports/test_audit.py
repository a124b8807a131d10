"""The events over the API, on an event store."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks

from controller.api.ports import AuditWish, ConflictError, InvalidError
from controller.ports.audit import Audit
from controller.sinks.delivery import Standing
from controller.sinks.overview import SinkState
from controller.store import defenders
from tests.controller.ports.case import PortCase, items, run
from tests.controller.store.trails import DAY, NOON, Steps, Trail

PATH = "/api/v1/audit"
WEB1 = "c1f2a6de-9f0b-4ae7-8a54-1d8a3a6d0b11"


class AuditCase(PortCase):
    def setUp(self) -> Any:
        self.sinks: list[SinkState] = []
        done = super().setUp()
        self.audit = Audit(self.ledger, self.events_store, lambda: self.sinks)
        self.trail = Trail(WEB1)
        return done

    def changes(self) -> dict[str, Any]:
        return {**super().changes(), "audit": self.audit}

    @inlineCallbacks
    def store(self, count: int, **fields: Any) -> Steps[None]:
        first = self.trail.seq + 1
        self.trail.many(count, **fields)
        yield self.events_store.ingest(self.trail.batch(first, self.trail.seq))


class Searches(AuditCase):
    @inlineCallbacks
    def test_pages_and_conditions(self) -> Steps[None]:
        session = yield self.admin()
        yield self.store(5)
        yield self.store(2, user="alice", effect="allow", action="container_start")
        reply = yield self.ask("GET", f"{PATH}/events?defender={WEB1}&limit=3", token=session)
        self.assertEqual((reply.status, [each["event"]["seq"] for each in items(reply)]), (200, [7, 6, 5]))
        cursor = reply.json["next"]
        reply = yield self.ask("GET", f"{PATH}/events?defender={WEB1}&limit=9&cursor={cursor}", token=session)
        self.assertEqual([each["event"]["seq"] for each in items(reply)], [4, 3, 2, 1])
        self.assertIsNone(reply.json["next"])
        reply = yield self.ask("GET", f"{PATH}/events?user=ALI*&effect=allow&order=oldest", token=session)
        self.assertEqual([each["event"]["seq"] for each in items(reply)], [6, 7])
        reply = yield self.ask("GET", f"{PATH}/events?field=req.query.fromImage%3D*:5", token=session)
        self.assertEqual([each["event"]["seq"] for each in items(reply)], [5])
        (found,) = items(reply)
        one = yield self.ask("GET", f"{PATH}/events/{found['event']['id']}", token=session)
        self.assertEqual((one.status, one.json), (200, found))
        for path in ("events/nothing", "events/00000000-0000-7000-8000-000000000000"):
            gone = yield self.ask("GET", f"{PATH}/{path}", token=session)
            self.assertEqual(gone.status, 404)
        made_up = yield self.ask("GET", f"{PATH}/events?cursor=abc", token=session)
        self.assertEqual((made_up.status, made_up.json["errors"][0]["pointer"]), (400, "/cursor"))

    @inlineCallbacks
    def test_what_people_did_is_among_them(self) -> Steps[None]:
        session = yield self.admin()
        yield self.mover.move()
        reply = yield self.ask("GET", f"{PATH}/events?kind=admin&action=session_begin", token=session)
        (found,) = items(reply)
        self.assertEqual((found["defender"], found["event"]["actor"]["user"]), ("controller", "admin"))

    @inlineCallbacks
    def test_export_is_all_of_it(self) -> Steps[None]:
        session = yield self.admin()
        yield self.store(5)
        reply = yield self.ask("GET", f"{PATH}/export?defender={WEB1}", token=session)
        self.assertEqual((reply.status, len(reply.body.splitlines())), (200, 5), reply.body)


class Following(AuditCase):
    @inlineCallbacks
    def test_from_a_position_on(self) -> Steps[None]:
        yield self.store(5)
        batch = yield run(self.audit.after("", 2, AuditWish()))
        self.assertEqual([event["seq"] for _, event in batch.items], [1, 2])
        batch = yield run(self.audit.after(batch.position, 10, AuditWish(), stop="4"))
        self.assertEqual(([event["seq"] for _, event in batch.items], batch.lost), ([3, 4], ""))
        batch = yield run(self.audit.after("4", 10, AuditWish(), stop="4"))
        self.assertEqual((batch.items, batch.position), ((), "4"))
        batch = yield run(self.audit.after("0", 10, AuditWish(users=("nobody",))))
        self.assertEqual((batch.items, batch.position), ([], "5"))
        end = yield run(self.audit.end())
        self.assertEqual(end, "5")

    @inlineCallbacks
    def test_what_was_made_up(self) -> Steps[None]:
        yield self.store(1)
        for text in ("x", "-1", "01", "2", "9" * 30, "１"):
            yield self.assertFailure(run(self.audit.after(text, 10, AuditWish())), InvalidError)

    @inlineCallbacks
    def test_waits_for_the_next(self) -> Steps[None]:
        yield self.store(1)
        yield run(self.audit.wait("0"))
        waiting = run(self.audit.wait("1"))
        given_up = run(self.audit.wait("1"))
        self.assertNoResult(waiting)
        given_up.cancel()
        yield self.assertFailure(given_up, CancelledError)
        yield self.store(1)
        yield waiting

    @inlineCallbacks
    def test_what_retention_took_is_told(self) -> Steps[None]:
        yield self.store(3)
        self.now += 3 * DAY
        yield self.store(1)
        yield self.events_store.retain(1)
        batch = yield run(self.audit.after("1", 10, AuditWish()))
        self.assertEqual([event["seq"] for _, event in batch.items], [4])
        self.assertEqual(batch.lost, "2 events behind position 1 are no longer kept")
        batch = yield run(self.audit.after("", 10, AuditWish()))
        self.assertEqual(batch.lost, "")


class Chains(AuditCase):
    @inlineCallbacks
    def test_of_each_epoch(self) -> Steps[None]:
        session = yield self.admin()
        yield self.mover.move()
        yield self.database.write(defenders.add, WEB1, "web1", enrolled=NOON, token="t")
        yield self.store(3)
        reply = yield self.ask("GET", f"{PATH}/chains", token=session)
        first, second = items(reply)
        self.assertEqual((first["defender"], first["seq"], first["gaps"]), (WEB1, 3, 0))
        self.assertEqual((first["name"], first["chain"]), ("web1", self.trail.chain.hex()))
        self.assertEqual((second["defender"], second["name"]), ("controller", "controller"))

    @inlineCallbacks
    def test_sinks_as_they_stand(self) -> Steps[None]:
        session = yield self.admin()
        self.sinks = [SinkState("siem", "syslog", Standing(None, 0, 0, 0, 0.0, "refused"), 7)]
        (shown,) = items((yield self.ask("GET", f"{PATH}/sinks", token=session)))
        self.assertEqual((shown["state"], shown["lag_events"]), ("failing", 7))


class Verifications(AuditCase):
    @inlineCallbacks
    def test_what_is_stored_is_as_it_was(self) -> Steps[None]:
        session = yield self.admin()
        yield self.store(5)
        reply = yield self.ask("GET", f"{PATH}/verification", token=session)
        lines = [json.loads(line) for line in reply.body.splitlines()]
        self.assertEqual((reply.status, lines[-1]["day"], lines[-1]["done"]), (200, "2026-11-22", True))
        self.assertGreaterEqual(lines[-1]["events"], 5)
        self.assertEqual([line["problems"] for line in lines if line["problems"]], [])
        none = yield self.ask("GET", f"{PATH}/verification?day=1999-12-31", token=session)
        self.assertEqual((none.status, none.json["detail"]), (404, "no events of 1999-12-31 are kept"))

    @inlineCallbacks
    def test_one_at_a_time_and_an_end_lets_the_next_one_begin(self) -> Steps[None]:
        yield self.store(5)
        first = self.audit.verify("")
        yield Deferred.fromCoroutine(_next(first))
        with self.assertRaises(ConflictError):
            yield Deferred.fromCoroutine(_next(self.audit.verify("")))
        yield Deferred.fromCoroutine(_closed(first))
        yield Deferred.fromCoroutine(_next(self.audit.verify("")))


async def _next(lines: Any) -> Any:
    return await anext(lines)


async def _closed(lines: Any) -> None:
    await lines.aclose()

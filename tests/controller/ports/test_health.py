"""How the controller is, over the API."""

from __future__ import annotations

from typing import Any
from unittest import mock

from twisted.internet.defer import inlineCallbacks

from controller.api.ports import Check
from controller.ports.health import Health, Names
from controller.ports.links import Links
from controller.sinks.delivery import Standing
from controller.sinks.overview import SinkState
from controller.store import defenders
from controller.store.database import Database
from tests.controller.ports.case import PortCase
from tests.controller.store.trails import NOON, Steps


class FakeDesk:
    """Says who is there."""

    def __init__(self) -> None:
        self.heard_at: dict[str, float] = {}
        self.there: set[str] = set()
        self.cuts: list[str] = []

    def connected(self) -> set[str]:
        """Those of the test."""
        return self.there

    def last_heard(self, defender: str) -> float | None:
        """As the test says."""
        return self.heard_at.get(defender)

    def cut(self, defender: str, why: str) -> bool:
        """Note it."""
        self.cuts.append(defender)
        return defender in self.there


class HealthCase(PortCase):
    def setUp(self) -> Any:
        done = super().setUp()
        self.desk = FakeDesk()
        self.checks: list[Any] = []
        self.health = Health(
            self.ledger,
            self.events_store,
            Links(self.desk),
            Names("controller.example.com", "0.4.0", "defender.fleet", "ab" * 32),
            checks=self.checks,
            sinks=lambda: [SinkState("siem", "hec", Standing(None, 0, 0, 0, 0.0, ""), 3)],
            turned_away=lambda: {"pending_per_address": 7},
        )
        return done

    def changes(self) -> dict[str, Any]:
        return {**super().changes(), "health": self.health}

    @inlineCallbacks
    def join(self, *names: str) -> Steps[None]:
        for name in names:
            yield self.database.write(defenders.add, name, name, enrolled=NOON, token="t")


class Ready(HealthCase):
    @inlineCallbacks
    def test_when_everything_holds(self) -> Steps[None]:
        reply = yield self.ask("GET", "/readyz")
        self.assertEqual((reply.status, reply.json["ready"]), (200, True))
        alive = yield self.ask("GET", "/livez")
        self.assertEqual(alive.status, 200)

    @inlineCallbacks
    def test_says_what_does_not_hold(self) -> Steps[None]:
        self.checks.append(lambda: Check("channel", False, "port 8084 is taken"))
        with mock.patch.object(Database, "problem", "the disk is full"):
            reply = yield self.ask("GET", "/readyz")
        self.assertEqual(reply.status, 503)
        self.assertEqual(
            {each["name"]: (each["ok"], each["detail"]) for each in reply.json["checks"]},
            {
                "store": (False, "the disk is full"),
                "events": (True, ""),
                "channel": (False, "port 8084 is taken"),
            },
        )


class Numbers(HealthCase):
    @inlineCallbacks
    def test_status_and_metrics(self) -> Steps[None]:
        session = yield self.admin()
        yield self.mover.move()
        yield self.join("a", "b", "c", "d")
        self.desk.there = {"a", "b"}
        self.desk.heard_at = {"a": self.now, "b": self.now - 60, "c": self.now - 400}
        reply = yield self.ask("GET", "/api/v1/status", token=session)
        self.assertEqual(reply.status, 200, reply.body)
        self.assertEqual(reply.json["defenders"], {"online": 1, "stale": 1, "offline": 2})
        self.assertEqual(reply.json["events"], 3)
        self.assertEqual(reply.json["root"], "ab" * 32)
        reply = yield self.ask("GET", "/metrics", token=session)
        text = reply.body.decode()
        for line in (
            'dfleet_defenders{state="offline"} 2',
            "dfleet_events_stored_total 3",
            'dfleet_sink_lag_events{sink="siem"} 3',
            'dfleet_ready{check="store"} 1',
            'dfleet_channel_turned_away_total{reason="connections"} 0',
            'dfleet_channel_turned_away_total{reason="pending_per_address"} 7',
        ):
            self.assertIn(line + "\n", text)

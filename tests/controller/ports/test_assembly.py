"""All ports together: every route that only looks is answered as it declares, by a controller of a fleet."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from twisted.internet.defer import inlineCallbacks

from controller.api.catalog import ROUTES
from controller.api.ports import Ports
from controller.pki.authority import Authority
from controller.pki.custody import MemoryCustody
from controller.pki.registry import Office
from controller.ports.assembly import Parts, make_ports
from tests.controller.ports.fleet_case import FleetCase
from tests.controller.store.trails import NOON, Steps


class Everything(FleetCase):
    def ports(self) -> Ports:
        authority = Authority.create("defender.fleet", MemoryCustody(), datetime.fromtimestamp(NOON, UTC))
        return make_ports(
            Parts(
                ledger=self.ledger,
                events=self.events_store,
                passwords=self.passwords,
                publisher=self.publisher,
                orders=self.orders,
                desk=self.desk,
                office=Office(cast("Any", authority), lambda connection, notice: None),
                root=authority.root,
                trust_domain="defender.fleet",
                controller="controller.example.com",
                program="0.4.0",
                channel_port=lambda: 18084,
            )
        )

    @inlineCallbacks
    def test_every_list_is_what_it_declares(self) -> Steps[None]:
        yield self.enroll("web1", site="vienna")
        yield self.mover.move()
        asked = []
        for route in ROUTES:
            if route.method != "GET" or "{" in route.path or route.streams:
                continue
            reply = yield self.ask("GET", route.path, token=self.session)
            self.assertEqual(reply.status, 200, (route.path, reply.body))
            asked.append(route.operation)
        self.assertGreater(len(asked), 12)

    @inlineCallbacks
    def test_a_join_token_comes_with_the_place_to_use_it_at(self) -> Steps[None]:
        made = yield self.ask("POST", "/api/v1/join-tokens", {}, token=self.session)
        self.assertEqual(made.json["channel"], "controller.example.com:18084")

    @inlineCallbacks
    def test_what_is_not_there_is_told(self) -> Steps[None]:
        for path in (
            "defenders/nobody",
            "policies/nothing",
            "policies/nothing/rollout",
            "policies/nothing/versions",
            "policies/nothing/versions/3",
            "policies/nothing/diff",
            "policies/nothing/preview",
            "listener-changes/never",
            "audit/events/none",
            "accounts/nobody",
        ):
            reply = yield self.ask("GET", f"/api/v1/{path}", token=self.session)
            self.assertEqual(reply.status, 404, (path, reply.body))

    @inlineCallbacks
    def test_what_defenders_refuse_is_in_the_metrics(self) -> Steps[None]:
        host = yield self.enroll("web1")
        host.refuses["locks"] = ("not-activated", "the disk is full")
        made = yield self.ask("POST", "/api/v1/locks", {"kind": "user", "value": "eve"}, token=self.session)
        self.assertEqual(made.status, 201, made.body)
        yield self.calm()
        shown = yield self.ask("GET", "/metrics", token=self.session)
        text = shown.body.decode()
        self.assertIn('dfleet_bundles_refused_total{stream="locks"} 1\n', text)
        self.assertIn('dfleet_bundles_refused_total{stream="policy"} 0\n', text)

    @inlineCallbacks
    def test_a_publisher_that_cannot_keep_is_not_ready(self) -> Steps[None]:
        ready = yield self.ask("GET", "/readyz")
        self.assertEqual(ready.status, 200, ready.body)
        self.publisher.problem = "what was decided cannot be kept: the disk is full"
        ready = yield self.ask("GET", "/readyz")
        self.assertEqual(ready.status, 503)
        self.publisher.problem = ""

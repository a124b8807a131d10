"""Hosts, their listeners and locks over the API."""

from __future__ import annotations

from twisted.internet.defer import inlineCallbacks

from controller.fleet import Target
from controller.pki.signing import BUNDLE
from controller.publisher_orders import Orders
from controller.selection import Selection
from controller.store import defenders, join_tokens
from controller.store.join_tokens import JoinTokenRow, JoinUseRow
from defender.contract.contents import LocksContent, ModeContent
from defender.contract.locks import Lock
from tests.controller.ports.case import items, run
from tests.controller.ports.fleet_case import FleetCase
from tests.controller.publisher_fleet import ident
from tests.controller.store.trails import NOON, Steps

PATH = "/api/v1/defenders"


class Hosts(FleetCase):
    @inlineCallbacks
    def test_shown_found_and_labeled(self) -> Steps[None]:
        yield self.enroll("web1", site="vienna")
        off = yield self.enroll("web2", site="graz")
        yield self.enroll("db1", site="vienna")
        self.desk.disconnect(off)
        self.now += 400
        for name in ("web1", "db1"):
            self.desk.heard_at[ident(name)] = self.now
        yield self.calm()
        for query, names in (
            ("", ["db1", "web1", "web2"]),
            ("?name=WEB*", ["web1", "web2"]),
            ("?label=site%3Dvienna", ["db1", "web1"]),
            ("?state=offline", ["web2"]),
        ):
            reply = yield self.ask("GET", PATH + query, token=self.session)
            self.assertEqual((reply.status, [each["name"] for each in items(reply)]), (200, names))
        page = yield self.ask("GET", f"{PATH}?limit=2", token=self.session)
        rest = yield self.ask("GET", f"{PATH}?limit=2&cursor={page.json['next']}", token=self.session)
        self.assertEqual([each["name"] for each in items(rest)], ["web2"])
        one = yield self.ask("GET", f"{PATH}/web1", token=self.session)
        self.assertEqual((one.json["id"], one.json["state"]), (ident("web1"), "online"))
        self.assertEqual(
            {name: each["state"] for name, each in one.json["streams"].items()},
            {"trust": "acked", "policy": "acked", "locks": "acked", "mode": "none"},
        )
        trust = one.json["streams"]["trust"]
        self.assertEqual(trust["desired"], trust["active"])
        reply = yield self.ask(
            "PATCH", f"{PATH}/web1", {"labels": {"site": None, "env": "prod"}}, token=self.session
        )
        self.assertEqual((reply.status, reply.json["labels"]), (200, {"env": "prod"}), reply.body)
        (event,) = yield self.told("defender_label")
        self.assertEqual(event["after"], {"labels": {"env": "prod"}})
        gone = yield self.ask("GET", f"{PATH}/web9", token=self.session)
        self.assertEqual((gone.status, gone.json["detail"]), (404, "there is no defender 'web9'"))

    @inlineCallbacks
    def test_what_is_signed_again_keeps_the_number_it_was_published_under(self) -> Steps[None]:
        yield self.enroll("web1")
        orders = Orders(self.publisher)
        text = "schema: 1\nrules:\n  - {name: ops, effect: allow}\n"
        yield run(orders.save_draft("prod", text, Target(Selection()), "ada"))
        yield run(orders.publish("prod", "ada"))
        yield self.calm()
        before = yield self.ask("GET", f"{PATH}/web1", token=self.session)
        yield run(orders.replace_key(BUNDLE))
        yield self.calm()
        after = yield self.ask("GET", f"{PATH}/web1", token=self.session)
        for reply in (before, after):
            policy = reply.json["streams"]["policy"]
            self.assertEqual((policy["desired"], policy["active"], policy["state"]), (2, 2, "acked"))

    @inlineCallbacks
    def test_removed(self) -> Steps[None]:
        web = yield self.enroll("web1")
        reply = yield self.ask("DELETE", f"{PATH}/web1", token=self.session)
        self.assertEqual(reply.status, 204)
        self.assertEqual(self.desk.cuts, [web.id])
        self.assertEqual(self.publisher.policies.fleet.defenders(), ())
        reply = yield self.ask("GET", PATH, token=self.session)
        self.assertEqual(items(reply), [])
        (event,) = yield self.told("defender_remove")
        self.assertEqual(event["before"]["name"], "web1")

    @inlineCallbacks
    def test_who_waits_is_let_in_once(self) -> Steps[None]:
        token = JoinTokenRow("k7c3q", b"d" * 32, NOON, NOON + 600, 1, "admin", {})
        yield self.database.write(join_tokens.add, token)
        use = JoinUseRow("k7c3q", b"k" * 32, "d1", "web2", "waiting", "10.1.2.4", NOON)
        yield self.database.write(join_tokens.keep_use, use)
        path = "/api/v1/enrollments"
        (row,) = items((yield self.ask("GET", path, token=self.session)))
        self.assertEqual((row["name"], row["key"], row["join_token"]), ("web2", "6b" * 32, "k7c3q"))
        for status in (204, 409):
            reply = yield self.ask("POST", f"{path}/{row['id']}", {"decision": "approve"}, token=self.session)
            self.assertEqual(reply.status, status, reply.body)
        kept = yield self.database.read(join_tokens.find_use, "k7c3q", b"k" * 32)
        self.assertEqual(kept.state, "approved")
        self.assertEqual(items((yield self.ask("GET", path, token=self.session))), [])
        (event,) = yield self.told("enrollment_*")
        self.assertEqual(event["req"]["action"], "enrollment_approve")
        nobody = yield self.ask("POST", f"{path}/x:zz", {"decision": "approve"}, token=self.session)
        self.assertEqual(nobody.status, 404)


class Listening(FleetCase):
    @inlineCallbacks
    def test_set_and_followed(self) -> Steps[None]:
        web = yield self.enroll("web1")
        off = yield self.enroll("web2")
        self.desk.disconnect(off)
        path = "/api/v1/listener-changes"
        wanted = {"select": {"names": ["web*"]}, "mode": "unix", "drain": 60}
        reply = yield self.ask("POST", path, wanted, token=self.session)
        self.assertEqual(reply.json["counts"]["total"], 2, reply.body)
        yield self.calm()
        after = yield self.ask("GET", f"{path}/{reply.json['id']}", token=self.session)
        self.assertEqual((after.json["counts"]["acked"], after.json["counts"]["offline"]), (1, 1))
        self.assertEqual((after.json["mode"], after.json["asked_by"]), ("unix", "admin"))
        content = web.content["mode"]
        assert isinstance(content, ModeContent)
        self.assertEqual(content.listener, "unix")
        status = {"listener": {"actual": "unix", "last_error": ""}}
        yield self.database.write(defenders.keep_status, web.id, status)
        shown = yield self.ask("GET", f"{PATH}/web1", token=self.session)
        self.assertEqual(
            shown.json["listener"], {"desired": "unix", "actual": "unix", "drain": 60, "detail": ""}
        )
        later = yield self.ask("PUT", f"{PATH}/web1/listener", {"mode": "tcp"}, token=self.session)
        self.assertEqual(later.json["counts"]["total"], 1, later.body)
        yield self.calm()
        first = yield self.ask("GET", f"{path}/{reply.json['id']}", token=self.session)
        steps = {each["name"]: each for each in first.json["defenders"]}
        self.assertEqual(steps["web1"]["detail"], "a later order took its place")
        events = yield self.told("listener_set")
        self.assertEqual(events[0]["after"], {"web1": "unix", "web2": "unix"})

    @inlineCallbacks
    def test_nobody_is_meant(self) -> Steps[None]:
        yield self.enroll("web1")
        path = "/api/v1/listener-changes"
        for select in ({"ids": ["web1", "web9"]}, {"names": ["db*"]}):
            reply = yield self.ask("POST", path, {"select": select, "mode": "tcp"}, token=self.session)
            self.assertEqual(reply.status, 404, reply.body)
        self.assertEqual((yield self.told("listener_set")), [])


class Locked(FleetCase):
    @inlineCallbacks
    def test_a_user(self) -> Steps[None]:
        web = yield self.enroll("web1")
        path = "/api/v1/locks"
        wanted = {"kind": "user", "value": "bruce@example.com", "reason": "laptop lost"}
        made = yield self.ask("POST", path, wanted, token=self.session)
        self.assertEqual(made.status, 201, made.body)
        again = yield self.ask("POST", path, wanted, token=self.session)
        self.assertEqual((again.status, again.json["id"]), (200, made.json["id"]))
        yield self.calm()
        content = web.content["locks"]
        assert isinstance(content, LocksContent)
        self.assertEqual([each.value for each in content.locks.locks], ["bruce@example.com"])
        (shown,) = items((yield self.ask("GET", path, token=self.session)))
        self.assertEqual((shown["by"], shown["counts"]["acked"]), ("admin", 1))
        gone = yield self.ask("DELETE", f"{path}/{shown['id']}", token=self.session)
        self.assertEqual(gone.status, 204)
        late = yield self.ask("DELETE", f"{path}/{shown['id']}", token=self.session)
        self.assertEqual(late.status, 404)
        yield self.calm()
        content = web.content["locks"]
        assert isinstance(content, LocksContent)
        self.assertFalse(content.locks)
        told = yield self.told("lock_*")
        self.assertEqual([each["req"]["action"] for each in told], ["lock_add", "lock_remove"])
        wrong = yield self.ask("POST", path, {"kind": "serial", "value": "xyz"}, token=self.session)
        self.assertEqual((wrong.status, wrong.json["errors"][0]["pointer"]), (422, "/value"))

    @inlineCallbacks
    def test_a_defender(self) -> Steps[None]:
        web = yield self.enroll("web1")
        path = "/api/v1/locks"
        wanted = {"kind": "defender", "value": "web1", "reason": "stolen"}
        made = yield self.ask("POST", path, wanted, token=self.session)
        self.assertEqual(
            (made.status, made.json["value"], made.json["name"]), (201, web.id, "web1"), made.body
        )
        yield self.calm()
        content = web.content["locks"]
        assert isinstance(content, LocksContent)
        self.assertEqual(content.locks.locks, {Lock("defender", web.id)})
        # It stays in touch, or nobody could unlock it.
        self.assertEqual(self.desk.cuts, [])
        row = yield self.database.read(defenders.find, web.id)
        self.assertEqual(row.lock, "")
        (shown,) = items((yield self.ask("GET", path, token=self.session)))
        self.assertEqual((shown["by"], shown["reason"], shown["name"]), ("admin", "stolen", "web1"))
        self.assertEqual((shown["counts"]["acked"], shown["counts"]["total"]), (1, 1))
        by_id = yield self.ask("POST", path, {**wanted, "value": web.id}, token=self.session)
        self.assertEqual((by_id.status, by_id.json["id"]), (200, shown["id"]))
        gone = yield self.ask("DELETE", f"{path}/{shown['id']}", token=self.session)
        self.assertEqual(gone.status, 204)
        yield self.calm()
        content = web.content["locks"]
        assert isinstance(content, LocksContent)
        self.assertFalse(content.locks)
        added, removed = yield self.told("lock_*")
        self.assertEqual((added["req"]["target"], removed["req"]["target"]), ("defender web1",) * 2)
        nobody = yield self.ask("POST", path, {**wanted, "value": "web9"}, token=self.session)
        self.assertEqual(nobody.status, 404)

    @inlineCallbacks
    def test_what_the_controller_has_against_a_defender(self) -> Steps[None]:
        web = yield self.enroll("web1")
        path = "/api/v1/locks"
        yield self.database.write(defenders.set_lock, web.id, "its certificate was copied")
        (shown,) = items((yield self.ask("GET", path, token=self.session)))
        self.assertEqual((shown["by"], shown["name"]), ("controller", "web1"))
        gone = yield self.ask("DELETE", f"{path}/{shown['id']}", token=self.session)
        self.assertEqual(gone.status, 204)
        row = yield self.database.read(defenders.find, web.id)
        self.assertEqual(row.lock, "")

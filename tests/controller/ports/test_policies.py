"""Policies over the API: from a draft to the hosts, and back."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import inlineCallbacks

from tests.controller.ports.case import items
from tests.controller.ports.fleet_case import FleetCase
from tests.controller.store.trails import Steps

PATH = "/api/v1/policies"
OLD = "schema: 1\nrules:\n  - name: old\n    users: [ci-*]\n    effect: allow\n"
NEW = "schema: 1\nrules:\n  - name: new\n    effect: allow\n"


class PolicyCase(FleetCase):
    @inlineCallbacks
    def draft(self, text: str, etag: str = "", **more: Any) -> Steps[Any]:
        headers = {"If-Match": f'"{etag}"'} if etag else {"If-None-Match": "*"}
        body = {"text": text, **more}
        path = f"{PATH}/builders/draft"
        return (yield self.ask("PUT", path, body, token=self.session, headers=headers))

    @inlineCallbacks
    def publish(self, etag: str, **body: Any) -> Steps[Any]:
        headers = {"If-Match": f'"{etag}"'}
        path = f"{PATH}/builders/publish"
        return (yield self.ask("POST", path, body, token=self.session, headers=headers))

    @inlineCallbacks
    def get(self, path: str) -> Steps[Any]:
        return (yield self.ask("GET", f"{PATH}/builders{path}", token=self.session))


class Lives(PolicyCase):
    @inlineCallbacks
    def test_from_draft_to_hosts_and_back(self) -> Steps[None]:
        web = yield self.enroll("web1", site="vienna")
        yield self.enroll("db1")
        made = yield self.draft(OLD, target={"labels": {"site": "vienna"}})
        self.assertEqual(made.status, 200, made.body)
        self.assertIsNone(made.json["published"])
        preview = yield self.get("/preview")
        self.assertEqual(preview.json, {"enter": ["web1"], "leave": [], "uncovered": []})
        stale = yield self.publish("0" * 32)
        self.assertEqual((stale.status, stale.headers["etag"]), (412, f'"{made.json["etag"]}"'))
        reply = yield self.publish(made.json["etag"], comment="first")
        self.assertEqual(reply.status, 202, reply.body)
        self.assertEqual((reply.json["state"], reply.json["started_by"]), ("running", "admin"))
        yield self.calm()
        rollout = yield self.get("/rollout")
        self.assertEqual((rollout.json["state"], rollout.json["counts"]["acked"]), ("done", 1))
        self.assertEqual([each["name"] for each in rollout.json["defenders"]], ["web1"])
        self.assertIn("name: old", web.content["policy"].text)
        first = rollout.json["version"]

        policy = (yield self.get("")).json
        self.assertEqual((policy["published"], policy["draft"]), (first, None))
        saved = yield self.draft(NEW, policy["etag"])
        self.assertEqual(saved.json["draft"]["target"], {"labels": {"site": "vienna"}})
        diff = yield self.get("/diff")
        self.assertEqual((diff.json["old"], diff.json["new"]), (str(first), "draft"))
        self.assertEqual({each["rule"] for each in diff.json["rules"]}, {"old", "new"})
        yield self.publish(saved.json["etag"], waves=False)
        yield self.calm()
        self.assertIn("name: new", web.content["policy"].text)

        etag = (yield self.get("")).json["etag"]
        back = yield self.ask(
            "POST",
            f"{PATH}/builders/rollback",
            {"version": first, "comment": "back"},
            token=self.session,
            headers={"If-Match": f'"{etag}"'},
        )
        self.assertEqual(back.status, 202, back.body)
        yield self.calm()
        self.assertIn("name: old", web.content["policy"].text)
        versions = items((yield self.get("/versions?limit=2")))
        self.assertEqual((versions[0]["rolled_back_to"], versions[0]["comment"]), (first, "back"))
        page = yield self.get("/versions?limit=2")
        rest = yield self.get(f"/versions?limit=2&cursor={page.json['next']}")
        self.assertEqual([each["number"] for each in items(rest)], [first])
        one = yield self.get(f"/versions/{first}")
        self.assertEqual((one.json["text"], one.json["comment"]), (OLD, "first"))
        told = yield self.told("policy_*")
        self.assertEqual(
            [(each["req"]["action"], each["actor"]["user"]) for each in told],
            [
                (action, "admin")
                for action in (
                    "policy_draft",
                    "policy_publish",
                    "policy_draft",
                    "policy_publish",
                    "policy_rollback",
                )
            ],
        )
        self.assertEqual((told[1]["req"]["comment"], told[1]["after"]["version"]), ("first", first))

    @inlineCallbacks
    def test_removed(self) -> Steps[None]:
        web = yield self.enroll("web1")
        made = yield self.draft(NEW)
        yield self.publish(made.json["etag"])
        yield self.calm()
        (listed,) = items((yield self.ask("GET", PATH, token=self.session)))
        self.assertEqual((listed["name"], listed["has_draft"], listed["target"]), ("builders", False, {}))
        etag = (yield self.get("")).json["etag"]
        gone = yield self.ask(
            "DELETE", f"{PATH}/builders", token=self.session, headers={"If-Match": f'"{etag}"'}
        )
        self.assertEqual(gone.status, 204, gone.body)
        yield self.calm()
        self.assertNotIn("name: new", web.content["policy"].text)
        late = yield self.get("")
        self.assertEqual(late.status, 404)
        kept = yield self.get("/versions")
        self.assertEqual(len(items(kept)), 1)

    @inlineCallbacks
    def test_a_refusal_halts_and_people_decide(self) -> Steps[None]:
        hosts = []
        for name in ("a", "b", "c"):
            hosts.append((yield self.enroll(name)))
        made = yield self.draft(NEW)
        for host in hosts:
            host.refuses["policy"] = ("policy", "no such rule")
        yield self.publish(made.json["etag"])
        yield self.calm()
        rollout = yield self.get("/rollout")
        self.assertEqual((rollout.json["state"], rollout.json["counts"]["refused"]), ("halted", 1))
        self.assertIn("no such rule", rollout.json["detail"])
        self.assertIn("no such rule", rollout.json["defenders"][0]["detail"])
        path = f"{PATH}/builders/rollout"
        halt = yield self.ask("POST", path, {"action": "halt"}, token=self.session)
        self.assertEqual((halt.status, halt.json["code"]), (409, "conflict"))
        over = yield self.ask("POST", path, {"action": "abort"}, token=self.session)
        self.assertEqual((over.status, over.json["state"]), (200, "aborted"), over.body)
        (event,) = yield self.told("policy_abort")
        self.assertEqual(event["after"], {"rollout": "aborted"})


class Texts(PolicyCase):
    @inlineCallbacks
    def test_a_text_that_is_no_policy(self) -> Steps[None]:
        bad = "schema: 1\nrules:\n  - name: x\n    efect: allow\n"
        reply = yield self.ask("POST", "/api/v1/policy-checks", {"text": bad}, token=self.session)
        self.assertEqual((reply.status, reply.json["ok"]), (200, False))
        self.assertIn(4, [each["line"] for each in reply.json["problems"]])
        made = yield self.draft(bad)
        self.assertEqual(made.status, 200, made.body)
        reply = yield self.publish(made.json["etag"])
        self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (422, "/text"))
        self.assertIn("efect", repr(reply.json["errors"]))
        self.assertEqual((yield self.told("policy_publish")), [])
        good = yield self.ask("POST", "/api/v1/policy-checks", {"text": NEW}, token=self.session)
        self.assertEqual((good.json["ok"], good.json["rules"]), (True, 1))

    @inlineCallbacks
    def test_explained(self) -> Steps[None]:
        yield self.draft(OLD)
        path = f"{PATH}/builders/explain"
        wanted = {"user": "ci-7", "host": "web1", "action": "image_create", "source": "::ffff:10.1.2.3"}
        reply = yield self.ask("POST", path, wanted, token=self.session)
        self.assertEqual(reply.status, 200, reply.body)
        self.assertEqual((reply.json["allowed"], reply.json["rule"]), (True, "old"))
        reply = yield self.ask("POST", path, {**wanted, "user": "eve"}, token=self.session)
        self.assertEqual((reply.json["allowed"], reply.json["trace"][0]["matched"]), (False, False))
        for change, pointer in (
            ({"action": "image_creat"}, "/action"),
            ({"source": "here"}, "/source"),
            ({"via": "unix"}, "/source"),
        ):
            wrong = yield self.ask("POST", path, {**wanted, **change}, token=self.session)
            self.assertEqual((wrong.status, wrong.json["errors"][0]["pointer"]), (422, pointer))

    @inlineCallbacks
    def test_drafts_of_two_people(self) -> Steps[None]:
        made = yield self.draft(OLD)
        again = yield self.draft(NEW)
        self.assertEqual((again.status, again.json["code"]), (412, "changed"))
        mine = yield self.draft(NEW, made.json["etag"])
        self.assertEqual(mine.status, 200)
        late = yield self.draft(OLD, made.json["etag"])
        self.assertEqual(late.status, 412)
        wrong = yield self.draft(OLD, mine.json["etag"], target={"names": ["-web*"]})
        self.assertEqual((wrong.status, wrong.json["errors"][0]["pointer"]), (422, "/target"))
        discard = yield self.ask(
            "DELETE",
            f"{PATH}/builders/draft",
            token=self.session,
            headers={"If-Match": f'"{mine.json["etag"]}"'},
        )
        self.assertEqual(discard.status, 409)


class Permissions(PolicyCase):
    @inlineCallbacks
    def test_who_may_only_look(self) -> Steps[None]:
        eve = yield self.person(self.session, "eve", "auditor")
        reply = yield self.ask(
            "PUT",
            f"{PATH}/builders/draft",
            {"text": OLD},
            token=eve,
            headers={"If-None-Match": "*"},
        )
        self.assertEqual((reply.status, reply.json["code"]), (403, "not-allowed"))
        (refusal,) = yield self.told("save_draft")
        self.assertEqual(refusal["decision"]["effect"], "deny")

"""Events: each has the documented shape, and no secret of a request is in one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hypothesis import given, settings, strategies
from twisted.trial.unittest import SynchronousTestCase

from defender.contract import audit
from defender.contract.actions import OPERATIONS, recognize
from defender.contract.audit import (
    Description,
    Event,
    actor_of,
    control_event,
    decision_of,
    defender_event,
    describe,
    describe_unreadable,
    gap_event,
    identity_event,
    policy_event,
    refused,
    request_event,
    stream_end_event,
    timestamp,
    to_line,
)
from defender.contract.facts import Subject
from defender.contract.redaction import PLAIN, URLS
from tests.schema import faults

ROOT = Path(__file__).resolve().parents[3]
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs/reference/event.schema.json").read_text())

BRUCE = Subject(
    "bruce@example.com",
    ("Dev team",),
    address="10.1.2.3",
    port=51234,
    serial="7f01",
    identity="spiffe://defender.fleet/user/1",
)
ROOT_USER = Subject("root", ("root", "docker"), via="unix", uid=0, pid=4711)


class Denied:
    effect, rule, reason = "deny", "devs_rule", "action not listed"


def sealed(event: Event) -> Event:
    """The event with what a recorder adds to it."""
    identity = "0193a2e4-0000-7000-8000-000000000000"
    return {
        "v": 1,
        "id": identity,
        "agent": "web1",
        "epoch": "9f3c00000000aaaa",
        "seq": 1,
        "ts_wall": "2027-01-15T08:00:00.000Z",
        **event,
        "corr": event.get("corr") or identity,
    }


class EventCase(SynchronousTestCase):
    def check(self, event: Event) -> dict[str, Any]:
        line = to_line(sealed(event))
        self.assertRegex(line, rb"\A[\x20-\x7e]+\n\Z")
        value: dict[str, Any] = json.loads(line)
        self.assertEqual(faults(value, SCHEMA), [])
        return value


class Shape(EventCase):
    def test_the_event_of_the_design(self) -> None:
        request = describe("image_create", "POST", "/images/create", (("fromImage", "nginx"),), {}, (1, 41))
        event = self.check(
            request_event(actor_of(BRUCE), request, decision_of(Denied, 12), status=403, sent=118, ms=0.4)
        )
        self.assertEqual(event["actor"]["src"], "10.1.2.3:51234")
        self.assertEqual(
            event["req"],
            {
                "action": "image_create",
                "method": "POST",
                "api": "1.41",
                "path": "/images/create",
                "query": {"fromImage": "nginx"},
                "target": "nginx",
            },
        )
        self.assertEqual(
            event["decision"],
            {
                "effect": "deny",
                "rule": "devs_rule",
                "version": 12,
                "digest": "",
                "reason": "action not listed",
            },
        )
        self.assertEqual(event["result"], {"status": 403, "bytes": 118, "ms": 0.4})
        self.assertEqual((event["kind"], event["phase"], event["corr"]), ("engine", "result", event["id"]))
        self.assertNotIn("redacted", event)

    def test_attempt_result_and_end_are_joined(self) -> None:
        actor, decision = actor_of(ROOT_USER), decision_of(Denied, 1, "sha256:" + "0" * 64)
        request = describe("container_attach", "POST", "/containers/x/attach", (), {"name": "x"}, (1, 41))
        corr = "0193a2e4-0000-7000-8000-000000000001"
        events = [
            self.check(request_event(actor, request, decision, corr=corr)),
            self.check(request_event(actor, request, decision, corr=corr, status=101, ms=1.0, error="late")),
            self.check(
                stream_end_event(
                    actor, request, decision, corr=corr, received=1, sent=2, ms=3.0, error="gone"
                )
            ),
        ]
        self.assertEqual([event["phase"] for event in events], ["attempt", "result", "stream_end"])
        self.assertEqual({event["corr"] for event in events}, {corr})
        self.assertNotIn("result", events[0])
        self.assertEqual(events[1]["result"]["error"], "late")
        self.assertEqual(events[2]["result"], {"rx": 1, "tx": 2, "ms": 3.0, "error": "gone"})
        self.assertEqual(
            events[0]["actor"],
            {"user": "root", "groups": ["root", "docker"], "via": "unix", "uid": 0, "pid": 4711},
        )

    def test_every_other_kind(self) -> None:
        events = [
            control_event(
                actor_of(ROOT_USER), "listener_set", fields={"mode": "unix"}, detail="serving unix"
            ),
            control_event(actor_of(ROOT_USER), "listener_set", ok=False, detail="port 9998 is in use"),
            control_event(actor_of(ROOT_USER), "listener_set", reason="uid 1000 may not"),
            policy_event("policy_load", "/etc/policy.yaml", ok=True, version=2, digest="sha256:00", rules=3),
            policy_event("locks_load", "locks.json", ok=False, problems=["locks.json:1:1: no"] * 50),
            identity_event("expired", "ended on Monday", subject="eve", address="::1", port=9),
            identity_event("credentials", "no such process", via="unix"),
            defender_event("defender_start", version="0.1.0"),
            gap_event(25, 1, 3.5, "No space left on device"),
            request_event(
                actor_of(BRUCE), describe_unreadable(), refused("the head cannot be read"), status=400, sent=9
            ),
        ]
        checked = [self.check(event) for event in events]
        # The events of the controller are made there, and held to the schema there.
        self.assertEqual({event["kind"] for event in checked}, set(audit.KINDS) - {"admin"})
        self.assertEqual(checked[2]["result"], {"ok": False, "detail": "uid 1000 may not"})
        self.assertEqual(checked[2]["decision"]["effect"], "deny")
        self.assertEqual(len(checked[4]["result"]["problems"]), 20)
        self.assertEqual(checked[5]["actor"]["src"], "[::1]:9")
        self.assertEqual(checked[5]["decision"]["reason"], "expired: ended on Monday")

    def test_the_schema_and_the_code_list_the_same(self) -> None:
        self.assertEqual(SCHEMA["properties"]["kind"]["enum"], list(audit.KINDS))
        self.assertEqual(SCHEMA["properties"]["phase"]["enum"], list(audit.PHASES))
        self.assertEqual(SCHEMA["required"], list(audit.REQUIRED))
        self.assertEqual(SCHEMA["properties"]["v"]["const"], audit.SCHEMA_VERSION)

    def test_the_schema_refuses_what_is_wrong(self) -> None:
        event = self.check(defender_event("defender_start", version="0.1.0"))
        for change, word in (
            ({"v": 2}, "v"),
            ({"extra": 1}, "extra"),
            ({"kind": "other"}, "kind"),
            ({"seq": 0}, "seq"),
            ({"seq": True}, "seq"),
            ({"result": {"ok": True}}, "required"),
            ({"id": "0"}, "id"),
        ):
            [fault, *_] = faults({**event, **change}, SCHEMA)
            self.assertIn(word, fault)

    def test_timestamps(self) -> None:
        self.assertEqual(timestamp(1_800_000_000.4029), "2027-01-15T08:00:00.402Z")
        self.assertEqual(timestamp(0), "1970-01-01T00:00:00.000Z")


class Targets(SynchronousTestCase):
    def target(self, method: str, path: str, *pairs: tuple[str, str]) -> object:
        operation, variables = recognize(method, path)
        return describe(operation.action, method, path, pairs, variables).fields["target"]

    def test_what_a_call_is_about(self) -> None:
        self.assertEqual(self.target("GET", "/containers/web/json"), "web")
        self.assertEqual(self.target("DELETE", "/images/a/b:1"), "a/b:1")
        self.assertEqual(self.target("GET", "/services/s1"), "s1")
        self.assertEqual(self.target("POST", "/containers/create", ("name", "db")), "db")
        self.assertEqual(
            self.target("POST", "/images/create", ("fromImage", "nginx"), ("tag", "1")), "nginx:1"
        )
        self.assertEqual(
            self.target("POST", "/images/create", ("fromImage", "nginx"), ("tag", "sha256:0")),
            "nginx@sha256:0",
        )
        self.assertEqual(self.target("GET", "/images/get", ("names", "a"), ("names", "b")), "a b")
        self.assertEqual(self.target("POST", "/build", ("t", "app:1")), "app:1")
        self.assertEqual(self.target("POST", "/commit", ("container", "web")), "web")
        self.assertEqual(self.target("GET", "/containers/json"), "")
        self.assertEqual(self.target("GET", "/nothing"), "")

    def test_a_target_from_the_query_is_redacted(self) -> None:
        self.assertEqual(
            self.target("POST", "/build", ("remote", "https://u:hunter2@h/x?token=hunter2")),
            "https://***@h/x?token=***",
        )


CANARY = "hunter2"


class Secrets(EventCase):
    def hidden(self, action: str, *pairs: tuple[str, str]) -> dict[str, Any]:
        request = describe(action, "POST", "/x", pairs, {}, (1, 41))
        event = self.check(request_event({**actor_of(BRUCE)}, request, decision_of(Denied), status=200))
        self.assertNotIn(CANARY, json.dumps(event))
        self.assertEqual(set(event["redacted"]), {key for key, _ in pairs})
        query: dict[str, Any] = event["req"]["query"]
        return query

    def test_build_arguments_keep_their_names(self) -> None:
        query = self.hidden("image_build", ("buildargs", '{"PASSWORD":"hunter2","HTTP_PROXY":null}'))
        self.assertEqual(query, {"buildargs": {"PASSWORD": "***", "HTTP_PROXY": "***"}})
        for odd in (
            '"hunter2"',
            '["hunter2"]',
            "hunter2",
            '{"a":"hunter2"',
            "[" * 5000 + CANARY,
            "9" * 5000 + CANARY,
        ):
            self.assertEqual(self.hidden("image_build", ("buildargs", odd)), {"buildargs": "***"})
        self.assertEqual(
            self.hidden("container_list", ("buildargs", '{"a":"hunter2"}')), {"buildargs": "***"}
        )

    def test_what_the_engine_does_not_know_has_no_value(self) -> None:
        for key in (
            "token",
            "X-Registry-Auth",
            "BuildArgs",
            "registryauth",
            "password",
            "session",
            "outputs",
        ):
            self.assertEqual(self.hidden("image_build", (key, CANARY)), {key: "***"})

    def test_urls_lose_what_lets_others_use_them(self) -> None:
        for url, shown in (
            ("https://hunter2@github.com/a/b.git#main:dir", "https://***@github.com/a/b.git#main:dir"),
            ("https://bruce:hunter2@h:8443/p?sig=hunter2&v=hunter2", "https://***@h:8443/p?sig=***&v=***"),
            ("https://bruce:hun/hunter2@h/p", "https://***"),
            ("https://bruce:12/hunter2@h/p", "https://***"),
            ("https://h/p?hunter2", "https://h/p?***"),
            ("https://h/p#access_token=hunter2", "https://h/p#***"),
            ("https://a@b:hunter2@h/p", "https://***@h/p"),
            ("https://h\\hunter2:hunter2@h/p?x=hunter2#k=hunter2", "https://***"),
            ("bruce:hunter2@h:repo.git", "***@h:repo.git"),
            ("bruce:x/hunter2@h:repo.git", "***"),
            ("http://proxy/http://u:hunter2@h/", "http://proxy/http://***@h/"),
        ):
            for key in ("remote", "fromSrc"):
                with self.subTest(url=url):
                    self.assertEqual(self.hidden("image_create", (key, url)), {key: shown})

    def test_urls_in_other_parameters_lose_their_password(self) -> None:
        self.assertEqual(
            self.hidden("image_create", ("fromImage", "https://u:hunter2@reg/i")),
            {"fromImage": "https://***@reg/i"},
        )

    def test_dockerfile_lines_keep_their_instruction(self) -> None:
        self.assertEqual(
            self.hidden(
                "container_commit",
                ("changes", "ENV TOKEN=hunter2\nRUN x"),
                ("changes", "CMD run --key hunter2"),
            ),
            {"changes": ["ENV ***", "CMD ***"]},
        )

    def test_a_request_that_cannot_be_read_shows_no_query(self) -> None:
        for target in ("/x?token=hunter2", "http://u:hunter2@h/x?hunter2", "/x?" + "hunter2" * 9999):
            request = describe_unreadable("GET", target)
            event = self.check(request_event(actor_of(BRUCE), request, refused("no"), status=400))
            self.assertNotIn(CANARY, json.dumps(event))
            self.assertEqual(event["redacted"], ["query"])

    def test_references_and_plain_values_are_kept(self) -> None:
        for key, value in (
            ("remote", "vieux/sshfs:latest"),
            ("remote", "vieux/sshfs@sha256:00"),
            ("remote", "registry:5000/a@sha256:00"),
            ("remote", "git@github.com:a/b.git"),
            ("remote", "https://[::1]/a.git#main"),
            ("fromSrc", "-"),
            ("fromImage", "registry:5000/a@sha256:00"),
            ("filters", '{"label":["a=b"]}'),
            ("session", ""),
        ):
            with self.subTest(value=value):
                request = describe("image_build", "POST", "/build", ((key, value),))
                self.assertEqual(request, Description({**request.fields, "query": {key: value}}))

    def test_every_parameter_of_the_routes_is_known(self) -> None:
        """A value that people look for is not hidden because its name was forgotten."""
        secret = {"changes", "buildargs", "outputs", "session"}
        for line in (ROOT / "tests/data/routes.tsv").read_text().splitlines()[1:]:
            notes = line.split("\t")[8]
            found = re.search(r"(?:query|form)(?:/query|/form)? ([a-zA-Z,\[\]()<>=._0-9 *-]+)", notes)
            for name in re.findall(r"(?:^|,)([a-zA-Z][A-Za-z_-]+)", found[1] if found else ""):
                self.assertIn(name, PLAIN | URLS | secret, line)


class Bounds(EventCase):
    def test_long_values_keep_their_length_and_digest(self) -> None:
        request = describe("container_top", "GET", "/containers/x/top", (("ps_args", "a" * 70_000),))
        event = self.check(request_event(actor_of(BRUCE), request, decision_of(Denied), status=200))
        value = event["req"]["query"]["ps_args"]
        self.assertRegex(value, r"\Aa{256}\.\.\.\(70000 characters, sha256:[0-9a-f]{16}\)\Z")
        self.assertNotIn("redacted", event)

    def test_an_event_is_small_whatever_the_request(self) -> None:
        pairs = [(f"{number}" + "k" * 5000, "v" * 5000) for number in range(1000)]
        pairs += [("buildargs", json.dumps({f"{number}": "v" for number in range(1000)}))]
        request = describe("image_build", "POST", "/" + "p" * 60_000, pairs, {"name": "n" * 60_000})
        event = request_event(actor_of(BRUCE), request, refused("r" * 9999), status=200, error="e" * 9999)
        self.check(event)
        self.assertLess(len(to_line(event)), 32_768)

    @settings(max_examples=200, deadline=None)
    @given(
        strategies.sampled_from([*sorted({operation.action for operation in OPERATIONS}), "unknown"]),
        strategies.text(),
        strategies.lists(
            strategies.tuples(
                strategies.sampled_from(["buildargs", "remote", "fromSrc", "changes", "t", "names", "x"])
                | strategies.text(),
                strategies.text() | strategies.text('a:/@?&#=% {}"[]\\'),
            )
        ),
        strategies.dictionaries(strategies.sampled_from(["name", "id", "checkpoint"]), strategies.text()),
    )
    def test_any_request_gives_a_valid_line(
        self, action: str, path: str, pairs: list[tuple[str, str]], variables: dict[str, str]
    ) -> None:
        request = describe(action, "GET", path, pairs, variables, (1, 24))
        self.check(request_event(actor_of(BRUCE), request, decision_of(Denied), status=200))
        self.check(
            request_event(actor_of(BRUCE), describe_unreadable("GET", path), refused(path), status=400)
        )

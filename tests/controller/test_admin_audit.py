"""What the events of people's changes hold, and what they never hold."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.admin_audit import MAX_KEYS, AdminActor, Changed, admin_event, compare
from controller.credentials import SESSION, make_credential
from controller.releases import Position

CANARY = "canary-Zr7Qp2"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


class Comparing(SynchronousTestCase):
    def test_only_what_differs(self) -> None:
        self.assertEqual(
            compare({"labels": {"env": "test"}, "name": "web1"}, {"labels": {"env": "prod"}, "name": "web1"}),
            Changed({"labels": {"env": "test"}}, {"labels": {"env": "prod"}}),
        )

    def test_what_was_not_there_before_or_is_gone(self) -> None:
        self.assertEqual(compare(None, {"rank": 3}), Changed({}, {"rank": 3}))
        self.assertEqual(compare({"rank": 3}, None), Changed({"rank": 3}, {}))
        self.assertEqual(compare(None, None), Changed({}, {}))

    def test_secrets_are_hidden_by_their_names(self) -> None:
        found = compare(
            {"password": CANARY, "join": {"secret": CANARY, "uses": 1}},
            {"password": CANARY + "2", "join": {"secret": CANARY + "2", "uses": 2}, "apiToken": [CANARY]},
        )
        self.assertNotIn(CANARY, repr(found))
        self.assertEqual(found.redacted, ("join.secret", "password", "apiToken"))
        self.assertEqual(found.after["join"], {"secret": "***", "uses": 2})

    def test_secrets_are_hidden_by_their_shape(self) -> None:
        secret = "Bearer abcdefghijklmnop"
        found = compare({}, {"comment": f"use {secret}", "url": "https://ann:" + "pw@host/"})
        self.assertNotIn("abcdefghijklmnop", repr(found))
        self.assertIn("comment", found.redacted)

    def test_names_that_only_sound_like_secrets(self) -> None:
        after = {"join_token": "id-7", "key_epoch": 3}
        self.assertEqual(compare(None, after), Changed({}, after))

    def test_large_things_are_shortened(self) -> None:
        found = compare(None, {"text": "x " * 5000, "blob": b"abc"})
        self.assertIn("10000 characters", str(found.after["text"]))
        self.assertLess(len(str(found.after["text"])), 600)
        self.assertTrue(str(found.after["blob"]).startswith("(3 bytes, sha256:"))
        many = compare(None, {f"k{number}": number for number in range(200)})
        self.assertEqual(len(many.after), MAX_KEYS + 1)
        self.assertEqual(many.after["..."], f"{200 - MAX_KEYS} more")
        deep: Any = "end"
        for _ in range(50):
            deep = {"down": [deep]}
        self.assertLess(len(json.dumps(compare(None, {"deep": deep}).after)), 500)
        self.assertEqual(compare(None, {"who": {"b", "a"}}).after, {"who": ["a", "b"]})
        self.assertIn("... 36 more", str(compare(None, {"who": list(range(100))}).after))

    def test_other_values(self) -> None:
        wide = {f"k{number}": number for number in range(100)}
        found = compare(None, {"wide": wide, "at": Position(1, 2), "what": ValueError("x")})
        self.assertEqual(found.after["at"], [1, 2])
        self.assertEqual(found.after["what"], "x")
        self.assertIn("'...': '36 more'", str(found.after["wide"]))

    @settings(max_examples=50, deadline=None)
    @given(
        st.dictionaries(st.text(max_size=8), VALUES, max_size=4),
        st.dictionaries(st.text(max_size=8), VALUES, max_size=4),
    )
    def test_it_is_always_json_and_bounded(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        found = compare(before, after)
        json.dumps([found.before, found.after, found.redacted])


class Events(SynchronousTestCase):
    actor = AdminActor("ann", "session", "s-1", "10.1.2.3")

    def test_an_event(self) -> None:
        self.assertEqual(
            admin_event(
                self.actor,
                "policy_publish",
                "default",
                changed=compare({"published": 11}, {"published": 12}),
                comment="CHG-1",
                request="r-1",
            ),
            {
                "kind": "admin",
                "phase": "result",
                "actor": {
                    "user": "ann",
                    "groups": [],
                    "via": "session",
                    "src": "10.1.2.3",
                    "credential": "s-1",
                },
                "req": {
                    "action": "policy_publish",
                    "target": "default",
                    "request": "r-1",
                    "comment": "CHG-1",
                },
                "decision": {"effect": "allow", "rule": "", "version": 0, "digest": "", "reason": ""},
                "before": {"published": 11},
                "after": {"published": 12},
            },
        )

    def test_what_was_refused(self) -> None:
        event = admin_event(
            AdminActor("bob", "system"), "lock_add", "user eve", refused="bob lacks locks.write"
        )
        decision: Any = event["decision"]
        self.assertEqual((decision["effect"], decision["reason"]), ("deny", "bob lacks locks.write"))
        self.assertEqual(event["actor"], {"user": "bob", "groups": [], "via": "system"})

    def test_no_credential_of_ours_gets_in(self) -> None:
        for text in (make_credential(SESSION, bytes(32)).text, "dft1.aaaa.bbbb.cccc"):
            event = admin_event(
                self.actor,
                "x",
                "y",
                changed=compare(None, {"note": text}),
                comment=text,
                refused=f"not {text}",
            )
            self.assertNotIn(text[5:], json.dumps(event))

"""What the index has of an event is what the event says, however it is packed."""

from __future__ import annotations

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.store import extraction
from controller.store.extraction import MAX_NAME, name_text, searchable
from defender.contract.audit import actor_of, gap_event
from defender.contract.facts import Subject
from defender.contract.packing import CLOSING, assemble, pack_body

_TEXT = st.text(max_size=300)
# Bytes that stand for keys and heads where the reader looks for them, as far as text can hold them.
_TRICKS = st.sampled_from(
    [
        "ãreq",
        "ãreq\x86¦action",
        "èdecision",
        "èdecision\x85¦effect¥allow",
        "¥actor",
        "¤user",
        "\x00",
        "a" * 40,
    ]
)
_VALUE = st.one_of(_TEXT, _TRICKS, st.integers(0, 2**32), st.none(), st.lists(_TEXT, max_size=3))
_NAME = st.one_of(_TEXT, _TRICKS)


def expected(event: dict[str, object]) -> tuple[bytes, ...]:
    actor, request, decision = (event.get(key) or {} for key in ("actor", "req", "decision"))
    assert isinstance(actor, dict)
    assert isinstance(request, dict)
    assert isinstance(decision, dict)
    values = (actor.get("user", ""), request.get("action", ""), decision.get("effect", ""))
    return tuple(value.encode() if isinstance(value, str) else b"" for value in values)


class Extraction(SynchronousTestCase):
    @given(
        user=_NAME,
        groups=st.lists(_NAME, max_size=3),
        action=_NAME,
        query=st.dictionaries(_NAME, _VALUE, max_size=3),
        effect=st.one_of(st.none(), st.sampled_from(["allow", "deny"]), _NAME),
        rule=_NAME,
        result=_NAME,
        joined=st.booleans(),
    )
    def test_any_event(
        self,
        user: str,
        groups: list[str],
        action: str,
        query: dict[str, object],
        effect: str | None,
        rule: str,
        result: str,
        joined: bool,
    ) -> None:
        event: dict[str, object] = {
            "kind": "engine",
            "phase": "result",
            "actor": {"user": user, "groups": groups, "via": "tls"},
            "req": {"action": action, "query": query},
        }
        if effect is not None:
            decision = {"effect": effect, "rule": rule, "version": 1, "digest": "", "reason": rule}
            event["decision"] = decision
        event["result"] = {"detail": result}
        payload = assemble(*pack_body(event), bytes(16), 1, 1, bytes(16) if joined else b"")
        self.assertEqual(searchable(payload), expected(event))

    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        for payload in (data, assemble(6, data, bytes(16), 1, 1)):
            self.assertEqual([type(each) for each in searchable(payload)], [bytes] * 3)

    @given(
        st.dictionaries(
            st.sampled_from(["kind", "phase", "actor", "req", "decision", "other"]),
            st.one_of(
                _VALUE,
                st.dictionaries(st.sampled_from(["user", "action", "effect", "rule"]), _VALUE),
            ),
        )
    )
    def test_any_shape(self, event: dict[str, object]) -> None:
        payload = assemble(*pack_body(event), bytes(16), 1, 1)
        found = searchable(payload)
        shapes = [event.get(key) for key in ("actor", "req")]
        if all(isinstance(each, dict) for each in shapes) and isinstance(event.get("decision"), dict | None):
            values = expected(event)
            # All or nothing of what is no text at all.
            self.assertIn(found, (values, (b"", b"", b"")))

    def test_the_usual_events_are_not_unpacked(self) -> None:
        """What every defender sends takes the short way; else ingest would be three times as dear."""
        self.patch(extraction, "_unpacked", lambda payload: self.fail("unpacked"))
        subject = Subject("bruce@example.com", ("Dev team",), via="tls", address="10.1.2.3", port=51234)
        event: dict[str, object] = {
            "kind": "engine",
            "phase": "attempt",
            "actor": actor_of(subject),
            "req": {"action": "container_create", "method": "POST", "query": {}},
            "decision": {"effect": "allow", "rule": "ci", "version": 1, "digest": "", "reason": ""},
        }
        wanted = (b"bruce@example.com", b"container_create", b"allow")
        self.assertEqual(searchable(assemble(*pack_body(event), bytes(16), 1, 1)), wanted)
        gap = gap_event(1, 2, 3, "x")
        del gap["corr"]
        self.assertEqual(searchable(assemble(*pack_body(gap), bytes(16), 1, 1)), (b"", b"audit_gap", b""))
        self.assertEqual(searchable(assemble(*CLOSING, bytes(16), 1, 1)), (b"", b"audit_close", b""))

    def test_nested_too_deep(self) -> None:
        value: object = "x"
        for _ in range(500):
            value = [value]
        payload = msgpack.packb({"id": bytes(16), "actor": {"user": value}, "req": {}})
        self.assertEqual(searchable(payload), (b"", b"", b""))
        self.assertEqual(searchable(b"\x91" * 100_000), (b"", b"", b""))

    def test_names_as_they_are_kept(self) -> None:
        self.assertEqual(name_text("ä".encode()), "ä")
        self.assertEqual(name_text("\ud800".encode("utf-8", "surrogatepass")), "\\xed\\xa0\\x80")
        self.assertEqual(len(name_text(b"x" * 5000)), MAX_NAME)

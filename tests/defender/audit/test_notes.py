"""What the spool says of itself holds to the schema of events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given, strategies
from twisted.trial.unittest import SynchronousTestCase

from defender.audit import notes
from defender.audit.commands import Removed
from defender.audit.recovery import Finding
from defender.contract.audit import Event
from defender.contract.packing import CLOSING, assemble, pack_body, unpack
from tests.schema import faults

ROOT = Path(__file__).resolve().parents[3]
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs/reference/event.schema.json").read_text())
IDENTITY = bytes.fromhex("0193a2e4000070008000000000000000")


class NoteTests(SynchronousTestCase):
    def check(self, *events: Event) -> None:
        for event in events:
            self.check_packed(*pack_body(event))

    def check_packed(self, pairs: int, body: bytes) -> None:
        payload = assemble(pairs, body, IDENTITY, 1_800_000_000_000_000, 7)
        event = unpack(payload, agent="web1", epoch=1, seq=1)
        self.assertEqual(faults(event, SCHEMA), [])

    def test_notes_and_gaps(self) -> None:
        self.check(
            notes.note("audit_clock", "x" * 5000, ok=False),
            notes.note("audit_failed", "", target="y" * 5000),
            notes.gap(3, 4711, 1.5, "why"),
            notes.gap(0, 0, -1.0, ""),
            notes.of_removed(Removed("a.seg", 1, 2, 3)),
            notes.of_removed(Removed("a.seg", 1, 2, 0)),
            notes.of_vanished(Removed("a.seg", 1, 2, 9)),
            notes.of_vanished(Removed("a.seg", 1, 2, 0)),
        )
        self.check_packed(*CLOSING)

    def test_findings(self) -> None:
        kinds = ("altered", "aside", "damaged", "missing", "torn", "unclosed")
        for kind in kinds:
            self.check(notes.of_finding(Finding(kind, "a.seg", "x" * 3000, 5, 9)))  # type: ignore[arg-type]
        gap = notes.of_finding(Finding("missing", "a.seg", "lost", 5, 9))
        self.assertEqual((gap["kind"], gap["result"]["dropped"]), ("gap", 5))  # type: ignore[index]
        unknown = notes.of_finding(Finding("missing", "a.seg", "lost", 5, 0))
        self.assertEqual(unknown["result"]["dropped"], 0)  # type: ignore[index]

    @given(
        strategies.recursive(
            strategies.none() | strategies.booleans() | strategies.integers(0, 2**63) | strategies.text(),
            lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
        )
    )
    def test_what_is_left_of_anything_is_small(self, anything: object) -> None:
        for key in ("kind", "phase", "actor", "req", "decision", "result"):
            event = {"kind": "engine", "phase": "result", "actor": {"user": "u" * 10**4}, "req": {}}
            _, body = pack_body(notes.reduced({**event, key: anything}, 10**6))
            self.assertLess(len(body), 16_384)

    def test_what_is_left_of_an_engine_event(self) -> None:
        event: Event = {
            "kind": "engine",
            "phase": "result",
            "actor": {"user": "bruce", "groups": ["g"] * 10_000, "via": "tls", "serial": "7f"},
            "req": {"action": "image_build", "method": "POST", "api": "1.41", "path": "/build", "query": {}},
            "decision": {"effect": "deny", "rule": "r", "version": 1, "digest": "", "reason": "x" * 10**6},
            "result": {"status": 403, "bytes": 1, "ms": 0.5},
        }
        small = notes.reduced(event, 2_000_000)
        self.check(small)
        self.assertEqual(small["result"], event["result"])
        self.assertEqual(small["req"]["fields"], {"reduced": 2_000_000})  # type: ignore[index]

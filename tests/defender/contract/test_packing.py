"""Events in records: what goes in comes out, and nothing else is taken for an event."""

from __future__ import annotations

import json
import random

import msgpack
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.audit import Event
from defender.contract.packing import (
    CLOSING,
    MAX_DEPTH,
    MAX_ITEMS,
    assemble,
    identity_text,
    is_closing,
    micros_of,
    pack_body,
    timestamp_of,
    unpack,
)
from defender.contract.spool import MAX_PAYLOAD, PAYLOAD_MARK, SpoolError
from docs.reference_pages import EXAMPLE

IDENTITY = bytes.fromhex("0193a2e45b1c7c3e9a513f0c2b7d9e10")
OTHER = bytes.fromhex("0193a2e45b1c7c3e9a513f0c2b7d9e11")
MICROS = 1_795_299_183_402_999  # 2026-11-21T22:13:03.402Z
ADDED = {"v", "id", "agent", "epoch", "seq", "ts_wall", "ts_mono", "corr"}
OWN: Event = {key: value for key, value in EXAMPLE.items() if key not in ADDED}


def packed(event: Event = OWN, corr: bytes = b"") -> bytes:
    return assemble(*pack_body(event), IDENTITY, MICROS, 77, corr)


def unpacked(payload: bytes) -> Event:
    return unpack(payload, agent="web1", epoch=0x9F3C0A6D51E8B274, seq=4711)


def raw(**changes: object) -> bytes:
    """A payload with keys changed; None takes a key away."""
    fields: Event = {"id": IDENTITY, "t": MICROS, "m": 77, **OWN, **changes}
    return bytes(msgpack.packb({key: value for key, value in fields.items() if value is not None}))


class RoundTrip(SynchronousTestCase):
    def test_the_documented_event_comes_back_with_its_keys_in_order(self) -> None:
        event = unpacked(packed())
        expected = {**EXAMPLE, "ts_mono": 77, "corr": EXAMPLE["id"]}
        self.assertEqual(event, expected)
        self.assertEqual([key for key in event if key != "ts_mono"], list(EXAMPLE), "the order of the keys")

    def test_events_are_joined(self) -> None:
        self.assertEqual(unpacked(packed(corr=OTHER))["corr"], identity_text(OTHER))
        self.assertEqual(identity_text(OTHER), "0193a2e4-5b1c-7c3e-9a51-3f0c2b7d9e11")

    def test_the_payload_is_what_the_specification_says(self) -> None:
        for corr in (b"", OTHER):
            for count in (4, 11, 12, 13, 14, 40, 63):
                event = {**OWN, **{f"x{number}": number for number in range(count - len(OWN))}}
                payload = packed(event, corr)
                fields = msgpack.unpackb(payload)
                self.assertEqual(list(fields)[:3], ["id", "t", "m"])
                self.assertEqual((fields["id"], fields["t"], fields["m"]), (IDENTITY, MICROS, 77))
                self.assertEqual(fields.get("corr", b""), corr)
                self.assertIn(payload.find(PAYLOAD_MARK), (1, 3))
                self.assertEqual(micros_of(payload), MICROS)

    def test_any_text_survives(self) -> None:
        for text in ("", "\0\n\x1b[31m", "漢字", "\udcff\ud800", "\U0001f433" * 1000):
            event = unpacked(packed({**OWN, "req": {"path": text, text: [text]}}))
            self.assertEqual(event["req"], {"path": text, text: [text]})
            json.dumps(event).encode("ascii")

    def test_values_that_json_has_survive(self) -> None:
        values: list[object] = [
            None,
            True,
            False,
            0,
            -1,
            2**64 - 1,
            -(2**63),
            0.5,
            1e300,
            [],
            {},
            [[{"a": [1]}]],
        ]
        self.assertEqual(
            unpacked(packed({**OWN, "result": {"values": values}}))["result"], {"values": values}
        )
        self.assertEqual(unpacked(packed({**OWN, "redacted": ("a", "b")}))["redacted"], ["a", "b"])

    def test_what_cannot_be_packed_is_refused_and_the_next_one_is_whole(self) -> None:
        for bad in (object(), 2**64, {1, 2}, {"a": object()}):
            self.assertRaises(SpoolError, pack_body, {**OWN, "result": bad})
            self.assertEqual(unpacked(packed())["req"], OWN["req"])
        self.assertRaises(SpoolError, pack_body, {str(number): 0 for number in range(64)})

    def test_times_are_told_in_utc(self) -> None:
        self.assertEqual(timestamp_of(0), "1970-01-01T00:00:00.000Z")
        self.assertEqual(timestamp_of(MICROS), "2026-11-21T22:13:03.402Z")
        self.assertEqual(timestamp_of(253_402_300_799_999_999), "9999-12-31T23:59:59.999Z")
        for micros in (-1, 253_402_300_800_000_000, 2**64 - 1):
            self.assertRaises(SpoolError, timestamp_of, micros)


class ClosingRecord(SynchronousTestCase):
    def test_it_is_an_event_that_is_known_by_its_end(self) -> None:
        payload = assemble(*CLOSING, IDENTITY, MICROS, 77)
        self.assertTrue(is_closing(payload))
        self.assertFalse(is_closing(packed()))
        event = unpacked(payload)
        self.assertEqual((event["kind"], event["req"]), ("defender", {"action": "audit_close"}))

    def test_text_of_clients_cannot_look_like_it(self) -> None:
        text = CLOSING[1].decode("utf-8", "surrogateescape")
        bait = packed({"kind": "engine", "phase": "result", "actor": {}, "req": {"path": text[1:]}})
        self.assertFalse(is_closing(bait))


class NoEvents(SynchronousTestCase):
    """Each of these is refused, in bounded time and memory."""

    def refused(self, payload: bytes, words: str = "") -> None:
        error = self.assertRaises(SpoolError, unpacked, payload)
        self.assertIn(words, str(error))

    def test_what_is_no_event_is_refused(self) -> None:
        self.refused(b"", "not msgpack")
        self.refused(b"\xc1", "not msgpack")
        self.refused(b"{}", "not msgpack")
        self.refused(packed()[:-1], "not msgpack")
        self.refused(packed() + b"\0", "not msgpack")
        self.refused(msgpack.packb([1]), "not a map")
        self.refused(raw(id=None), "no id")
        self.refused(raw(id="0193"), "no id")
        self.refused(raw(id=b"1"), "no id")
        self.refused(raw(corr="text"), "corr")
        self.refused(raw(t=None), "no time")
        self.refused(raw(t=True), "no time")
        self.refused(raw(m=-1), "no time")
        self.refused(raw(t=2**63), "no clock")
        self.refused(raw(kind=None), "no kind")
        self.refused(raw(phase=7), "no phase")
        self.refused(raw(actor=None), "no actor")
        self.refused(raw(req=[]), "no req")
        self.refused(raw(seq=1), "gives it")
        self.refused(raw(agent="web2"), "gives it")

    def test_values_that_json_has_not_are_refused(self) -> None:
        for bad in (
            b"bytes",
            float("nan"),
            float("inf"),
            {1: 2},
            msgpack.Timestamp(1),
            msgpack.ExtType(5, b""),
        ):
            self.refused(raw(result={"value": bad}))
            self.refused(raw(result=[bad]))

    def test_bombs_are_refused(self) -> None:
        head, body = raw()[:1], raw()[1:]
        self.assertEqual(head, b"\x89")
        bigger = b"\x8a" + body + b"\xa1x"
        self.refused(bigger + b"\xdd\xff\xff\xff\xff", "not msgpack")  # a list of four billion
        self.refused(bigger + b"\xdf\xff\xff\xff\xff", "not msgpack")
        self.refused(bigger + b"\xdb\xff\xff\xff\xff", "not msgpack")
        self.refused(bigger + b"\xc6\xff\xff\xff\xff", "not msgpack")
        self.refused(bigger + b"\xc9\xff\xff\xff\xff\1", "not msgpack")
        self.refused(bigger + b"\x91" * 500_000 + b"\xc0", "not msgpack")
        self.refused(bigger + b"\x91" * MAX_DEPTH + b"\xc0", "too deep")
        self.refused(bigger + b"\xdd\x00\x01\x00\x01" + b"\xc0" * (MAX_ITEMS + 1), "not msgpack")
        many = b"\xdc\xff\xff" + b"\xc0" * 65_535
        self.refused(bigger + b"\x92" + many + many, "too many")
        self.refused(raw(result={"a": "x" * MAX_PAYLOAD}), "bytes")

    def test_no_payload_raises_anything_else(self) -> None:
        source = random.Random(7)
        good = packed()
        for _ in range(3000):
            data = bytearray(good)
            for _ in range(source.randrange(1, 5)):
                data[source.randrange(len(data))] = source.randrange(256)
            try:
                json.dumps(unpacked(bytes(data)), allow_nan=False)
            except SpoolError:
                pass
            micros_of(bytes(data))
            micros_of(bytes(data[: source.randrange(40)]))

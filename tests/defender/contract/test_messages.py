"""Messages as bytes and back: what is sent is what is read, and nothing else is."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.codec import decode, encode
from defender.contract.framing import FRAME_LIMIT, GREETING_LIMIT, Framer
from defender.contract.message_bytes import (
    decode_message,
    encode_message,
    knows,
    message_frame,
    push_frames,
    snapshot_frame,
    type_of,
)
from defender.contract.message_fields import Cursor, Opening, Position
from defender.contract.messages import (
    CHUNK,
    DEFAULT_WINDOW,
    MAX_BATCH_BYTES,
    MAX_CHUNKS,
    MAX_ENVELOPE,
    MAX_SNAPSHOT,
    NEWEST,
    OLDEST,
    STREAMS,
    Ack,
    Cmd,
    Error,
    Events,
    GoAway,
    Hello,
    Message,
    MessageError,
    Nack,
    Ping,
    Push,
    Result,
    Snapshot,
    Status,
    Welcome,
)
from tests.defender.contract.channel_strategies import BY_CLASS, MESSAGES, of_revision

POSITION = Position(2, 7, b"d" * 32)
ACK = Ack("policy", 9, POSITION)
HELLO = Hello(
    *(
        OLDEST,
        NEWEST,
        "1.0",
        "web1",
        "boot",
        ("a",),
        dict.fromkeys(STREAMS, POSITION),
        Cursor(1, 2, b"c" * 32),
    ),
)


class RoundTrips(SynchronousTestCase):
    @given(MESSAGES)
    def test_what_is_encoded_is_decoded(self, message: Message) -> None:
        payload = encode_message(message)
        self.assertEqual(decode_message(payload), message)
        self.assertEqual(encode(decode(payload)), payload, "the form is the canonical one")

    @given(of_revision(0))
    def test_an_older_revision_is_without_what_came_later(self, message: Message) -> None:
        payload = encode_message(message, 0)
        found = decode_message(payload, 0)
        assert found is not None
        self.assertEqual(encode_message(found, 0), payload)
        if isinstance(message, GoAway):
            self.assertEqual(found, replace(message, window=DEFAULT_WINDOW))

    def test_every_message_has_a_number_of_its_own(self) -> None:
        self.assertEqual(sorted(map(type_of, BY_CLASS)), list(range(1, 19)))

    def test_records_are_not_shown(self) -> None:
        events = Events(1, 1, 1, b"", None, "", b"secret" * 20)
        self.assertNotIn("secret", repr(events))


class Revisions(SynchronousTestCase):
    def test_commands_came_with_revision_1(self) -> None:
        for message in (Cmd(1, 1.0, "probe", {}), Result(1, True, "", "", {}), Status({})):
            self.assertTrue(knows(1, type(message)))
            self.assertFalse(knows(0, type(message)))
            self.assertRaises(MessageError, encode_message, message, 0)
            self.assertRaises(MessageError, decode_message, encode_message(message), 0)

    def test_a_ping_has_a_token_since_revision_1(self) -> None:
        self.assertEqual(encode_message(Ping(5), 0).hex(), "910f")
        self.assertEqual(encode_message(Ping(5), 1).hex(), "920f05")
        self.assertRaises(MessageError, decode_message, bytes.fromhex("910f"), 1)
        self.assertRaises(MessageError, decode_message, bytes.fromhex("920f05"), 0)

    def test_what_comes_before_a_revision_is_agreed_on_may_be_of_any(self) -> None:
        for message in (HELLO, GoAway("busy", "", 3.0), Error("frame", "x")):
            values = decode(encode_message(message))
            self.assertEqual(decode_message(encode([*values, "of a later revision", {}])), message)
        self.assertEqual(decode_message(encode([17, "busy", "x"]), 1), GoAway("busy", "x", DEFAULT_WINDOW))
        self.assertEqual(decode_message(encode([17, "busy", "x", 5, 6]), 0), GoAway("busy", "x", 0.005))

    def test_in_all_others_the_number_of_fields_counts(self) -> None:
        values = decode(encode_message(ACK))
        self.assertRaises(MessageError, decode_message, encode([*values, 1]))
        self.assertRaises(MessageError, decode_message, encode(values[:-1]))
        self.assertRaises(MessageError, decode_message, encode([1, 0, 1]))


class Refusals(SynchronousTestCase):
    @given(st.binary(max_size=300), st.integers(0, 1))
    def test_any_bytes_give_a_message_or_our_error(self, data: bytes, revision: int) -> None:
        try:
            decode_message(data, revision)
        except MessageError:
            pass

    @given(MESSAGES, st.data())
    def test_any_value_in_any_place_gives_a_message_or_our_error(
        self, message: Message, drawn: st.DataObject
    ) -> None:
        values = msgpack.unpackb(encode_message(message))
        place = drawn.draw(st.integers(0, len(values) - 1))
        values[place] = drawn.draw(
            st.sampled_from(
                [None, True, -1, 2**64 - 1, 0, 1.5, "", "x" * 2000, b"", b"x" * 33, [], [1, 2, 3], {}]
            )
        )
        try:
            found = decode_message(msgpack.packb(values))
        except MessageError:
            return
        if found is not None:
            # Whatever is taken can be sent: the checks are the same both ways.
            encode_message(found)

    @given(MESSAGES, st.data())
    def test_a_message_that_was_cut_off_or_damaged(self, message: Message, drawn: st.DataObject) -> None:
        payload = bytearray(encode_message(message))
        place = drawn.draw(st.integers(0, len(payload) - 1))
        self.assertRaises(MessageError, decode_message, bytes(payload[:place]))
        payload[place] ^= drawn.draw(st.integers(1, 255))
        try:
            decode_message(bytes(payload))
        except MessageError:
            pass

    def test_types_that_are_not_known(self) -> None:
        for number in (128, 200, 255):
            for revision in (0, 1):
                self.assertIsNone(decode_message(encode([number, "anything", {"at": "all"}]), revision))
        for number in (0, 19, 127, 256, -1, 2**64 - 1):
            self.assertRaises(MessageError, decode_message, encode([number]))
        payloads: list[Any] = [[], {}, ["4"], [True], [4.0], [None], "text", 4, None]
        for payload in payloads:
            self.assertRaises(MessageError, decode_message, encode(payload))

    def test_bounds(self) -> None:
        good: list[tuple[Message, dict[str, Any]]] = [
            (ACK, {"stream": "x" * 40, "nonce": 2**64 - 1, "position": Position(0, 0, b"")}),
            (Nack("policy", 1, "older", "x" * 1024, POSITION), {}),
            (Push("policy", 1, 1023, 1024, MAX_ENVELOPE, b"x" * 2**20), {}),
            (Snapshot(b"x" * MAX_SNAPSHOT), {}),
            (Events(1, 1, 200, b"", Opening("web1", 0, 0, bytes(32)), "", b"x" * MAX_BATCH_BYTES), {}),
            (Status({"text": "x" * (128 * 1024 - 4)}), {}),
            (Status({"list": [0] * 1999}), {}),
        ]
        for message, changes in good:
            payload = encode_message(replace(message, **changes))
            self.assertLessEqual(len(payload), FRAME_LIMIT)
            decode_message(payload)
        bad: list[tuple[Message, dict[str, Any]]] = [
            (ACK, {"stream": "x" * 41}),
            (ACK, {"stream": "Policy"}),
            (ACK, {"stream": "policy\n"}),
            (ACK, {"nonce": 0}),
            (ACK, {"nonce": 2**64}),
            (ACK, {"nonce": True}),
            (ACK, {"position": (1, 2)}),
            (ACK, {"position": Position(1, 2, b"short")}),
            (Nack("policy", 1, "older", "x" * 1025, POSITION), {}),
            (Push("policy", 1, 0, 1, MAX_ENVELOPE + 1, b"x"), {}),
            (Push("policy", 1, 0, 0, 1, b"x"), {}),
            (Push("policy", 1, 0, 1, 1, b""), {}),
            (Push("policy", 1, MAX_CHUNKS, MAX_CHUNKS, 1, b"x"), {}),
            (Snapshot(b"x" * (MAX_SNAPSHOT + 1)), {}),
            (Events(1, 1, 201, b"", None, "", b"x" * 49), {}),
            (Events(1, 1, 1, b"", None, "", b"x" * 48), {}),
            (Events(1, 1, 1, b"x", None, "", b"x" * 49), {}),
            (Events(1, 2**63, 1, b"", None, "", b"x" * 49), {}),
            (Events(0, 1, 1, b"", None, "", b"x" * 49), {}),
            (Status({"list": [0] * 2000}), {}),
            (Status({"text": "x" * (128 * 1024 - 3)}), {}),
            (Status({"x" * (128 * 1024 + 1): 1}), {}),
            (Status({"bytes": b"x"}), {}),
            (Status({"number": float("nan")}), {}),
            (Status({"deep": [[[[[[[[]]]]]]]]}), {}),
            (Cmd(1, 3601.0, "probe", {}), {}),
            (Cmd(1, 0.0, "probe", {}), {}),
            (GoAway("busy", "\ud800"), {}),
            (replace(HELLO, positions={str(number): POSITION for number in range(17)}), {}),
            (replace(HELLO, capabilities=("x",) * 65), {}),
            (replace(HELLO, name=""), {}),
        ]
        for message, changes in bad:
            message = replace(message, **changes)
            self.assertRaises(MessageError, encode_message, message)

    def test_the_usual_events_are_checked_like_the_others(self) -> None:
        usual: list[Any] = [7, 1, 1, 1, b"c" * 32, None, "", b"x" * 49]
        self.assertEqual(decode_message(encode(usual)), Events(*usual[1:]))
        wrong: list[tuple[int, tuple[Any, ...]]] = [
            (1, (0, True, 1.0, -1, None)),
            (2, (0, 2**63, True, "1")),
            (3, (0, 201, True, 2.0)),
            (4, (b"c" * 31, "c" * 32, None)),
            (5, (0, False, "", [])),
            (6, (None, b"", 0, "x" * 1025)),
            (7, (b"x" * 48, "x" * 49, b"x" * (MAX_BATCH_BYTES + 1))),
        ]
        for place, values in wrong:
            for value in values:
                changed = [*usual[:place], value, *usual[place + 1 :]]
                self.assertRaises(MessageError, decode_message, encode(changed))

    def test_a_refusal_names_message_and_field(self) -> None:
        for payload, said in (
            ([4, "policy", 0, [1, 2, b""]], "ACK: the field nonce is not a whole number from 1 to"),
            ([5, "policy", 1, "No", "", [1, 2, b""]], "NACK: the field code is not a word"),
            ([4, "policy", 1], "ACK has 2 fields instead of 3"),
            ([99], "a message has the type 99, which revision 1 does not know"),
        ):
            with self.assertRaises(MessageError) as caught:
                decode_message(encode(payload))
            self.assertIn(said, str(caught.exception))

    def test_a_greeting_fits_its_limit(self) -> None:
        """Whatever is in it."""
        hello = Hello(
            *(65_535, 65_535, "\U0001f600" * 64, "\U0001f600" * 256, "\U0001f600" * 64, ("x" * 40,) * 64),
            {f"{'x' * 38}{number:02}": Position(2**64 - 1, 2**64 - 1, b"d" * 32) for number in range(16)},
            Cursor(2**64 - 1, 2**63 - 1, bytes(32)),
        )
        self.assertEqual(decode_message(encode_message(hello)), hello)
        self.assertLess(len(message_frame(hello)), GREETING_LIMIT)
        welcome = Welcome(
            *(
                1,
                2**64 - 1,
                "\U0001f600" * 64,
                2**64 - 1,
                Cursor(2**64 - 1, 2**63 - 1, bytes(32)),
                10**6,
                2**28,
            ),
            *(600.0, 1800.0, ("x" * 40,) * 64),
        )
        self.assertLess(len(message_frame(welcome)), GREETING_LIMIT)


class SharedFrames(SynchronousTestCase):
    def test_an_envelope_is_cut_into_chunks(self) -> None:
        for size in (1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17, MAX_ENVELOPE):
            envelope = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            found = [
                decode_message(payload, revision)
                for revision in (0, 1)
                for each in push_frames("policy", 77, envelope)
                for payload in Framer(FRAME_LIMIT).feed(each)
            ]
            count = -(-size // CHUNK)
            self.assertEqual(len(found), 2 * count)
            for index, message in enumerate(found):
                assert isinstance(message, Push)
                self.assertEqual((message.stream, message.nonce), ("policy", 77))
                self.assertEqual((message.index, message.count, message.size), (index % count, count, size))
            chunks = [message.chunk for message in found if isinstance(message, Push)]
            self.assertEqual(b"".join(chunks), envelope * 2)

    def test_no_frames_are_made_that_nobody_takes(self) -> None:
        for envelope in (b"", b"x" * (MAX_ENVELOPE + 1)):
            self.assertRaises(MessageError, push_frames, "policy", 1, envelope)
        self.assertRaises(MessageError, snapshot_frame, b"x" * (MAX_SNAPSHOT + 1))

    def test_fields_are_in_the_order_of_the_classes(self) -> None:
        """What a class says first is first on the wire."""
        payload = msgpack.unpackb(encode_message(ACK))
        self.assertEqual(payload[1:], ["policy", 9, [2, 7, b"d" * 32]])
        self.assertEqual([each.name for each in fields(Ack)], ["stream", "nonce", "position"])

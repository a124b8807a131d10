"""Values as bytes: one form is written, everything of bounded size is read, and nothing else gets through."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract import codec
from defender.contract.codec import MAX_DEPTH, MAX_ITEMS, CodecError, decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=20)
    ),
    max_leaves=60,
)


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


class Encoding(SynchronousTestCase):
    @given(VALUES)
    def test_what_is_encoded_is_decoded(self, value: Any) -> None:
        data = encode(value)
        self.assertEqual(decode(data, canonical=True, max_depth=100), value)
        self.assertEqual(data, encode(decode(data, max_depth=100)))

    def test_the_bytes(self) -> None:
        for value, data in (
            (None, "c0"),
            (False, "c2"),
            (127, "7f"),
            (128, "cc80"),
            (-32, "e0"),
            (-33, "d0df"),
            (2**64 - 1, "cf" + "ff" * 8),
            (-(2**63), "d3" + "80" + "00" * 7),
            (1.5, "cb3ff8000000000000"),
            ("ä", "a2c3a4"),
            ("x" * 32, "d920" + "78" * 32),
            (b"", "c400"),
            ((1, [2]), "92019102"),
            ({"b": 1, "a": {}}, "82a16180a16201"),
        ):
            self.assertEqual(encode(value).hex(), data, repr(value))

    def test_keys_are_in_the_order_of_their_bytes(self) -> None:
        keys = ["\U0001f600", "\uffff", "z", "aa", "a", ""]
        data = encode(dict.fromkeys(keys))
        self.assertEqual(list(decode(data)), sorted(keys, key=str.encode))
        self.assertEqual(data, encode(dict.fromkeys(reversed(keys))))

    def test_what_is_no_value_is_not_encoded(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        for value in (
            *(
                2**64,
                -(2**63) - 1,
                float("nan"),
                float("inf"),
                "\ud800",
                object(),
                {1: 2},
                {b"a": 2},
                {None: 1},
            ),
            *(bytearray(b"x"), {1, 2}, [[object()]], {"a": {"b": {2: 3}}}, loop, msgpack.Timestamp(1, 2)),
        ):
            self.assertRaises(CodecError, encode, value)
            self.assertEqual(encode([1]), b"\x91\x01", "a failure leaves nothing behind")

    def test_large_values_leave_no_large_buffer(self) -> None:
        large = b"x" * (3 * 1024 * 1024)
        before = codec._pack
        self.assertEqual(decode(encode(large)), large)
        self.assertIsNot(codec._pack, before)


class Decoding(SynchronousTestCase):
    @given(st.binary(max_size=200))
    def test_any_bytes_give_a_value_or_our_error(self, data: bytes) -> None:
        try:
            value = decode(data)
        except CodecError:
            return
        encode(value)

    @given(
        st.lists(st.sampled_from([*range(0x80, 0xA0), *range(0xC0, 0xE0), 0, 0xFF]), max_size=60).map(bytes)
    )
    def test_heads_upon_heads_give_a_value_or_our_error(self, data: bytes) -> None:
        try:
            decode(data)
        except CodecError:
            pass

    @given(VALUES, st.data())
    def test_a_part_of_a_value_is_none(self, value: Any, drawn: st.DataObject) -> None:
        data = encode(value)
        cut = drawn.draw(st.integers(0, len(data) - 1))
        self.assertRaises(CodecError, decode, data[:cut], max_depth=100)
        self.assertRaises(CodecError, decode, data + b"\xc0", max_depth=100)

    def test_what_is_refused(self) -> None:
        for why, data in (
            ("nothing", b""),
            ("a type that is never used", b"\xc1"),
            ("an extension", msgpack.packb(msgpack.ExtType(1, b"abcd"))),
            ("a time", msgpack.packb(msgpack.Timestamp(1, 2))),
            ("a float of 32 bits", b"\xca" + struct.pack(">f", 1.5)),
            ("not a number", b"\xcb" + struct.pack(">d", float("nan"))),
            ("infinity", b"\xcb" + struct.pack(">d", float("-inf"))),
            ("text that is not UTF-8", b"\xa1\xff"),
            ("a surrogate", b"\xa3\xed\xa0\x80"),
            ("a key that is a number", b"\x81\x01\x02"),
            ("a key that is bytes", b"\x81\xc4\x01a\x02"),
            ("a key that is a list", b"\x81\x90\x02"),
            ("a key twice", b"\x82\xa1a\x01\xa1a\x02"),
            ("a key twice, further in", b"\x91\x82\xa1a\x01\xa1a\x01"),
            ("a length without bytes", b"\xc6\x00"),
            ("bytes beyond the end", b"\xc6\xff\xff\xff\xffabc"),
        ):
            with self.assertRaises(CodecError, msg=why):
                decode(data)

    def test_bombs_are_measured_and_not_built(self) -> None:
        for why, data in (
            ("a list of 4 billion", b"\xdd\xff\xff\xff\xff"),
            ("lists within lists, each of a million", b"\xdd\x00\x0f\x00\x00" * 1000),
            ("a map of 4 billion", b"\xdf\xff\xff\xff\xff\xc0"),
            ("depth", nested(100_000)),
            ("many small things", b"\x9f" + b"\xdd\x00\x00\xff\xff" * 15),
            ("a megabyte of empty lists", b"\xdd\x00\x10\x00\x00" + b"\x90" * 2**20),
        ):
            with self.assertRaises(CodecError, msg=why):
                decode(data)

    def test_the_bounds_are_exact(self) -> None:
        decode(nested(MAX_DEPTH))
        self.assertRaises(CodecError, decode, nested(MAX_DEPTH + 1))
        decode(nested(3), max_depth=3)
        self.assertRaises(CodecError, decode, nested(3), max_depth=2)
        self.assertRaises(CodecError, decode, b"\x90", max_depth=0)
        decode(encode([None] * MAX_ITEMS))
        self.assertRaises(CodecError, decode, encode([None] * (MAX_ITEMS + 1)))
        decode(encode([{"a": 1}, [2]]), max_items=4)
        self.assertRaises(CodecError, decode, encode([{"a": 1}, [2]]), max_items=3)

    def test_other_forms_of_a_value_are_not_canonical(self) -> None:
        for data in (
            b"\xcc\x01",
            b"\xd9\x01a",
            b"\xdc\x00\x01\x01",
            b"\x82\xa1b\x01\xa1a\x02",
            b"\xc5\x00\x01a",
        ):
            decode(data)
            self.assertRaises(CodecError, decode, data, canonical=True)

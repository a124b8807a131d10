"""The group extension: one value, one encoding."""

from __future__ import annotations

import json
import unicodedata
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.errors import IdentityError
from defender.contract.groups import (
    MAX_GROUPS_BYTES,
    GroupClaims,
    decode_groups,
    encode_groups,
)
from tests.fakes.authority import der_utf8

CANONICAL = '{"groups":["Dev team","ops"],"idp":"","mfa":false,"orig_exp":null,"sid":"","v":1}'

names = st.text(  # composed: a name written otherwise is refused
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cf", "Zs")), min_size=1, max_size=30
).map(partial(unicodedata.normalize, "NFC"))


class EncodingTests(SynchronousTestCase):
    """What is written."""

    def test_canonical_form(self) -> None:
        """Sorted groups, sorted keys, no white space: these very bytes."""
        self.assertEqual(encode_groups(["ops", "Dev team"]), der_utf8(CANONICAL.encode()))

    def test_all_claims(self) -> None:
        """The provider's claims are carried along."""
        der = encode_groups(["é"], idp="corp", sid="s-1", mfa=True, orig_exp=1790000000)
        self.assertEqual(decode_groups(der), GroupClaims(("é",), "corp", "s-1", True, 1790000000))
        self.assertIn("é".encode(), der)

    def test_refused_values(self) -> None:
        """What could not be read back is not written."""
        self.assertRaises(IdentityError, encode_groups, ["a", "a"])
        self.assertRaises(IdentityError, encode_groups, [""])
        self.assertRaises(IdentityError, encode_groups, ["a\n"])
        self.assertRaises(IdentityError, encode_groups, [" a"])
        self.assertRaises(IdentityError, encode_groups, ["a" * 257])
        self.assertRaises(IdentityError, encode_groups, [f"{number}" for number in range(257)])
        self.assertRaises(IdentityError, encode_groups, [f"{number:03}" + "x" * 100 for number in range(200)])
        self.assertRaises(IdentityError, encode_groups, [], orig_exp=-1)
        self.assertRaises(IdentityError, encode_groups, [], orig_exp=2**53)

    @given(
        st.sets(names, max_size=20),
        st.one_of(st.just(""), names),
        st.booleans(),
        st.one_of(st.none(), st.integers(0, 2**53 - 1)),
    )
    @settings(max_examples=200, deadline=None)
    def test_round_trip(self, groups: set[str], sid: str, mfa: bool, orig_exp: int | None) -> None:
        """What was written is read."""
        claims = decode_groups(encode_groups(groups, sid=sid, mfa=mfa, orig_exp=orig_exp))
        self.assertEqual(claims, GroupClaims(tuple(sorted(groups)), "", sid, mfa, orig_exp))


class RefusalTests(SynchronousTestCase):
    """What is not read."""

    def refused(self, der: bytes) -> str:
        error = self.assertRaises(IdentityError, decode_groups, der)
        self.assertEqual(error.check, "groups-extension")
        return str(error.detail)

    def refused_text(self, text: str) -> str:
        return self.refused(der_utf8(text.encode("utf-8", "surrogatepass")))

    def test_der(self) -> None:
        """Another type, a wrong or non-minimal length, bytes that follow."""
        good = encode_groups(["Dev team", "ops"])
        text = good[2:]
        self.assertEqual(len(good), 2 + len(text))
        for der in (
            b"",
            b"\x0c",
            b"\x0c\x00",
            b"\x13" + good[1:],  # PrintableString
            b"\x2c" + good[1:],  # constructed
            b"\x04" + bytes([len(good)]) + good,  # wrapped in an OCTET STRING
            good[:-1],
            good + b"\x00",
            good + good,
            b"\x0c\x81" + bytes([len(text)]) + text,
            b"\x0c\x82\x00" + bytes([len(text)]) + text,
            b"\x0c\x80" + text + b"\x00\x00",  # indefinite length
            b"\x0c\xff" + text,
        ):
            self.refused(der)

    def test_json_that_is_not_canonical(self) -> None:
        """The same value in other bytes."""
        for text in (
            CANONICAL.replace(":", ": ", 1),
            " " + CANONICAL,
            CANONICAL + "\n",
            "\ufeff" + CANONICAL,
            CANONICAL.replace("ops", "\\u006fps"),
            CANONICAL.replace('"v":1', '"v":1.0'),
            CANONICAL.replace('"v":1', '"v":1e0'),
            CANONICAL.replace('"v":1', '"v":1,"v":1'),
            CANONICAL.replace('"groups":', '"groups":["admins"],"groups":'),
            CANONICAL.replace('"Dev team","ops"', '"ops","Dev team"'),
            json.dumps(json.loads(CANONICAL), sort_keys=False),
            '{"v":1,"groups":["Dev team","ops"],"idp":"","mfa":false,"orig_exp":null,"sid":""}',
        ):
            self.refused_text(text)

    def test_other_values(self) -> None:
        """Other versions, keys and types."""
        for text in (
            CANONICAL.replace('"v":1', '"v":2'),
            CANONICAL.replace('"v":1', '"v":true'),
            CANONICAL.replace('"v":1', '"v":"1"'),
            CANONICAL.replace(',"v":1', ""),
            CANONICAL.replace(',"v":1', ',"v":1,"x":0'),
            CANONICAL.replace('"sid":"",', ""),
            CANONICAL.replace('["Dev team","ops"]', '"ops"'),
            CANONICAL.replace('["Dev team","ops"]', "null"),
            CANONICAL.replace('"ops"', "7"),
            CANONICAL.replace('"ops"', '["ops"]'),
            CANONICAL.replace('"ops"', '"Dev team"'),
            CANONICAL.replace('"ops"', '""'),
            CANONICAL.replace('"ops"', '"o\\nps"'),
            CANONICAL.replace('"ops"', '"\\ud800"'),
            CANONICAL.replace('"ops"', '"\u202eops"'),
            CANONICAL.replace("false", "0"),
            CANONICAL.replace("null", "1.5"),
            CANONICAL.replace("null", "NaN"),
            CANONICAL.replace("null", "-1"),
            CANONICAL.replace("null", "9" * 5000),
            CANONICAL.replace("null", "9" * 4000),
            CANONICAL.replace('"idp":""', '"idp":null'),
            "[]",
            "1",
            "null",
            "",
            "[" * 16000,
            '{"v":' + "[" * 7000 + "]" * 7000 + "}",
        ):
            self.refused_text(text)

    def test_bad_text(self) -> None:
        """Bytes that are not UTF-8, overlong forms and surrogates included."""
        for content in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", CANONICAL.encode("utf-16")):
            self.refused(der_utf8(content))

    def test_too_large(self) -> None:
        """The limit counts before anything is parsed."""
        self.assertIn("limit", self.refused(der_utf8(b"[" * (MAX_GROUPS_BYTES + 1))))
        self.assertIn("limit", self.refused(der_utf8(b" " * 1_000_000)))

    @given(st.binary(max_size=200))
    @settings(max_examples=100, deadline=None)
    def test_noise(self, content: bytes) -> None:
        """Noise is refused and nothing else is raised."""
        self.refused(content)
        self.refused(der_utf8(content))

    @given(st.integers(0, len(CANONICAL)), st.integers(0, 255), st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_one_byte_off(self, position: int, value: int, insert: bool) -> None:
        """A changed byte gives another value in its own canonical form, or is refused."""
        der = bytearray(encode_groups(["Dev team", "ops"]))
        position %= len(der)
        der[position : position + (0 if insert else 1)] = bytes([value])
        try:
            claims = decode_groups(bytes(der))
        except IdentityError as error:
            self.assertNotIn("\n", str(error))
            return
        self.assertEqual(
            encode_groups(
                claims.groups, idp=claims.idp, sid=claims.sid, mfa=claims.mfa, orig_exp=claims.orig_exp
            ),
            bytes(der),
        )

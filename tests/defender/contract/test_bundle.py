"""Bundles: what is accepted, and the code of every refusal."""

from __future__ import annotations

import json
import struct
from hashlib import sha256
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.bundle import SKEW, BundleError
from defender.contract.canonical import canonical
from defender.contract.envelope import (
    BUNDLE_TYPE,
    MAX_ENVELOPE,
    ROOT_TYPE,
    SNAPSHOT_TYPE,
    Envelope,
    KeyRing,
    assemble,
    key_id,
    pae,
    payload_digest,
    read_envelope,
    seal,
    split_envelopes,
    verify,
)
from defender.contract.trust import STREAMS, ring_of
from tests.defender.contract.signing import (
    AGENT,
    DAY,
    DEFENDER,
    FLEET,
    NOW,
    OTHER_DEFENDER,
    OTHER_FLEET,
    ROOT,
    content_of,
    key,
    new_root,
    opened,
    position,
    signed,
    signer,
)


class RefusalCase(SynchronousTestCase):
    def refused(self, code: str, data: bytes, **arguments: Any) -> str:
        """Assert that opening fails with the code; returns the detail."""
        error = self.assertRaises(BundleError, opened, data, **arguments)
        self.assertEqual(error.code, code, error.detail)
        return str(error.detail)

    @staticmethod
    def payload(**changes: Any) -> bytes:
        """The payload of a lawful bundle as it is signed, with changes; ... takes a field away."""
        value = json.loads(read_envelope(signed(), BUNDLE_TYPE).payload)
        value.update(changes)
        return canonical({name: field for name, field in value.items() if field is not ...})

    @staticmethod
    def seal(payload: bytes) -> bytes:
        """Sign bytes that may be no bundle."""
        return seal(BUNDLE_TYPE, payload, [signer("bundle")])


class Opening(RefusalCase):
    def test_every_stream(self) -> None:
        for stream in STREAMS:
            data = signed(stream, 7, author="bruce", change_ref="T-1", expires_at=NOW + 1, min_agent="0.1")
            bundle = opened(data, stream=stream)
            self.assertEqual((bundle.stream, bundle.version, bundle.content), (stream, 7, content_of(stream)))
            self.assertEqual((bundle.author, bundle.change_ref), ("bruce", "T-1"))
            self.assertEqual(bundle.position, position(data, 7))
            self.assertEqual(bundle.signers, (key_id(signer("bundle").public),))

    def test_versions_have_64_bits(self) -> None:
        self.assertEqual(opened(signed(version=2**64 - 1)).version, 2**64 - 1)
        self.refused(
            "malformed", self.seal(self.payload(version=...)[:-1] + b',"version":18446744073709551616}')
        )

    def test_those_it_is_for(self) -> None:
        both = tuple(sorted((DEFENDER, OTHER_DEFENDER)))
        self.assertEqual(opened(signed(audience=both)).audience, both)

    def test_the_digest_is_of_the_payload_and_not_of_the_signatures(self) -> None:
        """A bundle that is signed again with another key is the same bundle."""
        root = new_root(bundle=ring_of([signer("bundle"), signer("second")]))
        one, other = signed(), signed(by=("second",))
        self.assertNotEqual(one, other)
        self.assertEqual(opened(one, root).position, opened(other, root).position)


class Tampering(RefusalCase):
    def test_every_byte_counts(self) -> None:
        data = signed()
        kind = len(BUNDLE_TYPE)
        payload_at = len(data) - len(read_envelope(data, BUNDLE_TYPE).payload)
        for at in range(len(data)):
            for bit in (0x01, 0x80):
                bad = bytearray(data)
                bad[at] ^= bit
                error = self.assertRaises(BundleError, opened, bytes(bad))
                if at < 10:
                    codes = {"malformed", "unsigned"}
                elif at < 10 + kind:
                    codes = {"wrong-type"}
                elif at < 10 + kind + 32:
                    codes = {"wrong-key"}
                else:
                    codes = {"bad-signature"}
                self.assertIn(error.code, codes, f"byte {at} of {len(data)}, payload at {payload_at}")

    def test_every_length_counts(self) -> None:
        data = signed()
        for at in range(len(data)):
            self.refused("malformed", data[:at])
        self.refused("malformed", data + b"\0")
        self.refused("malformed", data + data)

    def test_a_signature_has_one_form(self) -> None:
        """S + L is the same scalar, and no signature (RFC 8032, 5.1.7)."""
        envelope = read_envelope(signed(), BUNDLE_TYPE)
        ((keyid, signature),) = envelope.signatures
        order = 2**252 + 27742317777372353535851937790883648493
        scalar = int.from_bytes(signature[32:], "little") + order
        other = signature[:32] + scalar.to_bytes(32, "little")
        self.refused("bad-signature", assemble(Envelope(BUNDLE_TYPE, envelope.payload, ((keyid, other),))))

    def test_a_signature_over_the_payload_alone_is_none(self) -> None:
        payload = self.payload()
        keyid = key_id(signer("bundle").public)
        entry = (keyid, key("bundle").sign(payload))
        self.refused("bad-signature", assemble(Envelope(BUNDLE_TYPE, payload, (entry,))))

    def test_no_type_stands_for_another(self) -> None:
        payload = self.payload()
        for other in (ROOT_TYPE, SNAPSHOT_TYPE):
            self.refused("wrong-type", seal(other, payload, [signer("bundle")]))
        data = bytearray(seal(SNAPSHOT_TYPE, payload, [signer("bundle")]))
        moved = Envelope(BUNDLE_TYPE, payload, read_envelope(bytes(data), SNAPSHOT_TYPE).signatures)
        self.refused("bad-signature", assemble(moved))


class Keys(RefusalCase):
    def test_a_key_that_is_not_listed(self) -> None:
        self.refused("wrong-key", signed(by=("stranger",)))

    def test_the_keys_of_other_roles(self) -> None:
        for role in ("root", "snapshot"):
            self.refused("wrong-key", signed(by=(role,)))

    def test_no_envelope_is_unsigned(self) -> None:
        self.assertEqual(
            self.assertRaises(BundleError, seal, BUNDLE_TYPE, self.payload(), []).code, "unsigned"
        )
        payload = self.payload()
        head = struct.pack(">4sBBI", b"DFE1", len(BUNDLE_TYPE), 0, len(payload))
        self.refused("unsigned", head + BUNDLE_TYPE.encode() + payload)

    def test_two_of_three(self) -> None:
        names = ("bundle", "second", "third")
        root = new_root(bundle=ring_of([signer(name) for name in names], 2))
        self.refused("threshold", signed(), root=root)
        self.assertEqual(opened(signed(by=("bundle", "third")), root).version, 1)
        self.assertEqual(opened(signed(by=names), root).version, 1)

    def test_one_key_does_not_count_twice(self) -> None:
        root = new_root(bundle=KeyRing((signer("bundle").public,) * 2, 2))
        self.refused("threshold", signed(), root=root)
        envelope = read_envelope(signed(), BUNDLE_TYPE)
        self.refused("malformed", assemble(Envelope(BUNDLE_TYPE, envelope.payload, envelope.signatures * 2)))

    def test_a_ring_without_a_threshold_is_not_open(self) -> None:
        envelope = read_envelope(signed(), BUNDLE_TYPE)
        ring = KeyRing((signer("bundle").public,), 0)
        self.assertEqual(len(verify(envelope, ring)), 1)
        self.assertRaises(BundleError, verify, envelope, ring, KeyRing((), 0))

    def test_every_signature_must_hold(self) -> None:
        """Also one more than is needed."""
        root = new_root(bundle=ring_of([signer("bundle"), signer("second")]))
        envelope = read_envelope(signed(by=("bundle", "second")), BUNDLE_TYPE)
        for which in (0, 1):
            entries = list(envelope.signatures)
            entries[which] = (entries[which][0], bytes(64))
            self.refused(
                "bad-signature", assemble(Envelope(BUNDLE_TYPE, envelope.payload, tuple(entries))), root=root
            )
        self.refused("wrong-key", signed(by=("bundle", "stranger")))

    def test_the_order_of_signatures_is_fixed(self) -> None:
        root = new_root(bundle=ring_of([signer("bundle"), signer("second")]))
        envelope = read_envelope(signed(by=("bundle", "second")), BUNDLE_TYPE)
        turned = Envelope(BUNDLE_TYPE, envelope.payload, envelope.signatures[::-1])
        self.refused("malformed", assemble(turned), root=root)


class Size(RefusalCase):
    def test_100_mib_are_refused_by_their_size(self) -> None:
        """Nothing is looked at: a frame that would be malformed, or unsigned, is too large before that."""
        for data in (bytes(100 * 1024 * 1024), signed().ljust(MAX_ENVELOPE + 1, b"\0")):
            self.refused("too-large", data)
            self.assertEqual(self.assertRaises(BundleError, split_envelopes, data, 1).code, "too-large")

    def test_none_is_made_that_nobody_takes(self) -> None:
        error = self.assertRaises(BundleError, self.seal, bytes(MAX_ENVELOPE))
        self.assertEqual(error.code, "too-large")

    def test_what_is_said_of_it_is_short(self) -> None:
        """A NACK has room for 1,024 characters, and escapes are longer than what they stand for."""
        detail = self.refused("invalid-field", self.seal(self.payload(**{"\x00" * 100_000: 1})))
        self.assertLess(len(detail), 1025)
        self.assertEqual(len(BundleError("x", "\x00" * 5000).detail), 1024)

    def test_lengths_that_lie(self) -> None:
        """A length of 4 GiB costs nothing."""
        data = bytearray(signed())
        data[6:10] = b"\xff\xff\xff\xff"
        self.refused("malformed", bytes(data))
        self.assertEqual(payload_digest(bytes(data)), b"")


class Bombs(RefusalCase):
    """What a signer, or whoever stole a key, could send to use up memory or the stack."""

    def test_depth(self) -> None:
        for payload in (
            b"[" * 150_000,
            b"[" * 100_000 + b"]" * 100_000,
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        ):
            self.refused("too-complex", self.seal(payload))

    def test_width(self) -> None:
        for unit in (b"[],", b"{},", b"0,", b'{"a":0},', b'"",'):
            count = (MAX_ENVELOPE - 4096) // len(unit)
            self.refused("too-complex", self.seal(b"[" + unit * count + b"0]"))
        for unit in (b"[],", b"{},", b'{"a":0},'):
            self.refused("too-complex", self.seal(b"[" + unit * 200_000 + b"0]"))

    def test_numbers(self) -> None:
        for number in (b"9" * 5000, b"1e999999999", b"-1", b"1.0", b"1E2", b"NaN", b"Infinity", b"-0"):
            self.refused("malformed", self.seal(b'{"schema":' + number + b"}"))

    def test_msgpack(self) -> None:
        """Maps and arrays of 4 billion entries, strings of 4 GiB, extensions: not JSON, signed or not."""
        for payload in (
            b"\xdf\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc9\xff\xff\xff\xff\x01",
            b"\x91" * 100_000,
        ):
            self.refused("malformed", self.seal(payload))
            self.refused("malformed", payload)


class Form(RefusalCase):
    def test_one_value_has_one_form(self) -> None:
        good = self.payload()
        self.assertEqual(opened(self.seal(good)).version, 1)
        for bad in (
            b" " + good,
            good + b"\n",
            good.replace(b":", b": ", 1),
            good.replace(b'"author":""', b'"author":"","author":""'),
            good.replace(b'"author":""', b'"author":"\\u0061"'),
            good.replace(b'"author":""', b'"author":"\\/"'),
            b'{"version":1,' + good[1:].replace(b',"version":1', b""),
            good.replace(b'"version":1', b'"version":01'),
            good.replace(b'"author":""', b'"author":"\xff"'),
            good.replace(b'"author":""', b'"author":"\\ud800"'),
            good[:-1],
            b"",
            b"\xef\xbb\xbf" + good,
        ):
            self.assertNotEqual(bad, good)
            self.refused("malformed", self.seal(bad))

    def test_not_an_object(self) -> None:
        for payload in (b"[]", b"1", b"null", b'"schema"', b"{}", b'{"schema":"1"}', b'{"schema":true}'):
            self.refused("invalid-field", self.seal(payload))

    def test_a_schema_of_the_future(self) -> None:
        """Whatever else has changed in it: the number is looked at first."""
        self.refused("schema", self.seal(self.payload(schema=2)))
        self.refused("schema", self.seal(b'{"new":[],"schema":99}'))
        self.refused("schema", self.seal(self.payload(schema=0)))

    def test_every_field_is_needed_and_no_other(self) -> None:
        for name in json.loads(self.payload()):
            if name != "schema":
                self.assertIn(name, self.refused("invalid-field", self.seal(self.payload(**{name: ...}))))
        self.assertIn("extra", self.refused("invalid-field", self.seal(self.payload(extra=1))))

    def test_every_field_is_checked(self) -> None:
        wrong: dict[str, tuple[Any, ...]] = {
            "fleet": (1, "", FLEET.upper(), "{" + FLEET + "}"),
            "trust_domain": (None, "", "x" * 256),
            "stream": ("acl", "", None, []),
            "audience": ([], "all", [1], [DEFENDER, DEFENDER], [OTHER_DEFENDER, DEFENDER], ["x"], {}, None),
            "key_epoch": (0, True, "1", None),
            "version": (0, "1", False, None),
            "prev_digest": ("0" * 63, "A" * 64, None, 0),
            "issued_at": (2**53 + 1, None, "now"),
            "not_before": (2**53 + 1, None),
            "stale_after": (0, None),
            "expires_at": (2**53 + 1, "never"),
            "min_agent": ("v1", "1.2.3.4.5", None, "1" * 33),
            "author": ("a\nb", "\x1b[2J", "x" * 257, None),
            "change_ref": ("a\tb", None),
            "content_digest": ("", None, 1),
            "content": ([], None, "text"),
        }
        for name, values in wrong.items():
            for value in values:
                detail = self.refused("invalid-field", self.seal(self.payload(**{name: value})))
                self.assertIn(name, detail)
                self.assertTrue(detail.isprintable())

    def test_the_content_has_its_digest(self) -> None:
        self.refused("content-mismatch", self.seal(self.payload(content={"name": "x", "text": "y"})))
        digest = sha256(canonical(content_of("policy"))).hexdigest()
        self.assertIn(digest.encode(), self.payload())


class Addresses(RefusalCase):
    def test_another_fleet(self) -> None:
        self.refused("foreign-fleet", signed(fleet=OTHER_FLEET))
        self.refused("foreign-fleet", signed(trust_domain="other.fleet"))

    def test_another_defender(self) -> None:
        detail = self.refused("foreign-defender", signed(audience=(OTHER_DEFENDER,)))
        self.assertNotIn(OTHER_DEFENDER, detail)

    def test_another_stream(self) -> None:
        self.refused("wrong-stream", signed("locks"))
        self.refused("wrong-stream", signed("policy"), stream="locks")

    def test_only_the_root_raises_the_epoch(self) -> None:
        self.refused("epoch-ahead", signed(key_epoch=2))
        self.refused("epoch-retired", signed(), root=new_root(key_epoch=2))

    def test_the_minimum_of_the_root(self) -> None:
        root = new_root(minimum={"policy": 10})
        self.refused("below-minimum", signed(version=9), root=root)
        self.assertEqual(opened(signed(version=10), root).version, 10)

    def test_a_defender_that_is_too_old(self) -> None:
        self.refused("agent-too-old", signed(min_agent="0.1.1"))
        self.refused("agent-too-old", signed(min_agent="1"))
        for lowest in ("", "0", "0.0.9", "0.1", AGENT, "0.1.0.0"):
            self.assertEqual(opened(signed(min_agent=lowest)).min_agent, lowest)
        self.assertEqual(opened(signed(min_agent="0.10"), agent_version="0.10.0.dev3").version, 1)


class Times(RefusalCase):
    def test_expired(self) -> None:
        self.refused("expired", signed(expires_at=NOW))
        self.assertEqual(opened(signed(expires_at=NOW + 1)).expires_at, NOW + 1)

    def test_not_yet_valid(self) -> None:
        self.refused("not-yet-valid", signed(not_before=NOW + SKEW + 1))
        self.refused("not-yet-valid", signed(issued_at=NOW + SKEW + 1))
        self.assertEqual(opened(signed(not_before=NOW + SKEW, issued_at=NOW + SKEW)).version, 1)

    def test_what_was_accepted_is_read_again_at_any_time(self) -> None:
        """What expiry means for what is in force is not for this check."""
        data = signed(expires_at=NOW)
        self.assertEqual(opened(data, now=None).expires_at, NOW)
        self.assertEqual(opened(signed(not_before=NOW + DAY), now=None).version, 1)


class AnyBytes(RefusalCase):
    @given(st.binary(max_size=400))
    def test_bytes(self, data: bytes) -> None:
        self.assertRaises(BundleError, opened, data)
        self.assertRaises(BundleError, opened, b"DFE1" + data)
        payload_digest(b"DFE1" + data)

    @settings(max_examples=200)
    @given(st.binary(max_size=200))
    def test_bytes_that_are_signed(self, payload: bytes) -> None:
        self.assertRaises(BundleError, opened, self.seal(payload))

    _values: Any = st.recursive(
        st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    )

    @settings(max_examples=200)
    @given(st.sampled_from(sorted(json.loads(RefusalCase.payload()))), _values)
    def test_any_value_of_any_field(self, name: str, value: Any) -> None:
        """Opened or refused; nothing else is raised, whatever a signer signs."""
        try:
            opened(self.seal(self.payload(**{name: value})))
        except BundleError as error:
            self.assertTrue(str(error).isprintable())


class Encoding(SynchronousTestCase):
    def test_the_encoding_that_is_signed_is_that_of_dsse(self) -> None:
        """The example of DSSE's protocol.md."""
        self.assertEqual(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world",
        )

    def test_envelopes_in_a_row(self) -> None:
        rows = [signed(version=number) for number in (1, 2, 3)]
        self.assertEqual(split_envelopes(b"".join(rows), 3), rows)
        for bad in (b"", rows[0][:-1], rows[0] + b"D", b"".join(rows) + rows[0]):
            self.assertEqual(self.assertRaises(BundleError, split_envelopes, bad, 3).code, "malformed")

    def test_the_root_is_of_this_fleet(self) -> None:
        self.assertEqual((ROOT.fleet, ROOT.version), (FLEET, 1))

    def test_the_digest_of_the_content_is_of_its_canonical_form(self) -> None:
        for stream in STREAMS:
            content = content_of(stream)
            payload = read_envelope(signed(stream, author='{"content":{}}'), BUNDLE_TYPE).payload
            value = json.loads(payload)
            self.assertEqual(value["content_digest"], sha256(canonical(content)).hexdigest())
            self.assertEqual(
                opened(seal(BUNDLE_TYPE, payload, [signer("bundle")]), stream=stream).content, content
            )

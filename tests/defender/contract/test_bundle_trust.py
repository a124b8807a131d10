"""Root documents: who may sign what, and how that changes hands."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.bundle import BundleError
from defender.contract.canonical import canonical
from defender.contract.envelope import ROOT_TYPE, Envelope, assemble, read_envelope, seal
from defender.contract.trust import (
    MAX_ROOT,
    MAX_ROOTS,
    Root,
    first_root,
    load_chain,
    newer_roots,
    next_root,
    ring_of,
    sign_root,
)
from tests.defender.contract.signing import (
    FIRST,
    NOW,
    OTHER_FLEET,
    ROOT,
    new_root,
    signed,
    signed_root,
    signer,
)

SECOND = new_root(version=2, root=ring_of([signer("new root")]))


class RootCase(SynchronousTestCase):
    def refused(self, code: str, call: Any, *arguments: Any) -> None:
        error = self.assertRaises(BundleError, call, *arguments)
        self.assertEqual(error.code, code, error.detail)


class FirstRoot(RootCase):
    def test_says_what_was_signed(self) -> None:
        root = new_root(minimum={"policy": 3, "locks": 2**64 - 1}, key_epoch=4)
        found = first_root(signed_root(root))
        self.assertEqual(
            (found.fleet, found.version, found.key_epoch, found.issued_at, found.minimum),
            (root.fleet, 1, 4, root.issued_at, root.minimum),
        )
        self.assertEqual((found.root, found.bundle, found.snapshot), (root.root, root.bundle, root.snapshot))

    def test_every_byte_counts(self) -> None:
        for at in range(len(FIRST)):
            bad = bytearray(FIRST)
            bad[at] ^= 0x01
            self.assertRaises(BundleError, first_root, bytes(bad))
            self.assertRaises(BundleError, first_root, FIRST[:at])

    def test_is_signed_by_its_own_keys(self) -> None:
        self.refused("wrong-key", first_root, signed_root(new_root(), "stranger"))
        self.refused("wrong-key", first_root, signed_root(new_root(), "root", "stranger"))
        two = new_root(root=ring_of([signer("root"), signer("second")], 2))
        self.refused("threshold", first_root, signed_root(two))
        self.assertEqual(first_root(signed_root(two, "root", "second")).root.threshold, 2)

    def test_is_no_bundle(self) -> None:
        self.refused("wrong-type", first_root, signed(by=("root",)))

    def test_is_small(self) -> None:
        self.refused("too-large", first_root, FIRST.ljust(MAX_ROOT + 1, b"\0"))

    def test_fields(self) -> None:
        value = json.loads(read_envelope(FIRST, ROOT_TYPE).payload)
        ring = value["roles"]["root"]
        other = signer("second").public.hex()
        two = sorted([ring["keys"][0], other])
        for name, bad in (
            ("fleet", "x"),
            ("trust_domain", "Not A Domain"),
            ("version", 0),
            ("key_epoch", 0),
            ("issued_at", -1),
            ("minimum", []),
            ("minimum", {"acl": 1}),
            ("minimum", {"policy": "1"}),
            ("roles", {"root": ring, "bundle": ring}),
            ("roles", {"root": ring, "bundle": ring, "snapshot": {"keys": [], "threshold": 1}}),
            ("roles", {"root": ring, "bundle": ring, "snapshot": {**ring, "threshold": 0}}),
            ("roles", {"root": ring, "bundle": ring, "snapshot": {**ring, "threshold": 2}}),
            ("roles", {"root": ring, "bundle": ring, "snapshot": {"keys": two[::-1], "threshold": 1}}),
            ("roles", {"root": ring, "bundle": ring, "snapshot": {"keys": [other] * 2, "threshold": 2}}),
            ("roles", {"root": ring, "bundle": ring, "snapshot": {"keys": ["00"], "threshold": 1}}),
            ("extra", 1),
        ):
            payload = canonical({**value, name: bad})
            code = "malformed" if bad == -1 else "invalid-field"
            self.refused(code, first_root, seal(ROOT_TYPE, payload, [signer("root")]))
        payload = canonical({**value, "schema": 2, "more": 1})
        self.refused("schema", first_root, seal(ROOT_TYPE, payload, [signer("root")]))

    def test_none_is_made_that_nobody_takes(self) -> None:
        self.refused("invalid-field", sign_root, new_root(version=0), [signer("root")])
        self.refused("unsigned", sign_root, new_root(), [])

    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        self.assertRaises(BundleError, first_root, data)
        self.assertRaises(BundleError, first_root, seal(ROOT_TYPE, data, [signer("root")]))
        self.assertRaises(BundleError, next_root, ROOT, seal(ROOT_TYPE, data, [signer("root")]))
        self.assertRaises(BundleError, load_chain, data)


class Rotation(RootCase):
    def test_signed_by_old_and_new(self) -> None:
        found = next_root(ROOT, signed_root(SECOND, "root", "new root"))
        self.assertEqual((found.version, found.root), (2, SECOND.root))

    def test_signed_by_old_alone(self) -> None:
        self.refused("threshold", next_root, ROOT, signed_root(SECOND, "root"))

    def test_signed_by_new_alone(self) -> None:
        """As any root of somebody else is."""
        self.refused("wrong-key", next_root, ROOT, signed_root(SECOND, "new root"))

    def test_signed_by_the_other_roles(self) -> None:
        for role in ("bundle", "snapshot"):
            self.refused("wrong-key", next_root, ROOT, signed_root(SECOND, role, "new root"))

    def test_no_other_signature(self) -> None:
        self.refused("wrong-key", next_root, ROOT, signed_root(SECOND, "root", "new root", "stranger"))

    def test_every_signature_must_hold(self) -> None:
        envelope = read_envelope(signed_root(SECOND, "root", "new root"), ROOT_TYPE)
        for which in (0, 1):
            entries = list(envelope.signatures)
            entries[which] = (entries[which][0], bytes(64))
            bad = assemble(Envelope(ROOT_TYPE, envelope.payload, tuple(entries)))
            self.refused("bad-signature", next_root, ROOT, bad)

    def test_thresholds_of_both(self) -> None:
        names = ("root", "second", "third")
        held = new_root(root=ring_of([signer(name) for name in names], 2))
        new = ("a", "b", "c")
        root = new_root(version=2, root=ring_of([signer(name) for name in new], 2))
        self.refused("threshold", next_root, held, signed_root(root, "root", "a", "b"))
        self.refused("threshold", next_root, held, signed_root(root, "root", "second", "a"))
        self.assertEqual(next_root(held, signed_root(root, "root", "third", "a", "c")).version, 2)

    def test_the_same_keys_sign_for_both(self) -> None:
        self.assertEqual(next_root(ROOT, signed_root(new_root(version=9))).version, 9)

    def test_never_back(self) -> None:
        held = first_root(signed_root(new_root(version=5, key_epoch=3)))
        for version in (1, 4, 5):
            self.refused(
                "older-version", next_root, held, signed_root(new_root(version=version, key_epoch=3))
            )
        self.refused("epoch-retired", next_root, held, signed_root(new_root(version=6, key_epoch=2)))
        early = new_root(version=6, key_epoch=3, issued_at=held.issued_at - 1)
        self.refused("older-version", next_root, held, signed_root(early))

    def test_of_the_same_fleet(self) -> None:
        """Two fleets may have one root key."""
        for changes in ({"fleet": OTHER_FLEET}, {"trust_domain": "other.fleet"}):
            self.refused("foreign-fleet", next_root, ROOT, signed_root(new_root(version=2, **changes)))

    def test_unsigned_documents_are_not_decoded(self) -> None:
        """A later root is not even read before the old keys have signed it."""
        self.refused("wrong-key", next_root, ROOT, seal(ROOT_TYPE, b"[" * 5000, [signer("stranger")]))
        self.refused("too-complex", next_root, ROOT, seal(ROOT_TYPE, b"[" * 5000, [signer("root")]))
        held = new_root(root=ring_of([signer("root"), signer("second")], 2))
        self.refused("threshold", next_root, held, seal(ROOT_TYPE, b"[" * 5000, [signer("root")]))


class Chains(RootCase):
    def setUp(self) -> None:
        third = new_root(version=3, root=ring_of([signer("newest root")]), issued_at=NOW)
        self.frames = [
            FIRST,
            signed_root(SECOND, "root", "new root"),
            signed_root(third, "new root", "newest root"),
        ]

    def root(self, count: int) -> Root:
        return load_chain(b"".join(self.frames[:count]))

    def test_every_link_is_verified(self) -> None:
        self.assertEqual([self.root(count).version for count in (1, 2, 3)], [1, 2, 3])
        self.refused("wrong-key", load_chain, self.frames[0] + self.frames[2])
        self.refused("wrong-key", load_chain, self.frames[1] + self.frames[0])
        self.refused("malformed", load_chain, b"")
        data = b"".join(self.frames)
        for at in range(0, len(data), 7):
            bad = bytearray(data)
            bad[at] ^= 0x10
            self.assertRaises(BundleError, load_chain, bytes(bad))

    def test_whatever_root_is_held_the_newest_is_reached(self) -> None:
        for count in (1, 2, 3):
            found = newer_roots(self.root(count), self.frames)
            self.assertEqual([root.version for root, _ in found], list(range(count + 1, 4)))
        self.assertEqual(newer_roots(ROOT, []), [])

    def test_a_chain_that_does_not_reach(self) -> None:
        self.refused("wrong-key", newer_roots, ROOT, self.frames[2:])
        self.refused("wrong-key", newer_roots, self.root(3), self.frames[:1])

    def test_a_chain_has_an_end(self) -> None:
        self.refused("malformed", load_chain, FIRST * (MAX_ROOTS + 1))

"""The contents of the streams: what the controller builds, the defender reads, and nothing else."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.bundle import BundleError
from defender.contract.canonical import canonical, read_canonical
from defender.contract.contents import (
    LocksContent,
    ModeContent,
    PolicyContent,
    TrustContent,
    locks_content,
    mode_content,
    policy_content,
    read_content,
    trust_content,
)
from defender.contract.locks import Lock
from tests.defender.contract.signing import (
    AUTHORITIES,
    FIRST,
    POLICY,
    authority,
    content_of,
    opened,
    signed,
)


class ContentCase(SynchronousTestCase):
    def read(self, stream: str, value: dict[str, Any]) -> Any:
        """Read a content as it comes out of a bundle."""
        return read_content(stream, read_canonical(canonical(value)))

    def refused(self, stream: str, value: Any) -> str:
        error = self.assertRaises(BundleError, read_content, stream, value)
        self.assertEqual(error.code, "content-refused")
        self.assertTrue(error.detail.isprintable())
        return str(error.detail)


class Policies(ContentCase):
    def test_a_policy(self) -> None:
        self.assertEqual(self.read("policy", policy_content("main", POLICY)), PolicyContent("main", POLICY))

    def test_one_that_does_not_load_says_where(self) -> None:
        detail = self.refused("policy", policy_content("main", POLICY.replace("allow", "perhaps")))
        self.assertIn("main:5:", detail)

    def test_fields(self) -> None:
        for bad in (
            {},
            {"name": "x"},
            {"name": "", "text": POLICY},
            {"name": "a\nb", "text": POLICY},
            {"name": "x", "text": ""},
            {"name": "x", "text": None},
            {"name": "x", "text": "a" * (1024 * 1024 + 1)},
            {"name": "x", "text": POLICY, "more": 1},
        ):
            self.refused("policy", bad)


class Locks(ContentCase):
    def test_all_of_them(self) -> None:
        locks = [Lock("user", "bruce"), Lock("serial", "7f", "CN=x"), Lock("group", "Dev, Ops")]
        found = self.read("locks", locks_content(locks))
        self.assertIsInstance(found, LocksContent)
        self.assertEqual(found.locks.locks, frozenset(locks))
        self.assertEqual(self.read("locks", locks_content([])).locks.locks, frozenset())

    def test_100000_of_them_fit(self) -> None:
        locks = [Lock("serial", f"{number + 1:040x}", "CN=Users,O=Fleet") for number in range(100_000)]
        bundle = opened(signed("locks", content=locks_content(locks)), stream="locks")
        self.assertEqual(len(read_content("locks", bundle.content).locks.locks), 100_000)  # type: ignore[union-attr]

    def test_what_is_not_understood_is_not_ignored(self) -> None:
        lock = {"kind": "user", "value": "bruce", "issuer": ""}
        lists: tuple[dict[str, Any], ...] = (
            {},
            {"locks": {}},
            {"locks": [1]},
            {"locks": [{**lock, "kind": "planet"}]},
            {"locks": [{**lock, "value": ""}]},
            {"locks": [{**lock, "until": 1}]},
            {"locks": [lock], "more": []},
            {"locks": [lock] * 100_001},
        )
        for bad in lists:
            self.refused("locks", bad)


class Modes(ContentCase):
    def test_every_mode(self) -> None:
        for mode in ("none", "unix", "tcp", "unix+tcp"):
            self.assertEqual(self.read("mode", mode_content(mode, 600)), ModeContent(mode, 600))
        self.assertEqual(self.read("mode", mode_content("tcp")), ModeContent("tcp", None))

    def test_fields(self) -> None:
        for bad in (
            mode_content("http"),
            mode_content("tcp", 8 * 86400),
            mode_content("tcp", -1),
            {"listener": "tcp"},
            {"listener": "tcp", "drain": "10m"},
            {"listener": ["tcp"], "drain": 0},
            {"listener": "tcp", "drain": None, "x": 0},
        ):
            self.refused("mode", bad)


class Trust(ContentCase):
    def test_authorities_and_documents(self) -> None:
        digest = sha256(FIRST).digest()
        found = self.read("trust", content_of("trust", [FIRST]))
        self.assertIsInstance(found, TrustContent)
        self.assertEqual(found.documents, (digest,))
        self.assertEqual(found.user, tuple(AUTHORITIES["user"]))
        self.assertEqual(found.fleet, tuple(AUTHORITIES["fleet"]))
        self.assertEqual(found.root, tuple(AUTHORITIES["root"]))

    def test_a_certificate_that_is_no_authority(self) -> None:
        leaf = authority("leaf", is_authority=False)
        self.assertIn(
            "not an authority's", self.refused("trust", trust_content([], **{**AUTHORITIES, "user": [leaf]}))
        )

    def test_no_authority_is_in_two_lists(self) -> None:
        """A defender's certificate must not open a listener to users."""
        both = {**AUTHORITIES, "user": AUTHORITIES["fleet"]}
        self.assertIn("twice", self.refused("trust", trust_content([], **both)))

    def test_fields(self) -> None:
        good = content_of("trust")
        pem = AUTHORITIES["user"][0]
        for bad in (
            {},
            {**good, "documents": ["00"]},
            {**good, "documents": ["0" * 64] * 65},
            {**good, "authorities": {"root": [pem]}},
            {**good, "authorities": {**good["authorities"], "user": []}},
            {**good, "authorities": {**good["authorities"], "user": [1]}},
            {**good, "authorities": {**good["authorities"], "user": ["no PEM"]}},
            {**good, "authorities": {**good["authorities"], "user": [pem + AUTHORITIES["root"][0]]}},
            {**good, "authorities": {**good["authorities"], "user": ["é" + pem]}},
            {**good, "authorities": {**good["authorities"], "user": [pem * 100]}},
            {**good, "authorities": {**good["authorities"], "other": []}},
            {**good, "more": 1},
        ):
            self.refused("trust", bad)

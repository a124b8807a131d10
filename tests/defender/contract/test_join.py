"""What a host and the controller say to each other: messages, signing requests, and what a host believes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.custody import new_private_key
from defender.contract.codec import encode
from defender.contract.join import (
    MAX_REQUEST,
    Answer,
    Joined,
    JoinError,
    JoinRequest,
    Refused,
    RenewRequest,
    Request,
    Waiting,
    check_defender_name,
    check_joined,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    read_csr,
)
from defender.contract.join_token import pin_of
from tests.fakes.authority import TestAuthority
from tests.fakes.fleet import DEFENDER

PKI = TestAuthority()
VECTORS = Path(__file__).parents[2] / "data" / "join.json"
TOKEN = "aaqeayeaudaocajb"
REQUEST = JoinRequest(token=TOKEN, secret=bytes(20), name="web1", csr=b"csr", hosts=("web1",), agent="1.0")


_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def csr_of(key: Any, common_name: str = "root") -> bytes:
    """A signing request that asks for more than a key."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


class MessageTests(SynchronousTestCase):
    """One frame each way."""

    REQUESTS: tuple[Request, ...] = (
        REQUEST,
        replace(REQUEST, server_csr=b"another", hosts=(), agent=""),
        RenewRequest(certificate=b"old", proof=b"p", csr=b"c", hosts=("a", "b")),
    )
    ANSWERS: tuple[Answer, ...] = (
        Joined(DEFENDER, "web1", "defender.fleet", (b"a", b"b"), (b"r",), (b"b",), (b"c",), b"t", ("x",)),
        Joined(DEFENDER, "web1", "defender.fleet", (b"a", b"b"), (b"r",), (b"b",)),
        Waiting(10, "an administrator has to agree"),
        Refused("token-used", "this join token was used"),
        Refused("rate", "too many", 5),
    )

    def test_there_and_back(self) -> None:
        for request in self.REQUESTS:
            self.assertEqual(decode_request(encode_request(request)), request)
        for answer in self.ANSWERS:
            self.assertEqual(decode_answer(encode_answer(answer)), answer)

    def test_secrets_are_not_shown(self) -> None:
        for message in (*self.REQUESTS, *self.ANSWERS):
            self.assertNotIn(repr(bytes(20)), repr(message))
            self.assertNotIn("secret", repr(message))
        self.assertNotIn(repr(bytes(20)), str(REQUEST))

    def test_what_may_be_missing_or_unknown(self) -> None:
        """An older peer leaves out what it does not know, a younger one adds."""
        fields = {"token": TOKEN, "secret": bytes(20), "name": "web1", "csr": b"csr"}
        request = decode_request(encode(["join", {**fields, "zone": {"far": [1, 2]}}]))
        self.assertEqual(request, replace(REQUEST, hosts=(), agent=""))
        for key in fields:
            with self.assertRaises(JoinError) as caught:
                decode_request(encode(["join", {k: v for k, v in fields.items() if k != key}]))
            self.assertIn(f"`{key}` is missing", str(caught.exception))

    def test_requests_that_are_none(self) -> None:
        fields = {"token": TOKEN, "secret": bytes(20), "name": "web1", "csr": b"csr"}
        for changes in (
            {"token": "short"},
            {"token": 7},
            {"secret": bytes(19)},
            {"secret": "x" * 20},
            {"name": ""},
            {"name": "a\nb"},
            {"name": "x" * 65},
            {"name": "ü" * 33},
            {"name": " web1"},
            {"csr": b""},
            {"csr": bytes(4097)},
            {"server_csr": "x"},
            {"hosts": "web1"},
            {"hosts": ["a"] * 33},
            {"hosts": [""]},
            {"hosts": ["x" * 256]},
            {"agent": "x" * 65},
            {"agent": "\x1b[2J"},
        ):
            with self.assertRaises(JoinError) as caught:
                decode_request(encode(["join", {**fields, **changes}]))
            self.assertIn(caught.exception.code, ("request", "name"), changes)

    def test_frames_that_are_none(self) -> None:
        for value in (
            None,
            7,
            [],
            ["join"],
            ["join", []],
            ["join", {}, 1],
            [1, {}],
            ["open", {}],
            {"join": 1},
        ):
            self.assertRaises(JoinError, decode_request, encode(value))
            self.assertRaises(JoinError, decode_answer, encode(value))
        self.assertRaises(JoinError, decode_request, b"\xc1")
        self.assertRaises(JoinError, decode_request, bytes(MAX_REQUEST + 1))

    def test_bombs(self) -> None:
        """Heads that declare much, and nesting: refused before anything is built of them."""
        for data in (
            b"\x92\xa4join\xdf\xff\xff\xff\xff",
            b"\x91" * 10_000,
            b"\x92\xa4join\xdd\x7f\xff\xff\xff",
        ):
            self.assertRaises(JoinError, decode_request, data)
            self.assertRaises(JoinError, decode_answer, data)

    def test_answers_that_are_none(self) -> None:
        good = {"defender": DEFENDER, "name": "web1", "trust_domain": "defender.fleet"}
        good |= {"chain": [b"a", b"b"], "roots": [b"r"], "fleet": [b"b"]}  # type: ignore[dict-item]
        decode_answer(encode(["joined", good]))
        for word, fields in (
            ("waiting", {"retry_after": 0}),
            ("waiting", {"retry_after": 3601}),
            ("waiting", {"retry_after": True}),
            ("refused", {"code": "Not a code", "detail": ""}),
            ("refused", {"code": "x", "detail": "\x1b]0;x"}),
            ("refused", {"code": "x", "detail": "x" * 1001}),
            ("joined", {**good, "defender": "web1"}),
            ("joined", {**good, "name": ""}),
            ("joined", {**good, "trust_domain": "Bad Domain"}),
            ("joined", {**good, "chain": [b"a"]}),
            ("joined", {**good, "chain": [b"a"] * 9}),
            ("joined", {**good, "chain": [b"a", "b"]}),
            ("joined", {**good, "roots": []}),
            ("joined", {**good, "fleet": []}),
            ("joined", {**good, "trust": bytes(128 * 1024 + 1)}),
        ):
            with self.assertRaises(JoinError) as caught:
                decode_answer(encode([word, fields]))
            self.assertEqual(caught.exception.code, "answer")

    def test_nobody_writes_what_nobody_reads(self) -> None:
        self.assertRaises(JoinError, encode_request, replace(REQUEST, name=""))
        self.assertRaises(JoinError, encode_request, replace(REQUEST, hosts=("a",) * 33))
        large = replace(REQUEST, hosts=("x" * 255,) * 32, csr=bytes(4096), server_csr=bytes(4096))
        self.assertRaises(JoinError, encode_request, large)
        self.assertRaises(JoinError, encode_answer, Waiting(0))

    def test_vectors(self) -> None:
        """The specification's examples, byte for byte."""
        for vector in json.loads(VECTORS.read_text())["messages"]:
            payload = bytes.fromhex(vector["payload"])
            if vector["to"] == "controller":
                request = decode_request(payload)
                self.assertEqual(type(request).__name__, vector["message"])
                self.assertEqual(encode_request(request), payload)
            else:
                answer = decode_answer(payload)
                self.assertEqual(type(answer).__name__, vector["message"])
                self.assertEqual(encode_answer(answer), payload)

    @given(
        st.one_of(
            st.binary(max_size=200),
            st.recursive(
                st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9) | st.binary(max_size=9),
                lambda inner: (
                    st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
                ),
                max_leaves=10,
            ).map(lambda value: encode(["join", value])),
        )
    )
    def test_anything(self, data: bytes) -> None:
        for read in (decode_request, decode_answer):
            try:
                read(data)
            except JoinError:
                pass


class CSRTests(SynchronousTestCase):
    """A signing request gives a key."""

    def test_a_key_and_nothing_else(self) -> None:
        key = new_private_key()
        self.assertEqual(read_csr(csr_of(key)), key.public_key())
        issued = PKI.authority.issue_defender_client(read_csr(csr_of(key)), DEFENDER, "web1", now=PKI.now)
        self.assertEqual(issued.leaf.subject.rfc4514_string(), "CN=web1")
        self.assertFalse(issued.leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)

    def test_other_keys(self) -> None:
        for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
            with self.assertRaises(JoinError) as caught:
                read_csr(csr_of(key))
            self.assertEqual(caught.exception.code, "csr")

    def test_a_key_that_another_has(self) -> None:
        """Whoever asks for a certificate of a key must hold it."""
        mine, theirs = csr_of(new_private_key()), csr_of(new_private_key())
        spki = x509.load_der_x509_csr(theirs).public_key().public_bytes(*_SPKI)
        own = x509.load_der_x509_csr(mine).public_key().public_bytes(*_SPKI)
        self.assertRaises(JoinError, read_csr, mine.replace(own, spki))

    def test_garbage(self) -> None:
        for data in (b"", b"x" * 100, bytes(5000), csr_of(new_private_key())[:-1]):
            self.assertRaises(JoinError, read_csr, data)

    def test_names(self) -> None:
        check_defender_name("web1.example")
        for name in ("", "a\x00b", "x" * 65, "e\u0301", "web*", "web?", "-web"):
            self.assertRaises(JoinError, check_defender_name, name)


class BeliefTests(SynchronousTestCase):
    """A host believes an answer only if all of it comes from the root that its token pins."""

    def setUp(self) -> None:
        self.key, self.server_key = new_private_key(), new_private_key()
        self.answer = self.make(PKI)

    def make(self, pki: TestAuthority, **changes: Any) -> Joined:
        authority = pki.authority
        leaf = authority.issue_defender_client(self.key.public_key(), DEFENDER, "web1", now=pki.now).leaf
        server = authority.issue_server(
            self.server_key.public_key(), "web1", ["web1"], now=pki.now, identifier=DEFENDER
        ).leaf
        return replace(
            Joined(
                DEFENDER,
                "web1",
                pki.trust_domain,
                (der(leaf), der(pki.fleet)),
                (der(pki.root),),
                (der(pki.fleet),),
                (der(server), der(pki.fleet)),
            ),
            **changes,
        )

    def check(self, answer: Joined, days: float | None = 0, pki: TestAuthority = PKI) -> None:
        check_joined(
            answer,
            key=self.key.public_key(),
            server_key=self.server_key.public_key(),
            pins=frozenset({pin_of(pki.root)}),
            now=None if days is None else (PKI.now + timedelta(days=days)).timestamp(),
        )

    def refused(self, answer: Joined, days: float | None = 0) -> str:
        with self.assertRaises(JoinError) as caught:
            self.check(answer, days)
        self.assertEqual(caught.exception.code, "answer")
        return str(caught.exception)

    def test_good(self) -> None:
        self.check(self.answer)
        old = TestAuthority()
        self.check(replace(self.answer, roots=(der(old.root), der(PKI.root))))

    def test_time(self) -> None:
        for days in (-1, 8):
            self.assertIn("clock", self.refused(self.answer, days))
        self.check(self.answer, None)

    def test_another_fleet(self) -> None:
        other = TestAuthority()
        self.assertIn("told to trust", self.refused(self.make(other)))
        self.assertIn("does not come from", self.refused(self.make(other, roots=(der(PKI.root),))))

    def test_parts_of_another_fleet(self) -> None:
        other = self.make(TestAuthority())
        for changes in (
            {"chain": other.chain},
            {"chain": (self.answer.chain[0], other.chain[1])},
            {"server_chain": other.server_chain},
            {"fleet": other.fleet},
            {"roots": other.roots},
            {"trust_domain": "other.example"},
        ):
            self.refused(replace(self.answer, **changes))

    def test_the_trust_domain_is_the_roots(self) -> None:
        self.assertIn("trust domain", self.refused(self.make(PKI, trust_domain="elsewhere.example")))

    def test_another_defender(self) -> None:
        self.assertIn("is not for", self.refused(replace(self.answer, defender=DEFENDER.replace("3", "4"))))

    def test_another_key(self) -> None:
        self.assertIn("this host's key", self.refused(replace(self.answer, chain=self.answer.server_chain)))
        self.assertIn("towards users", self.refused(replace(self.answer, server_chain=())))

    def test_an_issuer_that_is_no_authority(self) -> None:
        leaf = self.answer.chain[0]
        self.refused(replace(self.answer, chain=(leaf, self.answer.server_chain[0], der(PKI.fleet))))

    def test_garbage(self) -> None:
        for changes in ({"chain": (b"x", b"y")}, {"roots": (b"x",)}, {"fleet": (b"x",)}):
            self.refused(replace(self.answer, **changes))

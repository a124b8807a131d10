"""When a certificate is renewed, and the proof of an old key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.custody import new_private_key
from defender.contract.join import JoinError, RenewRequest
from defender.contract.renewal import LIFE, check_proof, proof_text, renewal_time
from tests.fakes.authority import TestAuthority
from tests.fakes.fleet import defender_of

PKI = TestAuthority()
VECTORS = Path(__file__).parents[2] / "data" / "join.json"


class TimeTests(SynchronousTestCase):
    """Half of the life, ten per cent about it."""

    @given(st.floats(0, 1))
    def test_half_life(self, fraction: float) -> None:
        due = renewal_time(1000, 1000 + LIFE, fraction)
        self.assertTrue(1000 + 0.45 * LIFE <= due <= 1000 + 0.55 * LIFE)

    def test_it_is_spread(self) -> None:
        self.assertEqual(renewal_time(0, 1000, 0), 450)
        self.assertEqual(renewal_time(0, 1000, 0.5), 500)
        self.assertEqual(renewal_time(0, 1000, 1), 550)

    def test_seven_days(self) -> None:
        certificate = defender_of(PKI).certificate
        life = certificate.not_valid_after_utc - PKI.now.replace(microsecond=0)
        self.assertEqual(life.total_seconds(), LIFE)
        self.assertEqual(LIFE, 7 * 24 * 3600)


class ProofTests(SynchronousTestCase):
    """The old key signs what ties the request to one connection."""

    def setUp(self) -> None:
        self.old = defender_of(PKI)
        self.binding = bytes(range(32))
        certificate = self.old.certificate.public_bytes(Encoding.DER)
        text = proof_text(self.binding, certificate, b"csr", b"server")
        proof = self.old.key.sign(text, ec.ECDSA(hashes.SHA256()))
        self.request = RenewRequest(certificate, proof, b"csr", b"server")

    def test_good(self) -> None:
        self.assertEqual(check_proof(self.request, self.binding), self.old.certificate)

    def test_on_another_connection(self) -> None:
        with self.assertRaises(JoinError) as caught:
            check_proof(self.request, bytes(32))
        self.assertEqual(caught.exception.code, "proof")

    def test_for_other_keys(self) -> None:
        """Who carries a proof on cannot put a key of its own in the request."""
        for changed in (replace(self.request, csr=b"mine"), replace(self.request, server_csr=b"")):
            self.assertRaises(JoinError, check_proof, changed, self.binding)

    def test_with_another_key(self) -> None:
        text = proof_text(self.binding, self.request.certificate, b"csr", b"server")
        proof = new_private_key().sign(text, ec.ECDSA(hashes.SHA256()))
        self.assertRaises(JoinError, check_proof, replace(self.request, proof=proof), self.binding)

    def test_garbage(self) -> None:
        for changed in (replace(self.request, proof=b"x"), replace(self.request, certificate=b"x")):
            self.assertRaises(JoinError, check_proof, changed, self.binding)
        self.assertRaises(ValueError, proof_text, b"short", b"", b"", b"")

    def test_vectors(self) -> None:
        for vector in json.loads(VECTORS.read_text())["proofs"]:
            parts = (bytes.fromhex(vector[key]) for key in ("binding", "certificate", "csr", "server_csr"))
            self.assertEqual(proof_text(*parts).hex(), vector["text"])

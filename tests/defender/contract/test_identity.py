"""Who a certificate names, and every way in which it names nobody."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.errors import IdentityError
from defender.contract.identity import subject_of_certificate
from tests.fakes.authority import ODD, TestAuthority


class OddCertificateTests(SynchronousTestCase):
    """Each odd certificate fails the check that it should."""

    def test_each(self) -> None:
        pki = TestAuthority()
        for kind, check in ODD.items():
            certificate = pki.odd(kind).certificate
            if check is None:
                self.assertEqual(
                    subject_of_certificate(certificate, pki.trust_domain).user, "bruce@example.com"
                )
                continue
            error = self.assertRaises(IdentityError, subject_of_certificate, certificate, pki.trust_domain)
            self.assertEqual(error.check, check, kind)

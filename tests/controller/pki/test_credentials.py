"""The controller's own certificate, put where it looks for it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.credentials import ServerOutcome, certificate_hosts, ensure_controller_files
from controller.pki.custody import load_private_key
from defender.contract.identity import ROLE_CONTROLLER
from defender.contract.peer_check import check_peer, fleet_peer, host_peer
from tests.fakes.authority import TestAuthority


class ControllerFileTests(SynchronousTestCase):
    """``controller.pem`` and ``controller.key``."""

    def setUp(self) -> None:
        self.pki = TestAuthority()
        self.directory = Path(self.mktemp())

    def ensure(self, *names: str, name: str = "main", days: float = 0) -> ServerOutcome:
        return ensure_controller_files(
            self.pki.authority,
            self.directory,
            name,
            names or ("c1.test",),
            now=self.pki.now + timedelta(days=days),
        )

    def test_what_is_there(self) -> None:
        outcome = self.ensure("c1.test", "10.1.2.3")
        self.assertEqual(outcome.reason, "there was none")
        leaf, fleet, root = x509.load_pem_x509_certificates((self.directory / "controller.pem").read_bytes())
        self.assertEqual((fleet, root), (self.pki.fleet, self.pki.root))
        self.assertEqual(certificate_hosts(leaf), ("c1.test", "10.1.2.3"))
        key = load_private_key(self.directory / "controller.key")
        self.assertEqual(key.public_key(), leaf.public_key())
        check_peer(leaf, fleet_peer(self.pki.trust_domain, ROLE_CONTROLLER))
        check_peer(leaf, host_peer("10.1.2.3"))

    def test_it_is_kept_while_it_serves(self) -> None:
        first = self.ensure("c1.test", "c2.test")
        for days in (0, 59):
            again = self.ensure("c1.test", days=days)
            self.assertEqual((again.certificate, again.reason), (first.certificate, ""))

    def test_it_is_issued_anew(self) -> None:
        """A third of its life left, other names, another name, another authority, damage."""
        self.ensure()
        self.assertIn("third", self.ensure(days=61).reason)
        self.assertIn("names changed", self.ensure("c2.test", days=61).reason)
        self.assertIn("its name changed", self.ensure("c2.test", name="other", days=61).reason)
        (self.directory / "controller.key").write_bytes(b"damaged")
        self.assertTrue(self.ensure("c2.test", name="other", days=61).reason)
        self.pki = TestAuthority()
        self.assertIn("another authority", self.ensure("c2.test", name="other").reason)

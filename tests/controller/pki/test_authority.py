"""What the authority signs, and what it does not."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.authority import (
    BACKDATING,
    DEFENDER_LIFE,
    FLEET_CA,
    INTERMEDIATE_LIFE,
    ROOT,
    ROOT_LIFE,
    USER_CA,
    Authority,
    AuthorityError,
)
from controller.pki.custody import MemoryCustody, new_private_key
from defender.contract.identity import subject_of_certificate
from tests.fakes.authority import TestAuthority


class HierarchyTests(SynchronousTestCase):
    """The root and its intermediates."""

    def setUp(self) -> None:
        self.pki = TestAuthority()
        self.authority = self.pki.authority

    def test_chain(self) -> None:
        """The root signs itself and both intermediates; these sign no further authorities."""
        for certificate, length in ((self.pki.root, 1), (self.pki.users, 0), (self.pki.fleet, 0)):
            certificate.verify_directly_issued_by(self.pki.root)
            extensions = certificate.extensions
            constraints = extensions.get_extension_for_class(x509.BasicConstraints)
            self.assertTrue(constraints.critical)
            self.assertEqual((constraints.value.ca, constraints.value.path_length), (True, length))
            usage = extensions.get_extension_for_class(x509.KeyUsage)
            self.assertTrue(usage.critical)
            self.assertTrue(usage.value.key_cert_sign)
            self.assertFalse(usage.value.digital_signature)
            self.assertRaises(
                x509.ExtensionNotFound, extensions.get_extension_for_class, x509.ExtendedKeyUsage
            )
            public_key = certificate.public_key()
            assert isinstance(public_key, ec.EllipticCurvePublicKey)
            self.assertEqual(public_key.curve.name, "secp256r1")
            algorithm = certificate.signature_hash_algorithm
            assert algorithm is not None
            self.assertEqual(algorithm.name, "sha256")

    def test_key_identifiers(self) -> None:
        """Each certificate names its own key and its issuer's."""
        for certificate, issuer in (
            (self.pki.users, self.pki.root),
            (self.pki.fleet, self.pki.root),
            (self.pki.user().certificate, self.pki.users),
            (self.pki.server().certificate, self.pki.fleet),
        ):
            named = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
            own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            self.assertEqual(named.key_identifier, own.digest)

    def test_names_differ_between_installations(self) -> None:
        """A lock on issuer and serial, and a client's choice by issuer, hit one installation."""
        self.assertNotEqual(self.pki.users.subject, TestAuthority().users.subject)
        self.assertNotEqual(self.pki.users.subject, self.pki.fleet.subject)

    def test_check(self) -> None:
        """A whole authority passes, also with its root off line."""
        self.authority.check(self.pki.now)
        offline = MemoryCustody()
        for name in (USER_CA, FLEET_CA):
            offline._signers[name] = self.pki.custody._signers[name]
        self._with(custody=offline).check(self.pki.now)

    def test_check_finds(self) -> None:
        """Parts of another authority, swapped parts, lost keys, other times."""
        other = TestAuthority("other.example", self.pki.now)
        for changes in (
            {"root": other.root},
            {"users": other.users},
            {"fleet": other.fleet},
            {"users": self.pki.fleet},
            {"users": self.pki.user().certificate},
            {"custody": other.custody},
        ):
            self.assertRaises(AuthorityError, self._with(**changes).check, self.pki.now)
        self.assertRaises(AuthorityError, self._with(trust_domain="x").check, self.pki.now)
        self.assertRaises(AuthorityError, self.authority.check, self.pki.now - timedelta(days=1))
        self.assertRaises(AuthorityError, self.authority.check, self.pki.now + INTERMEDIATE_LIFE)

    def test_bad_trust_domain(self) -> None:
        """No authority is made for a name that cannot stand in an identity."""
        for trust_domain in ("", "Corp", "a/b", "a b", "ä", "-a", "a" * 256):
            self.assertRaises(AuthorityError, Authority.create, trust_domain, MemoryCustody(), self.pki.now)

    def _with(self, **changes: object) -> Authority:
        parts: dict[str, object] = {
            "root": self.pki.root,
            "users": self.pki.users,
            "fleet": self.pki.fleet,
            "custody": self.pki.custody,
            **changes,
        }
        trust_domain = parts.pop("trust_domain", self.pki.trust_domain)
        return Authority(trust_domain, **parts)  # type: ignore[arg-type]


class UserTests(SynchronousTestCase):
    """Certificates for users."""

    def setUp(self) -> None:
        self.pki = TestAuthority()
        self.key = new_private_key().public_key()

    def issue(self, user: str = "bruce", groups: tuple[str, ...] = (), **more: object) -> x509.Certificate:
        arguments: dict[str, object] = {"now": self.pki.now, **more}
        return self.pki.authority.issue_user(self.key, user, groups, **arguments).leaf  # type: ignore[arg-type]

    def test_shape(self) -> None:
        """One role, one extended key usage, signed by the user intermediate, for the key that was given."""
        leaf = self.issue(groups=("ops",), idp="corp", sid="s", mfa=True, orig_exp=1)
        leaf.verify_directly_issued_by(self.pki.users)
        self.assertEqual(leaf.public_key(), self.key)
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        self.assertEqual(list(usages), [ExtendedKeyUsageOID.CLIENT_AUTH])
        subject = subject_of_certificate(leaf, self.pki.trust_domain)
        self.assertEqual((subject.claims.idp, subject.claims.sid), ("corp", "s"))
        self.assertEqual((subject.claims.mfa, subject.claims.orig_exp), (True, 1))

    def test_no_claims_no_extension(self) -> None:
        """Nothing to say: no extension."""
        self.assertEqual(len(self.issue().extensions) + 1, len(self.issue(groups=("ops",)).extensions))

    def test_times(self) -> None:
        """Backdated for late clocks, 8 hours by default, whole seconds."""
        leaf = self.issue()
        start = self.pki.now.replace(microsecond=0)
        self.assertEqual(leaf.not_valid_after_utc - start, timedelta(hours=8))
        later = self.pki.now + timedelta(days=1)
        leaf = self.issue(now=later)
        self.assertEqual(later.replace(microsecond=0) - leaf.not_valid_before_utc, BACKDATING)

    def test_never_outlives_its_issuer(self) -> None:
        """A life is cut to the intermediate's, on both sides."""
        late = self.pki.users.not_valid_after_utc - timedelta(hours=1)
        self.assertEqual(self.issue(now=late).not_valid_after_utc, self.pki.users.not_valid_after_utc)
        early = self.pki.users.not_valid_before_utc
        self.assertEqual(self.issue(now=early).not_valid_before_utc, early)
        self.assertRaises(AuthorityError, self.issue, now=self.pki.users.not_valid_after_utc)
        self.assertRaises(AuthorityError, self.issue, now=early - timedelta(seconds=1))
        self.assertRaises(AuthorityError, self.issue, life=timedelta(0))

    def test_serials(self) -> None:
        """Random, positive, at most 159 bits."""
        serials = {self.issue().serial_number for _ in range(20)}
        self.assertEqual(len(serials), 20)
        self.assertTrue(all(0 < serial < 2**159 for serial in serials))
        self.assertTrue(any(serial > 2**140 for serial in serials))

    def test_names(self) -> None:
        """What a defender would refuse is not issued, nor what a common name cannot hold."""
        for user in ("", "a\nb", "anonymous", "uid:0", " a", "a" * 65, "ä" * 33):
            self.assertRaises(AuthorityError, self.issue, user)
        for groups in (("a", "a"), ("",), ("a\x00",), tuple(str(number) for number in range(257))):
            self.assertRaises(AuthorityError, self.issue, "bruce", groups)
        self.assertEqual(subject_of_certificate(self.issue("ä" * 32), self.pki.trust_domain).user, "ä" * 32)


class ServerTests(SynchronousTestCase):
    """Certificates for defenders."""

    def test_shape(self) -> None:
        """Names and addresses, one URI with the defender's role, serverAuth alone, signed by the fleet's."""
        pki = TestAuthority()
        leaf = pki.server(["Web1.Example.com", "10.0.0.7", "[::1]"], defender="web1").certificate
        leaf.verify_directly_issued_by(pki.fleet)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["web1.example.com"])
        self.assertEqual(
            names.get_values_for_type(x509.IPAddress), [ip_address("10.0.0.7"), ip_address("::1")]
        )
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        self.assertTrue(uri.startswith("spiffe://defender.fleet/defender/"))
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        self.assertEqual(list(usages), [ExtendedKeyUsageOID.SERVER_AUTH])

    def test_refused(self) -> None:
        """No names, bad names, bad defender names."""
        pki = TestAuthority()
        for names in ([], ["*.example.com"], ["0.0.0.0"], ["a b"], [""]):
            self.assertRaises(AuthorityError, pki.server, names)
        for defender in ("", "a\n", "d" * 65):
            self.assertRaises(AuthorityError, pki.server, defender=defender)

    def test_root_signs_no_leaf(self) -> None:
        """The root's life is for its intermediates; no leaf depends on its key."""
        pki = TestAuthority()
        del pki.custody._signers[ROOT]
        pki.user()
        pki.server()
        self.assertGreater(ROOT_LIFE, INTERMEDIATE_LIFE)


class FleetTests(SynchronousTestCase):
    """Certificates for a controller and the defenders that it keeps."""

    IDENTIFIER = "3f0e2a52-6c51-4a43-9f6a-5f4f5b8f3b11"

    def setUp(self) -> None:
        self.pki = TestAuthority()
        self.key = new_private_key().public_key()

    def uses(self, leaf: x509.Certificate) -> list[x509.ObjectIdentifier]:
        return list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    def test_a_defender_towards_its_controller(self) -> None:
        """Its id in one URI and no other name, clientAuth alone, for seven days."""
        leaf = self.pki.authority.issue_defender_client(
            self.key, self.IDENTIFIER, "web1", now=self.pki.now
        ).leaf
        leaf.verify_directly_issued_by(self.pki.fleet)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uri = x509.UniformResourceIdentifier(f"spiffe://defender.fleet/defender/{self.IDENTIFIER}")
        self.assertEqual(list(names), [uri])
        self.assertEqual(self.uses(leaf), [ExtendedKeyUsageOID.CLIENT_AUTH])
        start = self.pki.now.replace(microsecond=0)
        self.assertEqual(leaf.not_valid_after_utc - start, timedelta(days=7))

    def test_a_defender_towards_users(self) -> None:
        """A defender holds two certificates, with one use each and the same id."""
        leaf = self.pki.authority.issue_server(
            self.key, "web1", ["web1"], now=self.pki.now, life=DEFENDER_LIFE, identifier=self.IDENTIFIER
        ).leaf
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(
            names.get_values_for_type(x509.UniformResourceIdentifier),
            [f"spiffe://defender.fleet/defender/{self.IDENTIFIER}"],
        )
        self.assertEqual(self.uses(leaf), [ExtendedKeyUsageOID.SERVER_AUTH])

    def test_a_controller(self) -> None:
        """Its role, its names, serverAuth alone; two of one name are the same one."""
        leaves = [
            self.pki.authority.issue_controller(
                self.key, "main", ["c1.example", "::1"], now=self.pki.now
            ).leaf
            for _ in range(2)
        ]
        for leaf in leaves:
            leaf.verify_directly_issued_by(self.pki.fleet)
            self.assertEqual(self.uses(leaf), [ExtendedKeyUsageOID.SERVER_AUTH])
        (one, other) = (
            leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value for leaf in leaves
        )
        self.assertEqual(one, other)
        (uri,) = one.get_values_for_type(x509.UniformResourceIdentifier)
        self.assertTrue(uri.startswith("spiffe://defender.fleet/controller/"), uri)
        self.assertEqual(one.get_values_for_type(x509.DNSName), ["c1.example"])

    def test_refused(self) -> None:
        """Bad ids and names, and a controller without a name to reach it under."""
        issue = self.pki.authority.issue_defender_client
        for identifier, name in (("a/b", "web1"), ("", "web1"), ("..", "web1"), ("a", ""), ("a", "d" * 65)):
            self.assertRaises(AuthorityError, issue, self.key, identifier, name, now=self.pki.now)
        self.assertRaises(
            AuthorityError, self.pki.authority.issue_controller, self.key, "main", [], now=self.pki.now
        )

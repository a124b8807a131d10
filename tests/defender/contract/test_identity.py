"""Who a certificate names, and every way in which it names nobody."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import util
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.errors import IdentityError
from defender.contract.facts import ANONYMOUS
from defender.contract.identity import (
    GROUPS_OID,
    TRUST_DOMAIN_DEFAULT,
    check_user_name,
    examine_certificate,
    load_certificate,
    printable,
    spiffe_uri,
    subject_of_certificate,
    user_id,
)
from tests.fakes.authority import ODD, OddLeaf, TestAuthority

# Names of 0 and 257 characters are wrong on purpose.
SUPPRESS = [util.suppress(message="Attribute's length must be", category=UserWarning)]

PKI = TestAuthority()


def leaf(**changes: object) -> x509.Certificate:
    """Return a user certificate with some attributes of `OddLeaf` changed."""
    user = PKI.user()
    odd = OddLeaf(PKI, user.key)
    for name, value in changes.items():
        setattr(odd, name, value)
    return odd.sign()[0]


class GoodCertificateTests(SynchronousTestCase):
    """What a certificate of the user authority says."""

    suppress = SUPPRESS

    def test_everything(self) -> None:
        """User, groups, identity, serial, issuer and times are read."""
        credentials = PKI.user("bruce@example.com", ["ops", "Dev team"], life=timedelta(hours=1))
        certificate = credentials.certificate
        subject = subject_of_certificate(certificate, TRUST_DOMAIN_DEFAULT)
        self.assertEqual(subject.user, "bruce@example.com")
        self.assertEqual(subject.groups, ("Dev team", "ops"))
        self.assertEqual(
            subject.identity,
            f"spiffe://defender.fleet/user/{user_id(TRUST_DOMAIN_DEFAULT, 'bruce@example.com')}",
        )
        self.assertEqual(int(subject.serial, 16), certificate.serial_number)
        self.assertEqual(subject.serial, subject.serial.lower())
        self.assertEqual(subject.issuer, PKI.users.subject.rfc4514_string())
        self.assertEqual(subject.not_after, int((PKI.now + timedelta(hours=1)).timestamp()))
        self.assertEqual(subject.not_before, int((PKI.now - timedelta(minutes=5)).timestamp()))

    def test_no_extension_no_groups(self) -> None:
        """A certificate without the group extension has no groups."""
        self.assertEqual(subject_of_certificate(leaf(groups=None), TRUST_DOMAIN_DEFAULT).groups, ())

    def test_international_names(self) -> None:
        """Names are Unicode text, also beyond the basic plane."""
        credentials = PKI.user("Łukasz 李 🙂", ["Entwickler für Prüfung"])
        subject = subject_of_certificate(credentials.certificate, TRUST_DOMAIN_DEFAULT)
        self.assertEqual((subject.user, subject.groups), ("Łukasz 李 🙂", ("Entwickler für Prüfung",)))

    def test_longest_name(self) -> None:
        """256 characters are still a name."""
        subject = subject_of_certificate(leaf(names=["b" * 256]), TRUST_DOMAIN_DEFAULT)
        self.assertEqual(len(subject.user), 256)

    def test_most_groups(self) -> None:
        """256 groups are read."""
        groups = [f"group {number:03}" for number in range(256)]
        subject = subject_of_certificate(PKI.user(groups=groups).certificate, TRUST_DOMAIN_DEFAULT)
        self.assertEqual(list(subject.groups), groups)

    def test_own_trust_domain(self) -> None:
        """The trust domain is the one that was asked for."""
        pki = TestAuthority("docker.corp.example")
        subject = subject_of_certificate(pki.user("a").certificate, "docker.corp.example")
        self.assertTrue(subject.identity.startswith("spiffe://docker.corp.example/user/"))

    def test_groups_extension_is_where_it_was_measured_to_work(self) -> None:
        """The extension is not critical and its OID is in the private-enterprise arc."""
        extensions = PKI.user().certificate.extensions
        extension = extensions.get_extension_for_oid(x509.ObjectIdentifier(GROUPS_OID))
        self.assertFalse(extension.critical)
        self.assertTrue(GROUPS_OID.startswith("1.3.6.1.4.1."))


class OddCertificateTests(SynchronousTestCase):
    """Each odd certificate fails the check that it should, and the error says whose it was."""

    suppress = SUPPRESS

    def test_each(self) -> None:
        """See `tests.fakes.authority.ODD`."""
        for kind, check in ODD.items():
            certificate = PKI.odd(kind).certificate
            if check is None:
                # The TLS layer's to refuse; the names in it are in order.
                self.assertEqual(
                    subject_of_certificate(certificate, PKI.trust_domain).user, "bruce@example.com", kind
                )
                continue
            error = self.assertRaises(IdentityError, subject_of_certificate, certificate, PKI.trust_domain)
            self.assertEqual(error.check, check, kind)
            self.assertTrue(error.subject, kind)
            self.assertNotIn("\n", str(error), kind)

    def test_subject_in_the_error(self) -> None:
        """The best-known name is the common name where there is one."""
        error = self.assertRaises(
            IdentityError, subject_of_certificate, PKI.odd("server-eku").certificate, PKI.trust_domain
        )
        self.assertEqual(error.subject, "bruce@example.com")
        error = self.assertRaises(
            IdentityError, subject_of_certificate, PKI.odd("no-cn").certificate, PKI.trust_domain
        )
        self.assertTrue(error.subject.startswith("serial "))

    def test_names_that_deceive(self) -> None:
        """Controls, line separators, bidirectional overrides and outer white space are no names."""
        for name in (
            "a\x00b",
            "a\x7fb",
            "a\u0085b",
            "a\u2028b",
            "a\u202eb",
            "a\u2066b",
            " admin",
            "admin ",
            "admin\u00a0",
        ):
            error = self.assertRaises(
                IdentityError, subject_of_certificate, leaf(names=[name]), PKI.trust_domain
            )
            self.assertEqual(error.check, "cn", repr(name))

    def test_names_of_unix_peers(self) -> None:
        """Nobody proves with a certificate to be a peer that only a socket can name."""
        for name in (ANONYMOUS, "ANONYMOUS", "uid:0", "UID:1000", "uid:\u00e9"):
            self.assertEqual(self.assertRaises(IdentityError, check_user_name, name).check, "cn")
        check_user_name("uid")
        check_user_name("anonymous2")

    def test_uris(self) -> None:
        """Only spiffe://DOMAIN/user/ID, letter by letter."""
        for uri, check in (
            ("SPIFFE://defender.fleet/user/a", "spiffe"),
            ("spiffe://defender.fleet/user/", "spiffe"),
            ("spiffe://defender.fleet/user", "spiffe"),
            ("spiffe://defender.fleet//user/a", "spiffe"),
            ("spiffe://defender.fleet/user/a?b", "spiffe"),
            ("spiffe://defender.fleet/user/a#b", "spiffe"),
            ("spiffe://defender.fleet/user/a/", "spiffe"),
            ("spiffe:///user/a", "trust-domain"),
            ("spiffe://Defender.fleet/user/a", "trust-domain"),
            ("spiffe://defender.fleet:443/user/a", "trust-domain"),
            ("spiffe://x@defender.fleet/user/a", "trust-domain"),
            ("spiffe://defender.fleet/User/a", "spiffe-role"),
            ("spiffe://defender.fleet/user/..", "spiffe-id"),
            ("spiffe://defender.fleet/user/%61", "spiffe-id"),
            ("spiffe://defender.fleet/user/a\n", "spiffe-id"),
        ):
            certificate = leaf(alternatives=[x509.UniformResourceIdentifier(uri)])
            error = self.assertRaises(IdentityError, subject_of_certificate, certificate, PKI.trust_domain)
            self.assertEqual(error.check, check, uri)

    def test_all_problems_at_once(self) -> None:
        """An examination goes on after the first failed check and keeps what was readable."""
        certificate = leaf(names=["a", "b"], usages=None, groups=b"\x0c\x00")
        seen = examine_certificate(certificate, PKI.trust_domain)
        self.assertEqual([problem.check for problem in seen.problems], ["cn", "eku", "groups-extension"])
        self.assertIsNone(seen.user)
        self.assertIsNone(seen.claims)
        self.assertEqual(seen.identity, "spiffe://defender.fleet/user/bruce")


class NameTests(SynchronousTestCase):
    """Identities from names."""

    def test_user_id(self) -> None:
        """Stable across runs, apart across trust domains, the same however rules may spell the name."""
        self.assertEqual(user_id("defender.fleet", "bruce"), "5af599e1-bc28-53d5-9d24-01e395110164")
        self.assertEqual(user_id("defender.fleet", "Bruce"), user_id("defender.fleet", "bruce"))
        self.assertNotEqual(user_id("defender.fleet", "bruce"), user_id("other", "bruce"))

    def test_spiffe_uri(self) -> None:
        """Parts that would change the URI's structure are refused."""
        self.assertEqual(spiffe_uri("a.b", "defender", "x-1"), "spiffe://a.b/defender/x-1")
        for domain, role, identifier, check in (
            ("A.b", "user", "x", "trust-domain"),
            ("a/b", "user", "x", "trust-domain"),
            ("", "user", "x", "trust-domain"),
            ("a" * 256, "user", "x", "trust-domain"),
            ("a.b", "root", "x", "spiffe-role"),
            ("a.b", "user", "x/y", "spiffe-id"),
            ("a.b", "user", "..", "spiffe-id"),
            ("a.b", "user", "", "spiffe-id"),
        ):
            error = self.assertRaises(IdentityError, spiffe_uri, domain, role, identifier)
            self.assertEqual(error.check, check)

    def test_printable(self) -> None:
        """What could break a line or reorder it is escaped, the rest stays."""
        self.assertEqual(printable("Łukasz\r\n\u202e\ud800"), "Łukasz\\r\\n\\u202e\\ud800")


def _names_somebody_or_refuses(der: bytes) -> None:
    try:
        subject = subject_of_certificate(load_certificate(der), PKI.trust_domain)
    except IdentityError as error:
        if not error.check or "\n" in str(error):
            raise AssertionError(f"unfit for a log line: {error!r}") from error
    else:
        assert subject.user
        assert subject.user == subject.user.strip()


_SEEDS = [PKI.user().certificate, *(PKI.odd(kind).certificate for kind in sorted(ODD))]
_SEED_BYTES = [certificate.public_bytes(Encoding.DER) for certificate in _SEEDS]


class FuzzTests(SynchronousTestCase):
    """Whatever the bytes, the answer is a name or an IdentityError."""

    suppress = SUPPRESS

    @given(st.binary(max_size=300))
    @settings(max_examples=100, deadline=None)
    def test_noise(self, der: bytes) -> None:
        """Bytes that are no certificate."""
        _names_somebody_or_refuses(der)

    @given(
        st.sampled_from(_SEED_BYTES),
        st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255), st.booleans()), min_size=1, max_size=4),
    )
    @settings(max_examples=300, deadline=None)
    def test_damaged_certificates(self, der: bytes, changes: list[tuple[int, int, bool]]) -> None:
        """Certificates with bytes changed or inserted."""
        damaged = bytearray(der)
        for position, value, insert in changes:
            position %= len(damaged)
            damaged[position : position + (0 if insert else 1)] = bytes([value])
        _names_somebody_or_refuses(bytes(damaged))

    @given(st.lists(st.text(max_size=20), max_size=3), st.binary(max_size=40), st.booleans())
    @settings(max_examples=100, deadline=None)
    def test_well_formed_with_odd_content(self, names: list[str], groups: bytes, critical: bool) -> None:
        """Any common names, any bytes as groups: refused, or exactly one name that was given."""
        encodable = [name for name in names if not any("\ud800" <= letter <= "\udfff" for letter in name)]
        certificate = leaf(names=encodable, groups=groups, groups_critical=critical)
        self.assertRaises(IdentityError, subject_of_certificate, certificate, PKI.trust_domain)
        seen = examine_certificate(leaf(names=encodable, groups=None), PKI.trust_domain)
        if seen.user is not None:
            self.assertEqual([seen.user], encodable)

"""Who is at the other end: the checks of a TLS peer, one by one."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import crypto
from service_identity import VerificationError
from service_identity.cryptography import verify_certificate_hostname
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.errors import IdentityError
from defender.contract.peer_check import (
    ExpectedPeer,
    FleetPeer,
    HostPeer,
    check_defender,
    check_peer,
    fleet_peer,
    host_peer,
)
from tests.fakes.authority import OddLeaf, TestAuthority
from tests.fakes.fleet import DEFENDER, controller_of, defender_of, odd_server

PKI = TestAuthority()
CONTROLLER = fleet_peer(PKI.trust_domain, "controller")
DNS = x509.DNSName
URI = x509.UniformResourceIdentifier
Name = x509.GeneralName


def named(*names: Name) -> x509.Certificate:
    def change(leaf: OddLeaf) -> None:
        leaf.alternatives = list(names)

    return odd_server(PKI, change).certificate


def changed(change: Callable[[OddLeaf], None]) -> x509.Certificate:
    return odd_server(PKI, change).certificate


class PeerCase(SynchronousTestCase):
    def refused(self, certificate: x509.Certificate, expected: ExpectedPeer = CONTROLLER) -> IdentityError:
        with self.assertRaises(IdentityError) as caught:
            check_peer(certificate, expected)
        error: IdentityError = caught.exception
        return error


class FleetTests(PeerCase):
    """Programs of the fleet, by their SPIFFE URI."""

    def test_a_controller(self) -> None:
        certificate = controller_of(PKI).certificate
        seen = check_peer(certificate, CONTROLLER)
        self.assertEqual(seen.identity, f"spiffe://defender.fleet/controller/{seen.identifier}")
        self.assertEqual((seen.name, seen.serial), ("controller", format(certificate.serial_number, "x")))
        self.assertEqual(seen.fingerprint, sha256(certificate.public_bytes(Encoding.DER)).digest())
        self.assertEqual(seen.not_after, certificate.not_valid_after_utc.timestamp())
        self.assertEqual(check_peer(certificate, fleet_peer(None, "controller")), seen)
        self.assertEqual(check_peer(certificate, FleetPeer(None, "controller", seen.identifier)), seen)

    def test_without_alternative_names(self) -> None:
        """Chain-valid, serverAuth, the host as common name: and refused, whoever is expected.

        The library that Twisted asks raises here too, and Twisted lets the certificate pass.
        """

        def change(leaf: OddLeaf) -> None:
            leaf.alternatives = None

        credentials = odd_server(PKI, change)
        store = crypto.X509Store()
        store.add_cert(crypto.X509.from_cryptography(PKI.root))
        chain = [crypto.X509.from_cryptography(each) for each in credentials.chain[1:]]
        leaf = crypto.X509.from_cryptography(credentials.certificate)
        crypto.X509StoreContext(store, leaf, chain).verify_certificate()
        for expected in (CONTROLLER, host_peer("localhost"), host_peer("127.0.0.1")):
            self.assertEqual(self.refused(credentials.certificate, expected).check, "san")

    def test_names_of_other_kinds_are_no_identity(self) -> None:
        for names in ([DNS("localhost")], [x509.RFC822Name("a@example.com")]):
            self.assertEqual(self.refused(named(*names)).check, "san")

    def test_two_uris(self) -> None:
        uri = "spiffe://defender.fleet/controller/c"
        self.assertEqual(self.refused(named(URI(uri), URI(uri))).check, "san")

    def test_uris(self) -> None:
        for uri, check in (
            ("https://defender.fleet/controller/c", "spiffe"),
            ("spiffe://defender.fleet/controller", "spiffe"),
            ("spiffe://defender.fleet/controller/a/b", "spiffe"),
            ("spiffe://defender.fleet/controller/a?b", "spiffe"),
            ("SPIFFE://defender.fleet/controller/a", "spiffe"),
            ("spiffe://elsewhere.example/controller/c", "trust-domain"),
            ("spiffe://Defender.Fleet/controller/c", "trust-domain"),
            ("spiffe://defender.fleet/user/c", "spiffe-role"),
            ("spiffe://defender.fleet/Controller/c", "spiffe-role"),
            ("spiffe://defender.fleet/controller/..", "spiffe-id"),
            ("spiffe://defender.fleet/controller/a%20b", "spiffe-id"),
        ):
            self.assertEqual(self.refused(named(URI(uri))).check, check, uri)

    def test_another_controller(self) -> None:
        expected = fleet_peer(PKI.trust_domain, "controller", "another")
        self.assertEqual(self.refused(controller_of(PKI).certificate, expected).check, "spiffe-id")

    def test_a_defender_is_no_controller(self) -> None:
        """Nor may its certificate towards users pose as one, though the same intermediate signed it."""
        error = self.refused(PKI.server().certificate)
        self.assertEqual((error.check, error.subject), ("spiffe-role", "test"))

    def test_uses(self) -> None:
        server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
        for usages in (None, [client], [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], [server, client]):

            def change(leaf: OddLeaf, usages: object = usages) -> None:
                leaf.usages = usages  # type: ignore[assignment]

            self.assertEqual(self.refused(changed(change)).check, "eku", usages)

    def test_an_authority(self) -> None:
        def change(leaf: OddLeaf) -> None:
            leaf.constraints = x509.BasicConstraints(ca=True, path_length=None)

        self.assertEqual(self.refused(changed(change)).check, "ca-certificate")
        self.assertEqual(self.refused(PKI.fleet).check, "ca-certificate")

    def test_a_key_that_may_not_sign(self) -> None:
        def change(leaf: OddLeaf) -> None:
            leaf.digital_signature = False

        self.assertEqual(self.refused(changed(change)).check, "key-usage")

    def test_an_extension_that_is_there_twice(self) -> None:
        def change(leaf: OddLeaf) -> None:
            leaf.groups_again = True
            leaf.groups = b"\x0c\x00"

        self.assertEqual(self.refused(changed(change)).check, "extensions")

    def test_too_many_names(self) -> None:
        names = [DNS(f"h{n}.example") for n in range(1001)]
        self.assertEqual(self.refused(named(*names), host_peer("h1.example")).check, "san")

    def test_what_is_expected_must_make_sense(self) -> None:
        self.assertRaises(IdentityError, fleet_peer, "Bad Domain", "controller")
        self.assertRaises(IdentityError, fleet_peer, "good", "admin")
        self.assertRaises(IdentityError, fleet_peer, "good", "controller", "a/b")


class DefenderTests(SynchronousTestCase):
    """A defender that comes to its controller."""

    def test_who_it_is(self) -> None:
        seen = check_defender(defender_of(PKI).certificate, PKI.trust_domain)
        self.assertEqual((seen.identifier, seen.name), (DEFENDER, "web1"))

    def test_who_it_is_not(self) -> None:
        for certificate, check in (
            (PKI.server().certificate, "eku"),
            (PKI.user().certificate, "spiffe-role"),
            (controller_of(PKI).certificate, "eku"),
            (defender_of(TestAuthority("other.example")).certificate, "trust-domain"),
        ):
            with self.assertRaises(IdentityError) as caught:
                check_defender(certificate, PKI.trust_domain)
            self.assertEqual(caught.exception.check, check)


class HostTests(PeerCase):
    """Servers, by where they are reached."""

    def test_matching(self) -> None:
        for host, names in (
            ("controller.example", ["controller.example"]),
            ("Controller.Example.", ["CONTROLLER.example"]),
            ("a.example.com", ["x.test", "*.example.com"]),
            ("my_host.example", ["my_host.example"]),
            ("db", ["db"]),
        ):
            check_peer(named(*map(DNS, names)), host_peer(host))

    def test_not_matching(self) -> None:
        for host, names in (
            ("controller.example", ["controller.example.evil.test"]),
            ("example.com", ["*.example.com"]),
            ("a.b.example.com", ["*.example.com"]),
            ("a.example.com", ["a*.example.com", "*a.example.com", "a.*.com", "*.*.com", "*"]),
            ("example.com", ["*.com"]),
            ("com", ["*.com", "*."]),
        ):
            error = self.refused(named(*map(DNS, names)), host_peer(host))
            self.assertEqual(error.check, "host-name", (host, names))

    def test_addresses(self) -> None:
        for text in ("10.1.2.3", "2001:db8::1", "[2001:db8::1]"):
            peer = host_peer(text)
            assert not isinstance(peer.host, str)
            check_peer(named(x509.IPAddress(peer.host)), peer)
            other = x509.IPAddress(ip_address("10.9.9.9"))
            self.assertEqual(self.refused(named(other, DNS("10.1.2.3")), peer).check, "host-name")

    def test_an_address_as_a_dns_name_is_none(self) -> None:
        self.assertEqual(self.refused(named(DNS("127.0.0.1")), host_peer("127.0.0.1")).check, "host-name")

    def test_two_uses_are_others_business(self) -> None:
        def change(leaf: OddLeaf) -> None:
            leaf.usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]

        check_peer(changed(change), host_peer("localhost"))

    def test_what_is_no_host(self) -> None:
        for text in (
            "",
            "a b",
            "-a.example",
            "a..b",
            "münchen.example",
            "1.2.3",
            "x" * 64,
            "a/b",
            "*.example.com",
        ):
            self.assertRaises(IdentityError, host_peer, text)

    @given(
        st.lists(st.sampled_from(["a", "b", "*", "example", "com", "A", "xn--a"]), min_size=1, max_size=4),
        st.lists(st.sampled_from(["a", "b", "example", "com", "xn--a"]), min_size=1, max_size=4),
    )
    def test_no_wider_than_the_common_library(self, pattern: list[str], host: list[str]) -> None:
        """What passes here passes service_identity too, which has no exceptions for plain names."""
        certificate = named(DNS(".".join(pattern)))
        name = ".".join(host)
        try:
            check_peer(certificate, host_peer(name))
        except IdentityError:
            if pattern == host:
                raise
            return
        try:
            verify_certificate_hostname(certificate, name)
        except VerificationError:
            self.fail(f"{pattern} passed for {name}")

    def test_texts(self) -> None:
        self.assertEqual(str(HostPeer("a.example")), "a.example")
        self.assertEqual(str(CONTROLLER), "spiffe://defender.fleet/controller/...")


class AnythingTests(SynchronousTestCase):
    """Certificates that are damaged."""

    DER = controller_of(PKI).certificate.public_bytes(Encoding.DER)

    @given(st.integers(0, len(DER) - 1), st.integers(1, 255))
    def test_a_damaged_certificate(self, place: int, change: int) -> None:
        """Whatever byte is changed: an identity or an IdentityError."""
        damaged = bytearray(self.DER)
        damaged[place] ^= change
        try:
            certificate = x509.load_der_x509_certificate(bytes(damaged))
        except (ValueError, x509.InvalidVersion):
            return
        for expected in (CONTROLLER, host_peer("localhost")):
            try:
                check_peer(certificate, expected)
            except IdentityError:
                pass

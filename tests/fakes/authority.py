"""A certificate authority in memory, and certificates that no authority should have signed.

pki = TestAuthority()
server = pki.server()                      # localhost, 127.0.0.1, ::1
bruce = pki.user("bruce@example.com", ["Dev team"])
files = pki.write_server(directory)        # server.pem, server.key, client-ca.pem
paths = pki.write_user(directory, bruce)   # ca.pem, cert.pem, key.pem: a DOCKER_CERT_PATH
for name in ODD: pki.odd(name)             # each fails the check ODD[name]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from controller.pki.authority import (
    FLEET_CA,
    ROOT,
    USER_CA,
    Authority,
    certificate_pem,
    sign_intermediate,
)
from controller.pki.custody import KeySigner, MemoryCustody, Signer, new_private_key, private_key_pem
from defender.contract.identity import GROUPS_OID, TRUST_DOMAIN_DEFAULT, encode_groups

ODD: dict[str, str | None] = {
    # Refused by the TLS library, whatever the certificate says.
    "expired": None,
    "not-yet-valid": None,
    "fleet-signed": None,
    "root-signed": None,
    "foreign-ca": None,
    "self-signed": None,
    # Refused by subject_of_certificate, with this check.
    "no-cn": "cn",
    "two-cns": "cn",
    "empty-cn": "cn",
    "control-cn": "cn",
    "long-cn": "cn",
    "anonymous-cn": "cn",
    "uid-cn": "cn",
    "no-san": "san",
    "two-uris": "san",
    "dns-san": "san",
    "https-uri": "spiffe",
    "path-uri": "spiffe",
    "foreign-trust-domain": "trust-domain",
    "defender-role": "spiffe-role",
    "controller-role": "spiffe-role",
    "no-eku": "eku",
    "server-eku": "eku",
    "both-ekus": "eku",
    "any-eku": "eku",
    "ca": "ca-certificate",
    "no-signing": "key-usage",
    "groups-critical": "groups-extension",
    "groups-garbage": "groups-extension",
    "groups-too-many": "groups-extension",
    "groups-too-large": "groups-extension",
    "groups-not-canonical": "groups-extension",
    "groups-repeated": "groups-extension",
    "groups-wrong-version": "groups-extension",
    "groups-not-utf8": "groups-extension",
    "groups-trailing": "groups-extension",
    "groups-twice": "groups-extension",
}
"""Odd certificates, and the check that each fails; None: it names somebody, TLS itself refuses it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate chain, leaf first, and the leaf's key."""

    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def serial(self) -> str:
        return format(self.certificate.serial_number, "x")

    @property
    def chain_pem(self) -> bytes:
        return b"".join(certificate_pem(certificate) for certificate in self.chain)

    @property
    def key_pem(self) -> bytes:
        return private_key_pem(self.key)


@dataclass(frozen=True, slots=True)
class ServerFiles:
    certificate_chain: Path
    private_key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True)
class UserFiles:
    """A directory fit for DOCKER_CERT_PATH."""

    directory: Path
    ca: Path
    certificate_chain: Path
    private_key: Path


class TestAuthority:
    """An `Authority` in memory, which can also sign what it should not."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, trust_domain: str = TRUST_DOMAIN_DEFAULT, now: datetime | None = None) -> None:
        self.trust_domain = trust_domain
        self.now = now or datetime.now(UTC)
        self.custody = MemoryCustody()
        self.authority = Authority.create(trust_domain, self.custody, self.now)
        self.root = self.authority.root
        self.users = self.authority.users
        self.fleet = self.authority.fleet

    def with_another_fleet(self) -> TestAuthority:
        """The same root and users, and another fleet intermediate."""
        other = copy(self)
        other.custody = MemoryCustody()
        other.custody._signers = {k: v for k, v in self.custody._signers.items() if k != FLEET_CA}
        signer, root = other.custody.create(FLEET_CA), other.custody.signer(ROOT)
        other.fleet = sign_intermediate(self.trust_domain, self.root, root, signer, "fleet", self.now)
        other.authority = Authority(
            self.trust_domain, root=self.root, users=self.users, fleet=other.fleet, custody=other.custody
        )
        return other

    def user(
        self,
        user: str = "bruce@example.com",
        groups: Iterable[str] = ("Dev team",),
        *,
        life: timedelta = timedelta(hours=8),
    ) -> Credentials:
        key = new_private_key()
        issued = self.authority.issue_user(key.public_key(), user, groups, now=self.now, life=life)
        return Credentials((issued.leaf, issued.issuer), key)

    def server(
        self,
        names: Sequence[str] = ("localhost", "127.0.0.1", "::1"),
        *,
        defender: str = "test",
        life: timedelta = timedelta(days=1),
    ) -> Credentials:
        key = new_private_key()
        issued = self.authority.issue_server(key.public_key(), defender, names, now=self.now, life=life)
        return Credentials((issued.leaf, issued.issuer), key)

    def odd(self, kind: str) -> Credentials:
        """Return a user certificate of one of the kinds in `ODD`."""
        if kind == "foreign-ca":
            return TestAuthority(self.trust_domain, self.now).user()
        key = new_private_key()
        leaf = OddLeaf(self, key)
        _CHANGES[kind](leaf)
        return Credentials(leaf.sign(), key)

    def write_server(self, directory: Path, credentials: Credentials | None = None) -> ServerFiles:
        credentials = credentials or self.server()
        directory.mkdir(parents=True, exist_ok=True)
        files = ServerFiles(directory / "server.pem", directory / "server.key", directory / "client-ca.pem")
        files.certificate_chain.write_bytes(credentials.chain_pem)
        _write_key(files.private_key, credentials)
        files.client_ca.write_bytes(certificate_pem(self.users))
        return files

    def write_user(self, directory: Path, credentials: Credentials | None = None) -> UserFiles:
        credentials = credentials or self.user()
        directory.mkdir(parents=True, exist_ok=True)
        files = UserFiles(directory, directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
        files.ca.write_bytes(certificate_pem(self.root))
        files.certificate_chain.write_bytes(credentials.chain_pem)
        _write_key(files.private_key, credentials)
        return files


class OddLeaf:
    """A user certificate about to be signed: change any attribute, then `sign`."""

    def __init__(self, pki: TestAuthority, key: ec.EllipticCurvePrivateKey) -> None:
        self.issuer: x509.Certificate | None = pki.users
        self.signer: Signer = pki.custody.signer(USER_CA)
        self.pki = pki
        self.key = key
        self.names: list[str] = ["bruce@example.com"]
        self.alternatives: list[x509.GeneralName] | None = [
            x509.UniformResourceIdentifier(f"spiffe://{pki.trust_domain}/user/bruce")
        ]
        self.usages: list[ObjectIdentifier] | None = [ExtendedKeyUsageOID.CLIENT_AUTH]
        self.constraints = x509.BasicConstraints(ca=False, path_length=None)
        self.digital_signature = True
        self.groups: bytes | None = encode_groups(["Dev team"])
        self.groups_critical = False
        self.groups_again = False
        self.begin = pki.now - timedelta(minutes=5)
        self.end = pki.now + timedelta(hours=8)

    def sign(self) -> tuple[x509.Certificate, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library warns of empty and of very long names
            subject = x509.Name(
                [x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in self.names]
            )
        signer = self.signer if self.issuer else KeySigner(self.key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.issuer.subject if self.issuer else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.begin.replace(microsecond=0))
            .not_valid_after(self.end.replace(microsecond=0))
            .add_extension(self.constraints, critical=True)
            .add_extension(self._key_usage(), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key), critical=False
            )
        )
        if self.alternatives is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(self.alternatives), critical=False)
        if self.usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.usages), critical=False)
        if self.groups is not None:
            extension = x509.UnrecognizedExtension(ObjectIdentifier(GROUPS_OID), self.groups)
            builder = builder.add_extension(extension, critical=self.groups_critical)
        if self.groups_again:
            builder = _with_second_groups(builder)
        leaf = signer.sign(builder)
        return (leaf, self.issuer) if self.issuer else (leaf,)

    def _key_usage(self) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=self.digital_signature,
            content_commitment=False,
            key_encipherment=not self.digital_signature,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=self.constraints.ca,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )


def der_utf8(content: bytes) -> bytes:
    """Return a DER UTF8String with this content, whatever it is."""
    size = len(content)
    if size < 0x80:
        return b"\x0c" + bytes([size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return b"\x0c" + bytes([0x80 | len(octets)]) + octets + content


def _with_second_groups(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    # The builder refuses a second extension of one kind; its list does not.
    extension = x509.UnrecognizedExtension(ObjectIdentifier(GROUPS_OID), encode_groups(["admins"]))
    builder._extensions.append(x509.Extension(extension.oid, False, extension))
    return builder


def _write_key(path: Path, credentials: Credentials) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(credentials.key_pem)


def _set(**attributes: object) -> Callable[[OddLeaf], None]:
    def change(leaf: OddLeaf) -> None:
        for name, value in attributes.items():
            assert hasattr(leaf, name), name
            setattr(leaf, name, value)

    return change


def _uris(*uris: str) -> Callable[[OddLeaf], None]:
    return _set(alternatives=[x509.UniformResourceIdentifier(uri) for uri in uris])


def _signed_by(key: str, certificate: str) -> Callable[[OddLeaf], None]:
    def change(leaf: OddLeaf) -> None:
        leaf.signer = leaf.pki.custody.signer(key)
        leaf.issuer = getattr(leaf.pki, certificate)

    return change


def _expired(leaf: OddLeaf) -> None:
    leaf.begin, leaf.end = leaf.pki.now - timedelta(hours=2), leaf.pki.now - timedelta(hours=1)


def _not_yet_valid(leaf: OddLeaf) -> None:
    leaf.begin, leaf.end = leaf.pki.now + timedelta(hours=1), leaf.pki.now + timedelta(hours=2)


def _json(text: str) -> Callable[[OddLeaf], None]:
    return _set(groups=der_utf8(text.encode()))


_TAIL = '"idp":"","mfa":false,"orig_exp":null,"sid":"","v":1}'

_CHANGES: dict[str, Callable[[OddLeaf], None]] = {
    "expired": _expired,
    "not-yet-valid": _not_yet_valid,
    "fleet-signed": _signed_by(FLEET_CA, "fleet"),
    "root-signed": _signed_by(ROOT, "root"),
    "self-signed": _set(issuer=None),
    "no-cn": _set(names=[]),
    "two-cns": _set(names=["bruce@example.com", "admin"]),
    "empty-cn": _set(names=[""]),
    "control-cn": _set(names=["bruce\r\nadmin"]),
    "long-cn": _set(names=["b" * 257]),
    "anonymous-cn": _set(names=["Anonymous"]),
    "uid-cn": _set(names=["uid:0"]),
    "no-san": _set(alternatives=None),
    "two-uris": _uris("spiffe://defender.fleet/user/a", "spiffe://defender.fleet/user/b"),
    "dns-san": _set(alternatives=[x509.DNSName("localhost")]),
    "https-uri": _uris("https://defender.fleet/user/a"),
    "path-uri": _uris("spiffe://defender.fleet/user/a/b"),
    "foreign-trust-domain": _uris("spiffe://elsewhere.example/user/a"),
    "defender-role": _uris("spiffe://defender.fleet/defender/a"),
    "controller-role": _uris("spiffe://defender.fleet/controller/a"),
    "no-eku": _set(usages=None),
    "server-eku": _set(usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
    "both-ekus": _set(usages=[ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
    "any-eku": _set(usages=[ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    "ca": _set(constraints=x509.BasicConstraints(ca=True, path_length=None)),
    "no-signing": _set(digital_signature=False),
    "groups-critical": _set(groups_critical=True),
    "groups-garbage": _set(groups=b"\x30\x03\x02\x01\x05"),
    "groups-too-many": _json('{"groups":[' + ",".join(f'"g{n:03}"' for n in range(257)) + "]," + _TAIL),
    "groups-too-large": _json(
        '{"groups":[' + ",".join(f'"{n:03}{"g" * 200}"' for n in range(100)) + "]," + _TAIL
    ),
    "groups-not-canonical": _json('{"groups": ["Dev team"],' + _TAIL),
    "groups-repeated": _json('{"groups":["ops","ops"],' + _TAIL),
    "groups-wrong-version": _json('{"groups":["ops"],' + _TAIL.replace('"v":1', '"v":2')),
    "groups-not-utf8": _set(groups=der_utf8(b'{"groups":["\xff"],' + _TAIL.encode())),
    "groups-trailing": _set(groups=encode_groups(["Dev team"]) + b"\x05\x00"),
    "groups-twice": _set(groups_again=True),
}

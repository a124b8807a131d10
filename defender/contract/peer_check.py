"""Who is at the other end of a TLS connection, read from the certificate it showed.

TLS itself says that a chain leads to an anchor and that the peer holds the key. It does not say that this is
the peer that was meant. That is checked here, by our own code, on every outbound connection, after the
handshake and before the first byte: Twisted's own check lets a certificate without any subject alternative
name pass for every host (versions 26.4 to 26.10).

* `HostPeer`: a server known by its host name or IP address (RFC 9525): a subject alternative name of that
  kind must match. The common name never counts, and a certificate without subject alternative names is
  refused.
* `FleetPeer`: a program of the fleet, known by its SPIFFE URI: trust domain and role, and the id if it is
  known.

Either must be a server's certificate: extended key usage serverAuth, said in so many words. The other way
round, `check_defender` reads who a defender is that has come to the controller.

No function raises anything but `IdentityError`. No clock and no trust: times and chain are for the TLS layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from defender.contract.errors import IdentityError, one_line
from defender.contract.identity import ROLE_DEFENDER, ROLES, check_trust_domain

_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_SPIFFE: Final = re.compile(r"spiffe://([^/?#]*)/([^/?#]+)/([^/?#]+)")
_SPIFFE_ID: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}")
_USAGES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
}
MAX_NAMES: Final = 1000
"""Subject alternative names that are looked at; a certificate with more is refused."""


@dataclass(frozen=True, slots=True)
class HostPeer:
    """A server that is known by where it is reached; make it with `host_peer`."""

    host: str | IPv4Address | IPv6Address

    def __str__(self) -> str:
        return str(self.host)


@dataclass(frozen=True, slots=True)
class FleetPeer:
    """A program of the fleet: its trust domain, its role, and its id where only one will do.

    The trust domain is None for a host that joins: it knows its fleet by the root's key alone.
    """

    trust_domain: str | None
    role: str
    identifier: str | None = None

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain or '...'}/{self.role}/{self.identifier or '...'}"


ExpectedPeer = HostPeer | FleetPeer


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A peer that passed its check.

    ``identity`` is its SPIFFE URI, "" where it has none; ``identifier`` the last part of that. ``name`` is
    its common name, for display. ``serial`` and ``issuer`` as in `CertificateSubject`; ``fingerprint`` is the
    SHA-256 of the certificate in DER, ``key`` that of its public key (SubjectPublicKeyInfo). ``not_before``
    and ``not_after`` are unix seconds, both inclusive.
    """

    identity: str
    identifier: str
    name: str
    serial: str
    issuer: str
    fingerprint: bytes
    key: bytes
    not_before: int
    not_after: int


def host_peer(host: str) -> HostPeer:
    """Return the peer that is reached under a host name or an IP address.

    Raises IdentityError (check ``host``) for a text that can be neither. International names are written in
    their ``xn--`` form.
    """
    text = host.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        return HostPeer(ip_address(text))
    except ValueError:
        pass
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise IdentityError("host", f"{host[:300]!r} is neither a host name nor an IP address")
    return HostPeer(name)


def fleet_peer(trust_domain: str | None, role: str, identifier: str | None = None) -> FleetPeer:
    """Return the peer of this role in this trust domain; raises IdentityError for what cannot be one."""
    if trust_domain is not None:
        check_trust_domain(trust_domain)
    if role not in ROLES:
        raise IdentityError("spiffe-role", f"unknown role {role!r}")
    if identifier is not None and not _SPIFFE_ID.fullmatch(identifier):
        raise IdentityError("spiffe-id", f"{identifier!r} cannot be a SPIFFE path segment")
    return FleetPeer(trust_domain, role, identifier)


def check_peer(certificate: x509.Certificate, expected: ExpectedPeer) -> PeerIdentity:
    """Return who a server is, or raise IdentityError for the first check that its certificate fails.

    Checks, by the name in ``IdentityError.check``: ``certificate`` (unreadable), ``extensions``, ``serial``,
    ``ca-certificate``, ``key-usage``, ``eku``, ``san`` (none, or too many), then for a `HostPeer`
    ``host-name``, for a `FleetPeer` ``spiffe``, ``trust-domain``, ``spiffe-role``, ``spiffe-id``.
    """
    return _checked(certificate, expected, ExtendedKeyUsageOID.SERVER_AUTH)


def check_defender(certificate: x509.Certificate, trust_domain: str) -> PeerIdentity:
    """Return which defender has come with this client certificate; the checks are those of `check_peer`.

    `PeerIdentity.identifier` is the defender's id.
    """
    return _checked(certificate, FleetPeer(trust_domain, ROLE_DEFENDER), ExtendedKeyUsageOID.CLIENT_AUTH)


def _checked(certificate: x509.Certificate, expected: ExpectedPeer, usage: ObjectIdentifier) -> PeerIdentity:
    name = ""
    try:
        name = _name(certificate)
        return _identity(certificate, expected, usage, name)
    except IdentityError as error:
        raise IdentityError(error.check, error.detail, subject=name) from error
    except Exception as error:
        # cryptography raises ValueError, TypeError and types of its own for what it cannot read.
        raise IdentityError(
            "certificate", f"it cannot be read: {one_line(str(error))[:300]}", subject=name
        ) from error


def _identity(
    certificate: x509.Certificate, expected: ExpectedPeer, usage: ObjectIdentifier, name: str
) -> PeerIdentity:
    try:
        extensions = certificate.extensions
    except x509.DuplicateExtension as error:
        raise IdentityError("extensions", f"extension {error.oid.dotted_string} is there twice") from error
    if certificate.serial_number <= 0:
        raise IdentityError("serial", "its serial number is not positive")
    _check_uses(extensions, expected, usage)
    names = _alternative_names(extensions)
    uri = identifier = ""
    if isinstance(expected, FleetPeer):
        uri, identifier = _fleet_identity(names, expected)
    else:
        _check_host(names, expected)
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PeerIdentity(
        identity=uri,
        identifier=identifier,
        name=name,
        serial=format(certificate.serial_number, "x"),
        issuer=one_line(certificate.issuer.rfc4514_string()),
        fingerprint=sha256(certificate.public_bytes(Encoding.DER)).digest(),
        key=sha256(key).digest(),
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
    )


def _check_uses(extensions: x509.Extensions, expected: ExpectedPeer, usage: ObjectIdentifier) -> None:
    constraints = _extension(extensions, x509.BasicConstraints)
    uses = _extension(extensions, x509.KeyUsage)
    if (constraints is not None and constraints.ca) or (uses is not None and uses.key_cert_sign):
        raise IdentityError("ca-certificate", "it is an authority's certificate")
    if uses is not None and not uses.digital_signature:
        raise IdentityError("key-usage", "its key usage does not allow digital signatures")
    extended = _extension(extensions, x509.ExtendedKeyUsage)
    held = set(extended) if extended is not None else set()
    if usage not in held:
        raise IdentityError("eku", f"its extended key usage lacks {_USAGES[usage]}")
    if isinstance(expected, FleetPeer) and len(held) > 1:
        # Ours have one use each. Others' servers often have two, and are known by their host name.
        raise IdentityError("eku", f"its extended key usage has more than {_USAGES[usage]}")


def _alternative_names(extensions: x509.Extensions) -> list[x509.GeneralName]:
    names = _extension(extensions, x509.SubjectAlternativeName)
    found = list(names) if names is not None else []
    if not found:
        raise IdentityError("san", "it has no subject alternative name, so it says nothing of who this is")
    if len(found) > MAX_NAMES:
        raise IdentityError("san", f"it has {len(found)} subject alternative names")
    return found


def _fleet_identity(names: list[x509.GeneralName], expected: FleetPeer) -> tuple[str, str]:
    uris = [entry.value for entry in names if isinstance(entry, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise IdentityError("san", f"it must have exactly one URI name, it has {len(uris)}")
    uri = uris[0]
    match = _SPIFFE.fullmatch(uri)
    if match is None:
        raise IdentityError("spiffe", f"{uri[:300]!r} is not of the form spiffe://DOMAIN/ROLE/ID")
    domain, role, identifier = match.groups()
    if expected.trust_domain is None:
        check_trust_domain(domain)
    elif domain != expected.trust_domain:
        raise IdentityError(
            "trust-domain",
            f"it belongs to trust domain {domain[:300]!r}, not to {expected.trust_domain!r}",
        )
    if role != expected.role:
        raise IdentityError("spiffe-role", f"it is a {role[:300]!r} certificate, not a {expected.role}'s")
    if not _SPIFFE_ID.fullmatch(identifier):
        raise IdentityError("spiffe-id", f"{identifier[:300]!r} cannot be a SPIFFE path segment")
    if expected.identifier is not None and identifier != expected.identifier:
        raise IdentityError("spiffe-id", f"it is {identifier!r}, not {expected.identifier!r}")
    return uri, identifier


def _check_host(names: list[x509.GeneralName], expected: HostPeer) -> None:
    host = expected.host
    if isinstance(host, str):
        if any(isinstance(entry, x509.DNSName) and _covers(entry.value, host) for entry in names):
            return
    elif any(isinstance(entry, x509.IPAddress) and entry.value == host for entry in names):
        return
    shown = [one_line(str(entry.value))[:100] for entry in names[:5]]
    raise IdentityError("host-name", f"it is not for {str(host)!r}; it names {', '.join(shown)}")


def _covers(pattern: str, host: str) -> bool:
    """Tell whether a DNS name of a certificate covers a host name (RFC 9525 section 6.3).

    ``*`` stands for one whole label, the leftmost, and needs two labels after it: one organization does not
    hold a whole top-level domain.
    """
    name = pattern.lower().removesuffix(".")
    if name == host:
        return True
    if not name.startswith("*."):
        return False
    rest = name[2:]
    label, _, domain = host.partition(".")
    return bool(label) and "." in rest and "*" not in rest and domain == rest


_E = TypeVar("_E", bound=x509.ExtensionType)


def _extension(extensions: x509.Extensions, kind: type[_E]) -> _E | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _name(certificate: x509.Certificate) -> str:
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return one_line(str(names[0].value)[:200]) if names else ""
    except ValueError:
        return ""

"""Names in certificates: who a client is, read from its certificate and from nothing else.

A user certificate says three things. The common name is the user's name, as rules and events show it. The
one URI name ``spiffe://TRUST-DOMAIN/user/ID`` is the stable identity. The groups stand in one non-critical
extension of our own (`GROUPS_OID`): a DER UTF8String that holds canonical JSON. Whatever cannot be read in
exactly one way is refused: a certificate without the extension has no groups, a certificate with a damaged
one is no certificate.

What holds here:

* No function raises anything but `IdentityError`, whatever bytes the certificate is made of.
* No clock: whether a certificate is within its time is for the caller to judge, from `not_before` and
  `not_after`. No trust either: who signed it is for the TLS layer to judge.

The group extension itself is `defender.contract.groups`; its names are offered here too.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from defender.contract.errors import IdentityError, one_line
from defender.contract.facts import ANONYMOUS
from defender.contract.groups import (
    GROUPS_OID,
    MAX_NAME,
    GroupClaims,
    check_name,
    decode_groups,
    encode_groups,
    groups_refused,
    refused,
)

__all__ = [
    "GROUPS_OID",
    "ROLES",
    "ROLE_CONTROLLER",
    "ROLE_DEFENDER",
    "ROLE_USER",
    "TRUST_DOMAIN_DEFAULT",
    "CertificateSubject",
    "Examination",
    "GroupClaims",
    "check_trust_domain",
    "check_user_name",
    "decode_groups",
    "encode_groups",
    "examine_certificate",
    "load_certificate",
    "printable",
    "spiffe_uri",
    "stable_id",
    "subject_of_certificate",
    "user_id",
]

TRUST_DOMAIN_DEFAULT = "defender.fleet"
ROLE_USER = "user"
ROLE_DEFENDER = "defender"
ROLE_CONTROLLER = "controller"
ROLES = frozenset({ROLE_USER, ROLE_DEFENDER, ROLE_CONTROLLER})

# SPIFFE-ID specification, section 2: lower-case trust domain of at most 255 bytes, path segments of these
# letters only and never "." or "..".
_TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,253}[a-z0-9])?")
_SPIFFE_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}")
_SPIFFE_URI = re.compile(r"spiffe://([^/?#]*)/([^/?#]+)/([^/?#]+)")
# Names of subjects that come from a unix peer; a certificate must not be able to claim one.
_RESERVED_USER = re.compile(re.escape(ANONYMOUS) + "|uid:.*", re.DOTALL)
printable = one_line
"""Names from certificates as log lines show them."""

_OID_GROUPS = x509.ObjectIdentifier(GROUPS_OID)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CertificateSubject:
    """A user certificate, read: ``not_before`` and ``not_after`` are unix seconds, both inclusive."""

    user: str
    groups: tuple[str, ...]
    identity: str
    """The SPIFFE URI."""
    serial: str
    """Lower-case hexadecimal without 0x."""
    issuer: str
    """The issuer's name, RFC 4514."""
    not_before: float
    not_after: float
    claims: GroupClaims


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything that could be read from a certificate, and every check it fails.

    A field whose check failed holds None (``groups``: empty). For display: decisions use
    `subject_of_certificate`, which gives nothing when anything is wrong.
    """

    name: str
    """The best name known, fit for a log line."""
    user: str | None
    claims: GroupClaims | None
    identity: str | None
    serial: str | None
    issuer: str | None
    not_before: float | None
    not_after: float | None
    problems: tuple[IdentityError, ...]


def spiffe_uri(trust_domain: str, role: str, identifier: str) -> str:
    """Return ``spiffe://TRUST-DOMAIN/ROLE/ID``; raises IdentityError if a part cannot stand in one."""
    check_trust_domain(trust_domain)
    if role not in ROLES:
        raise refused("spiffe-role", identifier, f"unknown role {role!r}")
    if not _SPIFFE_ID.fullmatch(identifier):
        raise refused("spiffe-id", identifier, f"{identifier!r} cannot be a SPIFFE path segment")
    return f"spiffe://{trust_domain}/{role}/{identifier}"


def check_trust_domain(trust_domain: str) -> None:
    """Raise IdentityError unless the text can be a SPIFFE trust domain."""
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        raise refused(
            "trust-domain",
            "",
            f"{trust_domain!r} is no trust domain: use lower-case letters, digits, '.', '-', '_'",
        )


def stable_id(trust_domain: str, role: str, name: str) -> str:
    """Return the UUID (version 5) of a name in a role: the same name always gives the same one.

    Names are compared as rules compare them, under casefold; so are their identities.
    """
    folded = unicodedata.normalize("NFC", name.casefold())
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"spiffe://{trust_domain}/{role}#{folded}"))


def user_id(trust_domain: str, user: str) -> str:
    """Return the stable identifier of a user: a UUID in text form."""
    return stable_id(trust_domain, ROLE_USER, user)


def check_user_name(user: str) -> None:
    """Raise IdentityError (check ``cn``) unless the text can be a user's name in a certificate."""
    check_name(user, "cn", "user name")
    if _RESERVED_USER.fullmatch(user.casefold()):
        raise refused("cn", user, f"the name {user!r} is reserved for peers of a unix socket")


def load_certificate(der: bytes) -> x509.Certificate:
    """Return the certificate in these DER bytes; raises IdentityError (check ``certificate``)."""
    try:
        return x509.load_der_x509_certificate(der)
    except Exception as error:
        raise refused("certificate", "", f"it cannot be read: {one_line(str(error))}") from error


def load_pem_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates in this PEM; raises ValueError when there is none or one cannot be read."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except x509.InvalidVersion as error:
        # Not a ValueError, as everything else is.
        raise ValueError(str(error)) from error


def subject_of_certificate(cert: x509.Certificate, trust_domain: str) -> CertificateSubject:
    """Return who a user certificate names, or raise IdentityError for the first check it fails.

    Checks, by the name in ``IdentityError.check``: ``extensions`` (unreadable or repeated), ``serial``,
    ``validity`` (ends before it begins), ``cn``, ``ca-certificate``, ``key-usage``, ``eku``, ``san``,
    ``spiffe``, ``trust-domain``, ``spiffe-role``, ``spiffe-id``, ``groups-extension``.
    """
    seen = examine_certificate(cert, trust_domain)
    if seen.problems:
        raise seen.problems[0]
    # Without problems every field was read; the test is for the type checker and for a bug of ours.
    if (
        seen.user is None
        or seen.claims is None
        or seen.identity is None
        or seen.serial is None
        or seen.issuer is None
        or seen.not_before is None
        or seen.not_after is None
    ):
        raise refused("certificate", seen.name, "it could not be read completely")
    return CertificateSubject(
        user=seen.user,
        groups=seen.claims.groups,
        identity=seen.identity,
        serial=seen.serial,
        issuer=seen.issuer,
        not_before=seen.not_before,
        not_after=seen.not_after,
        claims=seen.claims,
    )


def examine_certificate(cert: x509.Certificate, trust_domain: str) -> Examination:
    """Read a user certificate as `subject_of_certificate` does, but go on after a failed check."""
    name = _best_name(cert)
    problems: list[IdentityError] = []

    def attempt(check: str, read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except IdentityError as error:
            problems.append(IdentityError(error.check, error.detail, subject=name))
        except Exception as error:  # noqa: BLE001 - cryptography raises ValueError, TypeError and types of its own
            problems.append(refused(check, name, f"it cannot be read: {one_line(str(error))}"))
        return None

    extensions = attempt("extensions", lambda: _extensions(cert))
    serial = attempt("serial", lambda: _serial(cert))
    issuer = attempt("certificate", lambda: one_line(cert.issuer.rfc4514_string()))
    times = attempt("validity", lambda: _validity(cert))
    user = attempt("cn", lambda: _common_name(cert))
    identity: str | None = None
    claims: GroupClaims | None = None
    if extensions is not None:
        attempt("ca-certificate", lambda: _check_not_authority(extensions))
        attempt("key-usage", lambda: _check_key_usage(extensions))
        attempt("eku", lambda: _check_extended_key_usage(extensions))
        identity = attempt("san", lambda: _user_identity(extensions, trust_domain))
        claims = attempt("groups-extension", lambda: _groups(extensions))
    return Examination(
        name=name,
        user=user,
        claims=claims,
        identity=identity,
        serial=serial,
        issuer=issuer,
        not_before=times[0] if times else None,
        not_after=times[1] if times else None,
        problems=tuple(problems),
    )


# The checks, one a function.


def _extensions(cert: x509.Certificate) -> x509.Extensions:
    try:
        return cert.extensions
    except x509.DuplicateExtension as error:
        if error.oid == _OID_GROUPS:
            raise groups_refused("it is there more than once") from error
        raise refused("extensions", "", f"extension {error.oid.dotted_string} is there twice") from error


def _serial(cert: x509.Certificate) -> str:
    if cert.serial_number <= 0:
        raise refused("serial", "", "its serial number is not positive")
    return format(cert.serial_number, "x")


def _validity(cert: x509.Certificate) -> tuple[float, float]:
    begin, end = cert.not_valid_before_utc.timestamp(), cert.not_valid_after_utc.timestamp()
    if end < begin:
        raise refused("validity", "", "it ends before it begins")
    return begin, end


def _common_name(cert: x509.Certificate) -> str:
    names = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise refused("cn", "", f"it must have exactly one common name, it has {len(names)}")
    value = names[0].value
    if not isinstance(value, str):
        raise refused("cn", "", "its common name is not text")
    check_user_name(value)
    return value


def _check_not_authority(extensions: x509.Extensions) -> None:
    constraints = _extension(extensions, x509.BasicConstraints)
    usage = _extension(extensions, x509.KeyUsage)
    if (constraints is not None and constraints.ca) or (usage is not None and usage.key_cert_sign):
        raise refused("ca-certificate", "", "it is an authority's certificate, not a user's")


def _check_key_usage(extensions: x509.Extensions) -> None:
    usage = _extension(extensions, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise refused("key-usage", "", "its key usage does not allow digital signatures")


def _check_extended_key_usage(extensions: x509.Extensions) -> None:
    usages = _extension(extensions, x509.ExtendedKeyUsage)
    if usages is None:
        raise refused("eku", "", "it has no extended key usage; a user's certificate has clientAuth")
    held = set(usages)
    if ExtendedKeyUsageOID.SERVER_AUTH in held:
        raise refused("eku", "", "its extended key usage has serverAuth: it is a server's certificate")
    if ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in held:
        raise refused("eku", "", "its extended key usage has anyExtendedKeyUsage, which says nothing")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in held:
        raise refused("eku", "", "its extended key usage lacks clientAuth")


def _user_identity(extensions: x509.Extensions, trust_domain: str) -> str:
    names = _extension(extensions, x509.SubjectAlternativeName)
    if names is None:
        raise refused("san", "", "it has no subject alternative name; a user's certificate has a SPIFFE URI")
    entries = list(names)
    if len(entries) != 1 or not isinstance(entries[0], x509.UniformResourceIdentifier):
        raise refused("san", "", "its subject alternative name must be exactly one SPIFFE URI")
    uri = entries[0].value
    match = _SPIFFE_URI.fullmatch(uri)
    if match is None:
        raise refused("spiffe", "", f"{uri[:300]!r} is not of the form spiffe://DOMAIN/user/ID")
    domain, role, identifier = match.groups()
    if domain != trust_domain:
        raise refused("trust-domain", "", f"it belongs to trust domain {domain!r}, not to {trust_domain!r}")
    if role != ROLE_USER:
        raise refused("spiffe-role", "", f"it is a {role!r} certificate, not a user's")
    if not _SPIFFE_ID.fullmatch(identifier):
        raise refused("spiffe-id", "", f"{identifier!r} cannot be a SPIFFE path segment")
    return uri


def _groups(extensions: x509.Extensions) -> GroupClaims:
    found = [extension for extension in extensions if extension.oid == _OID_GROUPS]
    if not found:
        return GroupClaims()
    if len(found) > 1:
        raise groups_refused("it is there more than once")
    if found[0].critical:
        raise groups_refused("it is marked critical")
    value = found[0].value
    if not isinstance(value, x509.UnrecognizedExtension):
        raise groups_refused("it is not of the expected kind")
    return decode_groups(value.value)


_E = TypeVar("_E", bound=x509.ExtensionType)


def _extension(extensions: x509.Extensions, kind: type[_E]) -> _E | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _best_name(cert: x509.Certificate) -> str:
    """Return a name for messages, whatever state the certificate is in."""
    try:
        names = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name = str(names[0].value) if len(names) == 1 else cert.subject.rfc4514_string()
        return one_line(name[:MAX_NAME]) or f"serial {cert.serial_number:x}"
    except Exception:  # noqa: BLE001 - as above: a name for a message must not fail
        return "a certificate with an unreadable name"

"""What makes this host a defender of a fleet, on its disk: ``STATE/fleet``, mode 0700.

    member.json    keys, certificates and names: one file, replaced whole, so that they always fit together
    next.json      keys that certificates were asked for and that are not settled yet
    server.pem     the key and chain towards users, taken from member.json, for the listener

All have mode 0600. The keys are made here and never leave the host. What is read is verified as it was when
it came: a file that others can read or that does not fit together is refused; the message says what to do.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from defender.channel.tls import Credentials
from defender.contract.errors import ContractError
from defender.contract.identity import load_pem_certificates
from defender.contract.join import MAX_TRUST, Joined, JoinError, check_joined
from defender.contract.join_token import pin_of
from defender.contract.renewal import renewal_time

MEMBER: Final = "member.json"
NEXT: Final = "next.json"
SERVER: Final = "server.pem"
_MAX_BYTES: Final = 1024 * 1024


class MembershipError(ContractError):
    """The files of a membership cannot be used or written; the text is fit for people."""


@dataclass(frozen=True, slots=True)
class NewKeys:
    """Keys that certificates are asked for: towards the controller, and towards users."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    server_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def csr(self) -> bytes:
        """A signing request for the first key, in DER: another one each time. It asks for no name."""
        return _csr(self.key)

    @property
    def server_csr(self) -> bytes:
        """The same for the second key."""
        return _csr(self.server_key)


@dataclass(frozen=True, slots=True)
class Member:
    """This host as a defender of a fleet.

    ``answer`` holds the certificates, ``token`` the id of the join token that let it in.
    """

    answer: Joined
    keys: NewKeys
    token: str = ""

    @property
    def defender(self) -> str:
        """The defender's id."""
        return self.answer.defender

    @property
    def name(self) -> str:
        """The defender's name, as the controller knows it."""
        return self.answer.name

    @property
    def trust_domain(self) -> str:
        """The fleet's trust domain."""
        return self.answer.trust_domain

    @property
    def certificate(self) -> x509.Certificate:
        """Our certificate towards the controller."""
        return x509.load_der_x509_certificate(self.answer.chain[0])

    @property
    def serial(self) -> str:
        """Its serial number in lower-case hexadecimal, which COMMIT says."""
        return format(self.certificate.serial_number, "x")

    @property
    def not_after(self) -> float:
        """Its last second, unix time."""
        return self.certificate.not_valid_after_utc.timestamp()

    @property
    def renewal(self) -> float:
        """When it is due for renewal, unix time: the same at each start, another one on each host."""
        certificate = self.certificate
        mark = sha256(self.answer.chain[0]).digest()
        fraction = int.from_bytes(mark[:6], "big") / 2**48
        return renewal_time(certificate.not_valid_before_utc.timestamp(), self.not_after, fraction)

    @property
    def pins(self) -> frozenset[bytes]:
        """The roots that we believe, see `join_token.pin_of`."""
        return frozenset(pin_of(x509.load_der_x509_certificate(root)) for root in self.answer.roots)

    @property
    def anchors(self) -> tuple[x509.Certificate, ...]:
        """The intermediates that the controller's certificate may come from."""
        return tuple(x509.load_der_x509_certificate(each) for each in self.answer.fleet)

    @property
    def credentials(self) -> Credentials:
        """What we show to the controller."""
        chain = tuple(x509.load_der_x509_certificate(each) for each in self.answer.chain)
        return Credentials(chain, self.keys.key)


class MemberStore:
    """Keeps one membership in one directory. Blocking; used at starts and renewals only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server_file = directory / SERVER
        """The listener's key and certificate chain, both in this one file; there once we are a member."""
        self._used: NewKeys | None = None

    def load(self) -> Member | None:
        """Return who we are, None if we are no member; raises MembershipError for files that are not right.

        Time is not looked at: a certificate may have expired.
        """
        found = self._read(MEMBER)
        if found is None:
            return None
        try:
            answer = Joined(
                defender=_text(found, "defender"),
                name=_text(found, "name"),
                trust_domain=_text(found, "trust_domain"),
                chain=_certificates(found, "chain"),
                roots=_certificates(found, "roots"),
                fleet=_certificates(found, "fleet"),
                server_chain=_certificates(found, "server_chain"),
                trust=_binary(found, "trust"),
            )
            member = Member(answer, _keys(found), _text(found, "token"))
            check_joined(
                answer,
                key=member.keys.key.public_key(),
                server_key=member.keys.server_key.public_key() if answer.server_chain else None,
                pins=member.pins,
                now=None,
            )
        except (JoinError, ValueError, TypeError, KeyError) as error:
            # The cause may quote the file, which holds keys.
            reason = str(error) if isinstance(error, JoinError) else "it is damaged"
            raise MembershipError(
                f"{self.directory / MEMBER}: {reason}; restore it, or remove it and join again "
                "with a new token"
            ) from None
        self._used = member.keys
        self._write_server(member)
        return member

    def save(self, member: Member) -> None:
        """Keep the membership in place of the one before, and forget the keys that were asked for.

        Raises MembershipError; then the one before is still there, or the new one is, whole.
        """
        answer = member.answer
        content = {
            "v": 1,
            "defender": answer.defender,
            "name": answer.name,
            "trust_domain": answer.trust_domain,
            "token": member.token,
            "key": _key_pem(member.keys.key),
            "chain": [_pem(each) for each in answer.chain],
            "server_key": _key_pem(member.keys.server_key),
            "server_chain": [_pem(each) for each in answer.server_chain],
            "roots": [_pem(each) for each in answer.roots],
            "fleet": [_pem(each) for each in answer.fleet],
            "trust": base64.b64encode(answer.trust).decode("ascii"),
        }
        self._write(MEMBER, (json.dumps(content, indent=1) + "\n").encode())
        self._used = member.keys
        self._write_server(member)
        try:
            (self.directory / NEXT).unlink(missing_ok=True)
        except OSError as error:
            raise MembershipError(f"{self.directory / NEXT}: {error.strerror}") from None

    def new_keys(self) -> NewKeys:
        """Return the keys to ask certificates for, made and kept if there are none yet.

        They stay the same until `save`: whoever asks again, after a crash too, asks with the same ones.
        Raises MembershipError.
        """
        try:
            found = self._read(NEXT)
            keys = _keys(found) if found is not None else None
            # A crash may have come between the certificate for them and the end of this file.
            if keys is not None and (self._used is None or _differ(keys, self._used)):
                return keys
        except (ValueError, TypeError, KeyError):
            pass  # keys that nobody has a certificate for: new ones do as well
        keys = NewKeys(ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1()))
        content = {"v": 1, "key": _key_pem(keys.key), "server_key": _key_pem(keys.server_key)}
        self._write(NEXT, (json.dumps(content, indent=1) + "\n").encode())
        return keys

    def _write_server(self, member: Member) -> None:
        if not member.answer.server_chain:
            return
        chain = "".join(map(_pem, member.answer.server_chain))
        content = (_key_pem(member.keys.server_key) + chain).encode()
        try:
            if _read_private(self.server_file) == content:
                return
        except (OSError, MembershipError):
            pass  # whatever it is, it is replaced
        self._write(SERVER, content)

    def _read(self, name: str) -> dict[str, object] | None:
        path = self.directory / name
        try:
            self._check_directory()
            content = _read_private(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MembershipError(f"{path}: {error.strerror}") from None
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("v") != 1:
            if name == NEXT:
                raise ValueError("damaged")
            raise MembershipError(
                f"{path}: it is damaged, or of a newer version; restore it, or remove it and join again "
                "with a new token"
            )
        return found

    def _check_directory(self) -> None:
        found = self.directory.stat()
        if found.st_mode & 0o077:
            raise MembershipError(
                f"{self.directory}: mode {stat.S_IMODE(found.st_mode):04o} lets others in; chmod it 700, "
                "keys are kept there"
            )
        if found.st_uid not in (0, os.geteuid()):
            raise MembershipError(f"{self.directory} belongs to another user; chown it to the defender's")

    def _write(self, name: str, content: bytes) -> None:
        """Replace a file, so that a crash leaves the old one or the new one."""
        path = self.directory / name
        staging = self.directory / f".{name}.{secrets.token_hex(8)}"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_directory()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(staging, flags, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(staging, path)
            except BaseException:
                staging.unlink(missing_ok=True)
                raise
            directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise MembershipError(f"{path}: {error.strerror}") from None


def _read_private(path: Path) -> bytes:
    """Return what is in a file of ours; MembershipError if others can read it or it is no file, OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise MembershipError(f"{path}: not a regular file")
        if found.st_mode & 0o077:
            raise MembershipError(
                f"{path}: mode {stat.S_IMODE(found.st_mode):04o} lets others read its keys; chmod it 600, "
                "and join again with a new token if others could get at it"
            )
        if found.st_size > _MAX_BYTES:
            raise MembershipError(f"{path}: it has {found.st_size} bytes, which no defender wrote")
        return file.read(_MAX_BYTES)


def _differ(keys: NewKeys, used: NewKeys) -> bool:
    return keys.key.public_key() != used.key.public_key()


def _text(found: dict[str, object], key: str) -> str:
    value = found[key]
    if not isinstance(value, str):
        raise TypeError(key)
    return value


def _binary(found: dict[str, object], key: str) -> bytes:
    try:
        value = base64.b64decode(_text(found, key), validate=True)
    except binascii.Error:
        raise ValueError(key) from None
    if len(value) > MAX_TRUST:
        raise ValueError(key)
    return value


def _certificates(found: dict[str, object], key: str) -> tuple[bytes, ...]:
    value = found[key]
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(key)
    return ders_of(value)


def ders_of(pems: Iterable[str]) -> tuple[bytes, ...]:
    """The first certificate of each PEM text, in DER; raises ValueError."""
    return tuple(load_pem_certificates(each.encode())[0].public_bytes(Encoding.DER) for each in pems)


def _keys(found: dict[str, object]) -> NewKeys:
    keys = []
    for name in ("key", "server_key"):
        key = serialization.load_pem_private_key(_text(found, name).encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise TypeError(name)
        keys.append(key)
    return NewKeys(*keys)


def _pem(certificate: bytes) -> str:
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode("ascii")


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode("ascii")


def _csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

"""Where an authority's keys are kept, behind an interface that only signs.

An `Authority` never sees a private key: it asks a `Custody` for a `Signer` and hands it a certificate to
sign. A custody in files is here (`FileCustody`) and one in memory; one in a hardware module or another
process can take their place.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.pki.files import write_private
from controller.pki.passed_keys import is_passed, key_files, passed_key


class CustodyError(Exception):
    """A key that is not there, cannot be read, or is open to others. The text is fit for people."""


class Signer(Protocol):
    """One key that signs certificates."""

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Return the certificate, signed with ECDSA and SHA-256."""


class Custody(Protocol):
    """Keeps keys by name."""

    def create(self, name: str) -> Signer:
        """Make a new P-256 key; raises CustodyError if the name is taken."""

    def signer(self, name: str) -> Signer:
        """Return the key of this name; raises CustodyError if it cannot be used."""

    def holds(self, name: str) -> bool:
        """Say whether there is a key of this name: a root's may have been taken off line."""


class KeySigner:
    """A `Signer` over a private key in this process."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._key.public_key()

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Return the certificate, signed with ECDSA and SHA-256."""
        return builder.sign(self._key, hashes.SHA256())


class MemoryCustody:
    """A `Custody` that forgets: for tests and for rehearsals."""

    def __init__(self) -> None:
        self._signers: dict[str, KeySigner] = {}

    def create(self, name: str) -> Signer:
        """Make a new P-256 key; raises CustodyError if the name is taken."""
        if name in self._signers:
            raise CustodyError(f"there is a key {name!r} already")
        self._signers[name] = KeySigner(new_private_key())
        return self._signers[name]

    def signer(self, name: str) -> Signer:
        """Return the key of this name; raises CustodyError if there is none."""
        if name not in self._signers:
            raise CustodyError(f"there is no key {name!r}")
        return self._signers[name]

    def holds(self, name: str) -> bool:
        """Say whether there is a key of this name."""
        return name in self._signers


class FileCustody:
    """A `Custody` in one directory: ``NAME.key``, PKCS #8 in PEM, unencrypted, mode 0600.

    A credential of the service manager goes before a file (`controller.pki.passed_keys`).
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self, name: str) -> Signer:
        """Make a new P-256 key; raises CustodyError if the name is taken."""
        path = self._path(name)
        if self.holds(name):
            raise CustodyError(f"{path}: there is a key already")
        key = new_private_key()
        write_private(path, private_key_pem(key))
        return KeySigner(key)

    def signer(self, name: str) -> Signer:
        """Return the key of this name; raises CustodyError if it cannot be used."""
        path = self._path(name)
        return KeySigner(load_private_key(passed_key(path) or path))

    def holds(self, name: str) -> bool:
        """Say whether there is a key of this name."""
        return bool(key_files(self._path(name)))

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.key"


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as unencrypted PKCS #8 in PEM, the form that Docker, Go, Node and OpenSSL all read."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in this file; raises CustodyError if it is missing, bad, or open to others."""
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as error:
        raise CustodyError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise CustodyError(f"{path}: not a regular file")
    if mode & 0o077 and not is_passed(path):
        raise CustodyError(
            f"{path}: mode {stat.S_IMODE(mode):04o} lets others read the key; chmod it 600, or replace it"
        )
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except Exception as error:
        # The cause stays out of the text: it may quote the file.
        raise CustodyError(f"{path}: not an unencrypted private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CustodyError(f"{path}: not a P-256 key")
    return key

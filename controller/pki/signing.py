"""The keys that sign bundles, apart from those that sign certificates, and the root documents that name them.

Three roles, each a key of its own in one directory (Ed25519, ``ROLE.key``, PKCS #8 in PEM, mode 0600):
`root` signs root documents and may be taken off line, `bundle` signs what is published, `snapshot` says every
few minutes what is current. ``roots`` is the chain of root documents, the first one first.

Replacing a key is a new root document. While it is being made the new key lies beside the old one as
``ROLE.new.key``; the chain is written first and the key takes its name last, so that whatever happens in
between, the directory is one that can be loaded.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.pki.custody import CustodyError
from controller.pki.files import make_private_directory, write_private
from controller.pki.passed_keys import is_passed, key_files
from defender.contract.canonical import BundleError
from defender.contract.envelope import Signer, signer_of, split_envelopes
from defender.contract.trust import MAX_ROOTS, Root, first_root, next_root, ring_of, sign_root

ROOT: Final = "root"
BUNDLE: Final = "bundle"
SNAPSHOT: Final = "snapshot"
ROLES: Final = (ROOT, BUNDLE, SNAPSHOT)
CHAIN: Final = "roots"


class SigningKeys:
    """The keys in one directory, and the roots that name them.

    `root` is the root document in force, `chain` its envelopes from the first one on.
    """

    def __init__(self, directory: Path, chain: bytes, root: Root, signers: Mapping[str, Signer]) -> None:
        self.directory = directory
        self.chain = chain
        self.root = root
        self._signers = dict(signers)

    @classmethod
    def create(cls, directory: Path, *, fleet: str, trust_domain: str, now: int) -> SigningKeys:
        """Make three keys and the first root of a new fleet; raises CustodyError if there are any."""
        for name in (*(f"{role}.key" for role in ROLES), CHAIN):
            if (directory / name).exists():
                raise CustodyError(f"{directory / name}: there is one already")
        make_private_directory(directory)
        keys = {role: Ed25519PrivateKey.generate() for role in ROLES}
        signers = {role: signer_of(key) for role, key in keys.items()}
        root = Root(
            fleet=fleet,
            trust_domain=trust_domain,
            version=1,
            key_epoch=1,
            issued_at=now,
            root=ring_of([signers[ROOT]]),
            bundle=ring_of([signers[BUNDLE]]),
            snapshot=ring_of([signers[SNAPSHOT]]),
        )
        envelope = sign_root(root, [signers[ROOT]])
        for role, key in keys.items():
            write_private(directory / f"{role}.key", _pem(key))
        write_private(directory / CHAIN, envelope)
        return cls(directory, envelope, first_root(envelope), signers)

    @classmethod
    def load(cls, directory: Path) -> SigningKeys:
        """Read them; raises CustodyError that says which file cannot be used. The root's key may be away."""
        path = directory / CHAIN
        try:
            chain = path.read_bytes()
        except OSError as error:
            raise CustodyError(f"{path}: {error.strerror}") from error
        try:
            frames = split_envelopes(chain, MAX_ROOTS)
            root = first_root(frames[0])
            for frame in frames[1:]:
                root = next_root(root, frame)
        except BundleError as error:
            raise CustodyError(f"{path}: is no chain of root documents: {error}") from error
        signers: dict[str, Signer] = {}
        for role in ROLES:
            found = _load_role(directory, role, root)
            if found is not None:
                signers[role] = found
            elif role != ROOT:
                raise CustodyError(f"{directory / (role + '.key')}: No such file or directory")
        return cls(directory, chain, root, signers)

    @property
    def bundle(self) -> Signer:
        """Signs bundles."""
        return self._signers[BUNDLE]

    @property
    def snapshot(self) -> Signer:
        """Signs snapshots."""
        return self._signers[SNAPSHOT]

    @property
    def has_root(self) -> bool:
        """Whether the key of root documents is here."""
        return ROOT in self._signers

    @property
    def latest(self) -> bytes:
        """The envelope of the root document in force."""
        return split_envelopes(self.chain, MAX_ROOTS)[-1]

    def replace_key(self, role: str, now: int, *, keep_old: bool = False) -> Root:
        """Make a new key for a role, named by a new root document, which the old root key and, if it is the
        root's key that goes, the new one sign. Raises CustodyError.

        What the old `bundle` key signed stays acceptable to nobody: publish every stream again. With
        `keep_old` it stays acceptable until `retire_old`, so that what is published again comes in time.
        """
        key = Ed25519PrivateKey.generate()
        signer = signer_of(key)
        fresh = self.directory / f"{role}.new.key"
        write_private(fresh, _pem(key))
        kept = [self._signers[role]] if keep_old and role != ROOT else []
        root = self._succeed(now, {role: (*kept, signer)}, raising=False)
        fresh.replace(self.directory / f"{role}.key")
        self._signers[role] = signer
        return root

    def retire_old(self, role: str, now: int) -> Root:
        """A new root document in which the present key of a role is the only one. Raises CustodyError."""
        present = self._signers.get(role)
        if present is None or getattr(self.root, role).keys == (present.public,):
            raise CustodyError(f"the root document names no {role} key but the present one")
        return self._succeed(now, {role: (present,)}, raising=False)

    def raise_epoch(self, now: int, minimum: Mapping[str, int] | None = None) -> Root:
        """End everything that was signed before: a new `bundle` key, and an epoch that only the root can
        raise. `minimum` are the lowest versions that are acceptable from now on. Raises CustodyError.
        """
        key = Ed25519PrivateKey.generate()
        signer = signer_of(key)
        fresh = self.directory / f"{BUNDLE}.new.key"
        write_private(fresh, _pem(key))
        root = self._succeed(now, {BUNDLE: (signer,)}, raising=True, minimum=minimum or {})
        fresh.replace(self.directory / f"{BUNDLE}.key")
        self._signers[BUNDLE] = signer
        return root

    def _succeed(
        self,
        now: int,
        changed: Mapping[str, tuple[Signer, ...]],
        *,
        raising: bool,
        minimum: Mapping[str, int] | None = None,
    ) -> Root:
        old = self._signers.get(ROOT)
        if old is None:
            raise CustodyError(
                f"{self.directory / (ROOT + '.key')}: the key of root documents is not here; this needs it"
            )
        held = self.root
        document = replace(
            held,
            version=held.version + 1,
            key_epoch=held.key_epoch + raising,
            issued_at=max(now, held.issued_at),
            minimum=held.minimum if minimum is None else dict(minimum),
        )
        rings: dict[str, Any] = {role: ring_of(signers) for role, signers in changed.items()}
        document = replace(document, **rings)
        signers = [old, *changed.get(ROOT, ())]
        try:
            envelope = sign_root(document, signers)
            root = next_root(held, envelope)
        except BundleError as error:
            raise CustodyError(f"the new root document cannot be made: {error}") from error
        write_private(self.directory / CHAIN, self.chain + envelope)
        self.chain += envelope
        self.root = root
        return root


def _load_role(directory: Path, role: str, root: Root) -> Signer | None:
    """The key of a role, from wherever it is; None if it is nowhere."""
    wanted = getattr(root, role).keys
    refusal: CustodyError | None = None
    names = (f"{role}.key", f"{role}.new.key")
    for path in (path for name in names for path in key_files(directory / name)):
        signer = signer_of(_load(path))
        if signer.public in wanted:
            return signer
        refusal = refusal or CustodyError(f"{path}: is not the {role} key that the root document names")
    if refusal is not None:
        raise refusal
    return None


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as error:
        raise CustodyError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise CustodyError(f"{path}: not a regular file")
    if mode & 0o077 and not is_passed(path):
        raise CustodyError(f"{path}: mode {stat.S_IMODE(mode):04o} lets others read the key; chmod it 600")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except Exception as error:
        # The cause stays out of the text: it may quote the file.
        raise CustodyError(f"{path}: not an unencrypted private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise CustodyError(f"{path}: not an Ed25519 key")
    return key

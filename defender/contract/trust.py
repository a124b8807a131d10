"""The root document: which keys may sign what, and how a new one takes the place of the old.

A root lists the keys of three roles: `root` signs root documents, `bundle` signs bundles, `snapshot` (a key
that has to be at hand every five minutes) signs snapshots. It alone raises `key_epoch`, which ends all that
was signed before, and says below which version nothing is accepted.

The first root of a defender comes over its enrolment, whose peer the join token pins. Each later one is
signed by the root keys of the one before it and by its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from defender.contract.canonical import BundleError, Fields, canonical, digest_of, read_document
from defender.contract.envelope import (
    MAX_KEYS,
    ROOT_TYPE,
    Envelope,
    KeyRing,
    Signer,
    payload_digest,
    read_envelope,
    seal,
    split_envelopes,
    verify,
    verify_part,
)
from defender.contract.errors import IdentityError
from defender.contract.identity import check_trust_domain

ROOT_SCHEMA: Final = 1
#: Bytes of the largest root's envelope, and most roots in a chain.
MAX_ROOT: Final = 64 * 1024
MAX_ROOTS: Final = 64

TRUST: Final = "trust"
POLICY: Final = "policy"
LOCKS: Final = "locks"
MODE: Final = "mode"
#: The streams, in the order in which a start puts them in force: nobody is let in before the locks are known.
STREAMS: Final = (TRUST, LOCKS, POLICY, MODE)

_FIELDS: Final = (
    "fleet",
    "issued_at",
    "key_epoch",
    "minimum",
    "roles",
    "schema",
    "trust_domain",
    "version",
)
_ROLES: Final = ("bundle", "root", "snapshot")


@dataclass(frozen=True, slots=True)
class Root:
    """One root document.

    `fleet` (a UUID, made with the fleet) and `trust_domain` say for whom it is; `version` rises by at least
    one from root to root, `key_epoch` (from 1) never falls; `issued_at` is unix seconds. `minimum` holds the
    lowest acceptable version for streams; a stream that is not in it has none. `digest` is the SHA-256 of the
    payload.
    """

    fleet: str
    trust_domain: str
    version: int
    key_epoch: int
    issued_at: int
    root: KeyRing
    bundle: KeyRing
    snapshot: KeyRing
    minimum: Mapping[str, int] = field(default_factory=dict)
    digest: bytes = b""


def sign_root(root: Root, signers: Iterable[Signer]) -> bytes:
    """The envelope of a root.

    `signers` are enough of its own root keys and, unless it is the first one, of its predecessor's. Raises
    BundleError for a document that no defender would take.
    """
    payload = canonical(
        {
            "schema": ROOT_SCHEMA,
            "fleet": root.fleet,
            "trust_domain": root.trust_domain,
            "version": root.version,
            "key_epoch": root.key_epoch,
            "issued_at": root.issued_at,
            "roles": {name: _ring_value(getattr(root, name)) for name in _ROLES},
            "minimum": dict(root.minimum),
        }
    )
    _decode(payload)
    data = seal(ROOT_TYPE, payload, signers)
    if len(data) > MAX_ROOT:
        raise BundleError("too-large", f"a root of {len(data)} bytes; at most {MAX_ROOT} are taken")
    return data


def first_root(data: bytes) -> Root:
    """A root that is trusted because of where it came from; it must be signed by its own root keys.

    Raises BundleError.
    """
    envelope = _read(data)
    # Its keys are inside it: this is the one document that is decoded before a signature is known to hold.
    root = _decode(envelope.payload)
    verify(envelope, root.root)
    return root


def next_root(held: Root, data: bytes) -> Root:
    """The root that takes the place of `held`; raises BundleError.

    Signed by enough root keys of `held`, which is checked before the document is decoded, and by enough of
    its own; no other signature may be there. Of the same fleet, with a higher version, with no lower epoch
    and not issued before.
    """
    envelope = _read(data)
    verify_part(envelope, held.root)
    root = _decode(envelope.payload)
    verify(envelope, held.root, root.root)
    if (root.fleet, root.trust_domain) != (held.fleet, held.trust_domain):
        raise BundleError("foreign-fleet", f"the root is of fleet {root.fleet} ({root.trust_domain})")
    if root.version <= held.version:
        raise BundleError("older-version", f"root {root.version}, where root {held.version} is held")
    if root.key_epoch < held.key_epoch:
        raise BundleError("epoch-retired", f"root {root.version} would lower the key epoch")
    if root.issued_at < held.issued_at:
        raise BundleError("older-version", f"root {root.version} was issued before root {held.version}")
    return root


def load_chain(data: bytes) -> Root:
    """The last root of a chain that begins with the defender's first one; raises BundleError.

    `data` is their envelopes, one behind the other: every link is verified again.
    """
    frames = split_envelopes(data, MAX_ROOTS)
    root = first_root(frames[0])
    for frame in frames[1:]:
        root = next_root(root, frame)
    return root


def newer_roots(held: Root, frames: Sequence[bytes]) -> list[tuple[Root, bytes]]:
    """The roots of a chain that follow `held`, with their envelopes, each verified against the one before.

    What stands in `frames` up to the root that is held is passed over: it cannot be verified from here, and
    is not used. Raises BundleError if what follows is no chain from `held`.
    """
    start = 0
    for number, frame in enumerate(frames, 1):
        if payload_digest(frame) == held.digest:
            start = number
    found: list[tuple[Root, bytes]] = []
    for frame in frames[start:]:
        held = next_root(held, frame)
        found.append((held, frame))
    return found


def ring_of(signers: Sequence[Signer], threshold: int = 1) -> KeyRing:
    """The role that these signers fill."""
    return KeyRing(tuple(signer.public for signer in signers), threshold)


def _read(data: bytes) -> Envelope:
    if len(data) > MAX_ROOT:
        raise BundleError("too-large", f"a root of {len(data)} bytes; at most {MAX_ROOT} are taken")
    return read_envelope(data, ROOT_TYPE)


def _ring_value(ring: KeyRing) -> dict[str, object]:
    return {"keys": sorted(key.hex() for key in ring.keys), "threshold": ring.threshold}


def _decode(payload: bytes) -> Root:
    what = "the root"
    fields = Fields(read_document(payload, what, ROOT_SCHEMA), what, _FIELDS)
    trust_domain = fields.text("trust_domain", 255, 1)
    try:
        check_trust_domain(trust_domain)
    except IdentityError as error:
        raise fields.error("trust_domain", error.detail) from None
    roles = Fields(fields.raw("roles"), f"{what}: roles", _ROLES)
    rings = {name: _ring(roles.raw(name), f"{what}: roles.{name}") for name in _ROLES}
    asked = fields.raw("minimum")
    named = [name for name in STREAMS if isinstance(asked, dict) and name in asked]
    minimum = Fields(asked, f"{what}: minimum", named)
    return Root(
        fleet=fields.identifier("fleet"),
        trust_domain=trust_domain,
        version=fields.number("version", 1),
        key_epoch=fields.number("key_epoch", 1),
        issued_at=fields.number("issued_at", 0, 2**53),
        minimum={name: minimum.number(name) for name in named},
        digest=sha256(payload).digest(),
        **rings,
    )


def _ring(value: object, what: str) -> KeyRing:
    fields = Fields(value, what, ("keys", "threshold"))
    keys = fields.items("keys", MAX_KEYS, digest_of, least=1)
    if sorted(set(keys)) != list(keys):
        raise fields.error("keys", "are not in rising order, each once")
    return KeyRing(keys, fields.number("threshold", 1, len(keys)))

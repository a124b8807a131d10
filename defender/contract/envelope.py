"""Signed envelopes: DSSE signatures with Ed25519 over bytes, in a frame of fixed layout.

The signature is that of DSSE 1.0 (secure-systems-lab/dsse, protocol.md) over its pre-authentication
encoding, `pae`. The envelope is not DSSE's JSON but a frame (docs/specification/bundle.md): a reader finds
type, key ids, signatures and payload by their offsets, so that nothing is parsed before the signature holds,
and every byte has one meaning. There is no field for an algorithm, and no envelope without a signature.

Every signature in an envelope must hold and be by a key that is listed; enough of them must be there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from defender.contract.canonical import BundleError

#: Bytes of the largest envelope.
MAX_ENVELOPE: Final = 16 * 1024 * 1024
#: Most signatures of an envelope, and most keys of a role.
MAX_KEYS: Final = 16

BUNDLE_TYPE: Final = "application/vnd.dfleet.bundle+json"
ROOT_TYPE: Final = "application/vnd.dfleet.root+json"
SNAPSHOT_TYPE: Final = "application/vnd.dfleet.snapshot+json"

MAGIC: Final = b"DFE1"
_HEAD: Final = struct.Struct(">4sBBI")
_KEYID: Final = 32
_SIGNATURE: Final = 64
_ENTRY: Final = _KEYID + _SIGNATURE
# The DER of an Ed25519 SubjectPublicKeyInfo up to the key (RFC 8410).
_SPKI: Final = bytes.fromhex("302a300506032b6570032100")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One envelope, taken apart and not believed.

    `signatures` are pairs of key id (32 bytes) and signature (64 bytes), by rising key id.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of one role (raw public keys, 32 bytes each) and how many of them must sign."""

    keys: tuple[bytes, ...]
    threshold: int = 1

    def by_id(self) -> dict[bytes, bytes]:
        """Key id -> public key."""
        return {key_id(public): public for public in self.keys}


@dataclass(frozen=True, slots=True)
class Signer:
    """A key that signs: its raw public half (32 bytes), and a function from bytes to a signature.

    The private half may be anywhere: in memory, in another process, in a token.
    """

    public: bytes
    sign: Callable[[bytes], bytes]


def signer_of(key: Ed25519PrivateKey) -> Signer:
    """The signer that a private key in memory is."""
    return Signer(key.public_key().public_bytes_raw(), key.sign)


def key_id(public: bytes) -> bytes:
    """The id of a raw public key: the SHA-256 of its SubjectPublicKeyInfo in DER, 32 bytes."""
    return sha256(_SPKI + public).digest()


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of type and payload."""
    kind = payload_type.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, signers: Iterable[Signer]) -> bytes:
    """The envelope of a payload, signed by each of `signers`; at least one, each once.

    Raises BundleError (`too-large`) if it is larger than any reader takes.
    """
    message = pae(payload_type, payload)
    signatures = {key_id(signer.public): signer.sign(message) for signer in signers}
    return assemble(Envelope(payload_type, payload, tuple(sorted(signatures.items()))))


def assemble(envelope: Envelope) -> bytes:
    """The bytes of an envelope; raises BundleError `unsigned` or `too-large` for what no reader takes."""
    kind = envelope.payload_type.encode("ascii")
    if not 1 <= len(envelope.signatures) <= MAX_KEYS:
        raise BundleError("unsigned", f"an envelope has 1 to {MAX_KEYS} signatures")
    size = _HEAD.size + len(kind) + _ENTRY * len(envelope.signatures) + len(envelope.payload)
    if size > MAX_ENVELOPE:
        raise BundleError("too-large", f"{size} bytes; an envelope has at most {MAX_ENVELOPE}")
    head = _HEAD.pack(MAGIC, len(kind), len(envelope.signatures), len(envelope.payload))
    entries = b"".join(keyid + signature for keyid, signature in envelope.signatures)
    return head + kind + entries + envelope.payload


def split_envelopes(data: bytes, most: int) -> list[bytes]:
    """Cut envelopes that stand one behind the other; 1 to `most`, to the last byte.

    Raises BundleError: `too-large`, before anything else is looked at; `malformed`.
    """
    _check_size(data)
    found: list[bytes] = []
    at = 0
    while at < len(data) or not found:
        if len(found) == most:
            raise BundleError("malformed", f"there are more than {most} envelopes")
        if len(data) - at < _HEAD.size:
            raise BundleError("malformed", "the head of an envelope is cut off")
        magic, kind, signatures, payload = _HEAD.unpack_from(data, at)
        if magic != MAGIC:
            raise BundleError("malformed", "it does not begin as an envelope does")
        end = at + _HEAD.size + kind + _ENTRY * signatures + payload
        if end > len(data):
            raise BundleError("malformed", "an envelope is cut off, or its lengths are wrong")
        found.append(data[at:end])
        at = end
    return found


def read_envelope(data: bytes, payload_type: str) -> Envelope:
    """Take one envelope apart; what is in it is not looked at.

    Raises BundleError: `too-large`, before anything else is looked at; `malformed`; `unsigned`; `wrong-type`
    unless it is of `payload_type`.
    """
    _check_size(data)
    if len(data) < _HEAD.size:
        raise BundleError("malformed", "the head of an envelope is cut off")
    magic, kind_size, count, payload_size = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise BundleError("malformed", "it does not begin as an envelope does")
    at = _HEAD.size + kind_size
    payload_at = at + _ENTRY * count
    if count > MAX_KEYS or payload_at + payload_size != len(data):
        raise BundleError("malformed", "the envelope is cut off, or its lengths are wrong")
    entries = [data[start : start + _ENTRY] for start in range(at, payload_at, _ENTRY)]
    signatures = tuple((entry[:_KEYID], entry[_KEYID:]) for entry in entries)
    keyids = [keyid for keyid, _ in signatures]
    if sorted(set(keyids)) != keyids:
        raise BundleError("malformed", "the signatures are not in the order of their key ids, each once")
    if count == 0:
        raise BundleError("unsigned", "the envelope has no signature")
    if data[_HEAD.size : at] != payload_type.encode("ascii"):
        raise BundleError("wrong-type", f"the envelope does not hold {payload_type}")
    return Envelope(payload_type, data[payload_at:], signatures)


def verify(envelope: Envelope, *rings: KeyRing) -> tuple[bytes, ...]:
    """Check all signatures of an envelope; returns the ids of the keys that signed.

    Each must be by a key of one of `rings` and hold, and each ring's threshold must be reached. Raises
    BundleError: `wrong-key`, `bad-signature`, `threshold`.
    """
    known: dict[bytes, bytes] = {}
    for ring in rings:
        known.update(ring.by_id())
    for keyid, _ in envelope.signatures:
        if keyid not in known:
            raise BundleError("wrong-key", f"it is signed by the key {keyid.hex()[:16]}, which is not listed")
    message = pae(envelope.payload_type, envelope.payload)
    for keyid, signature in envelope.signatures:
        _check(known[keyid], keyid, signature, message)
    signed = tuple(keyid for keyid, _ in envelope.signatures)
    for ring in rings:
        require(ring, signed)
    return signed


def verify_part(envelope: Envelope, ring: KeyRing) -> None:
    """Check the signatures by keys of `ring` alone, and that they reach its threshold; raises as `verify`."""
    known = ring.by_id()
    message = pae(envelope.payload_type, envelope.payload)
    signed = [(keyid, signature) for keyid, signature in envelope.signatures if keyid in known]
    if not signed:
        foreign = envelope.signatures[0][0].hex()[:16]
        raise BundleError("wrong-key", f"it is signed by the key {foreign}, which is not listed")
    for keyid, signature in signed:
        _check(known[keyid], keyid, signature, message)
    require(ring, [keyid for keyid, _ in signed])


def require(ring: KeyRing, signed: Sequence[bytes]) -> None:
    """Raise BundleError `threshold` unless enough of the ring's keys are among the ids `signed`."""
    count = len(ring.by_id().keys() & set(signed))
    if count < ring.threshold or count == 0:
        raise BundleError("threshold", f"{count} of the {max(1, ring.threshold)} keys that are needed signed")


def payload_digest(data: bytes) -> bytes:
    """The SHA-256 of an envelope's payload, b"" where the lengths do not hold. Verifies nothing."""
    if len(data) < _HEAD.size:
        return b""
    magic, kind, signatures, payload = _HEAD.unpack_from(data)
    if magic != MAGIC or _HEAD.size + kind + _ENTRY * signatures + payload != len(data):
        return b""
    return sha256(data[len(data) - payload :]).digest()


def _check_size(data: bytes) -> None:
    if len(data) > MAX_ENVELOPE:
        raise BundleError("too-large", f"{len(data)} bytes; at most {MAX_ENVELOPE} are looked at")


def _check(public: bytes, keyid: bytes, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise BundleError(
            "bad-signature", f"the signature by the key {keyid.hex()[:16]} does not hold"
        ) from None

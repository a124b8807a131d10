"""A small fleet for tests: its keys, and what they sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from defender.contract.bundle import EVERYONE, Bundle, Position, open_envelope, sign_bundle
from defender.contract.contents import locks_content, mode_content, policy_content, trust_content
from defender.contract.envelope import Signer, payload_digest, signer_of
from defender.contract.locks import Lock
from defender.contract.snapshot import Snapshot, sign_snapshot
from defender.contract.trust import Root, first_root, ring_of, sign_root

FLEET = "7b1c0f7e-6f5d-4f35-9a40-1de3c2f0a001"
OTHER_FLEET = "7b1c0f7e-6f5d-4f35-9a40-1de3c2f0a002"
DEFENDER = "0193f0aa-0000-7000-8000-00000000000a"
OTHER_DEFENDER = "0193f0aa-0000-7000-8000-00000000000b"
DOMAIN = "defender.fleet"
AGENT = "0.1.0"
NOW = 1_800_000_000
DAY = 86400

POLICY = """\
schema: 1
rules:
  - name: all
    users: [admin]
    effect: allow
    actions: ["*"]
"""


def key(name: str) -> Ed25519PrivateKey:
    """A key that is the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).digest())


def signer(name: str) -> Signer:
    return signer_of(key(name))


def authority(name: str, *, is_authority: bool = True) -> str:
    """A certificate of an authority as PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key(name).public_key())
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2036, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .sign(key(name), None)
    )
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


AUTHORITIES = {kind: [authority(f"{kind} authority")] for kind in ("root", "fleet", "user")}


def new_root(**changes: Any) -> Root:
    """The first root of the fleet, with changes."""
    root = Root(
        fleet=FLEET,
        trust_domain=DOMAIN,
        version=1,
        key_epoch=1,
        issued_at=NOW - 30 * DAY,
        root=ring_of([signer("root")]),
        bundle=ring_of([signer("bundle")]),
        snapshot=ring_of([signer("snapshot")]),
    )
    return replace(root, **changes)


def signed_root(root: Root, *names: str) -> bytes:
    return sign_root(root, [signer(name) for name in names or ("root",)])


FIRST = signed_root(new_root())
ROOT = first_root(FIRST)


def content_of(stream: str, documents: Sequence[bytes] = ()) -> dict[str, Any]:
    """A lawful content of a stream."""
    if stream == "policy":
        return policy_content("main", POLICY)
    if stream == "locks":
        return locks_content([Lock("user", "bruce@example.com")])
    if stream == "mode":
        return mode_content("unix+tcp", 600)
    return trust_content([sha256(document).digest() for document in documents], **AUTHORITIES)


def new_bundle(stream: str = "policy", version: int = 1, **changes: Any) -> Bundle:
    """A lawful bundle, with changes."""
    bundle = Bundle(
        fleet=FLEET,
        trust_domain=DOMAIN,
        stream=stream,
        key_epoch=1,
        version=version,
        issued_at=NOW - 60,
        content=content_of(stream),
    )
    return replace(bundle, **changes)


def signed(
    stream: str = "policy", version: int = 1, *, by: Sequence[str] = ("bundle",), **changes: Any
) -> bytes:
    return sign_bundle(new_bundle(stream, version, **changes), [signer(name) for name in by])


def trust_push(version: int = 1, documents: Sequence[bytes] = (FIRST,), **arguments: Any) -> bytes:
    """What is sent on the trust stream: root envelopes, then the bundle that names them."""
    bundle = signed("trust", version, content=content_of("trust", documents), **arguments)
    return b"".join((*documents, bundle))


def position(data: bytes, version: int, key_epoch: int = 1) -> Position:
    """The position of a signed bundle."""
    return Position(key_epoch, version, payload_digest(data))


def opened(data: bytes, root: Root = ROOT, **changes: Any) -> Bundle:
    """A bundle as this fleet's defender opens it."""
    arguments: dict[str, Any] = {
        "stream": "policy",
        "defender": DEFENDER,
        "agent_version": AGENT,
        "now": float(NOW),
        **changes,
    }
    return open_envelope(data, root, **arguments)


def snapshot_of(
    positions: dict[str, Position],
    *,
    time: float = NOW,
    by: str = "snapshot",
    audience: str | tuple[str, ...] = EVERYONE,
    **changes: Any,
) -> bytes:
    """A signed snapshot."""
    made = Snapshot(FLEET, DOMAIN, int(time * 1000), positions, audience)
    return sign_snapshot(replace(made, **changes), [signer(by)])

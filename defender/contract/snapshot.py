"""Snapshots: a signed statement of what is current, made every few minutes.

A bundle proves who made it, not that nothing newer exists. A snapshot says where each stream stood at a
time, for the same audience; a defender that gets none, or old ones only, knows that it is cut off. It is
signed by the `snapshot` role, whose key is at hand in the controller and can change no policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from defender.contract.bundle import (
    EVERYONE,
    LAST_SECOND,
    Position,
    audience_value,
    check_addressed,
    read_audience,
)
from defender.contract.canonical import BundleError, Fields, canonical, read_document
from defender.contract.envelope import SNAPSHOT_TYPE, Signer, read_envelope, seal, verify
from defender.contract.trust import STREAMS, Root

SNAPSHOT_SCHEMA: Final = 1
#: Bytes of the largest snapshot's envelope, which is one frame of the channel.
MAX_SNAPSHOT: Final = 64 * 1024

_FIELDS: Final = ("audience", "fleet", "positions", "schema", "time_ms", "trust_domain")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the streams stood at `time_ms` (unix milliseconds) for each defender of `audience`.

    A stream without a position has nothing yet. `digest` is that of the payload, known of one that was
    opened.
    """

    fleet: str
    trust_domain: str
    time_ms: int
    positions: Mapping[str, Position]
    audience: str | tuple[str, ...] = EVERYONE
    digest: bytes = field(default=b"", compare=False)

    @property
    def time(self) -> float:
        """Unix seconds."""
        return self.time_ms / 1000


def sign_snapshot(snapshot: Snapshot, signers: Iterable[Signer]) -> bytes:
    """The envelope of a snapshot; raises BundleError for what no defender would read."""
    payload = canonical(
        {
            "schema": SNAPSHOT_SCHEMA,
            "fleet": snapshot.fleet,
            "trust_domain": snapshot.trust_domain,
            "audience": audience_value(snapshot.audience),
            "time_ms": snapshot.time_ms,
            "positions": {
                stream: {"key_epoch": at.key_epoch, "version": at.version, "digest": at.digest.hex()}
                for stream, at in snapshot.positions.items()
            },
        }
    )
    _decode(payload)
    data = seal(SNAPSHOT_TYPE, payload, signers)
    if len(data) > MAX_SNAPSHOT:
        raise BundleError("too-large", f"a snapshot of {len(data)} bytes; at most {MAX_SNAPSHOT} are taken")
    return data


def open_snapshot(data: bytes, root: Root, *, defender: str) -> Snapshot:
    """Verify and read a snapshot; raises BundleError with the code of the first check that fails.

    What it says is not yet compared with what the defender holds, nor its time with any clock: that is
    `high_water`'s part.
    """
    if len(data) > MAX_SNAPSHOT:
        raise BundleError("too-large", f"{len(data)} bytes; a snapshot has at most {MAX_SNAPSHOT}")
    envelope = read_envelope(data, SNAPSHOT_TYPE)
    verify(envelope, root.snapshot)
    snapshot = _decode(envelope.payload)
    check_addressed(snapshot.fleet, snapshot.trust_domain, snapshot.audience, root, defender)
    for stream, lowest in root.minimum.items():
        if lowest and stream not in snapshot.positions:
            raise BundleError("below-minimum", f"it has no {stream}; the root accepts none before {lowest}")
    for stream, at in snapshot.positions.items():
        if at.key_epoch > root.key_epoch:
            raise BundleError("epoch-ahead", f"its {stream} is of key epoch {at.key_epoch}, not raised yet")
        if at.key_epoch < root.key_epoch:
            raise BundleError("epoch-retired", f"its {stream} is of key epoch {at.key_epoch}, which is over")
        if at.version < root.minimum.get(stream, 0):
            raise BundleError(
                "below-minimum",
                f"its {stream} is at version {at.version}; the root accepts none before "
                f"{root.minimum[stream]}",
            )
    return snapshot


def _decode(payload: bytes) -> Snapshot:
    what = "the snapshot"
    fields = Fields(read_document(payload, what, SNAPSHOT_SCHEMA), what, _FIELDS)
    asked = fields.raw("positions")
    named = [name for name in STREAMS if isinstance(asked, dict) and name in asked]
    positions = Fields(asked, f"{what}: positions", named)
    return Snapshot(
        fleet=fields.identifier("fleet"),
        trust_domain=fields.text("trust_domain", 255, 1),
        time_ms=fields.number("time_ms", 0, LAST_SECOND),
        positions={name: read_position(positions.raw(name), f"{what}: {name}") for name in named},
        audience=read_audience(fields),
        digest=sha256(payload).digest(),
    )


def read_position(value: Any, what: str) -> Position:
    """A position in a document; raises BundleError."""
    fields = Fields(value, what, ("digest", "key_epoch", "version"))
    return Position(fields.number("key_epoch", 1), fields.number("version", 1), fields.digest("digest"))

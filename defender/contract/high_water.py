"""The high-water mark: what a defender has accepted, so that it never accepts less. Pure.

Kept on disk beside the bundles and mirrored at the controller. It holds the highest position of each stream
and the one in force, the root, the time below which the clock is not believed, and the last snapshot.

* A bundle is accepted if it is higher in its stream than the mark; the same position is accepted only with
  the same digest. Going back to old content takes a new version.
* Without a mark (none on disk, or one that is older than the bundles beside it) nothing is accepted until a
  snapshot says where the streams stand: `first_mark`.
* A snapshot confirms what is in force and moves the clock's floor. It never lowers or raises a mark: whoever
  stole the key of snapshots must not be able to shut out good bundles either.
* The floor follows a snapshot's time up to 24 hours ahead of both this host's clock and the root; more than
  that takes a new root. Since neither moves by a snapshot, many small steps lead no further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final

from defender.contract.bundle import NOWHERE, SKEW, Position
from defender.contract.canonical import BundleError, Fields, canonical, read_document
from defender.contract.snapshot import Snapshot, read_position
from defender.contract.trust import STREAMS, Root

HIGH_WATER_SCHEMA: Final = 1
#: Seconds that a snapshot may be ahead of this host's clock and of the root.
LONGEST_JUMP: Final = 24 * 3600

_FIELDS: Final = ("floor_ms", "root_digest", "root_version", "schema", "snapshot_ms", "streams")
_CHECK: Final = b"dfleet high water 1\n"


@dataclass(frozen=True, slots=True)
class Mark:
    """One stream: `high` is the highest position that was accepted, `active` the one in force.

    `confirmed_ms` (unix milliseconds, 0 for never) is the time of the last snapshot that had `active` as the
    current one.
    """

    high: Position = NOWHERE
    active: Position = NOWHERE
    confirmed_ms: int = 0


@dataclass(frozen=True, slots=True)
class HighWater:
    """All marks of a defender. Times are unix milliseconds; `snapshot_ms` is 0 before the first snapshot."""

    root_version: int
    root_digest: bytes
    streams: Mapping[str, Mark] = field(default_factory=dict)
    floor_ms: int = 0
    snapshot_ms: int = 0

    def mark(self, stream: str) -> Mark:
        """The mark of a stream."""
        return self.streams.get(stream, Mark())

    def clock(self, now: float) -> float:
        """The time to go by, where this host's clock says `now`: never before the floor. Unix seconds."""
        return max(now, self.floor_ms / 1000)

    def judge(self, stream: str, position: Position) -> bool:
        """Whether a bundle that verifies is new here; False if it is the one of the mark again.

        Raises BundleError `older-version` or `same-version`.
        """
        high = self.mark(stream).high
        if position.number < high.number:
            raise BundleError(
                "older-version",
                f"version {_words(position)}, where {_words(high)} was accepted; old content needs a new "
                "version",
            )
        if position.number == high.number and high.digest and position.digest != high.digest:
            raise BundleError(
                "same-version", f"version {_words(position)} was accepted before with other content"
            )
        return position != high

    def accept(self, stream: str, position: Position) -> HighWater:
        """The mark once a bundle is accepted, and about to be in force."""
        return self._with(stream, replace(self.mark(stream), high=position, active=position, confirmed_ms=0))

    def activate(self, stream: str, active: Position, confirmed_ms: int = 0) -> HighWater:
        """The mark where something else is in force than the highest, or nothing (`NOWHERE`)."""
        return self._with(stream, replace(self.mark(stream), active=active, confirmed_ms=confirmed_ms))

    def adopt(self, root: Root) -> HighWater:
        """The mark under a newer root.

        Its time becomes the floor if that is higher. With a raised epoch it becomes the floor in any case, so
        that times which a stolen key has signed end with its epoch; the caller knows whether it was raised:
        see `restart_clock`.
        """
        return replace(
            self,
            root_version=root.version,
            root_digest=root.digest,
            floor_ms=max(self.floor_ms, root.issued_at * 1000),
        )

    def restart_clock(self, root: Root) -> HighWater:
        """The mark with the root's time as the floor, and no snapshot."""
        streams = {stream: replace(mark, confirmed_ms=0) for stream, mark in self.streams.items()}
        return replace(self, floor_ms=root.issued_at * 1000, snapshot_ms=0, streams=streams)

    def take(self, snapshot: Snapshot, root: Root, now: float) -> HighWater:
        """The mark after a snapshot that verifies, at the host's time `now`.

        Raises BundleError: `clock-jump`; `older-snapshot`, if it is older than the last one by more than two
        controllers' clocks may differ; `older-version` or `same-version`, if it is below a mark or names
        other content.
        """
        check_jump(snapshot, root, now)
        if snapshot.time_ms < self.snapshot_ms - SKEW * 1000:
            raise BundleError(
                "older-snapshot",
                f"it is {(self.snapshot_ms - snapshot.time_ms) / 1000:.0f} seconds older than the last one",
            )
        streams = dict(self.streams)
        for stream in STREAMS:
            at, mark = snapshot.positions.get(stream, NOWHERE), self.mark(stream)
            if at == NOWHERE and mark.high.key_epoch < root.key_epoch:
                # What a raised epoch has ended need not be published again.
                continue
            if at.number < mark.high.number:
                raise BundleError(
                    "older-version",
                    f"it has {stream} at version {_words(at)}, where {_words(mark.high)} was accepted",
                )
            if at.number == mark.high.number and at.digest != mark.high.digest and mark.high.digest:
                raise BundleError(
                    "same-version", f"its {stream} at version {_words(at)} has other content than accepted"
                )
            if at == mark.active and at != NOWHERE:
                streams[stream] = replace(mark, confirmed_ms=max(mark.confirmed_ms, snapshot.time_ms))
        return replace(
            self,
            streams=streams,
            floor_ms=max(self.floor_ms, snapshot.time_ms),
            snapshot_ms=max(self.snapshot_ms, snapshot.time_ms),
        )

    def encode(self) -> bytes:
        """The bytes of the file."""
        payload = canonical(
            {
                "schema": HIGH_WATER_SCHEMA,
                "root_version": self.root_version,
                "root_digest": self.root_digest.hex(),
                "floor_ms": self.floor_ms,
                "snapshot_ms": self.snapshot_ms,
                "streams": {
                    stream: {
                        "high": _value(mark.high),
                        "active": _value(mark.active),
                        "confirmed_ms": mark.confirmed_ms,
                    }
                    for stream, mark in self.streams.items()
                },
            }
        )
        return _CHECK + sha256(payload).hexdigest().encode() + b"\n" + payload

    def _with(self, stream: str, mark: Mark) -> HighWater:
        return replace(self, streams={**self.streams, stream: mark})


def decode_high_water(data: bytes) -> HighWater:
    """The marks in a file's bytes; raises BundleError for a file that is not whole."""
    head, payload = data[: len(_CHECK) + 65], data[len(_CHECK) + 65 :]
    if head != _CHECK + sha256(payload).hexdigest().encode() + b"\n":
        raise BundleError("malformed", "the high-water file is damaged")
    what = "the high-water file"
    fields = Fields(read_document(payload, what, HIGH_WATER_SCHEMA), what, _FIELDS)
    asked = fields.raw("streams")
    named = [name for name in STREAMS if isinstance(asked, dict) and name in asked]
    streams = Fields(asked, f"{what}: streams", named)
    return HighWater(
        root_version=fields.number("root_version", 1),
        root_digest=fields.digest("root_digest"),
        streams={name: _mark(streams.raw(name), f"{what}: {name}") for name in named},
        floor_ms=fields.number("floor_ms"),
        snapshot_ms=fields.number("snapshot_ms"),
    )


def first_mark(snapshot: Snapshot, root: Root, now: float) -> HighWater:
    """The marks of a defender that has none, from a snapshot that verifies: nothing below it is accepted.

    Raises BundleError `clock-jump`.
    """
    check_jump(snapshot, root, now)
    return HighWater(
        root_version=root.version,
        root_digest=root.digest,
        streams={stream: Mark(high=at) for stream, at in snapshot.positions.items()},
        floor_ms=max(root.issued_at * 1000, snapshot.time_ms),
        snapshot_ms=snapshot.time_ms,
    )


def check_jump(snapshot: Snapshot, root: Root, now: float) -> None:
    """Raise BundleError `clock-jump` for a time more than `LONGEST_JUMP` ahead of host and root."""
    ahead = snapshot.time - max(now, root.issued_at)
    if ahead > LONGEST_JUMP:
        raise BundleError(
            "clock-jump",
            f"it is {ahead / 3600:.1f} hours ahead of this host's clock and of the root; set the clock "
            "right, or have a new root document signed",
        )


def _words(position: Position) -> str:
    return f"{position.version} (epoch {position.key_epoch})" if position != NOWHERE else "nothing"


def _value(position: Position) -> dict[str, Any] | None:
    if position == NOWHERE:
        return None
    return {
        "key_epoch": position.key_epoch,
        "version": position.version,
        "digest": position.digest.hex(),
    }


def _mark(value: Any, what: str) -> Mark:
    fields = Fields(value, what, ("active", "confirmed_ms", "high"))
    high, active = (
        NOWHERE if fields.raw(name) is None else read_position(fields.raw(name), f"{what}: {name}")
        for name in ("high", "active")
    )
    return Mark(high, active, fields.number("confirmed_ms"))

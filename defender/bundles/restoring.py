"""What a start may put in force of what is on disk, and what a newer root leaves in force. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from defender.contract.bundle import NOWHERE, Bundle, BundleError, Position
from defender.contract.envelope import payload_digest, require
from defender.contract.high_water import HighWater
from defender.contract.trust import Root

#: Opens one stored envelope of a stream; raises BundleError.
Open = Callable[[str, bytes], Bundle]


@dataclass(frozen=True, slots=True)
class Stored:
    """What is on disk at a start: None and nothing for what is not there; bundles newest first."""

    roots: bytes | None = None
    high_water: bytes | None = None
    bundles: Mapping[str, Sequence[bytes]] = field(default_factory=dict)


def reaches(root: Root, water: HighWater) -> bool:
    """Whether a root is the one that was accepted last, or a newer one."""
    if root.version == water.root_version:
        return root.digest == water.root_digest
    return root.version > water.root_version


def stream_above(stored: Mapping[str, Sequence[bytes]], water: HighWater, opened: Open) -> str:
    """The first stream with a bundle above its mark, "" if there is none; only one that verifies counts."""
    for stream, envelopes in stored.items():
        for data in envelopes:
            try:
                position = opened(stream, data).position
            except BundleError:
                continue
            if position.number > water.mark(stream).high.number:
                return stream
    return ""


def in_force_before(stream: str, stored: Sequence[bytes], water: HighWater, opened: Open) -> Bundle | None:
    """The bundle that was in force when the defender stopped, and no other; None if there was none.

    Raises BundleError if it is not there or no longer verifies. An older one is not taken for it: else
    damage to one file would bring old policies back.
    """
    active = water.mark(stream).active
    if active == NOWHERE:
        return None
    for data in stored:
        if payload_digest(data) == active.digest:
            return opened(stream, data)
    if stored:
        opened(stream, stored[0])  # its own trouble says more
    raise BundleError("missing", f"the bundle of version {active.version}, in force before, is not on disk")


def highest_allowed(stream: str, stored: Sequence[bytes], water: HighWater, opened: Open) -> Bundle | None:
    """The highest bundle that verifies and is not below the mark, for when it is not known what was in
    force."""
    found: Bundle | None = None
    for data in stored:
        try:
            bundle = opened(stream, data)
            water.judge(stream, bundle.position)
        except BundleError:
            continue
        if found is None or bundle.position.number > found.position.number:
            found = bundle
    return found


def objection(root: Root, stream: str, position: Position, signers: Sequence[bytes]) -> str:
    """Why a root does not vouch for a bundle whose signatures by `signers` (key ids) held; "" if it does."""
    if position.key_epoch != root.key_epoch:
        return f"the root has moved to key epoch {root.key_epoch}"
    if position.version < root.minimum.get(stream, 0):
        return f"the root accepts none before version {root.minimum[stream]}"
    if not set(signers) <= root.bundle.by_id().keys():
        return "a key that signed it is no longer listed"
    try:
        require(root.bundle, signers)
    except BundleError as error:
        return error.detail
    return ""

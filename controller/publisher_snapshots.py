"""What each defender is shown as current, signed: one snapshot for all that should stand where it says.

A defender refuses a snapshot that is below what it has accepted, so none is below what it says it holds, what
it was shown before in this session, and what it has on disk though it could not put it in force.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from controller.distribution import Distribution
from controller.pki.signing import SigningKeys
from controller.releases import NOTHING, Held, Standing
from defender.contract.bundle import EVERYONE, Position
from defender.contract.message_bytes import snapshot_frame
from defender.contract.snapshot import Snapshot, sign_snapshot

#: Seconds for which a snapshot is shared by all to whom it applies.
SHARE_FOR: Final = 5.0
#: Refusals that speak of the host, not of the bundle: it may hold its number all the same.
HOST_CODES: Final = frozenset({"storage", "not-activated"})


class Snapshots:
    """See the module. `wall` gives unix seconds; `now` elsewhere is a clock that never goes back."""

    def __init__(
        self, streams: Mapping[str, Distribution], keys: SigningKeys, wall: Callable[[], float]
    ) -> None:
        self._streams = streams
        self._keys = keys
        self._wall = wall
        self._stands: dict[tuple[str, str], Held | None] = {}
        self._named: dict[tuple[str, str], Held] = {}
        self._shared: dict[Any, tuple[float, bytes]] = {}

    def stands(self, defender: str, stream: str, held: Held | None) -> None:
        """What a defender says it has in force."""
        self._stands[defender, stream] = held

    def left(self, defender: str) -> None:
        """A defender's session is over."""
        for stream in self._streams:
            self._stands.pop((defender, stream), None)
            self._named.pop((defender, stream), None)

    def frame(self, defender: str, now: float) -> bytes:
        """The frame of a snapshot for a defender."""
        root = self._keys.root
        vouched = True
        positions: dict[str, Position] = {}
        for stream, distribution in self._streams.items():
            at, ours = self._current(defender, stream)
            if at is None or at.position > distribution.highest:
                continue  # what only a defender says was issued is not signed
            if at.position.key_epoch == root.key_epoch:
                vouched = vouched and ours
                positions[stream] = Position(*at.position, at.digest)
                self._named[defender, stream] = at
        # What only the defender says is vouched for to nobody else.
        audience: str | tuple[str, ...] = EVERYONE if vouched else (defender,)
        key = (self._keys.snapshot.public, audience, tuple(positions.items()))
        known = self._shared.get(key)
        if known is None or known[0] <= now:
            self._shared = {each: one for each, one in self._shared.items() if one[0] > now}
            snapshot = Snapshot(root.fleet, root.trust_domain, int(self._wall() * 1000), positions, audience)
            frame = snapshot_frame(sign_snapshot(snapshot, [self._keys.snapshot]))
            known = self._shared[key] = (now + SHARE_FOR, frame)
        return known[1]

    def _current(self, defender: str, stream: str) -> tuple[Held | None, bool]:
        """What a defender should stand at, and whether that is what was decided here."""
        distribution = self._streams[stream]
        line = distribution.line_of(defender)
        # A host without marks took those of the snapshot that it was shown before.
        known = (self._stands.get((defender, stream)), self._named.get((defender, stream)))
        held = max((each for each in known if each), key=lambda each: each.position, default=None)
        release = distribution.desired(defender)
        if line is not None and release is None:
            standing, refusal = distribution.standing(defender)
            if standing is Standing.REFUSED and refusal is not None and refusal.code in HOST_CODES:
                release = distribution.state(line).release
        if release is not None and release.position >= (held.position if held else NOTHING):
            return Held(release.position, release.digest), True
        return held, False

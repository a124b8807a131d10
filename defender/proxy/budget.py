"""What one user may ask, hold and write: budgets that keep one from crowding out all others.

A `Share` is one user's: it is entered by each of the user's connections and asked on every request. It holds
four limits (requests a second, calls with the Engine, connections, events in the audit trail) and decides
which denials are events of their own. Pure: `now` is monotonic seconds, always of the same clock.

Users are told apart by name and by how the name was proven, so that a unix user on the host does not use up
the budget of a certificate with the same name. A user without connections is remembered until every bucket is
full again; then forgetting changes nothing.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Final, Protocol

from defender.proxy.bucket import Bucket
from defender.proxy.tally import OTHERS, Aggregate, Counted, Tally

__all__ = ["OTHERS", "Aggregate", "Budgets", "Limits", "Refusal", "Share"]

#: Denials and refusals of one user that are events of their own: at once, and each second after that.
SINGLE: Final = 100
SINGLE_A_SECOND: Final = 1.0

#: What one user may be denied or refused before its next requests wait: at once, and each second after that.
ANSWERED: Final = 2000
ANSWERED_A_SECOND: Final = 20.0

#: Rows of denials and refusals in one interval: of all users, of one.
ROWS: Final = 512
ROWS_OF_A_USER: Final = 16

#: Users without connections that are remembered.
RESTING: Final = 4096

#: Refused peers that are events of their own: of one address at once, and each second after that; of all.
TURNED_AWAY: Final = 200
TURNED_AWAY_A_SECOND: Final = 1.0
ALL_TURNED_AWAY: Final = 1000
ALL_TURNED_AWAY_A_SECOND: Final = 10.0
#: Addresses with a bucket of their own; the others have one together.
ADDRESSES: Final = 1024
ROWS_OF_PEERS: Final = 64
ROWS_OF_AN_ADDRESS: Final = 4

#: Part of a user's hourly share of the audit trail that may be used at once; the rest comes over the hour.
#: So the two together are never more than the share, whichever hour is looked at.
AT_ONCE: Final = 0.25

_HOUR: Final = 3600.0
_NO_LIMIT: Final = sys.maxsize

_REQUESTS: Final = "limits.requests_per_second"
_ENGINE: Final = "limits.engine_connections_per_user"
_CONNECTIONS: Final = "limits.connections_per_user"
_SPOOL: Final = "limits.spool_share"


class Limits(Protocol):
    """The settings that budgets follow; 0 sets no limit. `defender.settings.LimitSettings` is one."""

    @property
    def requests_per_second(self) -> int: ...
    @property
    def request_burst(self) -> int: ...
    @property
    def connections_per_user(self) -> int: ...
    @property
    def engine_connections_per_user(self) -> int: ...
    @property
    def spool_share(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer with status 429: `rule` is the setting that was exceeded, for the event; `reason` is for the
    client and the event; `retry_after` are whole seconds for the header of that name.
    """

    rule: str
    reason: str
    retry_after: int
    status: int = 429


class Share:
    """One user's budgets, shared by all its connections.

    Until `flooded_until` the user has had its share of denials and refusals: its next requests should wait.
    """

    __slots__ = (
        "_answered",
        "_budgets",
        "_counted",
        "_gap",
        "_paused",
        "_requests_full",
        "_room",
        "_single",
        "_spool",
        "connections",
        "engine_connections",
        "flooded_until",
        "max_connections",
        "max_engine_connections",
        "user",
        "via",
    )

    def __init__(self, budgets: Budgets, user: str, via: str) -> None:
        self._budgets = budgets
        self.user = user
        self.via = via
        self._counted = Counted(user, via)
        self.connections = 0
        self.engine_connections = 0
        # The bucket of requests lies open here: asking it is part of every request.
        self._requests_full = -math.inf
        self._paused = -math.inf  # until then the share of the audit trail is used up
        self._spool = Bucket(0, 1)
        self._single = Bucket(SINGLE_A_SECOND, SINGLE)
        self._answered = Bucket(ANSWERED_A_SECOND, ANSWERED)
        self.flooded_until = -math.inf
        self.follow()

    def follow(self) -> None:
        """Take the limits over; called again when they change."""
        limits = self._budgets.limits
        requests = Bucket(limits.requests_per_second, limits.request_burst)
        self._gap, self._room = requests.gap, requests.room
        self.max_connections = limits.connections_per_user or _NO_LIMIT
        self.max_engine_connections = limits.engine_connections_per_user or _NO_LIMIT
        hourly = self._budgets.hourly_bytes
        self._spool.resize(hourly * (1 - AT_ONCE) / _HOUR, hourly * AT_ONCE)
        self._paused = self._spool.free()

    # -- limits

    def request(self, now: float) -> bool:
        """One more request; False if it is too many, then `too_fast` says why. Costs a fraction of a
        microsecond.
        """
        if now < self._paused:
            return False
        full = self._requests_full
        if full <= now:
            self._requests_full = now + self._gap
            return True
        if full <= now + self._room:
            self._requests_full = full + self._gap
            return True
        return False

    def too_fast(self, now: float) -> Refusal:
        """Why `request` said no."""
        limits = self._budgets.limits
        if now < self._paused:
            return self._refuse(
                _SPOOL,
                f"too many events: more than {limits.spool_share} % of the audit trail in an hour",
                self._paused - now,
            )
        return self._refuse(
            _REQUESTS,
            f"too many requests: more than {limits.requests_per_second} a second",
            self._requests_full - self._room - now,
        )

    def take_engine(self) -> bool:
        """One more call or stream goes to the Engine; False if it is too many, then `too_busy` says why.

        True is followed by one `give_engine` when the call or stream is over, before the connection's
        `Budgets.leave`.
        """
        if self.engine_connections >= self.max_engine_connections:
            return False
        self.engine_connections += 1
        return True

    def give_engine(self) -> None:
        """A call or stream is over."""
        self.engine_connections -= 1

    def too_busy(self) -> Refusal:
        """Why `take_engine` said no."""
        most = self.max_engine_connections
        return self._refuse(_ENGINE, f"too many calls at one time: {most} are with the Engine", 1)

    @property
    def is_crowded(self) -> bool:
        """True while the user has more connections than it may; asked when one is entered, and kept for it:
        those that came before go on.
        """
        return self.connections > self.max_connections

    def too_crowded(self) -> Refusal:
        """What the requests of a connection that found `is_crowded` are answered."""
        return self._refuse(
            _CONNECTIONS, f"too many connections at one time: {self.max_connections} are open", 10
        )

    def spend(self, size: int, now: float) -> bool:
        """An event of `size` bytes was recorded for the user; False while the share is used up.

        It is taken off in any case: what has happened is recorded, and the next requests wait for it.
        """
        spool = self._spool  # `Bucket.spend`, without the call
        full = spool.full
        spool.full = full = (full if full > now else now) + size * spool.gap
        self._paused = paused = full - spool.room
        return paused <= now

    def _refuse(self, rule: str, reason: str, wait: float) -> Refusal:
        refused = self._budgets.refused
        refused[rule] = refused.get(rule, 0) + 1
        seconds = max(1, math.ceil(wait))
        return Refusal(rule, f"{reason}; try again in {seconds} s", seconds)

    # -- denials

    def denied(self, action: str, rule: str, status: int, now: float) -> bool:
        """A request was denied, refused with 429 or could not be read (action "unknown"): True if that is to
        be an event of its own; else it is counted here, and part of what `Budgets.due` returns.
        """
        self._answered.spend(1.0, now)
        self.flooded_until = self._answered.free()
        if now >= self._paused and self._single.take(now):
            return True
        self._budgets.tally.count(self._counted, action, rule, status, now)
        return False

    # -- state

    def rest(self) -> float:
        """When every bucket is full again."""
        return max(self._requests_full, self._spool.full, self._single.full, self._answered.full)

    def used(self, now: float) -> float:
        """How much of its fullest use any bucket has seen: 0 for none, 1 or more while it refuses."""
        return max(
            (self._requests_full - now) / (self._room or 1.0),
            self._spool.used(now),
            self._single.used(now),
            self._answered.used(now),
        )


class Budgets:
    """The shares of all users, and the counts of what is not recorded by itself.

    `spool_bytes` is the size of the audit trail. `refused` counts the refusals of each setting.
    """

    def __init__(self, limits: Limits, spool_bytes: int) -> None:
        self.limits = limits
        self.hourly_bytes = 0.0
        self.refused: dict[str, int] = {}
        self.tally = Tally("engine", Counted(OTHERS, "defender"), rows=ROWS, each=ROWS_OF_A_USER)
        self._peers = Tally(
            "identity", Counted(via="tls", address=OTHERS), rows=ROWS_OF_PEERS, each=ROWS_OF_AN_ADDRESS
        )
        self._active: dict[tuple[str, str], Share] = {}
        self._resting: dict[tuple[str, str], Share] = {}
        self._addresses: dict[str, Bucket] = {}
        self._cleared = -math.inf
        self._unnamed = Bucket(TURNED_AWAY_A_SECOND, TURNED_AWAY)
        self._all_peers = Bucket(ALL_TURNED_AWAY_A_SECOND, ALL_TURNED_AWAY)
        self.resize(limits, spool_bytes)

    def resize(self, limits: Limits, spool_bytes: int) -> None:
        """Other limits from now on, also for those who are connected."""
        self.limits = limits
        self.hourly_bytes = spool_bytes * limits.spool_share / 100
        for share in (*self._active.values(), *self._resting.values()):
            share.follow()

    # -- users

    def enter(self, user: str, via: str = "tls") -> Share:
        """A connection of the user; ask its `is_crowded`, and give it back with `leave`, once."""
        key = (user, via)
        share = self._active.get(key)
        if share is None:
            share = self._resting.pop(key) if key in self._resting else Share(self, user, via)
            self._active[key] = share
        share.connections += 1
        return share

    def leave(self, share: Share, now: float) -> None:
        """A connection is over."""
        share.connections -= 1
        if share.connections > 0:
            return
        key = (share.user, share.via)
        del self._active[key]
        if share.rest() > now:
            if len(self._resting) >= RESTING:
                self._forget(now)
            self._resting[key] = share

    def _forget(self, now: float) -> None:
        """Forget the users whose buckets are full; then, if they are still too many, those who have used the
        least. So users who come and go cannot push out one who has used a lot. A quarter is made free, which
        lets the next ones come without this work.
        """
        self._resting = {key: share for key, share in self._resting.items() if share.rest() > now}
        surplus = len(self._resting) - RESTING * 3 // 4
        if surplus > 0:
            for key in sorted(self._resting, key=lambda key: self._resting[key].used(now))[:surplus]:
                del self._resting[key]

    @property
    def users(self) -> int:
        """Users with connections."""
        return len(self._active)

    @property
    def remembered(self) -> int:
        """Users without connections whose use is remembered."""
        return len(self._resting)

    # -- peers that were not let in

    def turned_away(self, address: str, check: str, now: float, via: str = "tls") -> bool:
        """A peer of `address` failed the identity check `check`: True if that is to be an event of its own;
        else it is counted here, and part of what `due` returns.
        """
        if self._bucket_of(address, now).take(now) and self._all_peers.take(now):
            return True
        self._peers.count(Counted(via=via, address=address), "handshake", check, 0, now)
        return False

    def _bucket_of(self, address: str, now: float) -> Bucket:
        """The bucket of an address. One that is in use is never thrown away for a new address: where there is
        no room, the new ones share one.
        """
        bucket = self._addresses.get(address)
        if bucket is None:
            if len(self._addresses) >= ADDRESSES and now - self._cleared >= 1.0:
                self._cleared = now
                self._addresses = {peer: used for peer, used in self._addresses.items() if used.full > now}
            if len(self._addresses) >= ADDRESSES:
                return self._unnamed
            bucket = self._addresses[address] = Bucket(TURNED_AWAY_A_SECOND, TURNED_AWAY)
        return bucket

    # -- counts

    def due(self, now: float) -> list[Aggregate]:
        """What was counted and is to be recorded now; ask every second or so."""
        return self.tally.due(now) + self._peers.due(now)

    def drain(self) -> list[Aggregate]:
        """Everything that was counted and not returned yet, before the end."""
        return self.tally.drain() + self._peers.drain()

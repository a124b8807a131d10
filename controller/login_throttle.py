"""How often somebody may try to sign in: 5 times a minute for each user, 20 for each address, unless set.

Counted before a password is looked at, whether or not there is such a user, so that neither the answer nor
its time tells who exists. Memory is bounded: while a table is full, names and addresses that are not in it
share one allowance, so that a flood can neither fill the memory nor push out whoever is being guessed at.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from math import ceil
from typing import Final

from controller.accounts import fold_user

PER_USER: Final = 5
PER_ADDRESS: Final = 20
MINUTE: Final = 60.0
MAX_ENTRIES: Final = 10_000
SHARED: Final = 60
"""Tries a minute of all together that a full table has no entry for."""


class _Table:
    """Token buckets, each as the moment at which it is full again; `burst` tries, `burst` more a minute."""

    def __init__(self, burst: int, most: int) -> None:
        self.gap = MINUTE / burst
        self.room = MINUTE - self.gap
        self.most = most
        self.full: dict[str, float] = {}
        self.shared = 0.0
        self.swept = 0.0

    def wait(self, key: str, now: float) -> float:
        """Seconds until `key` may try; 0 for now."""
        full = self.full.get(key)
        if full is None and self._is_crowded(now):
            return max(0.0, self.shared - now - (MINUTE - MINUTE / SHARED))
        return max(0.0, (full or 0.0) - now - self.room)

    def take(self, key: str, now: float) -> None:
        """Count a try."""
        if key not in self.full and self._is_crowded(now):
            self.shared = max(self.shared, now) + MINUTE / SHARED
        else:
            self.full[key] = max(self.full.get(key, now), now) + self.gap

    def _is_crowded(self, now: float) -> bool:
        if len(self.full) < self.most:
            return False
        # Looking through the table costs a millisecond; once a second is enough.
        if now - self.swept >= 1.0:
            self.swept = now
            self.full = {key: full for key, full in self.full.items() if full > now}
        return len(self.full) >= self.most


class LoginThrottle:
    """See the module; `now` is a clock in seconds that never goes back."""

    def __init__(
        self, entries: int = MAX_ENTRIES, *, per_user: int = PER_USER, per_address: int = PER_ADDRESS
    ) -> None:
        self._users = _Table(per_user, entries)
        self._addresses = _Table(per_address, entries)

    def attempt(self, user: str, address: str, now: float) -> int:
        """Count a try; 0 if it may be made, else the whole seconds after which the next one may.

        A refused try is not counted, so that whoever waits as told gets in.
        """
        name, network = fold_user(user)[:256], _network(address)
        wait = max(self._users.wait(name, now), self._addresses.wait(network, now))
        if wait > 0:
            return ceil(wait)
        self._users.take(name, now)
        self._addresses.take(network, now)
        return 0

    def succeeded(self, user: str) -> None:
        """The password was right: the user's tries begin anew. The address's do not, since whoever has one
        password could go on guessing another's."""
        self._users.full.pop(fold_user(user)[:256], None)


def _network(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 that one IPv6 host has for itself."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return f"{int(parsed) >> 64:x}/64"
    return str(parsed)

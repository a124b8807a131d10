"""How often a host may ask to join: guesses are hopeless anyway, signatures cost the controller time."""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from controller.pki.tokens import plain

PER_ADDRESS: Final = 5
"""Requests a second, and at once, from one address; an IPv6 host has a whole /64."""
OVERALL: Final = 50
"""The same from all."""
MAX_ADDRESSES: Final = 4096


class JoinRates:
    """Admits requests; holds what it must know of at most `MAX_ADDRESSES` addresses."""

    def __init__(self, per_address: int = PER_ADDRESS, overall: int = OVERALL) -> None:
        self._per_address = per_address
        self._overall = overall
        self._all = 0.0
        # When each bucket is full again. Those that ask are moved to the end.
        self._full: OrderedDict[IPv4Address | int, float] = OrderedDict()

    def admit(self, source: IPv4Address | IPv6Address, now: float) -> bool:
        """Say whether a request may be looked at; ``now`` is of a clock that never goes back, in seconds.

        One that may not costs nothing of the overall rate: a single flooder does not shut out the others.
        """
        address = plain(source)
        key: IPv4Address | int = address if isinstance(address, IPv4Address) else int(address) >> 64
        mine = _taken(self._full.get(key, 0.0), self._per_address, now)
        if mine is None:
            return False
        every = _taken(self._all, self._overall, now)
        if every is None:
            return False
        self._all = every
        self._full[key] = mine
        self._full.move_to_end(key)
        while len(self._full) > MAX_ADDRESSES:
            self._full.popitem(last=False)
        return True


def _taken(full: float, rate: int, now: float) -> float | None:
    """Take one of ``rate`` tokens a second from a bucket of ``rate``; None if there is none."""
    after = max(full, now) + 1 / rate
    return after if after <= now + 1 + 1e-6 else None

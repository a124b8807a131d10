"""Counts what is not recorded one by one, and says now and then how often it happened.

A flood of one subject's denials or refused requests costs a bounded number of events: the first ones are
events of their own, the others become one `Aggregate` for each kind of call in each interval. No count is
lost: what finds no row of its own is counted in a row that is named `OTHERS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Name of the action, or of the subject, of what has no row of its own.
OTHERS: Final = "others"

#: Seconds from one reading of a tally to the next.
INTERVAL: Final = 10.0


@dataclass(frozen=True, slots=True)
class Aggregate:
    """`count` like things that were not recorded by themselves, from `first` to `last` (monotonic seconds).

    `kind` is that of the event, "engine" or "identity". Of a call: `user` and `via` as in `actor`, `rule` the
    one that denied it, "" if it could not be read, or the setting that was exceeded. Of an identity: `user`
    is empty, `address` the peer's (no port), `rule` the check that failed. A subject `OTHERS` stands for any
    number of them, an action `OTHERS` for any number of actions.
    """

    kind: str
    user: str
    via: str
    address: str
    action: str
    rule: str
    status: int
    count: int
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Counted:
    """Of whom a tally counts: fields as in `Aggregate`."""

    user: str = ""
    via: str = ""
    address: str = ""


class _Row:
    """One count."""

    __slots__ = ("count", "first", "last")

    def __init__(self, now: float) -> None:
        self.count = 0
        self.first = now
        self.last = now


class Tally:
    """Counts of one kind of event.

    In one interval there are at most `rows` rows and at most `each` of one subject, and besides them one for
    each status of what found no room.
    """

    __slots__ = ("_each", "_kind", "_left", "_others", "_rows", "_since", "_subjects")

    def __init__(self, kind: str, others: Counted, *, rows: int, each: int) -> None:
        self._kind = kind
        self._others = others
        self._rows = rows
        self._each = each
        self._left = rows
        self._since: float | None = None
        self._subjects: dict[Counted, dict[tuple[str, str, int], _Row]] = {}

    def count(self, subject: Counted, action: str, rule: str, status: int, now: float) -> None:
        """One more."""
        if self._since is None:
            self._since = now
        key = (action, rule, status)
        own = self._subjects.get(subject)
        row = own.get(key) if own is not None else None
        if row is None:
            row = self._new(subject, key, now)
        row.count += 1
        row.last = now

    def _new(self, subject: Counted, key: tuple[str, str, int], now: float) -> _Row:
        own = self._subjects.get(subject)
        if self._left <= 0 and own is None:
            subject = self._others
        if self._left <= 0 or (own is not None and len(own) >= self._each):
            key = (OTHERS, "", key[2])
        else:
            self._left -= 1
        own = self._subjects.setdefault(subject, {})
        row = own.get(key)
        if row is None:
            row = own[key] = _Row(now)
        return row

    def due(self, now: float) -> list[Aggregate]:
        """What was counted, once `INTERVAL` seconds have passed since the first of it; else nothing yet."""
        if self._since is None or now - self._since < INTERVAL:
            return []
        return self.drain()

    def drain(self) -> list[Aggregate]:
        """What was counted; counting starts anew."""
        subjects, self._subjects = self._subjects, {}
        self._left = self._rows
        self._since = None
        return [
            Aggregate(
                self._kind,
                subject.user,
                subject.via,
                subject.address,
                action,
                rule,
                status,
                row.count,
                row.first,
                row.last,
            )
            for subject, rows in subjects.items()
            for (action, rule, status), row in rows.items()
        ]

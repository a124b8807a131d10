"""Goes through the stored events of a day and computes their chains again, a part at a time."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator


class Walk:
    """A walk through the file of a day: `events` counts what was looked at, `is_done` says it was all."""

    def __init__(self) -> None:
        self.events = 0
        self.is_done = False
        self._position = -1
        self._last: dict[int, tuple[int, bytes]] = {}

    def proceed(self, connection: sqlite3.Connection, budget: int) -> Iterator[str]:
        """Look at about so many more events. What is wrong, for people: nothing, if each is there and as its
        defender sent it.

        The connection is in a transaction of its own. Numbers that are missing between two batches are no
        fault of the store's: an event tells of them.
        """
        names = {
            number: (f"defender {agent}, epoch {epoch.hex()}", seq, chain)
            for number, agent, epoch, seq, chain in connection.execute(
                "SELECT id, agent, epoch, seq, chain FROM chains"
            )
        }
        until = self.events + budget
        for position, count, number, first_seq, previous, chain in connection.execute(
            "SELECT first_position, count, chain_id, first_seq, previous, chain FROM batches"
            " WHERE first_position > ? ORDER BY first_position",
            (self._position,),
        ):
            if self.events >= until:
                return
            name = names[number][0]
            payloads = [
                payload
                for (payload,) in connection.execute(
                    "SELECT CAST(payload AS BLOB) FROM events WHERE position >= ? AND position < ?"
                    " ORDER BY position",
                    (position, position + count),
                )
            ]
            self._position = position
            self.events += count
            end = first_seq + count - 1
            if len(payloads) != count:
                yield f"{name}: {count - len(payloads)} of the events {first_seq} to {end} are gone"
            elif previous and _chain(previous, first_seq, payloads) != chain:
                yield f"{name}: the events {first_seq} to {end} are not what was stored"
            before = self._last.get(number)
            if before is not None and before[0] + 1 == first_seq and previous and before[1] != previous:
                yield f"{name}: event {first_seq} does not follow the one before it"
            if before is not None and first_seq <= before[0]:
                yield f"{name}: event {first_seq} is stored twice"
            self._last[number] = (end, chain)
        self.is_done = True
        for number, (end, chain) in self._last.items():
            name, seq, known = names[number]
            if end > seq or (end == seq and chain != known):
                yield f"{name}: its cursor is at event {seq}, and the last one stored is {end}"
        row = connection.execute("SELECT count(*), max(position), min(position) FROM events").fetchone()
        (counted,) = connection.execute("SELECT coalesce(sum(count), 0) FROM batches").fetchone()
        if row[0] != counted or (row[0] and row[1] - row[2] + 1 != row[0]):
            yield f"{row[0]} events are stored, and {counted} were taken in"


def _chain(previous: bytes, seq: int, payloads: list[bytes]) -> bytes:
    for payload in payloads:
        previous = hashlib.sha256(previous + seq.to_bytes(8) + payload).digest()
        seq += 1
    return previous

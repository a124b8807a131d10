"""Goes through the stored events of a day and computes their chains again."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator


def broken_chains(connection: sqlite3.Connection) -> Iterator[str]:
    """What is wrong, for people: nothing, if every event is there and as its defender sent it.

    Numbers that are missing between two batches are no fault of the store's: an event tells of them.
    """
    names = {
        number: (f"defender {agent}, epoch {epoch.hex()}", seq, chain)
        for number, agent, epoch, seq, chain in connection.execute(
            "SELECT id, agent, epoch, seq, chain FROM chains"
        )
    }
    last: dict[int, tuple[int, bytes]] = {}
    for position, count, number, first_seq, previous, chain in connection.execute(
        "SELECT first_position, count, chain_id, first_seq, previous, chain FROM batches"
        " ORDER BY first_position"
    ):
        name = names[number][0]
        payloads = [
            payload
            for (payload,) in connection.execute(
                "SELECT CAST(payload AS BLOB) FROM events WHERE position >= ? AND position < ?"
                " ORDER BY position",
                (position, position + count),
            )
        ]
        end = first_seq + count - 1
        if len(payloads) != count:
            yield f"{name}: {count - len(payloads)} of the events {first_seq} to {end} are gone"
        elif previous and _chain(previous, first_seq, payloads) != chain:
            yield f"{name}: the events {first_seq} to {end} are not what was stored"
        before = last.get(number)
        if before is not None and before[0] + 1 == first_seq and previous and before[1] != previous:
            yield f"{name}: event {first_seq} does not follow the one before it"
        if before is not None and first_seq <= before[0]:
            yield f"{name}: event {first_seq} is stored twice"
        last[number] = (end, chain)
    for number, (end, chain) in last.items():
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

"""Takes a defender's records in: what is new is stored once and in order, what is missing becomes an event.

`take` works inside a transaction of the newest day, in the one thread that writes. The cursor of each
defender and epoch (`chains`) is in the same file as the events, so they are on disk together or not at all.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from controller.store.batch import Batch, Cursor, Taken, chain_before, chained
from controller.store.errors import RecordsError
from controller.store.extraction import name_text, searchable
from defender.contract.audit import Event, gap_event
from defender.contract.packing import assemble, is_closing, micros_of, pack_body
from defender.contract.spool import MAX_SEQ, Record, first_chain

#: Who the store's own events belong to, and the name that their chain begins with.
NOTES: Final = "controller.store"
NOTES_AGENT: Final = "controller"

_KNOWN_NAMES: Final = 50_000
_LAST_MICROS: Final = MAX_SEQ - 1  # a search ends before MAX_SEQ if it names no end
_LOST: Final = "events are missing here"
_BEGINNING: Final = "the beginning of this epoch is missing"


@dataclass(slots=True)
class Chain:
    """How far an epoch of a defender is stored."""

    number: int
    defender: str
    agent: str
    epoch: int
    seq: int
    chain: bytes
    closed: bool
    used: int
    gaps: int
    received: int
    changed: bool = False


class Day:
    """The newest day's file while it is written: its cursors and names in memory, its next position.

    After a transaction was rolled back, `reload` brings memory back to what the file has.
    """

    def __init__(self, connection: sqlite3.Connection, notes_epoch: int) -> None:
        self.connection = connection
        self._notes_epoch = notes_epoch
        self._names: dict[bytes, int] = {}
        self._chains: dict[tuple[str, int], Chain] = {}
        self._current: dict[str, Chain] = {}
        self._touched: list[Chain] = []
        self._used = 0
        self.next_position = 1
        self.cursors: dict[tuple[str, int], Cursor] = {}
        """The cursors that are on disk, by defender and epoch; any thread may look one up."""
        self.newest: dict[str, Cursor] = {}
        """As `cursors`, of the epoch that each defender used last."""
        self.position = 0
        """The last position that is on disk."""
        self.reload()

    def reload(self) -> None:
        """Read cursors and position from the file."""
        execute = self.connection.execute
        self._names.clear()
        self._chains.clear()
        self._current.clear()
        self._touched.clear()
        self._used = 0
        for number, defender, agent, epoch, seq, chain, closed, used, gaps, received in execute(
            "SELECT id, defender, agent, epoch, seq, chain, closed, used, gaps, received"
            " FROM chains ORDER BY used"
        ):
            known = Chain(
                number,
                defender,
                agent,
                int.from_bytes(epoch),
                seq,
                chain,
                bool(closed),
                used,
                gaps,
                received,
            )
            self._chains[defender, known.epoch] = self._current[defender] = known
            self._used = used
        (first,) = execute("SELECT value FROM meta WHERE name = 'first_position'").fetchone()
        (last,) = execute("SELECT max(position) FROM events").fetchone()
        self.next_position = last + 1 if last is not None else first
        self._publish(list(self._chains.values()))

    def cursor(self, defender: str, epoch: int) -> Chain | None:
        """How far an epoch is stored, None if nothing of it is."""
        return self._chains.get((defender, epoch))

    def current(self, defender: str) -> Chain | None:
        """The epoch that a defender used last, None if it never sent anything."""
        return self._current.get(defender)

    def commit(self) -> None:
        """Write the cursors that moved and end the transaction; then everybody may see them."""
        self.connection.executemany(
            "UPDATE chains SET seq = ?, chain = ?, closed = ?, used = ?, gaps = ?, received = ? WHERE id = ?",
            [(c.seq, c.chain, c.closed, c.used, c.gaps, c.received, c.number) for c in self._touched],
        )
        self.connection.execute("COMMIT")
        self._publish(self._touched)
        self._touched.clear()

    def _publish(self, chains: list[Chain]) -> None:
        for chain in chains:
            cursor = Cursor(chain.epoch, chain.seq, chain.chain, chain.agent, chain.gaps, chain.received)
            self.cursors[chain.defender, chain.epoch] = cursor
            if self._current[chain.defender] is chain:
                self.newest[chain.defender] = cursor
            chain.changed = False
        self.position = self.next_position - 1

    def take(self, batch: Batch, records: list[Record], received: int) -> Taken:
        """Store what is new of a batch that `check` gave the records of; `received` is unix microseconds."""
        known = self.cursor(batch.defender, batch.epoch)
        if known is None:
            return self._begin(batch, records, received)
        last = records[-1].seq
        if batch.first_seq > known.seq + 1:
            missing = batch.first_seq - known.seq - 1
            self._gap(batch, known.agent, known.epoch, known.seq + 1, missing, _LOST, received)
            known.gaps += 1
            return self._store(known, batch, records, 0, received, missing)
        # The record that is stored last, or the chain before the first of these, must be the same.
        if last >= known.seq:
            at = known.seq - batch.first_seq
            if (records[at].chain if at >= 0 else chain_before(batch, records, known.chain)) == known.chain:
                if last == known.seq:
                    return Taken(last, known.chain, repeated=len(records))
                return self._store(known, batch, records, at + 1, received)
        elif self._stored_alike(known, batch, records):
            return Taken(last, records[-1].chain, repeated=len(records))
        reason = "these records do not continue what is stored: the hash chain was broken, or ran twice"
        self._quarantine(known, batch, records, reason, received)
        return Taken(last, records[-1].chain, quarantined=reason)

    def refuse(self, batch: Batch, reason: str, received: int) -> None:
        """Put bytes aside that are no records, and tell of it once."""
        self._put_aside(batch, batch.agent, 0, reason, received)

    def _begin(self, batch: Batch, records: list[Record], received: int) -> Taken:
        """The first records of an epoch. Raises RecordsError if it does not say whose they are."""
        if not batch.agent:
            raise RecordsError("an epoch begins without the name of the defender in its segments")
        before = self.current(batch.defender)
        missing = 0
        if before is not None:
            missing = self._succeed(before, batch, received)
        known = self._add_chain(
            batch.defender, batch.agent, batch.epoch, batch.first_seq - 1, batch.previous, received
        )
        known.gaps += bool(missing)
        beginning = first_chain(batch.agent, batch.epoch)
        if batch.first_seq == 1 and chain_before(batch, records, beginning) != beginning:
            reason = f"this epoch's hash chain does not begin with defender {batch.agent!r}"
            self._quarantine(known, batch, records, reason, received)
            return Taken(known.seq, known.chain, missing=missing, quarantined=reason)
        if batch.first_seq > 1 and before is not None:
            # Of the first epoch that a defender ever sent, what is older was removed in good order.
            count = batch.first_seq - 1
            self._gap(batch, batch.agent, batch.epoch, 1, count, _BEGINNING, received)
            known.gaps += 1
            missing = count + max(missing, 0)
        return self._store(known, batch, records, 0, received, missing)

    def _succeed(self, before: Chain, batch: Batch, received: int) -> int:
        """Tell of what is missing at the end of the epoch before; -1 if nobody knows how much."""
        stated = batch.predecessor
        first = count = 0
        epoch = before.epoch
        if stated is not None and stated.epoch == before.epoch and stated.seq > before.seq:
            first, count = before.seq + 1, stated.seq - before.seq
            reason = "events that were on disk when the defender started again are gone"
        elif stated is not None and stated.epoch not in (0, before.epoch):
            epoch = stated.epoch
            reason = (
                f"epoch {epoch:016x}, which epoch {batch.epoch:016x} follows, is not the one before it here"
            )
        elif stated is not None and stated.seq == before.seq and stated.chain != before.chain:
            reason = "the epoch before does not end as it did when this one began"
        elif not before.closed:
            reason = (
                f"this epoch was not ended in good order: events after number {before.seq} may be missing"
            )
        else:
            return 0
        self._gap(batch, before.agent, epoch, first, count, reason, received)
        return count or -1

    def _stored_alike(self, known: Chain, batch: Batch, records: list[Record]) -> bool:
        """Whether records with old numbers are the stored ones, as far as this day's file can say."""
        row = self.connection.execute(
            "SELECT first_position, count, first_seq, previous FROM batches"
            " WHERE chain_id = ? AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1",
            (known.number, records[-1].seq),
        ).fetchone()
        if row is None:
            return True  # stored on an earlier day
        position, count, first_seq, previous = row
        seq = max(first_seq, batch.first_seq)
        if seq >= first_seq + count:
            return True
        stored = self.connection.execute(
            "SELECT payload FROM events WHERE position = ?", (position + seq - first_seq,)
        ).fetchone()
        at = seq - batch.first_seq
        record = records[at]
        before = (records[at - 1].chain if at else batch.previous) or previous
        same: bool = stored == (record.payload,)
        return same and (seq > first_seq or before == previous)

    def _store(
        self, known: Chain, batch: Batch, records: list[Record], skip: int, received: int, missing: int = 0
    ) -> Taken:
        """Store the records from the index `skip` on."""
        previous = records[skip - 1].chain if skip else batch.previous
        new = records[skip:] if skip else records
        last = new[-1]
        if not previous and len(new) > 1:
            # What follows the first can be checked again at any time, so it stands apart from it.
            self._insert(known, batch.defender, new[:1], previous, received)
            known.seq, previous, new = new[0].seq, new[0].chain, new[1:]
        self._insert(known, batch.defender, new, previous, received)
        self._move(known, last.seq, last.chain, is_closing(last.payload), received)
        return Taken(
            last.seq, last.chain, len(records) - skip, skip, missing, position=self.next_position - 1
        )

    def _insert(
        self, known: Chain, about: str, records: Sequence[Record], previous: bytes, received: int
    ) -> None:
        position, names = self.next_position, self._names
        self.connection.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                position,
                len(records),
                known.number,
                records[0].seq,
                previous,
                records[-1].chain,
                received,
            ),
        )
        defender = about.encode()
        whom = names.get(defender) or self._name(defender)
        values: list[Any] = []
        add = values.extend
        for _, _, _, payload in records:
            user, action, effect = searchable(payload)
            micros = micros_of(payload)
            add(
                (
                    position,
                    micros if micros < _LAST_MICROS else _LAST_MICROS,
                    whom,
                    names.get(user) or self._name(user),
                    names.get(action) or self._name(action),
                    names.get(effect) or self._name(effect),
                    payload,
                )
            )
            position += 1
        # One statement for many rows: each statement gives up the interpreter's lock and has to win it back
        # from a busy reactor.
        for start in range(0, len(values), 7 * _ROWS):
            part = values[start : start + 7 * _ROWS]
            self.connection.execute(_insertion(len(part) // 7), part)
        self.next_position = position

    def _name(self, name: bytes) -> int:
        text = name_text(name)
        row = self.connection.execute("SELECT id FROM names WHERE name = ?", (text,)).fetchone()
        if row is None:
            row = self.connection.execute(
                "INSERT INTO names (name) VALUES (?) RETURNING id", (text,)
            ).fetchone()
        if len(self._names) >= _KNOWN_NAMES:
            self._names.clear()
        number: int = row[0]
        self._names[name] = number
        return number

    def _add_chain(
        self, defender: str, agent: str, epoch: int, seq: int, chain: bytes, received: int
    ) -> Chain:
        self._used += 1
        (number,) = self.connection.execute(
            "INSERT INTO chains (defender, agent, epoch, seq, chain, closed, used, gaps, received)"
            " VALUES (?, ?, ?, ?, ?, 0, ?, 0, ?) RETURNING id",
            (defender, agent, epoch.to_bytes(8), seq, chain, self._used, received),
        ).fetchone()
        known = Chain(number, defender, agent, epoch, seq, chain, False, self._used, 0, received, True)
        self._chains[defender, epoch] = self._current[defender] = known
        self._touched.append(known)
        return known

    def _move(self, known: Chain, seq: int, chain: bytes, closed: bool, received: int) -> None:
        known.seq, known.chain, known.closed, known.received = seq, chain, closed, received
        self._current[known.defender] = known
        self._used += 1
        known.used = self._used
        self._touch(known)

    def _touch(self, known: Chain) -> None:
        if not known.changed:
            known.changed = True
            self._touched.append(known)

    def _quarantine(
        self, known: Chain, batch: Batch, records: list[Record], reason: str, received: int
    ) -> None:
        """Put records aside that do not fit, and go on behind them: the defender must not be stuck."""
        if self._put_aside(batch, known.agent, len(records), reason, received):
            known.gaps += 1
            self._touch(known)
        last = records[-1]
        if last.seq > known.seq:
            self._move(known, last.seq, last.chain, is_closing(last.payload), received)

    def _put_aside(self, batch: Batch, agent: str, count: int, reason: str, received: int) -> bool:
        """Keep bytes that are not stored as events; whether they are new."""
        done = self.connection.execute(
            "INSERT OR IGNORE INTO quarantine"
            " (received, defender, agent, epoch, first_seq, previous, digest, records, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                received,
                batch.defender,
                agent,
                (batch.epoch % 2**64).to_bytes(8),
                min(batch.first_seq, MAX_SEQ),
                batch.previous,
                hashlib.sha256(batch.records).digest(),
                batch.records,
                reason,
            ),
        )
        if done.rowcount != 1:
            return False
        text = f"{reason}; they are kept, put aside"
        event = _note("audit_quarantine", agent, batch.defender, batch.epoch, batch.first_seq, count, text)
        self._record(event, batch.defender, received)
        return True

    def _gap(
        self, batch: Batch, agent: str, epoch: int, first: int, count: int, reason: str, received: int
    ) -> None:
        text = f"{reason}: {batch.lost}" if batch.lost else reason
        event = _note("audit_gap", agent, batch.defender, epoch, first, count, text)
        self._record(event, batch.defender, received)

    def note(self, action: str, reason: str, received: int) -> None:
        """Record an event of the store's own that is about no defender."""
        self._record(_note(action, NOTES_AGENT, "", self._notes_epoch, 0, 0, reason), NOTES, received)

    def _record(self, event: Event, about: str, received: int) -> None:
        """Store an event of the store's own, in front of what comes next."""
        known = self.cursor(NOTES, self._notes_epoch)
        if known is None:
            start = first_chain(NOTES_AGENT, self._notes_epoch)
            known = self._add_chain(NOTES, NOTES_AGENT, self._notes_epoch, 0, start, received)
        seq = known.seq + 1
        payload = assemble(*pack_body(event), note_id(self._notes_epoch, seq, received), received, 0)
        record = Record(0, seq, chained(known.chain, seq, payload), payload)
        self._insert(known, about, [record], known.chain, received)
        self._move(known, seq, record.chain, False, received)


def _note(action: str, agent: str, defender: str, epoch: int, first: int, count: int, reason: str) -> Event:
    """A `gap` event that names whose records are missing or put aside."""
    event = gap_event(count, first, 0.0, reason)
    del event["corr"]  # it stands alone
    fields = {"defender": defender, "epoch": f"{epoch:016x}"}
    event["req"] = {"action": action, "target": agent, "fields": fields}
    return event


def note_id(epoch: int, seq: int, micros: int) -> bytes:
    """A UUIDv7 for the store's own event: the time, and a digest of its place."""
    digest = hashlib.sha256(b"dfleet note" + epoch.to_bytes(8) + seq.to_bytes(8)).digest()
    identity = bytearray((micros // 1000).to_bytes(8)[2:] + digest[:10])
    identity[6] = 0x70 | identity[6] & 0x0F
    identity[8] = 0x80 | identity[8] & 0x3F
    return bytes(identity)


_ROWS: Final = 250


@lru_cache(maxsize=_ROWS)
def _insertion(rows: int) -> str:
    return "INSERT INTO events VALUES " + ",".join(["(?,?,?,?,?,?,?)"] * rows)  # noqa: S608 - no text of others

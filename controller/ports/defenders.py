"""The hosts of the fleet: what each one is, what it should have and what it has."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from controller.admin_audit import compare
from controller.api.ports import Actor, ConflictError, Json, NotFoundError, PageWish, Selection
from controller.api.shapes import MODES, moment
from controller.distribution import Distribution
from controller.pki import registry
from controller.pki.registry import Office
from controller.pki.tokens import APPROVAL_LIFE
from controller.ports.ledger import Ledger, Tell, Told
from controller.ports.links import Links
from controller.ports.locks import find_defender
from controller.ports.orders import Orders, Publisher
from controller.ports.paging import in_time, part
from controller.ports.refusals import refusals
from controller.releases import Position, Standing
from controller.selection import Defender, change_labels
from controller.selection import Selection as Selected
from controller.store import certificates, defenders, join_tokens, positions
from controller.store.defenders import DefenderRow
from controller.store.join_tokens import JoinUseRow
from controller.store.positions import HeldRow
from controller.store.rows import fold
from defender.contract.trust import MODE, STREAMS

_NONE: Final[Mapping[str, Any]] = {
    "key_epoch": 0,
    "desired": None,
    "active": None,
    "state": "none",
    "detail": "",
}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the store has of some defenders."""

    rows: list[DefenderRow]
    held: Mapping[tuple[str, str], HeldRow]
    expiry: Mapping[str, int]


class Defenders:
    """`controller.api.ports.Defenders`. `office` is what decisions on who waits are made with."""

    def __init__(
        self, ledger: Ledger, publisher: Publisher, orders: Orders, links: Links, office: Office
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._orders = orders
        self._links = links
        self._office = office

    async def defenders(self, wanted: Selection, page: PageWish) -> Json:
        """`DefenderPage`, by name."""
        with refusals():
            selection = Selected(ids=wanted.ids, names=wanted.names, labels=wanted.labels)
        now = self._ledger.clock()
        seen = await self._ledger.read(_everybody)
        rows = [
            row
            for row in seen.rows
            if selection.matches(Defender(row.id, row.name, row.labels))
            and wanted.state in ("", self._links.presence(row.id, row.last_seen, now).value)
        ]
        return part(rows, page, key=lambda row: fold(row.name), show=lambda row: self._shown(row, seen, now))

    async def defender(self, ref: str) -> Json:
        """`Defender`."""
        seen = await self._ledger.read(_one, ref)
        return self._shown(seen.rows[0], seen, self._ledger.clock())

    async def relabel(self, actor: Actor, ref: str, labels: Mapping[str, str | None]) -> Json:
        """`Defender`. Which policy it has follows its labels at once."""

        def change(connection: sqlite3.Connection, tell: Tell) -> Defender:
            row = find_defender(connection, ref)
            after = change_labels(row.labels, labels)
            if after != dict(row.labels):
                defenders.relabel(connection, row.id, labels)
                tell(Told("defender_label", row.name, compare({"labels": row.labels}, {"labels": after})))
            return Defender(row.id, row.name, after)

        with refusals("/labels"):
            self._publisher.enrolled(await self._ledger.act(actor, change))
        return await self.defender(ref)

    async def remove(self, actor: Actor, ref: str) -> None:
        """Forget a defender. Who is not in the store is not let in; its events stay."""

        def forget(connection: sqlite3.Connection, tell: Tell) -> DefenderRow:
            row = find_defender(connection, ref)
            defenders.remove(connection, row.id)
            told = {"id": row.id, "name": row.name, "labels": row.labels}
            tell(Told("defender_remove", row.name, compare(told, None)))
            return row

        row = await self._ledger.act(actor, forget)
        self._links.cut(row.id, "this defender was removed from the fleet")
        self._publisher.removed(row.id)

    async def enrollments(self, page: PageWish) -> Json:
        """`EnrollmentPage`: who waits, the longest first."""
        rows = await self._ledger.read(join_tokens.waiting, self._ledger.clock() - APPROVAL_LIFE)
        return part(rows, page, key=lambda row: in_time(row.begun, _id_of(row)), show=_waiting)

    async def decide_enrollment(self, actor: Actor, enrollment: str, approve: bool) -> None:
        """Let in or turn away who waits; ConflictError if that was decided already."""
        token, _, key = enrollment.partition(":")
        try:
            digest = bytes.fromhex(key)
        except ValueError:
            digest = b""

        def decide(connection: sqlite3.Connection, tell: Tell) -> None:
            row = join_tokens.find_use(connection, token, digest) if digest else None
            if row is None:
                raise NotFoundError(f"nobody waits as {enrollment!r}")
            now = int(self._ledger.clock())
            if registry.decide(connection, self._office, token, digest, agree=approve, now=now) is None:
                raise ConflictError(f"{row.name!r} does not wait any more: it is {row.state}")
            action = "enrollment_approve" if approve else "enrollment_reject"
            changed = compare({"state": row.state}, {"state": "approved" if approve else "denied"})
            tell(Told(action, f"{row.name} (key {key[:16]})", changed))

        await self._ledger.act(actor, decide)

    def _shown(self, row: DefenderRow, seen: _Seen, now: float) -> Json:
        heard = self._links.last_heard(row.id, row.last_seen)
        ends = seen.expiry.get(row.id)
        streams = {
            stream: _stream(self._publisher.streams[stream], row.id, seen.held.get((row.id, stream)))
            for stream in STREAMS
            if stream in self._publisher.streams
        }
        return {
            "id": row.id,
            "name": row.name,
            "state": self._links.presence(row.id, row.last_seen, now).value,
            "labels": dict(row.labels),
            "address": row.address[:64],
            "program": row.program[:64],
            "enrolled_at": moment(row.enrolled),
            "last_seen_at": None if heard is None else moment(heard),
            "certificate_expires_at": None if ends is None else moment(ends),
            "listener": self._listener(row, streams.get(MODE, _NONE)),
            "streams": streams,
            # Defenders do not tell yet how much of their spool waits.
            "spool": None,
        }

    def _listener(self, row: DefenderRow, stream: Mapping[str, Any]) -> Mapping[str, Any]:
        mode = self._orders.mode_of(row.id)
        told = row.status.get("listener")
        listener: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
        actual, error = listener.get("actual"), listener.get("last_error")
        return {
            "desired": None if mode is None else mode.listener,
            "actual": actual if actual in MODES else None,
            "drain": None if mode is None else mode.drain,
            "detail": stream["detail"] or (error[:2000] if isinstance(error, str) else ""),
        }


def _stream(distribution: Distribution, who: str, held: HeldRow | None) -> Mapping[str, Any]:
    """`StreamState`. Versions are the numbers under which contents were published first."""
    active, epoch = None, 0
    if held is not None and held.position is not None:
        at = Position(*held.position)
        epoch, active = at.key_epoch, distribution.origin_of(at).version
    if distribution.line_of(who) is None:
        return {**_NONE, "key_epoch": epoch, "active": active}
    standing, refusal = distribution.standing(who)
    wanted = distribution.desired(who)
    detail = "" if refusal is None else f"{refusal.code}: {refusal.detail}"[:2000]
    return {
        "key_epoch": epoch,
        "desired": None if wanted is None else wanted.origin.version,
        "active": active,
        "state": "waiting" if standing in (Standing.SENT, Standing.QUEUED) else standing.value,
        "detail": detail,
    }


def _everybody(connection: sqlite3.Connection) -> _Seen:
    return _with(connection, defenders.every(connection), None)


def _one(connection: sqlite3.Connection, ref: str) -> _Seen:
    row = find_defender(connection, ref)
    return _with(connection, [row], row.id)


def _with(connection: sqlite3.Connection, rows: list[DefenderRow], only: str | None) -> _Seen:
    held: Collection[HeldRow] = positions.held(connection, defender=only)
    return _Seen(rows, {(each.defender, each.stream): each for each in held}, certificates.expiry(connection))


def _id_of(row: JoinUseRow) -> str:
    return f"{row.token}:{row.key.hex()}"


def _waiting(row: JoinUseRow) -> Json:
    return {
        "id": _id_of(row),
        "name": row.name,
        "address": row.address[:64],
        "key": row.key.hex(),
        "join_token": row.token,
        "asked_at": moment(row.begun),
    }

"""What enrollment did, as events of the audit trail."""

from __future__ import annotations

import sqlite3
from typing import Final

from controller.admin_audit import Changed
from controller.api.ports import Actor
from controller.pki.registry import Notice, Record
from controller.ports.ledger import Ledger, Told

_TURNED_AWAY: Final = frozenset({"refused", "cloned"})


def notices(ledger: Ledger) -> Record:
    """For `controller.pki.registry.Office`: writes the event of a notice in the transaction of what it tells
    of. The event is moved to the event store with the next one; call `Ledger.move` to have it there sooner.
    """

    def write(connection: sqlite3.Connection, notice: Notice) -> None:
        actor = Actor("", "system", "", notice.source, "")
        told = {"defender": notice.defender, "join_token": notice.token}
        after = {key: value for key, value in told.items() if value}
        turned_away = notice.kind in _TURNED_AWAY
        ledger.append(
            connection,
            actor,
            Told(
                f"defender_{notice.kind}",
                notice.name or notice.defender,
                Changed({}, after) if after else None,
                refused=(notice.detail or notice.kind) if turned_away else "",
                comment="" if turned_away else notice.detail,
            ),
        )

    return write

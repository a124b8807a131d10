"""What the store need not keep any longer."""

from __future__ import annotations

import sqlite3
from typing import Final

from controller.ports.ledger import Ledger
from controller.store import join_tokens, modes, users

KEEP_TOKENS: Final = 30 * 86_400.0
"""Seconds that a join token is shown after its end."""
KEEP_CHANGES: Final = 30 * 86_400.0
"""Seconds that an order of a listener mode can be looked at."""


async def tidy(ledger: Ledger) -> None:
    """Forget sessions that are over, join tokens and orders of listener modes that are long over.

    To be done once an hour or so. UnavailableError if the store cannot be written: try the next time.
    """
    now = ledger.clock()

    def forget(connection: sqlite3.Connection) -> None:
        users.forget_sessions(connection, now)
        join_tokens.forget(connection, now - KEEP_TOKENS)
        modes.forget_changes(connection, now - KEEP_CHANGES)

    await ledger.write(forget)

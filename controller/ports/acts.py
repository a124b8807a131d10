"""The audit trail of the API itself."""

from __future__ import annotations

from controller.api.ports import Actor
from controller.ports.ledger import Ledger, Told


class Acts:
    """Keeps what was asked for and refused (`controller.api.ports.Acts`)."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def refused(self, actor: Actor, operation: str, target: str, reason: str) -> None:
        """Write the event of a refusal."""
        await self._ledger.tell(actor, Told(operation, target, refused=reason))

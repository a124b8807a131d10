"""Join tokens, over the store: made, listed without their secrets, and revoked."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final

from cryptography import x509

from controller.admin_audit import compare
from controller.api.ports import Actor, InvalidError, Json, NotFoundError, PageWish
from controller.api.schema import Fault
from controller.api.shapes import moment
from controller.pki.kept import add_token, token_of
from controller.pki.tokens import LIFE, StoredToken, TokenTermsError, store_token, terms_of
from controller.ports.ledger import Ledger, Tell, Told
from controller.ports.paging import made_up
from controller.store import join_tokens
from controller.store.join_tokens import JoinTokenRow
from defender.contract.join_token import ENTROPY, format_token, new_token

_POINTERS: Final = {"life": "/expires_in", "max_uses": "/uses"}


class JoinTokens:
    """`controller.api.ports.JoinTokens`; `root` is the fleet's, which the tokens pin.

    `channel` says where defenders reach the controller, HOST:PORT: whoever makes a token has to tell it them.
    `life` is that of tokens which do not say theirs, in seconds; with `approval` an operator agrees to every
    host, whatever its token says.
    """

    def __init__(
        self,
        ledger: Ledger,
        root: x509.Certificate,
        channel: Callable[[], str],
        *,
        life: int = LIFE,
        approval: bool = False,
    ) -> None:
        self._ledger = ledger
        self._root = root
        self._channel = channel
        self._life = life
        self._approval = approval

    async def join_tokens(self, page: PageWish) -> Json:
        """`JoinTokenPage`, the newest first."""

        def find(connection: sqlite3.Connection) -> list[JoinTokenRow]:
            if page.cursor and join_tokens.find(connection, page.cursor) is None:
                raise made_up()
            return join_tokens.page(connection, page.cursor, page.limit + 1)

        rows = await self._ledger.read(find)
        now = self._ledger.clock()
        more = rows[page.limit - 1].id if len(rows) > page.limit else None
        return {"items": [_shown(row, now) for row in rows[: page.limit]], "next": more}

    async def create_join_token(self, actor: Actor, wanted: Json) -> Json:
        """`CreatedJoinToken`."""
        token = new_token(self._ledger.entropy(ENTROPY), self._root)
        now = int(self._ledger.clock())
        try:
            kept = store_token(
                token,
                now=now,
                life=wanted.get("expires_in", self._life),
                max_uses=wanted.get("uses", 1),
                networks=tuple(wanted.get("networks", ())),
                labels=wanted.get("labels", {}),
                names=tuple(wanted.get("names", ())),
                hosts=tuple(wanted.get("hosts", ())),
                approval=self._approval or wanted.get("approval", False),
                created_by=actor.user,
                comment=wanted.get("comment", ""),
            )
        except TokenTermsError as error:
            pointer = _POINTERS.get(error.field, f"/{error.field}")
            raise InvalidError([Fault(pointer, error.detail)]) from None

        def create(connection: sqlite3.Connection, tell: Tell) -> JoinTokenRow:
            add_token(connection, kept)
            tell(Told("join_token_create", kept.id, compare(None, _told(kept)), comment=kept.comment))
            row = join_tokens.find(connection, kept.id)
            assert row is not None
            return row

        row = await self._ledger.act(actor, create)
        return {**_shown(row, now), "token": format_token(token), "channel": self._channel()}

    async def revoke_join_token(self, actor: Actor, token: str) -> None:
        """Revoke by id; once more is no error. Who has joined with it stays."""

        def revoke(connection: sqlite3.Connection, tell: Tell) -> None:
            row = join_tokens.find(connection, token)
            if row is None:
                raise NotFoundError(f"there is no join token {token!r}")
            if join_tokens.revoke(connection, token, self._ledger.clock()):
                tell(Told("join_token_revoke", token, compare(_told(token_of(row)), None)))

        await self._ledger.act(actor, revoke)


def _shown(row: JoinTokenRow, now: float) -> Mapping[str, Any]:
    token = token_of(row)
    if row.revoked is not None:
        state = "revoked"
    elif row.uses >= row.max_uses:
        state = "used"
    else:
        state = "expired" if now >= row.expires else "usable"
    return {
        "id": token.id,
        "uses": token.max_uses,
        "used": token.uses,
        "networks": list(token.networks),
        "labels": dict(token.labels),
        "names": list(token.names),
        "hosts": list(token.hosts),
        "approval": token.approval,
        "comment": token.comment,
        "by": token.created_by,
        "created_at": moment(row.created),
        "expires_at": moment(row.expires),
        "state": state,
    }


def _told(token: StoredToken) -> dict[str, object]:
    terms = {key: value for key, value in terms_of(token).items() if key != "comment"}
    return {**terms, "uses": token.max_uses, "expires": moment(token.expires)}

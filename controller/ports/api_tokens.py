"""API tokens: made by their owners, narrower than they are, and revoked by id."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from controller.accounts import AccountError, check_token
from controller.admin_audit import compare
from controller.api.ports import (
    Actor,
    ConflictError,
    InvalidError,
    Json,
    NotFoundError,
    PageWish,
    RefusedError,
)
from controller.api.schema import Fault
from controller.api.shapes import moment
from controller.credentials import API_TOKEN, ENTROPY, make_credential
from controller.ports.ledger import Ledger, Tell, Told
from controller.ports.paging import in_time, part
from controller.store import users
from controller.store.users import ApiTokenRow

MOST: Final = 100
"""Usable tokens of one account."""


class ApiTokens:
    """The part of `controller.api.ports.Accounts` that is about API tokens."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def api_tokens(self, actor: Actor, everybody: bool, page: PageWish) -> Json:
        """`ApiTokenPage`, the oldest first; those that were revoked are left out."""

        def find(connection: sqlite3.Connection) -> list[tuple[ApiTokenRow, str]]:
            owner = None if everybody else _owner(connection, actor)
            names = {each.id: each.name for each in users.every(connection)}
            rows = users.tokens(connection, owner)
            return [(row, names[row.user]) for row in rows if row.revoked is None]

        rows = await self._ledger.read(find)
        return part(
            rows, page, key=lambda each: in_time(each[0].created, each[0].id), show=lambda each: _shown(*each)
        )

    async def create_api_token(self, actor: Actor, wanted: Json, permissions: frozenset[str]) -> Json:
        """`CreatedApiToken`. One that is made with a token does not outlive that token."""
        life = float(wanted["expires_in"])
        try:
            scope = check_token(wanted["permissions"], permissions, life)
        except AccountError as error:
            raise InvalidError([Fault("/permissions", str(error))]) from None
        secret = make_credential(API_TOKEN, self._ledger.entropy(ENTROPY))

        def create(connection: sqlite3.Connection, tell: Tell) -> ApiTokenRow:
            now = self._ledger.clock()
            owner = _owner(connection, actor)
            usable = [
                row for row in users.tokens(connection, owner) if row.revoked is None and row.expires > now
            ]
            if len(usable) >= MOST:
                raise ConflictError(f"there are {MOST} API tokens of yours; revoke one that is not needed")
            if actor.via == "token":
                _check_life(usable, actor.credential, now + life)
            row = ApiTokenRow(
                self._ledger.new_id(),
                secret.digest,
                owner,
                wanted["name"],
                tuple(sorted(scope)),
                now,
                now + life,
            )
            users.add_token(connection, row)
            tell(Told("api_token_create", row.id, compare(None, _told(row, actor.user))))
            return row

        row = await self._ledger.act(actor, create)
        return {**_shown(row, actor.user), "token": secret.text}

    async def revoke_api_token(self, actor: Actor, token: str, everybody: bool) -> None:
        """Revoke by id; who asks again is told the same."""

        def revoke(connection: sqlite3.Connection, tell: Tell) -> None:
            owner = None if everybody else _owner(connection, actor)
            known = {row.id: row for row in users.tokens(connection, owner)}
            row = known.get(token)
            if row is None:
                raise NotFoundError(f"there is no API token {token!r}")
            if row.revoked is None:
                users.revoke_token(connection, token, self._ledger.clock())
                found = users.find_id(connection, row.user)
                before = _told(row, found.name if found is not None else "")
                tell(Told("api_token_revoke", token, compare(before, None)))

        await self._ledger.act(actor, revoke)


def _owner(connection: sqlite3.Connection, actor: Actor) -> str:
    row = users.find(connection, actor.user)
    if row is None or row.disabled:
        raise RefusedError("this account is no longer there")
    return row.id


def _check_life(usable: list[ApiTokenRow], parent: str, expires: float) -> None:
    own = next((row for row in usable if row.id == parent), None)
    if own is None or expires > own.expires:
        told = "a token that is made with a token does not outlive it; sign in to make a longer one"
        raise InvalidError([Fault("/expires_in", told)])


def _shown(row: ApiTokenRow, user: str) -> Mapping[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "user": user,
        "permissions": sorted(row.permissions),
        "created_at": moment(row.created),
        "expires_at": moment(row.expires),
        "last_used_at": None if row.used is None else moment(row.used),
    }


def _told(row: ApiTokenRow, user: str) -> dict[str, object]:
    return {
        "name": row.name,
        "user": user,
        "permissions": sorted(row.permissions),
        "expires": moment(row.expires),
    }

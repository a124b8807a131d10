"""Accounts, as an admin makes and changes them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from controller.accounts import (
    USER,
    Account,
    AccountError,
    check_account,
    check_change,
    check_reach,
    check_roles,
)
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
from controller.ports.ledger import Ledger, Tell, Told
from controller.ports.paging import part
from controller.ports.sign_ins import PasswordDesk, account_of, end_sessions
from controller.store import users
from controller.store.rows import fold
from controller.store.users import UserRow


class People:
    """The part of `controller.api.ports.Accounts` that is about accounts."""

    def __init__(self, ledger: Ledger, desk: PasswordDesk) -> None:
        self._ledger = ledger
        self._desk = desk

    async def accounts(self, page: PageWish) -> Json:
        """`AccountPage`, by name."""
        rows = await self._ledger.read(users.every)
        return part(rows, page, key=lambda row: fold(row.name), show=shown)

    async def account(self, user: str) -> Json:
        """`Account`."""
        return shown(await self._ledger.read(_found, user))

    async def create_account(self, actor: Actor, wanted: Json, permissions: frozenset[str]) -> Json:
        """`Account`; ConflictError if the name is taken, however it is written."""
        _check_roles(wanted["roles"])
        await self._check_reach(actor, "account_create", wanted["user"], permissions, wanted["roles"])
        return shown(await self._create(actor, wanted["user"], wanted["roles"], wanted["password"]))

    async def change_account(
        self, actor: Actor, user: str, wanted: Json, permissions: frozenset[str]
    ) -> Json:
        """`Account`; a new password and being disabled end its sessions. A password that somebody else set
        has to be changed by whom it is for.
        """
        before = await self._ledger.read(_found, user)
        if "roles" in wanted:
            _check_roles(wanted["roles"])
        roles = (*before.roles, *wanted.get("roles", ()))
        await self._check_reach(actor, "account_change", before.name, permissions, roles)
        hashed = None
        if "password" in wanted:
            hashed = await self._desk.hash(wanted["password"], before.name, "/password")

        def change(connection: sqlite3.Connection, tell: Tell) -> UserRow:
            row = _found(connection, user)
            if row.roles != before.roles:
                raise ConflictError("the roles of this account were changed by somebody else meanwhile")
            after = replace(
                row,
                roles=tuple(sorted(wanted.get("roles", row.roles))),
                disabled=wanted.get("disabled", row.disabled),
                password=row.password if hashed is None else hashed,
                must_change=row.must_change if hashed is None else fold(row.name) != fold(actor.user),
                changed=self._ledger.clock(),
            )
            _check_change(connection, actor, row, account_of(after))
            users.keep(connection, after)
            if hashed is not None or after.disabled:
                end_sessions(connection, row.id, actor.credential)
            news = {**_told(after), "password_changed": hashed is not None}
            tell(Told("account_change", row.name, compare({**_told(row), "password_changed": False}, news)))
            return after

        return shown(await self._ledger.act(actor, change))

    async def remove_account(self, actor: Actor, user: str, permissions: frozenset[str]) -> None:
        """Remove an account with its sessions and tokens."""
        before = await self._ledger.read(_found, user)
        await self._check_reach(actor, "account_remove", before.name, permissions, before.roles)

        def remove(connection: sqlite3.Connection, tell: Tell) -> None:
            row = _found(connection, user)
            if row.roles != before.roles:
                raise ConflictError("the roles of this account were changed by somebody else meanwhile")
            _check_change(connection, actor, row, None)
            users.remove(connection, row.id)
            tell(Told("account_remove", row.name, compare(_told(row), None)))

        await self._ledger.act(actor, remove)

    async def _check_reach(
        self, actor: Actor, action: str, target: str, own: frozenset[str], roles: Iterable[str]
    ) -> None:
        try:
            check_reach(own, roles)
        except AccountError as error:
            await self._ledger.tell(actor, Told(action, target, refused=str(error)))
            raise RefusedError(str(error)) from None

    async def _create(self, actor: Actor, user: str, roles: list[str], password: str) -> UserRow:
        try:
            check_account(user, (USER,))
        except AccountError as error:
            raise InvalidError([Fault("/user", str(error))]) from None
        hashed = await self._desk.hash(password, user, "/password")

        def create(connection: sqlite3.Connection, tell: Tell) -> UserRow:
            now = self._ledger.clock()
            given = tuple(sorted(set(roles)))
            row = UserRow(self._ledger.new_id(), user, given, hashed, now, now, must_change=True)
            users.add(connection, row)
            tell(Told("account_create", user, compare(None, _told(row))))
            return row

        return await self._ledger.act(actor, create)


def shown(row: UserRow) -> Mapping[str, Any]:
    """The `Account` of the API."""
    return {
        "user": row.name,
        "roles": sorted(row.roles),
        "disabled": row.disabled,
        "must_change_password": row.must_change,
        "created_at": moment(row.created),
        "last_login_at": None if row.last_login is None else moment(row.last_login),
    }


def _told(row: UserRow) -> dict[str, object]:
    return {"roles": sorted(row.roles), "disabled": row.disabled}


def _found(connection: sqlite3.Connection, user: str) -> UserRow:
    row = users.find(connection, user)
    if row is None:
        raise NotFoundError(f"there is no account {user!r}")
    return row


def _check_roles(roles: list[str]) -> None:
    try:
        check_roles(roles)
    except AccountError as error:
        raise InvalidError([Fault("/roles", str(error))]) from None


def _check_change(connection: sqlite3.Connection, actor: Actor, row: UserRow, after: Account | None) -> None:
    everybody = [account_of(each) for each in users.every(connection)]
    try:
        check_change(everybody, actor.user, row.name, after)
    except AccountError as error:
        raise RefusedError(str(error)) from None

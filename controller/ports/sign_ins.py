"""Who a bearer token belongs to, sessions, and one's own password."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from twisted.internet.defer import Deferred

from controller.accounts import Account, ApiToken, token_permissions
from controller.api.ports import (
    Actor,
    ConflictError,
    InvalidError,
    Json,
    Principal,
    RefusedError,
    TooManyError,
)
from controller.api.schema import Fault
from controller.api.shapes import moment
from controller.credentials import (
    API_TOKEN,
    ENTROPY,
    SESSION,
    SESSION_LIFE,
    USE_NOTED,
    Credential,
    Session,
    make_credential,
    read_credential,
    sessions_to_end,
)
from controller.identity.passwords import MAX_PASSWORD, Passwords, TooBusyError
from controller.login_throttle import LoginThrottle
from controller.passwords import PasswordError, check_password, prepare
from controller.ports.ledger import Ledger, Tell, Told
from controller.store import users
from controller.store.users import SessionRow, UserRow

T = TypeVar("T")

WRONG: Final = "user and password do not belong together"
_BUSY_RETRY: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Bearer:
    """What the store has of a bearer token."""

    principal: Principal
    to_note: bool


class PasswordDesk:
    """Passwords as they are typed: hashed and compared in time, and no oftener than is allowed."""

    def __init__(self, ledger: Ledger, passwords: Passwords, throttle: LoginThrottle) -> None:
        self._ledger = ledger
        self._passwords = passwords
        self._throttle = throttle

    async def hash(self, password: str, user: str, pointer: str) -> str:
        """The hash of a password that somebody chose for `user`; InvalidError at `pointer` if it is weak."""
        try:
            check_password(password, user)
        except PasswordError as error:
            raise InvalidError([Fault(pointer, str(error))]) from None
        prepared = prepare(password)
        if len(prepared.encode("utf-8", "surrogatepass")) > MAX_PASSWORD:
            raise InvalidError([Fault(pointer, f"the password has more than {MAX_PASSWORD} bytes in UTF-8")])
        return await _in_time(self._passwords.hash(prepared))

    async def matches(self, user: str, kept: str, password: str, address: str) -> bool:
        """Whether a password is the one whose hash is kept ("": never). TooManyError if too often tried."""
        wait = self._throttle.attempt(user, address, self._ledger.steady())
        if wait:
            raise TooManyError(f"too many sign-ins; wait {wait} s", float(wait))
        if await _in_time(self._passwords.verify(kept, prepare(password))):
            self._throttle.succeeded(user)
            return True
        return False

    async def renewed(self, kept: str, password: str) -> str:
        """The hash as it should be kept from now on, for a password that was right."""
        if not self._passwords.is_outdated(kept):
            return kept
        return await _in_time(self._passwords.hash(prepare(password)))


async def _in_time(computing: Deferred[T]) -> T:
    try:
        return await computing
    except TooBusyError as error:
        raise TooManyError(str(error), _BUSY_RETRY) from None


class SignIns:
    """The part of `controller.api.ports.Accounts` that is about sessions and one's own password."""

    def __init__(self, ledger: Ledger, desk: PasswordDesk) -> None:
        self._ledger = ledger
        self._desk = desk
        self._noting: set[str] = set()

    async def authenticate(self, token: str, address: str) -> Principal | None:
        """The owner of a token. That it is used is noted at most once a minute, and nobody waits for it."""
        found = read_credential(token)
        if found is None:
            return None
        kind, digest = found
        now = self._ledger.clock()
        look_up = _session_bearer if kind == SESSION else _token_bearer
        bearer = await self._ledger.read(look_up, digest, now)
        if bearer is None:
            return None
        if bearer.to_note:
            self._note(kind, bearer.principal.credential, now)
        return bearer.principal

    async def log_in(self, user: str, password: str, actor: Actor) -> Json:
        """A new session; one that makes room for it ends."""
        row = await self._ledger.read(users.find, user)
        kept = row.password if row is not None and not row.disabled else ""
        if not await self._desk.matches(user, kept, password, actor.address) or row is None:
            # Some type their password where their name belongs: only names that are known are told.
            target = row.name if row is not None else "(no such account)"
            await self._ledger.tell(actor, Told("session_begin", target, refused=WRONG))
            raise RefusedError(WRONG)
        hashed = await self._desk.renewed(kept, password)
        secret = make_credential(SESSION, self._ledger.entropy(ENTROPY))
        ident = self._ledger.new_id()
        known = row

        def begin(connection: sqlite3.Connection, tell: Tell) -> UserRow | None:
            now = self._ledger.clock()
            present = users.find_id(connection, known.id)
            if present is None or present.disabled or present.password != kept:
                return None
            _make_room(connection, present.id, now)
            users.keep(connection, replace(present, password=hashed, last_login=now))
            users.add_session(connection, _session_row(ident, secret, present.id, now, actor.address))
            who = replace(actor, user=present.name, via="session", credential=ident)
            self._ledger.append(connection, who, Told("session_begin", present.name))
            return present

        present = await self._ledger.act(actor, begin)
        if present is None:
            raise RefusedError(WRONG)
        principal = _principal(present, ident, self._ledger.clock())
        return {
            "token": secret.text,
            "session": ident,
            "user": principal.user,
            "roles": list(principal.roles),
            "permissions": sorted(principal.permissions),
            "expires_at": moment(principal.expires),
            "must_change_password": principal.must_change,
        }

    async def log_out(self, actor: Actor) -> None:
        """End the actor's session; ConflictError for an API token, which has none."""
        if actor.via != "session":
            raise ConflictError("this is an API token and no session; revoke it by its id instead")

        def end(connection: sqlite3.Connection, tell: Tell) -> None:
            users.end_sessions(connection, [actor.credential])
            tell(Told("session_end", actor.user))

        await self._ledger.act(actor, end)

    async def change_password(self, actor: Actor, present: str, wanted: str) -> None:
        """Set the actor's own password to another one, and end their other sessions."""
        row = await self._ledger.read(users.find, actor.user)
        if row is None:
            raise RefusedError("this account is no longer there")
        if not await self._desk.matches(row.name, row.password, present, actor.address):
            told = "the present password is another one"
            await self._ledger.tell(actor, Told("password_change", row.name, refused=told))
            raise RefusedError(told)
        if prepare(wanted) == prepare(present):
            raise InvalidError([Fault("/wanted", "this is the present password; choose another one")])
        hashed = await self._desk.hash(wanted, row.name, "/wanted")
        known = row

        def change(connection: sqlite3.Connection, tell: Tell) -> None:
            now = self._ledger.clock()
            found = users.find_id(connection, known.id)
            if found is None or found.password != known.password:
                raise ConflictError("the password was changed by somebody else meanwhile")
            users.keep(connection, replace(found, password=hashed, changed=now, must_change=False))
            end_sessions(connection, found.id, actor.credential)
            tell(Told("password_change", found.name))

        await self._ledger.act(actor, change)

    def _note(self, kind: str, ident: str, now: float) -> None:
        if ident in self._noting:
            return
        self._noting.add(ident)
        entry = [(ident, now)]
        sessions, tokens = (entry, []) if kind == SESSION else ([], entry)
        done = self._ledger.database.write(users.keep_used, sessions, tokens)
        # A store that cannot be written says so elsewhere; who only reads goes on.
        done.addErrback(lambda _: None).addBoth(lambda _: self._noting.discard(ident))


def account_of(row: UserRow) -> Account:
    """An account as the rules know it."""
    return Account(row.name, frozenset(row.roles), row.disabled)


def end_sessions(connection: sqlite3.Connection, user: str, but: str = "") -> None:
    """End the sessions of an account, by its id, but one."""
    ids = [each.id for each in users.sessions_of(connection, user) if each.id != but]
    users.end_sessions(connection, ids)


def _session_bearer(connection: sqlite3.Connection, digest: bytes, now: float) -> _Bearer | None:
    row = users.find_session(connection, digest)
    if row is None or now >= row.expires:
        return None
    session = Session(row.user, row.created, row.used)
    owner = users.find_id(connection, row.user)
    if owner is None or owner.disabled or session.is_over(now):
        return None
    account = account_of(owner)
    principal = Principal(
        owner.name,
        "session",
        row.id,
        tuple(sorted(owner.roles)),
        account.permissions,
        session.ends(),
        owner.must_change,
    )
    return _Bearer(principal, session.is_to_be_noted(now))


def _token_bearer(connection: sqlite3.Connection, digest: bytes, now: float) -> _Bearer | None:
    row = users.find_token(connection, digest)
    owner = None if row is None else users.find_id(connection, row.user)
    if row is None or owner is None:
        return None
    token = ApiToken(owner.name, frozenset(row.permissions), row.expires, row.revoked)
    permissions = token_permissions(token, account_of(owner), now)
    if permissions is None:
        return None
    principal = Principal(owner.name, API_TOKEN, row.id, tuple(sorted(owner.roles)), permissions, row.expires)
    return _Bearer(principal, row.used is None or now - row.used >= USE_NOTED)


def _make_room(connection: sqlite3.Connection, user: str, now: float) -> None:
    rows = users.sessions_of(connection, user)
    known = {row.digest: Session(row.user, row.created, row.used) for row in rows}
    ids = {row.digest: row.id for row in rows}
    users.end_sessions(connection, [ids[digest] for digest in sessions_to_end(known, now)])


def _session_row(ident: str, secret: Credential, user: str, now: float, address: str) -> SessionRow:
    return SessionRow(ident, secret.digest, user, now, now + SESSION_LIFE, now, address)


def _principal(row: UserRow, session: str, now: float) -> Principal:
    account = account_of(row)
    ends = Session(row.name, now, now).ends()
    roles = tuple(sorted(row.roles))
    return Principal(row.name, "session", session, roles, account.permissions, ends, row.must_change)

"""People, their sign-ins and their API tokens, over the store."""

from __future__ import annotations

import base64
import sqlite3
from typing import Final

from controller.accounts import ADMIN
from controller.admin_audit import compare
from controller.api.ports import Actor
from controller.identity.passwords import Passwords
from controller.login_throttle import LoginThrottle
from controller.passwords import prepare
from controller.ports.api_tokens import ApiTokens
from controller.ports.ledger import Ledger, Tell, Told
from controller.ports.people import People
from controller.ports.sign_ins import PasswordDesk, SignIns
from controller.store import users
from controller.store.users import UserRow

FIRST: Final = "admin"
"""The name of the account that a new fleet has."""

_SYSTEM: Final = Actor("", "system", "", "", "")
_ENTROPY: Final = 15


class Accounts(SignIns, People, ApiTokens):
    """`controller.api.ports.Accounts`. `throttle` counts sign-ins, for all of a controller together."""

    def __init__(self, ledger: Ledger, passwords: Passwords, throttle: LoginThrottle) -> None:
        desk = PasswordDesk(ledger, passwords, throttle)
        SignIns.__init__(self, ledger, desk)
        People.__init__(self, ledger, desk)
        ApiTokens.__init__(self, ledger)


async def first_admin(ledger: Ledger, passwords: Passwords) -> str:
    """Make the account `admin` if there is no account at all; gives its password, "" if nothing was made.

    The password has 120 random bits, in groups of four letters. It is kept nowhere: print it once.
    """
    if await ledger.read(users.every):
        return ""
    letters = base64.b32encode(ledger.entropy(_ENTROPY)).decode().lower()
    password = "-".join(letters[place : place + 4] for place in range(0, len(letters), 4))
    hashed = await passwords.hash(prepare(password))

    def make(connection: sqlite3.Connection, tell: Tell) -> bool:
        if users.every(connection):
            return False
        now = ledger.clock()
        users.add(connection, UserRow(ledger.new_id(), FIRST, (ADMIN,), hashed, now, now, must_change=True))
        tell(Told("account_create", FIRST, compare(None, {"roles": [ADMIN], "disabled": False})))
        return True

    return password if await ledger.act(_SYSTEM, make) else ""

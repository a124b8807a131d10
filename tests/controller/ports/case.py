"""A store, its trail and the API in front of the ports, for the tests of the ports."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads

from controller.api.app import Api
from controller.api.catalog import ROUTES
from controller.api.ports import Actor, Ports
from controller.api.site import ApiSite
from controller.identity.passwords import Passwords
from controller.login_throttle import LoginThrottle
from controller.ports.accounts import Accounts, first_admin
from controller.ports.acts import Acts
from controller.ports.ledger import Ledger
from controller.store.database import Database
from controller.store.query import Query
from controller.store.trail import TrailMover
from tests.controller.api.doubles import World
from tests.controller.api.harness import Connection, Reply, read_reply, request_bytes
from tests.controller.store.trails import NOON, Steps, StoreCase
from tests.schema import faults

T = TypeVar("T")
ROOT_FOLDER = Path(__file__).resolve().parents[3]
SCHEMA: Any = json.loads((ROOT_FOLDER / "docs/reference/event.schema.json").read_text())
GOOD = "tall glass of cold water"
CHOSEN = "the owl is not what it seems"
"""The first admin's password, once it is changed."""
ROOT = Actor("admin", "session", "s1", "192.0.2.7", "r1")


def run(working: Awaitable[T]) -> Deferred[T]:
    """What a port gives, as a Deferred."""

    async def wait() -> T:
        return await working

    return Deferred.fromCoroutine(wait())


class PortCase(StoreCase):
    """`now` is the clock of the ports; hashes are quick ones."""

    def setUp(self) -> Any:
        super().setUp()
        self.now = NOON
        self.database = Database(self.directory, cast("IReactorFromThreads", reactor))
        self.database.start()
        self.addCleanup(self.database.stop)
        self.events_store = self.open_store()
        epochs = iter(range(100, 200))
        self.mover = TrailMover(self.database, self.events_store, lambda: next(epochs))
        self.ledger = Ledger(self.database, self.mover.move, lambda: self.now, lambda: self.now)
        self.passwords = Passwords(reactor, memory_kib=64, passes=1, lanes=1)
        self.passwords.start()
        self.addCleanup(self.passwords.stop)
        self.throttle = LoginThrottle()
        self.accounts = Accounts(self.ledger, self.passwords, self.throttle)
        # What nobody waits for is at its end before the store is closed.
        self.addCleanup(lambda: self.mover.move())
        self.addCleanup(lambda: self.database.write(lambda connection: None))
        return self.mover.start()

    def changes(self) -> dict[str, Any]:
        """The ports that stand in place of the doubles."""
        return {"accounts": self.accounts, "acts": Acts(self.ledger)}

    def ports(self) -> Ports:
        """The ports of this test, and doubles for the others."""
        doubles = World(ROUTES).ports()
        kept = {name: getattr(doubles, name) for name in Ports.__slots__}
        return Ports(**{**kept, **self.changes()})

    @inlineCallbacks
    def told(self, *actions: str) -> Steps[list[dict[str, Any]]]:
        """The events of the controller with these actions, as they are in the event store."""
        yield self.mover.move()
        page = yield self.events_store.after(0, Query(actions=actions), 1000)
        for each in page.events:
            self.assertEqual(faults(each.event, SCHEMA), [], each.event)
        return [each.event for each in page.events]

    @inlineCallbacks
    def admin(self) -> Steps[str]:
        """A first admin who has chosen a password, and the token of its session."""
        password = yield run(first_admin(self.ledger, self.passwords))
        made = yield run(self.accounts.log_in("admin", password, Actor("", "", "", "192.0.2.9", "r0")))
        actor = Actor("admin", "session", made["session"], "192.0.2.9", "r0")
        yield run(self.accounts.change_password(actor, password, CHOSEN))
        return str(made["token"])

    @inlineCallbacks
    def person(self, session: str, user: str, *roles: str) -> Steps[str]:
        """Another account, made by the owner of `session`, and the token of its session; its password is
        `CHOSEN`.
        """
        wanted = {"user": user, "password": GOOD, "roles": list(roles)}
        made = yield self.ask("POST", "/api/v1/accounts", wanted, token=session)
        self.assertEqual(made.status, 201, made.body)
        begun = yield run(self.accounts.log_in(user, GOOD, Actor("", "", "", "192.0.2.9", "r0")))
        actor = Actor(user, "session", begun["session"], "192.0.2.9", "r0")
        yield run(self.accounts.change_password(actor, GOOD, CHOSEN))
        return str(begun["token"])

    @inlineCallbacks
    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Steps[Reply]:
        """Ask the API, which holds every answer to its declaration."""
        api = Api(self.ports(), reactor, version="0.0", check_answers=True)
        site = ApiSite(api.resource(), reactor, api.dispatcher.metrics)
        connection = Connection(site)
        wanted = {"Connection": "close", **(headers or {})}
        done: Deferred[None] = Deferred()
        transport = connection.transport
        transport.loseConnection = lambda: None if done.called else done.callback(None)  # type: ignore[method-assign]
        connection.send(request_bytes(method, path, body, token=token, headers=wanted))
        yield done
        reply = read_reply(connection.received, method)
        connection.close()
        yield api.stop()
        return reply


def items(reply: Reply) -> list[dict[str, Any]]:
    """The items of a page."""
    return cast("list[dict[str, Any]]", json.loads(reply.body)["items"])

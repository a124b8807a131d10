"""The ports over a real publisher, with hosts in memory that verify what they are pushed."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, cast

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import Clock

from controller.pki.registry import Office
from controller.pki.signing import SigningKeys
from controller.ports.defenders import Defenders
from controller.ports.links import Links
from controller.ports.listeners import Listeners
from controller.ports.locks import Locks
from controller.ports.policies import Policies
from controller.publisher import Publisher
from controller.publisher_orders import Orders
from controller.publisher_steps import Authorities
from controller.selection import Defender
from controller.store import defenders
from tests.controller.ports.case import PortCase, run
from tests.controller.publisher_fleet import FakeDesk, Host, ident
from tests.controller.store.trails import NOON, Steps
from tests.fakes.authority import TestAuthority


class LinkedDesk(FakeDesk):
    """Says, too, who is there, and ends sessions."""

    def __init__(self, chain: bytes) -> None:
        super().__init__(chain)
        self.heard_at: dict[str, float] = {}
        self.cuts: list[str] = []

    def connected(self) -> set[str]:
        return self.online

    def last_heard(self, defender: str) -> float | None:
        return self.heard_at.get(defender)

    def cut(self, defender: str, why: str) -> bool:
        self.cuts.append(defender)
        return defender in self.online


class FleetCase(PortCase):
    """A controller with a fleet; `session` is an admin's."""

    def setUp(self) -> Any:
        return super().setUp().addCallback(lambda _: self.begin())

    @inlineCallbacks
    def begin(self) -> Steps[None]:
        pki = TestAuthority(now=datetime.fromtimestamp(NOON, UTC))
        pem = [(each.public_bytes(Encoding.PEM).decode(),) for each in (pki.root, pki.fleet, pki.users)]
        keys = SigningKeys.create(
            self.directory / "signing",
            fleet=str(uuid.uuid4()),
            trust_domain="defender.fleet",
            now=int(NOON) - 60,
        )
        self.desk = LinkedDesk(keys.chain)
        self.publisher = Publisher(
            Clock(), self.database, keys, Authorities(*pem), self.desk, wall=lambda: self.now
        )
        self.desk.publisher = self.publisher
        yield run(self.publisher.start())
        self.addCleanup(lambda: run(self.publisher.stop()))
        self.links = Links(self.desk)
        self.orders = Orders(self.publisher)
        self.session = yield self.admin()

    def changes(self) -> dict[str, Any]:
        office = Office(cast("Any", None), lambda connection, notice: None)
        listeners = Listeners(self.ledger, self.orders)
        hosts = Defenders(self.ledger, self.publisher, self.orders, self.links, office)
        return {
            **super().changes(),
            "defenders": hosts,
            "listeners": listeners,
            "policies": Policies(self.ledger, self.orders),
            "locks": Locks(self.ledger, self.orders),
        }

    @inlineCallbacks
    def enroll(self, name: str, **labels: str) -> Steps[Host]:
        """A host that is connected."""
        yield self.database.write(defenders.add, ident(name), name, enrolled=NOON, token="t", labels=labels)
        self.publisher.enrolled(Defender(ident(name), name, labels))
        host = self.desk.host(name)
        self.desk.connect(host)
        self.desk.heard_at[host.id] = self.now
        yield self.calm()
        return host

    @inlineCallbacks
    def calm(self) -> Steps[None]:
        """Let hosts answer until nobody has anything to say."""
        quiet = 0
        while quiet < 2:
            yield self.publisher.kept()
            yield self.publisher.lock.acquire()
            self.publisher.lock.release()
            yield self.publisher.kept()
            quiet = 0 if self.desk.answer() else quiet + 1

"""Defenders that record, and event stores that take their records in, for the tests of the store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads
from twisted.trial.unittest import TestCase

from controller.store.batch import Batch, Predecessor
from controller.store.events import EventStore
from controller.store.query import Query, Stored
from controller.store.verification import Walk
from defender.contract.packing import CLOSING, assemble, pack_body
from defender.contract.spool import first_chain, seal

T = TypeVar("T")
Steps = Generator[Deferred[Any], Any, T]

#: 2026-11-22 12:00 UTC.
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
NOTES_EPOCH = 0x5107E


def payload_of(
    number: int,
    *,
    micros: int | None = None,
    user: str = "bruce@example.com",
    action: str = "image_create",
    effect: str = "deny",
    more: Mapping[str, object] | None = None,
) -> bytes:
    """The packed event `number`; its id holds that number."""
    event: dict[str, object] = {
        "kind": "engine",
        "phase": "result",
        "actor": {"user": user, "groups": ["Dev team", "Operators"], "via": "tls", "src": "10.1.2.3:51234"},
        "req": {"action": action, "method": "POST", "query": {"fromImage": f"nginx:{number}"}},
        "result": {"status": 403, "ms": 0.4},
        **(more or {}),
    }
    if effect:
        decision = {"effect": effect, "rule": "devs", "version": 12, "digest": "", "reason": "not listed"}
        event["decision"] = decision
    when = int(NOON * 1_000_000) + number if micros is None else micros
    identity = bytearray((when // 1000).to_bytes(8)[2:] + number.to_bytes(10))
    identity[6] = 0x70 | identity[6] & 0x0F
    identity[8] = 0x80 | identity[8] & 0x3F
    return assemble(*pack_body(event), bytes(identity), when, number)


class Trail:
    """One epoch of a defender's spool."""

    def __init__(self, defender: str, epoch: int = 7, agent: str = "", *, after: Trail | None = None) -> None:
        self.defender = defender
        self.epoch = epoch
        self.agent = agent or f"host-{defender}"
        self.seq = 0
        self.chain = first_chain(self.agent, epoch)
        self.chains = [self.chain]
        self.payloads: list[bytes] = []
        self.before = Predecessor(after.epoch, after.seq, after.chain) if after else None

    def record(self, payloads: Iterable[bytes]) -> None:
        """Record events."""
        for payload in payloads:
            _, self.chain = seal(self.chain, self.seq + 1, [payload])
            self.seq += 1
            self.chains.append(self.chain)
            self.payloads.append(payload)

    def many(self, count: int, **fields: Any) -> None:
        """Record `count` events, numbered by their place."""
        self.record([payload_of(self.seq + each, **fields) for each in range(1, count + 1)])

    def close(self) -> None:
        """Record the closing record."""
        self.record([assemble(*CLOSING, bytes(16), int(NOON * 1_000_000), 1)])

    def batch(self, first: int, last: int, **fields: Any) -> Batch:
        """The records `first` to `last`."""
        records, _ = seal(self.chains[first - 1], first, self.payloads[first - 1 : last])
        values = {
            "agent": self.agent,
            "previous": self.chains[first - 1],
            "records": records,
            "predecessor": self.before,
            **fields,
        }
        return Batch(self.defender, epoch=self.epoch, first_seq=first, **values)


class StoreCase(TestCase):
    """Stores in a directory of their own, with a clock that stands."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="store"))
        self.addCleanup(shutil.rmtree, self.directory, True)
        self.now = NOON

    def open_store(self, **options: Any) -> EventStore:
        """A store that is open until the end of the test."""
        threads = cast("IReactorFromThreads", reactor)
        store = EventStore(self.directory, threads, NOTES_EPOCH, clock=lambda: self.now, **options)
        store.start()
        self.addCleanup(store.stop)
        return store

    @inlineCallbacks
    def events(self, store: EventStore, query: Query | None = None) -> Steps[list[Stored]]:
        """All events that a query finds, in the order in which they were stored."""
        found: list[Stored] = []
        position, more = 0, True
        while more:
            page = yield store.after(position, query or Query(), 7)
            found.extend(page.events)
            position, more = int(page.place), page.more
        return found

    @inlineCallbacks
    def gaps(self, store: EventStore) -> Steps[list[tuple[str, int, int, str]]]:
        """What the store tells of: action, first number, how many, and why."""
        found = yield self.events(store)
        return [
            (
                each.event["req"]["action"],
                each.event["result"]["first_seq"],
                each.event["result"]["dropped"],
                each.event["result"]["reason"],
            )
            for each in found
            if each.event["kind"] == "gap"
        ]

    @inlineCallbacks
    def assert_whole(self, store: EventStore) -> Steps[None]:
        """The chains of every day hold."""
        for number, _ in store.files:
            self.assertEqual((yield verified(store, number)), [])


@inlineCallbacks
def verified(store: EventStore, number: int, budget: int = 20_000) -> Steps[list[str]]:
    """What is wrong with a file of a store, looked at in parts of `budget`."""
    walk, found = Walk(), list[str]()
    while not walk.is_done:
        found += yield store.verify(number, walk, budget)
    return found


def numbers(found: Iterable[Stored], defender: str = "") -> list[int]:
    """The sequence numbers of events of defenders (of one)."""
    return [
        int(str(each.event["seq"]))
        for each in found
        if each.event["kind"] != "gap" and (not defender or each.defender == defender)
    ]

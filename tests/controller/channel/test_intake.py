"""Events on their way from a defender's spool into the controller's store, over real TLS: each one once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from controller.channel.intake import HELD_EVENTS, Intake, last_chain
from controller.channel.protocol import Visit
from controller.channel.service import Reception
from controller.channel.tls import channel_context
from controller.store.batch import Batch, Taken
from controller.store.errors import RecordsError, UnwritableStoreError
from controller.store.events import EventStore
from controller.store.query import Query
from defender.channel.service import ControllerLink, Uses
from defender.channel.tls import Credentials, checked_endpoint, client_context
from defender.contract.controller_session import CREDIT_EVENTS
from defender.contract.message_fields import Cursor, Position
from defender.contract.messages import ALPN, Events, Hello, Message
from defender.contract.peer_check import fleet_peer
from defender.contract.session import Expired
from defender.contract.spool import seal
from tests.controller.channel.test_service import PKI, SETTINGS
from tests.defender.audit.test_shipping import payload
from tests.defender.channel.test_service import SpoolInMemory
from tests.fakes.fleet import DEFENDER, controller_of, defender_of, opened

reactor: Any = installed


class StoringDesk:
    """Welcomes every defender where its events are stored to."""

    def __init__(self, store: EventStore) -> None:
        self.trust_domain = PKI.trust_domain
        self.store = store
        self.intake = Intake(store)
        self.visits: list[Visit] = []

    def joins(self, request: bytes, source: str, binding: bytes) -> Deferred[bytes]:
        raise AssertionError("nobody joins here")

    def greeted(self, visit: Visit, hello: Hello) -> None:
        self.visits.append(visit)
        assert visit.session is not None
        assert visit.identity is not None
        at = self.store.cursor(visit.identity.identifier)
        visit.say(
            visit.session.welcome(
                reactor.seconds(),
                generation=len(self.visits),
                version="1",
                time=0,
                cursor=Cursor(at.epoch, at.seq, at.chain) if at is not None else None,
            )
        )

    def heard(self, visit: Visit, message: Message | Expired) -> None:
        if isinstance(message, Events):
            self.intake.arrived(visit, message)

    def left(self, visit: Visit, code: str, detail: str) -> None:
        self.intake.left(visit)


class IntakeTests(TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.store = EventStore(Path(folder.name), reactor, notes_epoch=1)
        self.store.start()
        self.addCleanup(self.store.stop)
        own = controller_of(PKI)
        self.desk = StoringDesk(self.store)
        self.reception = Reception(
            reactor, SETTINGS, channel_context(own.chain, own.key, [PKI.fleet]), self.desk, opened
        )
        self.reception.startService()
        self.addCleanup(self.reception.stopService)
        self.spool = SpoolInMemory()
        shown = defender_of(PKI)
        context = client_context(
            anchors=[PKI.fleet], credentials=Credentials(shown.chain, shown.key), alpn=ALPN
        )
        endpoint = checked_endpoint(
            reactor,
            "127.0.0.1",
            self.reception.port,
            context,
            fleet_peer(PKI.trust_domain, "controller"),
            alpn=ALPN,
        )

        def connect(factory: Factory[Any]) -> Deferred[Any]:
            return endpoint.connect(factory)

        self.link = ControllerLink(
            reactor,
            self.spool,
            Uses(
                connect=connect,
                hello=lambda: Hello(0, 1, "1.0", "web1", "boot", (), {"policy": Position(0, 0, b"")}, None),
                pushed=lambda *push: None,
                snapshot=lambda envelope: None,
                answer=lambda command: None,
                renewed=lambda answer: None,
                state=dict,
                changed=lambda: None,
                chance=lambda: 0.001,  # comes back at once
            ),
        )
        self.link.startService()
        self.addCleanup(self.link.stopService)

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(4000):
            if condition():
                return
            passed: Deferred[None] = Deferred()
            reactor.callLater(0.005, passed.callback, None)
            await passed
        self.fail("it never came true")

    async def stored(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        position = 0
        while True:
            page = await self.store.after(position, Query(), 1000)
            events: list[dict[str, Any]] = [each.event for each in page.events]
            found += [(int(each["epoch"], 16), each["seq"]) for each in events]
            if not page.events:
                return [each for each in found if each[0] != 1]
            position = page.events[-1].position

    def all_is_there(self) -> bool:
        at = self.store.cursor(DEFENDER)
        return at is not None and (at.epoch, at.seq) == self.spool.made[-1]

    async def test_everything_is_stored_in_order(self) -> None:
        self.spool.commit(900)
        self.spool.begin_epoch(9)
        self.spool.commit(700)
        await self.until(self.all_is_there)
        self.assertEqual(await self.stored(), self.spool.made)
        await self.until(lambda: self.link.shipped == 1600)
        # The first epoch has no closing record: something may be missing at its end, and that is noted.
        self.assertEqual(self.store.counts.gaps, 1)

    async def test_each_once_whatever_happens_to_the_link(self) -> None:
        chance = random.Random(4)
        for _ in range(12):
            self.spool.commit(chance.randrange(1, 400))
            await self.until(lambda: self.link.connected)
            for _ in range(chance.randrange(3)):
                passed: Deferred[None] = Deferred()
                reactor.callLater(0, passed.callback, None)
                await passed
            for visit in list(self.reception.visits):
                visit.cut()
            await self.until(lambda: not self.link.connected)
        await self.until(self.all_is_there)
        self.assertEqual(await self.stored(), self.spool.made)
        self.assertEqual((self.store.counts.gaps, self.store.counts.quarantined), (0, 0))

    async def test_records_that_do_not_fit_the_chain_are_put_aside_and_passed(self) -> None:
        self.spool.commit(5)
        await self.until(self.all_is_there)
        # Somebody with root on that host has written another history: whole records, on another chain.
        forged, _ = seal(bytes(32), 6, [payload(6), payload(7)])
        session = self.link._protocol.session if self.link._protocol is not None else None
        assert session is not None
        assert self.link._protocol is not None
        chain = last_chain(forged)
        self.link._protocol.say(session.send_events(7, 6, 2, bytes(32), forged, chain))
        await self.until(lambda: self.store.counts.quarantined == 1)
        await self.until(lambda: session.in_flight == 0)
        self.assertEqual(await self.stored(), self.spool.made)
        self.assertTrue(self.link.connected)

    async def test_bytes_that_are_no_records_end_the_session(self) -> None:
        self.spool.commit(5)
        await self.until(self.all_is_there)
        assert self.link._protocol is not None
        session = self.link._protocol.session
        good, chain = seal(bytes(32), 6, [payload(6)])
        broken = good[:-1] + bytes([good[-1] ^ 1])
        self.link._protocol.say(session.send_events(7, 6, 1, bytes(32), broken, chain))
        await self.until(lambda: self.desk.intake.refused == 1)
        await self.until(lambda: not self.link.connected)
        self.assertIn("checksum", self.link.problem)
        self.assertEqual(await self.stored(), self.spool.made)


class SlowStore:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.commit_seconds: list[float] = []
        self.answer: Callable[[Batch], Deferred[Taken]] = lambda batch: succeed(Taken(0, b""))

    def ingest(self, batch: Batch) -> Deferred[Taken]:
        return self.answer(batch)


class Session:
    """What the intake says to a session."""

    is_closed = False

    def __init__(self) -> None:
        self.given: list[tuple[int, int]] = []

    def acknowledge_events(
        self, epoch: int, through: int, chain: bytes, *, events: int, size: int
    ) -> list[Any]:
        self.given.append((events, size))
        return []


class Visitor:
    """A visit of which the intake sees this much."""

    def __init__(self) -> None:
        self.session = Session()
        self.said: list[tuple[Any, ...]] = []
        self.identity = type("Identity", (), {"identifier": DEFENDER, "name": "web1"})

    def say(self, outputs: list[Any]) -> None: ...

    def leave(self, *why: Any) -> None:
        self.said.append(("leave", *why))

    def refuse(self, *why: Any) -> None:
        self.said.append(("refuse", *why))


class CreditTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = SlowStore()
        self.intake = Intake(self.store)
        self.visit: Any = Visitor()
        data, _ = seal(bytes(32), 1, [payload(number) for number in range(1, 201)])
        self.events = Events(7, 1, 200, bytes(32), None, "", data)

    def test_a_slow_disk_holds_credits_back_and_gives_them_all_back(self) -> None:
        given: list[tuple[int, int]] = self.visit.session.given
        self.intake.arrived(self.visit, self.events)
        self.assertEqual(given, [(200, len(self.events.records))])
        self.store.commit_seconds = [0.3] * 10
        for _ in range(50):
            self.intake.arrived(self.visit, self.events)
        held = 51 * 200 - sum(events for events, _ in given)
        self.assertEqual(held, HELD_EVENTS)
        self.assertLess(HELD_EVENTS, CREDIT_EVENTS)
        self.assertTrue(all(events > 0 and size > 0 for events, size in given))
        self.store.commit_seconds = [0.01] * 256
        self.intake.arrived(self.visit, self.events)
        self.assertEqual(sum(events for events, _ in given), 52 * 200)
        self.assertEqual(sum(size for _, size in given), 52 * len(self.events.records))

    def test_what_cannot_be_stored_is_not_acknowledged(self) -> None:
        self.store.answer = lambda batch: fail(UnwritableStoreError("no room"))
        self.intake.arrived(self.visit, self.events)
        self.assertEqual(self.visit.session.given, [])
        self.assertEqual([each[:2] for each in self.visit.said], [("leave", "store")])
        self.store.answer = lambda batch: fail(RecordsError("no records"))
        self.intake.arrived(self.visit, self.events)
        self.assertEqual(self.visit.said[-1], ("refuse", "records", "no records"))
        self.assertEqual((self.intake.unstored, self.intake.refused), (1, 1))

    def test_an_answer_after_the_end_of_the_session(self) -> None:
        waiting: Deferred[Taken] = Deferred()
        self.store.answer = lambda batch: waiting
        self.intake.arrived(self.visit, self.events)
        self.visit.session.is_closed = True
        waiting.callback(Taken(200, bytes(32), stored=200))
        self.assertEqual(self.visit.session.given, [])

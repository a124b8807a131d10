"""From a defender's records in the real store to a real receiver, and again after a restart."""

from __future__ import annotations

import json
import time

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads

from controller.sinks.delivery import Limits
from controller.sinks.service import make_sink
from controller.sinks.targets import TlsFiles, WebhookTarget
from controller.store.database import Database
from controller.store.feed import EventFeed, ForwardingCursor
from tests.controller.sinks.receivers import Certificates, HttpServer, reactor
from tests.controller.store.trails import StoreCase, Trail

SECRET = "whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="


class Told(ForwardingCursor):
    """The store's cursor, which says when a position is saved."""

    def __init__(self, database: Database, wanted: int) -> None:
        super().__init__(database, "hook", time.time)
        self.wanted = wanted
        self.reached: Deferred[None] = Deferred()

    def save(self, position: int | str) -> Deferred[None]:
        saving = super().save(position)
        if position == self.wanted:
            saving.addCallback(self.reached.callback)
        return saving


class StoreToReceiverTests(StoreCase):
    """The store's feed and cursor are what a sink asks for."""

    timeout = 60.0

    async def test_events_arrive_in_the_stores_order_and_once_after_a_restart(self) -> None:
        threads: IReactorFromThreads = reactor
        database = Database(self.directory, threads)
        database.start()
        self.addCleanup(database.stop)
        store, trail = self.open_store(), Trail("d1")
        certificates = Certificates()
        server = HttpServer(certificates.proper())
        self.addCleanup(server.stop)
        target = WebhookTarget(
            "hook",
            server.url,
            SECRET,
            tls=TlsFiles(certificates.anchors),
            limits=Limits(events=7, linger=0.0),
        )
        for first in (1, 21):
            trail.many(20)
            await store.ingest(trail.batch(first, first + 19))
            cursor = Told(database, first + 19)
            sink = make_sink(target, reactor, EventFeed(store), cursor)
            sink.startService()
            await cursor.reached
            await sink.stopService()
            self.assertEqual(await cursor.load(), first + 19)
        numbers = [each["seq"] for asked in server.asked for each in json.loads(asked.body)]
        self.assertEqual(numbers, list(range(1, 41)))

"""A sink from the store to a real receiver: nothing lost, nothing slowed, nothing secret told."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from controller.peer_tls import PeerError
from controller.sinks.answers import Answer, Refused, Taken, Unavailable
from controller.sinks.delivery import Delivery, Limits, Passed
from controller.sinks.follower import SEND_TIMEOUT, STORE_TIMEOUT, Follower
from controller.sinks.hec import HecFormat
from controller.sinks.jsonl import event_line
from controller.sinks.service import make_sink
from controller.sinks.targets import HecTarget, SyslogTarget, Target, TlsFiles, WebhookTarget
from tests.controller.sinks.receivers import (
    Asked,
    Certificates,
    HttpServer,
    MemoryCursor,
    MemoryStore,
    Reply,
    SyslogServer,
    event,
    reactor,
)

SECRET = "whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
TOKEN = "0a1b2c3d-0000-1111-2222-333344445555"
QUICK = Limits(events=20, linger=0.0)


class SinkTests(TestCase):
    """Real sinks against real receivers."""

    timeout = 60.0

    def setUp(self) -> None:
        self.certificates = Certificates()
        self.store = MemoryStore()
        self.cursor = MemoryCursor()
        self.passed: list[tuple[str, Passed]] = []
        self.log: list[str] = []
        self.awaited: list[tuple[str, Deferred[None]]] = []

        def observe(entry: Any) -> None:
            self.log.append(formatEvent(entry) + repr(entry))
            for text, said in [each for each in self.awaited if each[0] in self.log[-1]]:
                self.awaited.remove((text, said))
                said.callback(None)

        observer: Any = observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(self.certificates.anchors)

    def start(self, target: Target) -> Follower:
        sink = make_sink(
            target,
            reactor,
            self.store,
            self.cursor,
            passed=lambda name, passed: self.passed.append((name, passed)),
            chance=lambda: 0.0,
        )
        sink.startService()
        self.addCleanup(lambda: sink.stopService() if sink.running else None)
        return sink

    def syslog(self) -> SyslogServer:
        server = SyslogServer(self.certificates.proper())
        self.addCleanup(server.stop)
        return server

    def http(self, reply: Any = lambda asked: (200, {}, b"")) -> HttpServer:
        server = HttpServer(self.certificates.proper(), reply)
        self.addCleanup(server.stop)
        return server

    def webhook(self, server: HttpServer) -> WebhookTarget:
        return WebhookTarget("hook", server.url, SECRET, tls=self.tls, limits=QUICK)

    async def test_syslog_from_the_first_event_to_the_saved_position(self) -> None:
        server = self.syslog()
        self.store = MemoryStore(50)
        self.start(SyslogTarget("siem", "localhost", server.port, tls=self.tls, limits=QUICK))
        await server.until(50)
        self.store.add(event(51))
        await server.until(51)
        self.assertEqual(server.numbers, list(range(1, 52)))
        await self.cursor.until(51)

    async def test_a_syslog_receiver_that_is_restarted_misses_nothing(self) -> None:
        server = self.syslog()
        self.store = MemoryStore(100)
        fallen: Deferred[Any] = Deferred()

        def fall(frames: Any) -> None:
            if len(server.frames) == 30:
                server.on_frame = lambda frames: None
                server.stop().chainDeferred(fallen)

        server.on_frame = fall
        self.start(SyslogTarget("siem", "localhost", server.port, tls=self.tls, limits=QUICK))
        await fallen
        server.again()
        await self.cursor.until(100)
        numbers = server.numbers
        firsts = [n for place, n in enumerate(numbers) if n not in numbers[:place]]
        self.assertEqual(firsts, list(range(1, 101)))

    async def test_a_webhook(self) -> None:
        server = self.http()
        self.store = MemoryStore(45)
        self.start(self.webhook(server))
        await self.cursor.until(45)
        batches = [[each["seq"] for each in json.loads(asked.body)] for asked in server.asked]
        self.assertEqual(batches, [list(range(1, 21)), list(range(21, 41)), list(range(41, 46))])

    async def test_a_collector_that_is_busy_and_refuses_one(self) -> None:
        answers = [503]

        def reply(asked: Asked) -> Reply:
            if answers:
                return answers.pop(), {}, b'{"text":"Server is busy","code":9}'
            numbers = [json.loads(line)["event"]["seq"] for line in asked.body.splitlines()]
            if 7 in numbers:
                said = {"text": "Invalid data format", "code": 6, "invalid-event-number": numbers.index(7)}
                return 400, {}, json.dumps(said).encode()
            return 200, {}, b'{"text":"Success","code":0}'

        server = self.http(reply)
        self.store = MemoryStore(10)
        url = f"https://localhost:{server.port}"
        sink = self.start(HecTarget("splunk", url, HecFormat(TOKEN), tls=self.tls, limits=QUICK))
        await self.cursor.until(10)
        self.assertEqual({asked.fields[":path"] for asked in server.asked}, {"/services/collector/event"})
        self.assertEqual(server.asked[0].fields["authorization"], f"Splunk {TOKEN}")
        ((name, passed),) = self.passed
        self.assertEqual((name, passed.event), ("splunk", event(7)["id"]))
        standing = sink.standing()
        self.assertEqual((standing.delivered, standing.refused, standing.retries), (9, 1, 1))
        self.assertEqual((standing.problem, standing.lag_seconds), ("", 0.0))
        state = sink.state()
        self.assertEqual((state.name, state.kind, state.word), ("splunk", "hec", "waiting"))

    async def test_no_secret_reaches_the_log(self) -> None:
        def echo(asked: Asked) -> Reply:
            return 401, {}, asked.fields.get("authorization", SECRET).encode()

        server = self.http(echo)
        self.store = MemoryStore(1)
        hook = self.start(self.webhook(server))
        splunk = self.start(HecTarget("splunk", server.url, HecFormat(TOKEN), tls=self.tls, limits=QUICK))
        await server.until(4)
        told = "\n".join(self.log) + repr(hook.standing()) + repr(splunk.standing())
        self.assertIn("the receiver answered 401", told)
        for secret in (SECRET, TOKEN, SECRET.removeprefix("whsec_")):
            self.assertNotIn(secret, told)

    async def test_a_sink_goes_on_where_it_was(self) -> None:
        server = self.http()
        self.store = MemoryStore(30)
        self.cursor = MemoryCursor(25)
        sink = self.start(self.webhook(server))
        await server.until(1)
        await sink.stopService()
        self.assertEqual([each["seq"] for each in json.loads(server.asked[0].body)], list(range(26, 31)))

    async def test_the_end_of_a_sink_waits_for_nobody(self) -> None:
        server = self.http(lambda asked: Deferred())
        self.store = MemoryStore(5)
        sink = self.start(self.webhook(server))
        await server.until(1)
        await sink.stopService()
        self.assertEqual(self.cursor.saved, [])
        await server.stop()

    async def test_a_receiver_that_is_not_the_one_gets_nothing(self) -> None:
        server = HttpServer(self.certificates.odd(None))
        self.addCleanup(server.stop)
        self.store = MemoryStore(5)
        said: Deferred[None] = Deferred()
        self.awaited.append(("(san)", said))
        sink = self.start(self.webhook(server))
        await said
        self.assertIn("(san)", sink.standing().problem)
        self.assertEqual(server.asked, [])

    async def test_many_sinks_do_not_wait_for_a_slow_one(self) -> None:
        slow, quick = self.http(lambda asked: Deferred()), self.http()
        self.store = MemoryStore(100)
        stuck = MemoryCursor()
        first = make_sink(self.webhook(slow), reactor, self.store, stuck)
        first.startService()
        self.addCleanup(first.stopService)
        await slow.until(1)
        self.start(self.webhook(quick))
        await self.cursor.until(100)
        self.assertEqual((len(slow.asked), stuck.saved), (1, []))


class Scripted:
    """A receiver that answers as it is told; None never answers."""

    def __init__(self) -> None:
        self.answers: list[Answer | None] = []
        self.sent: list[list[int]] = []
        self.closed = 0

    def attach(self, confirmed: Any, lost: Any) -> None:
        self.confirmed, self.lost = confirmed, lost

    def deliver(self, ticket: int, payloads: Any) -> Deferred[Answer]:
        self.sent.append([json.loads(each)["seq"] for each in payloads])
        answer = self.answers.pop(0) if self.answers else Taken()
        return Deferred() if answer is None else succeed(answer)

    def close(self) -> Deferred[object]:
        self.closed += 1
        return succeed(None)


class FollowerTests(SynchronousTestCase):
    """The follower on a clock that the test turns."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(3)
        self.cursor = MemoryCursor()
        self.receiver = Scripted()
        self.told: list[str] = []

    def follow(self, limits: Limits = QUICK) -> Follower:
        delivery = Delivery(event_line, limits, chance=lambda: 1.0)
        follower = Follower(
            "siem",
            "syslog",
            self.clock,
            self.store,
            self.cursor,
            self.receiver,
            delivery,
            passed=lambda name, passed: self.told.append(passed.event),
        )
        follower.startService()
        self.addCleanup(self.end, follower)
        return follower

    def end(self, follower: Follower) -> None:
        ended = follower.stopService()
        self.clock.advance(60)
        self.successResultOf(ended)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_new_event_wakes_it(self) -> None:
        self.follow()
        self.assertEqual(self.receiver.sent, [[1, 2, 3]])
        self.clock.advance(0)
        self.store.add(event(4))
        self.clock.advance(0)
        self.assertEqual(self.receiver.sent, [[1, 2, 3], [4]])

    def test_an_event_that_is_stored_while_the_store_is_read_is_not_overlooked(self) -> None:
        after = self.store.after

        def late(position: Any, limit: int) -> Deferred[Any]:
            rows = after(position, limit)
            if len(self.store.events) == 3:
                self.store.add(event(4))
            return rows

        self.store.after = late  # type: ignore[method-assign]
        self.follow()
        self.clock.advance(0)
        self.assertEqual(self.receiver.sent, [[1, 2, 3], [4]])

    def test_a_trickle_is_gathered(self) -> None:
        self.follow(Limits(linger=0.5))
        for number in (4, 5, 6):
            self.clock.advance(0.1)
            self.store.add(event(number))
        self.clock.advance(0.3)
        self.assertEqual(self.receiver.sent, [[1, 2, 3], [4, 5, 6]])

    def test_it_looks_now_and_then_even_if_nobody_wakes_it(self) -> None:
        self.store.wait = lambda: Deferred()  # type: ignore[method-assign]
        self.follow()
        self.clock.advance(0)
        self.store.events.append(event(4))
        self.clock.advance(5)
        self.assertEqual(self.receiver.sent, [[1, 2, 3], [4]])

    def test_a_store_that_cannot_be_asked_to_wake_is_looked_at(self) -> None:
        def broken() -> Deferred[object]:
            raise RuntimeError("no")

        self.store.wait = broken  # type: ignore[method-assign]
        self.test_it_looks_now_and_then_even_if_nobody_wakes_it()

    def test_a_store_that_does_not_answer_is_asked_again(self) -> None:
        after = self.store.after
        self.store.after = lambda position, limit: Deferred()  # type: ignore[method-assign]
        follower = self.follow()
        self.clock.advance(STORE_TIMEOUT)
        self.assertIn("no answer in time", follower.standing().problem)
        self.store.after = after  # type: ignore[method-assign]
        self.clock.advance(1)
        self.assertEqual(self.receiver.sent, [[1, 2, 3]])

    def test_a_cursor_that_cannot_be_read_is_tried_again_and_nothing_is_sent(self) -> None:
        self.cursor.failures = [RuntimeError("locked")]
        self.follow()
        self.assertEqual(self.receiver.sent, [])
        self.clock.advance(5)
        self.assertEqual(self.receiver.sent, [[1, 2, 3]])

    def test_a_cursor_that_cannot_be_saved_is_tried_again(self) -> None:
        follower = self.follow()
        self.cursor.failures = [RuntimeError("disk full")]
        self.clock.advance(1)
        self.assertIn("disk full", follower.standing().problem)
        self.clock.advance(1)
        self.clock.advance(1)
        self.assertEqual(self.cursor.saved, [3])
        self.assertEqual(follower.standing().problem, "")

    def test_a_receiver_that_never_answers_is_given_up(self) -> None:
        self.receiver.answers = [None]
        follower = self.follow()
        self.clock.advance(SEND_TIMEOUT)
        self.assertIn("no answer in time", follower.standing().problem)
        self.clock.advance(1)
        self.assertEqual(self.receiver.sent, [[1, 2, 3], [1, 2, 3]])

    def test_a_loss_while_the_store_is_read_keeps_the_order(self) -> None:
        """The answer of a reading that began before the loss must not be taken for the next."""
        reading: list[Deferred[Any]] = []
        after = self.store.after
        self.receiver.answers = [Taken(confirmed=False)]
        follower = self.follow()
        self.clock.advance(0)

        def later(position: Any, limit: int) -> Deferred[Any]:
            reading.append(Deferred(lambda _: None))
            return reading[-1]

        self.store.after = later  # type: ignore[method-assign]
        self.store.add(event(4))
        self.clock.advance(0)
        self.receiver.lost("reset")
        self.store.after = after  # type: ignore[method-assign]
        if not reading[0].called:
            reading[0].callback([(4, event(4))])
        self.assertEqual(self.receiver.sent, [[1, 2, 3]])
        self.clock.advance(1)
        self.assertEqual(self.receiver.sent, [[1, 2, 3], [1, 2, 3, 4]])
        self.assertEqual(follower.standing().position, 4)

    def test_an_event_that_is_refused_is_told(self) -> None:
        self.receiver.answers = [Refused("bad", 1), Taken(), Refused("bad"), Taken()]
        self.follow()
        self.assertEqual(self.told, [event(2)["id"]])

    def test_an_error_of_our_own_stops_nothing_for_good(self) -> None:
        def broken(told: Any) -> bytes:
            if self.clock.seconds() < 1:
                raise RuntimeError("a fault of ours")
            return event_line(told)

        delivery = Delivery(broken, QUICK, chance=lambda: 1.0)
        follower = Follower("siem", "syslog", self.clock, self.store, self.cursor, self.receiver, delivery)
        follower.startService()
        self.addCleanup(self.end, follower)
        self.assertIn("an error of the sink's own", follower.standing().problem)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.clock.advance(1)
        self.assertEqual(self.receiver.sent, [[1, 2, 3]])

    def test_what_waits_is_counted(self) -> None:
        self.receiver.answers = [Unavailable("gone", 300)]
        follower = self.follow()
        self.store.add(event(4))
        self.clock.pump([1] * 11)
        self.assertEqual(follower.lag_events, 4)
        self.assertGreaterEqual(follower.standing().lag_seconds, 11)

    def test_a_backlog_is_read_page_by_page(self) -> None:
        self.store = MemoryStore(10_000)
        self.receiver.answers = [None]
        self.follow()
        self.assertEqual(self.store.reads, [(None, 20)])

    def test_a_long_backlog_with_quick_answers_needs_no_stack(self) -> None:
        self.store = MemoryStore(10_000)
        follower = self.follow()
        self.assertEqual(follower.standing().position, 10_000)

    def test_the_last_position_is_saved_at_the_end(self) -> None:
        follower = self.follow()
        self.assertEqual(self.cursor.saved, [])
        self.successResultOf(follower.stopService())
        self.assertEqual((self.cursor.saved, self.receiver.closed), ([3], 1))

    def test_a_saving_under_way_at_the_end_is_waited_for_and_followed_by_the_last(self) -> None:
        follower = self.follow()
        save, saving = self.cursor.save, Deferred[object]()
        self.cursor.save = lambda position: saving  # type: ignore[method-assign]
        self.clock.advance(1)
        self.cursor.save = save  # type: ignore[method-assign]
        self.store.add(event(4))
        self.clock.advance(0)
        ended = follower.stopService()
        self.assertNoResult(ended)
        saving.callback(None)
        self.successResultOf(ended)
        self.assertEqual(self.cursor.saved, [4])

    def test_a_sink_that_is_stopped_by_what_it_tells_does_nothing_more(self) -> None:
        self.receiver.answers = [Refused("bad", 1), Taken(), Refused("bad"), None]
        ends: list[Deferred[None]] = []
        delivery = Delivery(event_line, QUICK, chance=lambda: 1.0)
        follower = Follower(
            "siem",
            "syslog",
            self.clock,
            self.store,
            self.cursor,
            self.receiver,
            delivery,
            passed=lambda name, passed: ends.append(follower.stopService()),
        )
        follower.startService()
        self.successResultOf(ends[0])
        self.assertEqual(self.receiver.sent, [[1, 2, 3], [1], [2]])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class MakingTests(SynchronousTestCase):
    """A sink that cannot be."""

    def test_files_that_cannot_be_used_are_told_before_the_start(self) -> None:
        target = SyslogTarget("siem", "localhost", tls=TlsFiles(b"nonsense"))
        with self.assertRaises(PeerError):
            make_sink(target, reactor, MemoryStore(), MemoryCursor())

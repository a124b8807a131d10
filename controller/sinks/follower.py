"""Runs one sink: reads the store behind its cursor, hands the events to a receiver, keeps the cursor.

A sink has its own cursor and holds one page of events. It cannot slow the ingest: it only ever reads, one
page at a time, and what the receiver does not take stays in the store. Every wait has a time-out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from controller.sinks.answers import Answer, Unavailable
from controller.sinks.delivery import (
    Command,
    Delivery,
    Fetch,
    Passed,
    Pause,
    Position,
    Rest,
    Save,
    Send,
    Standing,
)
from controller.sinks.overview import SinkState
from defender.contract.errors import one_line

STORE_TIMEOUT = 30.0
"""Seconds for one reading of the store or one saving of the position."""
SEND_TIMEOUT = 120.0
"""Seconds for a batch: beyond every time-out of a receiver's own."""
STOP_TIMEOUT = 10.0
"""Seconds for the end: the last position saved, the connection closed."""
TICK = 1.0
LOAD_AGAIN = 5.0
MAX_WORDS = 300
COUNT_EVERY = 10.0
"""Seconds between two countings of the events that wait."""


class Source(Protocol):
    """The stored events of the fleet in one order that never changes: an event never appears behind a
    position that was read past.
    """

    def after(self, position: Position | None, limit: int) -> Deferred[Any]:
        """A list of up to `limit` rows: events after a position, None for the first that is still stored.

        Where events behind the position were removed before the sink had them, a `gap` event that counts
        them comes in their place: what is lost to a receiver is told to it.
        """

    def wait(self) -> Deferred[Any]:
        """Fires once an event is stored after this call. It may be cancelled."""

    def behind(self, position: Position | None) -> Deferred[Any]:
        """How many events are stored after a position; an estimate will do."""


class Cursor(Protocol):
    """Where a sink's position is kept."""

    def load(self) -> Deferred[Any]:
        """The position, None if there is none yet."""

    def save(self, position: Position) -> Deferred[Any]:
        """Keep it; fires when a restart would find it."""


class Receiver(Protocol):
    """Where events go."""

    def attach(self, confirmed: Callable[[int], None], lost: Callable[[str], None]) -> None:
        """Say who is told that batches up to a ticket are confirmed, and that a connection was lost."""

    def deliver(self, ticket: int, payloads: Sequence[bytes]) -> Deferred[Answer]:
        """Send a batch; one at a time. May be cancelled, and times out by itself."""

    def close(self) -> Deferred[object]:
        """Close what is open."""


class Follower(Service):
    """One sink, as a service.

    Args:
        name: for logs and metrics.
        kind: what its receiver speaks, for people.
        reactor: time.
        source, cursor, receiver: see their protocols.
        delivery: the machine; not started.
        passed: told of each event that the receiver refused for good, with the sink's name.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        kind: str,
        reactor: Any,
        source: Source,
        cursor: Cursor,
        receiver: Receiver,
        delivery: Delivery,
        *,
        passed: Callable[[str, Passed], None] = lambda name, event: None,
    ) -> None:
        self.name: str = name
        self.kind = kind
        self.lag_events = 0
        self._reactor = reactor
        self._source = source
        self._cursor = cursor
        self._receiver = receiver
        self._delivery = delivery
        self._passed = passed
        self._live = False
        self._inputs: deque[Callable[[float], list[Command]]] = deque()
        self._turning = False
        self._generation = 0
        self._step: Deferred[Any] | None = None
        self._sending: Deferred[Any] | None = None
        self._saving: Deferred[Any] | None = None
        self._counting: Deferred[Any] | None = None
        self._wait: Deferred[object] | None = None
        self._woken = False
        self._sleeper: Deferred[None] | None = None
        self._ticking: IDelayedCall | None = None
        self._count_due = 0.0
        receiver.attach(self._confirmed, self._lost)

    def standing(self) -> Standing:
        """How the sink stands now."""
        return self._delivery.standing(self._reactor.seconds())

    def state(self) -> SinkState:
        """The same with its name and its lag; for metrics and the console."""
        return SinkState(self.name, self.kind, self.standing(), self.lag_events)

    def startService(self) -> None:
        """Load the position and begin; a cursor that cannot be read is tried again."""
        super().startService()
        self._live = True
        self._ticking = self._reactor.callLater(TICK, self._tick)
        self._load()

    def stopService(self) -> Deferred[None]:
        """End in bounded time: the position of what is confirmed is saved, the connection closed."""
        super().stopService()
        self._live = False
        self._generation += 1
        if self._ticking is not None and self._ticking.active():
            self._ticking.cancel()
        for waiting in (self._step, self._sending, self._counting, self._wait):
            if waiting is not None:
                waiting.cancel()
        return Deferred.fromCoroutine(self._end())

    async def _end(self) -> None:
        if self._saving is not None:
            await self._saving
        for command in self._delivery.stop(self._reactor.seconds()):
            if isinstance(command, Save):
                await self._save(command)
        try:
            await maybeDeferred(self._receiver.close).addTimeout(STOP_TIMEOUT, self._reactor)
        except Exception:  # noqa: BLE001 - a receiver that does not close must not keep the program
            self.log.failure("sink {name}: its connection could not be closed", name=self.name)

    # --- inputs to the machine

    def _feed(self, step: Callable[[float], list[Command]]) -> None:
        """Give the machine an input and perform what it says, in turn: an answer may come from inside."""
        self._inputs.append(step)
        if self._turning:
            return
        self._turning = True
        try:
            while self._inputs:
                for command in self._commands(self._inputs.popleft()):
                    # At the end, which a command may bring about, the machine is still told what happens,
                    # and nothing that it says is done any more.
                    if self._live:
                        self._perform(command)
        finally:
            self._turning = False

    def _commands(self, step: Callable[[float], list[Command]]) -> list[Command]:
        now = self._reactor.seconds()
        try:
            return step(now)
        except Exception:  # noqa: BLE001
            # A sink must not stop for good, and silently, for a fault of ours in one event.
            self.log.failure("sink {name}: an error of its own; it begins again", name=self.name)
            return self._delivery.fetch_failed("an error of the sink's own, see the log", now)

    def _confirmed(self, ticket: int) -> None:
        self._feed(lambda now: self._delivery.confirmed(ticket, now))

    def _lost(self, reason: str) -> None:
        self._feed(lambda now: self._delivery.lost(reason, now))

    def _load(self) -> None:
        loading = self._bounded(self._cursor.load)
        self._next(
            loading,
            lambda position: lambda now: self._delivery.start(position, now),
            self._load_failed,
        )

    def _load_failed(self, reason: str) -> Callable[[float], list[Command]]:
        self.log.error("sink {name}: its position cannot be read: {reason}", name=self.name, reason=reason)
        pause: Deferred[Any] = deferLater(self._reactor, LOAD_AGAIN)
        self._next(pause, lambda _: self._load_again, lambda _: self._load_again)
        return lambda now: []

    def _load_again(self, now: float) -> list[Command]:
        self._load()
        return []

    def _tick(self) -> None:
        self._ticking = self._reactor.callLater(TICK, self._tick)
        now = self._reactor.seconds()
        self._feed(self._delivery.tick)
        if self._counting is None and now >= self._count_due:
            self._count_due = now + COUNT_EVERY
            counting = self._bounded(lambda: self._source.behind(self.standing().position))
            self._counting = counting
            counting.addCallbacks(self._counted, self._not_counted)

    def _counted(self, count: int) -> None:
        self._counting = None
        self.lag_events = count

    def _not_counted(self, failure: Failure) -> None:
        self._counting = None
        if self._live:
            self.log.warn("sink {name}: cannot count its lag: {why}", name=self.name, why=_words(failure))

    # --- commands of the machine

    def _perform(self, command: Command) -> None:
        if isinstance(command, Fetch):
            self._arm()
            self._next(
                self._bounded(lambda: self._source.after(command.position, command.limit)),
                lambda rows: lambda now: self._delivery.fetched(rows, now),
                lambda reason: lambda now: self._delivery.fetch_failed(reason, now),
            )
        elif isinstance(command, Send):
            self._send(command)
        elif isinstance(command, Rest):
            self._next(self._rest(command), lambda _: self._delivery.rested, lambda _: self._delivery.rested)
        elif isinstance(command, Pause):
            pause: Deferred[Any] = deferLater(self._reactor, command.seconds)
            self._next(pause, lambda _: self._delivery.rested, lambda _: self._delivery.rested)
        elif isinstance(command, Save):
            self._saving = self._save(command)
        elif isinstance(command, Passed):
            self.log.error(
                "sink {name}: event {event} is refused for good and was passed: {reason}",
                name=self.name,
                event=command.event,
                reason=command.reason,
            )
            self._passed(self.name, command)
        elif command.reason:
            self.log.warn("sink {name}: {reason}", name=self.name, reason=command.reason)
        else:
            self.log.info("sink {name}: gets on again", name=self.name)

    def _next(
        self,
        step: Deferred[Any],
        done: Callable[[Any], Callable[[float], list[Command]]],
        failed: Callable[[str], Callable[[float], list[Command]]],
    ) -> None:
        """Wait for one step in place of the one before."""
        before, self._step = self._step, step
        self._generation += 1
        generation = self._generation
        if before is not None:
            before.cancel()

        def succeed(value: object) -> None:
            if generation == self._generation:
                self._step = None
                self._feed(done(value))

        def fail(failure: Failure) -> None:
            if generation == self._generation:
                self._step = None
                self._feed(failed(_words(failure)))

        step.addCallbacks(succeed, fail)

    def _bounded(self, ask: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        return maybeDeferred(ask).addTimeout(STORE_TIMEOUT, self._reactor)

    def _send(self, command: Send) -> None:
        sending = maybeDeferred(self._receiver.deliver, command.ticket, command.payloads)
        self._sending = sending
        sending.addTimeout(SEND_TIMEOUT, self._reactor)

        def answered(answer: Answer) -> None:
            self._sending = None
            self._feed(lambda now: self._delivery.answered(answer, now))

        sending.addErrback(lambda failure: Unavailable(_words(failure))).addCallback(answered)

    def _save(self, command: Save) -> Deferred[Any]:
        saving = self._bounded(lambda: self._cursor.save(command.position))

        def saved(_: object) -> None:
            self._saving = None
            self._feed(lambda now: self._delivery.saved())

        def failed(failure: Failure) -> None:
            self._saving = None
            reason = _words(failure)
            self._feed(lambda now: self._delivery.save_failed(reason))

        return saving.addCallbacks(saved, failed)

    def _arm(self) -> None:
        """Ask to be woken, before the store is read: what is stored after the reading is not overlooked."""
        self._woken = False
        if self._wait is not None:
            return
        wait = maybeDeferred(self._source.wait)
        self._wait = wait

        def woken(_: object) -> None:
            self._wait = None
            self._woken = True
            if self._sleeper is not None:
                self._sleeper.callback(None)

        def failed(failure: Failure) -> None:
            # Then there is the poll.
            self._wait = None

        wait.addCallbacks(woken, failed)

    def _rest(self, command: Rest) -> Deferred[None]:
        """Linger, then wait to be woken; `poll` seconds at most."""

        def sleep(_: None) -> Deferred[None] | None:
            if self._woken:
                return None
            self._sleeper = Deferred()
            self._sleeper.addTimeout(command.poll, self._reactor)

            def over(_: object) -> None:
                self._sleeper = None

            return self._sleeper.addBoth(over)

        lingering: Deferred[None] = deferLater(self._reactor, command.linger)
        return lingering.addCallback(sleep)


def _words(failure: Failure) -> str:
    if failure.check(DeferredTimeout):
        return "no answer in time"
    return one_line(str(failure.value) or type(failure.value).__name__)[:MAX_WORDS]

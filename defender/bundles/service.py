"""The streams at work: performs what the machine asks for, and tells it what became of it.

The parts that put contents in force, the channel and the record are given as functions, so that this knows
none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender.bundles.commands import (
    Ack,
    Activate,
    Command,
    Frozen,
    Graded,
    Nack,
    PersistBundle,
    PersistMark,
    PersistRoots,
    Skewed,
    Withdraw,
)
from defender.bundles.notes import note_of
from defender.bundles.store import BundleStore
from defender.bundles.streams import Streams
from defender.contract.audit import Event
from defender.contract.errors import ContractError

#: Seconds between two looks at how old what is in force has become.
INTERVAL = 5.0


class BundleService(Service):
    """One defender's bundles.

    `activate` puts a content in force and returns None or a Deferred; what it raises, a ContractError or an
    OSError, is why it could not.
    `withdraw(stream, reason)` takes one out of force: without a policy or locks everything is denied, without
    trust no certificate of a user counts. `answer` takes what goes to the controller, and drops it if there
    is no connection. `record` takes events. `told` hears of grades, of frozen changes, and of clocks. `run`
    does what may block, in a thread where there is one, and returns a Deferred.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        streams: Streams,
        store: BundleStore,
        *,
        activate: Callable[[Activate], object],
        withdraw: Callable[[str, str], object],
        answer: Callable[[Ack | Nack], object],
        record: Callable[[Event], object],
        told: Callable[[Graded | Frozen | Skewed], object],
        run: Callable[[Callable[[], None]], Deferred[None]] = maybeDeferred,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.streams = streams
        self._store = store
        self._put_in_force = activate
        self._withdraw = withdraw
        self._answer = answer
        self._record = record
        self._told = told
        self._block = run
        self._wall = wall
        self._loop = LoopingCall(self._tick)
        self._loop.clock = reactor

    def startService(self) -> None:
        """Put in force what is on disk and verifies; where the store answers at once, before this returns."""
        super().startService()
        loaded = self._store.load()
        for problem in loaded.problems:
            self.log.error("{problem}", problem=problem)
        self._perform(self.streams.start(loaded.stored, self._wall()))
        self._loop.start(INTERVAL, now=False).addErrback(
            lambda failure: self.log.failure("the age of bundles is no longer looked at", failure)
        )

    def stopService(self) -> None:
        """Look no more; what is being written is finished."""
        if self._loop.running:
            self._loop.stop()
        super().stopService()

    def offered(self, stream: str, nonce: int, envelope: bytes) -> None:
        """The controller pushed this; the answer comes by `answer`."""
        self._perform(self.streams.offered(stream, nonce, envelope, self._wall()))

    def snapshot(self, envelope: bytes) -> None:
        """The controller sent a snapshot."""
        self._perform(self.streams.snapshot(envelope, self._wall()))

    def _tick(self) -> None:
        self._perform(self.streams.tick(self._wall()))

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            self._one(command)
            event = note_of(command)
            if event is not None:
                self._record(event)

    def _one(self, command: Command) -> None:
        match command:
            case PersistRoots() | PersistBundle() | PersistMark():
                self._persist(command)
            case Activate():
                self._activate(command)
            case Withdraw(stream, reason):
                self.log.error("{stream} is withdrawn: {reason}", stream=stream, reason=reason)
                self._withdraw(stream, reason)
            case Ack() | Nack():
                self._answer(command)
            case Graded() | Frozen() | Skewed():
                self._told(command)

    def _persist(self, command: PersistRoots | PersistBundle | PersistMark) -> None:
        ticket = command.ticket

        def done(_: object) -> None:
            self._perform(self.streams.persisted(ticket, self._wall()))

        def failed(failure: Failure) -> None:
            if failure.check(OSError) is None:
                self.log.failure("bundles cannot be put on disk", failure)
            self._perform(self.streams.persist_failed(ticket, _reason(failure), self._wall()))

        # Also where `run` does it at once, and raises.
        self._then(maybeDeferred(self._block, lambda: self._store.perform(command)), done, failed)

    def _activate(self, command: Activate) -> None:
        ticket = command.ticket

        def done(_: object) -> None:
            self._perform(self.streams.activated(ticket, self._wall()))

        def failed(failure: Failure) -> None:
            stream, reason = command.bundle.stream, _reason(failure)
            if failure.check(OSError, ContractError) is None:
                self.log.failure("{stream} cannot be put in force", failure, stream=stream)
            else:
                self.log.error("{stream} cannot be put in force: {reason}", stream=stream, reason=reason)
            self._perform(self.streams.activation_failed(ticket, reason, self._wall()))

        self._then(maybeDeferred(self._put_in_force, command), done, failed)

    def _then(
        self, what: Deferred[Any], done: Callable[[object], None], failed: Callable[[Failure], None]
    ) -> None:
        # A fault in what follows success must not be taken for a failure of the step itself.
        what.addCallbacks(done, failed)
        what.addErrback(lambda failure: self.log.failure("bundles are at a standstill", failure))


def _reason(failure: Failure) -> str:
    """Why, for the controller's operators."""
    error = failure.value
    return (
        (error.strerror or "I/O error") if isinstance(error, OSError) else str(error) or type(error).__name__
    )

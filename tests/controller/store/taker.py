"""A process that takes records in and says what is stored, to be killed or starved of its disk.

    python -m tests.controller.store.taker DIRECTORY

Reads commands from standard input, a line each:

    take N       the next N records of defender d0; says `ack d0 SEQ`, or `no REASON`
    large N      the same, each record with 8 KiB of its own
    again        the batch of d0 that was refused first
    flood N      N defenders that send records for ever, each batch overlapping the one before
    write N      a fact in the fleet's state; says `ack fact N`, or `no REASON`
    status       says one line of JSON
    stop         stores what waits and ends
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from pathlib import Path
from typing import cast

from twisted.internet import reactor as global_reactor
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure

from controller.store import facts
from controller.store.batch import Batch, Taken
from controller.store.database import Database
from controller.store.events import EventStore
from tests.controller.store.trails import NOON, NOTES_EPOCH, Trail

reactor = cast("IReactorFromThreads", global_reactor)


def say(line: str) -> None:
    """One line, at once."""
    os.write(1, line.encode() + b"\n")


class Taker:
    """See the module."""

    def __init__(self, directory: Path) -> None:
        self.database = Database(directory, reactor)
        self.database.start()
        self.events = EventStore(directory, reactor, NOTES_EPOCH, clock=lambda: NOON)
        self.events.start()
        self.trails: dict[str, Trail] = {}
        self.refused: Batch | None = None
        self.dice = random.Random(os.getpid())

    def trail(self, defender: str) -> Trail:
        """What this defender has recorded up to now: the same in every run."""
        trail = self.trails.get(defender)
        if trail is None:
            trail = self.trails[defender] = Trail(defender)
            cursor = self.events.cursor(defender)
            trail.many(cursor.seq if cursor else 0)
        return trail

    def take(self, count: int) -> None:
        self._take(count, "")

    def large(self, count: int) -> None:
        self._take(count, "x" * 8192)

    def _take(self, count: int, ballast: str) -> None:
        trail = self.trail("d0")
        first = trail.seq + 1
        trail.many(count, more={"result": {"detail": ballast}} if ballast else None)
        self._send(trail.batch(first, trail.seq))

    def _send(self, batch: Batch) -> None:
        def refused(failure: Failure) -> None:
            self.refused = self.refused or batch
            self._refused(failure)

        deferred = self.events.ingest(batch)
        deferred.addCallbacks(lambda taken: say(f"ack d0 {taken.seq}"), refused)

    def again(self, _: int) -> None:
        assert self.refused is not None
        self._send(self.refused)

    def _refused(self, failure: Failure) -> None:
        say(f"no {failure.getErrorMessage()}")

    def flood(self, count: int) -> None:
        for number in range(count):
            self._more(self.trail(f"d{number}"))

    def _more(self, trail: Trail) -> None:
        first = max(trail.seq - self.dice.randrange(5), 0) + 1
        trail.many(self.dice.randrange(5, 40))

        def stored(taken: Taken) -> None:
            say(f"ack {trail.defender} {taken.seq}")
            self._more(trail)

        self.events.ingest(trail.batch(first, trail.seq)).addCallbacks(stored, self._refused)

    def write(self, number: int) -> None:
        deferred = self.database.write(facts.keep, "number", number)
        deferred.addCallbacks(lambda _: say(f"ack fact {number}"), self._refused)

    def status(self, _: int) -> None:
        state = {
            "problem": self.events.problem,
            "fact_problem": self.database.problem,
            "position": self.events.position,
        }
        say(json.dumps(state))

    def stop(self, _: int) -> None:
        def ended(_: object) -> None:
            say("stopped")
            cast("IReactorCore", reactor).stop()

        self.events.stop().addCallback(lambda _: self.database.stop()).addCallback(ended)


def main() -> None:
    """Run until it is stopped, or nobody is at the other end of standard input."""
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    taker = Taker(Path(sys.argv[1]))
    say("started")

    def listen() -> None:
        for line in sys.stdin:
            word, _, number = line.strip().partition(" ")
            reactor.callFromThread(getattr(taker, word), int(number or 0))
        reactor.callFromThread(taker.stop, 0)

    threading.Thread(target=listen, daemon=True).start()
    cast("IReactorCore", reactor).run(installSignalHandlers=False)  # type: ignore[call-arg]


if __name__ == "__main__":
    main()

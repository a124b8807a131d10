"""A small process that records: ``python -m tests.audit.writer DIRECTORY [OPTION=VALUE]...``

It does what it is told on standard input, a word and a number a line, and says on standard output what came
of it, a line each. What it has acknowledged is in the pipe whatever becomes of the process.

====================  ======================================================================================
``durable N``         an event with the number N that somebody waits for: ``ack N`` or ``no N REASON``
``append N``          the same, nobody waits
``flood K``           K writers, each with one durable event after the other, from number 1,000,000 on, and
                      between them events that nobody waits for
``status``            a line of JSON
``stop``              the end, in good order: ``stopped`` is the last line
====================  ======================================================================================

Options: ``segment`` and ``max`` bytes, ``patience`` in seconds, ``refuse=1``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from defender.audit.journal import PATIENCE, Journal
from defender.contract.packing import pack_body

reactor: Any = global_reactor
FLOOD = 1_000_000


def event(number: int) -> tuple[int, bytes]:
    """Events of many sizes, from a hundred bytes to some thousands."""
    pad = "x" * (number * 7919 % 61) ** 2 if number % 5 == 0 else ""
    return pack_body(
        {
            "kind": "engine",
            "phase": "attempt",
            "actor": {"user": "writer", "groups": [], "via": "unix"},
            "req": {"action": "container_create", "target": pad},
            "result": {"number": number},
        }
    )


def say(line: str) -> None:
    """One line, at once."""
    os.write(1, line.encode() + b"\n")


class Writer:
    """See the module."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.next = FLOOD

    def durable(self, number: int) -> None:
        def told(reason: str) -> None:
            say(f"no {number} {reason}" if reason else f"ack {number}")

        self.journal.append_durable(*event(number), b"", told)

    def append(self, number: int) -> None:
        self.journal.append(*event(number))

    def flood(self, writers: int) -> None:
        for _ in range(writers):
            self.one_more()

    def one_more(self) -> None:
        number, self.next = self.next, self.next + 2

        def told(reason: str) -> None:
            say(f"no {number} {reason}" if reason else f"ack {number}")
            self.journal.append(*event(number + 1))
            self.one_more()

        self.journal.append_durable(*event(number), b"", told)

    def status(self, _: int) -> None:
        say(json.dumps(self.journal.status()))

    def stop(self, _: int) -> None:
        def stopped(_: object) -> None:
            say("stopped")
            reactor.stop()

        self.journal.stop().addCallback(stopped)


def main() -> None:
    """Run until it is stopped, or nobody is at the other end of standard input."""
    directory, *rest = sys.argv[1:]
    options = {key: float(value) for key, value in (each.split("=") for each in rest)}
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    writer = Writer(
        Journal(
            directory,
            "writer",
            reactor=reactor,
            segment_bytes=int(options.get("segment", 65536)),
            max_bytes=int(options.get("max", 2**30)),
            refuse=bool(options.get("refuse")),
            patience=options.get("patience", PATIENCE),
        )
    )

    def listen() -> None:
        for line in sys.stdin:
            word, _, number = line.strip().partition(" ")
            reactor.callFromThread(getattr(writer, word), int(number or 0))
        reactor.callFromThread(writer.stop, 0)

    threading.Thread(target=listen, daemon=True).start()
    writer.journal.start()
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main()

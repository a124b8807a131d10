"""A disk for the journal's tests in place of the thread, and the case that they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.audit.commands import Command, Commit
from defender.audit.journal import PATIENCE, Journal
from defender.audit.recording import INTERVAL
from defender.audit.store import Answer, Store, Trouble
from defender.contract.audit import Event
from defender.contract.packing import pack_body
from tests.spool import events_in

NANOS = 1_800_000_000_000_000_000
SEGMENT = 65536


class Disk:
    """Performs on a real directory when `work` is called; `hold` lets it hang, `trouble` fails commits."""

    def __init__(self, directory: Path, *, segment_bytes: int = SEGMENT) -> None:
        self.store = Store(directory, "web1", segment_bytes=segment_bytes)
        self.waiting: list[tuple[Command, Callable[[Answer], object]]] = []
        self.done: list[Command] = []
        self.trouble = ""
        self.stopped = False

    def submit(self, command: Command, answer: Callable[[Answer], object]) -> None:
        self.waiting.append((command, answer))

    def wait(self, timeout: float) -> bool:
        if not self.waiting:
            return False
        self.step()
        return True

    def check(self) -> str:
        return ""

    def stop(self) -> None:
        self.stopped = True
        self.store.close()

    def step(self) -> None:
        """Answer the oldest command."""
        command, answer = self.waiting.pop(0)
        self.done.append(command)
        if self.trouble and isinstance(command, Commit):
            answer(Trouble(self.trouble, poisoned=command.parts[0].name))
        else:
            answer(self.store.perform(command))

    def work(self) -> None:
        """Answer everything, also what that brings."""
        while self.waiting:
            self.step()

    @property
    def commits(self) -> list[Commit]:
        return [command for command in self.done if isinstance(command, Commit)]


def event(number: int = 0, padding: str = "") -> Event:
    """An event as a feature gives it."""
    return {
        "kind": "engine",
        "phase": "result",
        "corr": "",
        "actor": {"user": "u", "groups": [], "via": "tls"},
        "req": {"action": "docker_ping", "target": padding},
        "result": {"status": number, "bytes": 0, "ms": 0.0},
    }


def packed(number: int = 0, padding: str = "") -> tuple[int, bytes]:
    """The same, packed."""
    value = event(number, padding)
    del value["corr"]
    return pack_body(value)


class JournalCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name) / "audit"
        self.clock = Clock()
        self.wall = 0.0  # by how much it is set apart from the monotonic clock
        self.told: list[tuple[object, str]] = []

    def journal(self, *, start: bool = True, refuse: bool = False, segments: int = 16) -> Journal:
        self.disk = Disk(self.directory)
        journal = Journal(
            self.directory,
            "web1",
            reactor=self.clock,
            segment_bytes=SEGMENT,
            max_bytes=segments * SEGMENT,
            refuse=refuse,
            disk=self.disk,
            wall=lambda: NANOS + int((self.clock.seconds() + self.wall) * 1e9),
            monotonic=lambda: int(self.clock.seconds() * 1e9),
        )
        self.addCleanup(self.stop, journal)
        if start:
            journal.start()
            self.disk.work()
        return journal

    def stop(self, journal: Journal) -> None:
        journal.stop()
        self.disk.work()
        self.clock.advance(PATIENCE)

    def teller(self, what: object) -> Callable[[str], None]:
        return lambda reason: self.told.append((what, reason))

    def durable(self, journal: Journal, number: int, padding: str = "") -> bytes:
        return journal.append_durable(*packed(number, padding), b"", self.teller(number))

    def events(self) -> list[dict[str, Any]]:
        return events_in(self.directory)

    def numbers(self) -> list[int]:
        return [each["result"]["status"] for each in self.events() if each["kind"] == "engine"]

    def actions(self) -> list[str]:
        return [each["req"]["action"] for each in self.events() if each["kind"] != "engine"]

    def later(self, seconds: float = INTERVAL) -> None:
        self.clock.advance(seconds)
        self.disk.work()

"""Disks for the journal's tests, in place of the thread: one that works at once, and one that waits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from defender.audit.commands import Command, Commit
from defender.audit.store import Answer, Store, Trouble
from defender.contract.audit import Event
from defender.contract.packing import pack_body

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

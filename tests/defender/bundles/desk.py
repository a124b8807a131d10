"""A shell for the machine of streams without disk and engine: it does what it is told, and notes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from defender.bundles.commands import (
    Ack,
    Activate,
    Command,
    Nack,
    PersistBundle,
    PersistMark,
    PersistRoots,
    Refused,
    Withdraw,
)
from defender.bundles.restoring import Stored
from defender.bundles.streams import Streams
from defender.contract.contents import Content
from tests.defender.contract.signing import AGENT, DEFENDER, DOMAIN, FIRST, NOW, snapshot_of

_C = TypeVar("_C")


class Desk:
    """Performs commands at once. What is on its disk outlives `restart`.

    `disk_full` and `port_taken` are sentences that fail what is asked for; `held` commands of persistence are
    not answered before `release`.
    """

    def __init__(self, *, roots: bytes | None = FIRST, now: float = NOW) -> None:
        self.roots = roots
        self.mark: bytes | None = None
        self.bundles: dict[str, list[bytes]] = {}
        self.in_force: dict[str, Content] = {}
        self.done: list[Command] = []
        self.now = now
        self.disk_full = ""
        self.port_taken = ""
        self.hold = False
        self.held: list[PersistRoots | PersistBundle | PersistMark] = []
        self.silence = 0.0
        self._nonce = 0
        self.restart()

    def restart(self) -> list[Command]:
        """A new start with what is on disk; what happened."""
        self.streams = Streams(
            trust_domain=DOMAIN, defender=DEFENDER, agent_version=AGENT, silence=self.silence
        )
        self.in_force = {}
        before = len(self.done)
        stored = Stored(self.roots, self.mark, {name: tuple(each) for name, each in self.bundles.items()})
        self._perform(self.streams.start(stored, self.now))
        return self.done[before:]

    def offer(self, stream: str, data: bytes) -> list[Command]:
        """Push something; what happened."""
        before = len(self.done)
        self._nonce += 1
        self._perform(self.streams.offered(stream, self._nonce, data, self.now))
        return self.done[before:]

    def snapshot(self, data: bytes) -> list[Command]:
        """Send a snapshot; what happened."""
        before = len(self.done)
        self._perform(self.streams.snapshot(data, self.now))
        return self.done[before:]

    def tick(self, seconds: float) -> list[Command]:
        """Let time pass; what happened."""
        before = len(self.done)
        self.now += seconds
        self._perform(self.streams.tick(self.now))
        return self.done[before:]

    def release(self) -> None:
        """Answer what was held."""
        self.hold = False
        held, self.held = self.held, []
        for command in held:
            self._persist(command)

    def version(self, stream: str) -> int:
        """The version that the machine says is in force, 0 for none."""
        return self.streams.positions()[stream].version

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            self.done.append(command)
            if isinstance(command, PersistRoots | PersistBundle | PersistMark):
                if self.hold:
                    self.held.append(command)
                else:
                    self._persist(command)
            elif isinstance(command, Activate):
                if self.port_taken:
                    self._perform(self.streams.activation_failed(command.ticket, self.port_taken, self.now))
                else:
                    self.in_force[command.bundle.stream] = command.content
                    self._perform(self.streams.activated(command.ticket, self.now))
            elif isinstance(command, Withdraw):
                del self.in_force[command.stream]

    def _persist(self, command: PersistRoots | PersistBundle | PersistMark) -> None:
        if self.disk_full:
            self._perform(self.streams.persist_failed(command.ticket, self.disk_full, self.now))
            return
        if isinstance(command, PersistRoots):
            self.roots = command.chain
        if isinstance(command, PersistBundle):
            stored = self.bundles.setdefault(command.stream, [])
            stored.insert(0, command.envelope)
            del stored[3:]
        if command.high_water is not None:
            self.mark = command.high_water
        self._perform(self.streams.persisted(command.ticket, self.now))


def those(commands: Sequence[Command], kind: type[_C]) -> list[_C]:
    """The commands of one kind."""
    return [command for command in commands if isinstance(command, kind)]


def codes(commands: Sequence[Command]) -> list[str]:
    """The codes of NACKs; each must have its event."""
    refused = [(each.what, each.code) for each in those(commands, Refused)]
    found = those(commands, Nack)
    if [(each.stream, each.code) for each in found] != refused:
        raise AssertionError(f"a NACK without its event, or the other way round: {commands}")
    return [each.code for each in found]


def acked(commands: Sequence[Command]) -> list[tuple[str, int]]:
    """Streams and versions of ACKs."""
    return [(each.stream, each.position.version) for each in those(commands, Ack)]


def started() -> Desk:
    """A desk that has had an empty snapshot."""
    desk = Desk()
    desk.snapshot(snapshot_of({}))
    return desk

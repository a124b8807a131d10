"""The recorder: takes events in the reactor (`recording`) and has the spool bring them to disk in its thread.

A commit takes all events that wait: at once if somebody waits for one to be durable and the disk is free,
else a quarter of a second after the first event or when there are 64 KiB of them. What arrives while a commit
is under way goes into the next one. Nothing here waits for the disk, and whoever waits for a commit is told
after `PATIENCE` seconds that it does not answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from defender.audit import notes
from defender.audit.commands import Close, Command, Fetch, Pressure, Retry, SegmentFile
from defender.audit.disk import DiskThread
from defender.audit.mishaps import ClockWatch, Outage
from defender.audit.recording import STALLED, STOPPED, Recording, Told
from defender.audit.recovery import Finding
from defender.audit.spool import FULL, Spool, State
from defender.audit.store import Answer, Done, Fetched, Looked, Opening, Store, There, Trouble
from defender.contract.packing import CLOSING, micros_of, pack_body
from defender.contract.spool import SEGMENT_SIZE

#: Seconds until those who wait are told that the disk does not answer; so long a stop waits too.
PATIENCE: Final = 5.0
#: So many things that are found at once have an event each.
MOST: Final = 100
#: Seconds between two looks at what earlier runs left.
PAUSE: Final = 0.05


class Disk(Protocol):
    """Performs commands in order, elsewhere; `DiskThread` is one."""

    def submit(self, command: Command, answer: Callable[[Answer], object]) -> None: ...
    def wait(self, timeout: float) -> bool: ...
    def check(self) -> str: ...
    def stop(self) -> None: ...


class Journal(Recording):
    """A `Recording` on a spool of its own; `boot` is the boot's id.

    `written` counts the events on disk, `durable` those of them that somebody waited for, `failed` the
    commits that did not work, `dropped` the events that are lost, `reduced` those that were too large,
    `repaired` what was mended or set aside at the start, `rotated` the segments that made room; `problem`
    says why nothing is written at present, "" if all is well.

    `moved` is called when there may be more to ship, or other segments: then ask `on_disk`.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Path | str,
        agent: str,
        *,
        reactor: Any,
        segment_bytes: int = SEGMENT_SIZE,
        max_bytes: int = 64 * SEGMENT_SIZE,
        refuse: bool = False,
        boot: str = "",
        patience: float = PATIENCE,
        disk: Disk | None = None,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.directory = Path(directory)
        spool = Spool(agent, boot, segment_bytes=segment_bytes, max_bytes=max_bytes, refuse=refuse)
        super().__init__(agent, spool, reactor, segment_bytes=segment_bytes, wall=wall, monotonic=monotonic)
        self.written = self.durable = self.failed = 0
        self.repaired = self.rotated = 0
        self.moved: Callable[[], object] = _nothing
        self._patience = patience
        self._disk = disk or DiskThread(Store(self.directory, agent, segment_bytes=segment_bytes), reactor)
        self._flying: list[Told] = []
        self._count = 0  # events of the commit under way
        self._calls: list[IDelayedCall] = []
        self._watch: IDelayedCall | None = None
        self._busy = 0.0  # since when the disk has a command, 0 if it has none
        self._clocks = ClockWatch(wall(), monotonic())
        self._outage = Outage()
        self._closing = False
        self._disputed = 0  # the epoch in which the controller has records that are not ours
        self._leaving_epoch = False

    # -- life

    def start(self) -> None:
        """Open the spool; `problem` and the log say if that does not work, and it is tried again."""
        self._perform(self._spool.start())

    def stop(self) -> Deferred[None]:
        """Bring everything to disk, with the closing record; fires then, or when that takes too long."""
        if self._stopping is None:
            self._stopping = Deferred()
            self._limit = -1
            if self._spool.state is State.CLOSED:
                self._finish()
            else:
                self._payloads.append(self._assemble(*CLOSING))
                self._calls.append(self._reactor.callLater(self._patience, self._give_up))
                if self._spool.state is State.WAITING:
                    self._perform(self._spool.retry())
                self._advance()
        done: Deferred[None] = Deferred()
        if self._stopping.called:
            return succeed(None)
        self._stopping.addCallback(lambda _: done.callback(None))
        return done

    def settle(self, timeout: float = PATIENCE) -> bool:
        """Block until everything that was recorded is on disk, where no reactor runs; False if it is not."""
        end = time.monotonic() + timeout
        while True:
            if self._spool.state is State.READY:
                if not self._payloads:
                    return True
                if self._spool.pressure is not Pressure.FULL:
                    self._flush()
                    continue
            left = end - time.monotonic()
            if left <= 0 or not self._busy or not self._disk.wait(left):
                return False

    # -- for whoever ships the events

    @property
    def newest(self) -> tuple[int, int, bytes]:
        """Epoch, number and chain of the last record that is certainly on disk; (0, 0, b"") for none."""
        spool = self._spool
        if not spool.durable_seq:
            return 0, 0, b""
        return spool.epoch, spool.durable_seq, spool.durable_chain

    def on_disk(self) -> tuple[list[SegmentFile], int, int]:
        """The segments in order, the present epoch, and the last number of it that is certainly on disk."""
        return self._spool.segments, self._spool.epoch, self._spool.durable_seq

    def delivered(self, epoch: int, seq: int) -> None:
        """The controller has all records up to this one: they may make room."""
        self._spool.delivered(epoch, seq)

    def disputes(self, epoch: int, seq: int, chain: bytes) -> bool:
        """Whether the last record that the controller has of us, which is this, cannot be in this spool.

        Then the spool was emptied, or was put back from an older copy: what is in it may have numbers that
        others had before. A new epoch begins, so that what comes now is not taken for what came then, and a
        gap event says that records may be missing. To be asked once the spool is open (`on_disk`).
        """
        spool = self._spool
        if epoch == self._disputed:
            return True
        if epoch == spool.epoch:
            known = (seq, chain) == (spool.durable_seq, spool.durable_chain) or seq < spool.durable_seq
        else:
            known = any(each.epoch == epoch for each in spool.segments)
        if known:
            return False
        self._disputed = epoch
        self._leaving_epoch = not spool.is_fresh
        reason = (
            f"the controller has number {seq} of epoch {epoch:016x}, which is not in this spool: it was "
            "emptied, made room, or was put back from an older copy; what followed may be missing"
        )
        self._log.error("audit: {directory}: {reason}", directory=self.directory, reason=reason)
        self._note(notes.gap(0, seq + 1, 0.0, reason))
        return True

    def fetch(self, name: str, offset: int, size: int, took: Callable[[bytes | None], object]) -> None:
        """Read bytes of a segment in the disk's thread; None if they cannot be read."""
        self._disk.submit(
            Fetch(name, offset, size),
            lambda answer: took(answer.data if isinstance(answer, Fetched) else None),
        )

    # -- committing

    def _advance(self) -> None:
        """Commit what waits, if the disk is free and it is time."""
        if self._spool.state is not State.READY:
            return
        if self._spool.pressure is not Pressure.FULL and (
            self._waiting or self._overdue or self._stopping is not None or self._size > self._batch
        ):
            self._flush()
        if self._stopping is not None and self._spool.state is State.READY:
            if self._payloads:
                self._give_up()
            elif not self._closing:
                self._closing = True
                self._disk.submit(Close(), lambda _: self._finish())

    def _flush(self) -> None:
        self._overdue = False
        self._tell_of(self._clocks.look(self._wall(), self._monotonic()))
        if self._spool.state is not State.READY:
            return
        if self._leaving_epoch:
            self._leaving_epoch = False
            self._spool.begin_epoch(self._another_epoch())
        payloads = self._payloads
        if self._gap_is_due():
            payloads.append(self._assemble(*pack_body(self._losses.gap(self._monotonic()))))
        if not payloads:
            return
        if self._size > self._largest:
            for index, payload in enumerate(payloads):
                if len(payload) > self._largest:
                    payloads[index] = self._reduce(payload)
        waiting = self._waiting
        self._payloads = []
        self._waiting = []
        self._size = 0
        taken, commands = self._spool.add(payloads, self._wall() // 1000)
        self._count = taken
        self._flying = [told for index, told in waiting if index < taken]
        if taken < len(payloads):
            self._lose(len(payloads) - taken, FULL)
            self._log.error("{full}: {directory}", full=FULL, directory=self.directory)
            late = [told for index, told in waiting if index >= taken]
            self._reactor.callLater(0, self._tell, late, FULL)
        self._perform(commands)
        self._set_limit()

    def _another_epoch(self) -> int:
        taken = {0, self._disputed, self._spool.epoch, *(each.epoch for each in self._spool.segments)}
        while (epoch := int.from_bytes(os.urandom(8), "big")) in taken:
            pass
        return epoch

    def _gap_is_due(self) -> bool:
        """Whether losses are told now: not one by one while a full spool goes on refusing."""
        pressure = self._spool.pressure
        refusing = pressure is Pressure.RESERVED and self._stopping is None
        return bool(self._losses.untold) and not refusing and pressure is not Pressure.FULL

    def _perform(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if isinstance(command, Retry):
                self._calls.append(self._reactor.callLater(command.delay, self._retry))
                continue
            self._busy = self._reactor.seconds() or 1e-9
            if self._watch is None:
                self._watch = self._reactor.callLater(self._patience, self._look)
            self._disk.submit(command, self._answered)

    def _retry(self) -> None:
        self._calls = [call for call in self._calls if call.active()]
        self._perform(self._spool.retry())

    def _answered(self, answer: Answer) -> None:
        if self._stopping is not None and self._stopping.called:
            return
        self._busy = 0.0
        self._stalled = False
        spool, now = self._spool, self._reactor.seconds()
        before = self.problem
        committing = spool.state is State.COMMITTING
        told: list[Told] = []
        match answer:
            case Opening():
                commands = spool.opened(answer.opened, now)
                self._opened(answer)
                if answer.inspect:
                    self._calls.append(self._reactor.callLater(PAUSE, self._inspect))
            case There():
                commands = spool.surveyed(answer.segments, answer.spare, self._wall() // 1000, now)
            case Looked():
                commands = spool.inspected(answer.renamed)
                self._find(answer.findings)
                if answer.more:
                    self._calls.append(self._reactor.callLater(PAUSE, self._inspect))
            case Done() if committing:
                commands = spool.committed(now)
                told, self._flying = self._flying, []
                self.written += self._count
                self.durable += len(told)
                self._count = 0
                if not self.problem:
                    # At once: they wait, and nothing below concerns them.
                    self._tell(told, "")
                    told = []
            case Done():
                commands = spool.prepared()
            case Fetched():
                return  # is for who asked
            case Trouble() if spool.state is State.PREPARING:
                self._log.warn("audit: {directory}: {reason}", directory=self.directory, reason=answer.reason)
                commands = spool.unprepared(now, answer.removed)
            case Trouble():
                self.failed += committing
                commands = spool.failed(answer.reason, answer.done, answer.removed)
                self._failed(answer, before)
        self._perform(commands)
        self.problem = spool.problem
        if self._stopping is not None and spool.state is State.WAITING:
            self._give_up()
            return
        if self.problem:
            self._refuse_all(self.problem)
        self._mark_trouble(before)
        self._set_limit()
        for removed in spool.removed:
            self.rotated += 1
            self._note(notes.of_removed(removed))
        for vanished in spool.vanished:
            self._note(notes.of_vanished(vanished))
        spool.removed.clear()
        spool.vanished.clear()
        if told:
            self._tell(told, "")
        self.moved()
        self._overdue = self._overdue or self._gap_is_due()
        self._advance()

    def _inspect(self) -> None:
        """Look at a little of what earlier runs left, when nothing else is to be done."""
        self._calls = [call for call in self._calls if call.active()]
        if self._spool.state is State.READY and not self._waiting:
            self._perform(self._spool.inspect())
        else:
            self._calls.append(self._reactor.callLater(PAUSE, self._inspect))

    def _find(self, findings: Sequence[Finding]) -> None:
        for finding in findings[:MOST]:
            self._log.warn("audit: {name}: {detail}", name=finding.name, detail=finding.detail)
            self._note(notes.of_finding(finding))
        self.repaired += sum(finding.kind != "unclosed" for finding in findings)
        if len(findings) > MOST:
            more = f"{len(findings) - MOST} more things were found in the spool's directory"
            self._log.warn("audit: {more}", more=more)
            self._note(notes.note("audit_aside", more, ok=False))

    def _opened(self, opening: Opening) -> None:
        self._find(opening.findings)
        last = micros_of(opening.last) if opening.last else 0
        self._identities.rise_above(last)
        self._tell_of(self._clocks.behind(last, self._wall()))

    def _failed(self, trouble: Trouble, before: str) -> None:
        problem = self._spool.problem
        if trouble.poisoned:
            self._log.error(
                "audit: {directory}: {reason}; another segment is begun",
                directory=self.directory,
                reason=trouble.reason,
            )
            if not problem:
                self._note(notes.note("audit_failed", trouble.reason, target=trouble.poisoned, ok=False))
        elif problem and problem != before:
            self._log.error("audit: {directory}: {reason}", directory=self.directory, reason=problem)

    def _mark_trouble(self, before: str) -> None:
        """Tell, when nothing is wrong any more, what was, and for how long."""
        over = self._outage.follow(self.problem, before, self._monotonic())
        if over is not None:
            self._log.info("audit: {directory} is written again", directory=self.directory)
            self._note(over)

    def _refuse_all(self, reason: str) -> None:
        told = self._flying + [each for _, each in self._waiting]
        self._flying = []
        self._waiting = []
        self._tell(told, reason)

    # -- waits that end

    def _look(self) -> None:
        """Tell those who wait if the disk has had a command for too long."""
        self._watch = None
        if not self._busy:
            return
        left = self._busy + self._patience - self._reactor.seconds()
        if left > 0:
            self._watch = self._reactor.callLater(left, self._look)
            return
        if not self._stalled:
            self._stalled = True
            self._log.error("{stalled}: {directory}", stalled=STALLED, directory=self.directory)
        self.problem = STALLED
        self._mark_trouble("")
        self._set_limit()
        self._refuse_all(STALLED)
        self._watch = self._reactor.callLater(self._patience, self._look)

    def _give_up(self) -> None:
        lost = len(self._payloads) + self._count
        if lost:
            self._log.error(
                "audit: {lost} events are lost, {directory}: {problem}",
                lost=lost,
                directory=self.directory,
                problem=self._spool.problem or STALLED,
            )
        self._lose(lost, STOPPED)
        self._payloads.clear()
        self._finish()

    def _finish(self) -> None:
        for call in (self._timer, self._watch, *self._calls):
            if call is not None and call.active():
                call.cancel()
        self._timer = self._watch = None
        self._calls = []
        self._refuse_all(STOPPED)
        self._disk.stop()
        if self._stopping is not None and not self._stopping.called:
            self._stopping.callback(None)

    # -- for people

    def check(self) -> str:
        """What a new start would mend, "" for nothing; it mends no disk that fails."""
        return self._disk.check()

    def status(self) -> dict[str, object]:
        """What an operator wants to know: of ``defenderctl local status``."""
        spool = self._spool
        counters = ("written", "durable", "failed", "dropped", "reduced", "repaired", "rotated")
        return {
            "directory": str(self.directory),
            "epoch": f"{spool.epoch:016x}" if spool.epoch else "",
            "segments": len(spool.segments),
            "bytes": spool.size,
            "first_seq": spool.first_seq,
            "last_seq": max(0, spool.next_seq - 1),
            "durable_seq": spool.durable_seq,
            "waiting": len(self._payloads) + self._count,
            **{name: getattr(self, name) for name in counters},
            "problem": self._refusal() or self.problem,
        }


def _nothing() -> None:
    """Nobody ships."""

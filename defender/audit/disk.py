"""The thread that the spool's disk work is done in, so that the reactor never waits for it.

Its answers ring a bell, a descriptor of the reactor: somebody waits for the disk, and `callFromThread` takes
several times as long.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from defender.audit.commands import Command
from defender.audit.store import Answer, Store


@implementer(IReadDescriptor)
class DiskThread:
    """The thread that a `Store` lives in. `reactor` needs ``addReader`` and ``removeReader``."""

    _log = Logger()

    def __init__(self, store: Store, reactor: Any) -> None:
        self._store = store
        self._reactor = reactor
        self._work: SimpleQueue[tuple[Command, Callable[[Answer], object]] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Callable[[Answer], object], Answer]] = SimpleQueue()
        # A daemon: a disk that does not answer must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="audit-spool", daemon=True)
        self._started = False
        self._bell = -1

    def submit(self, command: Command, answer: Callable[[Answer], object]) -> None:
        """Have a command done; `answer` is called in the reactor."""
        if not self._started:
            self._started = True
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._reactor.addReader(self)
            self._thread.start()
        self._work.put((command, answer))

    def check(self) -> str:
        """Say what is wrong with the thread; "" if it works. One that has ended answers nobody."""
        return (
            "the thread of the audit disk has ended" if self._started and not self._thread.is_alive() else ""
        )

    def stop(self) -> None:
        """Close the store when all is done that was submitted; does not wait for it, nor hear of it."""
        if self._started:
            self._reactor.removeReader(self)
            self._work.put(None)

    def wait(self, timeout: float) -> bool:
        """Block until an answer is there and give it, for where no reactor runs; False if none comes."""
        try:
            answer, value = self._answers.get(timeout=timeout)
        except Empty:
            return False
        answer(value)
        return True

    # -- in the thread

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            command, answer = work
            self._answers.put((answer, self._store.perform(command)))
            os.eventfd_write(self._bell, 1)
        self._store.close()
        # Here, because only here nobody can ring it any more.
        os.close(self._bell)

    # -- IReadDescriptor

    def fileno(self) -> int:
        return self._bell

    def logPrefix(self) -> str:
        return "-"

    def doRead(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return
        while not self._answers.empty():
            answer, value = self._answers.get_nowait()
            try:
                answer(value)
            except Exception:  # noqa: BLE001 - the reactor would never listen to the bell again
                self._log.failure("audit: an answer of the disk could not be used")

    def connectionLost(self, reason: Failure) -> None:
        """The reactor is ending."""

"""The thread that the spool's disk work is done in, so that the reactor never waits for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from defender.audit.commands import Command
from defender.audit.store import Answer, Store


class DiskThread:
    """The thread that a `Store` lives in. `call_in_reactor` is the reactor's `callFromThread`."""

    def __init__(self, store: Store, call_in_reactor: Callable[..., object]) -> None:
        self._store = store
        self._call_in_reactor = call_in_reactor
        self._work: SimpleQueue[tuple[Command, Callable[[Answer], object]] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Callable[[Answer], object], Answer]] = SimpleQueue()
        # A daemon: a disk that does not answer must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="audit-spool", daemon=True)
        self._started = False

    def submit(self, command: Command, answer: Callable[[Answer], object]) -> None:
        """Have a command done; `answer` is called in the reactor."""
        if not self._started:
            self._started = True
            self._thread.start()
        self._work.put((command, answer))

    def stop(self) -> None:
        """Close the store when all is done that was submitted; does not wait for it."""
        if self._started:
            self._work.put(None)

    def wait(self, timeout: float) -> bool:
        """Block until an answer is there and give it, for where no reactor runs; False if none comes."""
        try:
            answer, value = self._answers.get(timeout=timeout)
        except Empty:
            return False
        answer(value)
        return True

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            command, answer = work
            self._answers.put((answer, self._store.perform(command)))
            self._call_in_reactor(self._deliver)
        self._store.close()

    def _deliver(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                answer, value = self._answers.get_nowait()
                answer(value)

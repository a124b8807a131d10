"""The one thread that writes to a store, and the queue in front of it.

What waits is done in groups, so that many small writes share one sync. A group whose write fails is refused
as a whole, `problem` says why, and nothing new is taken until a trial write succeeds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from controller.store.errors import OverloadedStoreError, UnwritableStoreError, fault_text, is_fault

Work = TypeVar("Work")
Answer = TypeVar("Answer")
T = TypeVar("T")

#: Seconds between two trial writes while the store cannot be written.
PAUSE: Final = 1.0
#: Seconds after which a write that does not return counts as a problem.
PATIENCE: Final = 10.0


class WriterThread(Generic[Work, Answer]):
    """Takes work from any thread that the reactor runs in, does it in groups in a thread of its own.

    `execute` gets a group and gives an answer or a Failure for each; what it raises refuses the group, and is
    a problem of the store if `errors.is_fault` says so. `probe` is a trial write. Both run in the thread, as
    do `begin`, once before all, and `finish`, after all.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        name: str,
        execute: Callable[[Sequence[Work]], Sequence[Answer | Failure]],
        probe: Callable[[], None],
        finish: Callable[[], None],
        *,
        most_waiting: int,
        most_at_once: int,
    ) -> None:
        self._reactor = reactor
        self._name = name
        self._execute = execute
        self._probe = probe
        self._finish = finish
        self._most_waiting = most_waiting
        self._most_at_once = most_at_once
        self._condition = threading.Condition()
        self._queue: deque[tuple[Work, int, Deferred[Answer]]] = deque()
        self._calls: deque[tuple[Callable[[], object], Deferred[object]]] = deque()
        self._weight = 0
        self._stopping = False
        self._fault = ""
        self._busy_since = 0.0
        self._stopped: Deferred[None] = Deferred()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.seconds: deque[float] = deque(maxlen=256)
        """How long the last groups took, synced, in seconds."""

    @property
    def problem(self) -> str:
        """Why nothing can be written, for people; "" if all is well."""
        if self._fault:
            return self._fault
        since = self._busy_since
        if since and time.monotonic() - since > PATIENCE:
            return f"{self._name}: the disk does not answer"
        return ""

    @property
    def waiting(self) -> int:
        """The weight of what waits to be written."""
        return self._weight

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, work: Work, weight: int = 1) -> Deferred[Answer]:
        """Have something done. The Deferred fires in the reactor's thread, after it is on disk.

        It fails with UnwritableStoreError while there is a problem, with OverloadedStoreError when too much
        waits, else with what the work itself raised.
        """
        answer: Deferred[Answer] = Deferred(_go_on)
        problem = "" if not self._stopping else f"{self._name}: the store is closed"
        problem = problem or self.problem
        if problem:
            answer.errback(Failure(UnwritableStoreError(problem)))
            return answer
        with self._condition:
            if self._weight + weight > self._most_waiting and self._queue:
                text = f"{self._name}: {len(self._queue)} writes are waiting already; try again later"
                answer.errback(Failure(OverloadedStoreError(text)))
                return answer
            self._queue.append((work, weight, answer))
            self._weight += weight
            self._condition.notify()
        return answer

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Run a function in the thread, between two groups, whether or not there is a problem."""
        answer: Deferred[Any] = Deferred(_go_on)
        with self._condition:
            if self._stopping:
                answer.errback(Failure(UnwritableStoreError(f"{self._name}: the store is closed")))
                return answer
            self._calls.append((function, answer))
            self._condition.notify()
        return answer

    def stop(self) -> Deferred[None]:
        """Do what waits, then end. The Deferred fires when the thread has."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        return self._stopped

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._calls and not self._stopping:
                    self._condition.wait(PAUSE if self._fault else None)
                    if self._fault:
                        break
                calls = list(self._calls)
                self._calls.clear()
                group = self._take()
                if not group and not calls and self._stopping:
                    break
            self._busy_since = time.monotonic()
            for function, answer in calls:
                self._answer(function, answer)
            if self._fault:
                self._try(self._probe)
            if group:
                self._work(group)
            self._busy_since = 0.0
        self._try(self._finish)
        self._reactor.callFromThread(self._stopped.callback, None)

    def _take(self) -> list[tuple[Work, int, Deferred[Answer]]]:
        group: list[tuple[Work, int, Deferred[Answer]]] = []
        taken = 0
        while self._queue and (not group or taken + self._queue[0][1] <= self._most_at_once):
            group.append(self._queue.popleft())
            taken += group[-1][1]
        self._weight -= taken
        return group

    def _work(self, group: list[tuple[Work, int, Deferred[Answer]]]) -> None:
        answers: Sequence[Answer | Failure]
        begun = time.perf_counter()
        if self._fault:
            answers = [Failure(UnwritableStoreError(self._fault))] * len(group)
        else:
            try:
                answers = self._execute([work for work, _, _ in group])
            except BaseException as error:  # noqa: BLE001 - whoever waits must be told, whatever it is
                if is_fault(error):
                    self._fault = f"{self._name}: {fault_text(error)}"
                    error = UnwritableStoreError(self._fault)
                answers = [Failure(error)] * len(group)
        self.seconds.append(time.perf_counter() - begun)
        self._reactor.callFromThread(_tell, [answer for _, _, answer in group], answers)

    def _answer(self, function: Callable[[], object], answer: Deferred[object]) -> None:
        result: object
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - whoever waits must be told, whatever it is
            if is_fault(error):
                error = UnwritableStoreError(f"{self._name}: {fault_text(error)}")
            result = Failure(error)
        self._reactor.callFromThread(_tell, [answer], [result])

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
            self._fault = ""
        except BaseException as error:  # noqa: BLE001 - the thread must outlive it
            self._fault = f"{self._name}: {fault_text(error)}"


def _go_on(_: Deferred[Answer]) -> None:
    """Cancelling a write means not to wait for it; whether it is done is not known."""


def _tell(waiting: Sequence[Deferred[Answer]], answers: Sequence[Answer | Failure]) -> None:
    for deferred, answer in zip(waiting, answers, strict=True):
        if deferred.called:
            continue
        if isinstance(answer, Failure):
            deferred.errback(answer)
        else:
            deferred.callback(answer)

"""The threads that read from a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from controller.store.errors import (
    OverloadedStoreError,
    StoreError,
    UnwritableStoreError,
    fault_text,
    is_fault,
)

P = ParamSpec("P")
T = TypeVar("T")

#: Reads that may wait for a thread.
MOST_WAITING: Final = 1000


class Readers:
    """A bounded pool of threads; each call runs in one of them."""

    def __init__(self, reactor: IReactorFromThreads, name: str, threads: int) -> None:
        self._reactor = reactor
        self._name = name
        self._pool = ThreadPool(1, threads, name)
        self._waiting = 0
        self._open = False

    def start(self) -> None:
        """Begin to work."""
        self._pool.start()
        self._open = True

    def stop(self) -> None:
        """Wait for what is being read, and end the threads. Blocks as long as one read takes."""
        if self._open:
            self._open = False
            self._pool.stop()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Run a function in a thread.

        The Deferred fails with OverloadedStoreError if too many wait, UnwritableStoreError for an error of
        the disk, else with what the function raised.
        """
        answer: Deferred[T] = Deferred(_forget)
        if not self._open:
            answer.errback(Failure(StoreError(f"{self._name}: the store is closed")))
            return answer
        if self._waiting >= MOST_WAITING:
            text = f"{self._name}: {self._waiting} are waiting already; try again later"
            answer.errback(Failure(OverloadedStoreError(text)))
            return answer
        self._waiting += 1

        def run() -> T:
            return function(*args, **kwargs)

        def done(success: bool, result: object) -> None:
            self._reactor.callFromThread(self._tell, answer, result)

        self._pool.callInThreadWithCallback(done, run)
        return answer

    def _tell(self, answer: Deferred[T], result: T | Failure) -> None:
        self._waiting -= 1
        if answer.called:
            return
        if not isinstance(result, Failure):
            answer.callback(result)
        elif result.value is not None and is_fault(result.value):
            answer.errback(Failure(UnwritableStoreError(f"{self._name}: {fault_text(result.value)}")))
        else:
            answer.errback(result)


def _forget(_: Deferred[T]) -> None:
    """Cancelling a read means not to wait for it."""

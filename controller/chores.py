"""What is done again and again, each by its own clock and never twice at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure


class Chores:
    """The chores of a program. `reactor` is the clock."""

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._loops: list[LoopingCall] = []
        self._troubled: dict[str, str] = {}
        self._under_way: dict[str, Deferred[Any]] = {}

    def every(
        self, seconds: float, what: str, work: Callable[[], Awaitable[Any]], *, now: bool = False
    ) -> None:
        """Do `work` every so many seconds. `what` is for the log, when it fails: it is done again then, and
        the same trouble is told once."""

        def run() -> Deferred[Any]:
            doing = ensureDeferred(_awaited(work))
            self._under_way[what] = doing
            return doing.addCallbacks(self._done, self._failed, callbackArgs=(what,), errbackArgs=(what,))

        loop = LoopingCall(run)
        loop.clock = self._reactor
        self._loops.append(loop)
        loop.start(seconds, now=now).addErrback(
            lambda failure: self.log.failure("no longer done: {what}", failure, what=what)
        )

    def stop(self) -> Deferred[Any]:
        """Begin nothing any more; fires when what is under way is over."""
        for loop in self._loops:
            if loop.running:
                loop.stop()
        return DeferredList([_over(each) for each in self._under_way.values()])

    def _done(self, _: object, what: str) -> None:
        del self._under_way[what]
        if self._troubled.pop(what, ""):
            self.log.info("done again: {what}", what=what)

    def _failed(self, failure: Failure, what: str) -> None:
        del self._under_way[what]
        why = failure.getErrorMessage()
        if self._troubled.get(what) != why:
            self.log.error("could not {what}: {why}", what=what, why=why)
        self._troubled[what] = why


async def _awaited(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()


def _over(doing: Deferred[Any]) -> Deferred[None]:
    over: Deferred[None] = Deferred()

    def passed(result: Any) -> Any:
        over.callback(None)
        return result

    doing.addBoth(passed)
    return over

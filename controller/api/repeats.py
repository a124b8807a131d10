"""Requests that are sent again because their answer was lost: they act once, and get the first answer.

The answers are kept in memory, for ten minutes and for as long as the controller runs. They may hold a token
that is shown once, so they are bound to who asked, and are never on disk.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from controller.api.problems import ProblemError
from controller.api.routes import Answer
from controller.api.schema import Fault

LIFE: Final = 600.0
"""Seconds for which an answer is kept."""

MOST: Final = 1000
"""Answers that are kept; the oldest goes first."""


@dataclass(slots=True)
class _Kept:
    digest: bytes
    since: float
    answer: Answer | None = field(default=None, repr=False)
    waiting: list[Deferred[None]] = field(default_factory=list)


class Repeats:
    """Answers by who asked, what, and with which key."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str, str], _Kept] = OrderedDict()

    async def once(
        self, who: str, what: str, key: str, body: bytes, act: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The answer of `act`, or the one it gave when it was asked before.

        An `act` that fails is forgotten: nothing was done, so it may be tried again.

        Raises:
            ProblemError: 422 if the key was used for another body, 409 if the first request failed while
                this one waited for it.
        """
        self._forget()
        place = (who, what, key)
        digest = hashlib.sha256(body).digest()
        kept = self._kept.get(place)
        if kept is not None:
            return await self._again(kept, digest)
        kept = self._kept[place] = _Kept(digest, self._clock.seconds())
        try:
            kept.answer = await act()
        except BaseException:
            if self._kept.get(place) is kept:
                del self._kept[place]
            raise
        finally:
            waiting, kept.waiting = kept.waiting, []
            for other in waiting:
                other.callback(None)
        return kept.answer

    async def _again(self, kept: _Kept, digest: bytes) -> Answer:
        if kept.digest != digest:
            told = "this Idempotency-Key was used for another body; take a new one"
            fault = Fault("/idempotency-key", "was used for another body")
            raise ProblemError(422, "key-reused", told, faults=[fault], where="header")
        if kept.answer is None:
            arrived: Deferred[None] = Deferred()
            kept.waiting.append(arrived)
            await arrived
        if kept.answer is None:
            raise ProblemError(409, "first-failed", "the first request with this key failed; send it again")
        return kept.answer

    def _forget(self) -> None:
        oldest = self._clock.seconds() - LIFE
        while self._kept:
            place, kept = next(iter(self._kept.items()))
            if kept.since > oldest and len(self._kept) < MOST:
                return
            del self._kept[place]

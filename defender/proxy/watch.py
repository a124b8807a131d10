"""Asks the Engine for its version from the start until it answers."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender.proxy.backend import BackendPool, EngineError

_FIRST_LOOK = 1.0
_LONGEST_LOOK = 30.0


class EngineWatch(Service):
    """Asks the Engine for its version from the start until it answers, so that the first client need not
    wait.
    """

    log = Logger()

    def __init__(self, reactor: Any, pool: BackendPool) -> None:
        self.setName("engine-watch")
        self._reactor = reactor
        self._pool = pool
        self._delay = _FIRST_LOOK
        self._call: Any = None

    def startService(self) -> None:
        super().startService()
        self._look()

    def stopService(self) -> None:
        super().stopService()
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _look(self) -> None:
        if self.running:
            self._pool.learn().addCallbacks(self._heard, self._failed)

    def _heard(self, _facts: object) -> None:
        version = self._pool.facts.newest_common
        if version is not None:
            self.log.info("the Engine speaks API {major}.{minor}", major=version[0], minor=version[1])

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, EngineError):
            self.log.failure("looking for the Engine failed", failure)
        elif self.running:
            self.log.warn("{error}", error=error.message)
        if self.running:
            self._call = self._reactor.callLater(self._delay, self._look)
            self._delay = min(self._delay * 2, _LONGEST_LOOK)

"""The port where defenders connect: how many, how fast, how long, and one clock for all of them.

A fleet that comes back at once must not end what is there: connections are taken at a rate, and the others
wait in the kernel, where they cost nothing. One address may have so many that have not said who they are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from OpenSSL import SSL
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from controller.channel.protocol import Desk, Visit
from controller.channel.stream import transports
from controller.settings import ChannelSettings
from defender.contract.reconnecting import return_window

#: Seconds between two looks at what is due.
SWEEP = 1.0
#: Connections that wait in the kernel.
BACKLOG = 4096
#: Part of a second's connections that may be taken at once.
BURST = 0.25
Opened = Callable[[str, Any, int], Any]
"""Opens a port: `controller.supervision.sockets.PassedSockets.listen`."""

#: Seconds that a goodbye may take.
GOODBYE = 3.0


class Reception(Service):
    """See the module. `visits` are the connections there are; those with an `identity` are defenders.

    `refused` counts connections that were turned away, by reason. `port` is the one that was opened, 0 while
    none is. ``opened`` opens a port: it takes the address, a factory, and how many connections may wait.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, settings: ChannelSettings, context: SSL.Context, desk: Desk, opened: Opened
    ) -> None:
        self.setName("channel")
        self.visits: set[Visit] = set()
        self.refused: Counter[str] = Counter()
        self.port = 0
        self.reactor = reactor
        self.context = context
        """What connections are made with; another one is for those that come after."""
        self._settings = settings
        self._desk = desk
        self._opened = opened
        self._listening: Any = None
        self._unproven: Counter[str] = Counter()
        self._tokens = settings.accepted_per_second * BURST
        self._filled = 0.0
        self._resume: IDelayedCall | None = None
        self._sweeper = LoopingCall(self._sweep)
        self._sweeper.clock = reactor

    # -- service

    def startService(self) -> None:
        """Listen; raises PassedSocketError."""
        super().startService()
        self._filled = self.reactor.seconds()
        self._listening = self._opened(self._settings.listen, _Visits(self), BACKLOG)
        self._listening.transport = transports(lambda: self.context, self.reactor)
        self._listening.numberAccepts = max(1, int(self._tokens))
        self.port = self._listening.getHost().port
        self._sweeper.start(SWEEP, now=False).addErrback(
            lambda failure: self.log.failure("defenders are no longer looked after", failure)
        )

    def stopService(self) -> Deferred[None]:
        """Take no more, ask everybody to come back within a window, and wait a little for them to go."""
        super().stopService()
        if self._resume is not None and self._resume.active():
            self._resume.cancel()
        self._resume = None
        if self._sweeper.running:
            self._sweeper.stop()
        self.port = 0
        listening, self._listening = self._listening, None
        stopping = maybeDeferred(listening.stopListening) if listening is not None else None
        window = return_window(len(self.visits))
        now = self.reactor.seconds()
        for visit in list(self.visits):
            session = visit.session
            if visit.identity is not None and session is not None:
                visit.say(session.go_away(now, "stopping", "the controller stops", window))
            else:
                visit.cut()
        gone: Deferred[None] = Deferred()
        waited = 0.0

        def look() -> None:
            nonlocal waited
            waited += 0.05
            if not self.visits or waited >= GOODBYE:
                for visit in list(self.visits):
                    visit.cut()
                gone.callback(None)
            else:
                self.reactor.callLater(0.05, look)

        look()
        if stopping is not None:
            return stopping.addCallback(lambda _: gone)
        return gone

    # -- connections

    def admit(self, source: str) -> Visit | None:
        """A connection has come; None if it is turned away."""
        settings = self._settings
        self._spend()
        if len(self.visits) >= settings.connections:
            self.refused["connections"] += 1
            return None
        if self._unproven[source] >= settings.pending_per_address:
            self.refused["pending_per_address"] += 1
            return None
        visit = Visit(
            self._desk,
            self,
            source,
            self.reactor,
            settings.handshake_timeout,
            random.uniform(-1, 1),  # noqa: S311 - so that PINGs are not all sent together
        )
        self.visits.add(visit)
        self._unproven[source] += 1
        return visit

    def _spend(self) -> None:
        """Count one connection; when they are too many, the next ones wait in the kernel."""
        rate = self._settings.accepted_per_second
        now = self.reactor.seconds()
        self._tokens = min(rate * BURST, self._tokens + (now - self._filled) * rate) - 1
        self._filled = now
        # Twisted takes as many at once as it took the last time, and more.
        self._listening.numberAccepts = max(1, int(self._tokens))
        if self._tokens < 1 and self._resume is None:
            self._listening.stopReading()
            self._resume = self.reactor.callLater((1 - self._tokens) / rate, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._listening.startReading()

    # -- `Door`

    def proven(self, visit: Visit) -> None:
        self._forget_source(visit.source)

    def gone(self, visit: Visit) -> None:
        self.visits.discard(visit)
        if visit.handshaking:
            self._forget_source(visit.source)

    def _forget_source(self, source: str) -> None:
        self._unproven[source] -= 1
        if self._unproven[source] <= 0:
            del self._unproven[source]

    # -- time

    def _sweep(self) -> None:
        now = self.reactor.seconds()
        for visit in [visit for visit in self.visits if visit.due <= now]:
            try:
                visit.tick()
            except Exception:  # noqa: BLE001 - one connection's fault must not end the sweep for all
                self.log.failure("looking after a defender failed; its connection is cut")
                visit.cut()

    def cut(self, which: Callable[[Visit], bool]) -> int:
        """End sessions at once, of defenders that are locked or removed; how many that were."""
        chosen = [visit for visit in self.visits if visit.identity is not None and which(visit)]
        for visit in chosen:
            visit.refuse("refused", "this defender is locked or was removed")
        return len(chosen)

    def defenders(self) -> Iterable[Visit]:
        """The visits whose certificate was found good."""
        return [visit for visit in self.visits if visit.identity is not None]


class _Visits(Factory[Any]):
    noisy = False

    def __init__(self, reception: Reception) -> None:
        self._reception = reception

    def buildProtocol(self, addr: Any) -> Any:
        return self._reception.admit(str(addr.host))

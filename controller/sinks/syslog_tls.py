"""Carries syslog messages over TLS (RFC 5425): one connection, frames one after the other.

Syslog has no acknowledgment. What can be known is this: a batch counts as sent when the connection has taken
it, and as confirmed when TCP has acknowledged its last octet and the connection has lived `settle` seconds
longer. A receiver that dies with messages unread resets the connection, and what was not confirmed is sent
again. One that has read messages and loses them later cannot be noticed.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from controller.sinks.answers import Answer, Taken, Unavailable
from defender.contract.errors import one_line

PORT: Final = 6514
SETTLE: Final = 1.0
TIMEOUT: Final = 30.0
"""Seconds without progress after which a receiver that takes nothing is given up."""
LOOK: Final = 0.1
"""Seconds between two looks at what TCP has acknowledged, while something is not confirmed."""
CLOSING: Final = 3.0


class SyslogReceiver:
    """A receiver of syslog over TLS.

    Args:
        reactor: time, and which sockets have something to write.
        endpoint: a `peer_tls.PeerEndpoint`.
        settle: seconds that a connection must live after TCP has acknowledged a batch.
        timeout: seconds without progress.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        *,
        settle: float = SETTLE,
        timeout: float = TIMEOUT,
        look: float = LOOK,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._settle = settle
        self._timeout = timeout
        self._look = look
        self._confirmed: Callable[[int], None] = lambda ticket: None
        self._lost: Callable[[str], None] = lambda reason: None
        self._connecting: Deferred[Any] | None = None
        self._link: _Link | None = None

    def attach(self, confirmed: Callable[[int], None], lost: Callable[[str], None]) -> None:
        """Say who is told."""
        self._confirmed = confirmed
        self._lost = lost

    def deliver(self, ticket: int, payloads: Sequence[bytes]) -> Deferred[Answer]:
        """Send a batch, over a new connection if there is none; fires once the connection takes more."""
        result: Deferred[Answer] = Deferred(self._cancelled)
        if self._link is not None:
            self._link.send(ticket, payloads, result)
            return result
        connecting = self._endpoint.connect(_links(self))
        self._connecting = connecting

        def connected(link: Any) -> None:
            self._connecting = None
            self._link = link
            link.send(ticket, payloads, result)

        def failed(failure: Failure) -> None:
            self._connecting = None
            if not result.called:
                result.callback(Unavailable(one_line(str(failure.value))))

        connecting.addCallbacks(connected, failed)
        return result

    def close(self) -> Deferred[object]:
        """End the connection in order, or after a while without."""
        if self._connecting is not None:
            self._connecting.cancel()
        closed: Deferred[object] = Deferred()
        if self._link is None:
            closed.callback(None)
        else:
            self._link.close(closed)
        return closed

    def _cancelled(self, _: Deferred[Answer]) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        elif self._link is not None:
            self._link.abort("it is no longer wanted")


def _links(owner: SyslogReceiver) -> Factory:
    class Links(Factory):
        noisy = False

        def buildProtocol(self, address: object) -> _Link:
            return _Link(owner)

    return Links()


@implementer(IPushProducer)
class _Link(Protocol):
    """One connection: what was written to it, and how much of that has arrived."""

    def __init__(self, owner: SyslogReceiver) -> None:
        self._owner = owner
        self._clock = owner._reactor
        self._paused = False
        self._sending: Deferred[Answer] | None = None
        self._open: deque[int] = deque()
        self._arrived: deque[tuple[float, int]] = deque()
        self._looking: IDelayedCall | None = None
        self._progress = 0.0
        self._queued = 0
        self._why = ""
        self._closed: Deferred[object] | None = None

    def connectionMade(self) -> None:
        """Ask to be told when enough is written."""
        transport: Any = self.transport
        transport.registerProducer(self, True)

    def send(self, ticket: int, payloads: Sequence[bytes], result: Deferred[Answer]) -> None:
        """Write a batch; `result` fires once the connection takes more."""
        transport: Any = self.transport
        self._open.append(ticket)
        self._sending = result
        self._progress = self._clock.seconds()
        transport.write(b"".join(payloads))
        if self._looking is None:
            self._looking = self._clock.callLater(self._owner._look, self._look)
        if not self._paused:
            self._sent()

    def _sent(self) -> None:
        sending, self._sending = self._sending, None
        if sending is not None and not sending.called:
            sending.callback(Taken(confirmed=False))

    def pauseProducing(self) -> None:
        """The connection's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It has room again."""
        self._paused = False
        self._progress = self._clock.seconds()
        self._sent()

    def stopProducing(self) -> None:
        """The connection ends; `connectionLost` says so."""

    def _look(self) -> None:
        """See what has arrived: nothing left to write, and nothing that TCP waits to hear of."""
        self._looking = None
        now = self._clock.seconds()
        queued = self._left()
        if queued == 0:
            self._progress = now
            while self._open:
                self._arrived.append((now, self._open.popleft()))
        elif queued != self._queued:
            self._progress = now
        self._queued = queued
        last = None
        while self._arrived and now - self._arrived[0][0] >= self._owner._settle:
            last = self._arrived.popleft()[1]
        if now - self._progress > self._owner._timeout:
            self.abort(f"it has taken nothing for {self._owner._timeout:g} s")
            return
        if self._open or self._arrived:
            self._looking = self._clock.callLater(self._owner._look, self._look)
        if last is not None:
            self._owner._confirmed(last)

    def _left(self) -> int:
        """Octets on their way: those that the kernel has not seen acknowledged, one more for our own."""
        transport: Any = self.transport
        tcp = transport.transport
        waiting = 1 if self._paused or tcp in self._clock.getWriters() else 0
        return unacknowledged(tcp.getHandle()) + waiting

    def abort(self, why: str) -> None:
        """End the connection at once."""
        self._why = why
        if self._owner._link is self:
            self._owner._link = None
        transport: Any = self.transport
        transport.abortConnection()

    def close(self, closed: Deferred[object]) -> None:
        """End it in order (close_notify), within `CLOSING` seconds."""
        transport: Any = self.transport
        self._closed = closed
        self._why = "it was closed"
        transport.unregisterProducer()
        transport.loseConnection()
        late = self._clock.callLater(CLOSING, transport.abortConnection)
        closed.addBoth(lambda value: late.cancel() if late.active() else None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell whoever waits; what was not confirmed is theirs to send again."""
        if self._owner._link is self:
            self._owner._link = None
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        why = self._why or one_line(f"the receiver ended the connection: {reason.value}")[:300]
        sending, self._sending = self._sending, None
        if sending is not None and not sending.called:
            sending.callback(Unavailable(why))
        else:
            self._owner._lost(why)
        if self._closed is not None:
            self._closed.callback(None)


def unacknowledged(connection: socket.socket) -> int:
    """Octets in a TCP socket's send queue that the peer has not acknowledged (SIOCOUTQ, tcp(7))."""
    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])

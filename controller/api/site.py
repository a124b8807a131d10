"""The HTTP side of the API's port: bounds on what a client may send, and no log of what it did send.

twisted.web reads a request's whole body before anybody looks at it, into memory or into a file of /tmp, as
large as it may be; and it logs every request line. Neither is for a port that takes passwords.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.web.http import Request as HttpRequest
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from controller.api.dispatch import to_json, too_large
from controller.api.metrics import ApiMetrics
from controller.api.problems import PROBLEM_TYPE, ProblemError

UNSIGNED_LIMIT: Final = 16 * 1024
"""Bytes of a body that comes without an Authorization header: a sign-in is small."""

IDLE: Final = 60.0
"""Seconds that a connection may be idle between two requests."""

DEADLINE: Final = 60.0
"""Seconds from the first line of a request to the end of its body."""


class ApiRequest(Request):
    """A request whose body is held in memory up to a limit; beyond it the connection is ended."""

    defaultContentType = None  # noqa: N815
    _deadline: IDelayedCall | None = None
    _limit = 0
    _refused = False
    _site: Any = None

    def __init__(self, channel: Any, *args: Any, **keywords: Any) -> None:
        super().__init__(channel, *args, **keywords)
        site = self._site = channel.site
        if isinstance(site, ApiSite):
            self._deadline = site.clock.callLater(site.deadline, self._too_slow)

    def gotLength(self, length: int | None) -> None:  # noqa: N802
        """Say at once when the announced body is too large."""
        site = self._site
        signed = self.requestHeaders.hasHeader(b"authorization")
        most = site.body_limit if isinstance(site, ApiSite) else UNSIGNED_LIMIT
        self._limit = most if signed else min(most, UNSIGNED_LIMIT)
        self.content = BytesIO()
        if length is not None and length > self._limit:
            self._refuse(too_large(self._limit))

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802
        """Keep a piece of the body, unless it is too much."""
        if self._refused or self.content is None:
            return
        if self.content.tell() + len(data) > self._limit:
            self._refuse(too_large(self._limit))
        else:
            self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:  # noqa: N802
        """The request is here; what came of one that is refused is not looked at."""
        self._stop_clock()
        if not self._refused:
            super().requestReceived(command, path, version)

    def connectionLost(self, reason: Any) -> None:
        """The client is gone."""
        self._stop_clock()
        super().connectionLost(reason)

    def _stop_clock(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()

    def _too_slow(self) -> None:
        self._refuse(ProblemError(408, "too-slow", "the request did not come to its end in time"))

    def _refuse(self, error: ProblemError) -> None:
        """Answer before the request is read to its end, and end the connection."""
        if self._refused or self.channel is None:
            return
        self._refused = True
        self._stop_clock()
        if self.content is not None:
            self.content.close()
            self.content = BytesIO()
        site = self._site
        if isinstance(site, ApiSite):
            site.metrics.refused_bodies += 1
        body = to_json(error.document())
        reason = error.document()["title"].encode("ascii")
        head = b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        transport: Any = self.channel.transport
        transport.write(head % (error.status, reason, PROBLEM_TYPE.encode("ascii"), len(body)) + body)
        self.channel.loseConnection()


class ApiSite(Site):
    """The site of the API's port.

    Args:
        resource: `Api.resource()`.
        clock: the reactor.
        metrics: the API's.
        body_limit: bytes of the largest body.
        connections: at most so many at a time; further ones are closed.
    """

    noisy = False

    def __init__(
        self,
        resource: IResource,
        clock: Any,
        metrics: ApiMetrics,
        *,
        body_limit: int = 4 * 1024 * 1024,
        connections: int = 1000,
        deadline: float = DEADLINE,
    ) -> None:
        super().__init__(
            resource, requestFactory=ApiRequest, parsePOSTFormSubmission=False, timeout=IDLE, reactor=clock
        )
        self.clock = clock
        self.metrics = metrics
        self.body_limit = body_limit
        self.deadline = deadline
        self._most = connections
        self._open = 0

    def startFactory(self) -> None:
        """Open no log."""

    def stopFactory(self) -> None:
        """There is none to close."""

    def log(self, request: HttpRequest) -> None:
        """Write nothing: request lines hold what people look for, and who they are."""

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802
        """HTTP/1.1 only: the bounds above are those of its channel."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A channel for one more connection, None if there are too many."""
        if self._open >= self._most:
            return None
        channel = super().buildProtocol(addr)
        self._open += 1
        lost = channel.connectionLost

        def gone(reason: Any) -> None:
            self._open -= 1
            lost(reason)

        channel.connectionLost = gone
        return channel

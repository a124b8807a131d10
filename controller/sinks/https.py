"""Carries batches over HTTPS, one POST each: for webhooks and for Splunk's event collector.

The connection is checked by our own code before a byte is sent (`controller.peer_tls`). One request is under
way at a time; it has a time-out, and the answer a bound: its beginning is read, more ends the connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from controller.peer_tls import Allowance, PeerAgentEndpoints, PeerError
from controller.sinks.answers import Answer, HttpAnswer, Unavailable
from controller.sinks.webhook import Post
from defender.contract.errors import one_line

REQUEST_TIMEOUT: Final = 30.0
"""Seconds for one request, from the connection to the end of the answer."""
MAX_ANSWER: Final = 64 * 1024
"""Octets of an answer, head and body."""
IDLE: Final = 10
"""Seconds that an idle connection is kept: usual servers keep theirs longer, and so never close it first."""
USER_AGENT: Final = b"defender-fleet"


class HttpsReceiver:
    """A receiver that is reached by POST.

    Args:
        reactor: TCP, time and names.
        url: an https address.
        context: of `peer_tls.peer_context`.
        post: makes the request of a batch's payloads at a unix time.
        judge: says what an answer means.
        hidden: texts that are struck out of what the receiver says: some repeat what they were sent.
        timeout: seconds for one request.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        context: SSL.Context,
        post: Callable[[Sequence[bytes], float], Post],
        judge: Callable[[HttpAnswer], Answer],
        *,
        hidden: Sequence[str] = (),
        timeout: float = REQUEST_TIMEOUT,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._url = url.encode("ascii")
        self._post = post
        self._judge = judge
        self._hidden = [text.encode() for text in hidden if text]
        self._timeout = timeout
        self._wall = wall
        self._allowance = Allowance(MAX_ANSWER)
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = 1
        self._pool.retryAutomatically = False
        self._pool.cachedConnectionTimeout = IDLE
        endpoints = PeerAgentEndpoints(reactor, context, timeout=timeout, allowance=self._allowance)
        self._agent = Agent.usingEndpointFactory(reactor, endpoints, self._pool)

    def attach(self, confirmed: Callable[[int], None], lost: Callable[[str], None]) -> None:
        """Nobody is told anything: an answer confirms its batch, and between batches nothing is at stake."""

    def deliver(self, ticket: int, payloads: Sequence[bytes]) -> Deferred[Answer]:
        """Send a batch; fires with what the receiver's answer means, or that there is none."""
        self._allowance.left = MAX_ANSWER
        post = self._post(payloads, self._wall())
        headers = Headers({b"user-agent": [USER_AGENT]})
        for name, value in post.fields:
            headers.addRawHeader(name.encode("ascii"), value.encode("ascii"))
        asking: Deferred[Any] = self._agent.request(b"POST", self._url, headers, _Body(post.body))
        asking.addCallback(self._read)
        # Not addTimeout: the Agent tells a cancellation in an error of its own.
        late = self._reactor.callLater(self._timeout, asking.cancel)

        def ended(result: Any) -> Any:
            if late.active():
                late.cancel()
            return result

        return asking.addBoth(ended).addCallbacks(
            self._judge, lambda failure: self._failed(failure, timed_out=late.called)
        )

    def close(self) -> Deferred[object]:
        """Close the idle connection; one with a request under way ends with that."""
        closing: Deferred[object] = self._pool.closeCachedConnections()
        return closing

    def _read(self, response: IResponse) -> Deferred[HttpAnswer]:
        fields = {
            name.decode("ascii", "replace").lower(): values[-1].decode("utf-8", "replace")
            for name, values in response.headers.getAllRawHeaders()
        }
        reader = _Reader()
        response.deliverBody(reader)
        return reader.done.addCallback(lambda body: HttpAnswer(response.code, fields, self._shown(body)))

    def _shown(self, body: bytes) -> bytes:
        for secret in self._hidden:
            body = body.replace(secret, b"[hidden]")
        return body

    def _failed(self, failure: Failure, timed_out: bool) -> Answer:
        error = failure.value
        if timed_out:
            return Unavailable(f"no answer within {self._timeout:g} s")
        if isinstance(error, PeerError):
            return Unavailable(str(error))
        if self._allowance.left < 0:
            return Unavailable(f"its answer is longer than {MAX_ANSWER} octets")
        inner = getattr(error, "reasons", None)
        if inner:
            error = inner[0].value
        words = one_line(str(error) or type(error).__name__)[:300]
        return Unavailable(f"the connection ended before the answer: {words}")


@implementer(IBodyProducer)
class _Body:
    """A body that is written at once: a batch is bounded."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length: Any = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802
        """Write it."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything is written already."""

    def resumeProducing(self) -> None:
        """Everything is written already."""

    def stopProducing(self) -> None:
        """Everything is written already."""


class _Reader(Protocol):
    """Reads an answer's body; how much of it may come is the connection's allowance."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred(self._cancel)
        self._parts: list[bytes] = []

    def _cancel(self, _: Deferred[bytes]) -> None:
        abort = getattr(self.transport, "abortConnection", None)
        if abort is not None:
            abort()

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The answer is complete, or it never will be."""
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)

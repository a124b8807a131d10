"""One request and one answer over the join protocol: the network side of `defender.enrollment`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from defender.channel.tls import channel_binding, checked_endpoint, client_context
from defender.contract.framing import FrameError, Framer, frame
from defender.contract.identity import ROLE_CONTROLLER
from defender.contract.join import ALPN, BINDING_LABEL, BINDING_SIZE, MAX_ANSWER
from defender.contract.peer_check import fleet_peer

ANSWER_TIMEOUT: Final = 30.0
"""Seconds for an answer: the controller writes it to its disk before it gives it."""


class NoAnswerError(Exception):
    """The controller was reached, but it gave no answer. The text is fit for people."""


def ask(
    reactor: Any,
    host: str,
    port: int,
    pins: frozenset[bytes],
    build: Callable[[bytes], bytes],
    *,
    timeout: float = ANSWER_TIMEOUT,
) -> Deferred[bytes]:
    """Ask the controller at this address, which must be one under a root of ``pins``; fire with its answer.

    ``build``: makes the request from the connection's binding (`join.BINDING_LABEL`). Fails with
    PeerRefusedError, NoAnswerError, what connecting fails with, or what ``build`` raises. Cancelling closes
    the connection.
    """
    context = client_context(pins=pins, alpn=ALPN)
    endpoint = checked_endpoint(reactor, host, port, context, fleet_peer(None, ROLE_CONTROLLER), alpn=ALPN)
    asking: list[_Asking] = []
    connecting: list[Deferred[Any]] = []

    def cancel(_: object) -> None:
        for each in asking:
            each.give_up()
        for connection in connecting:
            connection.cancel()

    done: Deferred[bytes] = Deferred(cancel)

    def make() -> _Asking:
        asking.append(_Asking(reactor, build, done, timeout))
        return asking[-1]

    def failed(failure: Failure) -> None:
        if not done.called:
            done.errback(failure)

    connecting.append(endpoint.connect(Factory.forProtocol(make)))
    connecting[-1].addErrback(failed)
    return done


class _Asking(Protocol):
    """Sends one frame and waits for one."""

    transport: Any

    def __init__(
        self, reactor: Any, build: Callable[[bytes], bytes], done: Deferred[bytes], timeout: float
    ) -> None:
        self._reactor = reactor
        self._build = build
        self._done: Deferred[bytes] | None = done
        self._timeout = timeout
        self._deadline: IDelayedCall | None = None
        self._framer = Framer(MAX_ANSWER)

    def connectionMade(self) -> None:
        self._deadline = self._reactor.callLater(self._timeout, self._timed_out)
        try:
            request = self._build(channel_binding(self.transport, BINDING_LABEL, BINDING_SIZE))
        except Exception:  # noqa: BLE001 - it is the caller's, and goes to the caller
            self._end(Failure())
            return
        self.transport.write(frame(request))

    def dataReceived(self, data: bytes) -> None:
        try:
            answers = self._framer.feed(data)
        except FrameError as error:
            self._end(Failure(NoAnswerError(f"the controller's answer cannot be read: {error}")))
            return
        if answers:
            self._end(answers[0])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connected = 0
        self._end(
            Failure(NoAnswerError(f"the controller closed the connection without an answer: {reason.value}"))
        )

    def give_up(self) -> None:
        """Close without a word to anybody."""
        self._done = None
        self._end(Failure(NoAnswerError("given up")))

    def _timed_out(self) -> None:
        self._deadline = None
        self._end(Failure(NoAnswerError(f"the controller gave no answer in {self._timeout:g} seconds")))

    def _end(self, result: bytes | Failure) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        done, self._done = self._done, None
        if self.transport is not None and self.connected:
            if isinstance(result, Failure):
                self.transport.abortConnection()
            else:
                self.transport.loseConnection()
        if done is None or done.called:
            return
        if isinstance(result, Failure):
            done.errback(result)
        else:
            done.callback(result)

"""One connection of a defender, or of a host that wants to become one.

After the handshake the application protocol says which: a channel session, judged by the certificate that was
shown, or one request to join and its answer. Whatever comes of it is `Desk`'s business.
"""

from __future__ import annotations

from typing import Any, Final
from typing import Protocol as Typed

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from controller.channel.tls import channel_binding, chosen_protocol, shown_certificate
from defender.contract.controller_session import ControllerSession
from defender.contract.errors import IdentityError
from defender.contract.framing import FrameError, Framer, frame
from defender.contract.join import BINDING_LABEL, BINDING_SIZE, MAX_REQUEST
from defender.contract.messages import ALPN, Error, GoAway, Hello, Message
from defender.contract.peer_check import PeerIdentity, check_defender
from defender.contract.session import Close, Expired, Outputs, Pushed, Send

#: Seconds that a peer has to ask for what it came for, and to take the answer.
JOIN_TIME: Final = 30.0
#: Seconds that a connection may take to end after it was closed.
LINGER: Final = 5.0


class Desk(Typed):
    """Who decides what becomes of defenders."""

    trust_domain: str

    def joins(self, request: bytes, source: str, binding: bytes) -> Deferred[bytes]:
        """A host asks to join, or a defender whose certificate has expired for another: the answer."""

    def greeted(self, visit: Visit, hello: Hello) -> None:
        """A defender has said HELLO: answer with its session's `welcome`, or `Visit.refuse`."""

    def heard(self, visit: Visit, message: Message | Expired) -> None:
        """A defender said something in an open session."""

    def left(self, visit: Visit, code: str, detail: str) -> None:
        """A visit that had greeted is over; `code` is that of an ERROR or GOAWAY, "" if there was none."""


class Door(Typed):
    """Who keeps count of connections."""

    def proven(self, visit: Visit) -> None:
        """The handshake is over."""

    def gone(self, visit: Visit) -> None:
        """The connection is gone."""


@implementer(IHandshakeListener)
class Visit:
    """See the module. `identity` is who came, once that is known; `session` then is the channel's.

    `due` is when `tick` is wanted, seconds of the reactor's clock; `handshaking` is true until TLS is up.
    There are thousands: it has slots, and nothing from Twisted's own `Protocol`.
    """

    log = Logger()
    __slots__ = (
        "_code",
        "_desk",
        "_detail",
        "_door",
        "_framer",
        "_greeted",
        "_over",
        "_seconds",
        "due",
        "handshaking",
        "identity",
        "session",
        "source",
        "transport",
    )

    def __init__(
        self, desk: Desk, door: Door, source: str, reactor: Any, patience: float, jitter: float
    ) -> None:
        self._desk = desk
        self._door = door
        self._seconds = reactor.seconds
        self.source = source
        self.transport: Any = None
        self.handshaking = True
        self.identity: PeerIdentity | None = None
        # Made now for its jitter; its greeting begins with the connection.
        self.session: ControllerSession | None = ControllerSession(reactor.seconds(), jitter=jitter)
        self.due: float = reactor.seconds() + patience
        self._framer: Framer | None = None
        self._greeted = False
        self._over = False
        self._code = ""
        self._detail = ""

    # -- from the connection

    def makeConnection(self, transport: Any) -> None:  # noqa: N802 - Twisted's name
        self.transport = transport

    def handshakeCompleted(self) -> None:  # noqa: N802 - Twisted's name
        self.handshaking = False
        self._door.proven(self)
        if chosen_protocol(self.transport) != ALPN:
            self.session = None
            self._framer = Framer(MAX_REQUEST)
            self.due = self._seconds() + JOIN_TIME
            return
        certificate = shown_certificate(self.transport)
        try:
            if certificate is None:
                raise IdentityError("no client certificate", "a defender shows its certificate")
            self.identity = check_defender(certificate, self._desk.trust_domain)
        except IdentityError as error:
            self.log.warn(
                "a peer at {source} is no defender of this fleet: {check}: {detail}",
                source=self.source,
                check=error.check,
                detail=error.detail,
            )
            self.refuse("refused", f"{error.check}: {error.detail}")
            return
        session = self.session
        if session is not None:
            session.begin(self._seconds())
            self.due = session.wake_at

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        if self._framer is not None:
            self._asked(self._framer, data)
        elif self.session is not None:
            self.perform(self.session.bytes_received(data, self._seconds()))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._over = True
        self._door.gone(self)
        if self._greeted:
            self._greeted = False
            self._desk.left(self, self._code, self._detail or reason.getErrorMessage())

    def tick(self) -> None:
        """`due` has come."""
        session = self.session
        if self._over or session is None or self.identity is None:
            # Neither the handshake nor what follows it came to an end.
            self.cut()
        else:
            self.perform(session.tick(self._seconds()))

    def cut(self) -> None:
        """End the connection now, if it is not over."""
        if not self._over:
            self.transport.abortConnection()

    # -- a session

    def say(self, outputs: Outputs) -> None:
        """Perform what an input of `session` gave."""
        if not self._over:
            self.perform(outputs)

    def refuse(self, code: str, detail: str) -> None:
        """End the session with an ERROR that says why."""
        if self.session is not None:
            self.say(self.session.fail(code, detail))

    def leave(self, code: str, detail: str, window: float) -> None:
        """End the session in good order; the defender comes back within `window` seconds."""
        if self.session is not None:
            self.say(self.session.go_away(self._seconds(), code, detail, window))

    def perform(self, outputs: Outputs) -> None:
        """Write, close, and tell the desk, in order."""
        for output in outputs:
            match output:
                case Send(data):
                    self.transport.write(data)
                case Close():
                    self._close(output)
                case Hello():
                    self._greeted = True
                    self._tell(output)
                case GoAway(code, detail):
                    self._code, self._detail = code, detail
                case Error(code, detail):
                    self._code, self._detail = code, detail
                case Pushed():
                    pass  # a defender's side has this; ours has not
                case _:
                    self._tell(output)
            if self._over:
                return
        if self.session is not None:
            self.due = self.session.wake_at

    def _tell(self, message: Message | Expired) -> None:
        try:
            if isinstance(message, Hello):
                self._desk.greeted(self, message)
            else:
                self._desk.heard(self, message)
        except Exception:  # noqa: BLE001 - one defender's fault must not end what others have to say
            self.log.failure("what a defender said could not be used")
            self.refuse("internal", "the controller failed; its log says more")

    def _close(self, close: Close) -> None:
        if not self._code:
            self._code, self._detail = close.code, close.detail
        if close.abort:
            self.cut()
            return
        self.transport.loseConnection()
        self._leave()

    def _leave(self) -> None:
        """Give the peer a while to take what was written."""
        self.session = self._framer = None
        self.due = self._seconds() + LINGER

    # -- joining

    def _asked(self, framer: Framer, data: bytes) -> None:
        try:
            requests = framer.feed(data)
        except FrameError:
            self.cut()
            return
        if not requests:
            return
        self._framer = None
        binding = channel_binding(self.transport, BINDING_LABEL, BINDING_SIZE)
        self.due = self._seconds() + JOIN_TIME

        def answered(answer: bytes) -> None:
            if not self._over:
                self.transport.write(frame(answer))
                self.transport.loseConnection()
                self._leave()

        def failed(failure: Failure) -> None:
            self.log.failure("a request to join could not be answered", failure)
            self.cut()

        self._desk.joins(requests[0], self.source, binding).addCallbacks(answered, failed)

"""One connection to the controller: bytes in, what the session makes of them out.

The session decides; this writes and closes. Everything the controller says goes to `Receiver`.
"""

from __future__ import annotations

from typing import Any
from typing import Protocol as Typed

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender.contract.defender_session import DefenderSession
from defender.contract.messages import Cmd, Error, EvAck, GoAway, Renewed, Snapshot, Welcome
from defender.contract.session import Close, Outputs, Pushed, Send

#: Seconds that a connection may take to end after it was closed.
LINGER = 5.0


class Receiver(Typed):
    """What becomes of what the controller says. Called in order; nothing is called after `lost`."""

    def welcomed(self, welcome: Welcome) -> None:
        """The session is open."""

    def pushed(self, push: Pushed) -> None:
        """An envelope has come; answered with `ChannelProtocol.session`'s `acknowledge` or `refuse`."""

    def shown(self, snapshot: Snapshot) -> None:
        """A snapshot has come."""

    def stored(self, acknowledged: EvAck) -> None:
        """Events are stored, or there are new credits."""

    def asked(self, command: Cmd) -> None:
        """A command has come; answered with the session's `answer`."""

    def renewed(self, answer: Renewed) -> None:
        """The answer to a request for certificates."""

    def lost(self, code: str, detail: str, window: float | None) -> None:
        """The connection is over: why, and within how many seconds to come back if the controller said so.

        `code` is that of an ERROR or a GOAWAY, "" for a connection that just ended.
        """


class ChannelProtocol(Protocol):
    """See the module. `seconds` never goes back; `session` may be used between `welcomed` and `lost`."""

    log = Logger()
    transport: Any

    def __init__(self, session: DefenderSession, receiver: Receiver, reactor: Any) -> None:
        self.session = session
        self._receiver = receiver
        self._reactor = reactor
        self._timer: IDelayedCall | None = None
        self._window: float | None = None
        self._code = ""
        self._detail = ""
        self._over = False

    # -- from the connection

    def connectionMade(self) -> None:
        self.session.begin(self._reactor.seconds())
        self.perform(self.session.start())

    def dataReceived(self, data: bytes) -> None:
        if not self._over:
            self.perform(self.session.bytes_received(data, self._reactor.seconds()))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._over = True
        self._receiver.lost(self._code, self._detail or reason.getErrorMessage(), self._window)

    # -- from this side

    def say(self, outputs: Outputs) -> None:
        """Perform what an input of `session` gave."""
        if not self._over:
            self.perform(outputs)

    def cut(self) -> None:
        """End the connection now, if it is not over."""
        if not self._over:
            self.transport.abortConnection()

    def leave(self, code: str, detail: str) -> None:
        """Close in good order."""
        self.say(self.session.go_away(self._reactor.seconds(), code, detail))

    def perform(self, outputs: Outputs) -> None:
        """Write, close, and tell the receiver, in order."""
        for output in outputs:
            match output:
                case Send(data):
                    self.transport.write(data)
                case Close():
                    self._close(output)
                case GoAway(code, detail, window):
                    self._code, self._detail, self._window = code, detail, window
                case Error(code, detail):
                    self._code, self._detail = code, detail
                case _:
                    self._tell(output)
            if self._over:
                return
        self._look_at_the_clock()

    def _tell(self, output: object) -> None:
        receiver = self._receiver
        try:
            match output:
                case Welcome():
                    receiver.welcomed(output)
                case Pushed():
                    receiver.pushed(output)
                case Snapshot():
                    receiver.shown(output)
                case EvAck():
                    receiver.stored(output)
                case Cmd():
                    receiver.asked(output)
                case Renewed():
                    receiver.renewed(output)
        except Exception:  # noqa: BLE001 - a fault in one part must not end the channel for the others
            self.log.failure("the controller's {what} could not be used", what=type(output).__name__)

    def _close(self, close: Close) -> None:
        if not self._code:
            self._code, self._detail = close.code, close.detail
        if close.abort:
            self.cut()
            return
        self.transport.loseConnection()
        # The peer may never take what is written: it is not waited for.
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._reactor.callLater(LINGER, self.cut)

    # -- time

    def _look_at_the_clock(self) -> None:
        """Have the session's timer run, no later than it wants; one that is early costs nothing."""
        if self.session.is_closed:
            return
        wanted = self.session.wake_at
        if self._timer is not None and self._timer.active():
            if self._timer.getTime() <= wanted:
                return
            self._timer.cancel()
        delay = max(0.0, wanted - self._reactor.seconds())
        self._timer = self._reactor.callLater(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.perform(self.session.tick(self._reactor.seconds()))

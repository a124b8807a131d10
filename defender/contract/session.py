"""A session of the channel `dfleet/1`: what both sides of it do. docs/specification/channel.md is normative.

Inputs in, outputs out: each input returns what the caller has to do, in order. `Send` and `Close` are for
the connection; everything else is news: the peer's messages as they came, and a few of this module. The two
sides are `defender_session.DefenderSession` and `controller_session.ControllerSession`.

Invariants:

* Time is an argument, in seconds of a clock that never goes back. `wake_at` says when `tick` is wanted. Only
  inputs make that earlier: who looks after each of them can leave a timer running that is too early.
* After `Close` nothing is said any more: every input returns [].
* A peer that breaks a rule is told so with ERROR, and `Close` says the same here. Nothing that it sends
  raises.
* What is begun here and is not possible raises SessionError: the caller looks at `is_open` and the credits.

States: *greeting* (HELLO and WELCOME are not both there), *open*, *leaving* (a GOAWAY went either way: what
was begun is completed, nothing is begun), *closed*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, ClassVar, Final, TypeAlias

from defender.contract.errors import ContractError, one_line
from defender.contract.framing import FRAME_LIMIT, ChannelError, Framer
from defender.contract.message_bytes import decode_message, message_frame
from defender.contract.messages import (
    DEFAULT_WINDOW,
    MAX_DETAIL,
    NEWEST,
    Error,
    GoAway,
    Message,
    Ping,
    Pong,
)

#: Seconds without a byte from the peer after which it is asked for one, give or take `PING_SPREAD` of it, and
#: after which it is given up.
PING_AFTER: Final = 15.0
PING_SPREAD: Final = 0.2
DEAD_AFTER: Final = 45.0
#: Seconds until a session must be open, and until it is closed after a GOAWAY.
GREETING_TIME: Final = 10.0
LEAVING_TIME: Final = 5.0


class SessionError(ContractError):
    """The caller asked for what the session cannot do now."""


class State(Enum):
    """See the module."""

    GREETING = "greeting"
    OPEN = "open"
    LEAVING = "leaving"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes. They may be shared with other sessions."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection: after what was sent, or at once if `abort`. Always the last output.

    `code` is that of an ERROR (the peer's if `by_peer`), or "leaving" after a GOAWAY; `detail` is one line
    for people.
    """

    code: str
    detail: str
    by_peer: bool = False
    abort: bool = False


@dataclass(frozen=True, slots=True)
class Pushed:
    """All of an envelope has come. It is answered with `acknowledge` or `refuse`."""

    stream: str
    nonce: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Expired:
    """No RESULT came in time for the command with this number. One that still comes is not shown."""

    number: int


Output: TypeAlias = Send | Close | Pushed | Expired | Message
Outputs: TypeAlias = list[Output]


Receiver: TypeAlias = Callable[[Any, Any, float, Outputs], None]


class PeerError(ChannelError):
    """The peer broke a rule. Raised and caught within a session."""

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        super().__init__(detail)


class ChannelSession:
    """What both sides do: frames, timers, PING, GOAWAY, ERROR.

    `jitter`, from -1 to 1, is chosen by chance for each session, so that thousands do not PING together.
    """

    __slots__ = (
        "_asked_to_leave",
        "_framer",
        "_heard",
        "_jitter",
        "_leave_at",
        "_ping_sent",
        "_pinged",
        "_token",
        "dead_after",
        "ping_after",
        "revision",
        "round_trip",
        "state",
    )

    #: What may come, and from these, what may come before the session is open.
    _receivers: ClassVar[Mapping[type, Receiver]] = {}
    _in_greeting: ClassVar[frozenset[type]] = frozenset()

    def __init__(self, now: float, *, jitter: float = 0.0) -> None:
        self.state = State.GREETING
        #: The revision of the protocol, agreed on once the session is open.
        self.revision = NEWEST
        #: Seconds that the last PONG took, None before the first.
        self.round_trip: float | None = None
        self._framer = Framer()
        self._heard = now
        self._jitter = min(max(jitter, -1.0), 1.0)
        # When the greeting must be over, and then, when the leaving must be.
        self._leave_at = now + GREETING_TIME
        self._asked_to_leave = False
        self._token = 0
        self._ping_sent = 0.0
        self._pinged = now
        self.dead_after = DEAD_AFTER
        self.ping_after = 0.0
        self._set_timers(PING_AFTER, DEAD_AFTER)

    # -- inputs

    def begin(self, now: float) -> None:
        """The connection is up, and the peer is who it should be: the time for the greeting begins now.

        Wanted where the session was made before that: a handshake may wait long among thousands.
        """
        if self.state is State.GREETING:
            self._heard = now
            self._leave_at = now + GREETING_TIME

    def bytes_received(self, data: bytes, now: float) -> Outputs:
        """Bytes came from the peer."""
        outputs: Outputs = []
        if self.is_closed:
            return outputs
        self._heard = now
        framer = self._framer
        framer.add(data)
        try:
            while (payload := framer.next()) is not None:
                message = decode_message(payload, self.revision)
                if message is None:
                    continue
                receive = self._receivers.get(type(message))
                if receive is None:
                    raise PeerError("order", f"{_title(message)} is not for this side to receive")
                if self.state is State.GREETING and type(message) not in self._in_greeting:
                    raise PeerError("order", f"{_title(message)} came before the greeting was over")
                receive(self, message, now, outputs)
                if self._is_over():
                    return outputs
        except ChannelError as error:
            self._end(error.code, str(error), outputs)
            return outputs
        self._leave_if_done(outputs)
        return outputs

    def tick(self, now: float) -> Outputs:
        """Time has passed; wanted at `wake_at`, harmless at any other time."""
        outputs: Outputs = []
        if self.is_closed or now < self.wake_at:
            return outputs
        if self.state is not State.OPEN and now >= self._leave_at:
            if self.state is State.GREETING:
                self._end("timeout", f"there was no greeting within {GREETING_TIME:g} s", outputs)
            else:
                self._close(Close("leaving", "the time for leaving is over"), outputs)
        elif now >= self._heard + self.dead_after:
            detail = f"nothing was heard for {self.dead_after:g} s"
            self._say(Error("timeout", detail), outputs)
            self._close(Close("timeout", detail, abort=True), outputs)
        else:
            if self.state is State.OPEN and now >= self._ping_due:
                self._token += 1
                self._pinged = self._ping_sent = now
                self._say(Ping(self._token), outputs)
            self._tick(now, outputs)
        return outputs

    @property
    def wake_at(self) -> float:
        """When `tick` is wanted; infinite once closed."""
        if self.is_closed:
            return inf
        dead = self._heard + self.dead_after
        if self.state is State.OPEN:
            return min(dead, self._ping_due, self._next_tick())
        return min(dead, self._leave_at, self._next_tick())

    def go_away(self, now: float, code: str, detail: str, window: float = DEFAULT_WINDOW) -> Outputs:
        """Leave in good order; the peer may come back within `window` seconds. Again: nothing happens."""
        outputs: Outputs = []
        if self.state in (State.GREETING, State.OPEN):
            self._say(GoAway(code, shortened(detail), window), outputs)
            if self.state is State.GREETING:
                self._close(Close("leaving", shortened(detail)), outputs)
            else:
                self._leave(now)
        return outputs

    def fail(self, code: str, detail: str) -> Outputs:
        """Send ERROR and close: this session is superseded, its defender was removed, or what it sent is
        wrong in a way that only the caller sees."""
        outputs: Outputs = []
        if not self.is_closed:
            self._end(code, detail, outputs)
        return outputs

    def silence(self, now: float) -> float:
        """Seconds since a byte came from the peer."""
        return max(0.0, now - self._heard)

    @property
    def _ping_due(self) -> float:
        return max(self._heard, self._pinged) + self.ping_after

    @property
    def is_closed(self) -> bool:
        """Whether the session is over."""
        return self.state is State.CLOSED

    @property
    def is_open(self) -> bool:
        """Whether something may be begun: pushed, sent, asked for."""
        return self.state is State.OPEN

    def _is_over(self) -> bool:
        """`is_closed`, of which mypy does not believe that an input changes it."""
        return self.state is State.CLOSED

    # -- for the two sides

    def _tick(self, now: float, outputs: Outputs) -> None:
        """What else time brings."""

    def _next_tick(self) -> float:
        """When `_tick` is wanted."""
        return inf

    def _is_done(self) -> bool:
        """Whether everything that was begun is completed."""
        return True

    def _say(self, message: Message, outputs: Outputs) -> None:
        outputs.append(Send(message_frame(message, self.revision)))

    def _must_be_open(self) -> None:
        if self.state is not State.OPEN:
            raise SessionError(f"the session is {self.state.value}, nothing can be begun")

    def _opened(self, now: float) -> None:
        """The greeting is over."""
        self.state = State.OPEN
        self._framer.limit = FRAME_LIMIT
        self._pinged = now

    def _set_timers(self, ping_after: float, dead_after: float) -> None:
        self.dead_after = dead_after
        self.ping_after = ping_after * (1 + PING_SPREAD * self._jitter)

    def _leave(self, now: float) -> None:
        self.state = State.LEAVING
        self._leave_at = now + LEAVING_TIME

    def _leave_if_done(self, outputs: Outputs) -> None:
        """The side that was told to go closes as soon as everything that was begun is completed."""
        if self._asked_to_leave and self.state is State.LEAVING and self._is_done():
            self._close(Close("leaving", "the peer asked for it", by_peer=True), outputs)

    def _receive_ping(self, message: Ping, now: float, outputs: Outputs) -> None:
        self._say(Pong(message.token), outputs)

    def _receive_pong(self, message: Pong, now: float, outputs: Outputs) -> None:
        if self._ping_sent and message.token in (self._token, 0):
            self.round_trip = now - self._ping_sent
            self._ping_sent = 0.0

    def _receive_go_away(self, message: GoAway, now: float, outputs: Outputs) -> None:
        outputs.append(message)
        if self.state is State.GREETING:
            self._close(Close("leaving", shortened(message.detail), by_peer=True), outputs)
            return
        self._asked_to_leave = True
        if self.state is State.OPEN:
            self._leave(now)

    def _receive_error(self, message: Error, now: float, outputs: Outputs) -> None:
        self._close(Close(message.code, shortened(message.detail), by_peer=True), outputs)

    def _end(self, code: str, detail: str, outputs: Outputs) -> None:
        """Say ERROR and close."""
        detail = shortened(detail)
        self._say(Error(code, detail), outputs)
        self._close(Close(code, detail), outputs)

    def _close(self, close: Close, outputs: Outputs) -> None:
        self.state = State.CLOSED
        self._framer = Framer()
        outputs.append(close)


#: What both sides receive.
RECEIVERS: Final[Mapping[type, Receiver]] = {
    Ping: ChannelSession._receive_ping,
    Pong: ChannelSession._receive_pong,
    GoAway: ChannelSession._receive_go_away,
    Error: ChannelSession._receive_error,
}


def _title(message: Message) -> str:
    return type(message).__name__.upper()


def shortened(detail: str) -> str:
    """A detail as one line that fits a message."""
    return one_line(detail)[:MAX_DETAIL]

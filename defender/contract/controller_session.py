"""The controller's side of a session: see `session`.

The HELLO is given to the caller, who finds out who that is and answers with `welcome`. Of the sessions of one
defender the newest counts: the caller numbers them (`generation`), ends the older with `supersede`, and takes
nothing in that an older one still has to say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Final

from defender.contract.message_bytes import knows
from defender.contract.message_fields import Cursor
from defender.contract.messages import (
    MAX_CREDIT_BYTES,
    MAX_CREDIT_EVENTS,
    NEWEST,
    OLDEST,
    Ack,
    Cmd,
    Commit,
    Error,
    EvAck,
    Events,
    GoAway,
    Hello,
    Nack,
    Renew,
    Renewed,
    Result,
    Status,
    Welcome,
)
from defender.contract.session import (
    DEAD_AFTER,
    PING_AFTER,
    RECEIVERS,
    ChannelSession,
    Expired,
    Outputs,
    PeerError,
    Receiver,
    Send,
    SessionError,
    State,
    shortened,
)
from defender.contract.spool import RECORD_OVERHEAD

#: What a defender may have on its way: 4 full EVENTS, and their bytes.
CREDIT_EVENTS: Final = 4 * 200
CREDIT_BYTES: Final = 8 * 1024 * 1024
#: Commands that may wait for their RESULT.
MAX_COMMANDS: Final = 64

_NOWHERE: Final = Cursor(0, 0, bytes(32))


@dataclass(frozen=True, slots=True)
class _Received:
    """An EVENTS that is not acknowledged: its last record, and what it used of the credits."""

    epoch: int
    last_seq: int
    events: int
    size: int


class ControllerSession(ChannelSession):
    """The controller's side. `newest` is the newest revision of the protocol that it speaks."""

    __slots__ = (
        "_acknowledged",
        "_commands",
        "_greeted",
        "_last_command",
        "_newest",
        "_newest_heard",
        "_outstanding",
        "_received",
        "_renewing",
        "_streams",
        "_waiting",
        "credit_bytes",
        "credit_events",
        "generation",
    )

    def __init__(self, now: float, *, jitter: float = 0.0, newest: int = NEWEST) -> None:
        super().__init__(now, jitter=jitter)
        self.generation = 0
        #: What the defender may still send: records, and their bytes.
        self.credit_events = 0
        self.credit_bytes = 0
        self._newest = newest
        self._greeted = False
        self._streams: frozenset[str] = frozenset()
        self._acknowledged = _NOWHERE
        self._received: deque[_Received] = deque()
        self._newest_heard = (0, 0)
        # Of each stream the push that is not answered, and the newest of those that wait for that.
        self._outstanding: dict[str, int] = {}
        self._waiting: dict[str, tuple[int, Sequence[bytes]]] = {}
        self._renewing = False
        # The commands without RESULT, and until when one is waited for.
        self._commands: dict[int, float] = {}
        self._last_command = 0

    # -- inputs

    def welcome(
        self,
        now: float,
        *,
        generation: int,
        version: str,
        time: int,
        cursor: Cursor | None,
        events: int = CREDIT_EVENTS,
        size: int = CREDIT_BYTES,
        ping_after: float = PING_AFTER,
        dead_after: float = DEAD_AFTER,
        capabilities: tuple[str, ...] = (),
    ) -> Outputs:
        """Answer the HELLO; see `messages.Welcome` for the arguments. Nothing if the session is over."""
        outputs: Outputs = []
        if self.is_closed:
            return outputs
        if self.state is not State.GREETING or not self._greeted:
            raise SessionError("there is no HELLO to answer")
        if dead_after < 2 * ping_after:
            raise SessionError("a session is dead after at least twice the time until a PING")
        self._say(
            Welcome(
                self.revision,
                *(generation, version, time, cursor, events, size, ping_after, dead_after, capabilities),
            ),
            outputs,
        )
        self.generation = generation
        self.credit_events, self.credit_bytes = events, size
        self._acknowledged = cursor or _NOWHERE
        self._set_timers(ping_after, dead_after)
        self._opened(now)
        return outputs

    def takes(self, stream: str) -> bool:
        """Whether the defender knows the stream."""
        return stream in self._streams

    def push(self, stream: str, nonce: int, frames: Sequence[bytes]) -> Outputs:
        """Push an envelope: `frames` are those of `push_frames`, shared by all sessions.

        It waits while an earlier one of the stream is not answered; of several that wait, the last counts,
        and nothing is ever heard of the others.
        """
        self._must_be_open()
        if stream not in self._streams:
            raise SessionError(f"the defender does not take the stream {stream}")
        if stream in self._outstanding:
            self._waiting[stream] = (nonce, frames)
            return []
        self._outstanding[stream] = nonce
        return [Send(each) for each in frames]

    def show(self, snapshot: bytes) -> Outputs:
        """Send a snapshot: the frame of `snapshot_frame`, shared by all sessions."""
        self._must_be_open()
        return [Send(snapshot)]

    def acknowledge_events(
        self, epoch: int, through: int, chain: bytes, *, events: int | None = None, size: int | None = None
    ) -> Outputs:
        """Everything up to the record `through` is stored: it is the last of an EVENTS, `chain` its chain.

        The defender gets back the credits that it used, or those that are given. Whoever gives less must
        `grant` the rest some time: with less than a record's size nothing moves.
        """
        outputs: Outputs = []
        if self.is_closed:
            return outputs
        used_events = used_size = 0
        if not any((each.epoch, each.last_seq) == (epoch, through) for each in self._received):
            raise SessionError(f"no EVENTS that waits ends with record {through} of epoch {epoch:016x}")
        last = (0, 0)
        while last != (epoch, through):
            each = self._received.popleft()
            used_events += each.events
            used_size += each.size
            last = (each.epoch, each.last_seq)
        self._acknowledged = Cursor(epoch, through, chain)
        self._grant(used_events if events is None else events, used_size if size is None else size, outputs)
        self._leave_if_done(outputs)
        return outputs

    def grant(self, events: int, size: int) -> Outputs:
        """Give credits that were withheld."""
        outputs: Outputs = []
        if not self.is_closed:
            self._grant(events, size, outputs)
        return outputs

    def renewed(self, chain: tuple[bytes, ...], server_chain: tuple[bytes, ...] = ()) -> Outputs:
        """Answer a `Renew` with certificates."""
        return self._renewed(Renewed(chain, server_chain, "", ""))

    def refuse_renewal(self, code: str, detail: str) -> Outputs:
        """Answer a `Renew` with the reason why there are none."""
        return self._renewed(Renewed((), (), code, shortened(detail)))

    def command(
        self, now: float, verb: str, arguments: Mapping[str, Any], timeout: float
    ) -> tuple[int, Outputs]:
        """Ask for something; gives the number that the `Result` or `Expired` will have.

        SessionError where the session is not open, revision 0 is spoken or too many commands wait.
        """
        self._must_be_open()
        if not knows(self.revision, Cmd):
            raise SessionError(f"a defender of revision {self.revision} takes no commands")
        if len(self._commands) >= MAX_COMMANDS:
            raise SessionError(f"{MAX_COMMANDS} commands wait for the defender")
        number = self._last_command + 1
        outputs: Outputs = []
        self._say(Cmd(number, timeout, verb, arguments), outputs)
        self._last_command = number
        self._commands[number] = now + timeout
        return number, outputs

    def supersede(self) -> Outputs:
        """A newer session of this defender has been welcomed."""
        return self.fail("superseded", "a newer session of this defender took the place of this one")

    @property
    def unacknowledged(self) -> int:
        """How many EVENTS are not acknowledged."""
        return len(self._received)

    # -- what the defender says

    def _receive_hello(self, message: Hello, now: float, outputs: Outputs) -> None:
        if self._greeted:
            raise PeerError("order", "a second HELLO")
        revision = min(message.newest, self._newest)
        if revision < max(message.oldest, OLDEST):
            raise PeerError(
                "revision",
                f"the defender speaks revisions {message.oldest} to {message.newest} of the channel,"
                f" the controller {OLDEST} to {self._newest}",
            )
        self._greeted = True
        self.revision = revision
        self._streams = frozenset(message.positions)
        outputs.append(message)

    def _receive_answer(self, message: Ack | Nack, now: float, outputs: Outputs) -> None:
        stream = message.stream
        if self._outstanding.get(stream) != message.nonce:
            raise PeerError("order", f"an answer to a PUSH of the stream {stream} that was not sent")
        del self._outstanding[stream]
        outputs.append(message)
        waiting = self._waiting.pop(stream, None)
        if waiting is not None and self.state is State.OPEN:
            outputs.extend(self.push(stream, *waiting))

    def _receive_events(self, message: Events, now: float, outputs: Outputs) -> None:
        size, last = len(message.records), message.first_seq + message.count - 1
        if message.count > self.credit_events or size > self.credit_bytes:
            raise PeerError(
                "credit", f"EVENTS of {message.count} records and {size} bytes is beyond the credits"
            )
        if size <= message.count * RECORD_OVERHEAD:
            raise PeerError("message", f"EVENTS cannot have {message.count} records in {size} bytes")
        # What was stored before this session may come again: a spool that was put back from a copy shows it.
        epoch, at = self._newest_heard
        if message.epoch == epoch and message.first_seq <= at:
            raise PeerError("order", f"EVENTS repeats record {message.first_seq}")
        self._newest_heard = (message.epoch, last)
        self.credit_events -= message.count
        self.credit_bytes -= size
        self._received.append(_Received(message.epoch, last, message.count, size))
        outputs.append(message)

    def _receive_renew(self, message: Renew, now: float, outputs: Outputs) -> None:
        if self._renewing:
            raise PeerError("order", "RENEW before the one before was answered")
        self._renewing = True
        outputs.append(message)

    def _receive_result(self, message: Result, now: float, outputs: Outputs) -> None:
        if message.number > self._last_command:
            raise PeerError("order", f"RESULT of the command {message.number}, which was not sent")
        # One that is not there any more came too late.
        if self._commands.pop(message.number, None) is not None:
            outputs.append(message)

    def _receive_news(self, message: Commit | Status, now: float, outputs: Outputs) -> None:
        outputs.append(message)

    # -- for the base

    def _tick(self, now: float, outputs: Outputs) -> None:
        for number in [number for number, until in self._commands.items() if now >= until]:
            del self._commands[number]
            outputs.append(Expired(number))

    def _next_tick(self) -> float:
        return min(self._commands.values()) if self._commands else inf

    def _is_done(self) -> bool:
        return not self._received

    def _grant(self, events: int, size: int, outputs: Outputs) -> None:
        if self.credit_events + events > MAX_CREDIT_EVENTS or self.credit_bytes + size > MAX_CREDIT_BYTES:
            raise SessionError("more credits than may be granted")
        self.credit_events += events
        self.credit_bytes += size
        self._say(EvAck(*self._acknowledged, events, size), outputs)

    def _renewed(self, message: Renewed) -> Outputs:
        outputs: Outputs = []
        if self.is_closed:
            return outputs
        if not self._renewing:
            raise SessionError("no RENEW waits for an answer")
        self._say(message, outputs)
        self._renewing = False
        return outputs

    _receivers: ClassVar[Mapping[type, Receiver]] = {
        **RECEIVERS,
        Hello: _receive_hello,
        Ack: _receive_answer,
        Nack: _receive_answer,
        Events: _receive_events,
        Renew: _receive_renew,
        Commit: _receive_news,
        Result: _receive_result,
        Status: _receive_news,
    }
    _in_greeting: ClassVar[frozenset[type]] = frozenset({Hello, GoAway, Error})

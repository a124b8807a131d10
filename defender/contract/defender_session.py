"""The defender's side of a session: see `session`.

It begins with `start`. After the WELCOME, which is given to the caller, it sends events as far as the credits
go, and answers every `Pushed` and `Cmd`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from defender.contract.message_bytes import knows
from defender.contract.message_fields import Cursor, Opening, Position
from defender.contract.messages import (
    MAX_CREDIT_BYTES,
    MAX_CREDIT_EVENTS,
    NEWEST,
    Ack,
    Cmd,
    Commit,
    Error,
    EvAck,
    Events,
    GoAway,
    Hello,
    Nack,
    Push,
    Renew,
    Renewed,
    Result,
    Snapshot,
    Status,
    Welcome,
)
from defender.contract.session import (
    RECEIVERS,
    ChannelSession,
    Outputs,
    PeerError,
    Pushed,
    Receiver,
    SessionError,
    State,
    shortened,
)

#: Commands that may wait for their RESULT.
MAX_COMMANDS: Final = 64


@dataclass(slots=True)
class _Partial:
    """An envelope of which chunks are missing."""

    nonce: int
    count: int
    size: int
    held: int = 0
    chunks: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Sent:
    """An EVENTS that is not acknowledged: the place of its last record, and what it used of the credits."""

    epoch: int
    last_seq: int
    chain: bytes
    events: int
    size: int


class DefenderSession(ChannelSession):
    """The defender's side. `hello` is what it says first."""

    __slots__ = (
        "_acknowledged",
        "_commands",
        "_due",
        "_flight",
        "_hello",
        "_last_command",
        "_partial",
        "credit_bytes",
        "credit_events",
    )

    def __init__(self, now: float, hello: Hello, *, jitter: float = 0.0) -> None:
        super().__init__(now, jitter=jitter)
        self._hello = hello
        #: What may still be sent: records, and their bytes.
        self.credit_events = 0
        self.credit_bytes = 0
        self._acknowledged: Cursor | None = None
        self._flight: deque[_Sent] = deque()
        self._partial: dict[str, _Partial] = {}
        # The push of each stream that is to be answered.
        self._due: dict[str, int] = {}
        self._commands: set[int] = set()
        self._last_command = 0

    # -- inputs

    def start(self) -> Outputs:
        """The connection is there, and the peer is who it should be. Once, before anything else."""
        outputs: Outputs = []
        self._say(self._hello, outputs)
        return outputs

    def acknowledge(self, stream: str, nonce: int, position: Position) -> Outputs:
        """A `Pushed` was verified, is on disk and active."""
        return self._answer(stream, nonce, Ack(stream, nonce, position))

    def refuse(self, stream: str, nonce: int, code: str, detail: str, kept: Position) -> Outputs:
        """A `Pushed` was refused, and the stream stays where it is."""
        return self._answer(stream, nonce, Nack(stream, nonce, code, shortened(detail), kept))

    def send_events(
        self,
        epoch: int,
        first_seq: int,
        count: int,
        previous: bytes,
        records: bytes,
        chain: bytes,
        *,
        opening: Opening | None = None,
        lost: str = "",
    ) -> Outputs:
        """Send `count` records as the spool has them; `chain` is that of the last one.

        The other arguments are as in `messages.Events`. SessionError if the session is not open or the
        credits do not suffice.
        """
        self._must_be_open()
        if count > self.credit_events or len(records) > self.credit_bytes:
            raise SessionError(
                f"{count} records of {len(records)} bytes are beyond the credits of"
                f" {self.credit_events} records and {self.credit_bytes} bytes"
            )
        outputs: Outputs = []
        lost = shortened(lost)
        self._say(Events(epoch, first_seq, count, previous, opening, lost, records), outputs)
        self._flight.append(_Sent(epoch, first_seq + count - 1, chain, count, len(records)))
        self.credit_events -= count
        self.credit_bytes -= len(records)
        return outputs

    def renew(self, request: bytes, server_request: bytes = b"") -> Outputs:
        """Ask for new certificates; the answer is a `Renewed`."""
        self._must_be_open()
        outputs: Outputs = []
        self._say(Renew(request, server_request), outputs)
        return outputs

    def commit(self, serial: str) -> Outputs:
        """The new certificates are on disk."""
        self._must_be_open()
        outputs: Outputs = []
        self._say(Commit(serial), outputs)
        return outputs

    def report(self, state: Mapping[str, Any]) -> Outputs:
        """Say what the defender is doing; nothing is sent to a controller of revision 0."""
        self._must_be_open()
        outputs: Outputs = []
        if knows(self.revision, Status):
            self._say(Status(state), outputs)
        return outputs

    def answer(
        self, number: int, ok: bool, value: Mapping[str, Any], *, code: str = "", detail: str = ""
    ) -> Outputs:
        """The outcome of the `Cmd` with this number."""
        outputs: Outputs = []
        if self.is_closed:
            return outputs
        if number not in self._commands:
            raise SessionError(f"no command {number} waits for its result")
        self._say(Result(number, ok, code, shortened(detail), value), outputs)
        self._commands.discard(number)
        self._leave_if_done(outputs)
        return outputs

    @property
    def in_flight(self) -> int:
        """How many EVENTS are not acknowledged."""
        return len(self._flight)

    # -- what the controller says

    def _receive_welcome(self, message: Welcome, now: float, outputs: Outputs) -> None:
        if self.state is not State.GREETING:
            raise PeerError("order", "a second WELCOME")
        if not self._hello.oldest <= message.revision <= min(self._hello.newest, NEWEST):
            raise PeerError("revision", f"WELCOME chose revision {message.revision}, which was not offered")
        if message.dead_after < 2 * message.ping_after:
            raise PeerError("message", "WELCOME: the field dead_after is less than twice ping_after")
        self.revision = message.revision
        self._set_timers(message.ping_after, message.dead_after)
        self.credit_events, self.credit_bytes = message.events, message.size
        self._acknowledged = message.cursor
        self._opened(now)
        outputs.append(message)

    def _receive_push(self, message: Push, now: float, outputs: Outputs) -> None:
        stream = message.stream
        if stream not in self._hello.positions:
            raise PeerError("order", f"PUSH of the stream {stream}, which HELLO does not name")
        if stream in self._due:
            raise PeerError("order", f"PUSH of the stream {stream} before the one before was answered")
        partial = self._partial.get(stream)
        if partial is None:
            partial = self._partial[stream] = _Partial(message.nonce, message.count, message.size)
        wanted = (partial.nonce, len(partial.chunks), partial.count, partial.size)
        partial.held += len(message.chunk)
        if wanted != (message.nonce, message.index, message.count, message.size):
            raise PeerError("order", f"a chunk of the stream {stream} is not the next one")
        if partial.held > partial.size:
            raise PeerError("order", f"the chunks of the stream {stream} are more than they should be")
        partial.chunks.append(message.chunk)
        if len(partial.chunks) < partial.count:
            return
        if partial.held != partial.size:
            raise PeerError("order", f"the chunks of the stream {stream} are less than they should be")
        del self._partial[stream]
        self._due[stream] = message.nonce
        envelope = partial.chunks[0] if partial.count == 1 else b"".join(partial.chunks)
        outputs.append(Pushed(stream, message.nonce, envelope))

    def _receive_ev_ack(self, message: EvAck, now: float, outputs: Outputs) -> None:
        before = self._acknowledged or (0, 0)
        if (message.epoch, message.through) != before[:2]:
            while self._flight:
                sent = self._flight.popleft()
                if (sent.epoch, sent.last_seq) == (message.epoch, message.through):
                    break
            else:
                raise PeerError("order", "EVACK of records that are not on their way")
            if message.chain != sent.chain:
                raise PeerError("chain", f"EVACK has another chain at record {sent.last_seq} than the spool")
            self._acknowledged = Cursor(sent.epoch, sent.last_seq, sent.chain)
        self.credit_events += message.events
        self.credit_bytes += message.size
        if self.credit_events > MAX_CREDIT_EVENTS or self.credit_bytes > MAX_CREDIT_BYTES:
            raise PeerError("credit", "EVACK grants more than may be granted")
        outputs.append(message)

    def _receive_cmd(self, message: Cmd, now: float, outputs: Outputs) -> None:
        if message.number <= self._last_command:
            raise PeerError("order", f"CMD {message.number} came after CMD {self._last_command}")
        if len(self._commands) >= MAX_COMMANDS:
            raise PeerError("order", f"more than {MAX_COMMANDS} CMD wait for their RESULT")
        self._last_command = message.number
        self._commands.add(message.number)
        outputs.append(message)

    def _receive_news(self, message: Snapshot | Renewed, now: float, outputs: Outputs) -> None:
        outputs.append(message)

    # -- for the base

    def _is_done(self) -> bool:
        return not self._flight and not self._due and not self._commands

    def _answer(self, stream: str, nonce: int, answer: Ack | Nack) -> Outputs:
        outputs: Outputs = []
        if self.is_closed:
            return outputs
        if self._due.get(stream) != nonce:
            raise SessionError(f"no push {nonce} of the stream {stream} waits for an answer")
        self._say(answer, outputs)
        del self._due[stream]
        self._leave_if_done(outputs)
        return outputs

    _receivers: ClassVar[Mapping[type, Receiver]] = {
        **RECEIVERS,
        Welcome: _receive_welcome,
        Push: _receive_push,
        Snapshot: _receive_news,
        EvAck: _receive_ev_ack,
        Renewed: _receive_news,
        Cmd: _receive_cmd,
    }
    _in_greeting: ClassVar[frozenset[type]] = frozenset({Welcome, GoAway, Error})

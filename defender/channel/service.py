"""The defender's link to its controller: dials, keeps the session, comes back, ships what the journal has.

Whether there is a link decides nothing about what is allowed: a defender without one goes on with the bundles
that it has. What the controller pushes is verified elsewhere (`defender.bundles`); here it is only passed on.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from typing import Protocol as Typed

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender.audit.commands import SegmentFile
from defender.audit.shipping import Batch, Shipping
from defender.channel.protocol import ChannelProtocol
from defender.contract.defender_session import DefenderSession
from defender.contract.errors import ContractError
from defender.contract.message_fields import Cursor, Opening, Position
from defender.contract.messages import Cmd, EvAck, Hello, Renewed, Snapshot, Welcome
from defender.contract.reconnecting import Reconnect
from defender.contract.session import Outputs, Pushed, SessionError

#: Seconds that a controller may take to close the connection at our stop.
GOODBYE = 2.0

#: Seconds between two looks at what the controller is told of this defender.
LOOK_EVERY = 5.0
#: The least seconds between two of its states that differ in counts alone.
COUNTS_EVERY = 60.0
_COUNTS: Final = frozenset({"streams"})


class Spool(Typed):
    """What is shipped; `defender.audit.journal.Journal` is one."""

    moved: Callable[[], object]

    def on_disk(self) -> tuple[list[SegmentFile], int, int]:
        """Segments in order, the present epoch, its last durable number."""

    def disputes(self, epoch: int, seq: int, chain: bytes) -> bool:
        """Whether the controller's last record of us cannot be one of these; a new epoch begins then."""

    def delivered(self, epoch: int, seq: int) -> None:
        """The controller has all records up to this one."""

    def fetch(self, name: str, offset: int, size: int, took: Callable[[bytes | None], object]) -> None:
        """Read bytes of a segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """What the link is given: how to dial, what to say of the defender, and who takes what comes.

    `connect` makes a connection whose peer was checked before anything is sent, with the credentials of the
    moment; it fails with whatever says why not. `answer` of a command may be a Deferred, and raises
    ContractError for one that cannot be done. `changed` hears of every change of `ControllerLink.status`.
    """

    connect: Callable[[Factory[Any]], Deferred[Any]]
    hello: Callable[[], Hello]
    pushed: Callable[[str, int, bytes], object]
    snapshot: Callable[[bytes], object]
    answer: Callable[[Cmd], object]
    renewed: Callable[[Renewed], object]
    state: Callable[[], Mapping[str, Any]]
    changed: Callable[[], object]
    chance: Callable[[], float] = field(default=random.random)


class ControllerLink(Service):
    """See the module. Implements `defender.channel.protocol.Receiver`.

    `connected` is whether a session is open, `problem` why none is, `since` when that began (monotonic).
    `cursor` is the last record that the controller said it has, `shipped` counts those that it took from us.
    """

    log = Logger()

    def __init__(self, reactor: Any, spool: Spool, uses: Uses) -> None:
        self.setName("controller-link")
        self.connected = False
        self.problem = "not tried yet"
        self.since = reactor.seconds()
        self.cursor: Cursor | None = None
        self.shipped = 0
        self._reactor = reactor
        self._spool = spool
        self._uses = uses
        self._reconnect = Reconnect()
        self._attempt: Deferred[Any] | None = None
        self._protocol: ChannelProtocol | None = None
        self._call: IDelayedCall | None = None
        self._shipping = Shipping()
        self._batches: deque[Batch] = deque()
        self._in_flight: deque[Batch] = deque()
        self._opened_epoch = 0
        self._said: Mapping[str, Any] | None = None
        self._said_at = 0.0
        # Somebody on the host may have changed where it listens; the disk of its spool may fail.
        self._looking = LoopingCall(self.report)
        self._looking.clock = reactor
        self._gone: Deferred[None] | None = None
        self._is_placed = False  # where shipping begins is known
        self._hurry = False  # we ended the session to begin another

    # -- service

    def startService(self) -> None:
        super().startService()
        self._spool.moved = self._ship
        self._looking.start(LOOK_EVERY, now=False).addErrback(
            lambda failure: self.log.failure("the controller is not told of changes any more", failure)
        )
        self._dial()

    def stopService(self) -> Deferred[None]:
        """Say goodbye; fires when the connection is gone."""
        super().stopService()
        self._spool.moved = _nothing
        if self._looking.running:
            self._looking.stop()
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        if self._attempt is not None:
            self._attempt.cancel()
        if self._protocol is None:
            return succeed(None)
        self._gone = Deferred()
        protocol = self._protocol
        protocol.leave("stopping", "the defender stops")
        give_up = self._reactor.callLater(GOODBYE, protocol.cut)
        return self._gone.addCallback(lambda _: give_up.cancel() if give_up.active() else None)

    def redial(self) -> None:
        """Connect anew, with other credentials."""
        if self._protocol is not None:
            self._hurry = True
            self._protocol.leave("redial", "the defender has new certificates")
        else:
            self.hurry()

    def hurry(self) -> None:
        """Connect at once where the next attempt would come later."""
        if self._call is not None and self._call.active():
            self._call.cancel()
            self._dial()

    # -- dialing

    def _dial(self) -> None:
        self._call = None
        self._attempt = attempt = maybeDeferred(self._uses.connect, _Factory(self._build))
        attempt.addCallbacks(self._made, self._failed)
        attempt.addErrback(lambda failure: self.log.failure("the link is at a standstill", failure))

    def _build(self) -> ChannelProtocol:
        now = self._reactor.seconds()
        session = DefenderSession(now, self._uses.hello(), jitter=2 * self._uses.chance() - 1)
        return ChannelProtocol(session, self, self._reactor)

    def _made(self, protocol: ChannelProtocol) -> None:
        self._attempt = None
        # It may be over already.
        if not protocol.session.is_closed and self._protocol is None and self.running:
            self._protocol = protocol
        else:
            protocol.cut()

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        if self.running:
            self._lost_for("", str(failure.value) or type(failure.value).__name__, None)

    def _lost_for(self, code: str, detail: str, window: float | None) -> None:
        """There is no session; try again after a while."""
        now = self._reactor.seconds()
        delay = self._reconnect.delay(now, self._uses.chance(), window=window, code=code)
        if self._hurry:
            self._hurry, delay = False, 0.0
        self._set(False, detail)
        self.log.warn(
            "no link to the controller: {detail}; next attempt in {delay:.1f} s", detail=detail, delay=delay
        )
        self._call = self._reactor.callLater(delay, self._dial)

    def _set(self, connected: bool, problem: str) -> None:
        if (self.connected, self.problem) != (connected, problem):
            if self.connected != connected:
                self.since = self._reactor.seconds()
            self.connected, self.problem = connected, problem
            self._uses.changed()

    # -- what the controller says: `Receiver`

    def welcomed(self, welcome: Welcome) -> None:
        now = self._reactor.seconds()
        self._reconnect.opened(now)
        self.cursor = welcome.cursor
        self._opened_epoch = 0
        self._batches.clear()
        self._in_flight.clear()
        self._said = None
        self._is_placed = False
        self.log.info("linked to the controller, session {number}", number=welcome.generation)
        self._set(True, "")
        self.report()
        self._ship()

    def pushed(self, push: Pushed) -> None:
        self._uses.pushed(push.stream, push.nonce, push.envelope)

    def shown(self, snapshot: Snapshot) -> None:
        self._uses.snapshot(snapshot.envelope)

    def stored(self, acknowledged: EvAck) -> None:
        through = (acknowledged.epoch, acknowledged.through)
        while self._in_flight and (self.cursor is None or self.cursor[:2] != through):
            batch = self._in_flight.popleft()
            self.shipped += batch.count
            self.cursor = Cursor(batch.epoch, batch.last_seq, batch.chain)
        if self.cursor is not None:
            self._spool.delivered(*self.cursor[:2])
        self._ship()

    def asked(self, command: Cmd) -> None:
        protocol = self._protocol
        if protocol is None:
            return
        number = command.number

        def done(value: object) -> None:
            value = value if isinstance(value, Mapping) else {}
            self._say(protocol, lambda session: session.answer(number, True, value))

        def failed(failure: Failure) -> None:
            detail = str(failure.value)
            if failure.check(ContractError) is None:
                self.log.failure("the command {verb} failed", failure, verb=command.verb)
                detail = f"the defender failed: {type(failure.value).__name__}"
            self._say(
                protocol, lambda session: session.answer(number, False, {}, code="failed", detail=detail)
            )

        maybeDeferred(self._uses.answer, command).addCallbacks(done, failed)

    def renewed(self, answer: Renewed) -> None:
        self._uses.renewed(answer)

    def lost(self, code: str, detail: str, window: float | None) -> None:
        self._protocol = None
        self._shipping.pause()
        self._batches.clear()
        self._in_flight.clear()
        if self._gone is not None:
            gone, self._gone = self._gone, None
            gone.callback(None)
        if self.running and self._attempt is None:
            self._lost_for(code, detail, window)

    # -- what the defender says

    def acknowledge(self, stream: str, nonce: int, position: Position) -> None:
        """A push is in force. Dropped where the session that brought it is over."""
        self._say(self._protocol, lambda session: session.acknowledge(stream, nonce, position))

    def refuse(self, stream: str, nonce: int, code: str, detail: str, kept: Position) -> None:
        """A push was refused. Dropped like `acknowledge`."""
        self._say(self._protocol, lambda session: session.refuse(stream, nonce, code, detail, kept))

    def renew(self, request: bytes, server_request: bytes = b"") -> bool:
        """Ask for new certificates; False if there is no session."""
        return self._say(self._protocol, lambda session: session.renew(request, server_request))

    def commit(self, serial: str) -> bool:
        """The new certificates are on disk; False if there is no session."""
        return self._say(self._protocol, lambda session: session.commit(serial))

    def report(self) -> None:
        """Say what the defender is doing, if that is something else than what was said last.

        How many streams are open changes all the time: that alone is said once a minute.
        """
        if not self.connected:
            return
        state, now = dict(self._uses.state()), self._reactor.seconds()
        fresh = now < self._said_at + COUNTS_EVERY
        if self._said is not None and _without_counts(state, fresh) == _without_counts(self._said, fresh):
            return
        self._said, self._said_at = state, now
        self._say(self._protocol, lambda session: session.report(state))

    def _say(self, protocol: ChannelProtocol | None, what: Callable[[DefenderSession], Outputs]) -> bool:
        if protocol is None or protocol is not self._protocol or protocol.session.is_closed:
            return False
        try:
            outputs = what(protocol.session)
        except SessionError as error:
            # The answer to what an earlier session brought, or too late in this one.
            self.log.debug("not said to the controller: {error}", error=error)
            return False
        protocol.say(outputs)
        return True

    # -- events

    def _ship(self) -> None:
        """Send what the journal has, as far as the credits go, and read ahead by one batch."""
        if not self.connected or self._protocol is None:
            return
        if not self._is_placed and not self._place():
            return
        self._send_batches(self._protocol)
        if self._batches:
            return
        self._shipping.spool(*self._spool.on_disk())
        wanted = self._shipping.next()
        if wanted is not None:
            self._spool.fetch(*wanted, self._fetched)

    def _place(self) -> bool:
        """Find where shipping begins, once the spool is open; False if it is not."""
        if not self._spool.on_disk()[1]:
            return False
        self._is_placed = True
        epoch, seq, chain = self.cursor or (0, 0, b"")
        if epoch and self._spool.disputes(epoch, seq, chain):
            # From that epoch's beginning: the controller drops what it has, and puts aside what differs.
            seq = 0
        self._shipping.resume(epoch, seq)
        return True

    def _fetched(self, data: bytes | None) -> None:
        self._batches.extend(self._shipping.feed(data))
        self._ship()

    def _send_batches(self, protocol: ChannelProtocol) -> None:
        session = protocol.session
        while self._batches and session.is_open:
            batch = self._batches[0]
            if batch.count > session.credit_events or len(batch.data) > session.credit_bytes:
                return
            self._batches.popleft()
            self._in_flight.append(batch)
            protocol.say(
                session.send_events(
                    batch.epoch,
                    batch.first_seq,
                    batch.count,
                    batch.previous,
                    batch.data,
                    batch.chain,
                    opening=self._opening(batch),
                    lost=batch.lost,
                )
            )

    def _opening(self, batch: Batch) -> Opening | None:
        """What is said once of an epoch in each session, as soon as it is known."""
        header = batch.header
        if header is None or batch.epoch == self._opened_epoch:
            return None
        self._opened_epoch = batch.epoch
        return Opening(header.agent, header.predecessor, header.predecessor_seq, header.predecessor_chain)


class _Factory(Factory[ChannelProtocol]):
    """Builds the protocol of one attempt."""

    noisy = False

    def __init__(self, build: Callable[[], ChannelProtocol]) -> None:
        self._build = build

    def buildProtocol(self, addr: object) -> ChannelProtocol:
        return self._build()


def _without_counts(state: Mapping[str, Any], leave_out: bool) -> Mapping[str, Any]:
    return {key: value for key, value in state.items() if not leave_out or key not in _COUNTS}


def _nothing() -> None:
    """Nobody ships."""

"""The desk of the channel: who a defender is, which of its sessions counts, and who hears what it says.

Nothing is decided here about what defenders should have: `Publisher` does that. A session is welcomed when
the store has said that its certificate counts and has given it a number; of two sessions of one defender the
one with the higher number stays.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final
from typing import Protocol as Typed

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from controller.channel.intake import Intake
from controller.channel.protocol import Visit
from controller.pki import registry
from controller.pki.admission import keys_of
from controller.pki.authority import AuthorityError
from controller.pki.custody import CustodyError
from controller.pki.enrollment import Enrollment
from controller.pki.registry import Issuance, Office
from controller.pki.renewals import Turned
from controller.selection import Defender
from controller.store import defenders
from controller.store.database import Database
from controller.store.errors import MissingError, OverloadedStoreError, UnwritableStoreError
from controller.store.events import EventStore
from defender.contract.join import JoinError
from defender.contract.message_fields import Cursor, Position
from defender.contract.messages import (
    Ack,
    Commit,
    Events,
    Hello,
    Message,
    Nack,
    Renew,
    Result,
    Status,
)
from defender.contract.session import Expired, SessionError

#: Seconds between two times that the store is told when defenders were last heard of.
KEEP: Final = 30.0
#: Seconds within which a defender comes back that the store could not answer for.
AGAIN: Final = 30.0
#: Seconds within which a defender does what it is asked for.
ANSWER: Final = 30.0


class AskError(Exception):
    """A defender did not do what it was asked for; the text says why."""


class Publisher(Typed):
    """Decides what each defender should have; `controller.publisher.Publisher` is one."""

    def enrolled(self, defender: Defender) -> None:
        """A defender is in the fleet, with this name and these labels; said each time that it comes."""

    def connected(self, defender: str, positions: Mapping[str, Position]) -> None:
        """A defender is there, and this is what it has in force."""

    def acked(self, defender: str, stream: str, nonce: int, position: Position) -> None:
        """What was pushed is in force."""

    def refused(self, defender: str, stream: str, nonce: int, code: str, detail: str, kept: Position) -> None:
        """What was pushed was refused."""

    def disconnected(self, defender: str) -> None:
        """A defender is not there any more."""


class Desk(Service):
    """See the module; implements `controller.channel.protocol.Desk`.

    `visits` are the sessions that count, by the defender's id. `publisher` is set before the first session is
    welcomed.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        database: Database,
        events: EventStore,
        enrollment: Enrollment,
        office: Callable[[], Office],
        *,
        trust_domain: str,
        version: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.setName("desk")
        self.trust_domain = trust_domain
        self.publisher: Publisher | None = None
        self.visits: dict[str, Visit] = {}
        self._heard_at: dict[str, float] = {}
        self.intake = Intake(events)
        self._reactor = reactor
        self._database = database
        self._events = events
        self._enrollment = enrollment
        self._office = office
        self._version = version
        self._clock = clock
        self._unkept: dict[str, float] = {}
        self._asked: dict[tuple[Visit, int], Deferred[Mapping[str, Any]]] = {}
        self._keeper = LoopingCall(self._keep)
        self._keeper.clock = reactor

    # -- service

    def startService(self) -> None:
        super().startService()
        self._keeper.start(KEEP, now=False).addErrback(
            lambda failure: self.log.failure("when defenders were seen is no longer kept", failure)
        )

    def stopService(self) -> Deferred[None]:
        """Keep when defenders were last heard of."""
        super().stopService()
        if self._keeper.running:
            self._keeper.stop()
        return self._keep()

    def _keep(self) -> Deferred[None]:
        unkept, self._unkept = self._unkept, {}
        keeping = self._database.write(defenders.keep_seen, list(unkept.items()))
        # The next one says it again: nothing depends on it but what is shown.
        return keeping.addErrback(
            lambda failure: failure.trap(UnwritableStoreError, OverloadedStoreError) and None
        )

    # -- for the publisher

    def push(self, defender: str, stream: str, nonce: int, frames: Sequence[bytes]) -> bool:
        """Push an envelope; False if the defender is not there, or does not know the stream."""
        return self._say(defender, lambda session: session.push(stream, nonce, frames), stream)

    def show(self, defender: str, frame: bytes) -> bool:
        """Send a snapshot; False if the defender is not there."""
        return self._say(defender, lambda session: session.show(frame))

    def ask(self, defender: str, verb: str, arguments: Mapping[str, Any]) -> Deferred[Mapping[str, Any]]:
        """Have a defender do something; gives its answer, or fails with AskError."""
        visit = self.visits.get(defender)
        if visit is None or visit.session is None:
            return fail(AskError("it is not connected"))
        try:
            number, said = visit.session.command(self._reactor.seconds(), verb, arguments, ANSWER)
        except SessionError as error:
            return fail(AskError(str(error)))
        asked = self._asked[visit, number] = Deferred()
        visit.say(said)
        return asked

    def _answered(self, visit: Visit, number: int, answer: Mapping[str, Any] | AskError) -> None:
        asked = self._asked.pop((visit, number), None)
        if asked is None:
            return
        if isinstance(answer, AskError):
            asked.errback(answer)
        else:
            asked.callback(answer)

    def _say(self, defender: str, what: Callable[[Any], Any], stream: str = "") -> bool:
        visit = self.visits.get(defender)
        if visit is None or visit.session is None or not visit.session.is_open:
            return False
        if stream and not visit.session.takes(stream):
            return False
        try:
            visit.say(what(visit.session))
        except SessionError:
            return False
        return True

    def cut(self, defender: str, why: str) -> bool:
        """End a defender's session: it was locked or removed; False if it has none."""
        visit = self.visits.get(defender)
        if visit is None:
            return False
        visit.refuse("refused", why)
        return True

    def connected(self) -> Collection[str]:
        """The ids of the defenders that are there."""
        return self.visits.keys()

    def last_heard(self, defender: str) -> float | None:
        """When a byte of its session came, in unix seconds; of one that is gone, when it went. None if it was
        not here since the start."""
        visit = self.visits.get(defender)
        if visit is not None and visit.session is not None:
            # A defender that has nothing to say is heard of by its PONGs, which nobody here is told of.
            return self._clock() - visit.session.silence(self._reactor.seconds())
        return self._heard_at.get(defender)

    # -- `controller.channel.protocol.Desk`

    def joins(self, request: bytes, source: str, binding: bytes) -> Deferred[bytes]:
        return self._enrollment.joins(request, source, binding)

    def greeted(self, visit: Visit, hello: Hello) -> None:
        admitting = self._database.write(
            _admit, self._office(), visit.identity, hello.version, visit.source, int(self._clock())
        )
        admitting.addCallbacks(
            self._admitted, self._not_admitted, callbackArgs=(visit, hello), errbackArgs=(visit,)
        )
        admitting.addErrback(lambda failure: self.log.failure("a session is at a standstill", failure))

    def _admitted(self, answer: tuple[int, Defender] | Turned, visit: Visit, hello: Hello) -> None:
        identity, session = visit.identity, visit.session
        if identity is None or session is None or session.is_closed:
            return
        if isinstance(answer, Turned):
            self.log.warn(
                "defender {name} at {source} is turned away: {code}: {detail}",
                name=identity.name,
                source=visit.source,
                code=answer.code,
                detail=answer.detail,
            )
            visit.refuse("refused", f"{answer.code}: {answer.detail}")
            if answer.code == "locked":
                # Its key is in use twice, and nobody can tell which of the two is the right one.
                self.cut(identity.identifier, f"{answer.code}: {answer.detail}")
            return
        generation, defender = answer
        older = self.visits.get(identity.identifier)
        if older is not None and older.session is not None and older.session.generation > generation:
            visit.say(session.supersede())
            return
        if older is not None and older.session is not None:
            older.say(older.session.supersede())
        at = self._events.cursor(identity.identifier)
        self.visits[identity.identifier] = visit
        self._hear(identity.identifier)
        visit.say(
            session.welcome(
                self._reactor.seconds(),
                generation=generation,
                version=self._version,
                time=int(self._clock() * 1e6),
                cursor=Cursor(at.epoch, at.seq, at.chain) if at is not None and at.seq else None,
            )
        )
        assert self.publisher is not None
        self.publisher.enrolled(defender)
        self.publisher.connected(identity.identifier, hello.positions)

    def _not_admitted(self, failure: Failure, visit: Visit) -> None:
        if failure.check(MissingError):
            visit.refuse("refused", "unknown-defender: this defender was removed")
            return
        if failure.check(UnwritableStoreError, OverloadedStoreError) is None:
            self.log.failure("a defender could not be admitted", failure)
        visit.leave("store", "the controller cannot answer at present", AGAIN)

    def heard(self, visit: Visit, message: Message | Expired) -> None:
        identity = visit.identity
        if identity is None or self.visits.get(identity.identifier) is not visit:
            return  # what an older session has left to say does not count
        defender = identity.identifier
        self._hear(defender)
        publisher = self.publisher
        assert publisher is not None
        match message:
            case Events():
                self.intake.arrived(visit, message)
            case Ack(stream, nonce, position):
                publisher.acked(defender, stream, nonce, position)
            case Nack(stream, nonce, code, detail, kept):
                publisher.refused(defender, stream, nonce, code, detail, kept)
            case Renew():
                self._renew(visit, message)
            case Commit(serial):
                self._commit(visit, serial)
            case Status(state):
                self._database.write(defenders.keep_status, defender, state).addErrback(self._unkept_status)
            case Result(number, ok, _, detail, value):
                self._answered(visit, number, value if ok else AskError(detail))
            case Expired(number):
                self._answered(visit, number, AskError("it has not answered in time"))

    def left(self, visit: Visit, code: str, detail: str) -> None:
        self.intake.left(visit)
        for number in [number for its, number in self._asked if its is visit]:
            self._answered(visit, number, AskError("it is gone"))
        identity = visit.identity
        if identity is None or self.visits.get(identity.identifier) is not visit:
            return
        del self.visits[identity.identifier]
        self._hear(identity.identifier)
        self.log.info(
            "defender {name} is gone: {code} {detail}", name=identity.name, code=code or "-", detail=detail
        )
        if self.publisher is not None:
            self.publisher.disconnected(identity.identifier)

    def _hear(self, defender: str) -> None:
        self._heard_at[defender] = self._unkept[defender] = self._clock()

    def _unkept_status(self, failure: Failure) -> None:
        failure.trap(UnwritableStoreError, OverloadedStoreError)

    # -- certificates

    def _renew(self, visit: Visit, request: Renew) -> None:
        session, identity = visit.session, visit.identity
        assert session is not None
        assert identity is not None
        try:
            keys = keys_of(request.request, request.server_request)
        except JoinError as error:
            visit.say(session.refuse_renewal(error.code, error.detail))
            return

        def issued(answer: Issuance | Turned) -> None:
            if session.is_closed:
                return
            if isinstance(answer, Turned):
                visit.say(session.refuse_renewal(answer.code, answer.detail))
            else:
                visit.say(session.renewed(answer.chain, answer.server_chain))

        def failed(failure: Failure) -> None:
            known = failure.check(AuthorityError, CustodyError, UnwritableStoreError, OverloadedStoreError)
            if known is None:
                self.log.failure("a certificate could not be renewed", failure)
            else:
                self.log.error("a certificate could not be renewed: {error}", error=str(failure.value))
            if not session.is_closed:
                visit.say(session.refuse_renewal("unavailable", "the controller cannot renew it at present"))

        renewing = self._database.write(registry.renew, self._office(), identity, keys, int(self._clock()))
        renewing.addCallbacks(issued, failed)
        renewing.addErrback(lambda failure: self.log.failure("a renewal is at a standstill", failure))

    def _commit(self, visit: Visit, serial: str) -> None:
        """From now on the new certificate counts; where this is lost, its first use says the same."""
        assert visit.identity is not None
        committing = self._database.write(
            registry.commit, self._office(), visit.identity, serial, int(self._clock())
        )
        committing.addErrback(lambda failure: self.log.failure("a COMMIT could not be kept", failure))


def _admit(
    connection: sqlite3.Connection, office: Office, identity: Any, program: str, source: str, now: int
) -> tuple[int, Defender] | Turned:
    """The number of a new session and whose it is, or why there is none. Raises MissingError."""
    outcome = registry.shown(connection, office, identity, now)
    if isinstance(outcome, Turned):
        return outcome
    row = defenders.find(connection, identity.identifier)
    if row is None:
        raise MissingError(f"there is no defender {identity.identifier}")
    if row.lock:
        return Turned("locked", "this defender is locked; an administrator has to look at it")
    number = defenders.begin_session(
        connection, identity.identifier, now=now, address=source, program=program
    )
    return number, Defender(row.id, row.name, row.labels)

"""From an accepted socket to an authenticated connection: handshake or peer look-up, then the proxy's.

Every connection is counted from the accept to its very end, handshakes and refused peers included, so that
the limit bounds descriptors and not only requests.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender.contract.facts import Subject
from defender.contract.identity import CertificateSubject, printable
from defender.listener.connection import Accept, Connection, Refusal
from defender.listener.spec import Kind
from defender.streams.interface import Lost
from defender.streams.plain import PlainStream
from defender.streams.tls import HandshakeError, TLSStream

LINES_PER_SECOND: Final = 20
"""Refused peers that get a line of their own in the log; more in the same second are counted."""

REFUSALS: Final = 1000
REFUSALS_A_SECOND: Final = 10.0
"""Refused peers that are told of one by one, at once and in the long run. Anybody may connect: without a
bound a stranger could fill all files of the audit trail.
"""

Refused = Callable[[Refusal], None]
Identify = Callable[[socket.socket], Deferred[Subject]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On which terms connections are let in.

    `connections` is the most at one time over all listeners; times are seconds. `identify` tells the subject
    of a unix peer; `refused` hears of every peer that is turned away, for the audit trail; of a flood it
    hears the number (check ``flood``).
    """

    connections: int
    handshake_timeout: float
    linger: float
    load_context: Callable[[], SSL.Context]
    identify: Identify
    accept: Accept
    refused: Refused


class Guest:
    """One connection of a listener, from its accept to its end."""

    __slots__ = ("_crowd", "connection", "over", "sock", "stream")

    def __init__(self, crowd: Crowd, sock: socket.socket) -> None:
        self._crowd = crowd
        self.sock: socket.socket | None = sock
        self.stream: TLSStream | PlainStream | None = None
        self.connection: Connection | None = None
        self.over = False

    def close_when_idle(self) -> None:
        # One that is not let in yet has sent no request: it can be ended at any time.
        if self.connection is not None:
            self.connection.close_when_idle()
        else:
            self.abort()

    def abort(self, reason: str = "aborted") -> None:
        if self.connection is not None:
            self.connection.abort(reason)
        elif self.stream is not None:
            self.turn_away()
            self.stream.abort()
        else:
            if self.sock is not None:
                self.sock.close()
            self.end()

    def turn_away(self) -> None:
        """Wait for nothing but the end of the stream, which closes by itself or is closed by the caller."""
        if self.stream is not None:
            self.stream.set_receiver(_Farewell(self.end))

    def end(self) -> None:
        """The connection is gone."""
        if not self.over:
            self.over = True
            self._crowd.leave(self)


class _Farewell:
    """The receiver of a stream that nobody serves."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        pass

    def end_received(self) -> None:
        pass

    def write_full(self) -> None:
        pass

    def write_drained(self) -> None:
        pass

    def connection_lost(self, reason: Lost) -> None:
        self._ended()


class Crowd:
    """The connections of one listener. `left` is called after each end."""

    def __init__(self, reception: Reception, left: Callable[[], None]) -> None:
        self._reception = reception
        self._left = left
        self.guests: set[Guest] = set()

    def __len__(self) -> int:
        return len(self.guests)

    def enter(self, sock: socket.socket) -> Guest:
        guest = Guest(self, sock)
        self.guests.add(guest)
        self._reception.inside += 1
        return guest

    def leave(self, guest: Guest) -> None:
        self.guests.discard(guest)
        self._reception.forget(guest)
        self._reception.inside -= 1
        self._left()

    def close_when_idle(self) -> None:
        """End every connection as soon as nothing is open on it."""
        for guest in list(self.guests):
            guest.close_when_idle()

    def abort(self, reason: str) -> None:
        """End every connection now; `reason` is recorded of what is open."""
        for guest in list(self.guests):
            guest.abort(reason)


class Reception:
    """Lets peers in: `receive` for each accepted socket.

    Attributes:
        inside: connections at this moment, of all listeners.
        refused: peers turned away since the start, for any reason but the limit.
        over_limit: connections closed because `Terms.connections` were open: the oldest TLS peer that has not
            proven who it is, or, where all have, the one that came.
    """

    log = Logger()

    def __init__(self, reactor: Any, terms: Terms) -> None:
        self._reactor = reactor
        self.terms = terms
        self.inside = 0
        self.refused = 0
        self.over_limit = 0
        self._context: SSL.Context | None = None
        self._second = 0
        self._lines = 0
        self._strangers: dict[Guest, None] = {}  # in the order in which they came
        self._told = 0.0  # refusals told, less what the time since has made up for
        self._told_at = 0.0
        self._untold = 0

    def load_certificates(self) -> None:
        """Read the TLS files, for the connections from now on; raises what reading them raises.

        After an error the ones before stay in use.
        """
        self._context = self.terms.load_context()

    @property
    def has_certificates(self) -> bool:
        return self._context is not None

    def receive(self, kind: Kind, sock: socket.socket, crowd: Crowd) -> None:
        """Take over an accepted non-blocking socket."""
        if self.inside >= self.terms.connections:
            stranger = next(iter(self._strangers), None)
            if stranger is None:
                sock.close()
            else:
                self.forget(stranger)
                stranger.abort()
            self.over_limit += 1
            if self._may_log():
                self.log.warn(
                    "connection closed: {limit} are open (limits.connections)", limit=self.terms.connections
                )
            if stranger is None:
                return
        guest = crowd.enter(sock)
        if kind == "tcp":
            self._shake_hands(guest, sock)
        else:
            self._look_up(guest, sock)

    def forget(self, guest: Guest) -> None:
        """The guest has proven who it is, or is gone."""
        self._strangers.pop(guest, None)

    def _shake_hands(self, guest: Guest, sock: socket.socket) -> None:
        stream: TLSStream | None = None
        try:
            assert self._context is not None
            stream = TLSStream(
                self._reactor,
                sock,
                self._context,
                handshake_timeout=self.terms.handshake_timeout,
                linger=self.terms.linger,
            )
        except (OSError, SSL.Error) as error:
            # The peer is gone already.
            self._refuse(Refusal("tls", "disconnected", str(error)))
            sock.close()
            guest.end()
            return
        guest.stream = stream
        guest.sock = None
        self._strangers[guest] = None
        stream.handshake().addCallbacks(
            lambda _: self._present_certificate(guest, stream),
            lambda failure: self._handshake_failed(guest, failure),
        ).addErrback(lambda failure: self._broke(guest, failure))

    def _present_certificate(self, guest: Guest, stream: TLSStream) -> None:
        if guest.over:
            return
        address, port = stream.peer_address or (None, 0)
        # The check was made in the handshake, where a refusal still reaches the client as an alert.
        found = stream.verified
        if not isinstance(found, CertificateSubject):
            self._refuse(Refusal("tls", "certificate", "was not checked in the handshake", "", address, port))
            guest.abort()
            return
        subject = Subject(
            found.user,
            found.groups,
            via="tls",
            address=address,
            port=port,
            serial=found.serial,
            issuer=found.issuer,
            identity=found.identity,
            not_after=found.not_after,
        )
        self._let_in(guest, stream, subject)

    def _handshake_failed(self, guest: Guest, failure: Failure) -> None:
        # The stream closes by itself, after an alert that says why.
        guest.turn_away()
        if guest.over or not failure.check(HandshakeError):
            return
        error: Any = failure.value
        if error.check == "cancelled":
            # We did that: a switch or a stop.
            return
        address, port = error.peer or (None, 0)
        self._refuse(Refusal("tls", error.check, error.detail, error.subject, address, port))

    def _look_up(self, guest: Guest, sock: socket.socket) -> None:
        self.terms.identify(sock).addCallbacks(
            lambda subject: self._present_peer(guest, sock, subject),
            lambda failure: self._peer_failed(guest, failure),
        ).addErrback(lambda failure: self._broke(guest, failure))

    def _present_peer(self, guest: Guest, sock: socket.socket, subject: Subject) -> None:
        if guest.over:
            return
        stream = PlainStream(self._reactor, sock, linger=self.terms.linger)
        guest.stream = stream
        guest.sock = None
        self._let_in(guest, stream, subject)

    def _peer_failed(self, guest: Guest, failure: Failure) -> None:
        if guest.over:
            return
        check = getattr(failure.value, "check", "peer")
        detail = getattr(failure.value, "detail", failure.getErrorMessage())
        self._refuse(Refusal("unix", check, detail))
        guest.abort()

    def _let_in(self, guest: Guest, stream: TLSStream | PlainStream, subject: Subject) -> None:
        self.forget(guest)
        connection = self.terms.accept(stream, subject, guest.end)
        if not guest.over:
            guest.connection = connection

    def _broke(self, guest: Guest, failure: Failure) -> None:
        """A bug of ours: the connection ends, the listener goes on."""
        self.log.failure("a connection could not be let in", failure)
        guest.abort()

    def _refuse(self, refusal: Refusal) -> None:
        self.refused += 1
        self._tell(refusal)
        if self._may_log():
            where = f"{refusal.address} port {refusal.port}" if refusal.address else f"{refusal.via} socket"
            self.log.warn(
                "refused a peer: check={check} subject={subject} peer={peer}: {detail}",
                check=refusal.check or "unknown",
                subject=printable(refusal.subject) if refusal.subject else "-",
                peer=where,
                detail=printable(refusal.detail),
            )

    def _tell(self, refusal: Refusal) -> None:
        now = self._reactor.seconds()
        self._told = max(0.0, self._told - (now - self._told_at) * REFUSALS_A_SECOND)
        self._told_at = now
        if self._told + 2 > REFUSALS:
            self._untold += 1
            return
        if self._untold:
            detail = f"{self._untold} more peers were refused and are not listed"
            self._untold = 0
            self._told += 1
            self.terms.refused(Refusal(refusal.via, "flood", detail))
        self._told += 1
        self.terms.refused(refusal)

    def _may_log(self) -> bool:
        """Tell whether another line fits this second; says first what the seconds before left out."""
        second = int(self._reactor.seconds())
        if second != self._second:
            omitted = self._lines - LINES_PER_SECOND
            self._second, self._lines = second, 0
            if omitted > 0:
                self.log.warn("{count} more peers were refused and not logged", count=omitted)
        self._lines += 1
        return self._lines <= LINES_PER_SECOND

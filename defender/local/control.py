"""The control socket: a unix socket of mode 0600 where root and the defender's own user steer the defender.

The file's mode keeps others out; the peer's uid is checked as well (SO_PEERCRED), since a mode can be changed
by hand. Every use becomes an event, a refused one too. Lines, connections and waiting are bounded.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from defender.contract.audit import Recorder, actor_of, control_event
from defender.contract.errors import ContractError
from defender.contract.facts import Subject
from defender.contract.local import MAX_LINE, Answer, LocalError, Request, read_request, write_answer

MAX_CONNECTIONS: Final = 16
TIMEOUT: Final = 10.0
"""Seconds for a request to arrive whole, and for an answer to be taken."""

MAX_PIPELINED: Final = 16
"""Requests that may arrive before the answer to the first."""

Verb = Callable[[Mapping[str, object]], "Answer | Deferred[Answer] | Awaitable[Answer]"]
"""Does what a verb asks for, given its checked arguments. A ContractError becomes its answer."""

Listen = Callable[[Callable[[socket.socket, Any], None]], Callable[[], None]]
"""Begins to accept, given what takes a connected socket; returns what ends it. May raise ContractError."""


class ControlService(Service):
    """Serves the control socket.

    Args:
        listen: opens the socket (`listener.acceptor.listen_privately`).
        verbs: what can be asked for; a verb of the contract that is not here is answered with an error.
        recorder: takes an event for each use.
        owner: the uid that may ask besides root.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        listen: Listen,
        verbs: Mapping[str, Verb],
        recorder: Recorder,
        *,
        owner: int | None = None,
    ) -> None:
        self.setName("control")
        self.reactor = reactor
        self._listen = listen
        self._verbs = verbs
        self._recorder = recorder
        self._allowed = frozenset({0, os.geteuid() if owner is None else owner})
        self._close: Callable[[], None] | None = None
        self._lines: set[ControlLine] = set()
        self.problem = ""

    def startService(self) -> None:
        """Open the socket. Where it cannot be opened the defender serves all the same, and says so."""
        super().startService()
        try:
            self._close = self._listen(self._took)
        except ContractError as error:
            self.problem = str(error)
            self.log.error("no control socket: {error}", error=error)

    def stopService(self) -> None:
        super().stopService()
        if self._close is not None:
            self._close()
            self._close = None
        for line in list(self._lines):
            line.transport.abortConnection()

    def _took(self, sock: socket.socket, _address: object) -> None:
        with sock:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII"))
            pid, uid, _gid = struct.unpack("=iII", credentials)
            subject = Subject("root" if uid == 0 else f"uid:{uid}", (), via="unix", uid=uid, pid=pid)
            if uid not in self._allowed:
                why = "only root and the defender's own user may use the control socket"
                self.note(subject, "control", {}, Answer(False), reason=f"uid {uid}: {why}")
                self._say_last(sock, why)
            elif len(self._lines) >= MAX_CONNECTIONS:
                why = f"{MAX_CONNECTIONS} connections are open already"
                self.note(subject, "control", {}, Answer(False), reason=why)
                self._say_last(sock, why)
            else:
                # The reactor takes a duplicate of the descriptor.
                self.reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, _Lines(self, subject))

    @staticmethod
    def _say_last(sock: socket.socket, why: str) -> None:
        try:
            sock.send(write_answer(Answer(False, {}, why)))
        except OSError:
            return

    def note(
        self,
        subject: Subject,
        action: str,
        fields: Mapping[str, object],
        answer: Answer,
        *,
        reason: str = "",
    ) -> None:
        """Record one use."""
        detail = answer.error or str(answer.result.get("outcome", ""))
        self._recorder.record(
            control_event(
                actor_of(subject), action, fields=fields, ok=answer.ok, detail=detail, reason=reason
            )
        )

    def came(self, line: ControlLine) -> None:
        self._lines.add(line)

    def went(self, line: ControlLine) -> None:
        self._lines.discard(line)

    async def perform(self, subject: Subject, request: Request) -> Answer:
        """Do what a permitted peer asks for, and record it; never raises."""
        answer = await self._answer(request)
        self.note(subject, request.verb, request.arguments, answer)
        return answer

    async def _answer(self, request: Request) -> Answer:
        verb = self._verbs.get(request.verb)
        if verb is None:
            return Answer(False, {}, f"this defender does not do {request.verb}")
        try:
            result = verb(request.arguments)
            return result if isinstance(result, Answer) else await result
        except ContractError as error:
            return Answer(False, {}, str(error))
        except Exception:  # noqa: BLE001 - a fault in a verb must reach the person who asked, not end the line
            self.log.failure("the verb {verb} failed", verb=request.verb)
            return Answer(False, {}, "internal error; the defender's log says more")


class ControlLine(LineOnlyReceiver, TimeoutMixin):
    """One connection to the control socket."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE

    transport: Any

    def __init__(self, service: ControlService, subject: Subject) -> None:
        self._service = service
        self._subject = subject
        self._busy = False
        self._waiting: list[bytes] = []
        self._gone = False

    def callLater(self, period: float, func: Callable[[], None]) -> Any:
        return self._service.reactor.callLater(period, func)

    def connectionMade(self) -> None:
        self._service.came(self)
        self.setTimeout(TIMEOUT)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._gone = True
        self._service.went(self)
        self.setTimeout(None)
        self._waiting.clear()

    def timeoutConnection(self) -> None:  # noqa: N802 - Twisted's name
        self.transport.abortConnection()

    def lineReceived(self, line: bytes) -> None:
        self._waiting.append(line)
        if len(self._waiting) > MAX_PIPELINED:
            self.transport.abortConnection()
        elif not self._busy:
            self._next()

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: N802 - Twisted's name
        self._misread(LocalError(f"the request is longer than {MAX_LINE} bytes"))

    def _next(self) -> None:
        if not self._waiting:
            # Also the time in which the answer before must be taken.
            self.setTimeout(TIMEOUT)
            return
        try:
            request = read_request(self._waiting.pop(0))
        except LocalError as error:
            self._misread(error)
            return
        self._busy = True
        self.setTimeout(None)
        performing = Deferred.fromCoroutine(self._service.perform(self._subject, request))
        performing.addCallback(self._reply)
        performing.addErrback(lambda failure: self._service.log.failure("an answer was not sent", failure))

    def _reply(self, answer: Answer) -> None:
        self._busy = False
        if self._gone:
            return
        self.transport.write(write_answer(answer))
        self._next()

    def _misread(self, error: LocalError) -> None:
        answer = Answer(False, {}, str(error))
        self._service.note(self._subject, "control", {}, answer)
        self._waiting.clear()
        self.transport.write(write_answer(answer))
        self.setTimeout(TIMEOUT)
        self.transport.loseConnection()


class _Lines(Factory):
    """Makes the one protocol of one connection."""

    noisy = False

    def __init__(self, service: ControlService, subject: Subject) -> None:
        self._service = service
        self._subject = subject

    def buildProtocol(self, addr: IAddress | None) -> ControlLine:
        return ControlLine(self._service, self._subject)

"""The listeners of the defender: performs what the switch commands, on real sockets.

`ListenerService` opens what the settings say (or the mode that was chosen at run time, `ModeStore`), switches
on request (`set_mode`, `reload`) and tells what is (`status`). Who comes in is the `Reception`'s business,
what happens then the proxy's.
"""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from defender.listener.acceptor import (
    Acceptor,
    BindError,
    InheritedSockets,
    Knock,
    ListeningSocket,
    Took,
    open_address,
    reason_of,
    source_of,
)
from defender.listener.frontend import Crowd, Reception, Terms
from defender.listener.spec import (
    Address,
    DesiredMode,
    Kind,
    ListenSpec,
    Mode,
    SpecError,
    mode_of,
    reconcile,
)
from defender.listener.store import ModeStore
from defender.listener.switch import (
    Bind,
    CloseStreams,
    Command,
    Drain,
    Listener,
    Permit,
    Probe,
    Report,
    Restore,
    Retry,
    StopAccepting,
    SwitchState,
    build,
)

STOP_TIMEOUT: Final = 2.0
"""How long a stop waits for aborted connections to be gone."""

_MACHINE: Final = build()


@dataclass(slots=True)
class _Open:
    """What belongs to one listener of the machine, until its last connection is gone."""

    listener: Listener
    crowd: Crowd
    sockets: list[ListeningSocket] = field(default_factory=list)
    acceptors: list[Acceptor] = field(default_factory=list)
    retired: bool = False
    timer: Any = None
    until: float | None = None


class ListenerService(Service):
    """Serves `configured` on `terms`.

    Args:
        configured: the settings' addresses and mode.
        drain: seconds that retired listeners may drain, 0 without limit; `set_mode` may say otherwise.
        store: keeps the mode that was chosen at run time.
        inherited: the sockets that the service manager passed.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        configured: ListenSpec,
        terms: Terms,
        *,
        drain: float,
        store: ModeStore,
        inherited: InheritedSockets | None = None,
    ) -> None:
        self.setName("listener")
        self.reception = Reception(reactor, terms)
        self._reactor = reactor
        self._configured = configured
        self._drain = drain
        self._store = store
        self._inherited = inherited or InheritedSockets()
        self._state = SwitchState()
        self._switch = _MACHINE(self._state)
        self._open: dict[Listener, _Open] = {}
        self._idle_inherited: dict[ListeningSocket, Acceptor] = {}
        self._commands: deque[Command] = deque()
        self._performing = False
        self._tickets: dict[int, Deferred[Report]] = {}
        self._ticket = 0
        self._knocks: dict[Any, Knock] = {}
        self._retries: dict[Address, Any] = {}
        self._desired: DesiredMode | None = None
        self._kept = True
        self._last_error = ""
        self._is_retired = False
        self._last_one: Deferred[None] | None = None  # fires when that one has left
        self.started: Deferred[Report] = Deferred()

    # -- service

    def startService(self) -> None:
        """Open the listeners. `started` fires when each has been tried; those that failed are retried."""
        super().startService()
        self._desired = self._store.load()
        spec = self._wanted()
        self._refuse_unused()
        ticket, outcome = self._new_ticket()
        outcome.chainDeferred(self.started)
        self._perform(self._switch.start(ticket, spec))

    def retire(self, limit: float) -> Deferred[None]:
        """Stop accepting for good, and end each connection when nothing is open on it.

        Fires when that is so of all of them, or after `limit` seconds. To be followed by `stopService`.
        """
        self._stop_trying()
        for opened in list(self._open.values()):
            self._close_sockets(opened)
            opened.crowd.close_when_idle()
        self._is_retired = True
        return self._emptied(limit) if limit else succeed(None)

    def stopService(self) -> Deferred[None] | None:
        """Stop accepting and abort every connection; fires when they are gone."""
        super().stopService()
        self._stop_trying()
        for opened in list(self._open.values()):
            self._close_sockets(opened)
            if opened.timer is not None and opened.timer.active():
                opened.timer.cancel()
            opened.crowd.abort("the defender stops")
        return self._emptied(STOP_TIMEOUT) if self.reception.inside else None

    def _emptied(self, limit: float) -> Deferred[None]:
        """Fires when nobody is inside any more, after `limit` seconds at the latest."""
        if not self.reception.inside:
            return succeed(None)
        emptied = self._last_one = Deferred[None]()
        timer = self._reactor.callLater(limit, emptied.callback, None)

        def done(_: None) -> None:
            self._last_one = None
            if timer.active():
                timer.cancel()

        return emptied.addCallback(done)

    def _stop_trying(self) -> None:
        """Nothing is opened again, nobody is let in."""
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()
        for knock in list(self._knocks.values()):
            knock.end()
        for acceptor in self._idle_inherited.values():
            acceptor.stop()
        self._idle_inherited.clear()

    # -- what others ask for

    @property
    def desired(self) -> Mode:
        """The mode that should be served."""
        return reconcile(self._configured.mode, self._desired)

    @property
    def actual(self) -> Mode:
        """The mode that is served: the kinds of listeners that accept."""
        return mode_of(address.kind for address in self._state.serving)

    def set_mode(self, mode: Mode, drain: float | None = None) -> Deferred[Report]:
        """Switch to another mode and keep it as the desired one when that worked.

        Fires with the report; `SpecError` fails it when the mode lacks an address in the settings.
        """
        outcome = self._select(lambda: self._configured.in_mode(mode), drain)
        return outcome.addCallback(lambda report: self._keep(mode, report))

    def reload(self, configured: ListenSpec, drain: float) -> Deferred[Report]:
        """Take over changed settings and read the certificates again.

        A mode chosen at run time stays, unless the mode in the settings has changed since.
        """
        self._configured = configured
        self._drain = drain
        problem = ""
        if self._kept:
            # The file is the truth: whoever removed it wants the settings' mode back.
            self._desired = self._store.load()
        if self._desired is not None and self._desired.over != configured.mode:
            self._desired = None
            problem = self._write_desired()
        if "tcp" in self.desired:
            problem = self._load_certificates() or problem

        def add(report: Report) -> Report:
            return _with_problem(report, problem)

        return self._select(self._wanted, drain).addCallback(add)

    def cut(self, kind: Kind, reason: str) -> int:
        """End the connections of this kind of listener now, draining ones too; how many there were.

        `reason` is recorded of what is open on them.
        """
        crowds = [opened.crowd for opened in self._open.values() if opened.listener.address.kind == kind]
        count = sum(map(len, crowds))
        for crowd in crowds:
            crowd.abort(reason)
        return count

    def status(self) -> dict[str, object]:
        """Tell what is wanted and what is, in JSON types; times are seconds from now."""
        listeners: list[dict[str, object]] = []
        for opened in sorted(self._open.values(), key=lambda each: each.listener.number):
            entry: dict[str, object] = {
                "address": str(opened.listener.address),
                "bound": [listening.name for listening in opened.sockets],
                "state": "draining" if opened.retired else "accepting",
                "connections": len(opened.crowd),
            }
            if opened.until is not None:
                entry["drain_left"] = round(max(0.0, opened.until - self._reactor.seconds()), 1)
            listeners.append(entry)
        for address in self._state.missing:
            listeners.append({"address": str(address), "bound": [], "state": "retrying", "connections": 0})
        return {
            "desired": self.desired,
            "actual": self.actual,
            "configured": self._configured.mode,
            "listeners": listeners,
            "connections": self.reception.inside,
            "refused": self.reception.refused,
            "over_limit": self.reception.over_limit,
            "last_error": self._last_error,
        }

    # -- selecting

    def _wanted(self) -> ListenSpec:
        """The settings in the desired mode; a mode whose addresses are gone from the settings is dropped."""
        try:
            return self._configured.in_mode(self.desired)
        except SpecError as error:
            self.log.warn(
                "the chosen mode is dropped, the settings decide: {error}", error=error, mode=self.desired
            )
            self._desired = None
            self._write_desired()
            return self._configured

    def _new_ticket(self) -> tuple[int, Deferred[Report]]:
        self._ticket += 1
        outcome: Deferred[Report] = Deferred()
        self._tickets[self._ticket] = outcome
        return self._ticket, outcome

    def _select(self, make: Any, drain: float | None) -> Deferred[Report]:
        ticket, outcome = self._new_ticket()
        try:
            spec: ListenSpec = make()
        except SpecError:
            del self._tickets[ticket]
            outcome.errback()
            return outcome
        self._perform(self._switch.select(ticket, spec, self._drain if drain is None else drain))
        return outcome

    def _keep(self, mode: Mode, report: Report) -> Report:
        if report.outcome not in ("switched", "unchanged"):
            return report
        over = self._configured.mode
        self._desired = None if mode == over else DesiredMode(mode, over)
        return _with_problem(report, self._write_desired())

    def _write_desired(self) -> str:
        try:
            if self._desired is None:
                self._store.clear()
            else:
                self._store.save(self._desired)
        except OSError as error:
            self._kept = False
            problem = f"the mode is not kept over a restart: {self._store.path}: {reason_of(error)}"
            self._last_error = problem
            self.log.error("{problem}", problem=problem)
            return problem
        self._kept = True
        return ""

    def _load_certificates(self) -> str:
        try:
            self.reception.load_certificates()
        except Exception as error:  # noqa: BLE001 - files are read here: whatever is wrong with them, the old stay
            kept = "; the ones before stay in use" if self.reception.has_certificates else ""
            problem = f"certificates: {error}{kept}"
            self._last_error = problem
            self.log.error("{problem}", problem=problem)
            return problem
        return ""

    # -- performing

    def _perform(self, commands: list[Command]) -> None:
        """Perform commands in order; those that answers to them bring come after."""
        self._commands.extend(commands)
        if self._performing:
            return
        self._performing = True
        try:
            while self._commands:
                self._do(self._commands.popleft())
        finally:
            self._performing = False

    def _do(self, command: Command) -> None:
        match command:
            case Bind(listener, mode, group):
                self._bind(listener, mode, group)
            case Probe(listener):
                self._probe(listener)
            case Permit(listener, mode, group):
                self._permit(listener, mode, group)
            case Restore(listener, mode, group):
                self._restore(listener, mode, group)
            case StopAccepting(listener):
                self._stop_accepting(self._open[listener])
            case Drain(listener, limit):
                self._begin_drain(listener, limit)
            case CloseStreams(listener):
                if listener in self._open:
                    self._open[listener].crowd.abort("its listener is closed, and the drain limit over")
                    self._note_drained(listener)
            case Retry(address, delay, reason):
                self._retry_later(address, delay, reason)
            case Report():
                self._report(command)

    def _bind(self, listener: Listener, mode: int, group: str) -> None:
        opened = _Open(listener, Crowd(self.reception, lambda: self._one_left(listener)))
        try:
            if self._is_retired:
                raise BindError("the defender is stopping")
            if listener.address.kind == "tcp" and not self.reception.has_certificates:
                problem = self._load_certificates()
                if problem:
                    raise BindError(problem)
            opened.sockets = open_address(listener.address, mode, group, self._inherited)
        except BindError as error:
            self._perform(self._switch.bind_failed(listener, str(error)))
            return
        self._open[listener] = opened
        for listening in opened.sockets:
            idle = self._idle_inherited.pop(listening, None)
            if idle is not None:
                idle.stop()
            opened.acceptors.append(
                Acceptor(self._reactor, listening.sock, self._taker(opened), listening.name)
            )
        self.log.info("listening on {names}", names=", ".join(listening.name for listening in opened.sockets))
        self._perform(self._switch.bound(listener))
        if self._state.attempt is None and not self._state.missing:
            # A retry worked that nobody is told of otherwise.
            self._last_error = ""

    def _taker(self, opened: _Open) -> Took:
        kind = opened.listener.address.kind

        def took(sock: socket.socket, address: Any) -> None:
            if self._knocks and (knock := self._knocks.get(source_of(address))) is not None:
                sock.close()
                knock.heard(source_of(address))
                return
            self.reception.receive(kind, sock, opened.crowd)

        return took

    def _probe(self, listener: Listener) -> None:
        def done(reason: str) -> None:
            if reason:
                self._perform(self._switch.probe_failed(listener, reason))
            else:
                self._perform(self._switch.probed(listener))

        Knock(self._reactor, self._open[listener].sockets, self._knocks, done)

    def _permit(self, listener: Listener, mode: int, group: str) -> None:
        try:
            for listening in self._open[listener].sockets:
                listening.permit(mode, group)
        except BindError as error:
            self._perform(self._switch.permit_failed(listener, str(error)))
        else:
            self._perform(self._switch.permitted(listener))

    def _restore(self, listener: Listener, mode: int, group: str) -> None:
        try:
            for listening in self._open[listener].sockets:
                listening.permit(mode, group)
        except BindError as error:
            self.log.error("{address}: {error}", address=listener.address, error=error)

    def _stop_accepting(self, opened: _Open) -> None:
        opened.retired = True
        self._close_sockets(opened)
        self.log.info(
            "no longer listening on {address}; {count} connections are open",
            address=opened.listener.address,
            count=len(opened.crowd),
        )
        self._refuse_unused()

    @staticmethod
    def _close_sockets(opened: _Open) -> None:
        for acceptor in opened.acceptors:
            acceptor.stop()
        for listening in opened.sockets:
            listening.close()
        opened.acceptors = []
        opened.sockets = []

    def _refuse_unused(self) -> None:
        """Close connections to inherited sockets that the mode does not use.

        The service manager has them open too, so they cannot be closed: a client would wait for ever.
        """
        used = {id(listening) for opened in self._open.values() for listening in opened.sockets}
        for _, listening in self._inherited.sockets:
            if id(listening) not in used and listening not in self._idle_inherited:
                acceptor = Acceptor(
                    self._reactor, listening.sock, lambda sock, address: sock.close(), listening.name
                )
                self._idle_inherited[listening] = acceptor

    def _begin_drain(self, listener: Listener, limit: float) -> None:
        opened = self._open.get(listener)
        if opened is None:
            # The last connection ended between the two commands.
            return
        opened.crowd.close_when_idle()
        if limit > 0 and opened.crowd.guests:
            opened.until = self._reactor.seconds() + limit
            opened.timer = self._reactor.callLater(limit, self._drain_over, opened)
        self._note_drained(listener)

    def _drain_over(self, opened: _Open) -> None:
        self.log.info(
            "the drain limit of {address} is over: {count} connections are cut",
            address=opened.listener.address,
            count=len(opened.crowd),
        )
        self._perform(self._switch.drain_expired(opened.listener))

    def _one_left(self, listener: Listener) -> None:
        if self._last_one is not None and not self.reception.inside:
            self._last_one.callback(None)
        self._note_drained(listener)

    def _note_drained(self, listener: Listener) -> None:
        opened = self._open.get(listener)
        if opened is None or opened.crowd.guests or not opened.retired or not self.running:
            return
        del self._open[listener]
        if opened.timer is not None and opened.timer.active():
            opened.timer.cancel()
        self._perform(self._switch.drained(listener))

    def _retry_later(self, address: Address, delay: float, reason: str) -> None:
        self._last_error = f"{address}: {reason}"
        self.log.error(
            "cannot listen on {address}: {reason}; next attempt in {delay:g} s",
            address=address,
            reason=reason,
            delay=delay,
        )

        def again() -> None:
            del self._retries[address]
            self._perform(self._switch.retry(address))

        earlier = self._retries.pop(address, None)
        if earlier is not None:
            earlier.cancel()
        self._retries[address] = self._reactor.callLater(delay, again)

    def _report(self, report: Report) -> None:
        if report.outcome == "failed":
            self._last_error = report.reason
            self.log.error(
                "the switch to mode {mode} failed, the listeners stay as they were: {reason}",
                mode=report.spec.mode,
                reason=report.reason,
            )
        elif report.outcome in ("switched", "unchanged"):
            self._last_error = ""
            self.log.info("listener mode {mode}", mode=report.spec.mode)
        outcome = self._tickets.pop(report.ticket)
        outcome.callback(report)


def _with_problem(report: Report, problem: str) -> Report:
    """Return the report of a switch that worked, with something beside it that did not."""
    if not problem or report.outcome not in ("switched", "unchanged"):
        return report
    return replace(report, outcome="partial", reason=problem)

"""The proxy as a whole: who may do what, and what is under way.

`Proxy` knows every client connection. It judges each request against the policy in force at that moment, and
when a policy or a lock comes into force it judges again what is still open. Time is looked at once a second
for all connections together; no request pays for a timer of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from defender.bundles.activation import PolicyActivation
from defender.contract.actions import Operation
from defender.contract.audit import CallRecorder
from defender.contract.facts import Subject
from defender.contract.locks import LockSet
from defender.contract.policy import Decision
from defender.proxy.backend import BackendPool
from defender.proxy.budget import Budgets
from defender.proxy.forwarding import Forwarding
from defender.proxy.frontend import Frontend
from defender.proxy.graces import Graces
from defender.proxy.inspection import Readings
from defender.proxy.trail import Noted, Trail
from defender.settings import EngineSettings, LimitSettings, StreamSettings
from defender.streams.interface import Stream

_SWEEP = 1.0

_CERTIFICATE = "certificate"
_EXPIRED = "the certificate expired"
_DENIED = "no longer allowed"


class Proxy(Service):
    """Serves clients' connections. Give it a stream and its subject with `accept`.

    `locks` is None until they have been read once: who is locked out cannot be told, so nobody is let in.
    `frozen` is why nothing may be changed, "" if it may.
    `strict` says whether calls that must be recorded first are refused while they cannot be, where the rule
    does not say it. `seconds` is monotonic, `wall` is unix time.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        pool: BackendPool,
        activation: PolicyActivation,
        recorder: CallRecorder,
        engine: EngineSettings,
        limits: LimitSettings,
        outlasting: StreamSettings,
        prefix: str,
        strict: bool = True,
        spool_bytes: int = 1 << 30,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.setName("proxy")
        self.pool = pool
        self.activation = activation
        self.locks: LockSet | None = None
        self.frozen = ""
        self.engine = engine
        self._spool_bytes = spool_bytes
        self.budgets = Budgets(limits, spool_bytes)
        self.limits = limits
        self.outlasting = outlasting
        self._graces: Graces[Frontend] = Graces()
        self.prefix = prefix
        self.strict = strict
        self.seconds: Callable[[], float] = reactor.seconds
        self._reactor = reactor
        self._wall = wall
        self.trail = Trail(recorder, self.seconds)
        self._frontends: set[Frontend] = set()
        self._sweeper = LoopingCall(self._sweep)
        self._sweeper.clock = reactor

    # -- service

    def startService(self) -> None:
        super().startService()
        self._sweeper.start(_SWEEP, now=False).addErrback(lambda f: self.log.failure("the sweep stopped", f))

    def stopService(self) -> None:
        super().stopService()
        if self._sweeper.running:
            self._sweeper.stop()
        for frontend in list(self._frontends):
            frontend.abort("the defender stops")
        self.trail.aggregated(self.budgets.drain())
        self.pool.close()

    # -- connections

    def accept(self, stream: Stream, subject: Subject, closed: Callable[[], None]) -> Frontend:
        """Serve `stream`, whose peer is `subject`; `closed` is called once when all of it is over."""

        def forget(frontend: Frontend) -> None:
            self._frontends.discard(frontend)
            self._graces.forget(frontend)
            self.budgets.leave(frontend.share, self.seconds())
            closed()

        frontend = Frontend(self, stream, subject, forget)
        self._frontends.add(frontend)
        return frontend

    @property
    def limits(self) -> LimitSettings:
        """The bounds in force."""
        return self._limits

    @limits.setter
    def limits(self, limits: LimitSettings) -> None:
        self._limits = limits
        self.budgets.resize(limits, self._spool_bytes)
        # What was read under other bounds might not be accepted under these.
        self.readings = Readings(
            max_headers=limits.headers, max_head=limits.head_bytes, discard_limit=limits.discard_bytes
        )

    @property
    def connections(self) -> int:
        """Client connections open, tunnels included."""
        return len(self._frontends)

    @property
    def streams(self) -> int:
        """Tunnels open."""
        return sum(1 for frontend in self._frontends if frontend.tunnel is not None)

    def soon(self, call: Callable[[], None]) -> None:
        """Call it in the next turn of the reactor."""
        self._reactor.callLater(0, call)

    def _sweep(self) -> None:
        now = self.seconds()
        self.trail.aggregated(self.budgets.due(now))
        self.pool.sweep(now, self.engine.response_timeout)
        for frontend in list(self._frontends):
            try:
                expired = frontend.under_way is not None and self._expired(frontend.subject)
                if expired and not self._outlasts(frontend, _EXPIRED, self.outlasting.on_expired, now):
                    frontend.abort(_EXPIRED)
                else:
                    frontend.sweep(now)
            except Exception:  # noqa: BLE001 - one connection's fault must not end the sweep for all
                self.log.failure("sweeping a connection failed; it is cut")
                try:
                    frontend.abort("internal error")
                except Exception:  # noqa: BLE001 - as above
                    self.log.failure("cutting a connection failed")
        for frontend, cause in self._graces.due(now):
            frontend.abort(f"{cause}, and the time that it was given is over")

    def _outlasts(self, frontend: Frontend, cause: str, choice: str, now: float) -> bool:
        """Whether what is under way may go on though `cause`, as the settings' `choice` for that says."""
        exchange = frontend.under_way
        assert exchange is not None
        open_stream = frontend.tunnel is not None or (exchange.is_sent and _is_stream(exchange))
        if choice == "cut" or not open_stream:
            return False
        limit = self.outlasting.drain if choice == "drain" else 0.0
        if self._graces.give(frontend, exchange, cause, now + limit if limit else None):
            self.trail.outlasts(frontend, exchange, cause, limit)
        return True

    # -- judging

    def judge(self, frontend: Frontend, operation: Operation) -> Noted:
        """The decision for one request, now, with the policy that made it."""
        decision = self._overruling(frontend.subject, operation)
        if decision is None:
            table = self.activation.table
            if frontend.table is not table:
                frontend.table, frontend.answers = table, table.answers(frontend.subject)
            decision = frontend.answers[operation.action]
        noted = self.trail.noted(decision)
        if noted is None:
            policy = self.activation.policy
            digest = policy.digest if policy is not None else ""
            noted = self.trail.note(decision, self.activation.version, digest)
        return noted

    def _overruling(self, subject: Subject, operation: Operation) -> Decision | None:
        """What is decided whatever the policy says, None if nothing is."""
        if self.locks is None:
            return _own_decision(
                "lock",
                "the locks cannot be read",
                "The locks of this defender cannot be read; tell its administrator.",
            )
        if self.locks:
            reason = self.locks.reason(subject)
            if reason is not None:
                who = "This host is" if self.locks.closed else "You are"
                return _own_decision("lock", reason, f"{who} locked out; ask your administrator.")
        if self.frozen and operation.record_first:
            return _own_decision(
                "controller",
                self.frozen,
                "This host has been without its controller for too long; nothing can be changed here.",
            )
        # Last: a stream may be let outlast it, and none of the others.
        if self._expired(subject):
            return _own_decision(
                _CERTIFICATE, "the certificate has expired", "Your certificate has expired; get a new one."
            )
        return None

    def _expired(self, subject: Subject) -> bool:
        return subject.not_after is not None and self._wall() >= subject.not_after

    def judge_again(self) -> int:
        """After a policy or a lock came into force: cut the open streams it denies; how many that were.

        A request that is not wholly with the Engine is cut too: its client could hold its last byte back
        until after the lock. One that is cannot be called back, and is answered. A stream that only the
        policy denies may be given time by the settings.
        """
        now = self.seconds()
        self.trail.forget_notes()
        cut = 0
        for frontend in list(self._frontends):
            exchange = frontend.under_way
            if exchange is None:
                continue
            if exchange.is_sent and not _is_stream(exchange):
                continue
            operation = exchange.inquiry.operation
            overruled = self._overruling(frontend.subject, operation)
            if overruled is not None and overruled.rule == _CERTIFICATE:
                overruled = None  # the sweep looks after that
            decision = overruled or self.activation.table.decide(frontend.subject, operation)
            if decision.effect == "allow":
                self._graces.take_back(frontend, _DENIED)
                continue
            choice = self.outlasting.on_denied
            if overruled is None and self._outlasts(frontend, _DENIED, choice, now):
                continue
            frontend.abort(f"{_DENIED}: denied by rule '{decision.rule}'")
            cut += 1
        return cut

    def answer_timeout(self, operation: Operation) -> float:
        """Seconds to wait for the head of an answer, 0 for no limit.

        What waits for something by its nature (wait, events, an attach) has none; a read has the short one, a
        change the long one.
        """
        if operation.streaming or operation.hijack:
            return 0.0
        if operation.method in ("GET", "HEAD"):
            return self.engine.response_timeout
        return self.engine.action_timeout

    def is_strict(self, noted: Noted) -> bool:
        """Whether a call is refused when its attempt cannot be recorded: as its rule or the settings say."""
        durability = noted.decision.durability
        return self.strict if durability is None else durability == "strict"


def _is_stream(exchange: Forwarding) -> bool:
    operation = exchange.inquiry.operation
    return operation.streaming or operation.hijack


def _own_decision(rule: str, reason: str, message: str) -> Decision:
    """A denial that no rule of the policy made."""
    return Decision(effect="deny", rule=rule, reason=reason, message=message, audit="all", durability=None)

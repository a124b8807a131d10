"""The proxy as a whole: who may do what, what is under way, and what is noted of it.

`Proxy` knows every client connection. It judges each request against the policy in force at that moment, and
when a policy or a lock comes into force it judges again what is still open. Time is looked at once a second
for all connections together; no request pays for a timer of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from defender.bundles.activation import PolicyActivation
from defender.contract.actions import Operation
from defender.contract.audit import (
    Recorder,
    actor_of,
    aggregate_event,
    decision_of,
    describe_unreadable,
    refused,
    request_event,
    stream_end_event,
)
from defender.contract.facts import Subject
from defender.contract.fragments import packed, result_body
from defender.contract.locks import LockSet
from defender.contract.packing import pack_body
from defender.contract.particulars import Particulars
from defender.contract.policy import Decision
from defender.contract.redaction import shorten
from defender.http1.head import RequestHead
from defender.proxy.backend import BackendPool
from defender.proxy.budget import Aggregate, Budgets, Refusal
from defender.proxy.forwarding import Forwarding
from defender.proxy.frontend import Frontend
from defender.proxy.inspection import Inquiry, Readings
from defender.proxy.tunnel import Tunnel
from defender.settings import EngineSettings, LimitSettings
from defender.streams.interface import Stream

_SWEEP = 1.0

_NOTES = 4096
"""Packed decisions that are kept."""

_ATTEMPT = 500
_EVENT = 140
"""Bytes on disk: of an attempt, about; and of any event what is not its body: the frame, the id, the time."""


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    requests: int = 0
    denied: int = 0
    unreadable: int = 0
    engine_errors: int = 0
    tunnels: int = 0
    unrecorded: int = 0
    turned_down: int = 0


@dataclass(frozen=True, slots=True)
class Noted:
    """A decision, and the `decision` of its events, packed too. A policy activated meanwhile changes none."""

    decision: Decision
    fields: dict[str, object]
    packed: bytes


class Proxy(Service):
    """Serves clients' connections. Give it a stream and its subject with `accept`.

    `locks` is None until they have been read once: who is locked out cannot be told, so nobody is let in.
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
        recorder: Recorder,
        engine: EngineSettings,
        limits: LimitSettings,
        prefix: str,
        strict: bool = True,
        spool_bytes: int = 1 << 30,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.setName("proxy")
        self.pool = pool
        self.activation = activation
        self.locks: LockSet | None = None
        self.engine = engine
        self._spool_bytes = spool_bytes
        self.budgets = Budgets(limits, spool_bytes)
        self.limits = limits
        self.prefix = prefix
        self.strict = strict
        self.counters = Counters()
        self.seconds: Callable[[], float] = reactor.seconds
        self._reactor = reactor
        self._wall = wall
        self._recorder = recorder
        self._frontends: set[Frontend] = set()
        self._notes: dict[int, Noted] = {}
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
        self._record_aggregates(self.budgets.drain())
        self.pool.close()

    # -- connections

    def accept(self, stream: Stream, subject: Subject, closed: Callable[[], None]) -> Frontend:
        """Serve `stream`, whose peer is `subject`; `closed` is called once when all of it is over."""

        def forget(frontend: Frontend) -> None:
            self._frontends.discard(frontend)
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
        self._record_aggregates(self.budgets.due(now))
        self.pool.sweep(now, self.engine.response_timeout)
        for frontend in list(self._frontends):
            try:
                if frontend.under_way is not None and self._expired(frontend.subject):
                    frontend.abort("the certificate expired")
                else:
                    frontend.sweep(now)
            except Exception:  # noqa: BLE001 - one connection's fault must not end the sweep for all
                self.log.failure("sweeping a connection failed; it is cut")
                try:
                    frontend.abort("internal error")
                except Exception:  # noqa: BLE001 - as above
                    self.log.failure("cutting a connection failed")

    # -- judging

    def judge(self, subject: Subject, operation: Operation) -> Noted:
        """The decision for one request, now, with the policy that made it."""
        decision = self._decide(subject, operation)
        noted = self._notes.get(id(decision))
        # The note keeps its decision alive, so that no other can have the same id.
        return self._note(decision) if noted is None else noted

    def _note(self, decision: Decision) -> Noted:
        policy = self.activation.policy
        digest = policy.digest if policy is not None else ""
        fields = decision_of(decision, self.activation.version, digest)
        noted = Noted(decision, fields, packed(fields))
        if len(self._notes) >= _NOTES:
            self._notes.clear()
        self._notes[id(decision)] = noted
        return noted

    def _decide(self, subject: Subject, operation: Operation) -> Decision:
        if self._expired(subject):
            return _own_decision(
                "certificate", "the certificate has expired", "Your certificate has expired; get a new one."
            )
        if self.locks is None:
            return _own_decision(
                "lock",
                "the locks cannot be read",
                "The locks of this defender cannot be read; tell its administrator.",
            )
        if self.locks:
            reason = self.locks.reason(subject)
            if reason is not None:
                return _own_decision("lock", reason, "You are locked out; ask your administrator.")
        return self.activation.table.decide(subject, operation)

    def _expired(self, subject: Subject) -> bool:
        return subject.not_after is not None and self._wall() >= subject.not_after

    def judge_again(self) -> int:
        """After a policy or a lock came into force: cut the open streams it denies; how many that were.

        A request that is not wholly with the Engine is cut too: its client could hold its last byte back
        until after the lock. One that is cannot be called back, and is answered.
        """
        self._notes.clear()
        cut = 0
        for frontend in list(self._frontends):
            exchange = frontend.under_way
            if exchange is None:
                continue
            operation = exchange.inquiry.operation
            if exchange.is_sent and not (operation.streaming or operation.hijack):
                continue
            decision = self._decide(frontend.subject, operation)
            if decision.effect != "allow":
                frontend.abort(f"no longer allowed: denied by rule '{decision.rule}'")
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

    # -- noting

    def is_strict(self, noted: Noted) -> bool:
        """Whether a call is refused when its attempt cannot be recorded: as its rule or the settings say."""
        durability = noted.decision.durability
        return self.strict if durability is None else durability == "strict"

    def record_attempt(self, frontend: Frontend, exchange: Forwarding, told: Callable[[str], None]) -> bytes:
        """Have the attempt of an allowed call on disk before it is forwarded; see `Recorder.append_durable`.

        Returns the id that joins the events of the call.
        """
        described = exchange.described or exchange.inquiry.described
        event = request_event(actor_of(frontend.subject), described, exchange.noted.fields)
        del event["corr"]
        frontend.share.spend(_ATTEMPT, self.seconds())
        return self._recorder.append_durable(*pack_body(event), b"", told)

    def request_ended(
        self, frontend: Frontend, exchange: Forwarding, status: int, sent: int, began: float, error: str
    ) -> None:
        """An allowed request has its answer, or never will: note it, as the deciding rule's `audit` says."""
        counters = self.counters
        counters.requests += 1
        noted = exchange.noted
        if error:
            if status in (502, 503, 504):
                counters.engine_errors += 1
            error = shorten(error)
        elif noted.decision.audit == "denied":
            return
        now = self.seconds()
        ms = (now - began) * 1000.0
        said = exchange.answer_said()
        if said is None and exchange.described is None:
            fragment = exchange.inquiry.fragment
            pairs, body = result_body(frontend.actor, fragment, noted.packed, status, sent, ms, error)
        else:
            pairs, body = self._full_result(frontend, exchange, status, sent, ms, error, said)
        frontend.share.spend(len(body) + _EVENT, now)
        corr = self._recorder.append(pairs, body, exchange.corr)
        exchange.corr = exchange.corr or corr

    def _full_result(
        self,
        frontend: Frontend,
        exchange: Forwarding,
        status: int,
        sent: int,
        ms: float,
        error: str,
        said: Particulars | None,
    ) -> tuple[int, bytes]:
        """A result that says more than its head did, packed."""
        event = request_event(
            actor_of(frontend.subject),
            exchange.described or exchange.inquiry.described,
            exchange.noted.fields,
            status=status,
            sent=sent,
            ms=ms,
            error=error,
            answer=said.fields if said is not None else None,
        )
        if said is not None and said.redacted:
            hidden = event.get("redacted", ())
            assert isinstance(hidden, tuple)
            event["redacted"] = (*hidden, *(f"answer.{name}" for name in said.redacted))
        del event["corr"]
        return pack_body(event)

    def request_denied(
        self, frontend: Frontend, inquiry: Inquiry, noted: Noted, sent: int, began: float
    ) -> None:
        """A request was answered by its denial."""
        self.counters.denied += 1
        self._refused(frontend, inquiry, noted.decision.rule, noted.packed, 403, sent, began)

    def request_turned_down(
        self, frontend: Frontend, inquiry: Inquiry, refusal: Refusal, sent: int, began: float
    ) -> None:
        """A request was answered by its subject's having had its share."""
        self.counters.turned_down += 1
        decision = packed(refused(refusal.reason, refusal.rule))
        self._refused(frontend, inquiry, refusal.rule, decision, refusal.status, sent, began)

    def _refused(
        self,
        frontend: Frontend,
        inquiry: Inquiry,
        rule: str,
        decision: bytes,
        status: int,
        sent: int,
        began: float,
    ) -> None:
        """Note an answer of ours: by itself, or counted with the like of it."""
        self.counters.requests += 1
        now = self.seconds()
        share = frontend.share
        if share.denied(inquiry.operation.action, rule, status, now):
            ms = (now - began) * 1000.0
            pairs, body = result_body(frontend.actor, inquiry.fragment, decision, status, sent, ms)
            share.spend(len(body) + _EVENT, now)
            self._recorder.append(pairs, body, reserved=True)

    def request_refused(
        self, frontend: Frontend, head: RequestHead | None, status: int, message: str, sent: int
    ) -> None:
        """A request that could not be read was answered with `status`."""
        self.counters.requests += 1
        self.counters.unreadable += 1
        if not frontend.share.denied("unknown", "", status, self.seconds()):
            return
        described = (
            describe_unreadable(head.method, head.target) if head is not None else describe_unreadable()
        )
        self._recorder.record(
            request_event(
                actor_of(frontend.subject),
                described,
                refused(message),
                status=status,
                sent=sent,
                error=message,
            )
        )

    def _record_aggregates(self, aggregates: list[Aggregate]) -> None:
        for each in aggregates:
            self._recorder.record(
                aggregate_event(
                    each.kind,
                    user=each.user,
                    via=each.via,
                    address=each.address,
                    action=each.action,
                    rule=each.rule,
                    status=each.status,
                    count=each.count,
                    seconds=each.last - each.first,
                )
            )

    def stream_ended(self, frontend: Frontend, exchange: Forwarding, tunnel: Tunnel, began: float) -> None:
        """A tunnel is over."""
        self.counters.tunnels += 1
        if exchange.noted.decision.audit == "denied" and not tunnel.reason:
            return
        self._recorder.record(
            stream_end_event(
                actor_of(frontend.subject),
                exchange.described or exchange.inquiry.described,
                exchange.noted.fields,
                corr=exchange.corr,
                received=tunnel.sent,
                sent=tunnel.received,
                ms=(self.seconds() - began) * 1000.0,
                error=tunnel.reason,
            )
        )


def _own_decision(rule: str, reason: str, message: str) -> Decision:
    """A denial that no rule of the policy made."""
    return Decision(effect="deny", rule=rule, reason=reason, message=message, audit="all", durability=None)

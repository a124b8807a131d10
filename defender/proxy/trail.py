"""What the proxy has to say for the record: the events of calls, and what earlier ones tell of later ones.

Every request ends in one result, or is counted with the like of it. Pure but for the recorder, which takes
events and never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from defender.contract.audit import (
    CallRecorder,
    Description,
    Event,
    actor_of,
    aggregate_event,
    decision_of,
    describe_unreadable,
    described_further,
    outlasting_event,
    refused,
    request_event,
    stream_end_event,
)
from defender.contract.fragments import attempt_body, packed, result_body
from defender.contract.packing import pack_body
from defender.contract.particulars import NOTHING, Particulars
from defender.contract.policy import Decision
from defender.contract.redaction import HIDDEN, shorten
from defender.http1.head import RequestHead
from defender.proxy.budget import Aggregate, Refusal
from defender.proxy.inspection import Inquiry
from defender.proxy.objects import Objects

if TYPE_CHECKING:
    from defender.proxy.forwarding import Forwarding
    from defender.proxy.frontend import Frontend
    from defender.proxy.tunnel import Tunnel

_NOTES = 4096
"""Packed decisions that are kept."""

_EVENT = 140
_DESCRIBED = 600
"""Bytes on disk: of any event what is not its body (the frame, the id, the time); of one that is not packed
here about the whole."""

_EXECS = frozenset(("container_exec_start", "container_exec_inspect", "container_exec_resize"))


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


class Trail:
    """Makes events and hands them to the recorder. `seconds` is the proxy's monotonic clock."""

    def __init__(self, recorder: CallRecorder, seconds: Callable[[], float]) -> None:
        self.counters = Counters()
        self.objects = Objects()
        self._recorder = recorder
        self._seconds = seconds
        self._notes: dict[int, Noted] = {}

    # -- decisions

    def noted(self, decision: Decision) -> Noted | None:
        """What `note` gave for a decision, None if it has not been asked."""
        return self._notes.get(id(decision))

    def note(self, decision: Decision, version: int, digest: str) -> Noted:
        """A decision as its events have it, made by the active policy of this version and digest."""
        fields = decision_of(decision, version, digest)
        noted = Noted(decision, fields, packed(fields))
        if len(self._notes) >= _NOTES:
            self._notes.clear()
        # The note keeps its decision alive, so that no other can have the same id.
        self._notes[id(decision)] = noted
        return noted

    def forget_notes(self) -> None:
        """Another policy is active: the same decision would have another version."""
        self._notes.clear()

    # -- calls

    def attempted(self, frontend: Frontend, call: Forwarding, told: Callable[[str], None]) -> bytes:
        """Have the attempt of an allowed call on disk before it is forwarded: `CallRecorder.append_durable`.

        Returns the id that joins the events of the call.
        """
        inquiry = call.inquiry
        described = self._described(call)
        fragment = inquiry.fragment if described is None else inquiry.fragment_of(described)
        pairs, body = attempt_body(frontend.actor, fragment, call.noted.packed)
        frontend.share.spend(len(body) + _EVENT, self._seconds())
        return self._recorder.append_durable(pairs, body, b"", told)

    def asks(self, call: Forwarding, status: int) -> bool:
        """Whether the record, or what is learned for it, needs the body of an answer with this status."""
        inquiry = call.inquiry
        if status >= 400:
            return True
        if not inquiry.asks:
            return False
        if inquiry.operation.action != "container_inspect":
            return True
        known = self.objects.container(str(inquiry.described.fields["target"]))
        return known is None or not (known.name and known.image)

    def answered(self, frontend: Frontend, call: Forwarding, status: int, sent: int, began: float) -> None:
        """An allowed call has its answer, whole."""
        noted = call.noted
        if status >= 400 or not call.inquiry.plain:
            self.ended(frontend, call, status, sent, began, "")
            return
        # Of such a call everything was known before. Most calls are like this.
        self.counters.requests += 1
        if noted.decision.audit == "denied":
            return
        now = self._seconds()
        fragment = call.inquiry.fragment
        pairs, body = result_body(
            frontend.actor, fragment, noted.packed, status, sent, (now - began) * 1000.0
        )
        frontend.share.spend(len(body) + _EVENT, now)
        corr = self._recorder.append(pairs, body, call.corr)
        call.corr = call.corr or corr

    def ended(
        self, frontend: Frontend, call: Forwarding, status: int, sent: int, began: float, error: str
    ) -> None:
        """An allowed call has its answer, or never will: note it, as the deciding rule's `audit` says."""
        counters = self.counters
        counters.requests += 1
        noted = call.noted
        if error and status in (502, 503, 504):
            counters.engine_errors += 1
        inquiry = call.inquiry
        said = call.answer_said()
        described = self._described(call) if call.said is not None or inquiry.about else None
        if (status == 404 or inquiry.operation.action in _TELLING) and call.has_answer and not error:
            self._learn(frontend, call, status, said)
            described = call.described or described
        if status == 101:
            call.described = described  # the stream's end is to name the container too, if it is gone by then
        if noted.decision.audit == "denied" and not error:
            return
        now = self._seconds()
        ms = (now - began) * 1000.0
        if said is None and (described is None or call.said is None):
            fragment = inquiry.fragment if described is None else inquiry.fragment_of(described)
            error = shorten(error) if error else ""
            pairs, body = result_body(frontend.actor, fragment, noted.packed, status, sent, ms, error)
        else:
            event = request_event(
                actor_of(frontend.subject),
                described or inquiry.described,
                noted.fields,
                status=status,
                sent=sent,
                ms=ms,
                error=error,
                answer=said.fields if said is not None else None,
            )
            pairs, body = _packed(event, said)
        frontend.share.spend(len(body) + _EVENT, now)
        corr = self._recorder.append(pairs, body, call.corr)
        call.corr = call.corr or corr

    def stream_ended(self, frontend: Frontend, call: Forwarding, tunnel: Tunnel, began: float) -> None:
        """A tunnel is over."""
        self.counters.tunnels += 1
        if call.noted.decision.audit == "denied" and not tunnel.reason:
            return
        now = self._seconds()
        event = stream_end_event(
            actor_of(frontend.subject),
            self._described(call) or call.inquiry.described,
            call.noted.fields,
            corr=call.corr,
            received=tunnel.sent,
            sent=tunnel.received,
            ms=(now - began) * 1000.0,
            error=tunnel.reason,
        )
        pairs, body = _packed(event)
        frontend.share.spend(len(body) + _EVENT, now)
        self._recorder.append(pairs, body, call.corr)

    def outlasts(self, frontend: Frontend, call: Forwarding, cause: str, limit: float) -> None:
        """A stream goes on though what let it in is gone."""
        described = self._described(call) or call.inquiry.described
        event = outlasting_event(actor_of(frontend.subject), described, cause, corr=call.corr, limit=limit)
        pairs, body = _packed(event)
        frontend.share.spend(len(body) + _EVENT, self._seconds())
        self._recorder.append(pairs, body, call.corr)

    # -- requests that are not forwarded

    def denied(self, frontend: Frontend, inquiry: Inquiry, noted: Noted, sent: int, began: float) -> None:
        """A request was answered by its denial."""
        self.counters.denied += 1
        self._refused(frontend, inquiry, noted.decision.rule, noted.packed, 403, sent, began)

    def turned_down(
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
        now = self._seconds()
        share = frontend.share
        if share.denied(inquiry.operation.action, rule, status, now):
            ms = (now - began) * 1000.0
            pairs, body = result_body(frontend.actor, inquiry.fragment, decision, status, sent, ms)
            share.spend(len(body) + _EVENT, now)
            self._recorder.append(pairs, body, reserved=True)

    def unreadable(
        self, frontend: Frontend, head: RequestHead | None, status: int, message: str, sent: int
    ) -> None:
        """A request that could not be read was answered with `status`."""
        self.counters.requests += 1
        self.counters.unreadable += 1
        now = self._seconds()
        if not frontend.share.denied("unknown", "", status, now):
            return
        frontend.share.spend(_DESCRIBED, now)
        described = (
            describe_unreadable(head.method, head.target) if head is not None else describe_unreadable()
        )
        actor = actor_of(frontend.subject)
        event = request_event(actor, described, refused(message), status=status, sent=sent, error=message)
        self._recorder.record(event)

    def aggregated(self, aggregates: list[Aggregate]) -> None:
        """What was counted instead of being recorded one by one."""
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

    # -- what earlier calls tell

    def _described(self, call: Forwarding) -> Description | None:
        """The request with its body's particulars, the container and the command, None if none are known."""
        if call.described is not None:
            return call.described
        inquiry, said = call.inquiry, call.said
        if said is None and not inquiry.about:
            return None
        action = inquiry.operation.action
        target = str(inquiry.described.fields["target"])
        body, redacted = (said or NOTHING).fields, (said or NOTHING).redacted
        if action in _EXECS:
            command = self.objects.exec(target)
            if command is not None and command.command:
                body = {**body, "command": command.command}
                if HIDDEN in command.command:
                    redacted = (*redacted, "command")
        container = self.objects.container_of(action, target, body)
        if not body:
            return None if container is None else inquiry.described_with(container)
        described = described_further(inquiry.described, body=body, redacted=redacted, container=container)
        if container is not None or action not in _LEARNING:
            call.described = described
        return described

    def _learn(self, frontend: Frontend, call: Forwarding, status: int, said: Particulars | None) -> None:
        """Remember what an answer tells of containers and commands."""
        action = call.inquiry.operation.action
        fields = call.inquiry.described.fields
        target = str(fields["target"])
        objects = self.objects
        if status == 404:
            if action in _EXECS:
                objects.forget_exec(target)
            elif call.inquiry.about:
                objects.forget_container(target)
        elif action == "container_rename" and status < 300:
            query = fields["query"]
            name = query.get("name") if isinstance(query, dict) else None
            if isinstance(name, str):
                objects.renamed(target, name)
        elif action == "container_delete" and status < 300:
            objects.forget_container(target)
        elif action == "container_wait" and status < 300:
            query = fields["query"]
            if isinstance(query, dict) and query.get("condition") == "removed":
                # As `docker run --rm` asks: the Engine removes the container, and no request tells of it.
                objects.forget_container(target)
        elif action == "container_exec_inspect" and status < 300:
            if said is not None and "exit_code" in said.fields and not said.fields.get("running"):
                objects.forget_exec(target)  # it ran, and cannot be started again
        elif said is not None and action in _LEARNING and status < 300:
            self._learn_more(action, target, call.said or NOTHING, said.fields, frontend.subject.user)
            if action == "container_create":
                container = objects.container_of(action, _text(said.fields, "id"))
                call.described = described_further(
                    call.inquiry.described,
                    body=(call.said or NOTHING).fields,
                    redacted=(call.said or NOTHING).redacted,
                    container=container,
                )

    def _learn_more(
        self, action: str, target: str, asked: Particulars, said: Mapping[str, object], user: str
    ) -> None:
        identity = _text(said, "id")
        if action == "container_create":
            self.objects.learned_container(identity, target, _text(asked.fields, "image"))
        elif action == "container_inspect":
            self.objects.learned_container(identity, _text(said, "name"), _text(said, "image"))
        else:
            self.objects.learned_exec(identity, target, _text(asked.fields, "command"), user)


_LEARNING = frozenset(("container_create", "container_inspect", "container_exec_create"))
_TELLING = _LEARNING | {
    "container_rename",
    "container_delete",
    "container_wait",
    "container_exec_inspect",
}


def _text(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _packed(event: Event, said: Particulars | None = None) -> tuple[int, bytes]:
    """An event for `CallRecorder.append`; `said` gives the names of what is hidden in its answer."""
    if said is not None and said.redacted:
        hidden = event.get("redacted", ())
        assert isinstance(hidden, tuple)
        event["redacted"] = (*hidden, *(f"answer.{name}" for name in said.redacted))
    event.pop("corr", None)
    return pack_body(event)

"""Events: what the defender notes of every decision, and how one becomes a line.

An event is a dict with the keys of docs/reference/event.schema.json. The builders here give its content;
the recorder that takes it adds who, when and where in the order of all events: `v`, `id`, `agent`, `epoch`,
`seq`, `ts_wall`, and `corr` where the builder was given none (an event that stands alone is joined to
itself).

The parts of a request's events are built once and used in each: `actor_of` once per connection, `describe`
and `decision_of` once per request.  No builder keeps or copies headers or bodies. Times are arguments: `ms`
are milliseconds, `ts_wall` comes from unix seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from defender.contract.facts import Subject
from defender.contract.redaction import (
    HIDDEN,
    MAX_PATH,
    hide_url_secrets,
    redact_query,
    shorten,
)

Event = dict[str, object]

#: Version of the schema; a reader passes over events of a version it does not know.
SCHEMA_VERSION: Final = 1

#: Keys that every event has.
REQUIRED: Final = ("v", "id", "agent", "epoch", "seq", "ts_wall", "kind", "phase", "corr", "actor", "req")

KINDS: Final[Mapping[str, str]] = {
    "engine": "A call of the Docker Engine's API, or a stream that it became.",
    "identity": "A peer that was turned away before its first request; the check that failed.",
    "control": "A use of the control socket, a switch of listeners, a stream that outlasts what let it in.",
    "policy": "A policy or lock file that was activated, or one that was kept out.",
    "defender": "The defender started or stopped.",
    "gap": "Events that could not be written, with their number.",
    "admin": "What somebody did with the controller, or wanted to, and what the controller did by itself.",
}
PHASES: Final[Mapping[str, str]] = {
    "attempt": "A call that changes something, or opens a stream, is about to be forwarded.",
    "result": "A call has its answer, or never will.",
    "stream_end": "A stream has ended; its call has a result of its own, when the stream began.",
}


class Recorder(Protocol):
    """Takes events; the one thing that a feature knows of the audit trail."""

    def record(self, event: Event) -> None:
        """Take an event over; the caller does not touch it again. Never blocks and never raises."""


class CallRecorder(Recorder, Protocol):
    """Takes the events of calls, packed: what `packing.pack_body` or `fragments.result_body` made.

    No method blocks or raises. Each returns the event's id, which `corr` of the events that belong to it
    repeats. An empty `corr` joins an event to itself.
    """

    def append(self, pairs: int, body: bytes, corr: bytes = b"", *, reserved: bool = False) -> bytes:
        """Take a packed event. What is `reserved` finds room even when ordinary events have filled theirs."""

    def append_durable(self, pairs: int, body: bytes, corr: bytes, told: Callable[[str], None]) -> bytes:
        """Take a packed event whose writer waits: `told("")` in a later turn once it is on disk, or
        `told(reason)` when it cannot be brought there.
        """


class Rule(Protocol):
    """What an event says of a decision (`policy.Decision` is one)."""

    @property
    def effect(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Description:
    """A request as its events show it: `fields` becomes `req`, `redacted` names what is hidden in it."""

    fields: dict[str, object]
    redacted: tuple[str, ...] = ()


def actor_of(subject: Subject) -> dict[str, object]:
    """The `actor` of a subject's events; build it once per connection."""
    actor: dict[str, object] = {"user": subject.user, "groups": list(subject.groups), "via": subject.via}
    if subject.address is not None:
        actor["src"] = address_text(subject.address, subject.port)
    if subject.serial:
        actor["serial"] = subject.serial
    if subject.identity:
        actor["identity"] = subject.identity
    if subject.uid is not None:
        actor["uid"] = subject.uid
    if subject.pid is not None:
        actor["pid"] = subject.pid
    return actor


def address_text(address: str, port: int) -> str:
    """``10.1.2.3:51234`` or ``[2001:db8::1]:51234``."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def describe(
    action: str,
    method: str,
    path: str,
    pairs: Iterable[tuple[str, str]] = (),
    variables: Mapping[str, str] | None = None,
    api: tuple[int, int] | None = None,
) -> Description:
    """A request that was understood: its canonical action and versionless decoded path, its decoded query.

    `variables` are the path template's; with the query they give the `target`: the container, image,
    network or other object that the call is about, "" if it names none.
    """
    query: dict[str, object] = {}
    redacted: tuple[str, ...] = ()
    if pairs:
        query, redacted = redact_query(action, pairs)
    fields: dict[str, object] = {
        "action": action,
        "method": method,
        "api": f"{api[0]}.{api[1]}" if api else "",
        "path": path if len(path) <= MAX_PATH else shorten(path, MAX_PATH),
        "query": query,
        "target": _target(action, variables, query),
    }
    return Description(fields, redacted)


def described_further(
    described: Description,
    *,
    body: Mapping[str, object],
    redacted: Sequence[str] = (),
    container: Mapping[str, object] | None = None,
) -> Description:
    """A description with what the request's body says (`redacted` of that), and the container it is about."""
    fields = dict(described.fields)
    if container:
        fields["container"] = container
    if body:
        fields["body"] = body
    return Description(fields, (*described.redacted, *(f"body.{name}" for name in redacted)))


def describe_unreadable(method: str = "", target: str = "") -> Description:
    """A request that could not be read: as much of its request line as can be shown, nothing of its query."""
    path, mark, _ = target.partition("?")
    return Description(
        {
            "action": "unknown",
            "method": shorten(method, 16),
            "api": "",
            "path": shorten(hide_url_secrets(path), MAX_PATH),
            "query": {},
            "target": "",
        },
        ("query",) if mark else (),
    )


_BY_QUERY: Final[Mapping[str, tuple[str, ...]]] = {
    "container_create": ("name",),
    "container_commit": ("container",),
    "image_build": ("t", "remote"),
    "image_create": ("fromImage", "fromSrc"),
    "image_search": ("term",),
    "images_search": ("term",),
    "images_archive": ("names",),
    "build_cancel": ("id",),
    "plugin_create": ("name",),
    "plugin_pull": ("remote",),
    "plugin_privileges": ("remote",),
}


def _target(action: str, variables: Mapping[str, str] | None, query: Mapping[str, object]) -> str:
    """The object of a call; from the query only what redaction left."""
    if variables:
        name = variables.get("name") or variables.get("id")
        if name:
            return name if len(name) <= MAX_PATH else shorten(name, MAX_PATH)
    for key in _BY_QUERY.get(action, ()):
        value = query.get(key)
        if not value:
            continue
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        tag = query.get("tag")
        if key == "fromImage" and isinstance(tag, str) and tag:
            text += f"@{tag}" if ":" in tag else f":{tag}"
        return shorten(text)
    return ""


def decision_of(decision: Rule, version: int = 0, digest: str = "") -> dict[str, object]:
    """The `decision` of an event; `version` and `digest` are the active policy's, 0 and "" if there is
    none.
    """
    return {
        "effect": decision.effect,
        "rule": decision.rule,
        "version": version,
        "digest": digest,
        "reason": decision.reason,
    }


def refused(reason: str, rule: str = "") -> dict[str, object]:
    """The `decision` where no policy was asked: a request that cannot be read, a peer that is not let in."""
    return {"effect": "deny", "rule": rule, "version": 0, "digest": "", "reason": shorten(reason)}


def request_event(
    actor: Mapping[str, object],
    request: Description,
    decision: Mapping[str, object],
    *,
    corr: str | bytes = "",
    status: int | None = None,
    sent: int = 0,
    ms: float = 0.0,
    error: str = "",
    answer: Mapping[str, object] | None = None,
) -> Event:
    """An Engine call: its attempt while `status` is None, then its result.

    `sent` counts the bytes of the answer's body, `ms` runs from the end of the request's head to the end of
    the answer (of its head, where it becomes a stream). `status` is the one that the client got, 0 if it
    went away before. `error` says why a call ended early, in a few words; `answer` what the Engine's said.
    """
    event: Event = {
        "kind": "engine",
        "phase": "attempt" if status is None else "result",
        "corr": corr,
        "actor": actor,
        "req": request.fields,
        "decision": decision,
    }
    if status is not None:
        result: dict[str, object] = {"status": status, "bytes": sent, "ms": round(ms, 3)}
        if error:
            result["error"] = shorten(error)
        if answer:
            result["answer"] = answer
        event["result"] = result
    if request.redacted:
        event["redacted"] = request.redacted
    return event


def stream_end_event(
    actor: Mapping[str, object],
    request: Description,
    decision: Mapping[str, object],
    *,
    corr: str | bytes,
    received: int,
    sent: int,
    ms: float,
    error: str = "",
) -> Event:
    """The end of a stream: bytes from the client (`rx`) and to it (`tx`), and how long it was open.

    `error` says what ended it if neither side did: a vanished peer, a policy that no longer allows it.
    """
    result: dict[str, object] = {"rx": received, "tx": sent, "ms": round(ms, 3)}
    if error:
        result["error"] = shorten(error)
    event: Event = {
        "kind": "engine",
        "phase": "stream_end",
        "corr": corr,
        "actor": actor,
        "req": request.fields,
        "decision": decision,
        "result": result,
    }
    if request.redacted:
        event["redacted"] = request.redacted
    return event


def control_event(
    actor: Mapping[str, object],
    action: str,
    *,
    fields: Mapping[str, object] | None = None,
    ok: bool = True,
    detail: str = "",
    reason: str = "",
) -> Event:
    """A use of the control socket, or a switch of the listeners (`listener_set` and the like).

    `reason` is why a use was denied; `ok` and `detail` say how one that was let in went.
    """
    event: Event = {
        "kind": "control",
        "phase": "result",
        "corr": "",
        "actor": actor,
        "req": {"action": action, "fields": dict(fields or {})},
    }
    if reason:
        event["decision"] = refused(reason)
    event["result"] = {"ok": ok and not reason, "detail": shorten(detail or reason, MAX_PATH)}
    return event


def outlasting_event(
    actor: Mapping[str, object], request: Description, cause: str, *, corr: str | bytes, limit: float
) -> Event:
    """A stream goes on though what let it in is gone: `cause`. `limit` is for how many seconds, 0 for any."""
    fields = {"action": request.fields["action"], "seconds": limit}
    target = request.fields.get("target")
    event = control_event(actor, "stream_outlasts", fields=fields, detail=cause)
    event["corr"] = corr
    if target:
        event["req"] = {"action": "stream_outlasts", "target": target, "fields": fields}
    return event


def policy_event(
    action: str,
    source: str,
    *,
    ok: bool,
    version: int = 0,
    digest: str = "",
    rules: int = 0,
    problems: Sequence[str] = (),
) -> Event:
    """A policy (`policy_load`) or lock file (`locks_load`) that was read.

    If `ok`, `version`, `digest` and `rules` are those of what is active now; if not, of what stays active,
    and `problems` are the reader's lines.
    """
    return {
        "kind": "policy",
        "phase": "result",
        "corr": "",
        "actor": SYSTEM,
        "req": {"action": action, "target": source},
        "result": {
            "ok": ok,
            "version": version,
            "digest": digest,
            "rules": rules,
            "problems": [shorten(problem) for problem in problems[:20]],
        },
    }


def identity_event(
    check: str,
    detail: str,
    *,
    subject: str = "",
    address: str | None = None,
    port: int = 0,
    via: str = "tls",
) -> Event:
    """A peer that was not let in: the check that failed, and for whom as far as that is known."""
    actor: dict[str, object] = {"user": shorten(subject), "groups": [], "via": via}
    if address is not None:
        actor["src"] = address_text(address, port)
    return {
        "kind": "identity",
        "phase": "result",
        "corr": "",
        "actor": actor,
        "req": {"action": "handshake"},
        "decision": refused(f"{check}: {detail}" if check else detail),
    }


def defender_event(action: str, *, version: str, ok: bool = True, detail: str = "") -> Event:
    """`defender_start` or `defender_stop` of this version of the program."""
    return {
        "kind": "defender",
        "phase": "result",
        "corr": "",
        "actor": SYSTEM,
        "req": {"action": action},
        "result": {"ok": ok, "detail": shorten(detail), "program": version},
    }


def aggregate_event(
    kind: str,
    *,
    user: str,
    via: str,
    address: str,
    action: str,
    rule: str,
    status: int,
    count: int,
    seconds: float,
) -> Event:
    """`count` like refusals of `kind` "engine" or "identity" within `seconds`, none recorded by itself.

    `user` and `action` may be "others": more than one of them. `rule` is what refused: a rule of the policy,
    a setting that was exceeded, or the check that a peer failed. Addresses are without a port.
    """
    actor: dict[str, object] = {"user": shorten(user), "groups": [], "via": via}
    if address:
        actor["src"] = address
    result: dict[str, object] = {"count": count, "ms": round(seconds * 1000, 3)}
    if kind == "engine":
        result["status"] = status
    return {
        "kind": kind,
        "phase": "result",
        "corr": "",
        "actor": actor,
        "req": {"action": action},
        "decision": refused(f"{count} times, not recorded one by one", rule),
        "result": result,
    }


def gap_event(dropped: int, first: int, seconds: float, reason: str) -> Event:
    """`dropped` events are lost, 0 if nobody knows how many; the first came `seconds` ago.

    `first` is its sequence number, 0 if they were dropped before they had any.
    """
    return {
        "kind": "gap",
        "phase": "result",
        "corr": "",
        "actor": SYSTEM,
        "req": {"action": "audit_gap"},
        "result": {
            "dropped": dropped,
            "first_seq": first,
            "ms": round(seconds * 1000, 3),
            "reason": shorten(reason),
        },
    }


#: The actor of what the defender does by itself.
SYSTEM: Final[Mapping[str, object]] = {"user": "", "groups": [], "via": "defender"}


def timestamp(seconds: float) -> str:
    """Unix seconds as UTC text with milliseconds: ``2026-11-21T22:13:03.402Z``."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


_ENCODE: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False).encode


def to_line(event: Mapping[str, object]) -> bytes:
    """One line of JSON in ASCII: no control character of a request can break it or reach a terminal.

    Raises TypeError or ValueError for a value that is not JSON, which no builder here makes.
    """
    line = _ENCODE(event)
    if "\x7f" in line:
        line = line.replace("\x7f", "\\u007f")
    return line.encode("ascii") + b"\n"


__all__ = [
    "HIDDEN",
    "KINDS",
    "PHASES",
    "REQUIRED",
    "SCHEMA_VERSION",
    "SYSTEM",
    "CallRecorder",
    "Description",
    "Event",
    "Recorder",
    "Rule",
    "actor_of",
    "address_text",
    "control_event",
    "decision_of",
    "defender_event",
    "describe",
    "describe_unreadable",
    "gap_event",
    "identity_event",
    "policy_event",
    "redact_query",
    "refused",
    "request_event",
    "stream_end_event",
    "timestamp",
    "to_line",
]

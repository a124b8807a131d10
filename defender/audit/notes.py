"""What the spool says of itself: events of its own, and what is left of an event that is too large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from defender.audit.commands import Removed
from defender.audit.recovery import Finding
from defender.contract.audit import SYSTEM, Event, gap_event
from defender.contract.redaction import MAX_PATH, shorten

#: Kinds of events that the reserved part of a full spool is for, beside denials.
RESERVED_KINDS: Final = frozenset({"control", "policy", "defender", "gap"})


def note(action: str, detail: str, *, target: str = "", ok: bool = True) -> Event:
    """An event of the spool itself: `action` is ``audit_`` and what happened, `target` a file of it."""
    request: dict[str, object] = {"action": action}
    if target:
        request["target"] = shorten(target, MAX_PATH)
    return {
        "kind": "defender",
        "phase": "result",
        "actor": SYSTEM,
        "req": request,
        "result": {"ok": ok, "detail": shorten(detail, MAX_PATH), "program": ""},
    }


def gap(dropped: int, first_seq: int, seconds: float, reason: str) -> Event:
    """A `gap_event`, ready to be packed."""
    event = gap_event(dropped, first_seq, max(0.0, seconds), reason)
    del event["corr"]
    return event


def of_finding(finding: Finding) -> Event:
    """The event of what was found at the start."""
    if finding.kind == "missing":
        count = finding.last_seq - finding.first_seq + 1 if finding.last_seq else 0
        return gap(count, finding.first_seq, 0.0, f"{finding.name}: {finding.detail}")
    action, said = {
        "altered": ("audit_altered", "somebody or something changed it"),
        "aside": ("audit_aside", "it was moved aside"),
        "damaged": ("audit_damaged", "its good records still count"),
        "torn": ("audit_torn", "it was cut after the last good record"),
        "unclosed": ("audit_unclosed", "what it had not synced may be lost"),
    }[finding.kind]
    return note(action, f"{finding.detail}; {said}", target=finding.name, ok=False)


def of_removed(removed: Removed) -> Event:
    """The event of a segment that made room."""
    last = str(removed.last_seq) if removed.last_seq else "its end"
    return note(
        "audit_rotate",
        f"the oldest events made room (audit.max_bytes): epoch {removed.epoch:016x}, sequence numbers "
        f"{removed.first_seq} to {last}",
        target=removed.name,
    )


def of_vanished(vanished: Removed) -> Event:
    """The event of a segment that somebody took away while the defender ran."""
    count = max(0, vanished.last_seq - vanished.first_seq + 1) if vanished.last_seq else 0
    return gap(count, vanished.first_seq, 0.0, f"{vanished.name} was taken away")


def reduced(event: Mapping[str, object], size: int) -> Event:
    """What is kept of an event of `size` bytes, which no segment holds; a few hundred bytes at most."""
    small: Event = {
        "kind": str(event.get("kind", "engine"))[:32],
        "phase": str(event.get("phase", "result"))[:32],
        "actor": SYSTEM,
        "req": {"action": "unknown", "fields": {"reduced": size}},
        "redacted": ["*"],
    }
    actor, request = event.get("actor"), event.get("req")
    if isinstance(actor, Mapping):
        small["actor"] = {
            "user": shorten(str(actor.get("user", ""))),
            "groups": [],
            "via": shorten(str(actor.get("via", "defender"))),
        }
    if isinstance(request, Mapping):
        kept: dict[str, object] = {
            key: shorten(str(request[key]))
            for key in ("action", "method", "api", "path", "target")
            if key in request
        }
        small["req"] = {**kept, "fields": {"reduced": size}}
    for key in ("decision", "result"):
        value = event.get(key)
        if isinstance(value, Mapping):
            small[key] = {
                str(name)[:32]: shorten(part) if isinstance(part, str) else part
                for name, part in list(value.items())[:16]
                if isinstance(part, str | int | float)
            }
    return small

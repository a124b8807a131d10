"""Events as syslog messages: RFC 5424, counted by octets for a stream (RFC 5425 section 4.3).

    LENGTH <PRI>1 TIME HOSTNAME APP-NAME - MSGID [defender@PEN ...] JSON

HOSTNAME is the defender that recorded the event, MSGID the action (or the kind, where there is none), the
structured data repeats what a receiver filters by, and the message is the event's JSON line, in ASCII.

No message is longer than the receiver takes: of an event that is too long the parts that grow are left out of
the JSON one by one, and the key `shortened` names them ("*": all but the event's identity). The structured
data, bounded too, is always there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from controller.sinks.jsonl import event_line, part, seconds_of, text_of

MIN_OCTETS: Final = 2048
"""What every receiver must take, RFC 5425 section 4.3.1."""
USUAL_OCTETS: Final = 8192
"""What a receiver should take, by the same section, and what rsyslog takes as it is installed."""
MAX_OCTETS: Final = 1024 * 1024

FACILITY_AUDIT: Final = 13
"""RFC 5424 table 1, "log audit"."""

ENTERPRISE: Final = 32473
"""The number that RFC 5612 keeps for examples, as in the certificates' extension."""

ERROR: Final = 3
WARNING: Final = 4
NOTICE: Final = 5
INFORMATIONAL: Final = 6

# Longest value of the structured data, in characters, and all of it, in octets: there is room for a message.
_MAX_PARAM: Final = 128
_MAX_STRUCTURED: Final = 1024
_NOT_PRINTABLE: Final = re.compile(r"[^\x21-\x7e]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPED: Final = re.compile(r'["\\\]]')
_ODD: Final = re.compile(r'["\\\]\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_UTC: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z")

# What is left out of a long event, in this order: the parts that clients make long first.
_LEFT_OUT: Final = (
    ("req", "body"),
    ("req", "query"),
    ("req", "fields"),
    ("req", "container"),
    ("result", "problems"),
    ("result", "answer"),
    ("actor", "groups"),
    ("", "redacted"),
    ("", "before"),
    ("", "after"),
)
_KEPT: Final = ("v", "id", "agent", "epoch", "seq", "ts_wall", "kind", "phase", "corr")
_MAX_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class SyslogFormat:
    """How events are written for one receiver.

    `facility` is 0 to 23; `max_octets` bounds a message without its count; `app_name` at most 48 printable
    characters.
    """

    facility: int = FACILITY_AUDIT
    app_name: str = "defender-fleet"
    max_octets: int = USUAL_OCTETS

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field, for what RFC 5424 has no room for."""
        if not 0 <= self.facility <= 23:
            raise ValueError(f"facility is a number from 0 to 23, not {self.facility}")
        if not 0 < len(self.app_name) <= 48 or _NOT_PRINTABLE.search(self.app_name):
            raise ValueError("app_name is 1 to 48 printable ASCII characters without a space")
        if not MIN_OCTETS <= self.max_octets <= MAX_OCTETS:
            raise ValueError(f"max_octets is a number from {MIN_OCTETS} to {MAX_OCTETS}")

    def encode(self, event: Mapping[str, object]) -> bytes:
        """The event as one counted frame."""
        head = self._head(event)
        line = event_line(event)[:-1]
        if len(head) + len(line) > self.max_octets:
            line = shortened_line(event, self.max_octets - len(head))
        return b"%d %b%b" % (len(head) + len(line), head, line)

    def _head(self, event: Mapping[str, object]) -> bytes:
        stamp = event.get("ts_wall")
        if not isinstance(stamp, str) or not _UTC.fullmatch(stamp) or seconds_of(event) is None:
            stamp = "-"
        message = part(event, "req").get("action") or event.get("kind")
        return (
            f"<{self.facility * 8 + severity(event)}>1 {stamp} {_name(event.get('agent'), 255)}"
            f" {self.app_name} - {_name(message, 32)} {_structured(event)} "
        ).encode()


def severity(event: Mapping[str, object]) -> int:
    """How grave an event is: lost events and failures, refusals, changes, the rest."""
    result = part(event, "result")
    if event.get("kind") == "gap":
        return ERROR
    if part(event, "decision").get("effect") == "deny":
        return WARNING
    if result.get("ok") is False:
        return ERROR
    status = result.get("status")
    if isinstance(status, int) and status >= 500:
        return WARNING
    return INFORMATIONAL if event.get("kind") == "engine" else NOTICE


def shortened_line(event: Mapping[str, object], room: int) -> bytes:
    """The event's JSON in at most `room` octets, without a line feed; `shortened` names what is left out.

    `room` is at least 100.
    """
    short: dict[str, Any] = dict(event)
    left_out: list[str] = []
    for outer, key in _LEFT_OUT:
        holder = short if not outer else dict(part(short, outer))
        if holder.pop(key, None) is None:
            continue
        if outer:
            short[outer] = holder
        left_out.append(f"{outer}.{key}" if outer else key)
        line = event_line({**short, "shortened": left_out})[:-1]
        if len(line) <= room:
            return line
    least = {key: text_of(event[key])[:_MAX_KEPT] for key in _KEPT if key in event}
    for key in ("v", "seq"):
        if isinstance(event.get(key), int) and len(str(event[key])) <= 20:
            least[key] = event[key]  # type: ignore[assignment]
    line = event_line({**least, "shortened": ["*"]})[:-1]
    return line if len(line) <= room else b'{"shortened":["*"]}'


def _structured(event: Mapping[str, object]) -> str:
    actor, request = part(event, "actor"), part(event, "req")
    decision, result = part(event, "decision"), part(event, "result")
    pairs = (
        ("id", event.get("id")),
        ("agent", event.get("agent")),
        ("epoch", event.get("epoch")),
        ("seq", event.get("seq")),
        ("kind", event.get("kind")),
        ("phase", event.get("phase")),
        ("user", actor.get("user")),
        ("src", actor.get("src")),
        ("action", request.get("action")),
        ("effect", decision.get("effect")),
        ("rule", decision.get("rule")),
        ("status", result.get("status")),
    )
    shown, room = "", _MAX_STRUCTURED
    for name, value in pairs:
        if value in (None, ""):
            continue
        pair = f' {name}="{_value(value)}"'
        room -= len(pair) if pair.isascii() else len(pair.encode())
        if room >= 0:
            shown += pair
    return f"[defender@{ENTERPRISE}{shown}]"


def _value(value: object) -> str:
    """A parameter's value, RFC 5424 section 6.3.3: escaped; what could break a line stands as "?"."""
    text = (value if isinstance(value, str) else text_of(value))[:_MAX_PARAM]
    if _ODD.search(text) is None:
        return text
    text = _CONTROL.sub("?", text)
    return _ESCAPED.sub(lambda found: "\\" + found[0], text)


def _name(value: object, longest: int) -> str:
    """A header's field: printable ASCII without a space, "-" for nothing."""
    return _NOT_PRINTABLE.sub("_", text_of(value)[:longest]) or "-"

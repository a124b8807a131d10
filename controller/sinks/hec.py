"""Events for Splunk's HTTP Event Collector, its event endpoint: objects one after the other in one POST.

An answer 200 means that the collector has the batch, not that it is indexed: what it holds in memory is lost
if it dies then. Indexer acknowledgment, which only some installations have, is not spoken.

The codes are those of Splunk's documentation, "Troubleshoot HTTP Event Collector".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from controller.sinks.answers import Answer, HttpAnswer, Refused, Taken, Unavailable, describe, judge
from controller.sinks.jsonl import event_line, seconds_of, text_of
from controller.sinks.webhook import Post

PATH: Final = "/services/collector/event"

#: Codes that come with a 400 and speak of an event; the others speak of the token or the settings.
ABOUT_EVENTS: Final = frozenset({5, 6, 12, 13, 15})
"""No data, invalid data format, event field missing, event field blank, error in indexed fields."""

_TOKEN: Final = re.compile(r"[\x21-\x7e]{8,256}")
_NAME: Final = re.compile(r"[A-Za-z0-9_:.\-]{1,128}")


@dataclass(frozen=True, slots=True)
class HecFormat:
    """How events are written for one collector, and the token, which no repr shows.

    `index` "" leaves the choice to the token's default.
    """

    token: str = field(repr=False)
    index: str = ""
    sourcetype: str = "defender:audit"
    source: str = "defender-fleet"

    def __post_init__(self) -> None:
        """Raise ValueError, naming the field and never the token, for what is none."""
        if not _TOKEN.fullmatch(self.token):
            raise ValueError("token is 8 to 256 printable characters without a space")
        for name, value in (("index", self.index), ("sourcetype", self.sourcetype), ("source", self.source)):
            if not _NAME.fullmatch(value) and (value or name != "index"):
                raise ValueError(f"{name} is up to 128 letters, digits and the characters _ : . -")

    def encode(self, event: Mapping[str, object]) -> bytes:
        """The collector's envelope: the event's time, the defender as `host`, the native JSON as `event`."""
        envelope: dict[str, object] = {
            "host": text_of(event.get("agent"))[:255] or "-",
            "source": self.source,
            "sourcetype": self.sourcetype,
        }
        moment = seconds_of(event)
        if moment is not None:
            envelope["time"] = round(moment, 3)
        if self.index:
            envelope["index"] = self.index
        return event_line(envelope)[:-2] + b',"event":' + event_line(event)[:-1] + b"}\n"

    def post(self, envelopes: Sequence[bytes], now: float) -> Post:
        """The request that carries the envelopes; `now` is not needed."""
        return Post(
            (("content-type", "application/json"), ("authorization", f"Splunk {self.token}")),
            b"".join(envelopes),
        )


def judge_hec(answer: HttpAnswer) -> Answer:
    """What a collector's answer says of the batch."""
    code, words, first = _said(answer.body)
    reason = describe(answer, words)
    if answer.status == 400 and code is not None:
        if code in ABOUT_EVENTS:
            return Refused(reason, first)
        return Unavailable(f"{reason}; check the sink's settings and the token's in the collector")
    if answer.status == 200 and code not in (None, 0):
        return Unavailable(reason)
    judged = judge(answer)
    if isinstance(judged, Taken) and answer.status != 200:
        # A collector answers 200; something else stands where it should.
        return Unavailable(f"{reason}; this is not an event collector's answer")
    return judged


def _said(body: bytes) -> tuple[int | None, str, int | None]:
    """The code, the words and the number of the first bad event in an answer, None for what is not there."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None, "", None
    if not isinstance(said, dict):
        return None, "", None
    code, words, first = said.get("code"), said.get("text"), said.get("invalid-event-number")
    return (
        code if type(code) is int else None,
        words if isinstance(words, str) else "",
        first if type(first) is int and first >= 0 else None,
    )

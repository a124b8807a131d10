"""The books of a soak: every event of the defender is read as it comes, and what must follow follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from defender.contract.actions import OPERATIONS

Event = Mapping[str, Any]

RECORDED_FIRST = frozenset(operation.action for operation in OPERATIONS if operation.record_first)
SHOWN = 10
"""Problems of one kind that are kept; more are counted."""


class Ledger:
    """Checks a trail of events while it forgets them.

    What is checked: sequence numbers have no hole; a served call that must be recorded first has its attempt
    before its result; an attempt gets one result; a stream that began ends. `problems` says what was not so.

    Attributes:
        events: how many were read; `notes` of them, by kind and action, were not of Engine calls.
        results: by user and by status, of the answers that were given, those of aggregates included.
        cut: streams that ended because they were no longer allowed.
    """

    def __init__(self) -> None:
        self.events = 0
        self.notes: Counter[str] = Counter()
        self.results: Counter[tuple[str, int]] = Counter()
        self.errors: Counter[str] = Counter()
        self.cut = 0
        self._attempts: dict[str, str] = {}
        self._streams: dict[str, str] = {}
        self._next: tuple[str, int] | None = None
        self._problems: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def enter(self, events: Iterable[Event]) -> None:
        """Take the next events of the trail, in its order."""
        for event in events:
            self.events += 1
            place = (event["epoch"], event["seq"])
            if self._next is not None and place[0] == self._next[0] and place != self._next:
                self._complain("sequence", f"{place[1]} follows {self._next[1] - 1}")
            self._next = (place[0], place[1] + 1)
            if event["kind"] == "engine":
                self._call(event)
            else:
                self.notes[f"{event['kind']} {event['req']['action']}"] += 1

    def _call(self, event: Event) -> None:
        corr, action, phase, result = (
            event["corr"],
            event["req"]["action"],
            event["phase"],
            event.get("result", {}),
        )
        if phase == "attempt":
            self._attempts[corr] = action
        elif phase == "stream_end":
            if self._streams.pop(corr, None) is None:
                self._complain("stream", f"{action} {corr} ended and had not begun")
            self.cut += "no longer allowed" in str(result.get("error", ""))
        else:
            status = int(result.get("status", 0))
            self.results[event["actor"]["user"], status] += int(result.get("count", 1))
            if "error" in result:
                self.errors[str(result["error"])[:60]] += 1
            attempted = self._attempts.pop(corr, None) is not None
            served = event["decision"]["effect"] == "allow" and 100 < status < 400
            if served and action in RECORDED_FIRST and not attempted:
                self._complain("attempt", f"{action} {corr} was served without an attempt on record")
            if status == 101:
                self._streams[corr] = action

    def _complain(self, kind: str, text: str) -> None:
        self._counts[kind] += 1
        kept = self._problems.setdefault(kind, [])
        if len(kept) < SHOWN:
            kept.append(text)

    def answered(self, user: str) -> int:
        """Recorded results of a user that have a status, whichever."""
        return sum(count for (name, status), count in self.results.items() if name == user and status)

    @property
    def open(self) -> tuple[int, int]:
        """Attempts without a result, and streams without an end, so far."""
        return len(self._attempts), len(self._streams)

    def close(self) -> list[str]:
        """Everything has ended: what is missing then is a problem too. Returns all problems."""
        for corr, action in self._attempts.items():
            self._complain("result", f"{action} {corr} was attempted and has no result")
        for corr, action in self._streams.items():
            self._complain("end", f"{action} {corr} became a stream and has no end")
        return self.problems

    @property
    def problems(self) -> list[str]:
        """What was found so far."""
        found = [text for kept in self._problems.values() for text in kept]
        more = sum(self._counts.values()) - len(found)
        return found + ([f"{more} more of these"] if more else [])

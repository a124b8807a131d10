"""What became of a batch: the words in which a receiver's answer is told to the delivery.

The rule behind every judgment: what might be the receiver's own trouble, or a mistake in the settings, is
tried again for as long as it takes. Only an answer about the content of the batch lets an event pass unsent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from defender.contract.errors import one_line

MAX_REASON: Final = 200
"""Characters of a receiver's own words that are shown."""

LONGEST_ASKED_DELAY: Final = 300.0
"""Seconds: a receiver that asks for a longer pause (Retry-After) gets this one."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The receiver has the batch. `confirmed` is False where it may still be lost: a `confirmed` follows."""

    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """The receiver will never take the batch as it is.

    `first` is the place of the event that it names, if it does; none of the batch counts as taken.
    """

    reason: str
    first: int | None = None


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The receiver takes no batch of this size."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Not now: nothing is known of the batch. `after` is the pause that the receiver asks for, in seconds."""

    reason: str
    after: float = 0.0


Answer = Taken | Refused | TooLarge | Unavailable


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An HTTP answer: its status, its header fields (names in lower case), the beginning of its body."""

    status: int
    fields: Mapping[str, str]
    body: bytes


def judge(answer: HttpAnswer) -> Answer:
    """What an HTTP status says of a batch (RFC 9110 section 15), where the receiver has no words of its own.

    A redirection is not followed: it would carry the events, and the secret, to where nobody sent them.
    """
    status = answer.status
    if 200 <= status < 300:
        return Taken()
    reason = describe(answer)
    if status == 413:
        return TooLarge(reason)
    if status in (400, 422):
        return Refused(reason)
    if 300 <= status < 400:
        return Unavailable(
            f"{reason}; redirections are not followed, write the final address into the settings"
        )
    if status in (401, 403):
        return Unavailable(f"{reason}; check the secret in the settings")
    return Unavailable(reason, retry_after(answer.fields.get("retry-after", "")))


def describe(answer: HttpAnswer, words: str = "") -> str:
    """The answer in one line: the status, and what the receiver says (`words`, else its body), cut short."""
    said = one_line((words or answer.body.decode("utf-8", "replace")).strip()[:MAX_REASON])
    return f"the receiver answered {answer.status}" + (f": {said}" if said else "")


def retry_after(text: str) -> float:
    """The seconds of a Retry-After field; 0 for a date and for anything else that is no such number."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        return 0.0
    return min(float(text), LONGEST_ASKED_DELAY)

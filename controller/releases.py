"""What is distributed: releases, the waves they go out in, and what the distribution says about them.

Values only; `distribution` decides with them. A *stream* ("policy", "locks", "mode", "trust") has one
sequence of numbers. A *line* of a stream is what one release replaces of another: the policy called
"default" is a line, all locks are one. Each defender follows one line of each stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple


class Position(NamedTuple):
    """Where a release stands in its stream; of two, the greater is the newer. A key epoch that the root
    raised outranks every version before it."""

    key_epoch: int
    version: int


NOTHING: Final = Position(-1, 0)
"""Stands below every position."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a defender says it has in force; `digest` is that of the bundle, as it goes over the channel."""

    position: Position
    digest: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """A signed bundle that can be offered.

    `origin` is the position at which its content was published. It is another one than `position` only if
    the same content was signed again for defenders that could not take the first bundle. An `audience` of
    None is the whole fleet, else the ids of the defenders it was signed for.
    """

    position: Position
    digest: bytes
    origin: Position
    audience: frozenset[str] | None = None

    def is_for(self, defender: str) -> bool:
        """Whether the bundle was signed for this defender."""
        return self.audience is None or defender in self.audience


@dataclass(frozen=True, slots=True)
class Wave:
    """How far a release has gone when this wave is over: `least` defenders, or `percent` of all if that is
    more."""

    least: int
    percent: int = 0

    def goal(self, total: int) -> int:
        """Defenders reached when the wave is over, out of `total`."""
        return min(total, max(self.least, -(-total * self.percent // 100)))


@dataclass(frozen=True, slots=True)
class Plan:
    """How a release goes out.

    After `waves` comes everybody. With `halts`, a refusal stops it until somebody decides, and so does a
    wave that takes longer than `patience` seconds.
    """

    waves: tuple[Wave, ...] = ()
    halts: bool = False
    patience: float = 60.0


GRADUAL: Final = Plan((Wave(1), Wave(1, 10)), halts=True)
"""One defender, a tenth of them, everybody: how policies go out."""

AT_ONCE: Final = Plan()
"""Everybody, whatever one of them says: how locks, listener modes and trust go out."""


class Phase(Enum):
    """What becomes of a line's current release.

    *running*: wave after wave. *halted*: offered to nobody until somebody resumes or aborts it. *aborted*:
    offered to nobody any more. *settled*: everybody who was there has answered; whoever comes later gets it.
    """

    RUNNING = "running"
    HALTED = "halted"
    ABORTED = "aborted"
    SETTLED = "settled"


class Standing(Enum):
    """How one defender stands to its line's release; each has exactly one."""

    ACKED = "acked"
    """It has verified the release, has it on disk and in force."""
    REFUSED = "refused"
    """It said no, and is not asked again."""
    OFFLINE = "offline"
    """It is not connected."""
    SENT = "sent"
    """It was offered the release and has not answered."""
    QUEUED = "queued"
    """It was not offered the release yet."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a defender did not take a release: a code of the bundle's specification, a detail for people."""

    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many defenders stand where; the five counts add up to `total`. `wave` counts from 1 to `waves`."""

    position: Position
    phase: Phase
    wave: int
    waves: int
    total: int
    acked: int
    refused: int
    offline: int
    sent: int
    queued: int

    @property
    def waiting(self) -> int:
        """Connected defenders that have not answered, asked or not."""
        return self.sent + self.queued


# Commands


@dataclass(frozen=True, slots=True)
class Offer:
    """Send the release at `position` to these defenders; all of them are connected."""

    position: Position
    defenders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reissue:
    """Sign the content of `origin` again, at the next number and for these defenders; then call `reissued`,
    or `reissue_failed`."""

    line: str
    origin: Position
    defenders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wake:
    """Call `tick` when the clock shows `at`."""

    at: float


@dataclass(frozen=True, slots=True)
class Advanced:
    """The release goes to wave `wave` of `waves`."""

    line: str
    position: Position
    wave: int
    waves: int


class Cause(Enum):
    """Why a release is halted: a defender refused it, a wave did not answer, or somebody said so."""

    REFUSED = "refused"
    SILENT = "silent"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Halted:
    """The release goes no further. `defenders` refused it or did not answer; `detail` is for people."""

    line: str
    position: Position
    cause: Cause
    defenders: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Somebody let a halted release go on."""

    line: str
    position: Position


@dataclass(frozen=True, slots=True)
class Aborted:
    """Somebody gave the release up; who has it keeps it."""

    line: str
    position: Position


@dataclass(frozen=True, slots=True)
class Settled:
    """Everybody who was there has answered; the line falls back on this release from now on."""

    line: str
    position: Position


@dataclass(frozen=True, slots=True)
class Superseded:
    """The release at `position` goes no further, because the one at `by` is newer."""

    line: str
    position: Position
    by: Position


@dataclass(frozen=True, slots=True)
class Ahead:
    """A defender holds a position that nobody here issued.

    Either this controller was restored from a backup, and the defender's signed bundle proves the number:
    verify it and call `verified`. Or the defender lies. Its word alone changes no number.
    """

    defender: str
    held: Held


@dataclass(frozen=True, slots=True)
class Conflict:
    """A defender holds other content under the number of one of our releases: sound the alarm."""

    defender: str
    held: Held


Command = (
    Offer | Reissue | Wake | Advanced | Halted | Resumed | Aborted | Settled | Superseded | Ahead | Conflict
)


@dataclass(frozen=True, slots=True)
class LineState:
    """What has to be kept of a line, so that a controller that starts again goes on where it was.

    `reached` were offered the release in some wave, `picked` in this one; `proven` says that one of those
    has taken it, or that somebody let it go on without. `halted` is what stopped it last, if it is halted.
    """

    line: str
    release: Release
    base: Release | None
    plan: Plan
    phase: Phase
    wave: int = 0
    reached: frozenset[str] = frozenset()
    picked: frozenset[str] = frozenset()
    proven: bool = False
    halted: Halted | None = None
    reissues: tuple[Release, ...] = ()


def turn_order(position: Position, defenders: Iterable[str]) -> list[str]:
    """The order in which defenders have their turn: the same for everyone who asks, another for each release,
    so that it is not always the same host that goes first."""
    salt = f"{position.key_epoch}.{position.version}.".encode()
    return sorted(defenders, key=lambda each: hashlib.sha256(salt + each.encode()).digest())

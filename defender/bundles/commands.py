"""What the machine of `streams` asks of its shell, and tells it. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from defender.contract.bundle import Bundle, Position
from defender.contract.contents import Content

#: What a `Refused` that belongs to no stream names instead of one.
ROOT: Final = "root"
SNAPSHOT: Final = "snapshot"
MARK: Final = "high-water"

Grade = Literal["fresh", "stale", "expired"]


@dataclass(frozen=True, slots=True)
class PersistRoots:
    """Put the chain of root envelopes on disk, then the high-water file (unless None); answer the ticket."""

    ticket: int
    chain: bytes
    high_water: bytes | None


@dataclass(frozen=True, slots=True)
class PersistBundle:
    """Put a bundle's envelope and the high-water file that names it on disk; answer the ticket.

    Of older bundles of the stream the newest may stay, and `keep`, which is in force, must.
    """

    ticket: int
    stream: str
    position: Position
    envelope: bytes
    high_water: bytes
    keep: Position


@dataclass(frozen=True, slots=True)
class PersistMark:
    """Put the high-water file on disk; answer the ticket."""

    ticket: int
    high_water: bytes


@dataclass(frozen=True, slots=True)
class Activate:
    """Put a content in force as a whole, in place of the one before; answer ``activated`` or
    ``activation_failed``. What was in force before stays so if it fails."""

    ticket: int
    bundle: Bundle
    content: Content


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A newer root no longer vouches for what is in force: without a policy or locks everything is denied.

    There is no answer. Where the defender listens stays as it is.
    """

    stream: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ack:
    """Verified, on disk and in force."""

    stream: str
    nonce: int
    position: Position


@dataclass(frozen=True, slots=True)
class Nack:
    """Not accepted, for the reason that `code` and `detail` give; `kept` is in force as before."""

    stream: str
    nonce: int
    code: str
    detail: str
    kept: Position


@dataclass(frozen=True, slots=True)
class Refused:
    """For the record: something was refused, on arrival or when it was read from disk.

    `what` is a stream, `ROOT`, `SNAPSHOT` or `MARK`; `kept` is what is in force in the stream.
    """

    what: str
    code: str
    detail: str
    kept: Position


@dataclass(frozen=True, slots=True)
class Accepted:
    """For the record: a bundle is in force; `restored` if it was read from disk at a start."""

    bundle: Bundle
    restored: bool


@dataclass(frozen=True, slots=True)
class Rooted:
    """For the record: another root document is in force."""

    version: int
    key_epoch: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Graded:
    """How far what is in force in a stream can be relied on has changed; `since` is unix seconds."""

    stream: str
    grade: Grade
    since: float


@dataclass(frozen=True, slots=True)
class Frozen:
    """What is in force is too old to change anything by it, for this reason; "": no longer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Skewed:
    """This host's clock is off by `seconds` (positive: behind) from the controller's; 0: no longer."""

    seconds: float


Command = (
    PersistRoots
    | PersistBundle
    | PersistMark
    | Activate
    | Withdraw
    | Ack
    | Nack
    | Refused
    | Accepted
    | Rooted
    | Graded
    | Frozen
    | Skewed
)

"""The messages of the channel `dfleet/1`, one class each, and their limits.

docs/specification/channel.md is the normative text. `message_bytes` writes and reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from defender.contract.framing import ChannelError
from defender.contract.message_fields import Cursor, Opening, Position
from defender.contract.spool import MAX_PAYLOAD, RECORD_OVERHEAD

#: What is negotiated by TLS before the first byte, and for enrollment on the same port.
ALPN: Final = b"dfleet/1"
#: The revisions of the protocol that this code speaks: HELLO offers a range, WELCOME chooses.
OLDEST: Final = 0
NEWEST: Final = 1

STREAMS: Final = ("trust", "policy", "locks", "mode")

#: Bytes of the largest envelope, and of each of its chunks but the last.
MAX_ENVELOPE: Final = 16 * 1024 * 1024
CHUNK: Final = 128 * 1024
#: The most chunks that a receiver takes: those of another program may be smaller.
MAX_CHUNKS: Final = 1024
#: Bytes of the largest signed snapshot.
MAX_SNAPSHOT: Final = 64 * 1024
#: Of one EVENTS: records, and their bytes. One record of the largest size always fits.
MAX_BATCH: Final = 200
MAX_BATCH_BYTES: Final = MAX_PAYLOAD + RECORD_OVERHEAD
#: The most that may be granted and unused at any time.
MAX_CREDIT_EVENTS: Final = 1_000_000
MAX_CREDIT_BYTES: Final = 256 * 1024 * 1024
#: Characters of a detail, which is text for people.
MAX_DETAIL: Final = 1024
#: The window of a GOAWAY that names none, seconds; and the longest.
DEFAULT_WINDOW: Final = 10.0
LONGEST_WINDOW: Final = 3600.0


class MessageError(ChannelError):
    """A payload is no message of the protocol, or a message cannot be sent."""

    code = "message"


@dataclass(frozen=True, slots=True)
class Hello:
    """The defender's first message. Who it is, its certificate says; `name` is in the chain of its events.

    `oldest` to `newest` are the revisions it speaks, `boot` is the id of its host's boot. `positions` has
    every stream that it takes. `spool` is the newest record on its disk, None if there is none.
    """

    oldest: int
    newest: int
    version: str
    name: str
    boot: str
    capabilities: tuple[str, ...]
    positions: Mapping[str, Position]
    spool: Cursor | None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The controller's first message.

    `generation` numbers the sessions of this defender, rising; `time` is the controller's clock in unix
    microseconds. `cursor` is the last record it has, None for none; `events` and `size` (bytes) are the first
    credits.
    `ping_after` and `dead_after` are seconds (milliseconds on the wire).
    """

    revision: int
    generation: int
    version: str
    time: int
    cursor: Cursor | None
    events: int
    size: int
    ping_after: float
    dead_after: float
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Push:
    """One chunk of an envelope of `size` bytes: number `index` (from 0) of `count`.

    `nonce` names the push; it is the same for all defenders that get it.
    """

    stream: str
    nonce: int
    index: int
    count: int
    size: int
    chunk: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """A pushed envelope was verified, is on disk and is active: the stream stands at `position`."""

    stream: str
    nonce: int
    position: Position


@dataclass(frozen=True, slots=True)
class Nack:
    """A pushed envelope was refused; the stream still stands at `kept`."""

    stream: str
    nonce: int
    code: str
    detail: str
    kept: Position


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The signed list of what every stream should stand at, as it was signed."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class Events:
    """`count` records of the spool, byte for byte, numbered from `first_seq` on without a gap.

    `previous` is the chain before the first, empty where damage has made it unknown. `opening` comes with the
    first records of an epoch that are sent in a session. `lost` says why numbers before `first_seq` are
    missing, empty if none are.
    """

    epoch: int
    first_seq: int
    count: int
    previous: bytes
    opening: Opening | None
    lost: str
    records: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EvAck:
    """All records up to `through` of `epoch`, whose chain is `chain`, are stored; and new credits.

    `epoch` and `through` are 0 where nothing is stored yet and credits alone are meant.
    """

    epoch: int
    through: int
    chain: bytes
    events: int
    size: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Asks for new certificates, with PKCS#10 requests in DER: for the client, and for the server or b""."""

    request: bytes
    server_request: bytes


@dataclass(frozen=True, slots=True)
class Renewed:
    """The new certificates in DER, each followed by its issuers; or none, and why in `code` and `detail`.

    `server_chain` is () if none was asked for.
    """

    chain: tuple[bytes, ...]
    server_chain: tuple[bytes, ...]
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Commit:
    """The new certificates are on the defender's disk; `serial` is the client's, in hexadecimal."""

    serial: str


@dataclass(frozen=True, slots=True)
class Cmd:
    """Asks for one idempotent thing. Nobody waits for an answer longer than `timeout` seconds (milliseconds
    on the wire). Numbers rise within a session."""

    number: int
    timeout: float
    verb: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of the command `number`; `code` and `detail` say why where it failed."""

    number: int
    ok: bool
    code: str
    detail: str
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Status:
    """What the defender is doing; sent on connecting and when it changes, always whole."""

    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a PONG."""

    token: int = 0


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a PING, with its token."""

    token: int = 0


@dataclass(frozen=True, slots=True)
class GoAway:
    """The sender will close. A defender comes back within `window` seconds (milliseconds on the wire), at a
    time that it chooses by chance."""

    code: str
    detail: str
    window: float = DEFAULT_WINDOW


@dataclass(frozen=True, slots=True)
class Error:
    """The sender closes the connection now, because of `code`; `detail` is for people."""

    code: str
    detail: str


Message: TypeAlias = (
    Hello
    | Welcome
    | Push
    | Ack
    | Nack
    | Snapshot
    | Events
    | EvAck
    | Renew
    | Renewed
    | Commit
    | Cmd
    | Result
    | Status
    | Ping
    | Pong
    | GoAway
    | Error
)

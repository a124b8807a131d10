"""The channel's messages as bytes and back. docs/specification/channel.md is the normative text.

A message is the payload of a frame: a msgpack list of its type and its fields. Types from `OPTIONAL` on may
be ignored by who does not know them; any other unknown type ends the connection. What a revision of the
protocol adds to a message comes behind its fields, so those of an older revision are the first of a newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from defender.contract import message_fields as kinds
from defender.contract.codec import CodecError, decode, encode
from defender.contract.framing import frame
from defender.contract.message_fields import Field, number, text
from defender.contract.messages import (
    CHUNK,
    LONGEST_WINDOW,
    MAX_BATCH,
    MAX_BATCH_BYTES,
    MAX_CHUNKS,
    MAX_CREDIT_BYTES,
    MAX_CREDIT_EVENTS,
    MAX_DETAIL,
    MAX_ENVELOPE,
    MAX_SNAPSHOT,
    NEWEST,
    Ack,
    Cmd,
    Commit,
    Error,
    EvAck,
    Events,
    GoAway,
    Hello,
    Message,
    MessageError,
    Nack,
    Ping,
    Pong,
    Push,
    Renew,
    Renewed,
    Result,
    Snapshot,
    Status,
    Welcome,
)
from defender.contract.spool import RECORD_OVERHEAD

#: Types from here to 255 are optional.
OPTIONAL: Final = 128

# The most parts of a message, and its levels, which bound what its decoding costs.
_MAX_PARTS: Final = 4096
_MAX_LEVELS: Final = 10


@dataclass(frozen=True, slots=True)
class _Form:
    """How one class is written: its type and, for each field, its name and check.

    `counts` is the number of fields in revision 0, 1, ...; None where the revision has no such message.
    `open_ended`: it may be sent before a revision is agreed on, so fewer or more fields may come.
    `in_milliseconds` are the places of fields that are seconds in the class.
    """

    type: int
    cls: Any
    names: tuple[str, ...]
    checks: tuple[Field, ...]
    counts: tuple[int | None, ...]
    open_ended: bool
    in_milliseconds: tuple[int, ...]

    @property
    def title(self) -> str:
        return str(self.cls.__name__).upper()


def _form(
    number_: int,
    cls: Any,
    *checks: Field,
    in_revision_0: int | None = -1,
    open_ended: bool = False,
    in_milliseconds: tuple[int, ...] = (),
) -> _Form:
    """`in_revision_0` is the number of fields there, None for no such message; by default all."""
    names = tuple(each.name for each in fields(cls))
    assert len(names) == len(checks), cls
    counts = (len(names) if in_revision_0 == -1 else in_revision_0, len(names))
    return _Form(number_, cls, names, checks, counts, open_ended, in_milliseconds)


_U16: Final = number(0, 65_535)
_U64: Final = number(0, kinds.LARGEST)
_FROM_ONE: Final = number(1, kinds.LARGEST)
_SEQ: Final = number(0, kinds.LAST_SEQ)
_SHORT: Final = text(64)
_DETAIL: Final = text(MAX_DETAIL)
_CREDIT: Final = (number(0, MAX_CREDIT_EVENTS), number(0, MAX_CREDIT_BYTES))
_TIMERS: Final = (number(100, 600_000), number(300, 1_800_000))
_CHUNK: Final = (number(0, MAX_CHUNKS - 1), number(1, MAX_CHUNKS), number(1, MAX_ENVELOPE))
_RECORDS: Final = kinds.data(MAX_BATCH_BYTES, RECORD_OVERHEAD + 1)
_CHAINS: Final = (kinds.chain_of_certificates, kinds.chain_of_certificates)
_TIMEOUT: Final = number(1, 3_600_000)
_WINDOW: Final = number(0, round(LONGEST_WINDOW * 1000))

_FORMS: Final[Mapping[int, _Form]] = {
    form.type: form
    for form in (
        _form(
            *(1, Hello, _U16, _U16, _SHORT, text(256, 1), _SHORT, kinds.words, kinds.positions, kinds.cursor),
            open_ended=True,
        ),
        _form(
            *(2, Welcome, _U16, _FROM_ONE, _SHORT, _U64, kinds.cursor, *_CREDIT, *_TIMERS, kinds.words),
            open_ended=True,
            in_milliseconds=(7, 8),
        ),
        _form(3, Push, kinds.word, _FROM_ONE, *_CHUNK, kinds.data(1024 * 1024)),
        _form(4, Ack, kinds.word, _FROM_ONE, kinds.position),
        _form(5, Nack, kinds.word, _FROM_ONE, kinds.word, _DETAIL, kinds.position),
        _form(6, Snapshot, kinds.data(MAX_SNAPSHOT)),
        _form(
            *(7, Events, _FROM_ONE, number(1, kinds.LAST_SEQ), number(1, MAX_BATCH)),
            *(kinds.digest_or_nothing, kinds.opening, _DETAIL, _RECORDS),
        ),
        _form(8, EvAck, _U64, _SEQ, kinds.digest, *_CREDIT),
        _form(9, Renew, kinds.data(8192), kinds.data(8192, 0)),
        _form(10, Renewed, *_CHAINS, kinds.word_or_nothing, _DETAIL),
        _form(11, Commit, kinds.serial),
        _form(
            12, Cmd, _FROM_ONE, _TIMEOUT, kinds.word, kinds.record, in_revision_0=None, in_milliseconds=(1,)
        ),
        _form(
            *(13, Result, _FROM_ONE, kinds.truth, kinds.word_or_nothing, _DETAIL, kinds.record),
            in_revision_0=None,
        ),
        _form(14, Status, kinds.record, in_revision_0=None),
        _form(15, Ping, _U64, in_revision_0=0),
        _form(16, Pong, _U64, in_revision_0=0),
        _form(
            *(17, GoAway, kinds.word, _DETAIL, _WINDOW),
            in_revision_0=2,
            open_ended=True,
            in_milliseconds=(2,),
        ),
        _form(18, Error, kinds.word, _DETAIL, open_ended=True),
    )
}
_BY_CLASS: Final[Mapping[Any, _Form]] = {form.cls: form for form in _FORMS.values()}


def type_of(cls: type[Message]) -> int:
    """The number of a class of messages."""
    return _BY_CLASS[cls].type


def knows(revision: int, cls: type[Message]) -> bool:
    """Whether a revision of the protocol has this class of messages."""
    return _BY_CLASS[cls].counts[revision] is not None


def encode_message(message: Message, revision: int = NEWEST) -> bytes:
    """The payload of a message in a revision of the protocol; without the fields that the revision has not.

    Raises MessageError for a message that the other side would refuse, or that the revision has not.
    """
    form = _BY_CLASS[type(message)]
    count = form.counts[revision]
    if count is None:
        raise MessageError(f"revision {revision} of the channel has no {form.title}")
    values: list[Any] = [getattr(message, name) for name in form.names[:count]]
    for place in form.in_milliseconds:
        if place < count:
            values[place] = round(values[place] * 1000)
    try:
        return encode([form.type, *_checked(form, values)])
    except CodecError as error:
        raise MessageError(f"{form.title}: {error}") from None


def decode_message(payload: bytes, revision: int = NEWEST) -> Message | None:
    """The message of a payload; None for an unknown type that may be ignored.

    Raises MessageError, and nothing else, for anything that is no message of the revision.
    """
    try:
        values = decode(payload, max_items=_MAX_PARTS, max_depth=_MAX_LEVELS)
    except CodecError as error:
        raise MessageError(f"a frame is no message: {error}") from None
    if type(values) is not list or not values or type(values[0]) is not int:
        raise MessageError("a frame is no list that begins with a type")
    found = values[0]
    form = _FORMS.get(found)
    count = form.counts[revision] if form else None
    if form is None or count is None:
        if OPTIONAL <= found <= 255:
            return None
        raise MessageError(f"a message has the type {found}, which revision {revision} does not know")
    del values[0]
    if len(values) != count:
        if not form.open_ended or len(values) < min(each for each in form.counts if each is not None):
            raise MessageError(f"{form.title} has {len(values)} fields instead of {count}")
        del values[len(form.names) :]
    if form.cls is Events and _is_usual(*values):
        return Events(*values)
    values = _checked(form, values)
    for place in form.in_milliseconds:
        if place < len(values):
            values[place] /= 1000
    message: Message = form.cls(*values)
    return message


def message_frame(message: Message, revision: int = NEWEST) -> bytes:
    """A message as a frame; raises as `encode_message` does."""
    return frame(encode_message(message, revision))


def push_frames(stream: str, nonce: int, envelope: bytes) -> tuple[bytes, ...]:
    """The frames of a push, to be made once and sent to any number of defenders.

    They are alike in every revision. MessageError for an envelope that is empty or too large.
    """
    size = len(envelope)
    if not 0 < size <= MAX_ENVELOPE:
        raise MessageError(f"an envelope of {size} bytes is not 1 to {MAX_ENVELOPE}")
    count = -(-size // CHUNK)
    return tuple(
        message_frame(Push(stream, nonce, index, count, size, envelope[index * CHUNK : (index + 1) * CHUNK]))
        for index in range(count)
    )


def snapshot_frame(envelope: bytes) -> bytes:
    """The frame of a snapshot, to be made once and sent to any number of defenders."""
    return message_frame(Snapshot(envelope))


def _is_usual(
    epoch: Any, first_seq: Any, count: Any, previous: Any, opening: Any, lost: Any, records: Any
) -> bool:
    """Whether the fields are those of an EVENTS as nearly all are: the checks of the table, in one go.

    Hot: a controller reads these all day.
    """
    return (
        type(epoch) is type(first_seq) is type(count) is int
        and epoch > 0
        and 0 < first_seq <= kinds.LAST_SEQ
        and 0 < count <= MAX_BATCH
        and type(previous) is bytes is type(records)
        and len(previous) == 32
        and opening is None
        and lost == ""
        and RECORD_OVERHEAD < len(records) <= MAX_BATCH_BYTES
    )


def _checked(form: _Form, values: list[Any]) -> list[Any]:
    try:
        return [check(value) for check, value in zip(form.checks, values, strict=False)]
    except ValueError:
        pass
    # The slow way, once, to say which.
    for name, check, value in zip(form.names, form.checks, values, strict=False):
        try:
            check(value)
        except ValueError as error:
            raise MessageError(f"{form.title}: the field {name} {error}") from None
    raise AssertionError("a check failed once and not again")

"""What the fields of the channel's messages may be: each is a function that gives back a good value.

They raise ValueError with words that follow "the field NAME ". They are applied to what was decoded and to
what is about to be encoded, so that nothing is sent that the other side refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

# Where a stream stands is the same here as in a bundle.
from defender.contract.bundle import Position as Position

Field = Callable[[Any], Any]

LARGEST: Final = 2**64 - 1
_WORD: Final = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_SERIAL: Final = re.compile(r"[0-9a-f]{1,40}")
#: Of the maps of CMD, RESULT and STATUS: levels, and list elements, map pairs and characters in all.
_DEPTH: Final = 8
_PARTS: Final = 2000
_CHARACTERS: Final = 128 * 1024


class Cursor(NamedTuple):
    """A place in the events of one defender: the record `seq` of `epoch`, and the hash chain up to it."""

    epoch: int
    seq: int
    chain: bytes


class Opening(NamedTuple):
    """What the first segment's header of an epoch says: the name in its chain, and the epoch before.

    `predecessor` is 0 if there was none; else `seq` and `chain` are those of its last record.
    """

    agent: str
    predecessor: int
    seq: int
    chain: bytes


def number(low: int, high: int) -> Field:
    """A whole number from `low` to `high`."""

    def check(value: Any) -> Any:
        # A bool is no number here, though Python has it so.
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"is not a whole number from {low} to {high}")
        return value

    return check


def text(most: int, least: int = 0) -> Field:
    """Text of `least` to `most` characters."""

    def check(value: Any) -> Any:
        if type(value) is not str or not least <= len(value) <= most:
            raise ValueError(f"is not a text of {least} to {most} characters")
        return value

    return check


def data(most: int, least: int = 1) -> Field:
    """`least` to `most` bytes."""

    def check(value: Any) -> Any:
        if type(value) is not bytes or not least <= len(value) <= most:
            raise ValueError(f"is not {least} to {most} bytes")
        return value

    return check


def word(value: Any) -> Any:
    """A name of the protocol: a stream, a code, a verb, a capability."""
    if type(value) is not str or _WORD.fullmatch(value) is None:
        raise ValueError("is not a word of a-z, 0-9, _ and -, at most 40 characters")
    return value


def word_or_nothing(value: Any) -> Any:
    """A word, or "" where there is none."""
    return value if type(value) is str and not value else word(value)


def words(value: Any) -> Any:
    """Up to 64 words; a tuple."""
    if not isinstance(value, (list, tuple)) or len(value) > 64:
        raise ValueError("is not a list of at most 64 words")
    return tuple(map(word, value))


def serial(value: Any) -> Any:
    """A certificate's serial number: 1 to 40 hexadecimal digits."""
    if type(value) is not str or _SERIAL.fullmatch(value) is None:
        raise ValueError("is not 1 to 40 hexadecimal digits")
    return value


def truth(value: Any) -> Any:
    """True or false."""
    if type(value) is not bool:
        raise ValueError("is not true or false")
    return value


def digest(value: Any) -> Any:
    """32 bytes of SHA-256."""
    if type(value) is not bytes or len(value) != 32:
        raise ValueError("is not 32 bytes")
    return value


def digest_or_nothing(value: Any) -> Any:
    """32 bytes, or none where there is no digest or it is not known."""
    if type(value) is not bytes or len(value) not in (0, 32):
        raise ValueError("is not 32 bytes or none")
    return value


def chain_of_certificates(value: Any) -> Any:
    """Up to 8 certificates of at most 16 KiB each; a tuple."""
    if not isinstance(value, (list, tuple)) or len(value) > 8:
        raise ValueError("is not a list of at most 8 certificates")
    return tuple(map(_certificate, value))


_certificate: Final = data(16 * 1024)
_u64: Final = number(0, LARGEST)
_epoch: Final = number(1, LARGEST)
#: Sequence numbers of the spool.
LAST_SEQ: Final = 2**63 - 1
_seq: Final = number(0, LAST_SEQ)
_agent: Final = text(256)


def position(value: Any) -> Any:
    """A `Position`."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError("is not a list of key epoch, version and digest")
    key_epoch, version, content = value
    return Position(_u64(key_epoch), _u64(version), digest_or_nothing(content))


def positions(value: Any) -> Any:
    """A map of at most 16 streams to their `Position`."""
    if not isinstance(value, Mapping) or len(value) > 16:
        raise ValueError("is not a map of at most 16 streams")
    return {word(stream): position(where) for stream, where in value.items()}


def cursor(value: Any) -> Any:
    """A `Cursor`, or None."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError("is not a list of epoch, sequence number and chain")
    epoch, seq, chain = value
    return Cursor(_epoch(epoch), _seq(seq), digest(chain))


def opening(value: Any) -> Any:
    """An `Opening`, or None."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise ValueError("is not a list of agent, predecessor, its last number and chain")
    agent, predecessor, seq, chain = value
    return Opening(_agent(agent), _u64(predecessor), _seq(seq), digest(chain))


def record(value: Any) -> Any:
    """A map with text as keys, of values that JSON has, of bounded depth and size."""
    if not isinstance(value, Mapping):
        raise ValueError("is not a map")
    return _plain(value, _DEPTH, [_PARTS, _CHARACTERS])


_SCALARS: Final = frozenset({int, float, bool, type(None)})


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    """A value that JSON has; `left` is how many parts and characters there may still be."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is str:
        return _text(value, left)
    if not depth:
        raise ValueError(f"is nested more than {_DEPTH} levels deep")
    if not isinstance(value, (list, tuple, Mapping)):
        raise ValueError(f"holds a {kind.__name__}, which JSON has not")
    left[0] -= len(value)
    if left[0] < 0:
        raise ValueError(f"has more than {_PARTS} parts")
    if isinstance(value, Mapping):
        return {_text(key, left): _plain(item, depth - 1, left) for key, item in value.items()}
    return [_plain(item, depth - 1, left) for item in value]


def _text(value: Any, left: list[int]) -> Any:
    if type(value) is not str:
        raise ValueError("has a key that is no text")
    left[1] -= len(value)
    if left[1] < 0:
        raise ValueError(f"has more than {_CHARACTERS} characters")
    return value

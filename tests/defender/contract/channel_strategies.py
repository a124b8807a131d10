"""Every message of the channel, as hypothesis draws them."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from defender.contract.message_bytes import knows
from defender.contract.message_fields import Cursor, Opening, Position
from defender.contract.messages import (
    Ack,
    Cmd,
    Commit,
    Error,
    EvAck,
    Events,
    GoAway,
    Hello,
    Message,
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

U64: Final = st.integers(0, 2**64 - 1)
FROM_ONE: Final = st.integers(1, 2**64 - 1)
SEQ: Final = st.integers(1, 2**63 - 1)
DIGEST: Final = st.binary(min_size=32, max_size=32)
CHARACTERS: Final = st.characters(exclude_categories=["Cs"])
WORD: Final = st.from_regex(r"[a-z][a-z0-9_-]{0,39}", fullmatch=True)
WORD_OR_NOTHING: Final = st.just("") | WORD
WORDS: Final = st.lists(WORD, max_size=5).map(tuple)
DETAIL: Final = st.text(CHARACTERS, max_size=60)
POSITION: Final = st.builds(Position, U64, U64, DIGEST | st.just(b""))
CURSOR: Final = st.none() | st.builds(Cursor, FROM_ONE, SEQ, DIGEST)
OPENING: Final = st.none() | st.builds(Opening, DETAIL, U64, SEQ, DIGEST)
CHAIN: Final = st.lists(st.binary(min_size=1, max_size=40), max_size=3).map(tuple)


def seconds(least: float, most: float) -> st.SearchStrategy[float]:
    """Seconds that milliseconds can say."""
    return st.integers(round(least * 1000), round(most * 1000)).map(lambda each: each / 1000)


RECORD: Final[st.SearchStrategy[Any]] = st.dictionaries(
    DETAIL,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | DETAIL,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(DETAIL, inner, max_size=4),
        max_leaves=8,
    ),
    max_size=4,
)

BY_CLASS: Final[dict[Any, st.SearchStrategy[Any]]] = {
    Hello: st.builds(
        *(
            Hello,
            st.integers(0, 65_535),
            st.integers(0, 65_535),
            DETAIL,
            st.text(CHARACTERS, min_size=1, max_size=99),
        ),
        *(DETAIL, WORDS, st.dictionaries(WORD, POSITION, max_size=4), CURSOR),
    ),
    Welcome: st.builds(
        *(
            Welcome,
            st.integers(0, 1),
            FROM_ONE,
            DETAIL,
            U64,
            CURSOR,
            st.integers(0, 10**6),
            st.integers(0, 2**28),
        ),
        *(seconds(0.1, 600), seconds(0.3, 1800), WORDS),
    ),
    Push: st.builds(
        *(Push, WORD, FROM_ONE, st.integers(0, 1023), st.integers(1, 1024), st.integers(1, 2**24)),
        st.binary(min_size=1, max_size=99),
    ),
    Ack: st.builds(Ack, WORD, FROM_ONE, POSITION),
    Nack: st.builds(Nack, WORD, FROM_ONE, WORD, DETAIL, POSITION),
    Snapshot: st.builds(Snapshot, st.binary(min_size=1, max_size=99)),
    Events: st.builds(
        *(Events, FROM_ONE, SEQ, st.integers(1, 200), DIGEST | st.just(b""), OPENING, DETAIL),
        st.binary(min_size=49, max_size=300),
    ),
    EvAck: st.builds(EvAck, U64, SEQ, DIGEST, st.integers(0, 10**6), st.integers(0, 2**28)),
    Renew: st.builds(Renew, st.binary(min_size=1, max_size=99), st.binary(max_size=99)),
    Renewed: st.builds(Renewed, CHAIN, CHAIN, WORD_OR_NOTHING, DETAIL),
    Commit: st.builds(Commit, st.text("0123456789abcdef", min_size=1, max_size=40)),
    Cmd: st.builds(Cmd, FROM_ONE, seconds(0.001, 3600), WORD, RECORD),
    Result: st.builds(Result, FROM_ONE, st.booleans(), WORD_OR_NOTHING, DETAIL, RECORD),
    Status: st.builds(Status, RECORD),
    Ping: st.builds(Ping, U64),
    Pong: st.builds(Pong, U64),
    GoAway: st.builds(GoAway, WORD, DETAIL, seconds(0, 3600)),
    Error: st.builds(Error, WORD, DETAIL),
}

MESSAGES: Final[st.SearchStrategy[Message]] = st.one_of(*BY_CLASS.values())


def of_revision(revision: int) -> st.SearchStrategy[Message]:
    """The messages that a revision of the protocol has."""
    return st.one_of(*(each for cls, each in BY_CLASS.items() if knows(revision, cls)))

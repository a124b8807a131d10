"""Bearer secrets of sessions and API tokens: how they are written, kept, and when a session is over.

    dfs1_SECRET   a session        dfa1_SECRET   an API token

``SECRET`` is 32 random bytes in unpadded base64url. The prefix lets people and secret scanners tell what they
have found. Only the SHA-256 of the whole text is kept: 256 random bits need no slow hash. The random bytes
are an argument; the secret is in no repr, and no error quotes what it was given.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

ENTROPY: Final = 32
"""Random bytes that a secret is made of."""

SESSION: Final = "session"
API_TOKEN: Final = "token"  # noqa: S105 - the kind of a credential, not one

_PREFIXES: Final = {SESSION: "dfs1_", API_TOKEN: "dfa1_"}
_SECRET: Final = re.compile(r"(df[sa]1_)[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")

SESSION_LIFE: Final = 12 * 3600.0
"""Seconds after which a session is over, however busy."""
SESSION_IDLE: Final = 3600.0
"""Seconds without a request after which a session is over."""
USE_NOTED: Final = 60.0
"""A use is written down at most this often, in seconds."""
MAX_SESSIONS: Final = 20
"""Sessions of one user; a further sign-in ends the one that was used longest ago."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A new secret: `text` is shown once, `digest` is kept."""

    kind: str
    text: str = field(repr=False)
    digest: bytes


def make_credential(kind: str, entropy: bytes) -> Credential:
    """A secret of a kind, from `ENTROPY` random bytes."""
    if len(entropy) != ENTROPY:
        raise ValueError(f"a secret is made of {ENTROPY} random bytes")
    text = _PREFIXES[kind] + base64.urlsafe_b64encode(entropy).decode().rstrip("=")
    return Credential(kind, text, digest_of(text))


def digest_of(text: str) -> bytes:
    """What is kept in place of a secret, and looked up by."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def read_credential(text: str) -> tuple[str, bytes] | None:
    """The kind and digest of a secret that somebody sent; None if it cannot be one."""
    found = _SECRET.fullmatch(text)
    if found is None:
        return None
    kind = SESSION if found[1] == _PREFIXES[SESSION] else API_TOKEN
    return kind, digest_of(text)


@dataclass(frozen=True, slots=True)
class Session:
    """A session as it is kept; times are unix seconds."""

    user: str
    created: float
    used: float

    def ends(self) -> float:
        """When it is over if nothing more is asked with it."""
        return min(self.created + SESSION_LIFE, self.used + SESSION_IDLE)

    def is_over(self, now: float) -> bool:
        """Whether it is over; one that begins in the future is, too, since a clock went back by that much."""
        return now >= self.ends() or now < self.created - USE_NOTED

    def is_to_be_noted(self, now: float) -> bool:
        """Whether this use is to be written down."""
        return now - self.used >= USE_NOTED


def sessions_to_end(sessions: dict[bytes, Session], now: float) -> tuple[bytes, ...]:
    """Which of a user's sessions, by digest, make room for one more: those that are over, then the ones used
    longest ago."""
    over = [digest for digest, session in sessions.items() if session.is_over(now)]
    live = sorted((session.used, digest) for digest, session in sessions.items() if digest not in set(over))
    surplus = max(0, len(live) - MAX_SESSIONS + 1)
    return (*over, *(digest for _, digest in live[:surplus]))

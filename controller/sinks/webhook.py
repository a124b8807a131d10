"""Events for a webhook: one POST of a JSON array, signed so that the receiver knows who sent it and when.

The signature is that of the Standard Webhooks specification (standardwebhooks.com, version 1.0.0), so that a
receiver checks it with a library that exists for its language:

    webhook-id: msg_...             the same each time that the same batch is sent
    webhook-timestamp: 1763763183   unix seconds of this attempt
    webhook-signature: v1,BASE64    HMAC-SHA-256 of "ID.TIMESTAMP.BODY"
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 (the beginning that all have)
MIN_SECRET: Final = 24
MAX_SECRET: Final = 64
"""Octets of a secret, by the specification."""


@dataclass(frozen=True, slots=True)
class Post:
    """One request's own header fields, and its body."""

    fields: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs batches with one secret, which no repr shows."""

    key: bytes = field(repr=False)

    @classmethod
    def from_text(cls, text: str) -> Signer:
        """The signer of a secret ``whsec_BASE64``; raises ValueError, which never repeats the text."""
        what = f"a webhook secret is {SECRET_PREFIX} and {MIN_SECRET} to {MAX_SECRET} random octets in base64"
        if not text.startswith(SECRET_PREFIX):
            raise ValueError(what)
        try:
            key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(what) from None
        if not MIN_SECRET <= len(key) <= MAX_SECRET:
            raise ValueError(what)
        return cls(key)

    def post(self, lines: Sequence[bytes], now: float) -> Post:
        """The request that carries these JSON lines at `now` (unix seconds)."""
        body = array(lines)
        identity = batch_id(body)
        stamp = str(int(now))
        return Post(
            (
                ("content-type", "application/json"),
                ("webhook-id", identity),
                ("webhook-timestamp", stamp),
                ("webhook-signature", self.signature(identity, stamp, body)),
            ),
            body,
        )

    def signature(self, identity: str, stamp: str, body: bytes) -> str:
        """The value of the field webhook-signature."""
        digest = hmac.digest(self.key, f"{identity}.{stamp}.".encode() + body, "sha256")
        return "v1," + base64.b64encode(digest).decode("ascii")


def array(lines: Sequence[bytes]) -> bytes:
    """The JSON array of lines that are JSON values."""
    return b"[" + b",".join([line.rstrip(b"\n") for line in lines]) + b"]"


def batch_id(body: bytes) -> str:
    """A name for the batch that depends on its content alone: a receiver knows what it has already."""
    return "msg_" + hashlib.sha256(body).hexdigest()[:32]

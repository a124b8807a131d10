"""Join tokens: what lets a host into a fleet once, and pins whom it may take for the fleet.

    dft1.ID.SECRET.PIN

``ID`` names the token at the controller (80 bits), ``SECRET`` is proof of having been given it (160 bits),
``PIN`` is the SHA-256 of the root's public key: a host that holds a token knows its fleet before the first
byte. All three are base32 (RFC 4648, lower case, no padding): no letter means anything to a shell, a URL or
a file name, a token can be read out over a telephone, and id and secret fill their letters exactly. Each
token has one spelling; every other one is refused.

The secret is in no repr, and no error of this module quotes what it was given.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from defender.contract.errors import ContractError

PREFIX: Final = "dft1"
ID_SIZE: Final = 10
SECRET_SIZE: Final = 20
PIN_SIZE: Final = 32
ENTROPY: Final = ID_SIZE + SECRET_SIZE
"""Random bytes that a new token is made of."""

_LETTERS: Final = (16, 32, 52)
TOKEN_LETTERS: Final = len(PREFIX) + sum(_LETTERS) + 3
_PARTS: Final = ("id", "secret", "pin")


class JoinTokenError(ContractError):
    """A text is no join token. The message is fit for people and holds nothing of the text."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A join token, read.

    ``id``: 16 letters, not secret. ``secret``: 20 bytes. ``pin``: see `pin_of`.
    """

    id: str
    secret: bytes = field(repr=False)
    pin: bytes

    @property
    def digest(self) -> bytes:
        """What the controller keeps in place of the secret: see `digest_of`."""
        return digest_of(self.secret)


def digest_of(secret: bytes) -> bytes:
    """Return the SHA-256 of a token's secret. It is random and long: it needs no salt and no slow hash."""
    return sha256(secret).digest()


def pin_of(root: x509.Certificate) -> bytes:
    """Return the SHA-256 of a root's SubjectPublicKeyInfo in DER, which a token pins.

    The key, not the certificate: a root that is made anew with the same key keeps its tokens.
    """
    key = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(key).digest()


def new_token(entropy: bytes, root: x509.Certificate) -> JoinToken:
    """Make a token of `ENTROPY` random bytes, for the fleet under this root."""
    if len(entropy) != ENTROPY:
        raise ValueError(f"a token is made of {ENTROPY} random bytes")
    return JoinToken(_encode(entropy[:ID_SIZE]), entropy[ID_SIZE:], pin_of(root))


def format_token(token: JoinToken) -> str:
    """Return the token as a person pastes it: 107 letters. Show it once and keep it nowhere."""
    return ".".join((PREFIX, token.id, _encode(token.secret), _encode(token.pin)))


def parse_token(text: str) -> JoinToken:
    """Read a token; white space around it is ignored. Raises JoinTokenError."""
    text = text.strip()
    if not text:
        raise JoinTokenError("there is no join token; `defenderctl tokens create` makes one")
    head, *parts = text.split(".")
    if head != PREFIX:
        if head.startswith("dft") and head[3:].isdigit():
            raise JoinTokenError("this join token is of a newer form; upgrade the defender")
        raise JoinTokenError(f"this is no join token: it does not begin with {PREFIX!r} and a full stop")
    if len(parts) != len(_LETTERS):
        raise JoinTokenError(
            f"a join token has four parts with full stops between them, this has {len(parts) + 1}: "
            "was it cut off when it was copied?"
        )
    for name, part, letters in zip(_PARTS, parts, _LETTERS, strict=True):
        if len(part) != letters:
            raise JoinTokenError(
                f"the join token's {name} has {len(part)} letters where it should have {letters}: "
                "was it cut off when it was copied?"
            )
    identifier, secret, pin = parts
    _decode("id", identifier)
    return JoinToken(identifier, _decode("secret", secret), _decode("pin", pin))


def check_token_id(text: str) -> None:
    """Raise JoinTokenError unless the text can be a token's id."""
    if len(text) != _LETTERS[0]:
        raise JoinTokenError(f"a join token's id has {_LETTERS[0]} letters")
    _decode("id", text)


def _encode(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _decode(name: str, text: str) -> bytes:
    wrong = JoinTokenError(
        f"the join token's {name} has letters that no token has: only a to z in lower case and 2 to 7 occur"
    )
    if not text.isascii() or text != text.lower():
        raise wrong
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except binascii.Error:
        raise wrong from None
    if _encode(data) != text:  # the last letter of the pin has bits to spare
        raise wrong
    return data

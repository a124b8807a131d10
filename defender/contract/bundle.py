"""Bundles: what the controller wants of defenders, numbered, addressed and signed.

docs/specification/bundle.md is the normative text. `sign_bundle` makes the bytes, `open_envelope` is the one
way to get at what is in them: it checks size, frame, type and signatures before it decodes, and everything
that the bundle says of itself after. There is no way around the signature.

What a bundle's place in its stream means (older, the same, newer) is `high_water`'s part, what its content
means `contents`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

from defender.contract.canonical import (
    BundleError,
    Fields,
    canonical,
    is_identifier,
    read_document,
    release_of,
)
from defender.contract.envelope import BUNDLE_TYPE, MAX_ENVELOPE, Signer, read_envelope, seal, verify
from defender.contract.trust import STREAMS, Root

__all__ = [
    "EVERYONE",
    "MAX_AUDIENCE",
    "MAX_ENVELOPE",
    "NOWHERE",
    "SKEW",
    "Bundle",
    "BundleError",
    "Position",
    "check_addressed",
    "open_envelope",
    "read_audience",
    "sign_bundle",
]

BUNDLE_SCHEMA: Final = 1
#: The audience that is the whole fleet; the other kind is a tuple of defenders' ids.
EVERYONE: Final = "*"
MAX_AUDIENCE: Final = 20_000
#: Seconds by which the clocks of signer and defender may differ.
SKEW: Final = 300
#: Bytes of an envelope in one answer to the command `bundle` of the channel.
PART: Final = 48 * 1024
#: Seconds after which a bundle that nobody has confirmed counts as stale, unless it says otherwise.
STALE_AFTER: Final = 24 * 3600
LAST_SECOND: Final = 2**53

_FIELDS: Final = (
    "audience",
    "author",
    "change_ref",
    "content",
    "content_digest",
    "expires_at",
    "fleet",
    "issued_at",
    "key_epoch",
    "min_agent",
    "not_before",
    "prev_digest",
    "schema",
    "stale_after",
    "stream",
    "trust_domain",
    "version",
)


class Position(NamedTuple):
    """A place in a stream: `digest` is the SHA-256 of the payload at `version` in `key_epoch`."""

    key_epoch: int
    version: int
    digest: bytes

    @property
    def number(self) -> tuple[int, int]:
        """What positions are ordered by."""
        return self.key_epoch, self.version


#: The position of a stream that has nothing.
NOWHERE: Final = Position(0, 0, b"")


@dataclass(frozen=True, slots=True)
class Bundle:
    """One bundle. Times are unix seconds.

    `audience` is `EVERYONE` or the ids of the defenders that it is for. `content` is what `contents` builds
    for the stream. `prev_digest` is that of the version that the signer published before in this stream, b""
    if none. `stale_after` counts seconds from the last time that the bundle was known to be the current one;
    from `expires_at` on it counts as expired. `min_agent` is the lowest version of the program that
    understands it, "" for any. `author` and `change_ref` are for people. `digest` and `signers` (key ids) are
    known of a bundle that was opened.
    """

    fleet: str
    trust_domain: str
    stream: str
    key_epoch: int
    version: int
    issued_at: int
    content: Mapping[str, Any]
    audience: str | tuple[str, ...] = EVERYONE
    not_before: int = 0
    stale_after: int = STALE_AFTER
    expires_at: int | None = None
    prev_digest: bytes = b""
    min_agent: str = ""
    author: str = ""
    change_ref: str = ""
    digest: bytes = b""
    signers: tuple[bytes, ...] = ()

    @property
    def position(self) -> Position:
        """Its place in its stream."""
        return Position(self.key_epoch, self.version, self.digest)


def sign_bundle(bundle: Bundle, signers: Iterable[Signer]) -> bytes:
    """The envelope of a bundle; raises BundleError for what no defender would read."""
    payload = canonical(
        {
            "schema": BUNDLE_SCHEMA,
            "fleet": bundle.fleet,
            "trust_domain": bundle.trust_domain,
            "stream": bundle.stream,
            "audience": audience_value(bundle.audience),
            "key_epoch": bundle.key_epoch,
            "version": bundle.version,
            "prev_digest": bundle.prev_digest.hex(),
            "issued_at": bundle.issued_at,
            "not_before": bundle.not_before,
            "stale_after": bundle.stale_after,
            "expires_at": bundle.expires_at,
            "min_agent": bundle.min_agent,
            "author": bundle.author,
            "change_ref": bundle.change_ref,
            "content_digest": sha256(canonical(bundle.content)).hexdigest(),
            "content": dict(bundle.content),
        }
    )
    _decode(payload, ())
    return seal(BUNDLE_TYPE, payload, signers)


def open_envelope(
    data: bytes, root: Root, *, stream: str, defender: str, agent_version: str, now: float | None
) -> Bundle:
    """Verify and read the bundle in `data` (one envelope) that came for `stream`.

    `defender` is the id of this defender, `agent_version` the version of its program. `now` are unix seconds;
    None leaves the times unchecked, for a bundle that was accepted before and is read again from disk. Raises
    BundleError with the code of the first check that fails, in the order of the specification.
    """
    envelope = read_envelope(data, BUNDLE_TYPE)
    signers = verify(envelope, root.bundle)
    bundle = _decode(envelope.payload, signers)
    check_addressed(bundle.fleet, bundle.trust_domain, bundle.audience, root, defender)
    if bundle.stream != stream:
        raise BundleError("wrong-stream", f"it is of stream {bundle.stream}, and came for {stream}")
    if bundle.key_epoch > root.key_epoch:
        raise BundleError(
            "epoch-ahead",
            f"it is of key epoch {bundle.key_epoch}; only a root document raises the epoch, it is "
            f"{root.key_epoch}",
        )
    if bundle.key_epoch < root.key_epoch:
        raise BundleError(
            "epoch-retired", f"it is of key epoch {bundle.key_epoch}; the root has moved to {root.key_epoch}"
        )
    if bundle.version < root.minimum.get(stream, 0):
        raise BundleError(
            "below-minimum",
            f"version {bundle.version}; the root accepts none before {root.minimum[stream]}",
        )
    if release_of(bundle.min_agent) > release_of(agent_version):
        raise BundleError(
            "agent-too-old", f"it needs version {bundle.min_agent} of the defender; this is {agent_version}"
        )
    if now is not None:
        _check_times(bundle, now)
    return bundle


def check_addressed(
    fleet: str, trust_domain: str, audience: str | tuple[str, ...], root: Root, defender: str
) -> None:
    """Raise BundleError `foreign-fleet` or `foreign-defender` unless something signed is meant for this
    defender."""
    if (fleet, trust_domain) != (root.fleet, root.trust_domain):
        raise BundleError("foreign-fleet", f"it is for fleet {fleet} ({trust_domain})")
    if audience != EVERYONE and defender not in audience:
        raise BundleError("foreign-defender", f"it is for {len(audience)} other defenders, not for this one")


def _check_times(bundle: Bundle, now: float) -> None:
    begins = max(bundle.not_before, bundle.issued_at)
    if begins > now + SKEW:
        raise BundleError(
            "not-yet-valid", f"it is valid in {begins - now:.0f} seconds; is this host's clock right?"
        )
    if bundle.expires_at is not None and bundle.expires_at <= now:
        raise BundleError("expired", f"it expired {now - bundle.expires_at:.0f} seconds ago")


def _decode(payload: bytes, signers: tuple[bytes, ...]) -> Bundle:
    what = "the bundle"
    fields = Fields(read_document(payload, what, BUNDLE_SCHEMA), what, _FIELDS)
    stream = fields.raw("stream")
    if stream not in STREAMS:
        raise fields.error("stream", f"is not one of {', '.join(STREAMS)}")
    content = fields.raw("content")
    if not isinstance(content, dict):
        raise fields.error("content", "is not an object")
    stated = fields.digest("content_digest")
    bundle = Bundle(
        fleet=fields.identifier("fleet"),
        trust_domain=fields.text("trust_domain", 255, 1),
        stream=stream,
        key_epoch=fields.number("key_epoch", 1),
        version=fields.number("version", 1),
        issued_at=fields.number("issued_at", 0, LAST_SECOND),
        content=content,
        audience=read_audience(fields),
        not_before=fields.number("not_before", 0, LAST_SECOND),
        stale_after=fields.number("stale_after", 1, LAST_SECOND),
        expires_at=fields.number_or_none("expires_at", 0, LAST_SECOND),
        prev_digest=fields.digest_or_empty("prev_digest"),
        min_agent=fields.release("min_agent"),
        author=fields.line("author", 256),
        change_ref=fields.line("change_ref", 256),
        digest=sha256(payload).digest(),
        signers=signers,
    )
    if sha256(_content_bytes(payload, fields)).digest() != stated:
        raise BundleError("content-mismatch", "the digest of the content is not the one that is stated")
    return bundle


def _content_bytes(payload: bytes, fields: Fields) -> bytes:
    """The canonical form of the content, cut out of the payload, which is in canonical form.

    Encoding it again would cost a third of the time that a large list of locks takes. The fields before it
    and behind it in the order of names are short.
    """
    before = canonical({name: fields.raw(name) for name in _FIELDS if name < "content"})
    behind = canonical({name: fields.raw(name) for name in _FIELDS if name > "content"})
    return payload[len(before) + len(',"content":') - 1 : len(payload) - len(behind)]


def audience_value(audience: str | tuple[str, ...]) -> str | list[str]:
    """An audience as it is written: "*", or a list in rising order."""
    return audience if isinstance(audience, str) else sorted(audience)


def read_audience(fields: Fields) -> str | tuple[str, ...]:
    """The audience of a document; raises BundleError."""
    if fields.raw("audience") == EVERYONE:
        return EVERYONE
    listed = fields.items("audience", MAX_AUDIENCE, _identifier, least=1)
    if sorted(set(listed)) != list(listed):
        raise fields.error("audience", "is not in rising order, each once")
    return listed


def _identifier(value: Any, what: str) -> str:
    if not is_identifier(value):
        raise BundleError("invalid-field", f"{what} is not a UUID in lower-case text form")
    return str(value)

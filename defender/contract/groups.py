"""The group extension of user certificates: one value, one encoding.

The groups of a user stand in one non-critical X.509 extension of our own (`GROUPS_OID`): a DER UTF8String
that holds canonical JSON. What is not exactly what `encode_groups` writes is refused, so that no two readers
can see two things: ``decode_groups(encode_groups(g))`` gives g back, and no other bytes give g.

The extension is deliberately not critical: OpenSSL refuses unknown critical extensions. Its OID lies in the
registered private-enterprise arc: the Go client refuses the ``2.25.UUID`` form as malformed.

The rules for names, of users and of groups, are here too.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from defender.contract.errors import IdentityError, one_line

GROUPS_OID = "1.3.6.1.4.1.32473.9998.1"
"""The group extension. 32473 is the example enterprise number of RFC 5612, until one is assigned to us."""

MAX_NAME = 256
"""Characters in a user's or a group's name."""
MAX_GROUPS = 256
MAX_GROUPS_BYTES = 16 * 1024
"""Bytes of the JSON text inside the group extension."""

_GROUPS_VERSION = 1
_GROUPS_KEYS = frozenset({"v", "groups", "idp", "sid", "mfa", "orig_exp"})
_UTF8_STRING = 0x0C
_MAX_TIME = 2**53 - 1
"""The largest integer that every JSON reader holds exactly."""
# Line and paragraph separators, surrogates and controls break log lines; the bidirectional controls make one
# name look like another.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class GroupClaims:
    """What the group extension says.

    ``groups`` are sorted by code point and unique. ``idp`` and ``sid`` name the identity provider and its
    session (empty for certificates issued by hand), ``mfa`` says whether a second factor was used,
    ``orig_exp`` is the end of the provider's session in unix seconds, or None.
    """

    groups: tuple[str, ...] = ()
    idp: str = ""
    sid: str = ""
    mfa: bool = False
    orig_exp: int | None = None


def encode_groups(
    groups: Iterable[str],
    *,
    idp: str = "",
    sid: str = "",
    mfa: bool = False,
    orig_exp: int | None = None,
) -> bytes:
    """Return the group extension's value: a DER UTF8String of canonical JSON.

    Canonical: exactly the keys ``groups idp mfa orig_exp sid v`` in this order, groups sorted by code point,
    no white space, UTF-8, nothing escaped but ``"`` and ``\\``. Raises IdentityError (``groups-extension``)
    for a bad or repeated name and beyond `MAX_GROUPS` or `MAX_GROUPS_BYTES`.
    """
    ordered = sorted(groups)
    _check_claims(ordered, idp, sid, mfa, orig_exp)
    document = {
        "groups": ordered,
        "idp": idp,
        "mfa": mfa,
        "orig_exp": orig_exp,
        "sid": sid,
        "v": _GROUPS_VERSION,
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8")
    if len(text) > MAX_GROUPS_BYTES:
        raise groups_refused(f"it takes {len(text)} bytes, the limit is {MAX_GROUPS_BYTES}")
    return bytes([_UTF8_STRING]) + _der_length(len(text)) + text


def decode_groups(der: bytes) -> GroupClaims:
    """Return what `encode_groups` wrote; raises IdentityError (``groups-extension``) for any other bytes."""
    text = _utf8_string(der)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise groups_refused("its content is not JSON") from error
    if not isinstance(document, dict):
        raise groups_refused("its content is not a JSON object")
    version = document.get("v")
    if version != _GROUPS_VERSION or isinstance(version, bool):
        raise groups_refused(f"its version is unknown, only {_GROUPS_VERSION} is read")
    if document.keys() != _GROUPS_KEYS:
        raise groups_refused("it must have exactly the keys " + " ".join(sorted(_GROUPS_KEYS)))
    groups, idp, sid = document["groups"], document["idp"], document["sid"]
    mfa, orig_exp = document["mfa"], document["orig_exp"]
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise groups_refused("`groups` is not a list of texts")
    _check_claims(groups, idp, sid, mfa, orig_exp)
    # One value, one encoding: white space, escapes, another order, repeated keys, 1.0 for 1 and non-minimal
    # lengths all end here.
    if encode_groups(groups, idp=idp, sid=sid, mfa=mfa, orig_exp=orig_exp) != der:
        raise groups_refused("its JSON is not canonical")
    return GroupClaims(tuple(groups), idp, sid, mfa, orig_exp)


def _is_unfit(character: str) -> bool:
    return unicodedata.category(character) in _UNPRINTABLE or character in _BIDIRECTIONAL


def check_name(name: str, check: str, what: str) -> None:
    """Raise IdentityError(check) unless the text can name a user or a group; `what` says which in words."""
    if not name:
        raise refused(check, "", f"the {what} is empty")
    if len(name) > MAX_NAME:
        raise refused(
            check, name[:40], f"the {what} has {len(name)} characters, at most {MAX_NAME} are allowed"
        )
    if any(_is_unfit(character) for character in name):
        raise refused(check, name, f"the {what} {name!r} has a control character")
    if not unicodedata.is_normalized("NFC", name):
        # It would look like a name that rules and locks speak of, and be another.
        raise refused(check, name, f"the {what} {name!r} is not in composed form (Unicode NFC)")
    if name != name.strip():
        raise refused(check, name, f"the {what} {name!r} begins or ends with white space")


def _check_claims(groups: list[str], idp: object, sid: object, mfa: object, orig_exp: object) -> None:
    if len(groups) > MAX_GROUPS:
        raise groups_refused(f"it names {len(groups)} groups, at most {MAX_GROUPS} are allowed")
    for group in groups:
        check_name(group, "groups-extension", "group name")
    if len(set(groups)) != len(groups):
        raise groups_refused("it names a group twice")
    for key, value in (("idp", idp), ("sid", sid)):
        if not isinstance(value, str):
            raise groups_refused(f"`{key}` is not text")
        if value:
            check_name(value, "groups-extension", key)
    if not isinstance(mfa, bool):
        raise groups_refused("`mfa` is neither true nor false")
    if orig_exp is not None and (
        not isinstance(orig_exp, int) or isinstance(orig_exp, bool) or not 0 <= orig_exp <= _MAX_TIME
    ):
        raise groups_refused("`orig_exp` is neither null nor a time in whole seconds")


def _der_length(length: int) -> bytes:
    """Return a DER length (X.690 section 8.1.3 with the restriction of 10.1: as short as possible)."""
    if length < 0x80:
        return bytes([length])
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def _utf8_string(der: bytes) -> str:
    """Return the text of one DER UTF8String that fills all the bytes and holds at most MAX_GROUPS_BYTES."""
    if len(der) > MAX_GROUPS_BYTES + 4:
        raise groups_refused(f"it takes {len(der)} bytes, the limit is {MAX_GROUPS_BYTES}")
    if len(der) < 2 or der[0] != _UTF8_STRING:
        raise groups_refused("its content is not a UTF8String")
    header = 2 if der[1] < 0x80 else 2 + (der[1] & 0x7F)
    content = der[header:]
    if der[1:header] != _der_length(len(content)):
        raise groups_refused("its length is wrong, or bytes follow its content")
    if len(content) > MAX_GROUPS_BYTES:
        raise groups_refused(f"it takes {len(content)} bytes, the limit is {MAX_GROUPS_BYTES}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise groups_refused("its content is not UTF-8") from error


def groups_refused(reason: str) -> IdentityError:
    """Return the error for a group extension that cannot be read."""
    return refused("groups-extension", "", f"the group extension is refused: {reason}")


def refused(check: str, subject: str, reason: str) -> IdentityError:
    """Return the error for a failed check; the subject is made fit for a log line."""
    return IdentityError(check, reason, subject=one_line(subject))

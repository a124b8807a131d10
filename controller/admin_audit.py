"""The events of what people do with the controller: who, what, before and after, and no secret.

A change is told by the keys that differ. Whatever holds a secret by its name or has the shape of one is
hidden, here and not where events are read; long texts are told by their beginning, length and digest. What
an event may hold is bounded, whatever was changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from defender.contract.redaction import HIDDEN, shorten
from defender.contract.secret_shapes import hide_shapes, is_secret_name

MAX_TEXT: Final = 512
MAX_KEYS: Final = 64
MAX_ITEMS: Final = 64
MAX_DEPTH: Final = 6
MAX_NAME: Final = 128

#: Names that sound like a secret's and hold none: identifiers and settings of tokens, digests of keys.
_NO_SECRETS: Final = frozenset(
    {"join_token", "token_id", "key_digest", "key_epoch", "password_changed", "must_change_password"}
)


def hide_secrets(text: str) -> str:
    """A text without what has the shape of a secret."""
    return hide_shapes(text, HIDDEN)


@dataclass(frozen=True, slots=True)
class Changed:
    """What an event says of a change: the keys that differ, as far as they may be shown. `redacted` are the
    paths of what is hidden."""

    before: Mapping[str, object]
    after: Mapping[str, object]
    redacted: tuple[str, ...] = ()


def compare(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Changed:
    """What changed from one state of a thing to another; None is a thing that was not there, or is gone.

    A secret that changed is shown as hidden on both sides: that it changed is told, and nothing of it.
    """
    old, new = before or {}, after or {}
    differing = sorted(
        str(key) for key in {*old, *new} if key not in old or key not in new or old[key] != new[key]
    )
    hidden: list[str] = []
    sides = []
    for side in (old, new):
        shown: dict[str, object] = {}
        for key in differing[:MAX_KEYS]:
            if key in side:
                shown[shorten(key, MAX_NAME)] = _shown(key, side[key], key, 1, hidden)
        sides.append(shown)
    if len(differing) > MAX_KEYS:
        for shown in sides:
            shown["..."] = f"{len(differing) - MAX_KEYS} more"
    return Changed(sides[0], sides[1], tuple(dict.fromkeys(hidden))[:MAX_KEYS])


def _shown(name: str, value: object, path: str, depth: int, hidden: list[str]) -> object:
    """A value as an event may hold it."""
    if value is None or isinstance(value, bool):
        return value
    if name not in _NO_SECRETS and is_secret_name(name):
        hidden.append(shorten(path, MAX_NAME))
        return HIDDEN
    if isinstance(value, int | float):
        return value
    if isinstance(value, bytes):
        return f"({len(value)} bytes, sha256:{hashlib.sha256(value).hexdigest()[:16]})"
    if isinstance(value, str):
        text = hide_secrets(value)
        if text != value:
            hidden.append(shorten(path, MAX_NAME))
        return shorten(text, MAX_TEXT)
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        items = sorted((str(key), each) for key, each in value.items())
        found = {
            shorten(key, MAX_NAME): _shown(key, each, f"{path}.{key}", depth + 1, hidden)
            for key, each in items[:MAX_KEYS]
        }
        if len(items) > MAX_KEYS:
            found["..."] = f"{len(items) - MAX_KEYS} more"
        return found
    if isinstance(value, Sequence | set | frozenset):
        each_of = sorted(value, key=repr) if isinstance(value, set | frozenset) else list(value)
        shown = [_shown(name, each, path, depth + 1, hidden) for each in each_of[:MAX_ITEMS]]
        if len(each_of) > MAX_ITEMS:
            shown.append(f"... {len(each_of) - MAX_ITEMS} more")
        return shown
    return shorten(str(value), MAX_TEXT)


@dataclass(frozen=True, slots=True)
class AdminActor:
    """Who did it. `via` is "session", "token", "system" for the controller itself, or "none" for somebody who
    has not signed in; `credential` is an id, never a secret."""

    user: str
    via: str
    credential: str = ""
    address: str = ""


def admin_event(
    actor: AdminActor,
    action: str,
    target: str,
    *,
    changed: Changed | None = None,
    refused: str = "",
    comment: str = "",
    request: str = "",
) -> dict[str, object]:
    """The content of an event of kind "admin"; who, when and where in the order is added as to any other.

    `action` is NOUN_VERB, such as policy_publish, `target` what it was done to. `refused` is why it was not
    done, "" if it was. `request` is the id of the HTTP request.
    """
    told: dict[str, object] = {"user": shorten(actor.user, MAX_NAME), "groups": [], "via": actor.via}
    if actor.address:
        told["src"] = actor.address
    if actor.credential:
        told["credential"] = shorten(actor.credential, MAX_NAME)
    asked: dict[str, object] = {"action": action, "target": shorten(target, MAX_TEXT)}
    if request:
        asked["request"] = shorten(request, MAX_NAME)
    if comment:
        asked["comment"] = shorten(hide_secrets(comment), MAX_TEXT)
    event: dict[str, object] = {
        "kind": "admin",
        "phase": "result",
        "actor": told,
        "req": asked,
        "decision": {
            "effect": "deny" if refused else "allow",
            "rule": "",
            "version": 0,
            "digest": "",
            "reason": shorten(hide_secrets(refused), MAX_TEXT),
        },
    }
    if changed is not None:
        event["before"] = dict(changed.before)
        event["after"] = dict(changed.after)
        if changed.redacted:
            event["redacted"] = list(changed.redacted)
    return event

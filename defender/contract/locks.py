"""Locks: who is shut out at once, whatever the policy and their certificate say.

A lock names a user, a group, one certificate by its serial number and, optionally, its issuer, or a defender
by its id or its name. User locks cover every way of proving to be that user; a defender that is locked lets
nobody do anything. Pure: the text comes from the caller.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from defender.contract.errors import ContractError
from defender.contract.facts import Subject

DEFENDER: Final = "defender"
KINDS: Final = ("user", "group", "serial", DEFENDER)

_SERIAL = re.compile(r"[0-9a-f]{1,40}")
_MAX_LOCKS = 100_000


class LockError(ContractError):
    """A locks text that cannot be read; the message names the entry and what is wrong with it."""


@dataclass(frozen=True, slots=True, order=True)
class Lock:
    """One lock: `kind` is one of `KINDS`; `issuer` (RFC 4514) narrows a serial, "" means any."""

    kind: str
    value: str
    issuer: str = ""

    def describe(self) -> str:
        """The lock in a few words, for messages and listings."""
        return f"{self.kind} {self.value}" + (f" of {self.issuer}" if self.issuer else "")


def _folded(name: str) -> str:
    """A name as names are compared: without case, and however its accents are written (UAX 15, UTS 10)."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def same(one: Lock, other: Lock) -> bool:
    """True if both shut out the same: names are compared as `LockSet` compares them."""
    return (one.kind, _folded(one.value), one.issuer) == (other.kind, _folded(other.value), other.issuer)


def make_lock(kind: str, value: str, issuer: str = "") -> Lock:
    """A checked lock; raises LockError. Serials are compared as lower-case hex without separators."""
    if kind not in KINDS:
        raise LockError(f"a lock is of kind {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {kind!r}")
    if not value or len(value) > 1024 or not value.isprintable():
        raise LockError(f"a {kind} lock needs a name of 1 to 1024 printable characters")
    if kind == "serial":
        value = value.lower().replace(":", "").removeprefix("0x").lstrip("0") or "0"
        if _SERIAL.fullmatch(value) is None:
            raise LockError(f"a certificate serial is up to 40 hexadecimal digits, not {value!r}")
    elif issuer:
        raise LockError("only a serial lock has an issuer")
    return Lock(kind, value, issuer)


class LockSet:
    """All locks in force, in look-up form. Names are compared as the policy compares them: casefolded,
    whole.

    `hosts` are the names and ids of the defender that asks, the one for people first. `closed` says why it
    lets nobody do anything, "" if it is not locked itself.
    """

    __slots__ = ("_groups", "_serials", "_users", "closed", "locks")

    def __init__(self, locks: frozenset[Lock] = frozenset(), hosts: Iterable[str] = ()) -> None:
        self.locks = locks
        named = tuple(hosts)
        shut = {_folded(lock.value) for lock in locks if lock.kind == DEFENDER}
        self.closed = f"defender {named[0]} is locked" if shut.intersection(map(_folded, named)) else ""
        self._users = {_folded(lock.value) for lock in locks if lock.kind == "user"}
        self._groups = {_folded(lock.value) for lock in locks if lock.kind == "group"}
        self._serials = {(lock.value, lock.issuer) for lock in locks if lock.kind == "serial"}

    def __bool__(self) -> bool:
        return bool(self.locks)

    def reason(self, subject: Subject) -> str | None:
        """Why `subject` is locked out, None if it is not."""
        if self.closed:
            return self.closed
        if _folded(subject.user) in self._users:
            return f"user {subject.user} is locked"
        for group in subject.groups:
            if _folded(group) in self._groups:
                return f"group {group} is locked"
        if subject.serial and self._serials:
            serial = subject.serial.lstrip("0") or "0"
            if (serial, "") in self._serials or (serial, subject.issuer) in self._serials:
                return f"certificate {subject.serial} is locked"
        return None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def load_locks(text: str) -> LockSet:
    """Read ``{"schema": 1, "locks": [{"kind": ..., "value": ..., "issuer": ...}]}``; raises LockError.

    An empty text is no locks. Unknown keys are refused: a lock that is not understood must not be ignored.
    """
    if not text.strip():
        return LockSet()
    try:
        data = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise LockError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or set(data) != {"schema", "locks"} or data["schema"] != 1:
        raise LockError('the locks are an object of "schema": 1 and "locks": [...]')
    entries = data["locks"]
    if not isinstance(entries, list) or len(entries) > _MAX_LOCKS:
        raise LockError(f'"locks" is a list of at most {_MAX_LOCKS} entries')
    locks: set[Lock] = set()
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not {"kind", "value"} <= set(entry) <= {"kind", "value", "issuer"}:
            raise LockError(f'lock {number}: an object of "kind", "value" and, for a serial, "issuer"')
        if not all(isinstance(part, str) for part in entry.values()):
            raise LockError(f"lock {number}: every value is a string")
        try:
            locks.add(make_lock(entry["kind"], entry["value"], entry.get("issuer", "")))
        except LockError as error:
            raise LockError(f"lock {number}: {error}") from None
    return LockSet(frozenset(locks))


def dump_locks(locks: frozenset[Lock]) -> str:
    """The text that `load_locks` reads, one lock a line, sorted."""
    entries = []
    for lock in sorted(locks):
        entry = {"kind": lock.kind, "value": lock.value}
        if lock.issuer:
            entry["issuer"] = lock.issuer
        entries.append("  " + json.dumps(entry))
    inner = ",\n".join(entries)
    return '{"schema": 1, "locks": [\n' + inner + "\n]}\n" if entries else '{"schema": 1, "locks": []}\n'

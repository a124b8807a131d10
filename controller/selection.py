"""Which defenders are meant: by id or name, by name glob, by label.

Every condition that is given must hold; one of several names is enough, all labels must be there. A selection
without a condition means all defenders. Names are compared as policies compare hosts: without regard to case,
with `*` and `?`, and a leading `-` exempts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from defender.contract.pattern import Patterns, is_exemption

MAX_NAMES: Final = 256
MAX_LABELS: Final = 64
MAX_IDS: Final = 1000
MAX_NAME: Final = 256

_KEY: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


class SelectionError(ValueError):
    """A selection or label that cannot be used; the text names it and says what to write."""


@dataclass(frozen=True, slots=True)
class Defender:
    """A host of the fleet, as it is selected: its id, the name it goes by, its labels."""

    id: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


def check_label(name: str, value: str) -> None:
    """Raise SelectionError unless a label may be called this and hold this."""
    if _KEY.fullmatch(name) is None:
        raise SelectionError(
            f"the label name {_shown(name)} is not 1 to 63 letters, digits and . _ / - between them"
        )
    if _VALUE.fullmatch(value) is None:
        raise SelectionError(
            f"the value {_shown(value)} of {name} is not up to 63 letters, digits and . _ - between them"
        )


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise SelectionError for the first label that cannot be used, or for too many."""
    if len(labels) > MAX_LABELS:
        raise SelectionError(f"{len(labels)} labels; at most {MAX_LABELS} are accepted")
    for name, value in labels.items():
        check_label(name, value)


def parse_label(text: str) -> tuple[str, str]:
    """Read ``K=V``; raises SelectionError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise SelectionError(f"{_shown(text)} is no label; write NAME=VALUE, such as env=prod")
    check_label(name, value)
    return name, value


def change_labels(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """The labels with some set, and those whose change is None removed; raises SelectionError."""
    changed = {name: value for name, value in labels.items() if name not in changes}
    changed.update({name: value for name, value in changes.items() if value is not None})
    check_labels(changed)
    return dict(sorted(changed.items()))


class Selection:
    """A checked selection; raises SelectionError for one that cannot be used."""

    __slots__ = ("_patterns", "ids", "labels", "names")

    def __init__(
        self,
        *,
        ids: Iterable[str] = (),
        names: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.ids = frozenset(ids)
        self.names = tuple(names)
        self.labels: Mapping[str, str] = dict(sorted((labels or {}).items()))
        if len(self.ids) > MAX_IDS:
            raise SelectionError(f"{len(self.ids)} ids; at most {MAX_IDS} are accepted")
        if len(self.names) > MAX_NAMES:
            raise SelectionError(f"{len(self.names)} names; at most {MAX_NAMES} are accepted")
        for name in self.names:
            plain = name.removeprefix("-")
            if not plain or plain != plain.strip() or len(name) > MAX_NAME or not name.isprintable():
                raise SelectionError(
                    f"the name {_shown(name)} is not 1 to {MAX_NAME} printable characters without blanks "
                    "at the ends"
                )
        if self.names and all(map(is_exemption, self.names)):
            raise SelectionError('exemptions alone select nothing; write "*" before them')
        check_labels(self.labels)
        self._patterns = Patterns(self.names)

    @property
    def is_everything(self) -> bool:
        """Whether every defender is meant, those to come included."""
        return not self.ids and not self.labels and (not self.names or self._patterns.everything)

    def matches(self, defender: Defender) -> bool:
        """Whether this defender is meant."""
        if self.ids and defender.id not in self.ids and defender.name not in self.ids:
            return False
        if self.names and not self._patterns.matches(defender.name.casefold()):
            return False
        return all(defender.labels.get(name) == value for name, value in self.labels.items())

    def choose(self, defenders: Iterable[Defender]) -> tuple[Defender, ...]:
        """Those that are meant, in the order given."""
        return tuple(each for each in defenders if self.matches(each))

    def describe(self) -> str:
        """The selection in a few words, for listings: ``web*, db1 with env=prod``."""
        who = ", ".join((*sorted(self.ids), *self.names)) or "all defenders"
        labels = ", ".join(f"{name}={value}" for name, value in self.labels.items())
        return f"{who} with {labels}" if labels else who

    def as_document(self) -> dict[str, Any]:
        """The selection as the API and the store hold it: only the conditions that are given."""
        found: dict[str, Any] = {}
        if self.ids:
            found["ids"] = sorted(self.ids)
        if self.names:
            found["names"] = list(self.names)
        if self.labels:
            found["labels"] = dict(self.labels)
        return found

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Selection:
        """The selection of a document; unknown keys and wrong types are refused with SelectionError."""
        unknown = sorted(set(document) - {"ids", "names", "labels"})
        if unknown:
            raise SelectionError(f"unknown key {_shown(unknown[0])}; ids, names and labels are known")
        for key in ("ids", "names"):
            value = document.get(key, [])
            if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
                raise SelectionError(f"{key} is a list of texts")
        labels = document.get("labels", {})
        if not isinstance(labels, Mapping) or not all(
            isinstance(each, str) for pair in labels.items() for each in pair
        ):
            raise SelectionError("labels is an object of names and values, all of them text")
        return cls(ids=document.get("ids", ()), names=document.get("names", ()), labels=labels)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        return (self.ids, self.names, self.labels) == (other.ids, other.names, other.labels)

    def __hash__(self) -> int:
        return hash((self.ids, self.names, tuple(self.labels.items())))

    def __repr__(self) -> str:
        return f"<Selection {self.describe()}>"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")

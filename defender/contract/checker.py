"""Reading values out of a document's tree: each fault is kept with its place, and the reading goes on."""

from __future__ import annotations

import re
from collections.abc import Sequence as SequenceOf
from difflib import get_close_matches

from defender.contract.document import MAX_PROBLEMS, Mapping, Node, Scalar, Sequence, describe, join_key
from defender.contract.errors import Problem

# Nothing that moves the cursor, ends a line or turns the direction of text where a denial or a table shows
# it.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

# Looking for similar names costs about a millisecond; a file of nothing but mistakes must not cost minutes.
_MAX_SUGGESTIONS = 200

_FEW = 12
"""Up to this many known words are listed where none is similar."""


class TooManyError(Exception):
    """Enough problems were found."""


class Checker:
    """Reads one tree and collects problems; a value with a problem reads as `None`."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._suggested = 0

    def report(self, node: Node, key: str, message: str, suggestion: str = "") -> None:
        self.problems.append(Problem(node.line, node.column, key, message, suggestion))
        if len(self.problems) >= MAX_PROBLEMS:
            raise TooManyError

    def similar(self, text: str, known: SequenceOf[str]) -> str:
        """`did you mean X?` if something known is close, else "one of ..." for short lists."""
        self._suggested += 1
        if self._suggested <= _MAX_SUGGESTIONS:
            close = get_close_matches(text.casefold(), known, n=1, cutoff=0.6)
            if close:
                return f"did you mean {close[0]}?"
        return f"one of {', '.join(known)}" if len(known) <= _FEW else ""

    # Values

    def text(self, node: Node, key: str, what: str) -> str | None:
        """A scalar that is text: quoted, or plain and nothing else in YAML 1.1."""
        if isinstance(node, Scalar):
            if node.kind == "invalid":
                return None
            if node.kind == "str":
                return node.value
            if not node.value:
                self.report(node, key, f"{what} is missing", "write a value, or leave the key out")
            else:
                suggestion = f'in quotes if it is text: "{node.value}"'
                self.report(node, key, f"{node.value} is read as {describe(node)}, not as text", suggestion)
            return None
        self.report(node, key, f"{what} must be text, not {describe(node)}")
        return None

    def choice(self, node: Node, key: str, known: SequenceOf[str]) -> str | None:
        """One of a few words, spelled exactly."""
        value = self.text(node, key, key.rpartition(".")[2])
        if value is None or value in known:
            return value
        self.report(node, key, f"unknown value {shown(value)}", self.similar(value, known))
        return None

    def plain_text(self, node: Node, key: str, what: str) -> str | None:
        """Text without control characters or characters that hide what is written."""
        value = self.text(node, key, what)
        if value is None:
            return None
        hidden = _INVISIBLE.search(value)
        if hidden is not None:
            message = f"{what} holds the invisible character U+{ord(hidden[0]):04X}"
            folded = value.endswith("\n") and not _INVISIBLE.search(value[:-1])
            suggestion = "write >- in place of > or |" if folded else "remove it; text is one line"
            self.report(node, key, message, suggestion)
            return None
        return value

    def items(self, node: Node, key: str, most: int) -> tuple[Node, ...] | None:
        """A list that is neither empty nor too long."""
        if isinstance(node, Sequence):
            if not node.items:
                self.report(
                    node, key, "an empty list would match nothing", "remove the key, or list something"
                )
                return None
            if len(node.items) > most:
                self.report(node, key, f"{len(node.items)} entries; at most {most} are accepted")
                return None
            return node.items
        if isinstance(node, Scalar):
            if node.kind != "invalid":
                example = f'write ["{node.value}"]' if node.value and '"' not in node.value else "write [...]"
                self.report(node, key, "a list is wanted here", example)
            return None
        self.report(node, key, f"a list is wanted here, not {describe(node)}")
        return None

    def keys(
        self, node: Mapping, path: str, known: SequenceOf[str], unsupported: SequenceOf[str] = ()
    ) -> dict[str, Node]:
        """The entries whose keys are known."""
        found: dict[str, Node] = {}
        for key, value in node.entries:
            if key.value in known:
                found[key.value] = value
            elif key.value in unsupported:
                message = f"{key.value} is not supported yet, and never ignored"
                suggestion = "remove it, or deny the actions it was to limit"
                self.report(key, join_key(path, key.value), message, suggestion)
            else:
                message = f"unknown key {shown(key.value)}"
                self.report(key, join_key(path, shorten(key.value)), message, self.similar(key.value, known))
        return found


def shorten(text: str) -> str:
    """Text for an error message: long text is cut."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown(text: str) -> str:
    """Text in quotes for an error message; long text is cut."""
    return repr(shorten(text))

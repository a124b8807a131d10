"""Patterns of a policy: globs of `*` and `?`, folded, matched whole, and lists of them with exemptions.

Both sides are folded with `str.casefold`, so `?` stands for one character of the folded text.  No
backtracking: the time to match grows with the length of the pattern times the length of the text, whatever
either holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

ANY = "*"
"""The pattern that matches everything, and the only glob that reaches explicit actions."""


def is_exemption(pattern: str) -> bool:
    """Whether a pattern takes out what it matches."""
    return pattern.startswith("-")


def is_glob(pattern: str) -> bool:
    """Whether a pattern has a wildcard, so that it can match more than one text."""
    return "*" in pattern or "?" in pattern


def compile_glob(pattern: str) -> Callable[[str], bool]:
    """A test of folded text against one pattern (without the `-` of an exemption)."""
    folded = pattern.casefold()
    if not is_glob(folded):
        return folded.__eq__
    head, *rest = folded.split("*")
    if "?" in folded:
        return _compile_expression(head, rest)
    if not any(rest[:-1]):
        return _affixes(head, rest[-1])
    return _parts(head, [part for part in rest[:-1] if part], rest[-1])


def _affixes(head: str, tail: str) -> Callable[[str], bool]:
    least = len(head) + len(tail)

    def matches(text: str) -> bool:
        return len(text) >= least and text.startswith(head) and text.endswith(tail)

    return matches


def _parts(head: str, middle: list[str], tail: str) -> Callable[[str], bool]:
    affixes = _affixes(head, tail)

    def matches(text: str) -> bool:
        if not affixes(text):
            return False
        start, end = len(head), len(text) - len(tail)
        for part in middle:
            found = text.find(part, start, end)
            if found < 0:
                return False
            start = found + len(part)
        return True

    return matches


def _compile_expression(head: str, rest: list[str]) -> Callable[[str], bool]:
    def quote(part: str) -> str:
        return "".join("." if character == "?" else re.escape(character) for character in part)

    expression = quote(head)
    # The leftmost place of each middle part is enough; an atomic group (Python 3.11) forbids a second try.
    expression += "".join(f"(?>.*?{quote(part)})" for part in rest[:-1] if part)
    if rest:
        expression += f".*{quote(rest[-1])}"
    # DOTALL: a name may hold a newline, and `*` is any text.
    compiled = re.compile(expression, re.DOTALL)
    return lambda text: compiled.fullmatch(text) is not None


class _Group:
    """Patterns of one sign: any of them is enough."""

    __slots__ = ("everything", "globs", "words")

    def __init__(self, patterns: Iterable[str]) -> None:
        texts = tuple(patterns)
        self.everything = ANY in texts
        self.words = frozenset(text.casefold() for text in texts if not is_glob(text))
        self.globs = tuple(compile_glob(text) for text in texts if is_glob(text))

    def matches(self, folded: str) -> bool:
        return self.everything or folded in self.words or any(glob(folded) for glob in self.globs)


class Patterns:
    """A compiled list of patterns; texts must be folded by the caller."""

    __slots__ = ("_exempt", "_wanted")

    def __init__(self, patterns: Iterable[str]) -> None:
        texts = tuple(patterns)
        self._wanted = _Group(text for text in texts if not is_exemption(text))
        self._exempt = _Group(text[1:] for text in texts if is_exemption(text))

    @property
    def everything(self) -> bool:
        """Whether no text is turned away."""
        exempt = self._exempt
        return self._wanted.everything and not (exempt.everything or exempt.words or exempt.globs)

    def matches(self, folded: str) -> bool:
        """Whether the text is wanted and not exempted."""
        return not self._exempt.matches(folded) and self._wanted.matches(folded)

    def matches_any(self, folded: Iterable[str]) -> bool:
        """Whether a set of texts (a subject's groups) is wanted: none exempted and one wanted, or `*`
        listed."""
        texts = tuple(folded)
        if any(self._exempt.matches(text) for text in texts):
            return False
        return self._wanted.everything or any(self._wanted.matches(text) for text in texts)

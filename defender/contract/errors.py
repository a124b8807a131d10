"""The errors that both programs raise about what they were given: policies, certificates, bundles.

Each says what was wrong, where, and what to do; none carries a secret.
"""

from __future__ import annotations

from dataclasses import dataclass


class ContractError(Exception):
    """Something that both programs must agree on does not hold."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One fault in a file that a person wrote.

    Problems sort by position.  `line` and `column` count from 1; 0 means that the fault belongs to the file
    as a whole.  `key` is the path of the faulty value, as `rules[2].effect` (lists count from 0), or "" for
    the file.
    """

    line: int
    column: int
    key: str
    message: str
    suggestion: str = ""

    def describe(self, source: str) -> str:
        """One line for people: `SOURCE:LINE:COLUMN: key: message (suggestion)`, without the parts that are
        empty."""
        place = f"{source}:{self.line}:{self.column}" if self.line else source
        key = f"{self.key}: " if self.key else ""
        suggestion = f" ({self.suggestion})" if self.suggestion else ""
        return one_line(f"{place}: {key}{self.message}{suggestion}")


def one_line(text: str) -> str:
    """Text that may hold what others wrote, for a log or a terminal: what does not print is shown as an
    escape."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


class FileError(ContractError):
    """A file that a person wrote cannot be used.  `problems` holds every fault that was found, in the order
    of the file; never empty."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems))
        super().__init__(source, self.problems)

    def __str__(self) -> str:
        return "\n".join(problem.describe(self.source) for problem in self.problems)


class PolicyError(FileError):
    """A policy that cannot be used."""


class IdentityError(ContractError):
    """A certificate, or what stands for one, does not prove who the peer is.

    `check` is the short name of the check that failed (`expired`, `role`, `groups`, ...), `subject` the
    best-known name of the peer, "" where there is none.
    """

    def __init__(self, check: str, detail: str, *, subject: str = "") -> None:
        self.check = check
        self.detail = detail
        self.subject = subject
        super().__init__(check, detail, subject)

    def __str__(self) -> str:
        whom = f" for {self.subject!r}" if self.subject else ""
        return f"identity check {self.check!r} failed{whom}: {self.detail}"

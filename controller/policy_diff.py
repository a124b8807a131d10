"""What changes between two versions of a policy: rule by rule, and line by line."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from dataclasses import dataclass
from difflib import unified_diff
from typing import Final, Literal

from defender.contract.rule import Policy, Rule

MAX_COMPARED_LINES: Final = 5_000
"""Up to this many changed lines are compared with each other. Beyond it the time grows with the square, and
the whole changed part is shown as taken out and put in."""

Change = Literal["added", "removed", "changed", "moved"]

_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Rule) if field.name not in ("name", "line"))


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One key of a rule, before and after, as a person would write it; "" for a key that is not there."""

    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class RuleChange:
    """What became of a rule. `place_before` and `place_after` count from 1; 0 for a rule that is not there.

    A rule that was changed may have another place too; "moved" is one whose place among the others alone
    changed, which can change what is decided all the same.
    """

    rule: str
    change: Change
    place_before: int
    place_after: int
    fields: tuple[FieldChange, ...] = ()

    def describe(self) -> str:
        """The change in one line, without the rule's name."""
        if self.change in ("added", "removed"):
            return f"{self.change} at place {self.place_after or self.place_before}"
        parts = [f"{each.key}: {each.before or '-'} -> {each.after or '-'}" for each in self.fields]
        if self.place_before != self.place_after:
            parts.append(f"place {self.place_before} -> {self.place_after}")
        return "; ".join(parts)


def compare_rules(old: Policy | None, new: Policy) -> tuple[RuleChange, ...]:
    """What changed, in the order of the new policy, then what was removed. No policy before is one without
    rules."""
    before = {rule.name: (place, rule) for place, rule in enumerate(old.rules if old else (), 1)}
    after = {rule.name: (place, rule) for place, rule in enumerate(new.rules, 1)}
    moved = _moved([name for name in before if name in after], [name for name in after if name in before])
    found: list[RuleChange] = []
    for name, (place, rule) in after.items():
        if name not in before:
            found.append(RuleChange(name, "added", 0, place))
            continue
        place_before, rule_before = before[name]
        fields = _fields(rule_before, rule)
        if fields:
            found.append(RuleChange(name, "changed", place_before, place, fields))
        elif name in moved:
            found.append(RuleChange(name, "moved", place_before, place))
    found.extend(
        RuleChange(name, "removed", place, 0) for name, (place, _) in before.items() if name not in after
    )
    return tuple(found)


def _moved(before: list[str], after: list[str]) -> frozenset[str]:
    """The fewest rules that must be taken out for the others to be in the same order: all but a longest
    increasing subsequence (patience sorting)."""
    places = {name: place for place, name in enumerate(before)}
    tops: list[int] = []  # the smallest place that ends an increasing run of each length
    below: dict[int, int] = {}
    for name in after:
        place = places[name]
        pile = bisect_left(tops, place)
        if pile:
            below[place] = tops[pile - 1]
        tops[pile : pile + 1] = [place]
    stayed: set[str] = set()
    place_or_end = tops[-1] if tops else None
    while place_or_end is not None:
        stayed.add(before[place_or_end])
        place_or_end = below.get(place_or_end)
    return frozenset(before) - stayed


def _fields(before: Rule, after: Rule) -> tuple[FieldChange, ...]:
    return tuple(
        FieldChange(name, _written(getattr(before, name)), _written(getattr(after, name)))
        for name in _FIELDS
        if getattr(before, name) != getattr(after, name)
    )


def _written(value: object) -> str:
    """A value of a rule as text."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]" if value else ""
    return str(value)


def compare_text(before: str, after: str, name_before: str, name_after: str) -> str:
    """What `diff -u` writes: "" if both are equal.

    The time is bounded: what is equal at the beginning and at the end is set aside first, and a changed part
    of more than `MAX_COMPARED_LINES` is shown whole.
    """
    if before == after:
        return ""
    old, new = _lines(before), _lines(after)
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    context = 3
    start, cut = max(0, head - context), max(0, tail - context)
    old_part, new_part = old[start : len(old) - cut], new[start : len(new) - cut]
    if len(old_part) + len(new_part) <= MAX_COMPARED_LINES:
        body = list(unified_diff(old_part, new_part, n=context))[2:]
        body = [_shifted(line, start) if line.startswith("@@") else line for line in body]
    else:
        body = [f"@@ -{start + 1},{len(old_part)} +{start + 1},{len(new_part)} @@\n"]
        body += [f"-{line}" for line in old_part] + [f"+{line}" for line in new_part]
    return "".join(_ended(line) for line in [f"--- {name_before}\n", f"+++ {name_after}\n", *body])


def _lines(text: str) -> list[str]:
    """Lines with their newline; nothing else ends one, as for `diff`."""
    found = [line + "\n" for line in text.split("\n")]
    if found[-1] == "\n":
        found.pop()
    else:
        found[-1] = found[-1][:-1]
    return found


def _common(one: list[str], other: list[str]) -> int:
    """How many items both begin with."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def _shifted(header: str, by: int) -> str:
    """A hunk's header with its lines counted from the beginning of the file."""
    _, old, new, _ = header.split(" ", 3)

    def shift(part: str) -> str:
        line, comma, count = part[1:].partition(",")
        return f"{part[0]}{int(line) + by}{comma}{count}"

    return f"@@ {shift(old)} {shift(new)} @@\n"


def _ended(line: str) -> str:
    return line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"

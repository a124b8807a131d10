"""What each defender should have: which policy is its own, and where it should listen.

Inputs in, commands out: the shell tells who is in the fleet and what was published, and learns from `Follow`
which line of the policy stream (`distribution`) a defender follows now.

* A defender has exactly one policy: of those that select it, the one with the highest rank. Of equal ranks
  one that names hosts or labels goes before one for the whole fleet, then the one that was published last;
  `overlaps` tells where that had to decide.
* A defender that no policy selects follows `NO_POLICY`, which denies everything.
* A listener mode is ordered for the defenders that are selected at that moment. It stays theirs until another
  order, whatever becomes of their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from controller.selection import Defender, Selection, SelectionError, check_labels
from defender.contract.local import LONGEST_DRAIN, MODES
from defender.contract.policy_schema import DENY_ALL

NO_POLICY: Final = ""
"""The line of defenders that no policy selects; no policy can have this name."""

NO_POLICY_TEXT: Final = DENY_ALL
"""What is published on `NO_POLICY`."""

MAX_RANK: Final = 1000


@dataclass(frozen=True, slots=True)
class Target:
    """Which defenders a published policy is for, and how it ranks among the others."""

    selection: Selection
    rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank <= MAX_RANK:
            raise ValueError(f"a rank is between 0 and {MAX_RANK}, not {self.rank}")

    @property
    def precedence(self) -> tuple[int, bool]:
        """Sorts the one that wins first."""
        return -self.rank, self.selection.is_everything

    def as_document(self) -> dict[str, Any]:
        """The target as the API and the store hold it: a selection, and `rank` where it is not 0."""
        document = self.selection.as_document()
        return {**document, "rank": self.rank} if self.rank else document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Target:
        """The target of a document; raises SelectionError for one that cannot be used."""
        selection = {key: value for key, value in document.items() if key != "rank"}
        rank = document.get("rank", 0)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= MAX_RANK:
            raise SelectionError(f"rank is a number between 0 and {MAX_RANK}, not {rank!r}"[:200])
        return cls(Selection.from_document(selection), rank)


@dataclass(frozen=True, slots=True)
class Follow:
    """The defender follows this policy's line from now on; None: it left the fleet."""

    defender: str
    policy: str | None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a new target of a policy would change: ids of defenders.

    `enter` and `leave` the policy; `uncovered` of those that leave have no policy then, and deny everything.
    """

    enter: tuple[str, ...]
    leave: tuple[str, ...]
    uncovered: tuple[str, ...]


class Fleet:
    """Who is in the fleet, and which policy each one has; see the module."""

    def __init__(self) -> None:
        self._defenders: dict[str, Defender] = {}
        self._targets: dict[str, Target] = {}
        self._order: tuple[tuple[str, Target], ...] = ()
        self._follows: dict[str, str] = {}

    # -- inputs

    def enrolled(self, defender: Defender) -> list[Follow]:
        """A defender is in the fleet, or has another name or other labels; raises SelectionError for labels
        that cannot be used."""
        check_labels(defender.labels)
        self._defenders[defender.id] = defender
        return self._follow([defender])

    def removed(self, defender: str) -> list[Follow]:
        """A defender left the fleet."""
        if self._defenders.pop(defender, None) is None:
            return []
        del self._follows[defender]
        return [Follow(defender, None)]

    def targeted(self, policy: str, target: Target | None) -> list[Follow]:
        """A policy was published for these, later than all others; None: it was removed from the fleet."""
        if policy == NO_POLICY:
            raise ValueError("a policy has a name")
        self._targets.pop(policy, None)
        if target is not None:
            self._targets[policy] = target
        self._order = self._with(policy, target)
        return self._follow(self._defenders.values())

    # -- what is there

    def knows(self, defender: Defender) -> bool:
        """Whether this defender is there, with this name and these labels."""
        return self._defenders.get(defender.id) == defender

    def defenders(self, selection: Selection | None = None) -> tuple[Defender, ...]:
        """Those that are selected, or all, by name."""
        everybody = sorted(self._defenders.values(), key=lambda each: (each.name.casefold(), each.id))
        return tuple(everybody) if selection is None else selection.choose(everybody)

    def find(self, reference: str) -> Defender | None:
        """The defender of this id, else the only one of this name."""
        found = self._defenders.get(reference)
        if found is not None:
            return found
        folded = reference.casefold()
        named = [each for each in self._defenders.values() if each.name.casefold() == folded]
        return named[0] if len(named) == 1 else None

    def policy_of(self, defender: str) -> str | None:
        """The policy that a defender follows; None if it is not in the fleet."""
        return self._follows.get(defender)

    def followers(self, policy: str) -> frozenset[str]:
        """The defenders that follow a policy."""
        return frozenset(who for who, followed in self._follows.items() if followed == policy)

    def audience(self, policy: str, target: Target) -> frozenset[str] | None:
        """Whom a version of a policy is to be signed for; None is the whole fleet.

        A policy for the whole fleet is signed for everybody, so that it needs no new bundle for each defender
        that comes.
        """
        if target.selection.is_everything:
            return None
        order = self._with(policy, target)
        return frozenset(each.id for each in self._defenders.values() if _first(order, each) == policy)

    def preview(self, policy: str, target: Target | None) -> Preview:
        """What `targeted` would change."""
        order = self._with(policy, target)
        enter: list[str] = []
        leave: list[str] = []
        uncovered: list[str] = []
        for who in self.defenders():
            before, after = self._follows[who.id], _first(order, who)
            if after == policy != before:
                enter.append(who.id)
            elif before == policy != after:
                leave.append(who.id)
                if after == NO_POLICY:
                    uncovered.append(who.id)
        return Preview(tuple(enter), tuple(leave), tuple(uncovered))

    def overlaps(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Pairs of policies of which only the time decides, winner first, with the defenders concerned."""
        found: dict[tuple[str, str], list[str]] = {}
        for who in self.defenders():
            matching = [(name, target) for name, target in self._order if target.selection.matches(who)]
            for (one, first), (other, second) in pairwise(matching[:2]):
                if first.precedence == second.precedence:
                    found.setdefault((one, other), []).append(who.id)
        return [(one, other, tuple(who)) for (one, other), who in sorted(found.items())]

    # -- small

    def _with(self, policy: str, target: Target | None) -> tuple[tuple[str, Target], ...]:
        targets = {name: each for name, each in self._targets.items() if name != policy}
        if target is not None:
            targets[policy] = target
        order = [*reversed(targets.items())]
        # Sorting keeps the order of equals: the last one first.
        order.sort(key=lambda item: item[1].precedence)
        return tuple(order)

    def _follow(self, defenders: Iterable[Defender]) -> list[Follow]:
        found: list[Follow] = []
        for who in defenders:
            policy = _first(self._order, who)
            if self._follows.get(who.id) != policy:
                self._follows[who.id] = policy
                found.append(Follow(who.id, policy))
        return found


def _first(order: Iterable[tuple[str, Target]], who: Defender) -> str:
    """The first policy of an order that selects a defender."""
    return next((name for name, target in order if target.selection.matches(who)), NO_POLICY)


class ModeError(ValueError):
    """A listener mode that cannot be ordered; the text says what can."""


@dataclass(frozen=True, slots=True)
class Mode:
    """Where a defender should listen; `drain` is the limit in seconds for what runs on the listeners that go:
    0 for none, None for the defender's own setting."""

    listener: str
    drain: int | None = None

    def __post_init__(self) -> None:
        if self.listener not in MODES:
            raise ModeError(f"{self.listener!r} is not one of {', '.join(MODES)}")
        if self.drain is not None and not 0 <= self.drain <= LONGEST_DRAIN:
            raise ModeError(f"a drain of {self.drain} s is not between 0 and {LONGEST_DRAIN:g} s")


@dataclass(frozen=True, slots=True)
class ModeOrder:
    """A mode for some defenders: their ids, those that have it ordered already left out."""

    mode: Mode
    defenders: frozenset[str]


def order_mode(
    mode: Mode,
    selection: Selection,
    defenders: Iterable[Defender],
    ordered: Mapping[str, Mode] | Callable[[str], Mode | None],
) -> ModeOrder:
    """Order a mode for those that are selected now.

    `ordered` is what was ordered for each before. Who has exactly that is left out, unless nobody would be
    left: then everybody selected is told again, since somebody asks because it did not work. Raises ModeError
    if nobody is selected.
    """
    before = ordered.get if isinstance(ordered, Mapping) else ordered
    selected = frozenset(each.id for each in selection.choose(defenders))
    if not selected:
        raise ModeError(f"no defender is selected by {selection.describe()}")
    changed = frozenset(each for each in selected if before(each) != mode)
    return ModeOrder(mode, changed or selected)

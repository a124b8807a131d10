"""Which policy is in force, and what becomes of one that is offered. Pure.

The one in force is replaced as a whole or not at all: a text that does not load leaves the last good policy
where it is, and the problems are kept for whoever asks. Before the first good one, everything is denied.
"""

from __future__ import annotations

from dataclasses import dataclass

from defender.contract.errors import PolicyError, Problem
from defender.contract.policy import Policy, PolicyTable, load_policy


@dataclass(frozen=True, slots=True)
class Activated:
    """`policy` is in force now; `version` counts activations since the start, `unchanged` if the text was
    the same.
    """

    policy: Policy
    version: int
    unchanged: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """The offered policy was refused for `error`; the one before stays in force."""

    error: PolicyError


class PolicyActivation:
    """The policy in force on one host. `table` is what decisions are taken from; it is replaced, never
    changed.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self.policy: Policy | None = None
        self.table = PolicyTable(None, host)
        self.version = 0
        self.error: PolicyError | None = None

    def offer(self, text: str, source: str) -> Activated | Kept:
        """Put `text` in force if it is a valid policy; `source` names it in errors."""
        try:
            policy = load_policy(text, source)
        except PolicyError as error:
            self.error = error
            return Kept(error)
        self.error = None
        unchanged = self.policy is not None and policy.digest == self.policy.digest
        if not unchanged:
            self.policy = policy
            self.table = PolicyTable(policy, self._host)
            self.version += 1
        return Activated(policy, self.version, unchanged)

    def withdraw(self) -> None:
        """Have no policy in force: everything is denied."""
        if self.policy is not None:
            self.policy = None
            self.table = PolicyTable(None, self._host)
            self.version += 1

    def unreadable(self, source: str, why: str) -> Kept:
        """The file could not be read: keep what is in force and remember why."""
        self.error = PolicyError(source, (Problem(0, 0, "", why),))
        return Kept(self.error)

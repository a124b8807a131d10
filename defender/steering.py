"""What a fleet may do with this defender: put a policy, locks, a listener mode and trust in force.

Each is put in force as a whole or not at all; what cannot be is raised as a ContractError or an OSError, with
words for the controller's operators. A defender that belongs to a fleet has its policy from there alone; the
locks of both count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender.bundles.activation import Kept, PolicyActivation
from defender.bundles.watch import replace_file
from defender.contract.errors import ContractError
from defender.contract.locks import LockSet
from defender.contract.messages import Cmd
from defender.listener.service import ListenerService
from defender.listener.spec import SpecError, parse_mode
from defender.listener.switch import Report

#: Where the authorities of users are, beside the membership.
USERS: Final = "users.pem"

_SERVED: Final = frozenset({"switched", "unchanged", "partial"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is steered. `locked` takes the fleet's locks, None while they are not known; `judged` judges open
    streams again and gives how many were cut; `trusted` reads the certificates again; `distrusted` lets
    nobody in until it is called; `frozen` is told why nothing may be changed, "" if it may; `status` is what
    the controller shows of this defender.
    """

    activation: PolicyActivation
    listener: ListenerService
    locked: Callable[[LockSet | None], object]
    judged: Callable[[], int]
    trusted: Callable[[], Deferred[Report]]
    distrusted: Callable[[], object]
    frozen: Callable[[str], object]
    status: Callable[[], Mapping[str, Any]]


class Steering:
    """See the module; implements `defender.member.Host`. `folder` is the membership's directory."""

    log = Logger()

    def __init__(self, folder: Path, parts: Parts) -> None:
        self.users = folder / USERS
        self._folder = folder
        self._parts = parts

    def put_policy(self, name: str, text: str) -> None:
        """Put a policy in force; open streams are judged again."""
        activation = self._parts.activation
        outcome = activation.offer(text, name)
        if isinstance(outcome, Kept):
            raise ContractError("; ".join(str(outcome.error).splitlines()))
        if not outcome.unchanged:
            cut = self._parts.judged()
            self.log.info(
                "policy {name} is active: rules: {rules}, {digest}; open streams cut: {cut}",
                name=name,
                rules=len(outcome.policy.rules),
                digest=outcome.policy.digest,
                cut=cut,
            )

    def withdraw_policy(self, reason: str) -> None:
        """Deny everything."""
        self._parts.activation.withdraw()
        cut = self._parts.judged()
        self.log.error("no policy is active: {reason}; open streams cut: {cut}", reason=reason, cut=cut)

    def put_locks(self, locks: LockSet | None) -> None:
        """The fleet's locks; None: they are not known, so nobody is let in."""
        self._parts.locked(locks)
        cut = self._parts.judged()
        count = "unknown" if locks is None else len(locks.locks)
        self.log.info("locks of the fleet: {count}; open streams cut: {cut}", count=count, cut=cut)

    def freeze(self, reason: str) -> None:
        """Deny what changes something, and cut what is doing so; "": no longer."""
        self._parts.frozen(reason)
        cut = self._parts.judged()
        if reason:
            self.log.error(
                "nothing may be changed: {reason}; open streams cut: {cut}", reason=reason, cut=cut
            )
        else:
            self.log.info("the controller was heard of: what the policy allows may be changed again")

    def put_mode(self, listener: str, drain: int | None) -> Deferred[None]:
        """Listen there, once everything that it names could be opened."""
        switching = self._parts.listener.set_mode(
            parse_mode(listener), None if drain is None else float(drain)
        )

        def done(report: Report) -> None:
            if report.outcome not in _SERVED:
                raise ContractError(report.reason or report.outcome)

        def refused(failure: Failure) -> None:
            failure.trap(SpecError)
            raise ContractError(str(failure.value))

        return switching.addCallbacks(done, refused)

    def put_trust(self, users: tuple[str, ...]) -> Deferred[None]:
        """Let in whom these authorities (PEM) vouch for, and nobody else over TLS."""
        if not users:
            self.users.unlink(missing_ok=True)
            self._parts.distrusted()
            return succeed(None)
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        replace_file(str(self.users), "".join(each if each.endswith("\n") else each + "\n" for each in users))
        trusting = self._parts.trusted()

        def done(report: Report) -> None:
            if report.outcome == "failed":
                raise ContractError(report.reason or report.outcome)

        return trusting.addCallback(done)

    def state(self) -> Mapping[str, Any]:
        """For STATUS."""
        return self._parts.status()

    def answer(self, command: Cmd) -> Mapping[str, Any]:
        """Nothing can be asked yet: what a fleet changes, it changes by streams."""
        if command.verb == "status":
            return self._parts.status()
        raise ContractError(f"a defender of this version has no command {command.verb!r}")

"""What the ports ask of the publisher; `controller.publisher` and `controller.publisher_orders` are it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from controller.distribution import Distribution
from controller.fleet import Mode, Preview, Target
from controller.publishing import PolicyState, Version
from controller.releases import Plan, Progress
from controller.rollout_view import Step
from controller.selection import Defender, Selection
from controller.store.locks import LockRow
from defender.contract.locks import Lock

Record = Callable[[sqlite3.Connection, Mapping[str, Any] | None, Mapping[str, Any] | None], object]
Admits = Callable[[str], bool]


class Publisher(Protocol):
    """Knows who is in the fleet, and what everybody should have."""

    @property
    def streams(self) -> Mapping[str, Distribution]:
        """How each stream is distributed."""

    @property
    def problem(self) -> str:
        """Why nothing new is offered, "" if all is well."""

    @property
    def nacks(self) -> Mapping[str, int]:
        """How many bundles were refused since the start, by stream."""

    def enrolled(self, defender: Defender) -> None:
        """A defender is in the fleet, or has other labels."""

    def removed(self, defender: str) -> None:
        """A defender left the fleet, and the store."""


class Rollout(Protocol):
    """How far a release is."""

    @property
    def version(self) -> int:
        """Of its content."""

    @property
    def progress(self) -> Progress:
        """The numbers."""

    @property
    def detail(self) -> str:
        """Why it is halted, "" if it is not."""


class Orders(Protocol):
    """Each change is one transaction with what `record` writes in it."""

    async def policy(self, name: str) -> PolicyState:
        """A policy as it is now."""

    async def save_draft(
        self, name: str, text: str, target: Target, author: str, *, admits: Admits, record: Record
    ) -> PolicyState:
        """Save a draft."""

    async def discard_draft(self, name: str, *, admits: Admits, record: Record) -> PolicyState:
        """Back to what is published."""

    async def preview(self, name: str, target: Target) -> Preview:
        """Whom a target would bring and take."""

    async def publish(
        self, name: str, author: str, *, comment: str, plan: Plan, admits: Admits, record: Record
    ) -> Version:
        """Make the draft the next version."""

    async def roll_back(
        self, name: str, to: int, author: str, *, comment: str, plan: Plan, admits: Admits, record: Record
    ) -> Version:
        """Make the content of an older version the next one."""

    async def withdraw(self, name: str, *, admits: Admits, record: Record) -> None:
        """Remove a policy from the fleet."""

    async def steer(self, name: str, action: str, *, record: Record) -> None:
        """Halt, resume or abort."""

    def rollout(self, stream: str, line: str) -> Rollout:
        """How far the newest release of a line is; RolloutError if there is none."""

    def steps(self, stream: str, line: str) -> Iterator[Step]:
        """How far each of its defenders is; RolloutError."""

    def name_of(self, defender: str) -> str:
        """What people call a defender."""

    async def set_mode(self, selection: Selection, mode: Mode, author: str, *, record: Record) -> str:
        """Order a listener mode; the id of the order."""

    def mode_of(self, defender: str) -> Mode | None:
        """What was ordered for a defender last."""

    async def add_lock(self, lock: Lock, reason: str, author: str, *, record: Record) -> tuple[LockRow, bool]:
        """Shut somebody out; whether that is new."""

    async def remove_lock(self, ident: str, author: str, *, record: Record) -> LockRow:
        """Let somebody in again."""

"""What people ask of the publisher: policies, listener modes, locks, keys.

Every change is one transaction: what it takes (a number, a version, a lock), the signed bundle, the beginning
of its rollout, and whatever `record` writes to tell of it. Only then is the fleet told. What cannot be done
is raised, and changes nothing: PublishError, RolloutError, SelectionError, ModeError, LockError, BundleError,
CustodyError, or an error of the store.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from controller import publishing
from controller.distribution import GRADUAL, RolloutError
from controller.fleet import Mode, Preview, Target, order_mode
from controller.pki.signing import BUNDLE
from controller.publisher import Publisher
from controller.publisher_steps import (
    ALL,
    Issued,
    Issuer,
    Wanted,
    all_locks,
    keep_policy,
    keep_state,
    keep_version,
    order,
    prepare,
    read_policy,
    read_version,
)
from controller.publishing import Draft, PolicyState, Version
from controller.releases import AT_ONCE, Command, Phase, Plan, Position, Progress, Release
from controller.rollout_view import Step, describe_halt, steps
from controller.selection import Selection
from controller.store import bundles, locks
from controller.store.locks import LockRow
from defender.contract.contents import mode_content, policy_content
from defender.contract.locks import Lock
from defender.contract.trust import LOCKS, MODE, POLICY

T = TypeVar("T")

Record = Callable[[sqlite3.Connection, Mapping[str, Any] | None, Mapping[str, Any] | None], object]
"""Writes the event of a change in its transaction, from what was there before and what is after."""


def no_record(connection: sqlite3.Connection, before: object, after: object) -> None:
    """Tells nobody."""


def anything(etag: str) -> bool:
    """Admits every state of a policy; see `publishing.check_expected`."""
    return True


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a release is. `version` is the number that its content was published under; `detail` says why
    it is halted, "" if it is not."""

    line: str
    version: int
    progress: Progress
    detail: str


MOST: Final = 2**53
"""The highest number that may be gone beyond: enough are left behind it for as long as the fleet lives."""

_STEER: Final = ("halt", "resume", "abort")


class Orders:
    """See the module. `new_id` makes the ids of locks and of orders of listener modes."""

    def __init__(self, publisher: Publisher, new_id: Callable[[], str] = lambda: str(uuid.uuid4())) -> None:
        self._publisher = publisher
        self._new_id = new_id

    # -- policies: what is written

    async def policy(self, name: str) -> PolicyState:
        """A policy as it is now; one that does not exist has neither version nor draft."""
        return await self._publisher.database.read(read_policy, name)

    async def save_draft(
        self,
        name: str,
        text: str,
        target: Target,
        author: str,
        *,
        admits: Callable[[str], bool] = anything,
        record: Record = no_record,
    ) -> PolicyState:
        """Save a draft, which need not be valid."""
        draft = Draft(text, target, author, self._wall())
        return await self._change(name, admits, lambda state: publishing.save_draft(state, draft), record)

    async def discard_draft(
        self, name: str, *, admits: Callable[[str], bool] = anything, record: Record = no_record
    ) -> PolicyState:
        """Back to what is published."""
        return await self._change(name, admits, publishing.discard_draft, record)

    async def _change(
        self,
        name: str,
        admits: Callable[[str], bool],
        change: Callable[[PolicyState], PolicyState],
        record: Record,
    ) -> PolicyState:
        def step(connection: sqlite3.Connection) -> PolicyState:
            before = read_policy(connection, name)
            publishing.check_expected(before, admits)
            after = change(before)
            keep_policy(connection, after)
            record(connection, describe(before), describe(after))
            return after

        return await self._locked(lambda: self._publisher.database.write(step))

    # -- policies: what goes out

    async def preview(self, name: str, target: Target) -> Preview:
        """Whom a target of a policy would bring to it and take from it."""
        return self._publisher.policies.fleet.preview(name, target)

    async def publish(
        self,
        name: str,
        author: str,
        *,
        comment: str = "",
        plan: Plan = GRADUAL,
        admits: Callable[[str], bool] = anything,
        record: Record = no_record,
    ) -> Version:
        """Make the draft the next version and let it go out."""

        def decide(
            connection: sqlite3.Connection, state: PolicyState, number: int
        ) -> tuple[PolicyState, Version]:
            return publishing.publish(state, number, author, self._wall(), comment=comment)

        return await self._locked(lambda: self._publish(name, None, plan, admits, decide, record))

    async def roll_back(
        self,
        name: str,
        to: int,
        author: str,
        *,
        comment: str = "",
        plan: Plan = GRADUAL,
        admits: Callable[[str], bool] = anything,
        record: Record = no_record,
    ) -> Version:
        """Publish the content of an older version as the next one and let it go out."""

        def decide(
            connection: sqlite3.Connection, state: PolicyState, number: int
        ) -> tuple[PolicyState, Version]:
            older = read_version(connection, name, to)
            return publishing.roll_back(state, older, number, author, self._wall(), comment=comment)

        return await self._locked(lambda: self._publish(name, to, plan, admits, decide, record))

    async def _publish(
        self,
        name: str,
        to: int | None,
        plan: Plan,
        admits: Callable[[str], bool],
        decide: Callable[[sqlite3.Connection, PolicyState, int], tuple[PolicyState, Version]],
        record: Record,
    ) -> Version:
        publisher = self._publisher
        fleet = publisher.policies.fleet
        # Nothing else changes the policy meanwhile, so its target is that of the transaction below.
        target = await publisher.database.read(_target_of, name, to)
        audience = None if target is None else fleet.audience(name, target)
        base = self._base(name)

        def step(connection: sqlite3.Connection) -> tuple[Version, Issued]:
            before = read_policy(connection, name)
            publishing.check_expected(before, admits)
            number = bundles.next_version(connection, POLICY)
            after, version = decide(connection, before, number)
            keep_version(connection, version)
            keep_policy(connection, after)
            content = policy_content(name, version.text)
            wanted = Wanted(POLICY, name, content, audience, author=version.author, comment=version.comment)
            issued = publisher.issuer.begin(connection, wanted, plan, base, number)
            record(connection, describe(before), describe(after))
            return version, issued

        version, issued = await publisher.database.write(step)
        publisher.published(
            issued,
            lambda release: publisher.policies.published(
                name, version.target, release, plan, publisher.now()
            ),
        )
        return version

    async def withdraw(
        self, name: str, *, admits: Callable[[str], bool] = anything, record: Record = no_record
    ) -> None:
        """Remove a policy from the fleet; who had it gets what comes next for it, at once."""
        publisher = self._publisher

        def step(connection: sqlite3.Connection) -> PolicyState:
            before = read_policy(connection, name)
            publishing.check_expected(before, admits)
            keep_policy(connection, PolicyState(name))
            keep_state(connection, POLICY, name, None, self._wall())
            record(connection, describe(before), None)
            return before

        async def work() -> None:
            before = await publisher.database.write(step)
            if before.published is not None:
                with publisher.dropping(POLICY):
                    commands = publisher.policies.withdrawn(name, publisher.now())
                publisher.take(POLICY, commands)

        await self._locked(work)

    async def steer(self, name: str, action: str, *, detail: str = "", record: Record = no_record) -> None:
        """ "halt", "resume" or "abort" the rollout of a policy; raises RolloutError if that cannot be."""
        publisher = self._publisher
        stream = publisher.policies.stream

        async def work() -> None:
            if action not in _STEER:
                raise RolloutError(f"{action!r} is not one of {', '.join(_STEER)}")
            before = {"rollout": _phase(publisher, name)}
            # On record before it is done: a rollout is not steered by nobody.
            self._check_phase(name, action)
            after = {"rollout": {"halt": "halted", "resume": "running", "abort": "aborted"}[action]}
            await publisher.database.write(record, before, after)
            commands: list[Command]
            if action == "halt":
                commands = stream.halt(name, detail)
            elif action == "resume":
                commands = stream.resume(name, publisher.now())
            else:
                commands = stream.abort(name)
            publisher.take(POLICY, commands)

        await self._locked(work)
        await publisher.kept()

    def _check_phase(self, name: str, action: str) -> None:
        phase = _phase(self._publisher, name)
        wanted = {"halt": ("running",), "resume": ("halted",), "abort": ("running", "halted")}[action]
        if phase not in wanted:
            raise RolloutError(
                f"the rollout of {name!r} is {phase or 'not there'}, not {' or '.join(wanted)}"
            )

    # -- how far it is

    def rollout(self, stream: str, line: str) -> Rollout:
        """How far the newest release of a line is: of a policy by its name, of an order of a mode by its id,
        of locks and trust by "". Raises RolloutError if there is none."""
        distribution = self._publisher.streams[stream]
        progress = distribution.progress(line)
        state = distribution.state(line)
        detail = ""
        if state.halted is not None:
            detail = describe_halt(state.halted, self.name_of, state.plan.patience)
        return Rollout(line, state.release.origin.version, progress, detail)

    def steps(self, stream: str, line: str) -> Iterator[Step]:
        """How far each of its defenders is; raises RolloutError."""
        return steps(self._publisher.streams[stream], line, self.name_of)

    def name_of(self, defender: str) -> str:
        """What people call a defender."""
        found = self._publisher.policies.fleet.find(defender)
        return defender if found is None else found.name

    # -- listener modes

    async def set_mode(
        self, selection: Selection, mode: Mode, author: str, *, record: Record = no_record
    ) -> str:
        """Order a listener mode for those that are selected now; gives the id of the order."""
        publisher = self._publisher
        ident = self._new_id()

        async def work() -> None:
            wanted = order_mode(
                mode, selection, publisher.policies.fleet.defenders(), publisher.modes.mode_of
            )
            before = {
                self.name_of(who): None if (was := publisher.modes.mode_of(who)) is None else was.listener
                for who in sorted(wanted.defenders)
            }
            content = mode_content(mode.listener, mode.drain)

            def step(connection: sqlite3.Connection) -> tuple[Issued, frozenset[str]]:
                asked = Wanted(MODE, ident, content, wanted.defenders, author=author)
                found = order(connection, publisher.issuer, asked, mode)
                record(connection, before, dict.fromkeys(before, mode.listener))
                return found

            issued, there = await publisher.database.write(step)
            given = type(wanted)(mode, there)
            publisher.published(
                issued, lambda release: publisher.modes.ordered(ident, given, release, publisher.now())
            )

        await self._locked(work)
        return ident

    def mode_of(self, defender: str) -> Mode | None:
        """What was ordered for a defender last; None if it listens as its settings say."""
        return self._publisher.modes.mode_of(defender)

    # -- locks

    async def add_lock(
        self, lock: Lock, reason: str, author: str, *, record: Record = no_record
    ) -> tuple[LockRow, bool]:
        """Shut somebody out of the whole fleet, at once; gives the lock, and whether it is new."""
        row = LockRow(self._new_id(), lock.kind, lock.value, lock.issuer, reason, author, self._wall())

        def change(connection: sqlite3.Connection) -> tuple[LockRow, bool]:
            kept, new = locks.add(connection, row)
            if new:
                record(connection, None, describe_lock(kept))
            return kept, new

        return await self._change_locks(change, lambda found: found[1], author)

    async def remove_lock(self, ident: str, author: str, *, record: Record = no_record) -> LockRow:
        """Let somebody in again; MissingError."""

        def change(connection: sqlite3.Connection) -> LockRow:
            gone = locks.remove(connection, ident)
            record(connection, describe_lock(gone), None)
            return gone

        return await self._change_locks(change, lambda found: True, author)

    async def locks(self) -> list[LockRow]:
        """All of them, the oldest first."""
        return await self._publisher.database.read(locks.every)

    async def _change_locks(
        self, change: Callable[[sqlite3.Connection], T], changed: Callable[[T], bool], author: str
    ) -> T:
        publisher = self._publisher

        async def work() -> T:
            base = self._base(ALL, LOCKS)

            def step(connection: sqlite3.Connection) -> tuple[T, Issued | None]:
                found = change(connection)
                if not changed(found):
                    return found, None
                wanted = Wanted(LOCKS, ALL, all_locks(connection), author=author)
                return found, publisher.issuer.begin(connection, wanted, AT_ONCE, base)

            found, issued = await publisher.database.write(step)
            if issued is not None:
                publisher.renewed([issued])
            return found

        return await self._locked(work)

    # -- keys

    async def replace_key(self, role: str, *, record: Record = no_record, even_now: bool = False) -> None:
        """Make a new key for a role ("root", "bundle", "snapshot"), and sign with it what is in force.

        With another `bundle` key nothing that the old one signed is in force on a defender, until it has what
        the new one signed. So no policy may be on its way, unless it is asked for `even_now`: then each falls
        back on what settled last. Raises RolloutError for that, CustodyError for a root key that is away.
        """
        await self._renew(
            role == BUNDLE and not even_now,
            lambda issuer, now: issuer.keys.replace_key(role, now),
            {"role": role},
            record,
        )

    async def raise_epoch(self, *, record: Record = no_record) -> None:
        """After the theft of a `bundle` key: end all that it signed, and sign again what is in force."""
        await self._renew(False, lambda issuer, now: issuer.keys.raise_epoch(now), {"role": BUNDLE}, record)

    async def _renew(
        self,
        quiet: bool,
        replace: Callable[[Issuer, int], object],
        told: Mapping[str, Any],
        record: Record,
    ) -> None:
        publisher = self._publisher

        async def work() -> None:
            stream = publisher.policies.stream
            busy = [
                line
                for line in stream.lines()
                if line and stream.state(line).phase in (Phase.RUNNING, Phase.HALTED)
            ]
            if quiet and busy:
                raise RolloutError(f"the rollout of {', '.join(busy)} is not over; wait for it, or abort it")
            root = publisher.issuer.keys.root.version
            replace(publisher.issuer, int(self._wall()))

            def step(connection: sqlite3.Connection) -> list[Issued]:
                found = prepare(connection, publisher.issuer, publisher.authorities)
                after = publisher.issuer.keys.root.version
                record(connection, {**told, "root": root}, {**told, "root": after})
                return found

            publisher.renewed(await publisher.database.write(step))

        await self._locked(work)

    # -- after a restore from a backup

    async def go_beyond(self, stream: str, version: int, *, record: Record = no_record) -> None:
        """Take no number up to this one in a stream, since defenders hold what was published under it and
        forgotten here (`releases.Ahead`). Who does is given again what it should have, under new numbers.

        A person decides it, who knows that the store was restored: the word of a defender moves no number.
        Raises RolloutError for a stream or a number that cannot be.
        """
        publisher = self._publisher
        if stream not in publisher.streams or not 0 < version <= MOST:
            raise RolloutError(f"{version} is no number of a stream {stream!r} to go beyond")

        async def work() -> None:
            def step(connection: sqlite3.Connection) -> None:
                bundles.raise_version(connection, stream, version)
                record(connection, None, {"stream": stream, "beyond": version})

            await publisher.database.write(step)
            position = Position(publisher.issuer.keys.root.key_epoch, version)
            publisher.take(stream, publisher.streams[stream].verified(position, publisher.now()))

        await self._locked(work)

    # -- small

    def _wall(self) -> float:
        return self._publisher.issuer.wall()

    def _base(self, line: str, stream: str = POLICY) -> Release | None:
        distribution = self._publisher.streams[stream]
        return distribution.state(line).base if line in distribution.lines() else None

    async def _locked(self, work: Callable[[], Awaitable[T]]) -> T:
        lock = self._publisher.lock
        await lock.acquire()
        try:
            return await work()
        finally:
            lock.release()


def describe(state: PolicyState) -> dict[str, Any] | None:
    """A policy as an audit event tells of it; None for one that is not there."""
    if not state.exists:
        return None
    told: dict[str, Any] = {}
    if state.published is not None:
        told["version"] = state.published.number
        told["digest"] = state.published.digest
        told["target"] = state.published.target.as_document()
    if state.draft is not None:
        told["draft"] = state.draft.text
        told["draft_target"] = state.draft.target.as_document()
    return told


def describe_lock(row: LockRow) -> dict[str, Any]:
    """A lock as an audit event tells of it."""
    return {"kind": row.kind, "value": row.value, "issuer": row.issuer, "reason": row.reason}


def _target_of(connection: sqlite3.Connection, name: str, to: int | None) -> Target | None:
    """The target of what is to be published: of the draft, or of a version; None if there is none."""
    if to is not None:
        version = read_version(connection, name, to)
        return None if version is None else version.target
    state = read_policy(connection, name)
    return None if state.draft is None else state.draft.target


def _phase(publisher: Publisher, name: str) -> str:
    stream = publisher.policies.stream
    return stream.state(name).phase.value if name in stream.lines() else ""

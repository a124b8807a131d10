"""Policies: drafts, numbered versions, rollouts, over the store and the publisher."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from controller import publishing
from controller.api.ports import Actor, ConflictError, Expected, Json, NotFoundError, PageWish
from controller.api.shapes import moment
from controller.distribution import RolloutError
from controller.fleet import Target
from controller.ports.explaining import checked, explained
from controller.ports.ledger import Ledger
from controller.ports.orders import Orders
from controller.ports.paging import made_up, part
from controller.ports.refusals import refusals
from controller.ports.rollouts import show_step
from controller.publishing import Draft, PolicyState, Version
from controller.releases import AT_ONCE, GRADUAL, Plan
from controller.rollout_view import STATES, counts
from controller.selection import Selection
from controller.store import policies
from controller.store.policies import PolicyRow, VersionRow
from defender.contract.trust import POLICY


class Policies:
    """`controller.api.ports.Policies`. Texts are looked at in the store's reading threads: one of a MiB takes
    a while. `gradual` is how a version goes out unless all are to have it at once."""

    def __init__(self, ledger: Ledger, orders: Orders, gradual: Plan = GRADUAL) -> None:
        self._ledger = ledger
        self._orders = orders
        self._gradual = gradual

    # -- what there is

    async def policies(self, page: PageWish) -> Json:
        """`PolicyPage`, by name."""

        def find(connection: sqlite3.Connection) -> list[tuple[PolicyRow, Mapping[str, Any]]]:
            return [(row, _target_of(connection, row)) for row in policies.every(connection)]

        def show(entry: tuple[PolicyRow, Mapping[str, Any]]) -> Json:
            row, target = entry
            return {
                "name": row.name,
                "target": target,
                "published": row.published,
                "has_draft": row.draft is not None,
            }

        return part(await self._ledger.read(find), page, key=lambda entry: entry[0].name, show=show)

    async def policy(self, name: str) -> Json:
        """`Policy`."""
        return _shown(await self._state(name))

    async def versions(self, name: str, page: PageWish) -> Json:
        """`VersionPage`, the newest first; those of a policy that was removed, too."""
        if page.cursor and not (page.cursor.isascii() and page.cursor.isdigit() and len(page.cursor) < 19):
            raise made_up()
        before = int(page.cursor) if page.cursor else None
        rows = await self._ledger.read(policies.versions, name, before, page.limit + 1)
        if not rows and before is None:
            await self._state(name)
        more = str(rows[page.limit - 1].number) if len(rows) > page.limit else None
        return {"items": [_version_item(row) for row in rows[: page.limit]], "next": more}

    async def version(self, name: str, number: int) -> Json:
        """`Version`."""
        row = await self._ledger.read(_version, name, number)
        return {**_version_item(row), "text": row.text}

    async def check(self, text: str) -> Json:
        """`Checked`."""
        return await self._ledger.read(lambda connection: checked(text))

    async def explain(self, name: str, wanted: Json) -> Json:
        """`Explained`: of a version, else of the draft, else of what is published."""
        if "version" in wanted:
            text = (await self._ledger.read(_version, name, wanted["version"])).text
        else:
            state = await self._state(name)
            chosen = state.draft or state.published
            assert chosen is not None
            text = chosen.text
        return await self._ledger.read(lambda connection: explained(text, wanted))

    async def diff(self, name: str, old: int | None, new: int | None) -> Json:
        """`Difference`."""
        state = await self._state(name)
        before: Version | None = state.published
        if old is not None:
            before = _as_version(await self._ledger.read(_version, name, old))
        after: Version | Draft | None = state.draft
        if new is not None:
            after = _as_version(await self._ledger.read(_version, name, new))
        if after is None:
            raise NotFoundError(f"policy {name!r} has no draft to compare; name a version")
        wanted = after
        found = await self._ledger.read(lambda connection: publishing.difference(before, wanted, name))
        return {
            "old": "" if before is None else str(before.number),
            "new": "draft" if new is None else str(new),
            "unified": found.unified,
            "rules": [
                {
                    "rule": each.rule[:256],
                    "change": each.change,
                    "place_before": each.place_before,
                    "place_after": each.place_after,
                    "detail": each.describe()[:2000],
                }
                for each in found.rules[:10_000]
            ],
            "target": found.target[:2000],
        }

    async def preview(self, name: str) -> Json:
        """`Preview`."""
        draft = (await self._state(name)).draft
        if draft is None:
            raise NotFoundError(f"policy {name!r} has no draft")
        found = await self._orders.preview(name, draft.target)
        called = self._orders.name_of
        return {
            "enter": [called(who) for who in found.enter],
            "leave": [called(who) for who in found.leave],
            "uncovered": [called(who) for who in found.uncovered],
        }

    # -- what is changed

    async def save_draft(self, actor: Actor, name: str, wanted: Json, expected: Expected) -> Json:
        """`Policy`. Without a target the draft has that of the draft before, or of what is published."""
        with refusals():
            if "target" in wanted:
                target = Target.from_document(wanted["target"])
            else:
                state = await self._orders.policy(name)
                known = state.draft or state.published
                target = Target(Selection()) if known is None else known.target
            saved = await self._orders.save_draft(
                name,
                wanted["text"],
                target,
                actor.user,
                admits=expected.admits,
                record=self._ledger.record(actor, "policy_draft", name),
            )
        self._ledger.move()
        return _shown(saved)

    async def discard_draft(self, actor: Actor, name: str, expected: Expected) -> Json:
        """`Policy`. One that was never published is gone with its draft: ConflictError, remove it instead."""
        state = await self._state(name)
        if state.published is None:
            raise ConflictError(f"policy {name!r} is nothing but its draft; remove it instead")
        record = self._ledger.record(actor, "policy_discard", name)
        with refusals():
            left = await self._orders.discard_draft(name, admits=expected.admits, record=record)
        self._ledger.move()
        return _shown(left)

    async def remove(self, actor: Actor, name: str, expected: Expected) -> None:
        """Remove a policy from the fleet."""
        await self._state(name)
        record = self._ledger.record(actor, "policy_remove", name)
        with refusals():
            await self._orders.withdraw(name, admits=expected.admits, record=record)
        self._ledger.move()

    async def publish(self, actor: Actor, name: str, wanted: Json, expected: Expected) -> Json:
        """`Rollout`."""
        await self._state(name)
        comment = wanted.get("comment", "")
        with refusals():
            await self._orders.publish(
                name,
                actor.user,
                comment=comment,
                plan=self._gradual if wanted.get("waves", True) else AT_ONCE,
                admits=expected.admits,
                record=self._ledger.record(actor, "policy_publish", name, comment),
            )
        self._ledger.move()
        return await self.rollout(name)

    async def roll_back(self, actor: Actor, name: str, wanted: Json, expected: Expected) -> Json:
        """`Rollout`."""
        await self._state(name)
        comment = wanted.get("comment", "")
        with refusals():
            await self._orders.roll_back(
                name,
                wanted["version"],
                actor.user,
                comment=comment,
                plan=self._gradual if wanted.get("waves", True) else AT_ONCE,
                admits=expected.admits,
                record=self._ledger.record(actor, "policy_rollback", name, comment),
            )
        self._ledger.move()
        return await self.rollout(name)

    async def rollout(self, name: str) -> Json:
        """`Rollout`."""
        try:
            found = self._orders.rollout(POLICY, name)
            steps = [show_step(step) for step in self._orders.steps(POLICY, name)]
        except RolloutError as error:
            raise NotFoundError(str(error)) from None
        row = await self._ledger.read(_version, name, found.version)
        return {
            "policy": name,
            "version": row.number,
            "state": STATES[found.progress.phase],
            "wave": found.progress.wave,
            "waves": found.progress.waves,
            "detail": found.detail[:2000],
            "started_at": moment(row.published),
            "started_by": row.author,
            "counts": counts(found.progress),
            "defenders": steps,
        }

    async def steer_rollout(self, actor: Actor, name: str, action: str) -> Json:
        """`Rollout`."""
        await self._state(name)
        record = self._ledger.record(actor, f"policy_{action}", name)
        with refusals():
            await self._orders.steer(name, action, record=record)
        self._ledger.move()
        return await self.rollout(name)

    async def _state(self, name: str) -> PolicyState:
        with refusals():
            state = await self._orders.policy(name)
        if not state.exists:
            raise NotFoundError(f"there is no policy {name!r}")
        return state


def _shown(state: PolicyState) -> Json:
    known = state.published or state.draft
    assert known is not None
    draft = state.draft
    return {
        "name": state.name,
        "etag": state.etag,
        "target": known.target.as_document(),
        "published": None if state.published is None else state.published.number,
        "draft": None
        if draft is None
        else {
            "text": draft.text,
            "target": draft.target.as_document(),
            "by": draft.author,
            "saved_at": moment(draft.saved_at),
        },
    }


def _target_of(connection: sqlite3.Connection, row: PolicyRow) -> Mapping[str, Any]:
    if row.published is not None:
        return _version(connection, row.name, row.published).target
    target: Mapping[str, Any] = row.draft["target"] if row.draft is not None else {}
    return target


def _version(connection: sqlite3.Connection, name: str, number: int) -> VersionRow:
    row = policies.find_version(connection, name, number)
    if row is None:
        raise NotFoundError(f"policy {name!r} has no version {number}")
    return row


def _version_item(row: VersionRow) -> Mapping[str, Any]:
    return {
        "number": row.number,
        "digest": row.digest,
        "comment": row.comment,
        "by": row.author,
        "published_at": moment(row.published),
        "rolled_back_to": row.rolled_back_to,
        "target": row.target,
    }


def _as_version(row: VersionRow) -> Version:
    return Version(
        row.policy,
        row.number,
        row.text,
        Target.from_document(row.target),
        row.digest,
        row.author,
        row.published,
        row.comment,
        row.rolled_back_to,
    )

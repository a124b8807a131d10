"""Ports in memory: what they hold is little, and they answer with the examples of their shapes."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from controller.api.examples import EXAMPLES
from controller.api.metrics import Family, Sample
from controller.api.ports import (
    Actor,
    AuditWish,
    Batch,
    ChangedError,
    Check,
    Expected,
    InvalidError,
    Json,
    NotFoundError,
    PageWish,
    Ports,
    Principal,
    RefusedError,
    Selection,
    TooManyError,
)
from controller.api.routes import Route
from controller.api.schema import Fault

PASSWORD = "correct horse battery staple"
EVERYTHING = "everything"
"""The token that may do all; `only(PERMISSION)` makes others."""


def only(*permissions: str) -> str:
    """A token with these permissions alone."""
    return "only-" + "~".join(permissions)


def example(name: str) -> dict[str, Any]:
    """A fresh copy of the example of a shape."""
    return copy.deepcopy(dict(EXAMPLES[name]))


def given(name: str) -> Deferred[Any]:
    """The example, as a port gives it back."""
    return succeed(example(name))


class FakeAccounts:
    """Everybody has the same password, and is thrown out after three wrong ones."""

    def __init__(self, permissions: frozenset[str]) -> None:
        self.all = permissions
        self.wrong = 0
        self.ended: set[str] = set()
        self.created = 0
        self.looking_up: Deferred[Principal | None] | None = None
        self.everybody: list[bool] = []
        self.acts: list[tuple[str, Actor]] = []
        self.waiting: Deferred[Json] | None = None

    def authenticate(self, token: str, address: str) -> Deferred[Principal | None]:
        """Any token of `only`, or `EVERYTHING`."""
        if self.looking_up is not None:
            return self.looking_up
        if token in self.ended:
            return succeed(None)
        if token == EVERYTHING:
            found = self.all
        elif token.startswith("only-"):
            found = frozenset(token.removeprefix("only-").split("~"))
        else:
            return succeed(None)
        return succeed(Principal("admin", "session", "s1", ("admin",), found, 1_800_000_000.0))

    def log_in(self, user: str, password: str, actor: Actor) -> Deferred[Json]:
        """Count wrong passwords."""
        self.acts.append(("log_in", actor))
        if self.wrong >= 3:
            return fail(TooManyError("too many sign-ins; wait", 41.2))
        if password != PASSWORD:
            self.wrong += 1
            return fail(RefusedError("user and password do not belong together"))
        return given("Login")

    def log_out(self, actor: Actor) -> Deferred[None]:
        """Note it."""
        self.acts.append(("log_out", actor))
        return succeed(None)

    def change_password(self, actor: Actor, present: str, wanted: str) -> Deferred[None]:
        """Refuse a short one."""
        if len(wanted) < 12:
            return fail(InvalidError([Fault("/wanted", "must have at least 12 characters")]))
        return succeed(None)

    def accounts(self, page: PageWish) -> Deferred[Json]:
        """One."""
        return given("AccountPage")

    def account(self, user: str) -> Deferred[Json]:
        """There is bruce."""
        return given("Account") if user == "bruce" else fail(NotFoundError(f"there is no account {user}"))

    def create_account(self, actor: Actor, wanted: Json, permissions: frozenset[str]) -> Deferred[Json]:
        """Answers when `waiting` is fired, if there is one."""
        self.created += 1
        self.acts.append(("create_account", actor))
        return self.waiting or given("Account")

    def change_account(
        self, actor: Actor, user: str, wanted: Json, permissions: frozenset[str]
    ) -> Deferred[Json]:
        """Whatever."""
        return given("Account")

    def remove_account(self, actor: Actor, user: str, permissions: frozenset[str]) -> Deferred[None]:
        """The last admin stays."""
        if user == "admin":
            return fail(RefusedError("this is the last admin"))
        return succeed(None)

    def api_tokens(self, actor: Actor, everybody: bool, page: PageWish) -> Deferred[Json]:
        """One."""
        self.everybody.append(everybody)
        return given("ApiTokenPage")

    def create_api_token(self, actor: Actor, wanted: Json, permissions: frozenset[str]) -> Deferred[Json]:
        """No more than its owner may."""
        more = set(wanted["permissions"]) - permissions
        if more:
            return fail(InvalidError([Fault("/permissions", f"you lack {', '.join(sorted(more))}")]))
        return given("CreatedApiToken")

    def revoke_api_token(self, actor: Actor, token: str, everybody: bool) -> Deferred[None]:
        """Whatever."""
        self.everybody.append(everybody)
        return succeed(None)


class FakeFleet:
    """Defenders, listeners, locks and join tokens."""

    def __init__(self) -> None:
        self.selected: list[Selection] = []
        self.pages: list[PageWish] = []
        self.locks_held: list[Json] = []
        self.trouble: Exception | None = None

    def defenders(self, wanted: Selection, page: PageWish) -> Deferred[Json]:
        """One."""
        self.selected.append(wanted)
        self.pages.append(page)
        return fail(self.trouble) if self.trouble else given("DefenderPage")

    def defender(self, ref: str) -> Deferred[Json]:
        """There is web1."""
        return given("Defender") if ref == "web1" else fail(NotFoundError(f"there is no defender {ref}"))

    def relabel(self, actor: Actor, ref: str, labels: Mapping[str, str | None]) -> Deferred[Json]:
        """Whatever."""
        return given("Defender")

    def remove(self, actor: Actor, ref: str) -> Deferred[None]:
        """Whatever."""
        return succeed(None)

    def enrollments(self, page: PageWish) -> Deferred[Json]:
        """One."""
        return given("EnrollmentPage")

    def decide_enrollment(self, actor: Actor, enrollment: str, approve: bool) -> Deferred[None]:
        """Whatever."""
        return succeed(None)

    def set_listener(self, actor: Actor, wanted: Selection, mode: str, drain: float | None) -> Deferred[Json]:
        """Note the selection."""
        self.selected.append(wanted)
        return given("Change")

    def change(self, change: str) -> Deferred[Json]:
        """Whatever."""
        return given("Change")

    def locks(self, page: PageWish) -> Deferred[Json]:
        """One."""
        return given("LockPage")

    def add_lock(self, actor: Actor, wanted: Json) -> Deferred[tuple[Json, bool]]:
        """New if it was not seen before."""
        new = wanted not in self.locks_held
        self.locks_held.append(wanted)
        return succeed((example("Lock"), new))

    def remove_lock(self, actor: Actor, lock: str) -> Deferred[None]:
        """Whatever."""
        return succeed(None)

    def join_tokens(self, page: PageWish) -> Deferred[Json]:
        """One."""
        return given("JoinTokenPage")

    def create_join_token(self, actor: Actor, wanted: Json) -> Deferred[Json]:
        """Whatever."""
        return given("CreatedJoinToken")

    def revoke_join_token(self, actor: Actor, token: str) -> Deferred[None]:
        """Whatever."""
        return succeed(None)


class FakePolicies:
    """One policy with one etag."""

    def __init__(self) -> None:
        self.etag = "12-8b1f2e6c"
        self.published: list[Json] = []

    def _shown(self) -> Json:
        return {**example("Policy"), "etag": self.etag}

    def _expect(self, expected: Expected) -> None:
        if not expected.admits(self.etag):
            raise ChangedError("the policy was changed in the meantime", self.etag)

    async def policies(self, page: PageWish) -> Json:
        """One."""
        return example("PolicyPage")

    async def policy(self, name: str) -> Json:
        """There is builders."""
        if name != "builders":
            raise NotFoundError(f"there is no policy {name}")
        return self._shown()

    async def save_draft(self, actor: Actor, name: str, wanted: Json, expected: Expected) -> Json:
        """A new etag."""
        if name == "builders":
            self._expect(expected)
        self.etag += "x"
        return self._shown()

    async def discard_draft(self, actor: Actor, name: str, expected: Expected) -> Json:
        """As it was."""
        self._expect(expected)
        return self._shown()

    async def remove(self, actor: Actor, name: str, expected: Expected) -> None:
        """Nothing."""
        self._expect(expected)

    async def check(self, text: str) -> Json:
        """A problem."""
        return example("Checked")

    async def explain(self, name: str, wanted: Json) -> Json:
        """Allowed."""
        return example("Explained")

    async def versions(self, name: str, page: PageWish) -> Json:
        """One."""
        return example("VersionPage")

    async def version(self, name: str, number: int) -> Json:
        """Whatever."""
        return example("Version")

    async def diff(self, name: str, old: int | None, new: int | None) -> Json:
        """Whatever."""
        return example("Difference")

    async def preview(self, name: str) -> Json:
        """Whatever."""
        return example("Preview")

    async def publish(self, actor: Actor, name: str, wanted: Json, expected: Expected) -> Json:
        """Note it."""
        self._expect(expected)
        self.published.append(wanted)
        return example("Rollout")

    async def roll_back(self, actor: Actor, name: str, wanted: Json, expected: Expected) -> Json:
        """Note it."""
        self._expect(expected)
        self.published.append(wanted)
        return example("Rollout")

    async def rollout(self, name: str) -> Json:
        """Whatever."""
        return example("Rollout")

    async def steer_rollout(self, actor: Actor, name: str, action: str) -> Json:
        """Whatever."""
        return example("Rollout")


class FakeAudit:
    """A list of events; a position is the number of events before it."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.first = 0
        self.wishes: list[AuditWish] = []
        self.trouble: Exception | None = None
        self.asked = 0
        self.verified: list[dict[str, Any]] = [
            {**example("Verified"), "done": done} for done in (False, True)
        ]
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def add(self, *events: dict[str, Any]) -> None:
        """Store events, and wake who waits."""
        self.events.extend(events)
        waiting, self._waiting = self._waiting, []
        for after, waiter in waiting:
            if after < len(self.events):
                waiter.callback(None)
            else:
                self._waiting.append((after, waiter))

    def search(self, wanted: AuditWish, newest_first: bool, page: PageWish) -> Deferred[Json]:
        """One."""
        self.wishes.append(wanted)
        return given("EventPage")

    def event(self, event: str) -> Deferred[Json]:
        """Whatever."""
        return given("StoredEvent")

    def end(self) -> Deferred[str]:
        """The number of events."""
        return succeed(str(len(self.events)))

    def after(self, position: str, limit: int, wanted: AuditWish, stop: str = "") -> Deferred[Batch]:
        """Those whose action is wanted."""
        self.asked += 1
        if self.trouble is not None:
            return fail(self.trouble)
        if position and not position.isdigit():
            return fail(InvalidError([Fault("/after", "is no position of this controller")], "query"))
        start = int(position or 0)
        lost = f"{self.first - start} events are no longer kept" if start < self.first else ""
        start = max(start, self.first)
        end = min(start + limit, int(stop) if stop else len(self.events))
        items = [
            (str(place + 1), self.events[place])
            for place in range(start, end)
            if not wanted.actions or self.events[place]["req"]["action"] in wanted.actions
        ]
        return succeed(Batch(items, str(max(start, end)), lost))

    def wait(self, position: str) -> Deferred[None]:
        """Fires with the next event."""
        if int(position) < len(self.events):
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._forget)
        self._waiting.append((int(position), waiter))
        return waiter

    def _forget(self, waiter: Deferred[None]) -> None:
        self._waiting = [entry for entry in self._waiting if entry[1] is not waiter]

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def chains(self, page: PageWish) -> Deferred[Json]:
        """One."""
        return given("ChainPage")

    async def verify(self, day: str) -> AsyncGenerator[Json, None]:
        """Two lines, unless it is told what to say."""
        if day == "1999-12-31":
            raise NotFoundError("no events of 1999-12-31 are kept")
        for line in self.verified:
            yield line

    def sinks(self) -> Deferred[Json]:
        """One."""
        return given("SinkPage")


class FakeHealth:
    """Fine, unless it is told otherwise."""

    def __init__(self) -> None:
        self.checks: Sequence[Check] = (Check("store", True),)

    def ready(self) -> Deferred[Sequence[Check]]:
        """What was set."""
        return succeed(self.checks)

    def status(self) -> Deferred[Json]:
        """Whatever."""
        return given("FleetStatus")

    def families(self) -> Deferred[Iterable[Family]]:
        """One."""
        return succeed([Family("dfleet_defenders", "gauge", "Defenders.", [Sample(3)])])

    def channel(self) -> str:
        """The usual one."""
        return "controller.example.com:8084"


class FakeActs:
    """Keeps what was refused."""

    def __init__(self) -> None:
        self.refusals: list[tuple[Actor, str, str, str]] = []

    def refused(self, actor: Actor, operation: str, target: str, reason: str) -> Deferred[None]:
        """Note it."""
        self.refusals.append((actor, operation, target, reason))
        return succeed(None)


class World:
    """All doubles, and the ports that they are."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.accounts = FakeAccounts(frozenset(route.permission for route in routes if route.permission))
        self.fleet = FakeFleet()
        self.policies = FakePolicies()
        self.audit = FakeAudit()
        self.health = FakeHealth()
        self.acts = FakeActs()

    def ports(self) -> Ports:
        """The ports."""
        return Ports(
            accounts=self.accounts,
            defenders=self.fleet,
            listeners=self.fleet,
            policies=self.policies,
            locks=self.fleet,
            join_tokens=self.fleet,
            audit=self.audit,
            health=self.health,
            acts=self.acts,
        )

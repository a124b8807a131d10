"""What the API asks of the rest of the controller: plain data in, plain data out, nothing of HTTP.

Every method returns a Deferred or a coroutine's result (`Awaitable`). A `Json` result has the shape that the
route declares for its answer, under the name given in the method's docstring; the shapes are in
`controller.api.shapes`. Times in it are text in UTC (`defender.contract.audit.timestamp`).

Rules for those who implement a port:

* A method with an `actor` changes something. The change and the audit event that tells of it (who, what,
  before, after) are one transaction: either both are stored or neither is.
* A method is not cancelled when the client goes away: what was begun is brought to its end.
* Errors that a caller can do something about are the `PortError`s here; any other exception is a fault of
  the program and answered with 500 and a number to look for in the log.
* Whatever is wrong with the fields of a request beyond their form (a policy that does not load, a cursor
  that was made up) is an `InvalidError` naming the field with a JSON pointer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from controller.api.metrics import Family
from controller.api.schema import Fault

Json = Mapping[str, Any]


class PortError(Exception):
    """Something that the caller of the API can do something about; the text is one sentence for them."""


class NotFoundError(PortError):
    """There is no such thing; the text names it."""


class ConflictError(PortError):
    """What is there does not allow it: a name that is taken, a rollout that is not halted."""


class ChangedError(PortError):
    """The thing is no longer what the caller has seen. `etag` is its present one, "" if it is gone."""

    def __init__(self, text: str, etag: str = "") -> None:
        super().__init__(text)
        self.etag = etag


class InvalidError(PortError):
    """Fields that have the right form and cannot be used; `where` is "body", "query" or "path"."""

    def __init__(self, faults: Sequence[Fault], where: str = "body") -> None:
        super().__init__("; ".join(f"{fault.pointer} {fault.message}" for fault in faults))
        self.faults = tuple(faults)
        self.where = where


class RefusedError(PortError):
    """This caller may not: wrong password, a scope wider than one's own, the last admin's own removal."""


class TooManyError(PortError):
    """Too often; `retry_after` is in seconds."""

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class UnavailableError(PortError):
    """The controller cannot do this now, and says why: its store cannot be written, its disk is full."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. `user` is "" before a sign-in; `via` is "session", "token" or "".

    `credential` is the id of the session or API token, never the secret. `request` is the id that stands in
    the answer's X-Request-Id, for the audit event.
    """

    user: str
    via: str
    credential: str
    address: str
    request: str


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a bearer token. `permissions` are what the roles give, less what the token's scope takes.

    `expires` is when the token ends, in unix seconds. With `must_change` they first have to change the
    password that they signed in with, because somebody else knows it; never so for an API token.
    """

    user: str
    via: str
    credential: str
    roles: tuple[str, ...]
    permissions: frozenset[str]
    expires: float
    must_change: bool = False


@dataclass(frozen=True, slots=True)
class PageWish:
    """Which part of a list: `cursor` is "" or what the page before called `next`."""

    cursor: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Selection:
    """Which defenders: by id or name, by name glob, by label; all conditions must hold, none means all.

    `state` is "online", "stale", "offline" or "".
    """

    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    state: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a conditional request expects: one of `etags`, any if `anything`, nothing at all if `absent`."""

    etags: tuple[str, ...] = ()
    anything: bool = False
    absent: bool = False

    def admits(self, etag: str) -> bool:
        """Whether a thing with this etag may be changed; `etag` is "" where there is no such thing."""
        if self.absent:
            return not etag
        return bool(etag) and (self.anything or etag in self.etags)


class Accounts(Protocol):
    """People, their sign-ins and their API tokens."""

    def authenticate(self, token: str, address: str) -> Awaitable[Principal | None]:
        """The owner of a token, None if it is unknown, expired, revoked, or its account is disabled.

        The token is compared by its hash. It is asked for with every request: it must be fast.
        """

    def log_in(self, user: str, password: str, actor: Actor) -> Awaitable[Json]:
        """A new session: `Login`. RefusedError if the two do not belong together (the same for an unknown
        user, in the same time), TooManyError if it was tried too often.
        """

    def log_out(self, actor: Actor) -> Awaitable[None]:
        """End the actor's session; a session that is over already is no error."""

    def change_password(self, actor: Actor, present: str, wanted: str) -> Awaitable[None]:
        """Set the actor's own password to another one, and end their other sessions; RefusedError,
        InvalidError.
        """

    def accounts(self, page: PageWish) -> Awaitable[Json]:
        """`AccountPage`."""

    def account(self, user: str) -> Awaitable[Json]:
        """`Account`."""

    def create_account(self, actor: Actor, wanted: Json, permissions: frozenset[str]) -> Awaitable[Json]:
        """`Account`, from `NewAccount`; ConflictError if the name is taken. `permissions` are the actor's,
        here and below: RefusedError if the account's roles can do more.
        """

    def change_account(
        self, actor: Actor, user: str, wanted: Json, permissions: frozenset[str]
    ) -> Awaitable[Json]:
        """`Account`, from `AccountChange`; RefusedError where nobody could undo it, and if its roles can do
        more than the actor, before or after.
        """

    def remove_account(self, actor: Actor, user: str, permissions: frozenset[str]) -> Awaitable[None]:
        """Remove an account with its sessions and tokens; RefusedError if it can do more than the actor."""

    def api_tokens(self, actor: Actor, everybody: bool, page: PageWish) -> Awaitable[Json]:
        """`ApiTokenPage`: the actor's own, or everybody's."""

    def create_api_token(self, actor: Actor, wanted: Json, permissions: frozenset[str]) -> Awaitable[Json]:
        """`CreatedApiToken`, from `NewApiToken`; `permissions` are the actor's, which it cannot exceed."""

    def revoke_api_token(self, actor: Actor, token: str, everybody: bool) -> Awaitable[None]:
        """Revoke by id: one's own, or anybody's if `everybody`."""


class Defenders(Protocol):
    """The hosts of the fleet. A defender is named by its id or its name."""

    def defenders(self, wanted: Selection, page: PageWish) -> Awaitable[Json]:
        """`DefenderPage`."""

    def defender(self, ref: str) -> Awaitable[Json]:
        """`Defender`."""

    def relabel(self, actor: Actor, ref: str, labels: Mapping[str, str | None]) -> Awaitable[Json]:
        """`Defender`: sets labels, and removes those whose value is None."""

    def remove(self, actor: Actor, ref: str) -> Awaitable[None]:
        """Forget a defender: its certificate is no longer taken, its link is closed."""

    def enrollments(self, page: PageWish) -> Awaitable[Json]:
        """`EnrollmentPage`: who waits for approval."""

    def decide_enrollment(self, actor: Actor, enrollment: str, approve: bool) -> Awaitable[None]:
        """Let in or turn away who waits."""


class Listeners(Protocol):
    """Where defenders listen."""

    def set_listener(
        self, actor: Actor, wanted: Selection, mode: str, drain: float | None
    ) -> Awaitable[Json]:
        """`Change`; `drain` is seconds until open streams are cut, None for never. NotFoundError if nothing
        was selected.
        """

    def change(self, change: str) -> Awaitable[Json]:
        """`Change`: how far it is."""


class Policies(Protocol):
    """Policies: drafts, numbered versions, rollouts. A policy has one etag; it changes with every change."""

    def policies(self, page: PageWish) -> Awaitable[Json]:
        """`PolicyPage`."""

    def policy(self, name: str) -> Awaitable[Json]:
        """`Policy`."""

    def save_draft(self, actor: Actor, name: str, wanted: Json, expected: Expected) -> Awaitable[Json]:
        """`Policy`, from `Draft`; the text need not be valid yet. ChangedError."""

    def discard_draft(self, actor: Actor, name: str, expected: Expected) -> Awaitable[Json]:
        """`Policy`: back to the published version. ChangedError."""

    def remove(self, actor: Actor, name: str, expected: Expected) -> Awaitable[None]:
        """Remove a policy from the fleet; its versions stay on record. ChangedError."""

    def check(self, text: str) -> Awaitable[Json]:
        """`Checked`: problems and warnings of a text."""

    def explain(self, name: str, wanted: Json) -> Awaitable[Json]:
        """`Explained`, from `Question`."""

    def versions(self, name: str, page: PageWish) -> Awaitable[Json]:
        """`VersionPage`, the newest first."""

    def version(self, name: str, number: int) -> Awaitable[Json]:
        """`Version` with its text."""

    def diff(self, name: str, old: int | None, new: int | None) -> Awaitable[Json]:
        """`Difference`; `None` for old is the published version, for new the draft."""

    def preview(self, name: str) -> Awaitable[Json]:
        """`Preview` of the draft's target."""

    def publish(self, actor: Actor, name: str, wanted: Json, expected: Expected) -> Awaitable[Json]:
        """`Rollout`, from `Publication`; InvalidError with the draft's problems, ChangedError."""

    def roll_back(self, actor: Actor, name: str, wanted: Json, expected: Expected) -> Awaitable[Json]:
        """`Rollout`, from `Rollback`: old content as a new version. ChangedError."""

    def rollout(self, name: str) -> Awaitable[Json]:
        """`Rollout`: the newest of the policy."""

    def steer_rollout(self, actor: Actor, name: str, action: str) -> Awaitable[Json]:
        """`Rollout`: `halt` it, `resume` it after a halt, or `abort` it; ConflictError if that cannot be."""


class Locks(Protocol):
    """Who is shut out at once."""

    def locks(self, page: PageWish) -> Awaitable[Json]:
        """`LockPage`."""

    def add_lock(self, actor: Actor, wanted: Json) -> Awaitable[tuple[Json, bool]]:
        """`Lock`, from `NewLock`, and whether it is new: the same lock twice is one lock."""

    def remove_lock(self, actor: Actor, lock: str) -> Awaitable[None]:
        """Remove by id."""


class JoinTokens(Protocol):
    """What lets a new defender in."""

    def join_tokens(self, page: PageWish) -> Awaitable[Json]:
        """`JoinTokenPage`."""

    def create_join_token(self, actor: Actor, wanted: Json) -> Awaitable[Json]:
        """`CreatedJoinToken`, from `NewJoinToken`; the text of the token is shown this once."""

    def revoke_join_token(self, actor: Actor, token: str) -> Awaitable[None]:
        """Revoke by id."""


Positioned = tuple[str, Mapping[str, Any]]
"""A position and its event. Positions are opaque ASCII text without spaces; they are ordered by the store."""


@dataclass(frozen=True, slots=True)
class AuditWish:
    """Which events: every condition that is given must hold; of several texts one is enough.

    Texts are globs of `*` and `?` without regard to case; `defenders` are names or ids. `fields` are paths
    into the event with a glob, as `("req.query.fromImage", "nginx")`; of a list one element must match.
    Times are unix microseconds, `until` is excluded.
    """

    defenders: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Events after a position, in the store's order.

    `position` is how far the store was read, also where nothing matched: the next call goes on from it.
    `lost` says in a sentence what lay between the position asked for and the first event and is no longer
    there (retention), "" if nothing.
    """

    items: Sequence[Positioned]
    position: str
    lost: str = ""


class Audit(Protocol):
    """The events of the whole fleet, in the order in which they were stored."""

    def search(self, wanted: AuditWish, newest_first: bool, page: PageWish) -> Awaitable[Json]:
        """`EventPage`."""

    def event(self, event: str) -> Awaitable[Json]:
        """`StoredEvent`, by the event's id."""

    def end(self) -> Awaitable[str]:
        """The position after the newest event."""

    def after(self, position: str, limit: int, wanted: AuditWish, stop: str = "") -> Awaitable[Batch]:
        """The next events that match, none beyond `stop` if that is given; "" is the beginning. InvalidError
        for a position that was made up.

        It looks at a bounded number of events, so a batch may be empty without being the end; `position` then
        has moved on.
        """

    def wait(self, position: str) -> Awaitable[None]:
        """Fires once there is an event after the position, at once if there is one. May be cancelled."""

    def chains(self, page: PageWish) -> Awaitable[Json]:
        """`ChainPage`: up to where the events of each defender have come, with the hash of its chain."""

    def verify(self, day: str) -> AsyncGenerator[Json, None]:
        """`Verified`, several for each day that is kept, or for this one: how far it was looked at, and what
        is wrong since the last. NotFoundError for a day that is not kept, ConflictError while another one
        goes on: it reads everything."""

    def sinks(self) -> Awaitable[Json]:
        """`SinkPage`: where events are forwarded to, and how far."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold for the controller to be ready; `detail` says why it does not."""

    name: str
    ok: bool
    detail: str = ""


class Health(Protocol):
    """How the controller is."""

    def ready(self) -> Awaitable[Sequence[Check]]:
        """Every check, those that hold too."""

    def status(self) -> Awaitable[Json]:
        """`FleetStatus`."""

    def families(self) -> Awaitable[Iterable[Family]]:
        """The controller's metrics, other than the API's own."""

    def channel(self) -> str:
        """HOST:PORT at which defenders are served."""


class Acts(Protocol):
    """The audit trail of the API itself, for what no other port records."""

    def refused(self, actor: Actor, operation: str, target: str, reason: str) -> Awaitable[None]:
        """An operation that this actor may not do was asked for; the event is stored."""


class Exporter(Protocol):
    """One form of an export."""

    content_type: str

    def head(self) -> bytes:
        """What stands before the first event."""

    def line(self, event: Mapping[str, Any]) -> bytes:
        """One event."""

    def gap(self, text: str) -> bytes:
        """Events that are no longer there."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything that the API stands on."""

    accounts: Accounts
    defenders: Defenders
    listeners: Listeners
    policies: Policies
    locks: Locks
    join_tokens: JoinTokens
    audit: Audit
    health: Health
    acts: Acts

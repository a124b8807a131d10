"""The shapes of everything that the API takes and gives, by name; the OpenAPI document lists them.

What the API takes is a `Record` that refuses unknown keys; what it gives is declared with the same means, and
the tests hold every answer to its declaration.
"""

from __future__ import annotations

from typing import Final

from controller.accounts import ROLES
from controller.api.schema import (
    Choice,
    Field,
    Flag,
    Free,
    Integer,
    ListOf,
    MapOf,
    Moment,
    Nullable,
    Number,
    Record,
    Text,
)
from controller.fleet import MAX_RANK
from controller.rollout_view import STATES
from defender.contract.audit import timestamp
from defender.contract.document import MAX_BYTES
from defender.contract.locks import KINDS

MODES: Final = ("none", "unix", "tcp", "unix+tcp")
_STANDINGS: Final = ("acked", "refused", "waiting", "offline")
"""How a defender stands to what it should have, as `controller.rollout_view` says it."""

_DAY: Final = 86400
_YEAR: Final = 365 * _DAY

IDENTIFIER: Final = Text(128, pattern=r"[A-Za-z0-9._:-]+", meaning="an id: letters, digits and . _ : -")
DEFENDER: Final = Text(
    255, pattern=r"[A-Za-z0-9._:-]+", meaning="a defender's id or name", about="A defender's id or name."
)
USER: Final = Text(128, pattern=r"[^/]+", meaning="a user name, without /")
POLICY_NAME: Final = Text(
    64,
    pattern=r"[a-z0-9][a-z0-9._-]*",
    meaning="a policy's name: lower-case letters, digits and . _ -, beginning with a letter or digit",
)
LABEL_KEY: Final = Text(
    63,
    pattern=r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?",
    meaning="a label's name: letters, digits and . _ / - between them",
)
LABEL_VALUE: Final = Text(
    63, low=0, pattern=r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)?", meaning="a label's value"
)
GLOB: Final = Text(256, about="A glob of `*` and `?`, compared without regard to case.")
COMMENT: Final = Text(1000, low=0, lines=True, about="Why; it stands in the history and in the audit event.")
PASSWORD: Final = Text(1024, secret=True)
SECRET: Final = Text(512, secret=True, about="Shown this once.")
NAME: Final = Text(100, about="What people call it.")
POLICY_TEXT: Final = Text(MAX_BYTES, low=0, lines=True, about="The policy, YAML.")
CURSOR: Final = Text(
    512,
    pattern=r"[A-Za-z0-9._~:=+-]+",
    meaning="the `next` of an answer, unchanged",
    about="The `next` of the page before.",
)
LABELS: Final = MapOf(LABEL_KEY, LABEL_VALUE, about="Labels, name to value.")
ADDRESS: Final = Text(64, low=0)
SHORT: Final = Text(2000, low=0, lines=True)
COUNT: Final = Integer(0, 2**64 - 1)


def moment(seconds: float) -> str:
    """A time of the clock, unix seconds, as answers write it."""
    return timestamp(seconds)


def page(name: str, item: Field) -> Record:
    """A part of a list: `next` is the cursor of the part after it, null at the end."""
    fields = {"items": ListOf(item, 10_000), "next": Nullable(CURSOR)}
    return Record(name, fields, about="A part of a list; `next` leads on, and is null at its end.")


FAULT: Final = Record(
    "Fault",
    {
        "in": Choice(("body", "query", "path", "header")),
        "pointer": Text(2000, low=0, about="JSON pointer (RFC 6901) of the field."),
        "message": Text(2000, lines=True),
    },
)
PROBLEM: Final = Record(
    "Problem",
    {
        "type": Text(200),
        "title": Text(200),
        "status": Integer(400, 599),
        "code": Text(64, about="Stays the same from version to version; for programs."),
        "detail": Text(4000, lines=True, about="For people."),
    },
    {"errors": ListOf(FAULT), "instance": Text(200), "etag": Text(256, low=0)},
    about="An error (RFC 9457).",
)

# Sign-ins, accounts, API tokens.

CREDENTIALS: Final = Record("Credentials", {"user": USER, "password": PASSWORD})
_PRINCIPAL: Final[dict[str, Field]] = {
    "user": USER,
    "roles": ListOf(Choice(tuple(ROLES))),
    "permissions": ListOf(Text(64)),
    "expires_at": Moment(),
    "must_change_password": Flag("Whether nothing else is allowed before the password is changed."),
}
LOGIN: Final = Record("Login", {"token": SECRET, "session": IDENTIFIER, **_PRINCIPAL})
WHOAMI: Final = Record(
    "Principal", {**_PRINCIPAL, "via": Choice(("session", "token")), "credential": IDENTIFIER}
)
PASSWORD_CHANGE: Final = Record("PasswordChange", {"present": PASSWORD, "wanted": PASSWORD})
ACCOUNT: Final = Record(
    "Account",
    {
        "user": USER,
        "roles": ListOf(Choice(tuple(ROLES))),
        "disabled": Flag(),
        "must_change_password": Flag("Whether its password was set by somebody else and must be changed."),
        "created_at": Moment(),
        "last_login_at": Nullable(Moment()),
    },
)
ACCOUNT_PAGE: Final = page("AccountPage", ACCOUNT)
_ROLES: Final = ListOf(Choice(tuple(ROLES)), high=len(ROLES), low=1)
NEW_ACCOUNT: Final = Record("NewAccount", {"user": USER, "password": PASSWORD, "roles": _ROLES})
ACCOUNT_CHANGE: Final = Record(
    "AccountChange", {}, {"roles": _ROLES, "disabled": Flag(), "password": PASSWORD}, least=1
)
_SCOPE: Final = ListOf(Text(64, pattern=r"[a-z_]+(?:\.[a-z_]+)?", meaning="a permission"), high=64, low=1)
API_TOKEN: Final = Record(
    "ApiToken",
    {
        "id": IDENTIFIER,
        "name": NAME,
        "user": USER,
        "permissions": ListOf(Text(64)),
        "created_at": Moment(),
        "expires_at": Moment(),
        "last_used_at": Nullable(Moment()),
    },
)
API_TOKEN_PAGE: Final = page("ApiTokenPage", API_TOKEN)
NEW_API_TOKEN: Final = Record(
    "NewApiToken",
    {"name": NAME, "permissions": _SCOPE, "expires_in": Integer(60, _YEAR, "Seconds.")},
)
CREATED_API_TOKEN: Final = Record("CreatedApiToken", {**API_TOKEN.required, "token": SECRET})

# Defenders, enrolment, listeners.

STREAM_STATE: Final = Record(
    "StreamState",
    {
        "key_epoch": COUNT,
        "desired": Nullable(COUNT),
        "active": Nullable(COUNT),
        "state": Choice((*_STANDINGS, "none")),
        "detail": SHORT,
    },
    about="One stream of one defender: the version it should have, the one it has, and why not if not.",
)
LISTENER_STATE: Final = Record(
    "ListenerState",
    {
        "desired": Nullable(Choice(MODES)),
        "actual": Nullable(Choice(MODES)),
        "drain": Nullable(Number("Seconds until open streams are cut; null for never.")),
        "detail": SHORT,
    },
)
DEFENDER_SHAPE: Final = Record(
    "Defender",
    {
        "id": IDENTIFIER,
        "name": Text(255),
        "state": Choice(("online", "stale", "offline")),
        "labels": LABELS,
        "address": ADDRESS,
        "program": Text(64, low=0, about="Version of the defender's program."),
        "enrolled_at": Moment(),
        "last_seen_at": Nullable(Moment()),
        "certificate_expires_at": Nullable(Moment()),
        "listener": LISTENER_STATE,
        "streams": MapOf(Text(32), STREAM_STATE),
        "spool": Nullable(
            Record(
                "SpoolState",
                {"waiting_events": COUNT, "waiting_bytes": COUNT, "oldest_seconds": Number()},
                about="What the defender has recorded and not yet delivered.",
            )
        ),
    },
)
DEFENDER_PAGE: Final = page("DefenderPage", DEFENDER_SHAPE)
LABEL_CHANGE: Final = Record(
    "LabelChange",
    {"labels": MapOf(LABEL_KEY, Nullable(LABEL_VALUE), about="null removes a label; others stay.")},
)
ENROLLMENT: Final = Record(
    "Enrollment",
    {
        "id": IDENTIFIER,
        "name": Text(255),
        "address": ADDRESS,
        "key": Text(128, about="SHA-256 of the public key, as the host prints it."),
        "join_token": IDENTIFIER,
        "asked_at": Moment(),
    },
)
ENROLLMENT_PAGE: Final = page("EnrollmentPage", ENROLLMENT)
DECISION: Final = Record("Decision", {"decision": Choice(("approve", "reject"))})
SELECTION: Final = Record(
    "Selection",
    {},
    {
        "ids": ListOf(DEFENDER, high=1000, low=1, about="Ids or names."),
        "names": ListOf(GLOB, high=64, low=1),
        "labels": LABELS,
    },
    about="Which defenders: every condition that is given must hold.",
    least=1,
)
_MODE: Final[dict[str, Field]] = {"mode": Choice(MODES)}
_DRAIN: Final[dict[str, Field]] = {
    "drain": Nullable(Integer(0, 7 * _DAY, "Seconds until open streams are cut; null: never."))
}
LISTENER_WISH: Final = Record("ListenerWish", _MODE, _DRAIN)
LISTENERS_WISH: Final = Record("ListenersWish", {"select": SELECTION, **_MODE}, _DRAIN)
STEP: Final = Record(
    "Step",
    {
        "defender": IDENTIFIER,
        "name": Text(255),
        "state": Choice(_STANDINGS),
        "detail": SHORT,
    },
    about="How far one defender is.",
)
COUNTS: Final = Record(
    "Counts", {"acked": COUNT, "refused": COUNT, "waiting": COUNT, "offline": COUNT, "total": COUNT}
)
CHANGE: Final = Record(
    "Change",
    {
        "id": IDENTIFIER,
        "mode": Choice(MODES),
        "drain": Nullable(Number()),
        "asked_at": Moment(),
        "asked_by": USER,
        "counts": COUNTS,
        "defenders": ListOf(STEP, 100_000),
    },
    about="A change of listeners and how far it is. It is desired state: who is offline follows later.",
)

# Policies.

TARGET: Final = Record(
    "Target",
    {},
    {
        "ids": ListOf(DEFENDER, high=1000, low=1, about="Ids or names."),
        "names": ListOf(GLOB, high=256, low=1),
        "labels": LABELS,
        "rank": Integer(0, MAX_RANK, "Of several policies for a defender the highest wins."),
    },
    about="Which defenders get the policy; no condition means all.",
)
POLICY: Final = Record(
    "Policy",
    {
        "name": POLICY_NAME,
        "etag": Text(256, about="Changes with every change; for If-Match."),
        "target": TARGET,
        "published": Nullable(COUNT),
        "draft": Nullable(
            Record("DraftState", {"text": POLICY_TEXT, "target": TARGET, "by": USER, "saved_at": Moment()})
        ),
    },
)
POLICY_ITEM: Final = Record(
    "PolicyItem",
    {"name": POLICY_NAME, "target": TARGET, "published": Nullable(COUNT), "has_draft": Flag()},
)
POLICY_PAGE: Final = page("PolicyPage", POLICY_ITEM)
DRAFT: Final = Record("Draft", {"text": POLICY_TEXT}, {"target": TARGET})
POLICY_CHECK: Final = Record("PolicyText", {"text": POLICY_TEXT})
REMARK: Final = Record(
    "Remark",
    {"line": COUNT, "column": COUNT, "key": SHORT, "message": SHORT, "suggestion": SHORT},
    about="A problem or warning at a place of a policy; lines and columns count from 1, 0 is the whole file.",
)
CHECKED: Final = Record(
    "Checked",
    {
        "ok": Flag(),
        "digest": Text(128, low=0),
        "rules": COUNT,
        "problems": ListOf(REMARK),
        "warnings": ListOf(REMARK),
    },
)
_VERSION: Final[dict[str, Field]] = {
    "number": COUNT,
    "digest": Text(128),
    "comment": COMMENT,
    "by": USER,
    "published_at": Moment(),
    "rolled_back_to": Nullable(COUNT),
    "target": TARGET,
}
VERSION_ITEM: Final = Record("VersionItem", _VERSION)
VERSION_PAGE: Final = page("VersionPage", VERSION_ITEM)
VERSION: Final = Record("Version", {**_VERSION, "text": POLICY_TEXT})
DIFFERENCE: Final = Record(
    "Difference",
    {
        "old": Text(64, low=0),
        "new": Text(64),
        "unified": Text(4 * MAX_BYTES, low=0, lines=True, about="As diff -u writes it; empty if equal."),
        "rules": ListOf(
            Record(
                "RuleDifference",
                {
                    "rule": Text(256),
                    "change": Choice(("added", "removed", "changed", "moved")),
                    "place_before": COUNT,
                    "place_after": COUNT,
                    "detail": SHORT,
                },
                about="Places count from 1; 0 for a rule that is not there.",
            ),
            10_000,
        ),
        "target": Text(2000, low=0, about="How the target changes, empty if it does not."),
    },
)
PREVIEW: Final = Record(
    "Preview",
    {
        "enter": ListOf(Text(255), 100_000, about="Names of defenders that would get the policy."),
        "leave": ListOf(Text(255), 100_000, about="Those that would no longer have it."),
        "uncovered": ListOf(Text(255), 100_000, about="Those left without a policy: all is denied."),
    },
)
PUBLICATION: Final = Record(
    "Publication",
    {},
    {"comment": COMMENT, "waves": Flag("One defender, then a tenth, then all; false: all at once.")},
)
ROLLBACK: Final = Record(
    "Rollback", {"version": Integer(1, 2**63 - 1)}, {"comment": COMMENT, "waves": Flag()}
)
ROLLOUT: Final = Record(
    "Rollout",
    {
        "policy": POLICY_NAME,
        "version": COUNT,
        "state": Choice(tuple(STATES.values())),
        "wave": COUNT,
        "waves": COUNT,
        "detail": SHORT,
        "started_at": Moment(),
        "started_by": USER,
        "counts": COUNTS,
        "defenders": ListOf(STEP, 100_000),
    },
    about="A version on its way through the fleet.",
)
STEERING: Final = Record("Steering", {"action": Choice(("halt", "resume", "abort"))})
QUESTION: Final = Record(
    "Question",
    {"user": Text(256), "host": Text(255), "action": Text(128)},
    {
        "groups": ListOf(Text(256), high=256),
        "via": Choice(("tls", "unix")),
        "source": Text(64, about="IP address of the client."),
        "version": Integer(
            1, 2**63 - 1, "Which version; the draft, or what is published, if it is not said."
        ),
    },
)
EXPLAINED: Final = Record(
    "Explained",
    {
        "action": Text(128),
        "allowed": Flag(),
        "rule": Text(256),
        "reason": SHORT,
        "message": Nullable(SHORT),
        "trace": ListOf(
            Record("Trace", {"rule": Text(256), "line": COUNT, "matched": Flag(), "why": SHORT}), 10_000
        ),
    },
)

# Locks, join tokens.

_LOCK: Final[dict[str, Field]] = {"kind": Choice(KINDS), "value": Text(1024)}
NEW_LOCK: Final = Record(
    "NewLock", _LOCK, {"issuer": Text(1024, about="For a serial: RFC 4514 name."), "reason": COMMENT}
)
LOCK: Final = Record(
    "Lock",
    {
        "id": IDENTIFIER,
        **_LOCK,
        "name": Text(255, low=0, about="Of a defender, whose `value` is its id; of others empty."),
        "issuer": Text(1024, low=0),
        "reason": COMMENT,
        "by": USER,
        "created_at": Moment(),
        "counts": COUNTS,
    },
)
LOCK_PAGE: Final = page("LockPage", LOCK)
_CIDR: Final = Text(
    64, pattern=r"[0-9A-Fa-f:.]{2,45}(?:/[0-9]{1,3})?", meaning="a network such as 10.0.0.0/8"
)
NEW_JOIN_TOKEN: Final = Record(
    "NewJoinToken",
    {},
    {
        "uses": Integer(1, 10_000, "How many defenders may join with it."),
        "expires_in": Integer(60, 30 * _DAY, "Seconds; an hour if it is not said."),
        "networks": ListOf(_CIDR, high=64, low=1, about="From where it may be used."),
        "labels": LABELS,
        "names": ListOf(GLOB, high=64, low=1, about="Names that a defender may join under."),
        "hosts": ListOf(
            GLOB,
            high=64,
            low=1,
            about="Host names and addresses that its certificate may carry, besides its own; a name without "
            "wildcards also when it is the controller's.",
        ),
        "approval": Flag("Whether somebody must approve each defender."),
        "comment": COMMENT,
    },
)
_JOIN_TOKEN: Final[dict[str, Field]] = {
    "id": IDENTIFIER,
    "uses": COUNT,
    "used": COUNT,
    "networks": ListOf(Text(64)),
    "labels": LABELS,
    "names": ListOf(GLOB),
    "hosts": ListOf(GLOB),
    "approval": Flag(),
    "comment": COMMENT,
    "by": USER,
    "created_at": Moment(),
    "expires_at": Moment(),
    "state": Choice(("usable", "used", "expired", "revoked")),
}
JOIN_TOKEN: Final = Record("JoinToken", _JOIN_TOKEN)
JOIN_TOKEN_PAGE: Final = page("JoinTokenPage", JOIN_TOKEN)
CREATED_JOIN_TOKEN: Final = Record(
    "CreatedJoinToken",
    {
        **_JOIN_TOKEN,
        "token": SECRET,
        "channel": Text(300, about="Where defenders reach the controller, HOST:PORT."),
    },
)

# Audit, health.

EVENT: Final = Free("An event as docs/reference/event.schema.json describes it.")
POSITION: Final = Text(
    128, pattern=r"[\x21-\x7e]+", meaning="a position that an answer gave", about="A position, opaque."
)
STORED_EVENT: Final = Record(
    "StoredEvent",
    {"position": POSITION, "defender": IDENTIFIER, "stored_at": Moment(), "event": EVENT},
)
EVENT_PAGE: Final = page("EventPage", STORED_EVENT)
CHAIN: Final = Record(
    "Chain",
    {
        "defender": IDENTIFIER,
        "name": Text(255),
        "epoch": Text(32),
        "seq": COUNT,
        "chain": Text(128, about="Hexadecimal hash of the chain at this event."),
        "stored_at": Moment(),
        "gaps": COUNT,
    },
)
CHAIN_PAGE: Final = page("ChainPage", CHAIN)
DAY: Final = Text(10, pattern=r"[0-9]{4}-[0-9]{2}-[0-9]{2}", meaning="a day such as 2026-11-21")
VERIFIED: Final = Record(
    "Verified",
    {
        "day": DAY,
        "events": COUNT,
        "done": Flag("Whether that is all of the day."),
        "problems": ListOf(SHORT, 1000),
    },
    about="How far the stored events of a day were looked at, and what is wrong since the line before.",
)
SINK: Final = Record(
    "Sink",
    {
        "name": Text(64),
        "kind": Text(32),
        "state": Choice(("running", "waiting", "failing")),
        "detail": SHORT,
        "lag_events": COUNT,
        "lag_seconds": Number(),
        "refused": COUNT,
    },
)
SINK_PAGE: Final = page("SinkPage", SINK)
CHECK: Final = Record("Check", {"name": Text(64), "ok": Flag(), "detail": SHORT})
READINESS: Final = Record("Readiness", {"ready": Flag(), "checks": ListOf(CHECK)})
LIVENESS: Final = Record("Liveness", {"alive": Flag()})
FLEET_STATUS: Final = Record(
    "FleetStatus",
    {
        "controller": Text(255),
        "program": Text(64),
        "trust_domain": Text(255),
        "root": Text(128, about="SHA-256 of the root key, as join tokens pin it."),
        "defenders": Record("Presence", {"online": COUNT, "stale": COUNT, "offline": COUNT}),
        "locks": COUNT,
        "events": COUNT,
        "checks": ListOf(CHECK),
    },
)

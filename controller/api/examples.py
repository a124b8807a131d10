"""One example of each shape that the API gives, for the OpenAPI document and the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_NOON: Final = "2026-11-21T12:00:00.000Z"
_LATER: Final = "2026-11-21T20:00:00.000Z"
_ID: Final = "7d1f3c52-6a0e-4c83-9b58-2f0c9a4be1d7"
_WEB1: Final = "c1f2a6de-9f0b-4ae7-8a54-1d8a3a6d0b11"
_DIGEST: Final = "sha256:8b1f2e6c0d9a47b5e3c1f0a29d84b6c7550e1f3a2b4c6d8e9f0a1b2c3d4e5f60"
_POLICY_TEXT: Final = "schema: 1\nrules:\n  - name: ci\n    users: [ci-*]\n    effect: allow\n"

_PRINCIPAL: Final[Mapping[str, Any]] = {
    "user": "admin",
    "roles": ["admin"],
    "permissions": ["defenders.read", "defenders.write"],
    "expires_at": _LATER,
    "must_change_password": False,
}
_ACCOUNT: Final[Mapping[str, Any]] = {
    "user": "bruce",
    "roles": ["operator"],
    "disabled": False,
    "must_change_password": False,
    "created_at": _NOON,
    "last_login_at": None,
}
_API_TOKEN: Final[Mapping[str, Any]] = {
    "id": _ID,
    "name": "prometheus",
    "user": "admin",
    "permissions": ["metrics.read"],
    "created_at": _NOON,
    "expires_at": "2027-02-19T12:00:00.000Z",
    "last_used_at": None,
}
_COUNTS: Final[Mapping[str, Any]] = {"acked": 1, "refused": 0, "waiting": 0, "offline": 0, "total": 1}
_STEP: Final[Mapping[str, Any]] = {"defender": _WEB1, "name": "web1", "state": "acked", "detail": ""}
_STREAM: Final[Mapping[str, Any]] = {
    "key_epoch": 0,
    "desired": 12,
    "active": 12,
    "state": "acked",
    "detail": "",
}
_DEFENDER: Final[Mapping[str, Any]] = {
    "id": _WEB1,
    "name": "web1",
    "state": "online",
    "labels": {"site": "vienna"},
    "address": "10.1.2.3",
    "program": "0.4.0",
    "enrolled_at": _NOON,
    "last_seen_at": _LATER,
    "certificate_expires_at": "2026-11-28T12:00:00.000Z",
    "listener": {"desired": "tcp", "actual": "tcp", "drain": None, "detail": ""},
    "streams": {"trust": _STREAM, "policy": _STREAM, "locks": _STREAM, "mode": _STREAM},
    "spool": {"waiting_events": 0, "waiting_bytes": 0, "oldest_seconds": 0.0},
}
_TARGET: Final[Mapping[str, Any]] = {"labels": {"site": "vienna"}}
_POLICY: Final[Mapping[str, Any]] = {
    "name": "builders",
    "etag": "12-8b1f2e6c",
    "target": _TARGET,
    "published": 12,
    "draft": {"text": _POLICY_TEXT, "target": _TARGET, "by": "bruce", "saved_at": _LATER},
}
_VERSION_ITEM: Final[Mapping[str, Any]] = {
    "number": 12,
    "digest": _DIGEST,
    "comment": "CI may build",
    "by": "bruce",
    "published_at": _NOON,
    "rolled_back_to": None,
    "target": _TARGET,
}
_LOCK: Final[Mapping[str, Any]] = {
    "id": _ID,
    "kind": "user",
    "value": "bruce@example.com",
    "name": "",
    "issuer": "",
    "reason": "laptop lost",
    "by": "admin",
    "created_at": _NOON,
    "counts": _COUNTS,
}
_JOIN_TOKEN: Final[Mapping[str, Any]] = {
    "id": "k7c3q",
    "uses": 3,
    "used": 1,
    "networks": ["10.0.0.0/8"],
    "labels": {"site": "vienna"},
    "names": ["web*"],
    "hosts": ["*.example.com"],
    "approval": False,
    "comment": "new rack",
    "by": "admin",
    "created_at": _NOON,
    "expires_at": "2026-11-21T13:00:00.000Z",
    "state": "usable",
}
_ENROLLMENT: Final[Mapping[str, Any]] = {
    "id": _ID,
    "name": "web2",
    "address": "10.1.2.4",
    "key": "5f0c1d9b8e7a6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d",
    "join_token": "k7c3q",
    "asked_at": _NOON,
}
_STORED_EVENT: Final[Mapping[str, Any]] = {
    "position": "4711",
    "defender": _WEB1,
    "stored_at": "2026-11-21T22:13:03.411Z",
    "event": {
        "v": 1,
        "id": "0193a2e4-5b1c-7c3e-9a51-3f0c2b7d9e10",
        "agent": "web1",
        "epoch": "9f3c0a6d51e8b274",
        "seq": 4711,
        "ts_wall": "2026-11-21T22:13:03.402Z",
        "kind": "engine",
        "phase": "result",
        "corr": "0193a2e4-5b1c-7c3e-9a51-3f0c2b7d9e10",
        "actor": {"user": "bruce@example.com", "groups": ["Dev team"], "via": "tls"},
        "req": {"action": "image_create", "method": "POST", "path": "/images/create", "query": {}},
        "decision": {"effect": "deny", "rule": "devs_rule", "version": 12, "reason": "action not listed"},
        "result": {"status": 403, "bytes": 118, "ms": 0.4},
    },
}
_CHAIN: Final[Mapping[str, Any]] = {
    "defender": _WEB1,
    "name": "web1",
    "epoch": "9f3c0a6d51e8b274",
    "seq": 4711,
    "chain": "5f0c1d9b8e7a6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d",
    "stored_at": _LATER,
    "gaps": 0,
}
_SINK: Final[Mapping[str, Any]] = {
    "name": "siem",
    "kind": "syslog",
    "state": "running",
    "detail": "",
    "lag_events": 0,
    "lag_seconds": 0.0,
    "refused": 0,
}
_CHECK: Final[Mapping[str, Any]] = {"name": "store", "ok": True, "detail": ""}


def _page(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"items": [item], "next": None}


EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "Problem": {
        "type": "urn:defender-fleet:problem:invalid",
        "title": "Unprocessable Entity",
        "status": 422,
        "code": "invalid",
        "detail": "body: /mode must be one of none, unix, tcp, unix+tcp",
        "errors": [{"in": "body", "pointer": "/mode", "message": "must be one of none, unix, tcp, unix+tcp"}],
        "instance": f"urn:uuid:{_ID}",
    },
    "Login": {"token": "dfs1.EXAMPLE", "session": _ID, **_PRINCIPAL},
    "Principal": {**_PRINCIPAL, "via": "session", "credential": _ID},
    "Account": _ACCOUNT,
    "AccountPage": _page(_ACCOUNT),
    "ApiToken": _API_TOKEN,
    "ApiTokenPage": _page(_API_TOKEN),
    "CreatedApiToken": {**_API_TOKEN, "token": "dfa1.EXAMPLE"},
    "Defender": _DEFENDER,
    "DefenderPage": _page(_DEFENDER),
    "Enrollment": _ENROLLMENT,
    "EnrollmentPage": _page(_ENROLLMENT),
    "Change": {
        "id": _ID,
        "mode": "unix+tcp",
        "drain": 600,
        "asked_at": _NOON,
        "asked_by": "admin",
        "counts": _COUNTS,
        "defenders": [_STEP],
    },
    "Policy": _POLICY,
    "PolicyPage": _page({"name": "builders", "target": _TARGET, "published": 12, "has_draft": True}),
    "Checked": {
        "ok": False,
        "digest": "",
        "rules": 0,
        "problems": [
            {
                "line": 3,
                "column": 5,
                "key": "rules[0].efect",
                "message": "unknown key 'efect'",
                "suggestion": "did you mean effect?",
            }
        ],
        "warnings": [],
    },
    "VersionItem": _VERSION_ITEM,
    "VersionPage": _page(_VERSION_ITEM),
    "Version": {**_VERSION_ITEM, "text": _POLICY_TEXT},
    "Difference": {
        "old": "11",
        "new": "draft",
        "unified": "--- 11\n+++ draft\n@@ -1 +1 @@\n-schema: 1\n+schema: 1 \n",
        "rules": [
            {
                "rule": "ci",
                "change": "added",
                "place_before": 0,
                "place_after": 1,
                "detail": "added at place 1",
            }
        ],
        "target": "",
    },
    "Preview": {"enter": ["web2"], "leave": [], "uncovered": []},
    "Rollout": {
        "policy": "builders",
        "version": 13,
        "state": "running",
        "wave": 1,
        "waves": 3,
        "detail": "",
        "started_at": _NOON,
        "started_by": "bruce",
        "counts": _COUNTS,
        "defenders": [_STEP],
    },
    "Explained": {
        "action": "image_build",
        "allowed": True,
        "rule": "ci",
        "reason": "action listed",
        "message": None,
        "trace": [{"rule": "ci", "line": 3, "matched": True, "why": "all conditions hold"}],
    },
    "Lock": _LOCK,
    "LockPage": _page(_LOCK),
    "JoinToken": _JOIN_TOKEN,
    "JoinTokenPage": _page(_JOIN_TOKEN),
    "CreatedJoinToken": {
        **_JOIN_TOKEN,
        "token": "dft1.EXAMPLE",
        "channel": "controller.example.com:8084",
    },
    "StoredEvent": _STORED_EVENT,
    "EventPage": {"items": [_STORED_EVENT], "next": "1795299183402000.4711"},
    "ChainPage": _page(_CHAIN),
    "SinkPage": _page(_SINK),
    "Verified": {"day": "2026-11-21", "events": 4711, "done": True, "problems": []},
    "Liveness": {"alive": True},
    "Readiness": {"ready": True, "checks": [_CHECK]},
    "FleetStatus": {
        "controller": "controller.example.com",
        "program": "0.4.0",
        "trust_domain": "defender.fleet",
        "root": "5f0c1d9b8e7a6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d",
        "defenders": {"online": 3, "stale": 0, "offline": 0},
        "locks": 0,
        "events": 4711,
        "checks": [_CHECK],
    },
}
"""Name of a shape -> an example of it. Secrets are visibly none."""

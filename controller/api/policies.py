"""Routes of policies: drafts, checks, versions, rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from controller.api import shapes
from controller.api.ports import Json
from controller.api.routes import PAGING, Answer, Call, Route
from controller.api.schema import Field, Integer
from defender.contract.document import MAX_BYTES

POLICY_LIMIT: Final = 4 * MAX_BYTES
"""Bytes of a body that holds a policy: each of its bytes may be written as several in JSON."""


def _shown(policy: Json) -> Answer:
    """A policy, with its etag in the header as well."""
    return Answer(policy, etag=str(policy["etag"]))


async def policies(call: Call) -> Answer:
    """List policies."""
    return Answer(await call.ports.policies.policies(call.page))


async def policy(call: Call) -> Answer:
    """Show a policy with its draft."""
    return _shown(await call.ports.policies.policy(call.path["policy"]))


async def save_draft(call: Call) -> Answer:
    """Save a draft."""
    name = call.path["policy"]
    return _shown(await call.ports.policies.save_draft(call.actor, name, call.body, call.expected))


async def discard_draft(call: Call) -> Answer:
    """Throw a draft away."""
    return _shown(await call.ports.policies.discard_draft(call.actor, call.path["policy"], call.expected))


async def remove(call: Call) -> Answer:
    """Remove a policy."""
    await call.ports.policies.remove(call.actor, call.path["policy"], call.expected)
    return Answer()


async def check(call: Call) -> Answer:
    """Check a text."""
    return Answer(await call.ports.policies.check(call.body["text"]))


async def explain(call: Call) -> Answer:
    """Explain a decision."""
    return Answer(await call.ports.policies.explain(call.path["policy"], call.body))


async def versions(call: Call) -> Answer:
    """List versions."""
    return Answer(await call.ports.policies.versions(call.path["policy"], call.page))


async def version(call: Call) -> Answer:
    """Show a version."""
    return Answer(await call.ports.policies.version(call.path["policy"], call.path["version"]))


async def diff(call: Call) -> Answer:
    """Compare two versions, or what is published with the draft."""
    old, new = call.query.get("old"), call.query.get("new")
    return Answer(await call.ports.policies.diff(call.path["policy"], old, new))


async def preview(call: Call) -> Answer:
    """Which defenders would get the draft."""
    return Answer(await call.ports.policies.preview(call.path["policy"]))


async def publish(call: Call) -> Answer:
    """Publish the draft."""
    name = call.path["policy"]
    return Answer(await call.ports.policies.publish(call.actor, name, _waves(call.body), call.expected))


async def roll_back(call: Call) -> Answer:
    """Publish an old version's content as a new version."""
    name = call.path["policy"]
    return Answer(await call.ports.policies.roll_back(call.actor, name, _waves(call.body), call.expected))


def _waves(body: Mapping[str, Any]) -> Json:
    return {"comment": "", "waves": True, **body}


async def rollout(call: Call) -> Answer:
    """How far the newest version is."""
    return Answer(await call.ports.policies.rollout(call.path["policy"]))


async def steer_rollout(call: Call) -> Answer:
    """Halt, go on after a halt, or give up."""
    action = call.body["action"]
    return Answer(await call.ports.policies.steer_rollout(call.actor, call.path["policy"], action))


_POLICY: Final[Mapping[str, Field]] = {"policy": shapes.POLICY_NAME}
_NUMBER: Final = Integer(1, 2**63 - 1)
_EXAMPLE: Final = "schema: 1\nrules:\n  - name: ci\n    users: [ci-*]\n    effect: allow\n"

ROUTES: Final = (
    Route(
        "GET",
        "/api/v1/policies",
        "list_policies",
        "List policies.",
        "policies.read",
        policies,
        query=PAGING,
        answer=shapes.POLICY_PAGE,
    ),
    Route(
        "POST",
        "/api/v1/policy-checks",
        "check_policy",
        "Check the text of a policy without saving it.",
        "policies.read",
        check,
        body=shapes.POLICY_CHECK,
        body_limit=POLICY_LIMIT,
        answer=shapes.CHECKED,
        example={"text": _EXAMPLE},
    ),
    Route(
        "GET",
        "/api/v1/policies/{policy}",
        "show_policy",
        "Show a policy and its draft.",
        "policies.read",
        policy,
        variables=_POLICY,
        answer=shapes.POLICY,
    ),
    Route(
        "DELETE",
        "/api/v1/policies/{policy}",
        "remove_policy",
        "Remove a policy; the defenders that had it fall back to what else targets them.",
        "policies.publish",
        remove,
        status=204,
        variables=_POLICY,
        conditional=True,
    ),
    Route(
        "PUT",
        "/api/v1/policies/{policy}/draft",
        "save_draft",
        "Save the draft of a policy, or make the policy with `If-None-Match: *`.",
        "policies.write",
        save_draft,
        variables=_POLICY,
        body=shapes.DRAFT,
        body_limit=POLICY_LIMIT,
        answer=shapes.POLICY,
        conditional=True,
        example={"text": _EXAMPLE, "target": {"labels": {"site": "vienna"}}},
    ),
    Route(
        "DELETE",
        "/api/v1/policies/{policy}/draft",
        "discard_draft",
        "Throw the draft away.",
        "policies.write",
        discard_draft,
        variables=_POLICY,
        answer=shapes.POLICY,
        conditional=True,
    ),
    Route(
        "POST",
        "/api/v1/policies/{policy}/publish",
        "publish_policy",
        "Publish the draft as the next version, in waves.",
        "policies.publish",
        publish,
        status=202,
        variables=_POLICY,
        body=shapes.PUBLICATION,
        answer=shapes.ROLLOUT,
        conditional=True,
        repeatable=True,
        example={"comment": "CI may build", "waves": True},
    ),
    Route(
        "POST",
        "/api/v1/policies/{policy}/rollback",
        "roll_back_policy",
        "Publish the content of an old version as the next version.",
        "policies.publish",
        roll_back,
        status=202,
        variables=_POLICY,
        body=shapes.ROLLBACK,
        answer=shapes.ROLLOUT,
        conditional=True,
        repeatable=True,
        example={"version": 11, "comment": "CI could build too much"},
    ),
    Route(
        "GET",
        "/api/v1/policies/{policy}/versions",
        "list_versions",
        "List the published versions, the newest first.",
        "policies.read",
        versions,
        variables=_POLICY,
        query=PAGING,
        answer=shapes.VERSION_PAGE,
    ),
    Route(
        "GET",
        "/api/v1/policies/{policy}/versions/{version}",
        "show_version",
        "Show a version with its text.",
        "policies.read",
        version,
        variables={**_POLICY, "version": _NUMBER},
        answer=shapes.VERSION,
    ),
    Route(
        "GET",
        "/api/v1/policies/{policy}/diff",
        "diff_policy",
        "Compare two versions; by default what is published with the draft.",
        "policies.read",
        diff,
        variables=_POLICY,
        query={"old": _NUMBER, "new": _NUMBER},
        answer=shapes.DIFFERENCE,
    ),
    Route(
        "GET",
        "/api/v1/policies/{policy}/preview",
        "preview_policy",
        "Which defenders would get the draft, and which would lose the policy.",
        "policies.read",
        preview,
        variables=_POLICY,
        answer=shapes.PREVIEW,
    ),
    Route(
        "POST",
        "/api/v1/policies/{policy}/explain",
        "explain_policy",
        "Explain what a policy decides about one request.",
        "policies.read",
        explain,
        variables=_POLICY,
        body=shapes.QUESTION,
        answer=shapes.EXPLAINED,
        example={"user": "ci-7", "host": "web1", "action": "image_build", "groups": ["CI"]},
    ),
    Route(
        "GET",
        "/api/v1/policies/{policy}/rollout",
        "show_rollout",
        "How far the newest version is: acked, refused, offline.",
        "policies.read",
        rollout,
        variables=_POLICY,
        answer=shapes.ROLLOUT,
    ),
    Route(
        "POST",
        "/api/v1/policies/{policy}/rollout",
        "steer_rollout",
        "Halt a rollout, resume one that is halted, or abort it.",
        "policies.publish",
        steer_rollout,
        variables=_POLICY,
        body=shapes.STEERING,
        answer=shapes.ROLLOUT,
        repeatable=True,
        example={"action": "resume"},
    ),
)

"""Routes of who comes in and who is shut out: join tokens, defenders that wait for approval, locks."""

from __future__ import annotations

from typing import Final

from controller.api import shapes
from controller.api.routes import PAGING, Answer, Call, Route


async def enrollments(call: Call) -> Answer:
    """Who waits to be let in."""
    return Answer(await call.ports.defenders.enrollments(call.page))


async def decide_enrollment(call: Call) -> Answer:
    """Let in, or turn away."""
    approve = call.body["decision"] == "approve"
    await call.ports.defenders.decide_enrollment(call.actor, call.path["enrollment"], approve)
    return Answer()


async def locks(call: Call) -> Answer:
    """List locks."""
    return Answer(await call.ports.locks.locks(call.page))


async def add_lock(call: Call) -> Answer:
    """Add a lock; the same lock twice is one."""
    made, new = await call.ports.locks.add_lock(call.actor, call.body)
    return Answer(made, status=201 if new else 200)


async def remove_lock(call: Call) -> Answer:
    """Remove a lock."""
    await call.ports.locks.remove_lock(call.actor, call.path["lock"])
    return Answer()


async def join_tokens(call: Call) -> Answer:
    """List join tokens."""
    return Answer(await call.ports.join_tokens.join_tokens(call.page))


async def create_join_token(call: Call) -> Answer:
    """Make a join token."""
    return Answer(await call.ports.join_tokens.create_join_token(call.actor, call.body))


async def revoke_join_token(call: Call) -> Answer:
    """Revoke a join token."""
    await call.ports.join_tokens.revoke_join_token(call.actor, call.path["token"])
    return Answer()


ROUTES: Final = (
    Route(
        "GET",
        "/api/v1/enrollments",
        "list_enrollments",
        "List the defenders that wait for approval.",
        "defenders.read",
        enrollments,
        query=PAGING,
        answer=shapes.ENROLLMENT_PAGE,
    ),
    Route(
        "POST",
        "/api/v1/enrollments/{enrollment}",
        "decide_enrollment",
        "Approve a defender that waits, or reject it.",
        "defenders.write",
        decide_enrollment,
        status=204,
        variables={"enrollment": shapes.IDENTIFIER},
        body=shapes.DECISION,
        repeatable=True,
        example={"decision": "approve"},
    ),
    Route(
        "GET",
        "/api/v1/locks",
        "list_locks",
        "List locks, and which defenders have them.",
        "locks.read",
        locks,
        query=PAGING,
        answer=shapes.LOCK_PAGE,
    ),
    Route(
        "POST",
        "/api/v1/locks",
        "add_lock",
        "Shut out a user, a group, a certificate or a defender at once; 200 if the lock is there already.",
        "locks.write",
        add_lock,
        status=201,
        also=(200,),
        body=shapes.NEW_LOCK,
        answer=shapes.LOCK,
        repeatable=True,
        example={"kind": "user", "value": "bruce@example.com", "reason": "laptop lost"},
    ),
    Route(
        "DELETE",
        "/api/v1/locks/{lock}",
        "remove_lock",
        "Remove a lock by its id.",
        "locks.write",
        remove_lock,
        status=204,
        variables={"lock": shapes.IDENTIFIER},
    ),
    Route(
        "GET",
        "/api/v1/join-tokens",
        "list_join_tokens",
        "List join tokens; their secrets are not kept.",
        "join_tokens.read",
        join_tokens,
        query=PAGING,
        answer=shapes.JOIN_TOKEN_PAGE,
    ),
    Route(
        "POST",
        "/api/v1/join-tokens",
        "create_join_token",
        "Make a join token; it is shown this once.",
        "join_tokens.write",
        create_join_token,
        status=201,
        body=shapes.NEW_JOIN_TOKEN,
        answer=shapes.CREATED_JOIN_TOKEN,
        repeatable=True,
        example={"uses": 3, "expires_in": 3600, "labels": {"site": "vienna"}},
    ),
    Route(
        "DELETE",
        "/api/v1/join-tokens/{token}",
        "revoke_join_token",
        "Revoke a join token by its id.",
        "join_tokens.write",
        revoke_join_token,
        status=204,
        variables={"token": shapes.IDENTIFIER},
    ),
)

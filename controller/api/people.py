"""Routes of sign-ins, accounts and API tokens."""

from __future__ import annotations

from typing import Final

from controller.api import shapes
from controller.api.ports import RefusedError
from controller.api.problems import ProblemError
from controller.api.routes import PAGING, SIGNED_IN, Answer, Call, Route


async def log_in(call: Call) -> Answer:
    """Open a session; a wrong password and an unknown user give one and the same answer."""
    try:
        made = await call.ports.accounts.log_in(call.body["user"], call.body["password"], call.actor)
    except RefusedError as error:
        raise ProblemError(401, "wrong-credentials", str(error)) from None
    return Answer(made)


async def log_out(call: Call) -> Answer:
    """End the session."""
    await call.ports.accounts.log_out(call.actor)
    return Answer()


async def who_am_i(call: Call) -> Answer:
    """Whose token this is."""
    found = call.principal
    assert found is not None
    return Answer(
        {
            "user": found.user,
            "roles": list(found.roles),
            "permissions": sorted(found.permissions),
            "expires_at": shapes.moment(found.expires),
            "must_change_password": found.must_change,
            "via": found.via,
            "credential": found.credential,
        }
    )


async def change_password(call: Call) -> Answer:
    """Set one's own password."""
    await call.ports.accounts.change_password(call.actor, call.body["present"], call.body["wanted"])
    return Answer()


async def accounts(call: Call) -> Answer:
    """List accounts."""
    return Answer(await call.ports.accounts.accounts(call.page))


async def account(call: Call) -> Answer:
    """Show an account."""
    return Answer(await call.ports.accounts.account(call.path["user"]))


async def create_account(call: Call) -> Answer:
    """Make an account."""
    return Answer(await call.ports.accounts.create_account(call.actor, call.body, call.permissions))


async def change_account(call: Call) -> Answer:
    """Change an account."""
    accounts, user = call.ports.accounts, call.path["user"]
    return Answer(await accounts.change_account(call.actor, user, call.body, call.permissions))


async def remove_account(call: Call) -> Answer:
    """Remove an account."""
    await call.ports.accounts.remove_account(call.actor, call.path["user"], call.permissions)
    return Answer()


async def api_tokens(call: Call) -> Answer:
    """List API tokens: one's own, and for who may see accounts everybody's."""
    everybody = "accounts.read" in call.permissions
    return Answer(await call.ports.accounts.api_tokens(call.actor, everybody, call.page))


async def create_api_token(call: Call) -> Answer:
    """Make an API token of one's own."""
    accounts = call.ports.accounts
    return Answer(await accounts.create_api_token(call.actor, call.body, call.permissions))


async def revoke_api_token(call: Call) -> Answer:
    """Revoke an API token."""
    everybody = "accounts.write" in call.permissions
    await call.ports.accounts.revoke_api_token(call.actor, call.path["token"], everybody)
    return Answer()


_USER: Final = {"user": shapes.USER}
_TOKEN: Final = {"token": shapes.IDENTIFIER}

ROUTES: Final = (
    Route(
        "POST",
        "/api/v1/sessions",
        "log_in",
        "Sign in with user and password.",
        "",
        log_in,
        status=201,
        body=shapes.CREDENTIALS,
        body_limit=16 * 1024,
        answer=shapes.LOGIN,
        example={"user": "admin", "password": "correct horse battery staple"},
    ),
    Route(
        "GET",
        "/api/v1/sessions/current",
        "who_am_i",
        "Whose token this is, and what it may do.",
        SIGNED_IN,
        who_am_i,
        answer=shapes.WHOAMI,
        early=True,
    ),
    Route(
        "DELETE",
        "/api/v1/sessions/current",
        "log_out",
        "Sign out.",
        SIGNED_IN,
        log_out,
        status=204,
        early=True,
    ),
    Route(
        "PUT",
        "/api/v1/accounts/current/password",
        "change_password",
        "Change one's own password; ends one's other sessions.",
        SIGNED_IN,
        change_password,
        status=204,
        early=True,
        body=shapes.PASSWORD_CHANGE,
        body_limit=16 * 1024,
        example={"present": "correct horse battery staple", "wanted": "tall glass of cold water"},
    ),
    Route(
        "GET",
        "/api/v1/accounts",
        "list_accounts",
        "List accounts.",
        "accounts.read",
        accounts,
        query=PAGING,
        answer=shapes.ACCOUNT_PAGE,
    ),
    Route(
        "POST",
        "/api/v1/accounts",
        "create_account",
        "Make an account, with roles that can do no more than who makes it.",
        "accounts.write",
        create_account,
        status=201,
        body=shapes.NEW_ACCOUNT,
        answer=shapes.ACCOUNT,
        repeatable=True,
        example={"user": "bruce", "password": "tall glass of cold water", "roles": ["operator"]},
    ),
    Route(
        "GET",
        "/api/v1/accounts/{user}",
        "show_account",
        "Show an account.",
        "accounts.read",
        account,
        variables=_USER,
        answer=shapes.ACCOUNT,
    ),
    Route(
        "PATCH",
        "/api/v1/accounts/{user}",
        "change_account",
        "Change the roles of an account that can do no more than oneself, disable it, or set its password.",
        "accounts.write",
        change_account,
        variables=_USER,
        body=shapes.ACCOUNT_CHANGE,
        answer=shapes.ACCOUNT,
        example={"roles": ["auditor"], "disabled": False},
    ),
    Route(
        "DELETE",
        "/api/v1/accounts/{user}",
        "remove_account",
        "Remove an account, its sessions and its tokens.",
        "accounts.write",
        remove_account,
        status=204,
        variables=_USER,
    ),
    Route(
        "GET",
        "/api/v1/api-tokens",
        "list_api_tokens",
        "List API tokens: one's own; for who may see accounts, everybody's.",
        SIGNED_IN,
        api_tokens,
        query=PAGING,
        answer=shapes.API_TOKEN_PAGE,
    ),
    Route(
        "POST",
        "/api/v1/api-tokens",
        "create_api_token",
        "Make an API token; it can do no more than its owner, and is shown this once.",
        SIGNED_IN,
        create_api_token,
        status=201,
        body=shapes.NEW_API_TOKEN,
        answer=shapes.CREATED_API_TOKEN,
        repeatable=True,
        example={"name": "prometheus", "permissions": ["metrics.read"], "expires_in": 7776000},
    ),
    Route(
        "DELETE",
        "/api/v1/api-tokens/{token}",
        "revoke_api_token",
        "Revoke an API token by its id.",
        SIGNED_IN,
        revoke_api_token,
        status=204,
        variables=_TOKEN,
    ),
)

"""People and programs that use the controller: what each may do, and what nobody may do to an account.

A permission is ``NOUN.VERB``. A role is a set of permissions; an account has one role or more. An API token
has a scope, and never more than its owner has at that moment: it shrinks when its owner's roles do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from defender.contract.errors import IdentityError
from defender.contract.identity import check_user_name

ADMIN: Final = "admin"
OPERATOR: Final = "operator"
AUDITOR: Final = "auditor"
USER: Final = "user"

PERMISSIONS: Final[Mapping[str, str]] = {
    "accounts.read": "See accounts, their roles and everybody's API tokens.",
    "accounts.write": "Make, change and remove accounts; revoke anybody's API tokens.",
    "audit.read": "Search, follow and export the events of the whole fleet.",
    "defenders.read": "See defenders, what each one has in force, and who waits for approval.",
    "defenders.write": "Label and remove defenders, let in or turn away who waits for approval.",
    "join_tokens.read": "See join tokens, without their secrets.",
    "join_tokens.write": "Make and revoke join tokens.",
    "listeners.write": "Say where defenders listen.",
    "locks.read": "See who is locked out.",
    "locks.write": "Lock and unlock users, groups, certificates and defenders.",
    "metrics.read": "Read the controller's metrics.",
    "policies.publish": "Publish, roll back, resume and abort: change what is in force.",
    "policies.read": "See policies, their drafts, versions and rollouts.",
    "policies.write": "Work on drafts.",
    "status.read": "See how the controller and the fleet are.",
}
"""Every permission, and what it lets somebody do."""

_READ: Final = frozenset(name for name in PERMISSIONS if name.endswith(".read"))

ROLES: Final[Mapping[str, frozenset[str]]] = {
    ADMIN: frozenset(PERMISSIONS),
    OPERATOR: frozenset(PERMISSIONS) - {"accounts.read", "accounts.write"},
    AUDITOR: _READ,
    USER: frozenset(),
}
"""What each role may do. A *user* signs in to look after what is their own, and nothing else."""

SHORTEST_TOKEN_LIFE: Final = 60.0
LONGEST_TOKEN_LIFE: Final = 365 * 86400.0


class AccountError(Exception):
    """A change of an account or token that is not made; the text is one sentence for the person who asked."""


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who can sign in; names are compared without regard to case."""

    user: str
    roles: frozenset[str]
    disabled: bool = False

    @property
    def permissions(self) -> frozenset[str]:
        """What it may do now."""
        return frozenset() if self.disabled else permissions_of(self.roles)

    @property
    def is_acting_admin(self) -> bool:
        """Whether it can look after other accounts."""
        return not self.disabled and ADMIN in self.roles


def permissions_of(roles: Iterable[str]) -> frozenset[str]:
    """What several roles may do together; an unknown one gives nothing."""
    return frozenset().union(*(ROLES.get(role, frozenset()) for role in roles))


def fold_user(user: str) -> str:
    """A user's name as names are compared and kept unique."""
    return unicodedata.normalize("NFC", user.casefold())


def check_account(user: str, roles: Iterable[str]) -> frozenset[str]:
    """Raise AccountError unless an account may be called this and have these roles; returns the roles.

    A name must be able to stand in a certificate, since that is where it ends up.
    """
    try:
        check_user_name(user)
    except IdentityError as error:
        raise AccountError(error.detail) from None
    if "/" in user:
        raise AccountError(f"the user name {user!r} holds a /")
    return check_roles(roles)


def check_roles(roles: Iterable[str]) -> frozenset[str]:
    """Raise AccountError unless these are roles, at least one; returns them."""
    wanted = frozenset(roles)
    unknown = sorted(wanted - set(ROLES))
    if unknown:
        raise AccountError(f"unknown role {unknown[0][:60]!r}; there are {', '.join(ROLES)}")
    if not wanted:
        raise AccountError(f"an account has at least one role of {', '.join(ROLES)}")
    return wanted


def check_change(accounts: Iterable[Account], actor: str, user: str, after: Account | None) -> None:
    """Raise AccountError if `actor` may not turn the account `user` into `after` (None: remove it).

    That is: where no admin would be left who could undo it, and where somebody would shut themselves out.
    """
    everybody = {fold_user(each.user): each for each in accounts}
    folded = fold_user(user)
    if folded not in everybody:
        raise AccountError(f"there is no account {user!r}")
    if (after is None or after.disabled) and folded == fold_user(actor):
        raise AccountError("nobody removes or disables their own account; ask another admin")
    left = [each for name, each in everybody.items() if name != folded and each.is_acting_admin]
    if everybody[folded].is_acting_admin and not left and (after is None or not after.is_acting_admin):
        name = everybody[folded].user
        raise AccountError(f"{name!r} is the last admin; make another one first")


def check_reach(own: frozenset[str], roles: Iterable[str]) -> None:
    """Raise AccountError if somebody who may do `own` may not look after an account with these roles.

    Who gives a role, or sets the password of an account, can act as it: so nobody does either where the role
    can do more than they can, be it that they are a token of a narrow scope.
    """
    beyond = sorted(permissions_of(roles) - own)
    if beyond:
        raise AccountError(f"this account can do more than you, who lack {', '.join(beyond)}")


# API tokens


def expand_scope(scope: Iterable[str]) -> frozenset[str]:
    """The permissions that a scope names; ``policies`` stands for all of that noun.

    Raises AccountError for what is no permission, and for an empty scope.
    """
    found: set[str] = set()
    for name in scope:
        meant = {each for each in PERMISSIONS if name in (each, each.partition(".")[0])}
        if not meant:
            raise AccountError(f"unknown permission {name[:60]!r}; there are {', '.join(PERMISSIONS)}")
        found |= meant
    if not found:
        raise AccountError("a token needs at least one permission")
    return frozenset(found)


def check_token(scope: Iterable[str], owner: frozenset[str], life: float) -> frozenset[str]:
    """The permissions of a new token of somebody who may do `owner`, for `life` seconds.

    Raises AccountError for a scope wider than the owner's, and for a life that is too short or too long.
    """
    wanted = expand_scope(scope)
    beyond = sorted(wanted - owner)
    if beyond:
        raise AccountError(f"a token cannot do more than its owner, who lacks {', '.join(beyond)}")
    if not SHORTEST_TOKEN_LIFE <= life <= LONGEST_TOKEN_LIFE:
        raise AccountError("a token lives between a minute and a year")
    return wanted


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token as it is kept. Times are unix seconds; `revoked` is None while it is good."""

    user: str
    permissions: frozenset[str]
    expires: float
    revoked: float | None = None


def token_permissions(token: ApiToken, owner: Account | None, now: float) -> frozenset[str] | None:
    """What the bearer of a token may do now; None if it is no longer good, or its owner is gone."""
    if token.revoked is not None or now >= token.expires:
        return None
    if owner is None or owner.disabled or fold_user(owner.user) != fold_user(token.user):
        return None
    return token.permissions & owner.permissions

"""Join tokens at the controller: what is kept of one, and what a request with it leads to.

Only the SHA-256 of the secret is kept; who reads the store cannot join. The rules here are pure functions
over what the store holds. They are asked inside the store's write transaction, so that of two requests that
race for the last use one sees the other's: `judge` decides, the store writes what it says, all or nothing,
and `consume` is the condition that the store's own UPDATE repeats.

A lost answer burns nothing: the same token with the same key is given the same certificate again for
`REPEAT` seconds. Who does not know the secret learns nothing of the token, not even that there is one.

Times are unix seconds.
"""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final, Literal

from controller.selection import SelectionError, check_labels
from defender.contract.join import JoinRequest
from defender.contract.join_token import JoinToken, digest_of
from defender.contract.pattern import Patterns, is_exemption

LIFE: Final = 3600
"""Seconds that a token can be used, where nothing else was said."""
MIN_LIFE: Final = 60
MAX_LIFE: Final = 30 * 86_400
MAX_USES: Final = 10_000
MAX_NETWORKS: Final = 64
MAX_NAMES: Final = 64
MAX_COMMENT: Final = 1000
REPEAT: Final = 600
"""Seconds in which the same key is given the same certificate again."""
APPROVAL_LIFE: Final = 86_400
"""Seconds in which an administrator can agree to a host that waits."""
ASK_AGAIN: Final = 10
"""Seconds after which a waiting host asks again."""

_WILD: Final = frozenset("*?")

UseState = Literal["waiting", "approved", "denied", "issued"]


class TokenTermsError(Exception):
    """A token cannot be made on these terms. `field` names the one; the text is fit for people."""

    def __init__(self, field: str, detail: str) -> None:
        self.field = field
        self.detail = detail
        super().__init__(field, detail)

    def __str__(self) -> str:
        return f"{self.field}: {self.detail}"


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token as the controller keeps it.

    ``networks``: where its requests may come from, in CIDR form; () for anywhere. ``labels``: what its
    defenders are labeled with. ``names``: globs of the names that a defender may join under, () for any
    (see `replaces`). ``hosts``: see `controller.pki.hosts`. ``approval``: an administrator has to agree to
    each host.
    """

    id: str
    digest: bytes = field(repr=False)
    created: int
    expires: int
    max_uses: int = 1
    uses: int = 0
    revoked: bool = False
    networks: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    names: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    approval: bool = False
    created_by: str = ""
    comment: str = ""

    @property
    def replaces(self) -> str:
        """The one name that it is for, "" if there are more: who has it may join again under it.

        Such a token has one use and one name without wild cards.
        """
        if self.max_uses != 1 or len(self.names) != 1:
            return ""
        (name,) = self.names
        return "" if set(name) & _WILD or is_exemption(name) else name


@dataclass(frozen=True, slots=True)
class TokenUse:
    """One use of a token: by one key, for one defender.

    ``key``: SHA-256 of the key's SubjectPublicKeyInfo. ``defender``: its id. ``begun``: when the use was
    taken from the token; ``issued``: when the certificate was first issued, 0 before.
    """

    token: str
    key: bytes
    defender: str
    name: str
    state: UseState
    begun: int
    issued: int = 0


@dataclass(frozen=True, slots=True)
class Issue:
    """Issue a certificate and keep `use`. ``consumes``: the token has one use less, else one approved before.

    ``replaces``: the defender of this id exists; its certificates are superseded, and an
    administrator's lock of it stays.
    """

    use: TokenUse
    consumes: bool
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Repeat:
    """Give the certificate of this use again, the very one that was issued."""

    use: TokenUse


@dataclass(frozen=True, slots=True)
class Wait:
    """An administrator has to agree. ``consumes``: the use is new; keep it and take it from the token."""

    use: TokenUse
    consumes: bool


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing is issued; the fields are those of `defender.contract.join.Refused`."""

    code: str
    detail: str
    retry_after: int = 0


Verdict = Issue | Repeat | Wait | Refuse

_UNKNOWN = Refuse(
    "token", "this join token is not known here; `defenderctl tokens create` makes one, for this controller"
)


def store_token(
    token: JoinToken,
    *,
    now: int,
    life: int = LIFE,
    max_uses: int = 1,
    networks: tuple[str, ...] = (),
    labels: Mapping[str, str] | None = None,
    names: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    approval: bool = False,
    created_by: str = "",
    comment: str = "",
) -> StoredToken:
    """Return what is kept of a new token; raises TokenTermsError for terms that make no sense."""
    if not MIN_LIFE <= life <= MAX_LIFE:
        raise TokenTermsError("life", f"a join token lives {MIN_LIFE} seconds to {MAX_LIFE // 86_400} days")
    if not 1 <= max_uses <= MAX_USES:
        raise TokenTermsError("max_uses", f"a join token can be used 1 to {MAX_USES} times")
    if len(networks) > MAX_NETWORKS:
        raise TokenTermsError("networks", f"at most {MAX_NETWORKS} networks")
    for field_name, texts in (("hosts", hosts), ("names", names)):
        if len(texts) > MAX_NAMES or not all(0 < len(text) <= 256 and text.isprintable() for text in texts):
            raise TokenTermsError(field_name, f"at most {MAX_NAMES} printable texts of 1 to 256 characters")
    try:
        check_labels(labels or {})
    except SelectionError as error:
        raise TokenTermsError("labels", str(error)) from None
    if len(comment) > MAX_COMMENT:
        raise TokenTermsError("comment", f"at most {MAX_COMMENT} characters")
    return StoredToken(
        id=token.id,
        digest=token.digest,
        created=now,
        expires=now + life,
        max_uses=max_uses,
        networks=tuple(_network(each) for each in networks),
        labels=tuple(sorted((labels or {}).items())),
        names=names,
        hosts=hosts,
        approval=approval,
        created_by=created_by,
        comment=comment,
    )


def folded(name: str) -> str:
    """Return a defender's name as names are compared: two that fold alike cannot both be in the fleet."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def consume(token: StoredToken, now: int) -> StoredToken | None:
    """Return the token with one more use taken, None if it has none to give: the store's condition."""
    if token.revoked or now >= token.expires or token.uses >= token.max_uses:
        return None
    return replace(token, uses=token.uses + 1)


def judge(
    token: StoredToken | None,
    previous: TokenUse | None,
    request: JoinRequest,
    *,
    key: bytes,
    source: IPv4Address | IPv6Address,
    holder: str | None,
    new_id: str,
    now: int,
) -> Verdict:
    """Say what a request leads to.

    ``token``: the one of the request's id, if there is one; ``previous``: the use of this token by this
    ``key``, if there was one; ``holder``: the id of the defender that has the request's name (compared
    `folded`), if one has; ``new_id``: a new UUID. The signing requests were read before: a bad one must not
    cost a use.
    """
    # Always one comparison, so that time does not tell whether there is such a token.
    digest = token.digest if token is not None else bytes(32)
    if not hmac.compare_digest(digest_of(request.secret), digest) or token is None:
        return _UNKNOWN
    if token.revoked:
        return Refuse("token-revoked", "this join token was revoked; ask for another one")
    if not _is_within(source, token.networks):
        return Refuse("address", f"this join token is not for requests from {source}")
    own = bool(token.replaces) and folded(token.replaces) == folded(request.name)
    if token.names and not own and not Patterns(token.names).matches(request.name.casefold()):
        named = ", ".join(token.names[:5])
        return Refuse("name", f"this join token is for defenders named {named}, not {request.name!r}")
    if previous is not None:
        return _again(previous, request, now)
    if now >= token.expires:
        return Refuse("token-expired", "this join token has expired; ask for another one")
    if holder is not None and not own:
        return Refuse(
            "name-taken",
            f"there is a defender named {request.name!r}; set another `name`, remove that one, "
            "or ask for a token with one use for that name alone, which replaces it",
        )
    if consume(token, now) is None:
        return Refuse("token-used", "this join token was used; ask for another one")
    use = TokenUse(token.id, key, holder or new_id, request.name, "waiting", now)
    if token.approval:
        return Wait(use, consumes=True)
    return Issue(replace(use, state="issued", issued=now), consumes=True, replaces=holder is not None)


def _again(use: TokenUse, request: JoinRequest, now: int) -> Verdict:
    if use.name != request.name:
        return Refuse("name", f"this key has asked for the name {use.name!r} before")
    if use.state == "issued":
        if now - use.issued < REPEAT:
            return Repeat(use)
        return Refuse(
            "token-used", f"this join token gave this key a certificate {REPEAT // 60} minutes ago or more"
        )
    if use.state == "denied":
        return Refuse("denied", "an administrator did not agree to this host")
    if now - use.begun >= APPROVAL_LIFE:
        return Refuse("approval-expired", "no administrator agreed in time; ask for another token")
    if use.state == "approved":
        return Issue(replace(use, state="issued", issued=now), consumes=False)
    return Wait(use, consumes=False)


def decide_waiting(use: TokenUse, *, agree: bool, now: int) -> TokenUse | None:
    """Return a waiting use with an administrator's decision, None if it does not wait any more."""
    if use.state != "waiting" or now - use.begun >= APPROVAL_LIFE:
        return None
    return replace(use, state="approved" if agree else "denied")


def _network(text: str) -> str:
    try:
        return str(ip_network(text.strip()))
    except ValueError:
        raise TokenTermsError(
            "networks", f"{text[:60]!r} is no network: write 10.1.0.0/16 or 2001:db8::/32"
        ) from None


def _is_within(source: IPv4Address | IPv6Address, networks: tuple[str, ...]) -> bool:
    return not networks or any(plain(source) in ip_network(each) for each in networks)


def plain(source: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 socket shows as ``::ffff:10.1.2.3``."""
    mapped = source.ipv4_mapped if isinstance(source, IPv6Address) else None
    return mapped if mapped is not None else ip_address(source)


def terms_of(token: StoredToken) -> dict[str, Any]:
    """Return the terms of a token as a document of the store, without its id, digest, times and uses."""
    return {
        "networks": list(token.networks),
        "labels": dict(token.labels),
        "names": list(token.names),
        "hosts": list(token.hosts),
        "approval": token.approval,
        "comment": token.comment,
    }


def with_terms(token: StoredToken, terms: Mapping[str, Any]) -> StoredToken:
    """Return a token with the terms of such a document."""
    return replace(
        token,
        networks=tuple(terms["networks"]),
        labels=tuple(sorted(terms["labels"].items())),
        names=tuple(terms["names"]),
        hosts=tuple(terms["hosts"]),
        approval=terms["approval"],
        comment=terms["comment"],
    )

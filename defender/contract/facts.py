"""What a rule may speak about in one request."""

from __future__ import annotations

from dataclasses import dataclass

ANONYMOUS = "anonymous"
"""The user of a peer that cannot be told: a certificate never carries it, a unix peer inside a container
does."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks, as far as it was proven.

    `via` is "tls" or "unix".  `address` is the IP address as text, without a port and with IPv4-mapped
    addresses unmapped; `None` on a unix socket.  `serial` is the certificate's in lower-case hex without a
    prefix, `issuer` its RFC 4514 name, `identity` its SPIFFE URI, `not_after` its end in unix seconds.  `uid`
    and `pid` are a unix peer's.
    """

    user: str
    groups: tuple[str, ...] = ()
    via: str = "tls"
    address: str | None = None
    port: int = 0
    serial: str = ""
    issuer: str = ""
    identity: str = ""
    not_after: float | None = None
    uid: int | None = None
    pid: int | None = None

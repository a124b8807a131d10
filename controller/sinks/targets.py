"""What an administrator says of a sink, checked: where it goes, how its receiver is known, which secret.

No repr shows a secret. Every error is a ValueError that names the setting and says what it should be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from controller.sinks.delivery import Limits
from controller.sinks.hec import PATH, HecFormat
from controller.sinks.syslog import SyslogFormat
from controller.sinks.webhook import Signer
from defender.contract.errors import IdentityError
from defender.contract.peer_check import host_peer

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")

STREAM_LIMITS: Final = Limits(linger=0.0)
"""A stream costs nothing per batch: events go out as they come."""
POST_LIMITS: Final = Limits(octets=512 * 1024)
"""Half of what usual HTTP servers take in one request unless told otherwise."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM texts: the authorities that may have signed the receiver's certificate (None: those that the
    machine trusts), and what we show to a receiver that asks for a certificate ("" for nothing).
    """

    ca: bytes | None = None
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class SyslogTarget:
    """A receiver of RFC 5424 messages over TLS."""

    name: str
    host: str
    port: int = 6514
    format: SyslogFormat = SyslogFormat()  # noqa: RUF009  (frozen)
    tls: TlsFiles = TlsFiles()
    limits: Limits = STREAM_LIMITS

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be."""
        check_name(self.name)
        check_host("host", self.host)
        check_port("port", self.port)


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """A receiver of JSON arrays by POST, signed with `secret` (``whsec_BASE64``)."""

    name: str
    url: str
    secret: str = field(repr=False)
    tls: TlsFiles = TlsFiles()
    limits: Limits = POST_LIMITS

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be."""
        check_name(self.name)
        check_url(self.url)
        Signer.from_text(self.secret)


@dataclass(frozen=True, slots=True)
class HecTarget:
    """Splunk's HTTP Event Collector at `url`; where that has no path, the usual one is added."""

    name: str
    url: str
    format: HecFormat
    tls: TlsFiles = TlsFiles()
    limits: Limits = POST_LIMITS

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be."""
        check_name(self.name)
        check_url(self.url)

    @property
    def address(self) -> str:
        """The address that is posted to."""
        return self.url.rstrip("/") + PATH if urlsplit(self.url).path in ("", "/") else self.url


Target = SyslogTarget | WebhookTarget | HecTarget


def check_name(name: str) -> None:
    """Raise ValueError unless this can be a sink's name, which stands in metrics and file names."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            "name is 1 to 64 lower-case letters, digits, - and _, with a letter or digit at the ends"
        )


def check_host(setting: str, host: str) -> None:
    """Raise ValueError unless this is a host name or an IP address."""
    try:
        host_peer(host)
    except IdentityError as error:
        raise ValueError(f"{setting}: {error.detail}") from None


def check_port(setting: str, port: int) -> None:
    """Raise ValueError unless this is a port."""
    if not 1 <= port <= 65535:
        raise ValueError(f"{setting} is a number from 1 to 65535, not {port}")


def check_url(url: str) -> None:
    """Raise ValueError unless this is an https address without a user, a password or a fragment.

    The address itself is not repeated: its query may hold a secret.
    """
    what = "url is an https address, such as https://siem.example.com/events"
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > 2048:
        raise ValueError(what)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(what) from None
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"{what}; events and secrets are not sent in the clear")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError(f"{what}, without a user, a password or a fragment")
    if port is not None:
        check_port("url: its port", port)
    check_host("url", parts.hostname)

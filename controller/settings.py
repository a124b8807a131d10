"""The controller's settings: one TOML file, read into frozen values.

A settings file has the tables that are fields of `Settings`; each table is a dataclass here, and each of its
fields carries its own meaning, type, range and default. The reference page is generated from them.

Units: times are seconds, sizes are bytes, `0` means "no limit" only where the meaning says so.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from defender.contract import settings_reading
from defender.contract.setting_kinds import DOMAIN, PATH, choice, count, list_of, seconds, text, text_value
from defender.contract.settings_reading import (
    Changes,
    Reading,
    Setting,
    SettingsError,
    about,
    text_of,
    unreadable,
)

__all__ = [
    "AccountSettings",
    "AuditSettings",
    "ChannelSettings",
    "ControllerSettings",
    "EnrollmentSettings",
    "HttpsSettings",
    "RolloutSettings",
    "Settings",
    "SettingsError",
    "changed",
    "describe",
    "load_settings",
    "read_settings",
    "table_meaning",
]

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86400.0

_PORTS: Final = r"(?:[0-9.]{7,15}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}"
ADDRESS: Final = text("`IP:PORT`", _PORTS, "an IP address and a port, such as 0.0.0.0:8083 or [::]:8083")
NAMES: Final = list_of(lambda value, base: text_value(value), "host names and IP addresses")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """What this controller is, and where it keeps its files."""

    state: Path = field(
        metadata=about(
            PATH,
            "Directory of the controller's own files: the authority, the signing key, the database, the "
            "events. It is required, and made at the first start.",
            fixed=True,
        )
    )
    trust_domain: str = field(
        metadata=about(
            DOMAIN,
            "SPIFFE trust domain of the fleet. It is written into every certificate and cannot be changed "
            "later.",
            default="defender.fleet",
            fixed=True,
        )
    )
    names: tuple[str, ...] = field(
        metadata=about(
            NAMES,
            "Host names and IP addresses under which people and defenders reach this controller; they stand "
            "in its certificate. The short host name, `localhost` and the loopback addresses always do.",
            default=[],
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsSettings:
    """The REST API and the console, for people."""

    listen: str = field(metadata=about(ADDRESS, "Where HTTPS is served.", default="0.0.0.0:8083", fixed=True))
    body_bytes: int = field(
        metadata=about(
            count(16 * 1024, 64 * 1024 * 1024, "bytes"),
            "Largest request body; policies may be as large as a bundle allows.",
            default=4 * 1024 * 1024,
            fixed=True,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """Where defenders connect."""

    listen: str = field(
        metadata=about(ADDRESS, "Where the channel is served.", default="0.0.0.0:8084", fixed=True)
    )
    connections: int = field(
        metadata=about(
            count(1, 1_000_000), "Most defenders connected at one time.", default=20_000, fixed=True
        )
    )
    accepted_per_second: int = field(
        metadata=about(
            count(1, 100_000),
            "Connections that are taken in a second, before TLS; the others wait in the kernel. A fleet that "
            "comes back at once is served at this rate.",
            default=300,
            fixed=True,
        )
    )
    pending_per_address: int = field(
        metadata=about(
            count(1, 10_000),
            "Most connections of one address that have not said who they are.",
            default=64,
            fixed=True,
        )
    )
    handshake_timeout: float = field(
        metadata=about(seconds(0.1, 600), "Longest TLS handshake and greeting.", default=10.0, fixed=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentSettings:
    """How hosts join the fleet."""

    token_life: float = field(
        metadata=about(
            seconds(_MINUTE, 30 * _DAY),
            "How long a join token can be used, unless it says so.",
            default=_HOUR,
            fixed=True,
        )
    )
    approval: str = field(
        metadata=about(
            choice("automatic", "queue"),
            "`automatic`: a good token is enough, unless it says otherwise. `queue`: an operator approves "
            "each host as well.",
            default="automatic",
            fixed=True,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """How a policy goes out to the fleet."""

    first: int = field(
        metadata=about(count(1, 1000, "defenders"), "Size of the first wave.", default=1, fixed=True)
    )
    second_percent: int = field(
        metadata=about(
            count(1, 100, "percent"),
            "Size of the second wave; the third is everyone.",
            default=10,
            fixed=True,
        )
    )
    patience: float = field(
        metadata=about(
            seconds(1, _HOUR),
            "How long a wave waits for the answers of connected defenders before the rollout is halted.",
            default=60.0,
            fixed=True,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """The fleet's events."""

    retention_days: int = field(
        metadata=about(
            count(1, 3660, "days"), "How many days of events are kept, today included.", default=90
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSettings:
    """People and machines that may steer the fleet."""

    logins_per_user: int = field(
        metadata=about(count(1, 1000), "Attempts to sign in as one user in a minute.", default=5, fixed=True)
    )
    logins_per_address: int = field(
        metadata=about(
            count(1, 100_000), "Attempts to sign in from one address in a minute.", default=20, fixed=True
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, each with its value or default; `source` is the path of the file they came from."""

    controller: ControllerSettings
    https: HttpsSettings
    channel: ChannelSettings
    enrollment: EnrollmentSettings
    rollout: RolloutSettings
    audit: AuditSettings
    accounts: AccountSettings
    source: str


_TABLES: Final[Mapping[str, type[Any]]] = {
    "controller": ControllerSettings,
    "https": HttpsSettings,
    "channel": ChannelSettings,
    "enrollment": EnrollmentSettings,
    "rollout": RolloutSettings,
    "audit": AuditSettings,
    "accounts": AccountSettings,
}


def describe() -> tuple[Setting, ...]:
    """Every setting in the order of the file, for the reference page."""
    return settings_reading.describe(_TABLES)


def table_meaning(table: str) -> str:
    """One sentence about a table, for the reference page."""
    return (_TABLES[table].__doc__ or "").strip()


def changed(old: Settings, new: Settings) -> Changes:
    """Which settings differ, as ``table.key``; `source` is not a setting."""
    return settings_reading.changed(_TABLES, old, new)


def load_settings(path: str | Path, host_name: str | None = None) -> Settings:
    """Read a settings file; relative paths in it are relative to its directory.

    `host_name` stands in certificates; None asks the system for the short host name. Raises SettingsError
    with every problem found, also when the file cannot be read.
    """
    file = Path(path).absolute()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise unreadable(str(path), error) from None
    if host_name is None:
        host_name = socket.gethostname().partition(".")[0]
    return read_settings(text_of(data, str(path)), source=str(path), base=file.parent, host_name=host_name)


def read_settings(text: str, *, source: str, base: Path, host_name: str) -> Settings:
    """Settings from the text of a TOML file, without looking anything up; raises SettingsError."""
    reading = Reading(text, source, base, host_name, "controller")
    settings = Settings(**reading.tables(_TABLES), source=source)
    for table, key in (("https", "listen"), ("channel", "listen")):
        port = int(getattr(getattr(settings, table), key).rpartition(":")[2])
        if not 0 <= port <= 65535:
            reading.problem((table, key), f"{port} is no port: 0 to 65535")
    if settings.https.listen == settings.channel.listen:
        reading.problem(("channel", "listen"), "must not be the address of https.listen")
    reading.check()
    return settings

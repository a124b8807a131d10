"""The defender's settings: one TOML file, read into frozen values.

A settings file has the tables that are fields of `Settings`; each table is a dataclass here, and each of its
fields carries its own meaning, type, range and default. The reference page is generated from them
(`describe`), so the two cannot drift apart.

Everything is checked before anything starts: an unknown table or key, a wrong type, a value out of range and
two settings that contradict each other are all reported at once, each as ``FILE:LINE:COLUMN: key: what is
wrong``. A default is a setting like any other, so a field's value in `Settings` is never "unset".

Units: times are seconds, sizes are bytes, `0` means "no limit" only where the meaning says so.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from defender.contract import settings_reading
from defender.contract.setting_kinds import (
    DOMAIN,
    FILE_MODE,
    GROUP,
    MODES,
    NAME,
    PATH,
    PREFIX,
    choice,
    count,
    seconds,
)
from defender.contract.settings_reading import (
    Changes,
    Reading,
    Setting,
    SettingsError,
    about,
    text_of,
    unreadable,
)
from defender.contract.spool import MAX_SEGMENT_SIZE, SEGMENT_SIZE
from defender.setting_kinds import CONTROLLER, ENGINE, MAX_SOCKET_PATH, NAMES, TCP, UNIX

__all__ = [
    "AuditSettings",
    "Changes",
    "ControlSettings",
    "ControllerSettings",
    "DefenderSettings",
    "EngineSettings",
    "LimitSettings",
    "ListenSettings",
    "PolicySettings",
    "Setting",
    "Settings",
    "SettingsError",
    "TLSSettings",
    "changed",
    "describe",
    "load_settings",
    "read_settings",
    "table_meaning",
]


_DAY: Final = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenderSettings:
    """Who this defender is and where it keeps its files."""

    state: Path = field(
        metadata=about(PATH, "Directory of the defender's own files. It is required.", fixed=True)
    )
    name: str = field(
        metadata=about(NAME, "Name of this host in policies (`hosts:`) and in events.", host=True, fixed=True)
    )
    trust_domain: str = field(
        metadata=about(
            DOMAIN,
            "SPIFFE trust domain that user certificates must carry.",
            default="defender.fleet",
            fixed=True,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The Docker Engine behind the defender."""

    address: str = field(
        metadata=about(
            ENGINE,
            "Address of the Engine. Only unix sockets for now.",
            default="unix:///var/run/docker.sock",
            fixed=True,
        )
    )
    connect_timeout: float = field(
        metadata=about(
            seconds(0.1, 300),
            "Longest wait for a connection to the Engine; then the client gets 502.",
            default=5.0,
        )
    )
    response_timeout: float = field(
        metadata=about(
            seconds(0, _DAY),
            "Longest wait for the first byte of the answer to a call that reads; then the client gets "
            "504. `0`: no limit.",
            default=60.0,
        )
    )
    action_timeout: float = field(
        metadata=about(
            seconds(0, 7 * _DAY), "The same for a call that changes something. `0`: no limit.", default=3600.0
        )
    )
    pool: int = field(
        metadata=about(
            count(0, 4096), "Idle connections to the Engine that are kept for the next call.", default=128
        )
    )
    max_connections: int = field(
        metadata=about(
            count(1, 65536), "Most connections to the Engine at one time, streams included.", default=512
        )
    )

    @property
    def socket(self) -> str:
        """The absolute path of the Engine's unix socket."""
        return self.address.removeprefix("unix://")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSettings:
    """Where clients reach the defender."""

    mode: str = field(metadata=about(choice(*MODES), "Which listeners are open.", default="tcp"))
    tcp: tuple[str, ...] = field(
        metadata=about(
            TCP,
            "Addresses of the TLS listener; IPv6 in brackets; `fd://NAME` for a socket that systemd passes.",
            default=["0.0.0.0:9998"],
        )
    )
    unix: tuple[str, ...] = field(
        metadata=about(
            UNIX,
            "Paths of the unix listener, or `fd://NAME` for a socket that systemd passes.",
            under_state="docker.sock",
        )
    )
    unix_mode: int = field(metadata=about(FILE_MODE, "File mode of the unix sockets.", default="0660"))
    unix_group: str = field(
        metadata=about(
            GROUP, "Group that owns the unix sockets. Empty: the defender's own group.", default=""
        )
    )
    drain: float = field(
        metadata=about(
            seconds(0, 7 * _DAY),
            "How long open requests and streams of a closed listener may go on. `0`: until they end.",
            default=0.0,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings:
    """Certificates of the TLS listener, PEM files."""

    certificate: Path = field(
        metadata=about(
            PATH, "Server certificate, followed by its intermediates.", under_state="tls/server.pem"
        )
    )
    key: Path = field(metadata=about(PATH, "Private key of the certificate.", under_state="tls/server.key"))
    client_ca: Path = field(
        metadata=about(
            PATH,
            "The authority (intermediate) that signs user certificates; no other is accepted.",
            under_state="tls/client-ca.pem",
        )
    )
    minimum: str = field(
        metadata=about(choice("1.3", "1.2"), "Oldest TLS version that is spoken.", default="1.3")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """What is allowed."""

    file: Path = field(
        metadata=about(
            PATH, "The policy. It is read again when it changes.", under_state="policy.yaml", fixed=True
        )
    )
    prefix: str = field(
        metadata=about(PREFIX, "First words of every denial's message.", default="[Defender]")
    )
    locks: Path = field(
        metadata=about(
            PATH,
            "Locked users, groups and certificates; may be missing. It is read again when it changes.",
            under_state="locks.json",
            fixed=True,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """The spool: where events are written, and what happens when they cannot be."""

    directory: Path = field(
        metadata=about(
            PATH,
            "The spool, a directory of the defender's own (mode 0700).",
            under_state="audit",
            fixed=True,
        )
    )
    durability: str = field(
        metadata=about(
            choice("strict", "best_effort"),
            "What happens to a call that changes something when its event cannot be brought to disk: "
            "`strict` refuses it with 503, `best_effort` serves it and counts. A rule's own `durability` "
            "goes first.",
            default="strict",
        )
    )
    segment_bytes: int = field(
        metadata=about(
            count(64 * 1024, MAX_SEGMENT_SIZE, "bytes"),
            "Size of one file of the spool; it is allocated before it is needed, and one ahead.",
            default=SEGMENT_SIZE,
            fixed=True,
        )
    )
    max_bytes: int = field(
        metadata=about(
            count(256 * 1024, 2**40, "bytes"),
            "The most that the spool takes of the disk; at least four segments.",
            default=64 * SEGMENT_SIZE,
            fixed=True,
        )
    )
    when_full: str = field(
        metadata=about(
            choice("rotate", "refuse"),
            "What happens at `max_bytes`: `rotate` removes the oldest segment, and an event says which "
            "sequence numbers went with it; `refuse` removes nothing but what a controller has stored: the "
            "last 5 percent are for denials, locks and the administration, and then nothing is recorded "
            "until there is room.",
            default="rotate",
            fixed=True,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """The fleet's controller, if this defender belongs to a fleet."""

    address: str = field(
        metadata=about(
            CONTROLLER,
            "Where the controller serves its channel. Policy, trust and locks come from there then, "
            "`policy.file` and the files of `[tls]` are not looked at; local locks count as well. Empty: "
            "this defender stands alone.",
            default="",
            fixed=True,
        )
    )
    names: tuple[str, ...] = field(
        metadata=about(
            NAMES,
            "Host names and IP addresses under which users reach this host, for its certificate. The "
            "controller decides which of them it vouches for. Without any: the defender's name, the "
            "host's, and those of the loop.",
            default=[],
            fixed=True,
        )
    )
    longest_silence: float = field(
        metadata=about(
            seconds(0, 366 * _DAY),
            "When the last signed snapshot of the controller is older than this, calls that change something "
            "are denied until there is another one, and what the policy allows to look at goes on. The "
            "controller sends one every five minutes. `0`: the policy that is there holds for as long as it "
            "takes.",
            default=0.0,
            fixed=True,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """What becomes of an open stream (exec, attach, logs, events, a build) when what let it in is gone.

    `cut` ends it at once, `drain` gives it a limited time, `keep` lets it end by itself. A request that is
    not wholly with the Engine is always cut, and so is whatever a lock shuts out. Each is recorded: the end
    of a stream with its reason, and that one may go on (`stream_outlasts`).
    """

    on_expired: str = field(
        metadata=about(
            choice("cut", "drain", "keep"), "When the certificate of its user expires.", default="cut"
        )
    )
    on_denied: str = field(
        metadata=about(
            choice("cut", "drain", "keep"), "When a new policy does not allow it any more.", default="cut"
        )
    )
    drain: float = field(
        metadata=about(
            seconds(1, 7 * _DAY), "How long `drain` lets it go on in these two cases.", default=600.0
        )
    )
    on_stop: str = field(
        metadata=about(
            choice("cut", "drain"),
            "When the defender stops (SIGTERM). With `drain`, nobody new is let in meanwhile, and requests "
            "under way are answered.",
            default="drain",
        )
    )
    stop_drain: float = field(
        metadata=about(
            seconds(0.1, _DAY),
            "How long a stop waits for them. A service manager must wait longer than that.",
            default=10.0,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Bounds on what one client, or all of them, may hold."""

    connections: int = field(
        metadata=about(count(1, 1_000_000), "Most client connections at one time.", default=4096)
    )
    connections_per_user: int = field(
        metadata=about(
            count(0, 1_000_000),
            "Most client connections of one user at one time; the requests of further ones get 429. "
            "`0`: no limit.",
            default=1024,
        )
    )
    engine_connections_per_user: int = field(
        metadata=about(
            count(0, 65536),
            "Most calls and streams of one user that are with the Engine at one time; further ones get 429. "
            "`0`: no limit.",
            default=128,
        )
    )
    requests_per_second: int = field(
        metadata=about(
            count(0, 1_000_000),
            "Requests a second that one user may make in the long run; further ones get 429. `0`: no limit.",
            default=500,
        )
    )
    request_burst: int = field(
        metadata=about(
            count(1, 10_000_000),
            "Requests that one user may make at once, before `requests_per_second` counts.",
            default=2000,
        )
    )
    spool_share: int = field(
        metadata=about(
            count(0, 100, "percent"),
            "Percent of `audit.max_bytes` that one user's events may fill in an hour, a quarter of it at "
            "once; while it is used up, requests get 429. `0`: no limit.",
            default=10,
        )
    )
    head_bytes: int = field(
        metadata=about(
            count(1024, 1024 * 1024, "bytes"),
            "Largest request head (request line and headers).",
            default=65536,
        )
    )
    headers: int = field(metadata=about(count(8, 10_000), "Most headers in a request.", default=100))
    handshake_timeout: float = field(
        metadata=about(seconds(0.1, 600), "Longest TLS handshake.", default=10.0)
    )
    head_timeout: float = field(
        metadata=about(
            seconds(0.1, 600),
            "Longest time from the first byte of a request head to its last; also from the connection "
            "to the first byte of its first request.",
            default=10.0,
        )
    )
    idle_timeout: float = field(
        metadata=about(
            seconds(0.1, 7 * _DAY),
            "Longest pause between two requests of a connection. Open streams are not cut by it.",
            default=300.0,
        )
    )
    body_timeout: float = field(
        metadata=about(
            seconds(0.1, _DAY),
            "Longest pause of a client in the middle of a request body that the Engine waits for.",
            default=120.0,
        )
    )
    discard_bytes: int = field(
        metadata=about(
            count(0, 1024 * 1024, "bytes"),
            "Largest body that is read and dropped where an operation has none.",
            default=65536,
        )
    )
    linger: float = field(
        metadata=about(
            seconds(0, 600),
            "How long a closed connection still drops what its client sends, so that the answer is not lost.",
            default=5.0,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """The local control socket, for root and the defender's own user."""

    socket: Path = field(
        metadata=about(
            PATH, "Path of the control socket (mode 0600).", under_state="control.sock", fixed=True
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, each with its value or default; `source` is the path of the file they came from."""

    defender: DefenderSettings
    engine: EngineSettings
    listen: ListenSettings
    tls: TLSSettings
    policy: PolicySettings
    audit: AuditSettings
    controller: ControllerSettings
    streams: StreamSettings
    limits: LimitSettings
    control: ControlSettings
    source: str


_TABLES: Final[Mapping[str, type[Any]]] = {
    "defender": DefenderSettings,
    "engine": EngineSettings,
    "listen": ListenSettings,
    "tls": TLSSettings,
    "policy": PolicySettings,
    "audit": AuditSettings,
    "controller": ControllerSettings,
    "streams": StreamSettings,
    "limits": LimitSettings,
    "control": ControlSettings,
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

    `host_name` is the default of `defender.name`; None asks the system for the short host name. Raises
    SettingsError with every problem found, also when the file cannot be read.
    """
    file = Path(path).absolute()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise unreadable(str(path), error) from None
    text = text_of(data, str(path))
    if host_name is None:
        host_name = socket.gethostname().partition(".")[0]
    return read_settings(text, source=str(path), base=file.parent, host_name=host_name)


def read_settings(text: str, *, source: str, base: Path, host_name: str) -> Settings:
    """Settings from the text of a TOML file, without looking anything up.

    `base` is the directory that relative paths start from, `host_name` the default of `defender.name`. Raises
    SettingsError with every problem found.
    """
    reading = Reading(text, source, base, host_name, "defender")
    settings = Settings(**reading.tables(_TABLES), source=source)
    _contradictions(settings, reading.problem)
    reading.check()
    return settings


def _contradictions(settings: Settings, problem: Callable[[tuple[str, ...], str], None]) -> None:
    """Report settings that are right by themselves and wrong together."""
    listen = settings.listen
    for transport in ("tcp", "unix"):
        if transport in listen.mode.split("+") and not getattr(listen, transport):
            problem(("listen", transport), f"must not be empty in mode {listen.mode!r}")
    sockets = [(("listen", "unix"), path) for path in listen.unix]
    for key, path in [*sockets, (("control", "socket"), settings.control.socket)]:
        if str(path) == settings.engine.socket:
            problem(key, f"{str(path)!r} is the Engine's own socket (engine.address)")
        used = key[0] == "control" or "unix" in listen.mode
        if used and len(str(path).encode("utf-8", "surrogateescape")) > MAX_SOCKET_PATH:
            problem(
                key, f"{str(path)!r} is longer than {MAX_SOCKET_PATH} bytes, the most for a socket's path"
            )
    if str(settings.control.socket) in listen.unix:
        problem(("control", "socket"), "is also in listen.unix; they must differ")
    audit = settings.audit
    if audit.max_bytes < 4 * audit.segment_bytes:
        problem(
            ("audit", "max_bytes"),
            f"{audit.max_bytes} is less than four segments (audit.segment_bytes is {audit.segment_bytes})",
        )
    if settings.engine.pool > settings.engine.max_connections:
        problem(
            ("engine", "pool"),
            f"{settings.engine.pool} is more than engine.max_connections ({settings.engine.max_connections})",
        )

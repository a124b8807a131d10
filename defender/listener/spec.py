"""What the defender listens on, as values: addresses, modes, and which of them belong together.

Pure: a text becomes a frozen value here before anything opens. A `ListenSpec` holds the addresses of both
kinds whatever its mode, so that a switch of the mode needs no other input (`ListenSpec.in_mode`).

Texts that are read:

* TCP: ``0.0.0.0:9998``, ``[::]:9998``, ``tcp://127.0.0.1:9998``. IP literals only: a name could resolve to
  another address tomorrow. An IPv6 socket takes IPv6 only, so "both" is said by listing both.
* unix: an absolute path, or ``unix:///run/defender/docker.sock``.
* inherited: ``fd://NAME``, the sockets that systemd passes under that name (``FileDescriptorName=``).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

Mode = Literal["none", "unix", "tcp", "unix+tcp"]
Kind = Literal["tcp", "unix"]

MODES: Final[tuple[Mode, ...]] = ("none", "unix", "tcp", "unix+tcp")

MAX_PATH_BYTES: Final = 107
"""The longest path of a unix socket: ``sun_path`` has 108 bytes and ends in a NUL (unix(7))."""

_INHERITED_NAME: Final = re.compile(r"[A-Za-z0-9_.@-]{1,255}")


class SpecError(ValueError):
    """An address, a mode or a combination of them that cannot be listened on; the text is for a person."""


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """An IP literal in its canonical form, and a port; port 0 lets the kernel choose one."""

    host: str
    port: int

    @property
    def kind(self) -> Kind:
        return "tcp"

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    @property
    def is_wildcard(self) -> bool:
        return ipaddress.ip_address(self.host).is_unspecified

    def overlaps(self, other: TCPAddress) -> bool:
        """Tell whether the kernel would refuse to bind both at one time, although they are not the same."""
        return (
            self != other
            and self.port == other.port
            and self.port != 0
            and self.is_ipv6 == other.is_ipv6
            and (self.is_wildcard or other.is_wildcard)
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.is_ipv6 else self.host
        return f"tcp://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a socket; its mode and group are the spec's."""

    path: str

    @property
    def kind(self) -> Kind:
        return "unix"

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class Inherited:
    """The listening sockets passed by the service manager under one name, all of one kind."""

    name: str
    kind: Kind

    def __str__(self) -> str:
        return f"fd://{self.name}"


Address = TCPAddress | UnixAddress | Inherited


def parse_tcp(text: str) -> TCPAddress | Inherited:
    """Read a TCP address.

    Raises:
        SpecError: it is not ``IP:PORT``, ``tcp://IP:PORT`` or ``fd://NAME``.
    """
    if text.startswith("fd://"):
        return _inherited(text, "tcp")
    if text.startswith("unix://"):
        raise SpecError(f"{text!r} is a unix socket where a TCP address is expected")
    rest = text.removeprefix("tcp://")
    host, colon, port = rest.rpartition(":")
    if not colon:
        raise SpecError(f"{text!r} has no port; write IP:PORT, such as 0.0.0.0:9998")
    if re.fullmatch(r"[0-9]{1,5}", port) is None or int(port) > 65535:
        raise SpecError(f"{text!r}: {port!r} is not a port (0 to 65535)")
    bracketed = host.startswith("[") and host.endswith("]")
    literal = host[1:-1] if bracketed else host
    try:
        address = ipaddress.ip_address(literal)
    except ValueError:
        if not host:
            hint = "name the interface: 0.0.0.0 for all of IPv4, [::] for all of IPv6"
        else:
            hint = "a host name is not looked up; write an IP address such as 0.0.0.0 or [::]"
        raise SpecError(f"{text!r}: {host!r} is not an IP address; {hint}") from None
    if address.version == 6 and not bracketed:
        raise SpecError(f"{text!r}: write an IPv6 address in brackets, such as [{literal}]:{port}")
    if address.version == 4 and bracketed:
        raise SpecError(f"{text!r}: an IPv4 address stands without brackets")
    if address.version == 6 and (address.ipv4_mapped is not None or address.scope_id is not None):
        raise SpecError(f"{text!r}: write IPv4 addresses as IPv4, and no zone after `%`")
    return TCPAddress(str(address), int(port))


def parse_unix(text: str) -> UnixAddress | Inherited:
    """Read the address of a unix socket.

    Raises:
        SpecError: it is not an absolute path that fits a socket address, ``unix://PATH`` or ``fd://NAME``.
    """
    if text.startswith("fd://"):
        return _inherited(text, "unix")
    if text.startswith("tcp://"):
        raise SpecError(f"{text!r} is a TCP address where a unix socket is expected")
    path = text.removeprefix("unix://")
    if not path.startswith("/"):
        raise SpecError(f"{text!r} is not an absolute path, such as /run/defender/docker.sock")
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise SpecError(f"{text!r} contains a control character")
    # PurePosixPath would keep "..": two spellings of one path must not be two listeners.
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or path.endswith("/"):
        raise SpecError(f"{text!r} is not the plain path of a file (no `..`, no `/` at the end)")
    path = "/" + "/".join(parts)
    size = len(path.encode("utf-8", "surrogateescape"))
    if size > MAX_PATH_BYTES:
        raise SpecError(f"{text!r} has {size} bytes; a socket's path has at most {MAX_PATH_BYTES}")
    return UnixAddress(path)


def _inherited(text: str, kind: Kind) -> Inherited:
    name = text.removeprefix("fd://")
    if _INHERITED_NAME.fullmatch(name) is None:
        raise SpecError(f"{text!r}: write fd://NAME, the FileDescriptorName= of the systemd socket")
    return Inherited(name, kind)


def parse_mode(text: str) -> Mode:
    """Read a mode.

    Raises:
        SpecError: it is none of `MODES`.
    """
    for mode in MODES:
        if text == mode:
            return mode
    raise SpecError(f"{text!r} is not a listener mode; choose one of {', '.join(MODES)}")


def mode_of(kinds: Iterable[Kind]) -> Mode:
    """Return the mode in which listeners of exactly these kinds serve."""
    found = set(kinds)
    if found == {"tcp", "unix"}:
        return "unix+tcp"
    return found.pop() if found else "none"


@dataclass(frozen=True, slots=True)
class ListenSpec:
    """Everything the listeners should be.

    `tcp` and `unix` hold the addresses for the modes that use them, also while the mode does not;
    `addresses` are those of the mode. `unix_mode` are permission bits; `unix_group` is a group's name or
    number, empty for the defender's own.

    Raises:
        SpecError: the mode needs an address that is not given, an address is listed twice, two addresses
            cannot be bound together, or the permission bits make no sense.
    """

    mode: Mode
    tcp: tuple[TCPAddress | Inherited, ...] = ()
    unix: tuple[UnixAddress | Inherited, ...] = ()
    unix_mode: int = 0o660
    unix_group: str = ""

    def __post_init__(self) -> None:
        if "tcp" in self.mode and not self.tcp:
            raise SpecError(f"mode {self.mode!r} needs a TCP address, and none is configured")
        if "unix" in self.mode and not self.unix:
            raise SpecError(f"mode {self.mode!r} needs the path of a unix socket, and none is configured")
        listed: list[Address] = [*self.tcp, *self.unix]
        for index, address in enumerate(listed):
            for earlier in listed[:index]:
                if str(address) == str(earlier):
                    raise SpecError(f"{address} is listed twice")
                if clash(address, earlier):
                    raise SpecError(f"{address} and {earlier} overlap; keep one of them")
        if self.unix_mode & ~0o777 or self.unix_mode & 0o600 != 0o600:
            raise SpecError(
                f"unix socket mode {self.unix_mode:04o}: the owner needs read and write, such as 0660"
            )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of the mode, TCP first."""
        tcp: tuple[Address, ...] = self.tcp if "tcp" in self.mode else ()
        unix: tuple[Address, ...] = self.unix if "unix" in self.mode else ()
        return tcp + unix

    @property
    def access(self) -> tuple[int, str]:
        """Mode and group of the unix sockets."""
        return self.unix_mode, self.unix_group

    def in_mode(self, mode: Mode) -> ListenSpec:
        """Return the same addresses in another mode; raises SpecError where one is missing."""
        return replace(self, mode=mode)


def clash(one: Address, other: Address) -> bool:
    """Tell whether two different addresses cannot be bound at one time."""
    return isinstance(one, TCPAddress) and isinstance(other, TCPAddress) and one.overlaps(other)


def read_spec(
    mode: str, tcp: Iterable[str], unix: Iterable[str], *, unix_mode: int = 0o660, unix_group: str = ""
) -> ListenSpec:
    """Build a spec from the texts of the settings; raises SpecError."""
    return ListenSpec(
        parse_mode(mode),
        tuple(parse_tcp(text) for text in tcp),
        tuple(parse_unix(text) for text in unix),
        unix_mode,
        unix_group,
    )


def read_hosts(
    hosts: Iterable[str],
    inherited: Mapping[str, Kind],
    *,
    unix_mode: int = 0o660,
    unix_group: str = "",
) -> ListenSpec:
    """Build a spec from a list as ``dockerd -H`` takes it; the kinds listed make the mode.

    Args:
        hosts: ``tcp://IP:PORT``, ``unix://PATH`` or ``fd://NAME``; every one names its scheme.
        inherited: the kind of each socket that the service manager passed, by name.

    Raises:
        SpecError: a text is no such address, or no socket of that name was passed.
    """
    tcp: list[TCPAddress | Inherited] = []
    unix: list[UnixAddress | Inherited] = []
    for text in hosts:
        scheme = text.partition("://")[0] if "://" in text else ""
        if scheme == "fd":
            name = text.removeprefix("fd://")
            if name not in inherited:
                known = ", ".join(sorted(inherited)) or "none"
                raise SpecError(f"{text!r}: no socket of that name was passed by systemd (passed: {known})")
            scheme = inherited[name]
        if scheme == "tcp":
            tcp.append(parse_tcp(text))
        elif scheme == "unix":
            unix.append(parse_unix(text))
        else:
            raise SpecError(f"{text!r}: begin with tcp://, unix:// or fd://")
    kinds: list[Kind] = [address.kind for address in [*tcp, *unix]]
    return ListenSpec(mode_of(kinds), tuple(tcp), tuple(unix), unix_mode, unix_group)


@dataclass(frozen=True, slots=True)
class DesiredMode:
    """A mode chosen at run time, and the mode of the settings file that it overrides."""

    mode: Mode
    over: Mode


def reconcile(configured: Mode, desired: DesiredMode | None) -> Mode:
    """Return the mode to serve in after a start or a reload.

    A mode chosen at run time wins over the settings file, as long as the file still says what it said then:
    editing the mode there is the later wish.
    """
    return desired.mode if desired is not None and desired.over == configured else configured

"""Names of hosts: those that a server certificate carries, and those of this host.

Nothing here asks the network: a name service that does not answer must not hold up a start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

Host = str | IPv4Address | IPv6Address

# RFC 1123 labels, and the underscore that container names have and every client accepts.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_FIB_LOCAL = re.compile(r"^\s+\|-- (\S+)\n\s+/32 host LOCAL$", re.MULTILINE)


def server_names(names: Iterable[str]) -> tuple[Host, ...]:
    """Return host names in lower case and IP addresses, each once, in the order given.

    Raises ValueError, fit for people, for what no client would connect to: wild cards, the unspecified
    address, names outside the host name alphabet.
    """
    hosts: dict[Host, None] = {}
    for name in names:
        hosts[_server_name(name)] = None
    return tuple(hosts)


def _server_name(name: str) -> Host:
    text = name.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        address = ip_address(text)
    except ValueError:
        pass
    else:
        if isinstance(address, IPv6Address) and address.scope_id:
            raise ValueError(f"{name!r}: an address in a certificate has no zone; leave out the %")
        if address.is_unspecified or address.is_multicast:
            raise ValueError(f"{name!r} is not an address that a client can connect to; name the host's own")
        return address
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        hint = "" if host.isascii() else "; write an international name in its xn-- form"
        raise ValueError(f"{name!r} is neither a host name nor an IP address{hint}")
    return host


def short_host_name() -> str:
    """Return this host's name up to the first dot, as the defender calls itself by default."""
    return os.uname().nodename.split(".")[0] or "localhost"


def local_names(proc: Path = Path("/proc")) -> tuple[str, ...]:
    """Return this host's names and addresses: the host name, its first label, localhost, every local address.

    Read from the kernel. Link-local addresses are left out: clients need a zone for them, and a certificate
    cannot name one.
    """
    node = os.uname().nodename.lower()
    candidates = [node, node.split(".")[0], "localhost", "127.0.0.1", "::1"]
    candidates += _local_addresses(proc)
    names: dict[str, None] = {}
    for candidate in candidates:
        try:
            names[str(_server_name(candidate))] = None
        except ValueError:
            continue  # a host name that no certificate can carry: clients use another one
    return tuple(names)


def _local_addresses(proc: Path) -> list[str]:
    found: list[IPv4Address | IPv6Address] = []
    for text in _FIB_LOCAL.findall(_read(proc / "net/fib_trie")):
        found.append(IPv4Address(text))
    for line in _read(proc / "net/if_inet6").splitlines():
        found.append(IPv6Address(bytes.fromhex(line.split()[0])))
    usable = {address for address in found if not (address.is_link_local or address.is_loopback)}
    return [str(address) for address in sorted(usable, key=lambda address: (address.version, int(address)))]


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""

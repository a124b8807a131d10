"""Which host names and addresses a defender's certificate towards users may carry.

A defender says under which names users reach it. What it says decides whom it could pose as, so it is not
taken on trust: without a word of an administrator a host gets its own name, names that begin with it, the
address that it came from, and those of the loop (which nobody else connects to). Whatever else it needs
stands in the join token: globs for names, networks for addresses. What another one has it gets only if the
token says so letter by letter: a defender on the controller's own host has the controller's name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_network

from controller.pki.names import Host, server_names
from controller.pki.tokens import plain


def allowed_hosts(
    name: str,
    requested: Iterable[str],
    *,
    source: IPv4Address | IPv6Address | None,
    patterns: Collection[str] = (),
    taken: Collection[str] = (),
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names that a certificate may carry, and those that were asked for in vain.

    ``name``: the defender's; ``source``: where its request came from; ``taken``: names and addresses of
    other defenders and of the controllers, in the form of `server_names`.
    """
    carried: dict[str, None] = {}
    left_out: list[str] = []
    for text in requested:
        try:
            (host,) = server_names([text])
        except ValueError:
            left_out.append(text)
            continue
        if _is_allowed(host, name.lower(), source, patterns, taken):
            carried[str(host)] = None
        else:
            left_out.append(text)
    return tuple(carried), tuple(left_out)


def _is_allowed(
    host: Host,
    name: str,
    source: IPv4Address | IPv6Address | None,
    patterns: Collection[str],
    taken: Collection[str],
) -> bool:
    if isinstance(host, str):
        if host == "localhost":
            return True
        if host in taken:
            return host in patterns
        return (
            host == name or host.startswith(f"{name}.") or any(fnmatchcase(host, each) for each in patterns)
        )
    if host.is_loopback:
        return True
    if str(host) in taken:
        return str(host) in patterns
    return (source is not None and host == plain(source)) or any(_contains(each, host) for each in patterns)


def _contains(pattern: str, address: IPv4Address | IPv6Address) -> bool:
    try:
        return address in ip_network(pattern)
    except ValueError:
        return False

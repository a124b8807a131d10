"""What this host says of itself, and gives to this process."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from twisted.logger import Logger

_OWN_DESCRIPTORS = 64
"""What is needed beside connections: listeners, the journal and its rotation, files that are read again."""

_log = Logger()


def boot_id() -> str:
    """The id of the kernel's boot (random(4)), "" where it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def own_names(defender: str) -> tuple[str, ...]:
    """What users may call this host where nobody has said it: the defender's name, the host's own, and
    what every host calls itself."""
    return tuple(dict.fromkeys((defender, os.uname().nodename, "localhost", "127.0.0.1", "::1")))


def room_for(clients: int, engine: int) -> int:
    """How many of `clients` connections the process has descriptors for, beside `engine` to the Engine.

    Raises the soft limit to the hard one. Without a reserve, whoever may connect could keep the defender from
    the Engine, from its record and from the locks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        hard = soft
    if hard == resource.RLIM_INFINITY or hard >= clients + engine + _OWN_DESCRIPTORS:
        return clients
    room = max(2, hard - _OWN_DESCRIPTORS) * clients // (clients + engine)
    _log.warn(
        "room for {room} of {clients} connections (limits.connections): the process may have {limit} open "
        "files; raise LimitNOFILE= or ulimit -n",
        room=room,
        clients=clients,
        limit=hard,
    )
    return max(1, room)

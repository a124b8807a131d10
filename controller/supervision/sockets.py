"""Listening sockets that systemd passes (sd_listen_fds(3)): the controller finds each by its address.

With them connections wait in the kernel while the controller restarts. A port that nobody passed is opened
here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from twisted.internet.error import CannotListenError

from defender.contract.errors import ContractError

_FIRST: Final = 3
_MOST: Final = 64


class PassedSocketError(ContractError):
    """What systemd passed cannot be used, or an address cannot be listened on; for people."""


@dataclass(slots=True)
class PassedSockets:
    """The sockets by address, ``IP:PORT`` with IPv6 in brackets. They are never closed here."""

    sockets: dict[str, socket.socket] = field(default_factory=dict)

    @classmethod
    def adopt(cls, environ: MutableMapping[str, str], pid: int, first: int = _FIRST) -> PassedSockets:
        """Take over what the variables ``LISTEN_*`` name, and remove them so that no child does it again.

        Raises:
            PassedSocketError: a variable is damaged, or a descriptor is not a listening TCP socket.
        """
        wanted, count, _names = (environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
        if wanted != str(pid):
            return cls()
        if not (count.isascii() and count.isdigit()) or len(count) > 3 or int(count) > _MOST:
            raise PassedSocketError(f"LISTEN_FDS={count!r} is not a number of sockets")
        found = cls()
        for number in range(first, first + int(count)):
            found._add(number)
        return found

    def _add(self, number: int) -> None:
        try:
            os.set_inheritable(number, False)
            passed = socket.socket(fileno=number)
        except OSError as error:
            raise PassedSocketError(f"passed descriptor {number} is no socket: {error.strerror}") from None
        families = (socket.AF_INET, socket.AF_INET6)
        listening = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if passed.family not in families or passed.type != socket.SOCK_STREAM or not listening:
            passed.detach()  # it is its owner's to close, not the garbage collector's
            raise PassedSocketError(f"passed descriptor {number} is not a listening TCP socket")
        passed.setblocking(False)
        host, port = passed.getsockname()[:2]
        self.sockets[f"[{host}]:{port}" if ":" in host else f"{host}:{port}"] = passed

    def listen(self, reactor: Any, address: str, factory: Any, backlog: int = 1024) -> Any:
        """Listen on ``IP:PORT``, on the socket that was passed for it if there is one; return the port.

        Raises:
            PassedSocketError: the address cannot be listened on; the text says why.
        """
        passed = self.sockets.get(address)
        if passed is not None:
            # The reactor takes a duplicate of the descriptor.
            return reactor.adoptStreamPort(passed.fileno(), passed.family, factory)
        host, _, port = address.rpartition(":")
        try:
            return reactor.listenTCP(int(port), factory, backlog=backlog, interface=host.strip("[]"))
        except CannotListenError as error:
            why = getattr(error.socketError, "strerror", None) or error.socketError
            raise PassedSocketError(f"cannot listen on {address}: {why}") from None

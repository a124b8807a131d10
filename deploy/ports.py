"""Whether a port can be had."""

from __future__ import annotations

import errno
import socket


def why_taken(port: int) -> str:
    """Return why nobody can listen there, with {} for the variable's name; an empty text if somebody can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - where it will listen
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "another program listens there; choose another {}"
            return error.strerror or str(error)
    return ""

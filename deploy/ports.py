"""Whether a port can be had."""

from __future__ import annotations

import errno
import socket

from deploy.choices import SetupError


def check_port(variable: str, port: int) -> None:
    """Raise SetupError, naming the variable, if nobody can listen on its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - where it will listen
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = f"another program listens there; choose another {variable}"
            else:
                why = error.strerror or str(error)
            raise SetupError(f"{variable}={port}: {why}") from None

"""The installer of defenders, as a host gets it that is to join: with this controller's address in it.

Everybody may have it. It holds no secret, and a host that asks has none to sign in with.
"""

from __future__ import annotations

import re
from hashlib import sha256
from importlib.resources import files
from typing import Final

from controller.api.routes import Answer, Call, Route

_EMPTY: Final = b"\nFLEET=''\n"
_ADDRESS: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
"""What the script itself takes for an address; nothing in it means anything to a shell."""


def installer(address: str) -> bytes:
    """The script for a fleet whose defenders are served at `address` (HOST:PORT); "" leaves that open."""
    script = (files("controller") / "install" / "defender.sh").read_bytes()
    if not _ADDRESS.fullmatch(address):
        return script
    assert script.count(_EMPTY) == 1, "the installer has one place for the address"
    return script.replace(_EMPTY, b"\nFLEET='%b'\n" % address.encode("ascii"))


async def download(call: Call) -> Answer:
    """The script; its ETag is the SHA-256 of what is sent."""
    script = installer(call.ports.health.channel())
    return Answer(text=script, etag=sha256(script).hexdigest())


ROUTES: Final = (
    Route(
        "GET",
        "/install/defender.sh",
        "download_installer",
        "The installer of defenders, with this controller's address; the ETag is its SHA-256.",
        "",
        download,
        media=("text/x-shellscript",),
    ),
)

"""Where `defenderctl` is signed in: the controller, the authority it is known by, and the token.

One file, `login.json`, in `$DEFENDERCTL_CONFIG`, `$XDG_CONFIG_HOME/defenderctl` or `~/.config/defenderctl`.
It is readable by its owner only; one that others can read is refused rather than used, because its token may
be known by now.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from defender.contract.errors import one_line

DEFAULT_PORT: Final = 8083
MAX_FILE: Final = 1024 * 1024

_FIELDS: Final = ("controller", "authority", "user", "token", "expires_at")


class LoginError(Exception):
    """There is no usable sign-in; the text is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Login:
    """A sign-in. `controller` is `https://HOST:PORT`, `authority` the fleet's certificates in PEM.

    `expires_at` is when the token ends, as the controller said it, "" if it did not.
    """

    controller: str
    authority: str
    user: str = ""
    token: str = field(default="", repr=False)
    expires_at: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the token has ended by this machine's clock."""
        if not self.expires_at:
            return False
        return datetime.fromisoformat(self.expires_at) <= datetime.now(UTC)


def controller_address(text: str) -> str:
    """`HOST`, `HOST:PORT` or `https://HOST[:PORT]` as `https://HOST:PORT`; raises LoginError."""
    whole = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(whole)
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise _no_address(text) from None
    host = parts.hostname
    if parts.scheme != "https" or not host or parts.username or parts.query or parts.fragment:
        raise _no_address(text)
    if parts.path not in ("", "/") or not host.isascii() or not host.isprintable() or " " in host:
        raise _no_address(text)
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _no_address(text: str) -> LoginError:
    # What stands before an @ may be a password.
    shown = one_line(text.rpartition("@")[2])[:100]
    return LoginError(f"{shown!r} is no address of a controller; write HOST, HOST:PORT or https://HOST:PORT")


def config_folder(environment: Mapping[str, str]) -> Path:
    """The folder of `login.json`."""
    if own := environment.get("DEFENDERCTL_CONFIG"):
        return Path(own)
    base = environment.get("XDG_CONFIG_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "defenderctl"
    return Path(environment.get("HOME") or Path.home()) / ".config" / "defenderctl"


def login_file(environment: Mapping[str, str]) -> Path:
    """The file of the sign-in."""
    return config_folder(environment) / "login.json"


def read_login(path: Path) -> Login:
    """The sign-in that is kept in a file.

    Raises:
        LoginError: there is none, others can read or change it, or it is not what was written.
    """
    try:
        # Not through a link that somebody else may have laid, and without waiting for a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise LoginError("not signed in; run: defenderctl login HOST --ca FILE") from None
    except OSError as error:
        raise LoginError(f"{path}: {error.strerror or error}") from None
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise LoginError(f"{path} is not a file of yours; remove it and sign in again")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise LoginError(
                f"{path} can be read by others, and so can its token; remove it, and sign in again: "
                "defenderctl login HOST --ca FILE"
            )
        data = stream.read(MAX_FILE + 1)
    return _parsed(path, data)


def _parsed(path: Path, data: bytes) -> Login:
    try:
        document: Any = json.loads(data) if len(data) <= MAX_FILE else None
        if not isinstance(document, dict) or set(document) != set(_FIELDS):
            raise ValueError
        if not all(isinstance(value, str) for value in document.values()):
            raise ValueError
        if document["expires_at"] and datetime.fromisoformat(document["expires_at"]).tzinfo is None:
            raise ValueError
        document["controller"] = controller_address(document["controller"])
        return Login(**document)
    except (ValueError, RecursionError, LoginError):
        raise LoginError(f"{path} is damaged; remove it and sign in again") from None


def write_login(path: Path, login: Login) -> None:
    """Keep a sign-in, whole or not at all, for its owner only; raises LoginError."""
    document = {name: getattr(login, name) for name in _FIELDS}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made with mode 0600.
        descriptor, name = tempfile.mkstemp(prefix=".login-", dir=path.parent)
        try:
            with open(descriptor, "w", encoding="utf-8") as stream:
                json.dump(document, stream, indent=2)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise LoginError(f"cannot keep the sign-in in {path}: {error.strerror or error}") from None


def forget_login(path: Path) -> bool:
    """Remove the sign-in; False if there was none. Raises LoginError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LoginError(f"cannot remove {path}: {error.strerror or error}") from None
    return True

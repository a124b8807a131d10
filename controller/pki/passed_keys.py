"""Keys that the service manager hands over instead of files in the state directory.

systemd decrypts what a unit names with ``LoadCredentialEncrypted=`` into a directory that only the service
can enter, and names that directory in $CREDENTIALS_DIRECTORY (systemd.exec(5), "Credentials"). A key of the
file ``FOLDER/NAME.key`` is the credential ``FOLDER.NAME.key`` there, such as ``signing.bundle.key``.
"""

from __future__ import annotations

import os
from pathlib import Path


def passed_key(path: Path) -> Path | None:
    """The file of the credential that stands for this one, None if there is none."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    passed = Path(folder) / f"{path.parent.name}.{path.name}"
    return passed if passed.is_file() else None


def is_passed(path: Path) -> bool:
    """Whether this is a credential: who may read it is the service manager's business, whatever its mode."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and path.parent == Path(str(folder))


def key_files(path: Path) -> tuple[Path, ...]:
    """Where the key of this file may be, the credential first; empty if it is nowhere."""
    passed = passed_key(path)
    found = (passed,) if passed is not None else ()
    return (*found, path) if path.exists() else found

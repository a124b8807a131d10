"""Files that hold keys and certificates: private, and either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700


def make_private_directory(path: Path) -> None:
    """Make the directory with mode 0700, and its parents; one that is there keeps its mode.

    Its mode may be shared on purpose, and it may not be ours to change: ``--out /tmp`` must not close /tmp.
    Raises OSError.
    """
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
    path.chmod(PRIVATE_DIRECTORY)


def write_private(path: Path, content: bytes) -> None:
    """Put the content at the path with mode 0600, durably and at once; raises OSError.

    A reader sees the old file or the new one, never a part, and never a moment with a wider mode. A symbolic
    link at the path is replaced, not followed.
    """
    write_all_private([(path, content)])


def write_all_private(contents: Iterable[tuple[Path, bytes]]) -> None:
    """Put several files in place as `write_private` does, all of them written before the first is renamed.

    A full disk therefore leaves the old set as it was. Raises OSError.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for path, content in contents:
            staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE_FILE)
            staged.append((staging, path))
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), PRIVATE_FILE)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        while staged:
            staging, path = staged[0]
            os.rename(staging, path)
            staged.pop(0)
            sync_directory(path.parent)
    finally:
        for staging, _ in staged:
            staging.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

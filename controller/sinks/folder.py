"""Reads the folder of sinks: ``NAME.toml`` describes the sink NAME."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from controller.sinks.description import Files, SinkFileError, describe_sink
from controller.sinks.targets import Target
from defender.contract.errors import Problem

MAX_FILE: Final = 1024 * 1024
MAX_SINKS: Final = 32


def read_sinks(folder: Path) -> list[Target]:
    """Return the sinks that a folder describes, by name; none if there is no such folder. Blocks.

    Raises SinkFileError for the first file that cannot be used, with everything that is wrong with it.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SinkFileError(str(folder), (Problem(0, 0, "", _why(error)),)) from None
    if len(paths) > MAX_SINKS:
        raise SinkFileError(str(folder), (Problem(0, 0, "", f"there are more than {MAX_SINKS} sinks"),))
    return [_read(path) for path in paths]


def _read(path: Path) -> Target:
    files = Files(
        lambda name: _content(path.parent / name, secret=False),
        lambda name: _content(path.parent / name, secret=True),
    )
    try:
        text = _content(path, secret=False).decode("utf-8")
    except UnicodeDecodeError:
        raise SinkFileError(str(path), (Problem(0, 0, "", "this is not UTF-8"),)) from None
    except ValueError as error:
        raise SinkFileError(str(path), (Problem(0, 0, "", str(error)),)) from None
    return describe_sink(path.stem, text, str(path), files)


def _content(path: Path, *, secret: bool) -> bytes:
    """A file's content; raises ValueError for what is no file, too long, or a secret that all may read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ValueError(f"{path}: {_why(error)}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: this is not a file")
        if secret and status.st_mode & 0o007:
            raise ValueError(f"{path}: everybody may read this secret; run chmod o= {path}")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path}: {_why(error)}") from None
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE:
        raise ValueError(f"{path}: it is longer than {MAX_FILE} octets")
    return content


def _why(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()

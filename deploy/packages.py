"""System packages: found missing by their programs, installed on Debian and Ubuntu as root, else named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.choices import SetupError
from deploy.engine import SYSTEM_PATH
from deploy.output import say


def missing(programs: Mapping[str, str]) -> dict[str, str]:
    """Return what this host lacks of a table of program, or absolute path of a file, to Debian package."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"

    def there(name: str) -> bool:
        return os.path.exists(name) if name.startswith("/") else shutil.which(name, path=path) is not None

    return {name: package for name, package in programs.items() if not there(name)}


def is_debian_like(release: Path = Path("/etc/os-release")) -> bool:
    """Tell whether this is Debian, Ubuntu or a child of theirs (os-release(5): ID, ID_LIKE)."""
    try:
        lines = release.read_text("utf-8").splitlines()
    except OSError:
        return False
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    names = f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".replace('"', "").split()
    return bool({"debian", "ubuntu"} & set(names)) and shutil.which("apt-get", path=SYSTEM_PATH) is not None


def may_install() -> bool:
    """Tell whether packages can be installed from here."""
    return os.geteuid() == 0 and is_debian_like()


def install(packages: list[str]) -> None:
    """Install Debian packages without asking anything.

    Raises:
        SetupError: with the end of what apt-get wrote.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": SYSTEM_PATH}
    command = ["apt-get", "-qq", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]

    def apt(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            check=False,
        )

    updated = apt("update")
    installed = apt("install", "--no-install-recommends", *packages)
    if installed.returncode:
        tail = "\n".join((updated.stdout + installed.stdout).strip().splitlines()[-8:])
        raise SetupError(f"apt-get could not install {' '.join(packages)}:\n{tail}")


def require(programs: Mapping[str, str], purpose: str) -> None:
    """Have every program, by installing packages where that is possible.

    Args:
        programs: program to Debian package.
        purpose: for the message: what they are needed for.

    Raises:
        SetupError: naming what is missing and cannot be provided.
    """
    lacking = missing(programs)
    if not lacking:
        return
    packages = sorted(set(lacking.values()))
    if not may_install():
        raise SetupError(
            f"{purpose} needs {', '.join(sorted(lacking))}, which this host lacks; "
            f"install them (packages on Debian and Ubuntu: {' '.join(packages)})"
        )
    say(f"{purpose} needs {', '.join(sorted(lacking))}: installing {' '.join(packages)}")
    install(packages)
    still = missing(lacking)
    if still:
        raise SetupError(f"{purpose} needs {', '.join(sorted(still))}, and no package brought it")

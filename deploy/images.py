"""Small images made on the spot from busybox-static: no registry is asked."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import urllib.parse
from pathlib import Path

from deploy.docker_api import ApiError, call, connection

HELLO = "defender/hello:latest"
BUSYBOX = "busybox:latest"

_USERS = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
_GROUPS = """\
root:x:0:
daemon:x:1:
www-data:x:33:
nogroup:x:65534:
"""
_GREETING = "Hello: this container ran through a defender.\n"


def busybox() -> Path:
    """Return the path of a statically linked busybox.

    Raises:
        FileNotFoundError: saying which package has one.
    """
    found = shutil.which("busybox", path="/bin:/usr/bin:/sbin:/usr/sbin:/usr/local/bin")
    if found is None:
        raise FileNotFoundError("there is no busybox to make an image of: install the package busybox-static")
    return Path(found)


def root_filesystem(label: str) -> bytes:
    """Return a tar of a root file system: busybox, one hard link for each applet, users and groups.

    Args:
        label: written to /etc/image, so that images with different labels have different ids.
    """
    program = busybox()
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, content: bytes = b"", **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))

        for name in ("bin", "dev", "etc", "proc", "root", "sys", "usr", "usr/bin", "var", "var/www"):
            add(name, type=tarfile.DIRTYPE, mode=0o755)
        add("tmp", type=tarfile.DIRTYPE, mode=0o1777)
        add("bin/busybox", program.read_bytes(), mode=0o755)
        for applet in applets:
            if applet != "busybox":
                add(f"bin/{applet}", type=tarfile.LNKTYPE, linkname="bin/busybox", mode=0o755)
        add("etc/passwd", _USERS.encode(), mode=0o644)
        add("etc/group", _GROUPS.encode(), mode=0o644)
        add("etc/greeting", _GREETING.encode(), mode=0o644)
        add("etc/image", label.encode() + b"\n", mode=0o644)
    return buffer.getvalue()


def load(address: str, name: str, *changes: str) -> None:
    """Import a root file system as an image of this name, unless the Engine has it.

    Args:
        address: of the Engine, as in DOCKER_HOST.
        name: ``REPOSITORY:TAG``.
        changes: Dockerfile instructions such as ``CMD ["sh"]``.

    Raises:
        ApiError: with the Engine's message.
    """
    try:
        call(connection(address), "GET", f"/images/{name}/json")
        return
    except ApiError:
        pass
    repository, _, tag = name.rpartition(":")
    query = [
        ("fromSrc", "-"),
        ("repo", repository),
        ("tag", tag),
        *(("changes", change) for change in changes),
    ]
    answer = call(
        connection(address, timeout=120),
        "POST",
        "/images/create?" + urllib.parse.urlencode(query),
        root_filesystem(name),
        **{"Content-Type": "application/x-tar"},
    )
    if "errorDetail" in str(answer):
        raise ApiError(str(answer).strip())


def load_small_images(address: str) -> None:
    """Make `BUSYBOX`, whose command is a shell, and `HELLO`, which prints a greeting and ends."""
    path = "ENV PATH=/bin:/usr/bin"
    load(address, BUSYBOX, path, 'CMD ["sh"]')
    load(address, HELLO, path, 'CMD ["cat", "/etc/greeting"]')

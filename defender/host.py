"""What this host says of itself."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """The id of the kernel's boot (random(4)), "" where it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""

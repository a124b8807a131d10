"""Where a local process runs: reading ``/proc/PID/cgroup``.

Pure. A process inside a container is not the user that its uid names on the host, so a unix peer there is
nobody. Engines put each container into a control group of its own, whose path names it (cgroups(7), and the
path conventions of runc, systemd, Docker, containerd, CRI-O, Podman, Kubernetes, LXC and systemd-nspawn).
"""

from __future__ import annotations

import re
from typing import Final

_ID: Final = r"[0-9a-f]{64}"

_CONTAINER: Final = re.compile(
    "|".join(
        [
            # 64 hexadecimal digits are a container's or a pod sandbox's whole name, whatever stands before:
            # docker-ID.scope, /docker/ID, libpod-ID.scope, cri-containerd-ID.scope, crio-ID, nerdctl-ID,
            # slice:docker:ID, and a --cgroup-parent of the user's own choice.
            rf"(?:.*[^0-9a-f])?{_ID}(?:[^0-9a-f].*)?",
            # Kubernetes, whatever its runtime.
            r"kubepods(?:[-.].*)?",
            r"(?:.*:)?cri-containerd(?:[-:].*)?",
            r"crio(?:-conmon)?-.*",
            # Podman: its pods, and containers of another id length.
            r"libpod(?:[-_].*)?",
            r"machine-libpod_pod_.*",
            r"podman-.*\.scope",
            # Docker and BuildKit with ids of their own (BuildKit's have 25 characters).
            r"docker-[0-9a-z]{12,}\.scope",
            r"(?:.*:)docker:.*",
            r"buildkit.*",
            r"nerdctl-.*",
            # LXC and LXD from 4.0 on; lxc.monitor.NAME is the host's side.
            r"lxc\.payload(?:\..*)?",
            r".*\.libvirt-lxc",
            # systemd-nspawn and what registers with systemd-machined.
            r"machine-.*\.scope",
            r"systemd-nspawn@.*\.service",
            r"apptainer-.*|singularity-.*",
        ]
    ),
    re.DOTALL,
)
"""One part of a path that names a container by itself."""

_PARENTS: Final = frozenset(
    {"docker", "lxc", "lxc.payload", "moby", "ecs", "garden", "actions_job", "buildkit"}
)
"""Folders that hold nothing but containers: any part below one names a container."""

_CONTAINERD_NAMESPACES: Final = frozenset({"default", "k8s.io"})
"""containerd's own client puts containers at ``/NAMESPACE/NAME``, at the top of the tree."""


def _container_end(parts: list[str]) -> int:
    """Return how many parts, from the first, name the innermost container; 0 if none does."""
    end = 0
    for index, part in enumerate(parts):
        parent = parts[index - 1] if index else ""
        if (
            _CONTAINER.fullmatch(part)
            or parent in _PARENTS
            or (index == 1 and parent in _CONTAINERD_NAMESPACES)
        ):
            end = index + 1
    return end


def _paths(text: str) -> dict[str, list[str]] | None:
    """Split the lines ``ID:CONTROLLERS:PATH`` into parts by controllers; None if a line is not one."""
    paths: dict[str, list[str]] = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3 or not fields[0].isdigit() or not fields[2].startswith("/"):
            return None
        # A group that was removed while its process lives on is marked so.
        path = fields[2].removesuffix(" (deleted)")
        paths[fields[1]] = [part for part in path.split("/") if part]
    return paths or None


def is_contained(peer: str, own: str = "") -> bool:
    """Tell whether a process is in a container that this one is not in itself.

    Args:
        peer: the content of the peer's ``/proc/PID/cgroup``, of cgroup v1, v2 or both.
        own: the same of this process. Where the defender runs in a container itself (an LXC host, a CI job),
            peers in the same one are beside it, not inside something else; a container within still counts.

    Returns:
        True as well for a text that is empty or cannot be read as such a file: nothing was proven then.
    """
    paths = _paths(peer)
    if paths is None:
        return True
    ours = _paths(own) or {}
    for controllers, parts in paths.items():
        mine = ours.get(controllers, [])
        shared = _container_end(mine)
        if shared and parts[:shared] == mine[:shared]:
            parts = parts[shared:]
        if _container_end(parts):
            return True
    return False

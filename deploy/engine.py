"""A Docker Engine of our own, apart from any other on the host.

It has its own data, sockets, bridge and empty configuration file below one directory, and ends by its pid.
Two kinds: one for a host that has none (`make up`), with its bridge on the host's network; and one for tests,
in a network namespace of its own, which leaves the host's packet filter alone and goes with its last process.

``python3 -m deploy.engine start DIR`` and ``... stop DIR`` do the same by hand. Root only.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.docker_api import answers
from deploy.images import load_small_images
from deploy.processes import Process, processes_naming, read_pidfile, remove, wait_until

START_PATIENCE = 90.0
STOP_PATIENCE = 40.0

CGROUP = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")

# dockerd is often in a directory that an ordinary PATH lacks.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

NEEDED = {
    "dockerd": "docker.io",
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "busybox": "busybox-static",
    "ps": "procps",  # docker top
    "git": "git",  # docker build of a repository
    "xz": "xz-utils",  # layers and build contexts
}
"""Programs that an Engine of ours needs, and the Debian package of each."""


_children: list[subprocess.Popen[bytes]] = []
"""Kept, because a Popen that is forgotten while its child runs is reported as a leak."""


class EngineError(Exception):
    """An Engine could not be started or stopped; the text says why and what to do."""


def system_tool(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a system's tool to its end; its messages are English, whatever the caller's language is."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": SYSTEM_PATH, "LC_ALL": "C"},
    )


def missing_programs() -> dict[str, str]:
    """Return what of `NEEDED` this host lacks."""
    return {name: package for name, package in NEEDED.items() if shutil.which(name, path=SYSTEM_PATH) is None}


@dataclass(frozen=True, slots=True)
class OwnEngine:
    """An Engine below one directory.

    Attributes:
        root: the directory; all names below and the bridge's come from its absolute path.
        isolated: in a network namespace of its own.
        ends_with_parent: SIGTERM comes by itself when the process that started it is gone.
        options: more options of dockerd.
        enter: command that runs dockerd in namespaces that are there already; with `isolated`.
    """

    root: Path
    isolated: bool = False
    ends_with_parent: bool = False
    options: tuple[str, ...] = ()
    enter: tuple[str, ...] = ()

    @property
    def socket(self) -> Path:
        return self.root / "docker.sock"

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pidfile(self) -> Path:
        return self.root / "dockerd.pid"

    @property
    def log(self) -> Path:
        return self.root / "dockerd.log"

    @property
    def exec_root(self) -> Path:
        """Directory of run-time files; a deep root has it elsewhere, for a socket's path has 107 bytes."""
        below = self.root / "exec"
        deepest = below / "containerd" / "containerd-debug.sock"
        return below if len(os.fsencode(deepest)) <= 107 else Path("/run") / self.label

    @property
    def label(self) -> str:
        """A name for this Engine alone, short enough for a network interface (15 bytes)."""
        return "dfleet" + hashlib.sha256(os.fsencode(self.root.absolute())).hexdigest()[:8]

    def process(self) -> Process | None:
        """Return our dockerd if it runs."""
        process = read_pidfile(self.pidfile)
        if process is not None and any(process == own for own in processes_naming(self.pidfile)):
            return process
        return None

    def start(self) -> None:
        """Start it unless it runs, wait until it answers, and make the small images.

        Raises:
            EngineError: when it does not come up, with the last lines of its log.
        """
        if self.process() is None:
            self._check()
            self.clear()
            self._launch()
        process = self.process()
        wait_until(lambda: answers(self.address) or self.process() is None, START_PATIENCE)
        if process is None or not answers(self.address):
            tail = "".join(self.log.read_text("utf-8", "replace").splitlines(keepends=True)[-12:])
            self.stop()
            raise EngineError(f"the Engine did not come up; the end of {self.log}:\n{tail}")
        load_small_images(self.address)

    def _check(self) -> None:
        if os.geteuid() != 0:
            raise EngineError("an Engine of our own needs root")
        missing = missing_programs()
        if missing:
            packages = " ".join(sorted(set(missing.values())))
            raise EngineError(
                f"{', '.join(missing)} not found; on Debian or Ubuntu: apt-get install {packages}"
            )
        if len(os.fsencode(self.socket)) > 107:
            raise EngineError(f"{self.socket}: too long for a socket's path; choose a shorter directory")

    def _launch(self) -> None:
        ensure_cgroups()
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        configuration = self.root / "daemon.json"
        configuration.write_text("{}\n", "ascii")
        command = [
            "dockerd",
            f"--host={self.address}",
            f"--config-file={configuration}",
            f"--data-root={self.root / 'data'}",
            f"--exec-root={self.exec_root}",
            f"--pidfile={self.pidfile}",
            f"--containerd-namespace={self.label}",
            f"--containerd-plugins-namespace={self.label}p",
            "--group=root",  # its socket is for the defender only
            "--shutdown-timeout=5",
            *self.options,
        ]
        if self.enter:
            command = [*self.enter, *command]
        elif self.isolated:
            command = ["unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$0" "$@"', *command]
        else:
            command.append(f"--bridge={self.label}")
            make_bridge(self.label)
        if self.ends_with_parent:
            command = ["setpriv", "--pdeathsig=TERM", "--", *command]
        with self.log.open("ab") as log:
            # A group of its own: an interrupt at the terminal ends make, not the Engine.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={"PATH": SYSTEM_PATH, **_passed_environment()},
            )
        _children.append(child)
        wait_until(lambda: self.process() is not None or child.poll() is not None, START_PATIENCE)

    def stop(self) -> None:
        """End it by its pid, and what it left behind; the data stay."""
        process = self.process()
        if process is not None:
            process.end(STOP_PATIENCE)
        self.clear()

    def clear(self) -> None:
        """Remove what an Engine of this directory left: containers, shims, mounts, run-time files, bridge."""
        for process in [*self._containers(), *processes_naming(self.exec_root)]:
            process.end(2)
        _children[:] = [child for child in _children if child.poll() is None]
        for point in sorted({*mounts_below(self.root), *mounts_below(self.exec_root)}, key=len, reverse=True):
            system_tool("umount", "-l", point)
        # containerd would wait for the shims that are named here.
        shutil.rmtree(self.exec_root, ignore_errors=True)
        remove(self.pidfile)
        remove(self.socket)
        if not self.isolated and Path(f"/sys/class/net/{self.label}").exists():
            system_tool("ip", "link", "delete", self.label)
            forget_packet_rules(self.label)

    def _containers(self) -> Iterator[Process]:
        """Yield the first process of each container that a killed Engine left running."""
        for file in self.exec_root.glob("containerd/daemon/io.containerd.runtime.v2.task/*/*/init.pid"):
            process = read_pidfile(file)
            if process is not None and file.parent.name in control_groups(process.pid):
                yield process


def control_groups(pid: int) -> str:
    """Return the text of /proc/PID/cgroup, where Docker writes the container's id; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def forget_packet_rules(bridge: str) -> None:
    """Delete the packet filter's rules that name the bridge; dockerd leaves them behind."""
    for table in ("filter", "nat"):
        for line in system_tool("iptables", "-t", table, "-S").stdout.splitlines():
            words = shlex.split(line)
            if words[:1] == ["-A"] and bridge in words:
                system_tool("iptables", "-t", table, "-D", *words[1:])


def _passed_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.lower().endswith("_proxy") or name == "TMPDIR"
    }


def mounts_below(root: Path) -> list[str]:
    """Return the mount points below a directory (proc(5), mountinfo)."""
    prefix = f"{root.absolute()}/"
    points = []
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        point = line.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        if point.startswith(prefix):
            points.append(point)
    return points


def ensure_cgroups() -> bool:
    """Mount the v1 cgroup controllers if the host has neither them nor cgroup2, as on a bare machine.

    They stay mounted: another Engine may have come to use them.

    Returns:
        Whether they had to be mounted.

    Raises:
        EngineError: when the kernel refuses.
    """
    table = Path("/proc/mounts").read_text("utf-8", "surrogateescape")
    kinds = {
        fields[2] for line in table.splitlines() if (fields := line.split(" "))[1].startswith(str(CGROUP))
    }
    if kinds & {"cgroup", "cgroup2"}:
        return False

    def mount(kind: str, options: str, point: Path) -> None:
        point.mkdir(exist_ok=True)
        done = system_tool("mount", "-t", kind, "-o", options, kind, str(point))
        if done.returncode:
            raise EngineError(
                f"containers need cgroups, and {point} cannot be mounted: {done.stderr.strip()}"
            )

    mount("tmpfs", "mode=755", CGROUP)
    present = {line.split("\t")[0] for line in Path("/proc/cgroups").read_text("ascii").splitlines()}
    for controller in V1_CONTROLLERS:
        if controller in present:
            mount("cgroup", controller, CGROUP / controller)
    mount("cgroup", "none,name=systemd", CGROUP / "systemd")
    return True


def make_bridge(name: str) -> None:
    """Make a bridge with a private network that no route of the host touches.

    Raises:
        EngineError: when no network is free or the kernel refuses.
    """
    taken = []
    for line in system_tool("ip", "-o", "-4", "route", "show").stdout.splitlines():
        target = line.split(" ")[0]
        if target != "default":
            taken.append(ipaddress.ip_network(target, strict=False))
    pool = ipaddress.ip_network("10.213.0.0/16").subnets(new_prefix=24)
    network = next((candidate for candidate in pool if not any(map(candidate.overlaps, taken))), None)
    if network is None:
        raise EngineError("no network in 10.213.0.0/16 is free for a bridge")
    for command in (
        ["ip", "link", "add", name, "type", "bridge"],
        ["ip", "address", "add", f"{network[1]}/{network.prefixlen}", "dev", name],
        ["ip", "link", "set", name, "up"],
    ):
        done = system_tool(*command)
        if done.returncode:
            raise EngineError(f"{' '.join(command)}: {done.stderr.strip()}")


def main() -> int:
    """Start or stop an Engine by hand; return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m deploy.engine", description="An Engine of our own.")
    parser.add_argument("verb", choices=("start", "stop"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--isolated", action="store_true", help="in a network namespace of its own")
    arguments = parser.parse_args()
    engine = OwnEngine(arguments.directory.absolute(), arguments.isolated)
    try:
        if arguments.verb == "stop":
            engine.stop()
        else:
            begun = time.monotonic()
            engine.start()
            print(f"{engine.address} answers after {time.monotonic() - begun:.1f} s")
    except EngineError as error:
        print(f"engine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())

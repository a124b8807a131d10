"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from tests.bench.children import TargetError
from tests.bench.targets import go_program


def machine(directory: Path) -> dict[str, str]:
    """Describe processor, kernel, libraries, programs, and the file system of a directory."""
    import cryptography
    from cryptography.hazmat.backends.openssl.backend import backend

    import twisted

    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} x {_processor()}, load average {load} before the run",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "disk": _file_system(directory),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "twisted": twisted.__version__,
        "cryptography": f"{cryptography.__version__}, {backend.openssl_version_text()}",
        "haproxy": _word(["haproxy", "-v"], 2),
        "go": _go(),
        "dockerd": _word(["dockerd", "--version"], 2).rstrip(","),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """Name the kind of file system that a directory is on (proc(5), mountinfo)."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0]
    return "unknown"


def _word(command: list[str], index: int) -> str:
    """Return a word of what a program says of itself."""
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        return "missing"
    said = subprocess.run([program, *command[1:]], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return " ".join(said.stdout.split("\n")[0].split()[index : index + 1])


def _go() -> str:
    try:
        return _word([str(go_program()), "version"], 2)
    except TargetError:
        return "missing"

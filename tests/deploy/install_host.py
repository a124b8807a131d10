"""A host to install on: directories that stand over this machine's own in a mount namespace, without systemd.

Nothing outside of them is written. The directories last from one command to the next; a host can be copied.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from deploy.choices import ROOT

SCRIPT = ROOT / "deploy" / "install" / "defender.sh"
_OVER = ("etc", "opt", "var/lib", "run", "usr/local/bin")
# What else is in /opt and /usr/local/bin, perhaps this Python, is reached through the directories above it.
_MOUNT = """\
root=$1; shift
mount --bind /usr/local/bin "$root/programs" || exit 99
for each in /opt/*; do
    [ -d "$each" ] && [ "$each" != /opt/defender-fleet ] || continue
    mkdir -p "$root$each" && mount --bind "$each" "$root$each" || exit 99
done
for each in {over}; do mount --rbind "$root/$each" "/$each" || exit 99; done
exec "$@"
"""


def verdict(status: object, *, version: str = "", joining: bool = True, was_good: bool = False) -> str:
    """What the installer makes of a defender's status, in its own code."""
    [(_, check)] = re.findall(r"(?ms)^(CHECK_STATUS)='\n(.*?)^'$", SCRIPT.read_text("utf-8"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", check, version, "1" if joining else "", "good" if was_good else ""],
        input=json.dumps(status),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@contextlib.contextmanager
def account_to_itself() -> Iterator[None]:
    """Wait until no other test needs the account.

    It has the same number on all hosts here, and one that a process runs as is not removed.
    """
    with (Path(tempfile.gettempdir()) / "dfleet-account.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


FLEET = "fleet.example.com:8084"
TOKEN = ".".join(("dft1", "a" * 16, "b" * 32, "c" * 52))


class InstallHost:
    """One host. Call `remove` at the end."""

    def __init__(self, original: InstallHost | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dfleet-install-"))
        self.directory.chmod(0o755)
        if original is not None:
            subprocess.run(["cp", "-a", f"{original.directory}/.", str(self.directory)], check=True)
            self._link_programs()
            return
        for each in (*_OVER, "programs", "fake"):
            (self.directory / each).mkdir(parents=True)
        subprocess.run(["cp", "-a", "/etc/.", str(self.directory / "etc")], check=True)
        self._link_programs()
        units = self.directory / "etc/systemd/system"
        shutil.rmtree(units, ignore_errors=True)
        units.mkdir(parents=True)
        (self.directory / "run/systemd/system").mkdir(parents=True)
        (self.directory / "run/fake-systemd").mkdir(mode=0o755)
        self._add_group("docker")
        fake = self.directory / "fake/systemctl"
        fake.write_text(f'#!/bin/sh\nexec {sys.executable} -I {ROOT}/tests/deploy/fake_systemctl.py "$@"\n')
        fake.chmod(0o755)

    def _link_programs(self) -> None:
        """Have /usr/local/bin hold what it holds here."""
        for path in Path("/usr/local/bin").iterdir():
            link = self.directory / "usr/local/bin" / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(self.directory / "programs" / path.name)

    def _add_group(self, name: str) -> None:
        file = self.directory / "etc/group"
        text = file.read_text()
        if f"\n{name}:" not in text:
            file.write_text(f"{text}{name}:x:3999:\n")

    def path(self, absolute: str) -> Path:
        """Where a path of the host is here."""
        return self.directory / absolute.lstrip("/")

    def run(self, *command: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command on the host as root; what it wrote, errors included, is in `stdout`."""
        return subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
                *(_MOUNT.format(over=" ".join(_OVER)), "sh", str(self.directory), *command),
            ],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
            cwd="/",
            env={
                "PATH": f"{self.directory}/fake:/usr/local/bin:/usr/bin:/bin",
                "HOME": "/root",
                "PYTHONPATH": "/nowhere",
                "DEFENDER_INSTALL_PATIENCE": "3",
            },
        )

    def install(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run the installer."""
        return self.run("sh", str(SCRIPT), *arguments, given=given)

    def calls(self) -> list[str]:
        """What systemctl was asked since the last time."""
        log = self.path("/run/fake-systemd/calls")
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def everything(self) -> dict[str, str]:
        """Every file below the places that an installer may write in, with what it is and holds."""
        found = {}
        for top in ("etc", "opt", "var/lib", "usr/local/bin"):
            for path in sorted(self.directory.joinpath(top).rglob("*")):
                if path.name.endswith("-") or "__pycache__" in path.parts:
                    continue  # backups of /etc/passwd; caches
                about = path.lstat()
                held = os.readlink(path) if path.is_symlink() else ""
                if path.is_file() and not path.is_symlink():
                    held = f"{about.st_size} {about.st_mtime_ns}"
                found[str(path.relative_to(self.directory))] = f"{about.st_mode:o} {about.st_uid} {held}"
        return found

    def remove(self) -> None:
        """End its service and remove it."""
        self.run("systemctl", "stop", "defender.service")
        shutil.rmtree(self.directory)


STUB = """
import json, os, signal, socket, sys, time
from pathlib import Path

from defender import __version__

STATUS = Path("/run/defender/status.json")


def behavior():
    chosen = Path("/run", "behavior-" + __version__)
    return chosen.read_text() if chosen.exists() else "good"


def twistd():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    if "--help" in sys.argv:
        print("Commands:\\n    defender         Guards this host's Docker Engine")
        return 0
    if behavior() == "dies":
        print("twistd defender: it cannot go on", file=sys.stderr)
        return 1
    words = sys.argv[sys.argv.index("defender"):]
    joined = Path("/var/lib/defender/joined")
    fleet = None
    if "--controller" in words:
        token = Path(words[words.index("--join-token-file") + 1]) if "--join-token-file" in words else None
        if token is not None and len(token.read_text()) == 108 and behavior() != "pending":
            joined.write_text("")
        enrollment = "enrolled" if joined.exists() else "pending" if behavior() == "pending" else "refused"
        fleet = {"enrollment": enrollment, "problem": "" if joined.exists() else "no token"}
    problems = ["policy.yaml:1:1: unknown key"] if behavior() == "policy" else []
    actual = "none" if behavior() == "closed" else "unix"
    status = {
        "version": __version__, "pid": os.getpid(), "fleet": fleet,
        "listener": {"desired": "unix", "actual": actual, "last_error": "permission denied"},
        "policy": {"rules": 1, "problems": problems},
    }
    STATUS.write_text(json.dumps(status))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1\\n", os.environ["NOTIFY_SOCKET"])
    signal.sigwait([signal.SIGTERM])
    STATUS.unlink()
    return 0


def defenderctl():
    settings = Path(sys.argv[sys.argv.index("--state") + 1], "defender.toml")
    if not settings.exists() or not STATUS.exists():
        print("no defender answers", file=sys.stderr)
        return 1
    print(STATUS.read_text())
    return 0
"""

SETTINGS = """
class SettingsError(Exception):
    pass


def load_settings(path):
    if "refused" in open(path).read():
        raise SettingsError(f"{path}:1:1: refused: unknown key")
"""


def stub_wheel(folder: Path, version: str, more: str = "") -> Path:
    """Write a wheel of a program that does in an instant what a defender does; return its path.

    The host's file /run/behavior-VERSION says how it does: good, dies, closed (its listener does not open),
    policy (it refuses its policy), pending (it waits for approval). ``more``: lines of its metadata.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = f"defender_fleet-{version}.dist-info"
    files = {
        "defender/__init__.py": f'__version__ = "{version}"\n',
        "defender/settings.py": SETTINGS,
        "defender_stub.py": STUB,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: defender-fleet\nVersion: {version}\n{more}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": (
            "[console_scripts]\ntwistd = defender_stub:twistd\ndefenderctl = defender_stub:defenderctl\n"
        ),
    }
    wheel = folder / f"defender_fleet-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return wheel

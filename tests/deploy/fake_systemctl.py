"""Does what the installer asks of systemctl, without systemd: enough of it to run one service for real.

It writes down every call, starts ExecStart of the unit as its user, waits for READY=1 as Type=notify does,
and ends it by its pid. What the installer does not ask for it refuses.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")
RUN = Path("/run/fake-systemd")
LOG = RUN / "calls"
PID = RUN / "defender.pid"
PATIENCE = 30.0


def setting(text: str, key: str) -> str:
    found: list[str] = re.findall(rf"(?m)^{key}=(.*)$", text.replace("\\\n", " "))
    return found[-1] if found else ""


def running() -> int:
    """Pid of the service, 0 if it does not run."""
    try:
        pid = int(PID.read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except (OSError, ValueError):
        return 0
    return 0 if state in "ZX" else pid


def stop() -> None:
    pid = running()
    if pid:
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while running() and time.monotonic() < end:
            time.sleep(0.02)
        if running():
            os.kill(pid, signal.SIGKILL)
    PID.unlink(missing_ok=True)


def start() -> int:
    unit = (UNITS / "defender.service").read_text()
    user = pwd.getpwnam(setting(unit, "User"))
    options = ""
    file = Path(setting(unit, "EnvironmentFile").removeprefix("-"))
    if file.exists():
        options = shlex.split(file.read_text().partition("=")[2])[0]
    command: list[str] = []
    for word in shlex.split(setting(unit, "ExecStart")):
        command += options.split() if word == "$DEFENDER_OPTIONS" else [word]
    for folder in ("/var/lib/", "/run/"):
        path = Path(folder, setting(unit, "StateDirectory"))
        path.mkdir(mode=0o700, exist_ok=True)
        os.chown(path, user.pw_uid, user.pw_gid)
    dropin = UNITS / "defender.service.d" / "10-install.conf"
    names = "" if dropin.exists() else setting(unit, "SupplementaryGroups")
    groups = [grp.getgrnam(name).gr_gid for name in names.split()]
    notify = RUN / "notify"
    notify.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (RUN / "journal").open("ab") as journal:
        manager.bind(str(notify))
        notify.chmod(0o777)
        manager.settimeout(0.05)
        service = subprocess.Popen(
            command,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=groups,
            umask=0o077,
            cwd="/",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=journal,
            stderr=journal,
            env={"PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": str(notify), "PYTHONSAFEPATH": "1"},
        )
        PID.write_text(str(service.pid))
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and service.poll() is None:
            try:
                if b"READY=1\n" in manager.recv(4096):
                    return 0
            except TimeoutError:
                continue
    stop()
    return 1


def main(arguments: list[str]) -> int:
    """Do it; return the exit code."""
    with LOG.open("a") as log:
        log.write(" ".join(arguments) + "\n")
    verb, words = arguments[0], [word for word in arguments[1:] if not word.startswith("--")]
    if verb not in ("daemon-reload", "enable", "disable", "is-active", "restart", "stop"):
        raise SystemExit(f"fake systemctl: {verb}")
    if verb in ("restart", "stop") or ("--now" in arguments and "defender.service" in words):
        stop()
    if verb == "restart":
        return start()
    if verb == "is-active":
        return 0 if running() else 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

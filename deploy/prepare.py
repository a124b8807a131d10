"""Have what `make test`, `make lint` and the others need: the libraries, and for tests the programs.

On Debian and Ubuntu as root it installs what is missing; elsewhere it names it and fails.
"""

from __future__ import annotations

import argparse
import os
import sys

from deploy import packages
from deploy.choices import SetupError
from deploy.engine import NEEDED, EngineError, ensure_cgroups
from deploy.virtualenv import Virtualenv

PROFILE_PROGRAMS = {
    "/usr/include/openssl/ssl.h": "libssl-dev",
    "/usr/include/stdio.h": "libc6-dev",
    "gcc": "gcc",
    "taskset": "util-linux",
}
"""Programs and headers of the load client and the free Engine, and the Debian package of each."""

BENCH_PROGRAMS = {
    **PROFILE_PROGRAMS,
    "haproxy": "haproxy",
    "openssl": "openssl",
    "strace": "strace",
}
"""What the bench needs, and the Debian package of each."""

ENGINE_PROGRAMS = {
    **NEEDED,
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""What the bench needs beside it for a real Engine, which only root can start."""

TEST_PROGRAMS = {
    **NEEDED,
    **BENCH_PROGRAMS,
    "curl": "curl",
    "docker": "docker.io",
    "docker-compose": "docker-compose",
    "faketime": "faketime",
    "node": "nodejs",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "shellcheck": "shellcheck",
    "systemd-analyze": "systemd",
    "umount": "mount",
    "unshare": "util-linux",
}
"""Programs that the tests run, and the Debian package of each."""


def prepare(extras: list[str], purpose: str) -> None:
    """Install what `purpose`, a target of the Makefile, needs; raise SetupError for what cannot be had."""
    if purpose == "bench":
        engine = ENGINE_PROGRAMS if os.geteuid() == 0 else {}
        packages.require({**BENCH_PROGRAMS, **engine}, "make bench")
    elif purpose in ("profile", "bench-fleet"):
        packages.require(PROFILE_PROGRAMS, f"make {purpose}")
    elif purpose == "test":
        if os.geteuid() != 0:
            raise SetupError(
                "the tests start a Docker Engine of their own, and only root can: run make test as root"
            )
        packages.require(TEST_PROGRAMS, "make test")
        try:
            ensure_cgroups()
        except EngineError as error:
            raise SetupError(str(error)) from error
    Virtualenv().ensure(extras)


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m deploy.prepare", description=__doc__)
    parser.add_argument("--extra", action="append", default=[], help="extra requirements of setup.cfg")
    parser.add_argument("purpose", choices=("lint", "bench", "bench-fleet", "profile", "test", "docs"))
    arguments = parser.parse_args()
    try:
        prepare(arguments.extra, arguments.purpose)
    except SetupError as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

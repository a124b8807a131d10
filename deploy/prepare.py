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

BENCH_PROGRAMS = {
    "/usr/include/openssl/ssl.h": "libssl-dev",
    "/usr/include/stdio.h": "libc6-dev",
    "gcc": "gcc",
    "haproxy": "haproxy",
    "openssl": "openssl",
}
"""Programs and headers that the bench needs, and the Debian package of each."""

TEST_PROGRAMS = {
    **NEEDED,
    **BENCH_PROGRAMS,
    "curl": "curl",
    "docker": "docker.io",
    "docker-compose": "docker-compose",
    "node": "nodejs",
    "setpriv": "util-linux",
    "umount": "mount",
    "unshare": "util-linux",
}
"""Programs that the tests run, and the Debian package of each."""


def prepare(extras: list[str], purpose: str) -> None:
    """Install what `purpose`, lint, bench or test, needs; raise SetupError for what cannot be had."""
    if purpose == "bench":
        packages.require(BENCH_PROGRAMS, "make bench")
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
    parser.add_argument("purpose", choices=("lint", "bench", "test", "docs"))
    arguments = parser.parse_args()
    try:
        prepare(arguments.extra, arguments.purpose)
    except SetupError as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What every test run has in common."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A shared machine may stall any example: time is no verdict here. `--hypothesis-profile=long` looks further.
settings.register_profile("fleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", parent=settings.get_profile("fleet"), max_examples=5000)
settings.load_profile("fleet")

# A shell ignores it for what it runs in the background, and children inherit that: a program that a test
# interrupts would never end.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def scratch_directory() -> Iterator[None]:
    """Run in a directory of its own, as trial does: `TestCase.mktemp` makes its files in the current one.

    Its name is short: the path of a unix socket holds 107 bytes, and mktemp adds three names to it.
    """
    before = os.getcwd()
    scratch = tempfile.mkdtemp(prefix="t", dir="/tmp")
    os.chdir(scratch)
    yield
    os.chdir(before)
    shutil.rmtree(scratch, ignore_errors=True)

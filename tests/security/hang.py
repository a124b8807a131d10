"""A guard for tests whose failure would be a reactor that stands still."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 20
"""Seconds; what is guarded takes some milliseconds, and minutes once its cost is quadratic."""


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Fail instead of hanging; regular expressions look at signals too."""

    def rang(_number: int, _frame: object) -> None:
        raise AssertionError(f"{what}: not done in {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, rang)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

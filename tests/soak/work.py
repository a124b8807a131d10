"""Work for a defender: threads that do one thing after the other, and the count of what came of it."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FAILURES = 50
"""Failures that are kept with their words; more are counted."""

GRACE = 3.0
"""Seconds after a disturbance in which work that began may still fail of it."""


class WorkError(Exception):
    """A piece of work did not end as it should; the text says what came instead."""


class Weather:
    """When the Engine was away or a listener closed: what failed then is no fault.

    A disturbance is of "engine", which every call needs, or of "unix", the listener.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spells: list[tuple[str, float, float]] = []

    @contextmanager
    def disturbed(self, what: str) -> Iterator[None]:
        """From now to the end of the block, and `GRACE` seconds more."""
        with self._lock:
            place = len(self._spells)
            self._spells.append((what, time.monotonic(), float("inf")))
        try:
            yield
        finally:
            with self._lock:
                _, since, _ = self._spells[place]
                self._spells[place] = (what, since, time.monotonic() + GRACE)

    def was_bad(self, needs: frozenset[str], since: float, until: float) -> bool:
        """Whether something of `needs` was disturbed at any time between two moments of `time.monotonic`."""
        with self._lock:
            return any(what in needs and begin < until and end > since for what, begin, end in self._spells)


class Books:
    """What the workers did. Every method may be called by any thread.

    An answer is counted for its user only where the number is compared with the record: every request of such
    a user is `answered`, or it is `lost`, which the record may or may not have.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.disturbed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.failures: list[str] = []
        self._answered: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self._round_trips: list[float] = []

    def note(self, what: str, outcome: str, words: str = "") -> None:
        """A piece of work is over: "done", "disturbed" or "failed"."""
        with self._lock:
            getattr(self, outcome)[what] += 1
            if outcome == "failed" and len(self.failures) < FAILURES:
                self.failures.append(f"{time.strftime('%H:%M:%S')} {what}: {words}")

    def answered(self, user: str, status: int) -> None:
        """A request has its whole answer."""
        with self._lock:
            self._answered[user] += 1
            self.statuses[status] += 1

    def lost(self, user: str) -> None:
        """A request was sent, as far as one can tell, and its connection ended."""
        with self._lock:
            self._lost[user] += 1

    def between(self, user: str) -> tuple[int, int]:
        """The fewest and the most results that the record should have of a user."""
        with self._lock:
            return self._answered[user], self._answered[user] + self._lost[user]

    def round_trip(self, milliseconds: float) -> None:
        """Of the probe."""
        with self._lock:
            self._round_trips.append(milliseconds)

    def take_round_trips(self) -> list[float]:
        """Those since the last call."""
        with self._lock:
            taken, self._round_trips = self._round_trips, []
            return taken

    def load(self) -> dict[str, int]:
        """How much was done, disturbed and failed so far."""
        with self._lock:
            return {
                "done": self.done.total(),
                "disturbed": self.disturbed.total(),
                "failed": self.failed.total(),
                "answers": self._answered.total(),
            }


class Worker(threading.Thread):
    """Does one of `tasks` after the other, until it is told to stop, with a pause after each.

    Args:
        name: for its random choices and in reports.
        tasks: what it may do, by name.
        needs: what its tasks fail without, of the names of `Weather`.
        pause: seconds, the mean; 0 for none.
    """

    def __init__(
        self,
        name: str,
        tasks: dict[str, Callable[[], None]],
        *,
        books: Books,
        weather: Weather,
        needs: tuple[str, ...] = ("engine",),
        pause: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._tasks = list(tasks.items())
        self._books = books
        self._weather = weather
        self._needs = frozenset(needs)
        self._pause = pause
        self._dice = random.Random(f"{seed} {name}")
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.is_set():
            what, task = self._dice.choice(self._tasks)
            began = time.monotonic()
            outcome, words = "done", ""
            try:
                task()
            except Exception as error:
                bad = self._weather.was_bad(self._needs, began - GRACE, time.monotonic())
                outcome = "disturbed" if bad else "failed"
                words = str(error) if isinstance(error, WorkError) else traceback.format_exc(limit=-3)
            self._books.note(what, outcome, words)
            self._end.wait(self._pause * self._dice.uniform(0.5, 1.5))

    def stop(self) -> None:
        """Have it end after the task that it is at."""
        self._end.set()

"""Clocks that are set while a defender runs, and between two runs (libfaketime)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.audit.base import Writing, WritingCase
from tests.fakes.engine import FakeEngine
from tests.proxying.running import RunningDefender


class ClockTests(WritingCase):
    def setUp(self) -> None:
        super().setUp()
        self.offset = self.directory.parent / "offset"
        self.set("+0")

    def set(self, offset: str) -> None:
        self.offset.write_text(f"{offset}\n")

    def environment(self) -> dict[str, str]:
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def under_faketime(self, **more: Any) -> Writing:
        return self.start(environment=self.environment(), **more)

    def write(self, writing: Writing, number: int) -> None:
        writing.tell(f"durable {number}")
        self.assertEqual(writing.line(), f"ack {number}")

    def test_steps_back_and_forth(self) -> None:
        writing = self.under_faketime()
        for number, offset in enumerate(("+0", "-3600", "-3590", "+86400", "-86400")):
            self.set(offset)
            self.write(writing, number)
            self.write(writing, 10 + number)
        writing.stop()
        steps = [int(text.split()[5]) for text in self.notes("audit_clock")]
        # Ten seconds are nobody's business.
        for step, expected in zip(steps, (-3600, 3590 + 86400, -2 * 86400), strict=True):
            self.assertLessEqual(abs(step - expected), 5, steps)
        # Numbers and ids rise, whatever the clock shows, and the monotonic clock tells the true order.
        self.assert_whole()
        events = self.events()
        monotonic = [each["ts_mono"] for each in events if each["kind"] == "engine"]
        self.assertEqual(monotonic, sorted(monotonic))
        wall = [each["ts_wall"] for each in events]
        self.assertNotEqual(wall, sorted(wall))

    def test_a_clock_that_is_behind_the_last_run(self) -> None:
        self.set("+7200")
        writing = self.under_faketime()
        self.write(writing, 1)
        writing.stop()
        self.set("+0")
        writing = self.under_faketime()
        writing.until("segments", 1)
        self.write(writing, 2)
        writing.stop()
        self.assertEqual(self.numbers(), [1, 2])
        (behind,) = self.notes("audit_clock")
        self.assertRegex(behind, r"^the clock is 7[12]\d\d s before the last event$")
        self.assert_whole()

    def test_timers_of_the_defender_do_not_wait_for_the_clock(self) -> None:
        """Set back by a day, the clock of Twisted would keep every timer waiting for a day."""
        self.directory.parent.mkdir(exist_ok=True)
        engine = FakeEngine(str(self.directory.parent / "engine.sock")).start()
        self.addCleanup(engine.stop)
        defender = RunningDefender(engine.path)
        self.addCleanup(defender.stop)
        defender._limits = ["env", *(f"{key}={value}" for key, value in self.environment().items())]
        defender.start()
        peer = defender.local()
        self.addCleanup(peer.close)
        request = b"GET /v1.41/containers/json HTTP/1.1\r\nHost: docker\r\n\r\n"
        self.assertEqual(peer.ask(request).status, 200)
        defender.take_events(1)
        self.set("-86400")
        self.assertEqual(peer.ask(request).status, 200)
        # Nobody waits for this event, so a timer has to bring it to disk.
        (event,) = defender.take_events(1)
        self.assertEqual(event["req"]["action"], "container_list")

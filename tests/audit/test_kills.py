"""kill -9 at random points under load: no event whose sync returned is ever lost."""

from __future__ import annotations

import os
import random
import time

from tests.audit.base import WritingCase, acknowledged

KILLS = int(os.environ.get("AUDIT_KILLS", "20"))
"""`make soak` takes 200."""


class KillTests(WritingCase):
    def test_no_acknowledged_event_is_lost(self) -> None:
        seed = int(os.environ.get("AUDIT_SEED", "0")) or random.randrange(2**32)
        dice = random.Random(seed)
        promised: list[int] = []
        for kill in range(KILLS):
            writing = self.start("segment=65536")
            writing.tell(f"flood {dice.choice((1, 4, 32))}")
            if dice.random() < 0.15:  # while it starts, and mends what the last kill left
                time.sleep(dice.random() * 0.6)
                promised += acknowledged(writing.kill())
                continue
            first = writing.line()
            # From the middle of its first commits to well after several segments.
            time.sleep(dice.choice((0, 0.002, 0.01, 0.05, 0.2)) * dice.random())
            said = acknowledged([first, *writing.kill()])
            self.assertTrue(said, f"it wrote nothing, seed {seed}, kill {kill}")
            promised += said
            if kill % 10 == 9:
                self.check(promised, f"seed {seed}, kill {kill}")
        writing = self.start("segment=65536")
        writing.tell("durable 1")
        self.assertEqual(writing.line(), "ack 1")
        self.assertEqual(writing.status()["problem"], "")
        self.assertEqual(writing.stop(), ["stopped"])
        self.check(promised, f"seed {seed}, at the end")
        self.assert_whole()
        self.assertEqual(self.notes("audit_damaged"), [])

    def check(self, promised: list[int], when: str) -> None:
        """Every number was promised once in each run; so often it has to be there, at least."""
        there = sorted(self.numbers())
        wanted = sorted(promised)
        missing = 0
        place = 0
        for number in wanted:
            while place < len(there) and there[place] < number:
                place += 1
            if place == len(there) or there[place] != number:
                missing += 1
            else:
                place += 1
        self.assertEqual(missing, 0, f"{missing} of {len(wanted)} acknowledged events are lost: {when}")
        self.assert_whole()

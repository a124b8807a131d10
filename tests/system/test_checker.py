"""The checker of a fleet finds what must not be."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.engine.guarded import Event
from tests.system.hosts.checker import Expected, compare, told_gaps


def events(*numbers: int, epoch: str = "aa") -> list[Event]:
    return [
        {
            "id": f"{epoch}{n}",
            "agent": "web1",
            "epoch": epoch,
            "seq": n,
            "kind": "engine",
            "req": {"action": "x"},
        }
        for n in numbers
    ]


def gap(dropped: int, reason: str, **more: Any) -> Event:
    return {"kind": "gap", "agent": "controller", "result": {"dropped": dropped, "reason": reason}, **more}


class CompareTests(SynchronousTestCase):
    """What is stored beside what is on a defender's disk."""

    def found(self, stored: list[Event], before: list[Event], after: list[Event] | None = None) -> str:
        return "\n".join(compare("web1", before, stored, before if after is None else after))

    def test_alike(self) -> None:
        whole = events(1, 2) + events(1, epoch="bb")
        self.assertEqual(self.found(whole, whole), "")

    def test_what_comes_while_it_is_looked_at(self) -> None:
        self.assertEqual(self.found(events(1, 2), events(1), events(1, 2, 3)), "")

    def test_a_hole(self) -> None:
        self.assertIn("('aa', 2) is not stored", self.found(events(1, 3), events(1, 2, 3)))
        self.assertIn("('bb', 1) is not stored", self.found(events(1), events(1) + events(1, epoch="bb")))

    def test_nothing_at_all(self) -> None:
        self.assertIn("nothing is on the disk", self.found([], []))

    def test_twice(self) -> None:
        self.assertIn("('aa', 1) is stored 2 times", self.found(events(1, 1), events(1)))
        again = {**events(2)[0], "id": "aa1"}
        self.assertIn("an id is stored twice", self.found([*events(1), again], [*events(1), again]))

    def test_never_on_the_disk(self) -> None:
        self.assertIn("('aa', 2) is stored, and is not on the disk", self.found(events(1, 2), events(1)))

    def test_altered(self) -> None:
        altered = {**events(1)[0], "kind": "control"}
        self.assertIn("is stored as", self.found([altered], events(1)))

    def test_out_of_order(self) -> None:
        self.assertIn("in another order", self.found(events(2, 1), events(1, 2)))


class GapTests(SynchronousTestCase):
    """What is told to be missing."""

    def found(self, stored: list[Event], **expected: Any) -> str:
        return "\n".join(told_gaps(stored, Expected(**expected)))

    def test_events_that_are_missing(self) -> None:
        found = self.found([gap(3, "events are missing here", req={"target": "web1"})])
        self.assertIn("web1: a gap", found)

    def test_a_kill_is_told_as_often_as_it_was(self) -> None:
        told: Event = {"kind": "defender", "agent": "web1", "req": {"action": "audit_unclosed"}}
        self.assertEqual(self.found([told], kills={"web1": 1}), "")
        self.assertIn("expected were {}", self.found([told]))
        self.assertIn("expected were {'web1': 1}", self.found([], kills={"web1": 1}))

    def test_what_a_defender_dropped(self) -> None:
        dropped = {**gap(5, "No space left on device", req={}), "agent": "web1"}
        self.assertEqual(self.found([dropped], drops=frozenset({"web1"})), "")
        self.assertIn("web1: a gap", self.found([dropped]))

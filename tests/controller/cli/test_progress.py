"""The live view on a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from controller.cli import progress
from tests.controller.api.doubles import example


def change(*states: str) -> dict[str, Any]:
    """A change with a defender in each of these states."""
    made = example("Change")
    steps = [
        {"defender": f"d{n}", "name": f"web{n}", "state": each, "detail": ""} for n, each in enumerate(states)
    ]
    counts = {state: states.count(state) for state in ("acked", "refused", "waiting", "offline")}
    return {**made, "defenders": steps, "counts": {**counts, "total": len(states)}}


class BlockTests(SynchronousTestCase):
    """What is drawn anew."""

    def setUp(self) -> None:
        self.text = io.StringIO()
        console = Console(file=self.text, force_terminal=True, width=80, color_system=None)
        self.patch(progress, "console", lambda: console)

    def draw(self, *changes: dict[str, Any]) -> str:
        """All that was written."""
        view = progress._Block("listener unix")
        with view:
            for each in changes:
                view.show(each)
        return self.text.getvalue()

    def test_numbers_and_who_is_not_done(self) -> None:
        told = self.draw(change("waiting", "acked", "offline"), change("acked", "acked", "offline"))
        for text in ("1 of 3 defenders done", "web0: waiting", "web2: offline", "2 of 3 defenders done"):
            self.assertIn(text, told)
        self.assertNotIn("web1", told)

    def test_names_can_steer_no_terminal_and_many_are_counted(self) -> None:
        odd = change(*["waiting"] * 15)
        odd["defenders"][0]["name"] = "\x1b]0;web\x07"
        told = self.draw(odd)
        self.assertNotIn("\x1b]0", told)
        self.assertIn("and 3 more", told)


class OrderTests(SynchronousTestCase):
    """Which defenders are named first."""

    def test_refusals_come_first(self) -> None:
        found = progress.unfinished(change("offline", "waiting", "acked", "refused"))
        self.assertEqual([step["state"] for step in found], ["refused", "waiting", "offline"])

    def test_when_it_is_over(self) -> None:
        for states, over in (
            (("acked", "offline"), True),
            (("acked", "waiting"), False),
            (("refused",), True),
        ):
            self.assertEqual(progress.is_over(change(*states)), over)
        self.assertTrue(progress.is_over({**change("waiting"), "state": "halted"}))

"""What `defenderctl` makes of files and answers that others may have written."""

from __future__ import annotations

import json
import os

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from controller.cli.audit import audit
from controller.cli.output import print_json

EVENT = {
    "v": 1,
    "id": "x",
    "agent": "a",
    "epoch": "e",
    "seq": 1,
    "ts_wall": "2026-11-22T02:00:00.000Z",
    "kind": "engine",
    "phase": "result",
    "corr": "x",
    "actor": {"user": "b"},
    "req": {"action": "image_create"},
}


class JsonTests(SynchronousTestCase):
    def test_nothing_steers_the_terminal(self) -> None:
        """U+009B begins an escape sequence as well as ESC [ does."""
        document = {"a": "\x9b31m\x7f\u202e\ud800\x1b[0m", "b": "\u00e9\U0001f642"}
        with self.captured() as output:
            print_json(document)
        self.assertTrue(all(c.isprintable() or c == "\n" for c in output[0]), output)
        self.assertIn("\u00e9", output[0])
        self.assertEqual(json.loads(output[0]), document)

    def captured(self) -> Captured:
        return Captured(self)


class Captured:
    """What `click.echo` prints."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self._case = case
        self._output: list[str] = []

    def __enter__(self) -> list[str]:
        self._case.patch(print_json.__globals__["click"], "echo", self._output.append)
        return self._output

    def __exit__(self, *_: object) -> None: ...


class TailTests(SynchronousTestCase):
    def tail(self, event: dict[str, object], *arguments: str) -> str:
        path = os.path.abspath(self.mktemp())
        with open(path, "w", encoding="ascii") as file:
            file.write(json.dumps({**EVENT, **event}) + "\n")
        done = CliRunner().invoke(audit, ["tail", "--file", path, *arguments], catch_exceptions=False)
        self.assertEqual(done.exit_code, 0, done.output)
        return done.output

    def test_action_that_is_another_name_only(self) -> None:
        self.assertIn("image_pull", self.tail({"req": {"action": "image_pull"}}, "--action", "image_pull"))

    def test_times_beyond_all_measure(self) -> None:
        for elapsed in (10**400, -(10**400), float("inf"), float("nan")):
            self.tail({"result": {"ms": elapsed, "status": 200}})

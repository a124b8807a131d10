"""What `defenderctl` makes of files and answers that others may have written."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from controller.cli.audit import audit
from controller.cli.output import print_json
from defender.contract.audit import Event
from tests.fakes.spool import SpoolWriter

EVENT: Event = {
    "kind": "engine",
    "phase": "result",
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
    def tail(self, event: Event, *arguments: str) -> str:
        writer = SpoolWriter()
        writer.start()
        writer.put({**EVENT, **event})
        path = Path(self.mktemp()).absolute()
        writer.save(path)
        done = CliRunner().invoke(audit, ["tail", "--spool", str(path), *arguments], catch_exceptions=False)
        self.assertEqual(done.exit_code, 0, done.output)
        return done.output

    def test_action_that_is_another_name_only(self) -> None:
        self.assertIn("image_pull", self.tail({"req": {"action": "image_pull"}}, "--action", "image_pull"))

    def test_values_that_no_defender_writes(self) -> None:
        values: tuple[object, ...] = (
            1.7e308,
            -1.7e308,
            2**64 - 1,
            -(2**63),
            True,
            None,
            "\x1b[2J",
            [],
            {"a": [1]},
        )
        for value in values:
            events: tuple[Event, ...] = (
                {"result": {"ms": value, "status": value, "problems": value, "dropped": value}},
                {"result": value, "decision": value},
                {"actor": {"user": value, "via": value}, "req": {"action": value, "target": value}},
                {"kind": "gap", "decision": {"effect": value, "rule": value}},
                {"phase": "stream_end", "result": {"error": value}},
                {"phase": "attempt"},
            )
            for arguments in ([], ["--json"], ["--denied", "--user", "*"]):
                for event in events:
                    self.assertNotIn("\x1b", self.tail(event, *arguments))

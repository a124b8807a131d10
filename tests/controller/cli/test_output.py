"""Tables, JSON and shared options."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from controller.cli.output import complain, json_option, print_json, print_line, print_table, state_option


@click.command()
@state_option
@json_option
def show(state: Path, as_json: bool) -> None:
    if as_json:
        print_json({"state": str(state), "ä": 1})
    else:
        print_table(("name", "state"), [("a\nb", state), ("[b]c[/b]", "x" * 150)], styles=("bold",))
        print_line("y " * 80 + "\x07")
        complain("first\nsec\x1bond")


class OutputTests(SynchronousTestCase):
    """What a command prints where standard output is no terminal."""

    def test_table(self) -> None:
        result = CliRunner().invoke(show, ["--state", "s"], env={"FLEET_STATE": None})
        lines = result.stdout.splitlines()
        self.assertEqual(lines[:2], ["NAME      STATE", r"a\nb      s"])
        self.assertEqual(lines[2], "[b]c[/b]  " + "x" * 90)
        self.assertEqual(lines[3], " " * 10 + "x" * 60)
        self.assertEqual(lines[4], "y " * 80 + r"\x07")
        self.assertEqual(result.stderr, "first\nsec\\x1bond\n")

    def test_state_from_option_environment_or_default(self) -> None:
        for arguments, fleet_state, expected in (
            (["--state", "a"], "b", "a"),
            ([], "b", "b"),
            ([], None, ".state"),
            ([], "", ".state"),
        ):
            result = CliRunner().invoke(show, [*arguments, "--json"], env={"FLEET_STATE": fleet_state})
            self.assertEqual(json.loads(result.stdout), {"state": expected, "ä": 1})
            self.assertIn("ä", result.stdout)

    def test_help_names_the_default(self) -> None:
        self.assertIn("$FLEET_STATE or .state", CliRunner().invoke(show, ["--help"]).stdout)

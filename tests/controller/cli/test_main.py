"""The root command: lazy groups, version, and errors without a stack trace."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import click
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from controller.cli import main as main_module
from controller.cli.main import GROUPS, defenderctl

ROOT = Path(__file__).resolve().parents[3]


class RootTests(SynchronousTestCase):
    """`defenderctl` itself."""

    def test_help_lists_every_group_and_an_example(self) -> None:
        result = CliRunner().invoke(defenderctl, ["--help"])
        self.assertEqual(result.exit_code, 0)
        for name, (_, told) in GROUPS.items():
            self.assertIn(f"  {name} ", result.stdout)
            self.assertIn(told, result.stdout)
        self.assertIn("defenderctl policy check policy.yaml", result.stdout)
        self.assertIn("_DEFENDERCTL_COMPLETE=bash_source", result.stdout)

    def test_version(self) -> None:
        result = CliRunner().invoke(defenderctl, ["--version"])
        self.assertEqual(result.exit_code, 0)
        self.assertTrue(result.stdout.startswith("defenderctl "), result.stdout)

    def test_unknown_command_is_wrong_usage(self) -> None:
        result = CliRunner().invoke(defenderctl, ["polcy"])
        self.assertEqual(result.exit_code, 2)
        self.assertIn("No such command 'polcy'", result.stderr)

    def test_a_group_that_is_not_installed(self) -> None:
        self.patch(main_module, "GROUPS", {"gone": ("controller.cli.gone:gone", "Not there.")})
        result = CliRunner().invoke(defenderctl, ["gone"])
        self.assertEqual(result.exit_code, 2)
        self.assertIn("this installation has no command 'gone'", result.stderr)

    def test_only_the_group_that_is_used_is_imported(self) -> None:
        script = (
            "import sys\n"
            "from controller.cli.main import defenderctl\n"
            "defenderctl(['policy', '--help'], standalone_mode=False)\n"
            "print(sorted(name for name in sys.modules if name.startswith('controller.cli.')))\n"
            "print('twisted' in sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual(
            done.stdout.splitlines()[-2:],
            [
                "['controller.cli.groups', 'controller.cli.main', 'controller.cli.output', "
                "'controller.cli.policy']",
                "False",
            ],
        )


class ConsoleScriptTests(SynchronousTestCase):
    """`main`, as the console script calls it."""

    def run_main(self, error: Exception) -> tuple[object, list[str]]:
        @click.command()
        def failing() -> None:
            raise error

        self.patch(main_module, "defenderctl", failing)
        self.patch(sys, "argv", ["defenderctl"])
        stderr = io.StringIO()
        self.patch(sys, "stderr", stderr)
        with self.assertRaises(SystemExit) as caught:
            main_module.main()
        return caught.exception.code, stderr.getvalue().splitlines()

    def test_an_error_of_the_system_is_one_line(self) -> None:
        code, lines = self.run_main(PermissionError(13, "Permission denied", "/etc/x\n"))
        self.assertEqual((code, lines), (1, [r"Error: [Errno 13] Permission denied: '/etc/x\n'"]))

    def test_an_error_of_ours_has_no_stack_trace(self) -> None:
        code, lines = self.run_main(ValueError("first\nsecond"))
        self.assertEqual((code, lines[0]), (1, "Error: first"))
        self.assertEqual(len(lines), 2)
        self.assertIn("DEFENDERCTL_TRACE=1", lines[1])

    def test_an_error_without_words(self) -> None:
        self.assertEqual(self.run_main(KeyError())[1][0], "Error: KeyError")

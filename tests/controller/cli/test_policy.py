"""`defenderctl policy`: output, exit codes and errors for people."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from controller.cli.main import defenderctl

POLICY = """\
schema: 1
rules:
  - name: devs_rule
    groups: ["Dev team"]
    hosts: ["prod*"]
    effect: allow
    actions: [container_list, container_logs, container_inspect]
    message: "Production is read-only; ask #platform."
  - name: office
    networks: [10.0.0.0/8]
    effect: allow
    actions: ["container_*", image_save]
"""


class PolicyCase(SynchronousTestCase):
    """Runs commands on a file of its own."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.file = self.directory / "policy.yaml"
        self.file.write_text(POLICY, encoding="utf-8")

    def run_policy(self, *arguments: str, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(defenderctl, ["policy", *arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        for line in result.output.splitlines():
            self.assertNotIn("Traceback", line)
        return result

    def explain(self, *arguments: str) -> Result:
        return self.run_policy("explain", str(self.file), "--host", "prod1", *arguments)


class CheckTests(PolicyCase):
    """`policy check`."""

    def test_valid(self) -> None:
        result = self.run_policy("check", str(self.file))
        self.assertEqual(result.exit_code, 0)
        lines = result.stdout.splitlines()
        self.assertEqual(lines[0], "#  RULE       LINE  WHAT IT DOES")
        self.assertTrue(lines[1].startswith("1  devs_rule  3     groups Dev team, on prod*: allow"), lines[1])
        self.assertTrue(
            lines[3].startswith("2  office     9     from 10.0.0.0/8: allow container_*"), lines[3]
        )
        self.assertTrue(
            lines[4].startswith(f"warning: {self.file}:9: rule 'office': its subjects can become root")
        )
        self.assertEqual(
            lines[5], f"{self.file} is valid: 2 rules, 1 warning. What no rule matches is denied."
        )

    def test_tables_fit_100_columns(self) -> None:
        users = ", ".join(f"a-rather-long-user-name-{n}" for n in range(9))
        self.file.write_text(f"schema: 1\nrules:\n  - {{name: {'r' * 60}, users: [{users}], effect: deny}}\n")
        result = self.run_policy("check", str(self.file))
        for line in result.stdout.splitlines()[:-1]:
            self.assertLessEqual(len(line), 100)

    def test_no_rules(self) -> None:
        self.file.write_text("schema: 1\nrules: []\n")
        result = self.run_policy("check", str(self.file))
        self.assertEqual((result.exit_code, result.stdout.count("\n")), (0, 1))
        self.assertIn("is valid: 0 rules. What no rule matches is denied.", result.stdout)

    def test_invalid_shows_every_problem(self) -> None:
        self.file.write_text(POLICY.replace("effect: allow", "effect: alow").replace("container_list", "ps"))
        result = self.run_policy("check", str(self.file))
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        self.assertEqual(
            result.stderr.splitlines(),
            [
                f"{self.file}:6:13: rules[0].effect: unknown value 'alow' (did you mean allow?)",
                f"{self.file}:7:15: rules[0].actions[0]: unknown action 'ps'"
                " (the reference lists every action)",
                f"{self.file}:11:13: rules[1].effect: unknown value 'alow' (did you mean allow?)",
                f"{self.file} cannot be used: 3 problems",
            ],
        )

    def test_not_text(self) -> None:
        self.file.write_bytes(b"\xff\xfe\x00")
        result = self.run_policy("check", str(self.file))
        self.assertEqual(result.exit_code, 1)
        self.assertIn("1:1: byte 0xff is not UTF-8", result.stderr)

    def test_json(self) -> None:
        result = self.run_policy("check", str(self.file), "--json")
        document = json.loads(result.stdout)
        self.assertEqual((result.exit_code, document["ok"], document["problems"]), (0, True, []))
        self.assertEqual([rule["name"] for rule in document["rules"]], ["devs_rule", "office"])
        self.assertEqual([warning["line"] for warning in document["warnings"]], [9])
        self.assertTrue(document["digest"].startswith("sha256:"))

    def test_json_of_an_invalid_policy(self) -> None:
        self.file.write_text("schema: 1\n")
        result = self.run_policy("check", str(self.file), "--json")
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(
            json.loads(result.stdout)["problems"],
            [
                {
                    "line": 1,
                    "column": 1,
                    "key": "rules",
                    "message": "the list of rules is missing",
                    "suggestion": "rules: [] denies everything",
                }
            ],
        )

    def test_standard_input(self) -> None:
        result = self.run_policy("check", "-", stdin=POLICY.encode())
        self.assertEqual(result.exit_code, 0)
        self.assertIn("<stdin> is valid", result.stdout)

    def test_missing_file_and_directory_are_wrong_usage(self) -> None:
        for path in (self.directory / "nowhere.yaml", self.directory):
            result = self.run_policy("check", str(path))
            self.assertEqual(result.exit_code, 2)
            self.assertIn(str(path), result.stderr)

    def test_a_file_that_cannot_be_read(self) -> None:
        """A file that vanishes or fails between the check and the reading is wrong usage too."""
        loop = self.directory / "loop"
        loop.symlink_to(loop)
        self.assertEqual(self.run_policy("check", str(loop)).exit_code, 2)
        self.assertEqual(self.run_policy("check", "/proc/self/mem").exit_code, 2)


class ExplainTests(PolicyCase):
    """`policy explain`."""

    def test_allowed(self) -> None:
        result = self.explain("--user", "bruce", "--group", "Dev team", "--action", "container_list")
        self.assertEqual(result.exit_code, 0)
        self.assertEqual(
            result.stdout.splitlines(),
            [
                "#  RULE       LINE  MATCHED  WHY",
                "1  devs_rule  3     yes      action listed: allow",
                "allowed: container_list for user 'bruce' on prod1 by rule 'devs_rule' (action listed)",
            ],
        )

    def test_denied_with_the_message(self) -> None:
        result = self.explain(
            "--user", "bruce", "--group", "x", "--group", "dev team", "--action", "image_pull"
        )
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(
            result.stdout.splitlines()[1:],
            [
                "1  devs_rule  3     yes      action not listed: deny",
                "denied: image_create for user 'bruce' on prod1 by rule 'devs_rule' (action not listed)",
                "message: Production is read-only; ask #platform.",
            ],
        )

    def test_every_earlier_rule_says_why_not(self) -> None:
        result = self.explain("--user", "eve", "--action", "container_list", "--source", "192.168.0.1")
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(
            result.stdout.splitlines()[1:],
            [
                "1  devs_rule  3     no       groups: [Dev team] does not match no groups",
                "2  office     9     no       networks: [10.0.0.0/8] does not include 192.168.0.1",
                "denied: container_list for user 'eve' on prod1 by rule 'default' (no rule matched)",
            ],
        )

    def test_via_and_source(self) -> None:
        arguments = ("--user", "eve", "--action", "container_list")
        self.assertEqual(self.explain(*arguments, "--source", "10.1.1.1").exit_code, 0)
        self.assertEqual(self.explain(*arguments, "--via", "unix").exit_code, 1)
        result = self.explain(*arguments)
        self.assertEqual(result.exit_code, 1)
        self.assertIn("source address cannot be determined", result.stdout)
        self.assertIn("--source", result.stdout)

    def test_host_is_this_machine_unless_told(self) -> None:
        host = os.uname().nodename.split(".")[0]
        self.file.write_text(f"schema: 1\nrules:\n  - {{name: r, hosts: ['{host}'], effect: allow}}\n")
        result = self.run_policy("explain", str(self.file), "--user", "a", "--action", "docker_ping")
        self.assertEqual(result.exit_code, 0, result.output)

    def test_unknown_operation_is_denied(self) -> None:
        self.file.write_text("schema: 1\nrules:\n  - {name: r, effect: allow}\n")
        result = self.explain("--user", "a", "--action", "unknown")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("by rule 'r' (unknown operation)", result.stdout)

    def test_a_name_of_two_actions_is_denied_if_one_is(self) -> None:
        arguments = ("--user", "a", "--source", "10.0.0.1", "--action")
        self.assertEqual(self.explain(*arguments, "image_save").exit_code, 0)
        result = self.explain(*arguments, "image_archive")
        self.assertEqual(result.exit_code, 1)
        self.assertIn(
            "image_archive is a name of images_archive and image_save; shown is images_archive", result.stdout
        )

    def test_json(self) -> None:
        result = self.explain("--user", "bruce", "--group", "Dev team", "--action", "image_pull", "--json")
        document = json.loads(result.stdout)
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(document["action"], "image_create")
        self.assertEqual(
            document["decision"],
            {
                "allowed": False,
                "effect": "deny",
                "rule": "devs_rule",
                "reason": "action not listed",
                "message": "Production is read-only; ask #platform.",
                "audit": "all",
                "durability": None,
            },
        )
        self.assertEqual(
            document["trace"],
            [{"rule": "devs_rule", "line": 3, "matched": True, "why": "action not listed: deny"}],
        )

    def test_invalid_policy(self) -> None:
        self.file.write_text("schema: 1\n")
        arguments = ("--user", "a", "--action", "docker_ping")
        result = self.explain(*arguments)
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        self.assertIn("the list of rules is missing", result.stderr)
        self.assertFalse(json.loads(self.explain(*arguments, "--json").stdout)["ok"])

    def test_wrong_usage(self) -> None:
        for arguments, told in (
            (("--user", "a"), "--action"),
            (("--action", "docker_ping"), "--user"),
            (("--user", "a", "--action", "docker_pong"), "did you mean docker_ping?"),
            (("--user", "a", "--action", "docker_ping", "--via", "tcp"), "--via"),
            (("--user", "a", "--action", "docker_ping", "--source", "here"), "'here' is not an IP address"),
            (("--user", "a", "--action", "docker_ping", "--via", "unix", "--source", "::1"), "no address"),
            (("--user", "a", "--action", "docker_ping", "--color"), "--color"),
        ):
            result = self.explain(*arguments)
            self.assertEqual(result.exit_code, 2, arguments)
            self.assertIn(told, result.stderr)

    def test_names_cannot_write_to_the_terminal(self) -> None:
        result = self.explain("--user", "a\x1b[2J", "--action", "docker_ping", "--group", "[red]x[/red]")
        self.assertNotIn("\x1b", result.stdout)
        self.assertIn("[red]x[/red]", result.stdout)


class HelpTests(PolicyCase):
    """`--help` with an example."""

    def test_every_command_has_an_example(self) -> None:
        for arguments in ((), ("check",), ("explain",)):
            result = self.run_policy(*arguments, "--help")
            self.assertEqual(result.exit_code, 0)
            self.assertIn("Example", result.stdout)
            self.assertIn("defenderctl policy ", result.stdout)

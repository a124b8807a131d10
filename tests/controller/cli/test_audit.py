"""`defenderctl audit tail`: what people and programs see of the event file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from click.testing import CliRunner, Result
from rich.cells import cell_len
from twisted.trial.unittest import SynchronousTestCase

from controller.cli.audit import event_file
from controller.cli.main import defenderctl
from defender.contract.audit import (
    Event,
    decision_of,
    defender_event,
    describe,
    gap_event,
    identity_event,
    policy_event,
    request_event,
    stream_end_event,
    timestamp,
    to_line,
)

ROOT = Path(__file__).resolve().parents[3]
START = 1_800_000_000.0  # 2027-01-15T08:00:00Z


class Allow:
    effect, rule, reason = "allow", "devs_rule", "matched"


class Deny:
    effect, rule, reason = "deny", "default", "no rule matched"


def sealed(event: Event, second: float = 0.0) -> Event:
    return {
        "v": 1,
        "id": "0193a2e4-0000-7000-8000-000000000000",
        "agent": "web1",
        "epoch": "9f3c00000000aaaa",
        "seq": 1,
        "ts_wall": timestamp(START + second),
        **event,
    }


def call(
    second: float, user: str = "bruce", action: str = "container_list", *, deny: bool = False, name: str = ""
) -> Event:
    request = describe(action, "GET", "/containers/json", (), {"name": name}, (1, 41))
    actor = {"user": user, "groups": [], "via": "tls", "src": "10.1.2.3:51234"}
    decision = decision_of(Deny if deny else Allow)
    return sealed(
        request_event(actor, request, decision, status=403 if deny else 200, sent=9, ms=0.44), second
    )


class TailCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.state = Path(directory.name)
        self.path = self.state / "audit" / "events.jsonl"
        self.path.parent.mkdir()

    def put(self, *events: Event, name: str = "events.jsonl") -> None:
        with (self.path.parent / name).open("ab") as file:
            file.write(b"".join(map(to_line, events)))

    def tail(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(defenderctl, ["audit", "tail", "--state", str(self.state), *arguments])
        self.assertEqual(result.exit_code, code, result.output + repr(result.exception))
        return result

    def users(self, *arguments: str, code: int = 0) -> list[str]:
        lines = self.tail("--json", *arguments, code=code).stdout.splitlines()
        return [json.loads(line)["actor"]["user"] for line in lines]


class Table(TailCase):
    def test_columns_are_aligned_and_fit(self) -> None:
        self.put(
            sealed(defender_event("defender_start", version="0.1.0")),
            call(1),
            call(2, "漢字" * 20, "container_exec_start", deny=True, name="x" * 300),
            call(3, "a" * 100),
        )
        header, *rows = self.tail().stdout.splitlines()
        self.assertEqual(
            header.split(), ["TIME", "(UTC)", "USER", "ACTION", "TARGET", "RESULT", "RULE", "MS"]
        )
        for row in rows:
            self.assertLessEqual(cell_len(row), 100)
        self.assertEqual(
            rows[1].split(),
            ["01-15", "08:00:01", "bruce", "container_list", "allow", "200", "devs_rule", "0.4"],
        )
        self.assertEqual(rows[1].index("allow"), header.index("RESULT"))
        self.assertEqual(rows[3].index("allow"), header.index("RESULT"))
        wide = rows[2]
        self.assertEqual(cell_len(wide[: wide.index("deny 403")]), header.index("RESULT"))
        self.assertIn("…", wide)

    def test_every_kind_has_a_row(self) -> None:
        request = describe("container_attach", "POST", "/containers/x/attach", (), {"name": "x"})
        actor = {"user": "bruce", "groups": [], "via": "tls"}
        decision = decision_of(Allow)
        self.put(
            sealed(policy_event("policy_load", "p.yaml", ok=False, problems=["p.yaml:3:1: no"])),
            sealed(identity_event("expired", "ended", subject="eve", address="::1", port=4)),
            sealed(gap_event(25, 1, 3.0, "No space left on device")),
            sealed(request_event(actor, request, decision, corr="c")),
            sealed(request_event(actor, request, decision, corr="c", status=502, error="Engine away")),
            sealed(stream_end_event(actor, request, decision, corr="c", received=1, sent=2, ms=123456.0)),
        )
        _, *rows = self.tail().stdout.splitlines()
        for row, words in zip(
            rows,
            (
                ("policy_load", "p.yaml:3:1: no", "failed"),
                ("eve", "handshake", "expired: ended", "deny"),
                ("audit_gap", "No space left o", "lost 25"),
                ("container_attach", "attempt"),
                ("allow 502",),
                ("end", "123s"),
            ),
            strict=True,
        ):
            for word in words:
                self.assertIn(word, row)

    def test_nothing_of_a_request_steers_the_terminal(self) -> None:
        self.put(call(1, "eve\x1b[2J\r\n\u202e\x9b31m", name="a\x07\x7f\ud800"))
        for arguments in ([], ["--json"]):
            output = self.tail(*arguments).stdout
            self.assertEqual([c for c in output if not c.isprintable() and c != "\n"], [])
            self.assertEqual(len(output.splitlines()), 2 - len(arguments))
        self.assertIn(r"eve\x1b[2J\r\n", self.tail().stdout)

    def test_colors_are_for_terminals_alone(self) -> None:
        self.put(call(1, deny=True))
        self.assertNotIn("\x1b", self.tail().stdout)
        main, terminal = os.openpty()
        self.addCleanup(os.close, main)
        try:
            subprocess.run(
                [sys.executable, "-m", "controller.cli.main", "audit", "tail", "--state", str(self.state)],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                check=True,
            )
        finally:
            os.close(terminal)
        self.assertIn(b"\x1b[31mdeny 403", os.read(main, 65536))


class Filters(TailCase):
    def setUp(self) -> None:
        super().setUp()
        self.put(
            call(0, "Bruce"),
            call(60, "ci-1", "container_create", deny=True),
            call(120, "ci-2", "image_create"),
            call(180, "eve", "images_archive", deny=True),
        )

    def test_by_user(self) -> None:
        self.assertEqual(self.users("--user", "CI-*"), ["ci-1", "ci-2"])
        self.assertEqual(self.users("--user", "bruce", "--user", "eve"), ["Bruce", "eve"])

    def test_by_action_and_its_other_names(self) -> None:
        self.assertEqual(self.users("--action", "*_create"), ["ci-1", "ci-2"])
        self.assertEqual(self.users("--action", "images_archive"), ["eve"])
        result = self.tail("--json", "--action", "image_creat")
        self.assertEqual(result.stdout, "")
        self.assertIn("did you mean 'image_create'?", result.stderr)

    def test_other_names_of_an_action_find_it(self) -> None:
        self.put(call(200, "head", "container_archive_info"))
        self.assertEqual(self.users("--action", "container_archive_head"), ["head"])

    def test_denied_alone(self) -> None:
        self.assertEqual(self.users("--denied"), ["ci-1", "eve"])
        self.assertEqual(self.users("--denied", "--user", "ci-*"), ["ci-1"])

    def test_since(self) -> None:
        self.assertEqual(self.users("--since", "2027-01-15T08:02:00Z"), ["ci-2", "eve"])
        self.assertEqual(self.users("--since", "2027-01-15T09:01:00+01:00"), ["ci-1", "ci-2", "eve"])
        self.assertIn("is no time", self.tail("--since", "yesterday", code=2).stderr)
        self.assertIn("is no time", self.tail("--since", "9" * 9 + "d", code=2).stderr)

    def test_since_looks_past_a_clock_that_was_set_back(self) -> None:
        self.put(call(10, "late"))
        self.assertEqual(self.users("--since", "2027-01-15T08:03:00Z"), ["eve"])

    def test_the_last_n(self) -> None:
        self.assertEqual(self.users("-n", "2"), ["ci-2", "eve"])
        self.assertEqual(self.users("-n", "1", "--denied", "--user", "ci-*"), ["ci-1"])
        self.assertEqual(self.users("-n", "0"), [])
        self.put(*(call(300 + number, f"u{number}") for number in range(30)))
        self.assertEqual(self.users(), [f"u{number}" for number in range(10, 30)])
        self.assertEqual(len(self.users("--since", "2027-01-15")), 34)

    def test_json_lines_are_as_they_are_stored(self) -> None:
        self.assertEqual(self.tail("--json").stdout_bytes, self.path.read_bytes())


class Files(TailCase):
    def test_rotated_files_belong_to_it(self) -> None:
        for number, name in enumerate(("events.jsonl.2", "events.jsonl.1", "events.jsonl")):
            self.put(*(call(number * 100 + i, f"{number}.{i}") for i in range(10)), name=name)
        everyone = [f"{number}.{i}" for number in range(3) for i in range(10)]
        self.assertEqual(self.users("-n", "25"), everyone[5:])
        self.assertEqual(self.users("-n", "100"), everyone)

    def test_between_a_rotation_and_the_next_event_there_is_no_current_file(self) -> None:
        self.put(call(1), name="events.jsonl.1")
        self.assertEqual(self.users(), ["bruce"])

    def test_no_file(self) -> None:
        self.assertIn("there is no such file; has a defender run here?", self.tail(code=1).stderr)

    def test_damaged_lines_are_named_and_passed_over(self) -> None:
        self.put(call(1, "one"))
        with self.path.open("ab") as file:
            file.write(b'\x00\xff{"\n[]\n\n{"v":9}\n{"v":1}\n' + b"[" * 100_000 + b"\n")
        self.put(call(2, "two"))
        with self.path.open("ab") as file:
            file.write(b'{"v":1,')
        result = self.tail("--json", code=1)
        self.assertEqual(
            [json.loads(line)["actor"]["user"] for line in result.stdout.splitlines()], ["one", "two"]
        )
        self.assertEqual(
            [line.removeprefix(f"{self.path}:") for line in reversed(result.stderr.splitlines())],
            [
                "2: is not JSON; passed over",
                "3: is not an event; passed over",
                "4: is not JSON; passed over",
                "5: is an event of version 9, which is not known here; passed over",
                "6: is not a complete event; passed over",
                "7: is not JSON; passed over",
                "9: the line is cut off; passed over",
            ],
        )

    def test_lines_of_any_length_are_read(self) -> None:
        for length in (65_400, 65_536, 200_000):
            self.put(call(1, "x" * length))
        self.assertEqual([len(user) for user in self.users()], [65_400, 65_536, 200_000])

    def test_the_settings_say_where_the_file_is(self) -> None:
        self.assertEqual(event_file(self.state), self.path)
        (self.state / "defender.toml").write_text('[defender]\nstate = "own"\n')
        self.assertEqual(event_file(self.state), self.state / "own" / "audit" / "events.jsonl")
        (self.state / "defender.toml").write_text(
            '[defender]\nstate="own"\n[audit]\nfile = "/var/log/e.jsonl"\n'
        )
        self.assertEqual(event_file(self.state), Path("/var/log/e.jsonl"))
        (self.state / "defender.toml").write_text("[")
        self.assertEqual(event_file(self.state), self.path)


class Processes(TailCase):
    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "controller.cli.main",
                "audit",
                "tail",
                "--state",
                str(self.state),
                *arguments,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

        def end() -> None:
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def test_follows_across_a_rotation_until_interrupted(self) -> None:
        self.put(call(1, "one"))
        process = self.start("-f", "--json")
        assert process.stdout is not None
        users = [json.loads(process.stdout.readline())["actor"]["user"]]
        self.put(call(2, "two"))
        users.append(json.loads(process.stdout.readline())["actor"]["user"])
        self.put(call(3, "three"))
        self.path.rename(self.path.with_name("events.jsonl.1"))
        self.put(call(4, "four"))
        users.extend(json.loads(process.stdout.readline())["actor"]["user"] for _ in range(2))
        self.assertEqual(users, ["one", "two", "three", "four"])
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
        self.assertEqual((process.returncode, output, errors), (130, b"", b""))

    def test_a_reader_that_leaves_is_no_error(self) -> None:
        self.put(*(call(number, "x" * 2000) for number in range(500)))
        process = self.start("--json", "-n", "500")
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        self.assertEqual((process.wait(), process.stderr.read()), (0, b""))

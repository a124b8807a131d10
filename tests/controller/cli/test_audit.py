"""`defenderctl audit tail`: what people and programs see of the spool."""

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

from controller.cli.event_table import part
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
)
from defender.contract.spool_reading import Entry, read_spool
from docs.reference_pages import EXAMPLE
from tests.fakes.spool import START, SpoolWriter
from tests.schema import faults

ROOT = Path(__file__).resolve().parents[3]


class Allow:
    effect, rule, reason = "allow", "devs_rule", "matched"


class Deny:
    effect, rule, reason = "deny", "default", "no rule matched"


def call(user: str = "bruce", action: str = "container_list", *, deny: bool = False, name: str = "") -> Event:
    request = describe(action, "GET", "/containers/json", (), {"name": name}, (1, 41))
    actor = {"user": user, "groups": [], "via": "tls", "src": "10.1.2.3:51234"}
    decision = decision_of(Deny if deny else Allow)
    event = request_event(actor, request, decision, status=403 if deny else 200, sent=9, ms=0.44)
    del event["corr"]
    return event


class TailCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.state = Path(directory.name)
        self.path = self.state / "audit"
        self.writer = SpoolWriter(size=8 * 1024)
        self.writer.start()

    def put(self, *events: Event, at: float | None = None) -> None:
        """Record events, a second each from second `at` on."""
        if at is not None:
            self.writer.now = START + int(at * 1_000_000)
        for event in events:
            event.pop("corr", None)
            self.writer.put(event)
        self.writer.save(self.path)

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
            defender_event("defender_start", version="0.1.0"),
            call(),
            call("漢字" * 20, "container_exec_start", deny=True, name="x" * 300),
            call("a" * 100),
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
            policy_event("policy_load", "p.yaml", ok=False, problems=["p.yaml:3:1: no"]),
            identity_event("expired", "ended", subject="eve", address="::1", port=4),
            gap_event(25, 1, 3.0, "No space left on device"),
            request_event(actor, request, decision, corr="c"),
            request_event(actor, request, decision, corr="c", status=502, error="Engine away"),
            stream_end_event(actor, request, decision, corr="c", received=1, sent=2, ms=123456.0),
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

    def test_the_target_is_what_people_know_it_by(self) -> None:
        exec_create = call("one", "container_exec_create", name="4f1c")
        exec_create["req"] = {
            **part(exec_create, "req"),
            "container": {"name": "web"},
            "body": {"command": ["ls", "-l"]},
        }
        start = call("two", "container_exec_start", name="9ab3")
        start["req"] = {**part(start, "req"), "container": {"id": "4f1c", "name": "db"}}
        create = call("three", "container_create")
        create["req"] = {**part(create, "req"), "body": {"image": "nginx:1", "command": ["x"]}}
        many = call("four", deny=True)
        many["result"] = {"status": 429, "count": 57, "ms": 10.0}
        lost = {**gap_event(0, 0, 0.0, "the disk")}
        self.put(exec_create, start, create, many, lost)
        _, *rows = self.tail().stdout.splitlines()
        for row, words in zip(rows, ("web: ls -l", " db ", "nginx:1 ", "57 times", "lost ?"), strict=True):
            self.assertIn(words, row)

    def test_nothing_of_a_request_steers_the_terminal(self) -> None:
        self.put(call("eve\x1b[2J\r\n\u202e\x9b31m", name="a\x07\x7f\ud800"))
        for arguments in ([], ["--json"]):
            output = self.tail(*arguments).stdout
            self.assertEqual([c for c in output if not c.isprintable() and c != "\n"], [])
            self.assertEqual(len(output.splitlines()), 2 - len(arguments))
        self.assertIn(r"eve\x1b[2J\r\n", self.tail().stdout)

    def test_colors_are_for_terminals_alone(self) -> None:
        self.put(call(deny=True))
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
        self.put(call("Bruce"), at=0)
        self.put(call("ci-1", "container_create", deny=True), at=60)
        self.put(call("ci-2", "image_create"), at=120)
        self.put(call("eve", "images_archive", deny=True), at=180)

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
        self.put(call("head", "container_archive_info"))
        self.assertEqual(self.users("--action", "container_archive_head"), ["head"])

    def test_denied_alone(self) -> None:
        self.assertEqual(self.users("--denied"), ["ci-1", "eve"])
        self.assertEqual(self.users("--denied", "--user", "ci-*"), ["ci-1"])

    def test_denied_is_the_decision_and_no_word_of_a_request(self) -> None:
        self.put(call("effect\udca4deny", name="effect deny"))
        self.assertEqual(self.users("--denied"), ["ci-1", "eve"])

    def test_since(self) -> None:
        self.assertEqual(self.users("--since", "2027-01-15T08:02:00Z"), ["ci-2", "eve"])
        self.assertEqual(self.users("--since", "2027-01-15T09:01:00+01:00"), ["ci-1", "ci-2", "eve"])
        self.assertIn("is no time", self.tail("--since", "yesterday", code=2).stderr)
        self.assertIn("is no time", self.tail("--since", "9" * 9 + "d", code=2).stderr)
        self.assertEqual(len(self.users("--since", "1969-01-01T00:00:00Z")), 4)

    def test_since_looks_past_a_clock_that_was_set_back(self) -> None:
        self.put(call("late"), at=10)
        self.assertEqual(self.users("--since", "2027-01-15T08:03:00Z"), ["eve"])
        self.writer.segment()
        self.put(call("later"), at=20)
        self.assertEqual(self.users("--since", "2027-01-15T08:03:00Z"), ["eve"])

    def test_since_reads_the_segments_that_it_needs(self) -> None:
        for hour in range(1, 6):
            self.writer.now = START + hour * 3_600_000_000
            self.writer.segment()
            self.put(call(f"hour {hour}"))
        self.assertEqual(self.users("--since", "2027-01-15T11:00:00Z"), ["hour 3", "hour 4", "hour 5"])
        self.assertEqual(len(self.users("--since", "2027-01-15T08:00:00Z")), 9)

    def test_the_last_n(self) -> None:
        self.assertEqual(self.users("-n", "2"), ["ci-2", "eve"])
        self.assertEqual(self.users("-n", "1", "--denied", "--user", "ci-*"), ["ci-1"])
        self.assertEqual(self.users("-n", "0"), [])
        self.put(*(call(f"u{number}") for number in range(30)))
        self.assertEqual(self.users(), [f"u{number}" for number in range(10, 30)])
        self.assertEqual(len(self.users("--since", "2027-01-15")), 34)

    def test_the_last_n_may_lie_many_segments_back(self) -> None:
        for number in range(30):
            self.writer.segment()
            self.put(call(f"u{number}"))
        self.assertEqual(self.users(), [f"u{number}" for number in range(10, 30)])
        self.assertEqual(self.users("--user", "u3", "-n", "1"), ["u3"])
        self.assertEqual(self.users("--denied"), ["ci-1", "eve"])

    def test_json_lines_have_the_documented_keys(self) -> None:
        schema = json.loads((ROOT / "docs" / "reference" / "event.schema.json").read_text("utf-8"))
        lines = self.tail("--json").stdout.splitlines()
        for line in lines:
            event = json.loads(line)
            self.assertEqual(faults(event, schema), [])
            self.assertEqual([key for key in event if key != "ts_mono"], list(EXAMPLE))
        first = json.loads(lines[0])
        self.assertEqual((first["seq"], first["agent"], first["epoch"]), (1, "web1", "9f3c00000000aaaa"))
        self.assertEqual(first["ts_wall"], "2027-01-15T08:00:00.000Z")


class Spools(TailCase):
    def test_all_segments_and_epochs_belong_to_it(self) -> None:
        for number in range(3):
            self.put(*(call(f"{number}.{i}") for i in range(40)))
            self.writer.close()
            self.writer.start()
        self.put()
        self.assertGreater(len(self.writer.files), 5)
        everyone = [f"{number}.{i}" if i < 40 else "" for number in range(3) for i in range(41)]
        self.assertEqual(self.users("-n", "60"), everyone[-60:])
        self.assertEqual(self.users("-n", "1000"), everyone)

    def test_no_spool(self) -> None:
        self.assertIn("there is no spool; has a defender run here?", self.tail(code=1).stderr)
        self.path.mkdir()
        self.assertEqual(self.tail().stdout, "")

    def test_damage_is_shown_in_its_place(self) -> None:
        self.put(*(call(f"u{number}") for number in range(5)))
        name = self.writer.name
        items = [item for item in read_spool(self.writer.files.items()) if isinstance(item, Entry)]
        self.writer.write(items[2].record.offset + 60, b"\xff\xff")
        self.put()
        result = self.tail(code=1)
        rows = result.stdout.splitlines()
        self.assertEqual(len(rows), 1 + 2 + 2 + 2)
        self.assertIn("audit_damage", rows[3])
        self.assertIn("lost 1", rows[3])
        self.assertEqual(rows[3].index("lost"), rows[0].index("RESULT"))
        self.assertIn(f"{name}, byte {items[2].record.offset}: a record's checksum does not hold", rows[4])
        self.assertIn("event 3 is missing", rows[4])
        result = self.tail("--json", code=1)
        events = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([event["kind"] for event in events], ["engine", "engine", "gap", "engine", "engine"])
        self.assertEqual([event["seq"] for event in events], [1, 2, 3, 4, 5])
        self.assertIn("event 3 is missing", result.stderr)
        schema = json.loads((ROOT / "docs" / "reference" / "event.schema.json").read_text("utf-8"))
        self.assertEqual(faults(events[2], schema), [])
        self.assertEqual(self.tail("--json", code=1).stdout, result.stdout, "the same event each time")

    def test_missing_segments_are_shown_in_their_place(self) -> None:
        self.put(*(call(f"u{number}") for number in range(100)))
        gone = list(self.writer.files)[1]
        del self.writer.files[gone]
        self.put()
        events = [json.loads(line) for line in self.tail("--json", "-n", "200").stdout.splitlines()]
        self.assertEqual([event["kind"] for event in events].count("gap"), 1)
        (gap,) = [event for event in events if event["kind"] == "gap"]
        self.assertEqual(gap["result"]["dropped"], 101 - len(events))
        self.assertEqual(gap["seq"], gap["result"]["first_seq"] + gap["result"]["dropped"] - 1)
        self.assertIn(f"lost {gap['result']['dropped']}", self.tail("-n", "200").stdout)

    def test_what_is_amiss_before_what_was_asked_for_is_not_shown(self) -> None:
        self.put(*(call(f"u{number}") for number in range(100)))
        del self.writer.files[list(self.writer.files)[1]]
        self.put()
        self.assertNotIn("lost", self.tail("-n", "5").stdout)
        self.put(call("late"), at=86400)
        self.assertNotIn("lost", self.tail("--since", "2027-01-16T00:00:00Z").stdout)

    def test_a_defender_that_was_killed_is_shown(self) -> None:
        self.put(call("one"))
        self.writer.start()
        self.put(call("two"))
        rows = self.tail().stdout.splitlines()
        self.assertIn("lost ?", rows[2])
        self.assertIn("did not end this epoch in good order", rows[3])
        result = self.tail("--json")
        self.assertEqual(len(result.stdout.splitlines()), 2)
        self.assertIn("did not end this epoch in good order", result.stderr)

    def test_a_record_that_is_no_event_is_shown(self) -> None:
        self.put(call("one"))
        self.writer.append([b"\x91" * 100])
        self.put(call("three"))
        result = self.tail("--json", code=1)
        self.assertEqual(
            [json.loads(line)["kind"] for line in result.stdout.splitlines()], ["engine", "gap", "engine"]
        )
        self.assertIn("event 2 is missing", result.stderr)

    def test_segments_of_others_are_told(self) -> None:
        self.put(call("one"))
        other = SpoolWriter("web2", now=START - 10_000_000)
        other.start(7)
        other.put(call("two"))
        self.writer.files.update(other.files)
        self.put()
        self.assertEqual(self.users(code=1), ["one"])
        self.assertIn("belongs to defender 'web2'", self.tail("--json", code=1).stderr)

    def test_a_record_that_is_being_written_is_not_there_yet(self) -> None:
        self.put(call("one"))
        self.writer.write(self.writer.end, b"\0\0\1\0half")
        self.put()
        result = self.tail("--json")
        self.assertEqual((len(result.stdout.splitlines()), result.stderr), (1, ""))

    def test_events_of_any_length_are_read(self) -> None:
        self.writer.size = 2 * 1024 * 1024
        self.writer.segment()
        lengths = [65_400, 65_536, 1_000_000]
        self.put(*(call("x" * length) for length in lengths))
        self.assertEqual([len(user) for user in self.users()], lengths)

    def test_a_directory_or_a_single_segment_may_be_named(self) -> None:
        self.put(call("one"))
        copy = self.state / "a copy of it"
        copy.write_bytes(next(iter(self.writer.files.values())))
        for path in (self.path, self.path / self.writer.name, copy):
            result = CliRunner().invoke(defenderctl, ["audit", "tail", "--json", "--spool", str(path)])
            self.assertEqual((result.exit_code, len(result.stdout.splitlines())), (0, 1), result.output)
        copy.write_bytes(b"not one")
        result = CliRunner().invoke(defenderctl, ["audit", "tail", "--spool", str(copy)])
        self.assertEqual(result.exit_code, 1)
        self.assertIn("is not a segment of a spool", result.output)


class Processes(TailCase):
    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "controller.cli.main", "audit", "tail", "--state", str(self.state)]
        process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )

        def end() -> None:
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def test_follows_into_new_segments_and_epochs_until_interrupted(self) -> None:
        self.put(call("one"))
        process = self.start("-f", "--json")
        assert process.stdout is not None
        output = process.stdout

        def users(count: int) -> list[str]:
            return [json.loads(output.readline())["actor"]["user"] for _ in range(count)]

        self.assertEqual(users(1), ["one"])
        self.put(call("two"))
        self.assertEqual(users(1), ["two"])
        self.put(call("three"))
        self.writer.segment()
        self.put(call("four"))
        self.assertEqual(users(2), ["three", "four"])
        self.writer.close()
        self.writer.start()
        self.put(call("five"))
        self.assertEqual(users(2), ["", "five"])
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
        self.assertEqual((process.returncode, rest, errors), (130, b"", b""))

    def test_waits_for_a_spool(self) -> None:
        process = self.start("-f", "--json")
        assert process.stdout is not None
        assert process.stderr is not None
        self.assertIn(b"waiting for the spool", process.stderr.readline())
        self.put(call("one"))
        self.assertEqual(json.loads(process.stdout.readline())["actor"]["user"], "one")

    def test_files_that_may_not_be_read(self) -> None:
        """Also for root, who may read everything: it becomes somebody else first."""
        self.put(call("one"))
        self.path.chmod(0)
        self.addCleanup(self.path.chmod, 0o700)
        program = (
            "import os, sys; from controller.cli.main import defenderctl; import controller.cli.audit;"
            "os.geteuid() or os.seteuid(65534); defenderctl(sys.argv[1:])"
        )
        self.state.chmod(0o755)
        for command in ("tail", "verify"):
            arguments = ["audit", command, "--spool", str(self.path)]
            done = subprocess.run(
                [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, check=False
            )
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(b"Permission denied; try it as root or as the defender's user", done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)

    def test_a_reader_that_leaves_is_no_error(self) -> None:
        self.put(*(call("x" * 2000) for number in range(500)))
        process = self.start("--json", "-n", "500")
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        self.assertEqual((process.wait(), process.stderr.read()), (0, b""))

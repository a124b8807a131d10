"""`defenderctl local`: what people see, and what the defender is asked."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from controller.cli import local
from controller.cli.local import ask, place_of
from controller.cli.main import defenderctl
from defender.contract.local import Answer, LocalError, Request, read_request, write_answer
from defender.contract.locks import Lock, dump_locks

LISTENER = {
    "desired": "unix",
    "actual": "unix",
    "configured": "tcp",
    "last_error": "",
    "listeners": [
        {
            "address": "tcp://0.0.0.0:9998",
            "bound": [],
            "state": "draining",
            "connections": 2,
            "drain_left": 9.5,
        },
        {"address": "unix:///d", "bound": ["unix:///d"], "state": "accepting", "connections": 1},
    ],
}


class Local(SynchronousTestCase):
    def setUp(self) -> None:
        self.state = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.state)
        self.asked: list[Request] = []

    def settings(self, text: str) -> None:
        (self.state / "defender.toml").write_text(text)

    def answers(self, *lines: bytes, path: str = "control.sock") -> None:
        """Stand in for a defender: one connection for each line."""
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(self.state / path))
        server.listen()

        def serve() -> None:
            with server:
                for line in lines:
                    client, _ = server.accept()
                    with client, client.makefile("rb") as file:
                        self.asked.append(read_request(file.readline()[:-1]))
                        client.sendall(line)

        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join)

    def result(self, **result: Any) -> None:
        self.answers(write_answer(Answer(True, result)))

    def run_local(self, *arguments: str) -> Result:
        return CliRunner().invoke(defenderctl, ["local", *arguments], env={"FLEET_STATE": str(self.state)})

    def text(self, *arguments: str, code: int = 0) -> str:
        done = self.run_local(*arguments)
        self.assertEqual(done.exit_code, code, done.output)
        return done.output


class Setting(Local):
    def test_a_switch(self) -> None:
        self.result(mode="unix", outcome="switched", warning="", listeners=LISTENER["listeners"])
        output = self.text("listener", "set", "unix", "--drain", "10m")
        self.assertEqual(self.asked, [Request("listener_set", {"mode": "unix", "drain": 600.0})])
        self.assertEqual(
            output.splitlines(),
            ["Listener mode unix: unix:///d", "2 connections of closed listeners go on until they end."],
        )

    def test_without_a_limit_the_settings_decide(self) -> None:
        self.result(mode="none", listeners=[])
        self.assertEqual(self.text("listener", "set", "none"), "Listener mode none\n")
        self.assertEqual(self.asked, [Request("listener_set", {"mode": "none"})])

    def test_a_failed_switch_prints_the_reason_and_exits_with_1(self) -> None:
        self.answers(write_answer(Answer(False, {}, "tcp://0.0.0.0:9998: the address is in use")))
        output = self.text("listener", "set", "tcp", code=1)
        self.assertEqual(output, "tcp://0.0.0.0:9998: the address is in use\n")

    def test_a_warning_is_shown(self) -> None:
        self.result(mode="unix", listeners=[], warning="the mode is not kept over a restart")
        self.assertIn("not kept", self.text("listener", "set", "unix"))

    def test_wrong_usage_exits_with_2(self) -> None:
        for arguments in (["tls"], ["tcp", "--drain", "soon"], ["tcp", "--drain", "9d"], []):
            self.text("listener", "set", *arguments, code=2)

    def test_reload(self) -> None:
        self.result(said=["listen.drain has changed"])
        self.assertEqual(self.text("reload"), "listen.drain has changed\n")


class Showing(Local):
    def test_listeners(self) -> None:
        self.result(listener=LISTENER)
        output = self.text("listener", "show")
        self.assertIn("Listener mode unix; the settings say tcp, overridden by", output)
        self.assertIn("tcp://0.0.0.0:9998  draining, 9.5 s left  2", output)

    def test_listeners_as_json(self) -> None:
        self.result(listener=LISTENER)
        self.assertEqual(json.loads(self.text("listener", "show", "--json")), {"running": True, **LISTENER})

    def test_the_mode_at_the_next_start(self) -> None:
        self.settings('[listen]\nmode = "unix"\n')
        self.assertIn("start in listener mode unix", self.text("listener", "show"))
        note = self.state / "listener.json"
        for text, mode in [
            ('{"mode": "none", "over": "unix"}', "none"),
            ('{"mode": "none", "over": "tcp"}', "unix"),
            ('{"mode": "x", "over": "unix"}', "unix"),
            ("[]", "unix"),
            ("{", "unix"),
        ]:
            note.write_text(text)
            shown = json.loads(self.text("listener", "show", "--json"))
            self.assertEqual((shown["running"], shown["desired"]), (False, mode), text)

    def test_status(self) -> None:
        self.result(
            name="web1",
            policy={"digest": "sha256:ab", "error": None},
            counters={"requests": 7, "ok": True},
            listener=LISTENER,
        )
        lines = [line.split() for line in self.text("status").splitlines()]
        for words in (
            ["name", "web1"],
            ["policy.error", "-"],
            ["counters.requests", "7"],
            ["counters.ok", "yes"],
        ):
            self.assertIn(words, lines)

    def test_status_as_json(self) -> None:
        self.result(name="web1")
        self.assertEqual(json.loads(self.text("status", "--json")), {"name": "web1"})

    def test_control_characters_do_not_reach_the_terminal(self) -> None:
        self.result(name="\x1b[2Jweb1")
        self.assertNotIn("\x1b", self.text("status"))


class Locking(Local):
    def test_add_and_remove(self) -> None:
        for verb, words in (("add", "Locked: "), ("remove", "No longer locked: ")):
            self.result(changed=True)
            self.assertEqual(self.text("lock", verb, "--group", "Dev team"), f"{words}group Dev team\n")
            self.assertEqual(
                self.asked.pop(), Request(f"lock_{verb}", {"kind": "group", "value": "Dev team"})
            )
            (self.state / "control.sock").unlink()

    def test_a_serial_with_its_issuer(self) -> None:
        self.result(changed=True)
        self.text("lock", "add", "--serial", "0x7F", "--issuer", "CN=users")
        arguments = {"kind": "serial", "value": "7f", "issuer": "CN=users"}
        self.assertEqual(self.asked, [Request("lock_add", arguments)])

    def test_what_was_not_locked(self) -> None:
        self.result(changed=False)
        self.assertEqual(self.text("lock", "remove", "--user", "bruce", code=1), "not locked: user bruce\n")

    def test_wrong_usage(self) -> None:
        for arguments in (
            [],
            ["--user", "a", "--group", "b"],
            ["--serial", "xyz"],
            ["--user", "a", "--issuer", "b"],
        ):
            self.text("lock", "add", *arguments, code=2)

    def test_list(self) -> None:
        self.result(locks=[{"kind": "user", "value": "bruce"}])
        self.assertIn("user  bruce", self.text("lock", "list"))

    def test_list_without_a_defender_reads_the_file(self) -> None:
        self.assertEqual(self.text("lock", "list"), "Nobody is locked.\n")
        text = dump_locks(frozenset({Lock("serial", "7f", "CN=users")}))
        (self.state / "locks.json").write_text(text)
        self.assertEqual(self.text("lock", "list", "--json"), text)
        (self.state / "locks.json").write_text("{")
        self.assertIn("locks.json: not JSON", self.text("lock", "list", code=1))


class Reaching(Local):
    def test_no_defender(self) -> None:
        for arguments in (["status"], ["reload"], ["listener", "show"], ["lock", "add", "--user", "x"]):
            output = self.text(*arguments, code=1)
            self.assertIn("no defender answers at", output)
            self.assertIn("--state", output)

    def test_a_dead_socket(self) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self.state / "control.sock"))
        self.assertIn("no defender answers at", self.text("status", code=1))

    def test_no_permission(self) -> None:
        def refuse(self: object, address: object) -> None:
            raise PermissionError(13, "Permission denied")

        self.patch(socket.socket, "connect", refuse)
        self.assertIn("try it with sudo", self.text("status", code=1))

    def test_a_refusal_of_the_defender(self) -> None:
        self.answers(write_answer(Answer(False, {}, "only root may")))
        self.assertEqual(self.text("status", code=1), "only root may\n")

    def test_an_answer_that_is_none(self) -> None:
        for line, words in ((b"", "without an answer"), (b"hello\n", "not JSON"), (b'{"ok":1}\n', "form")):
            self.answers(line)
            self.assertIn(words, self.text("status", code=1))
            (self.state / "control.sock").unlink()

    def test_a_defender_that_hangs(self) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            path = self.state / "control.sock"
            server.bind(str(path))
            server.listen()
            error = self.assertRaises(LocalError, ask, path, Request("status"), 0.05)
            self.assertIn("did not answer within 0.05 s", str(error))

    def test_an_answer_without_end(self) -> None:
        self.patch(local, "MAX_ANSWER", 10)
        self.answers(b"x" * 20)
        self.assertIn("longer than 10 bytes", self.text("status", code=1))


class Places(Local):
    def test_defaults(self) -> None:
        place = place_of(self.state)
        self.assertEqual((place.control, place.configured), (self.state / "control.sock", None))

    def test_settings_say_where(self) -> None:
        self.settings(
            '[defender]\nstate = "own"\n[control]\nsocket = "/run/d/c.sock"\n[policy]\nlocks = "l.json"\n'
        )
        place = place_of(self.state)
        self.assertEqual(place.control, Path("/run/d/c.sock"))
        self.assertEqual(place.locks, self.state / "l.json")
        self.assertEqual(place.mode_file, self.state / "own" / "listener.json")
        self.assertEqual(place.configured, "tcp")

    def test_settings_in_a_folder_of_their_own(self) -> None:
        folder = self.state / "defender"
        folder.mkdir()
        (folder / "defender.toml").write_text('[defender]\nstate = "."\n')
        self.assertEqual(place_of(self.state).control, folder / "control.sock")

    def test_damaged_settings_count_as_none(self) -> None:
        for text in ("[", 'control = 1\ndefender = "x"\n', "[control]\nsocket = 1\n"):
            self.settings(text)
            self.assertEqual(place_of(self.state).control, self.state / "control.sock")

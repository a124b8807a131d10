"""Locks, tokens and the status of a fleet on the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from twisted.internet.defer import succeed

from tests.controller.api.doubles import example, only
from tests.controller.cli.fleet_server import FleetTestCase
from tests.test_docs import ROOT


class CommonTests(FleetTestCase):
    """What every command does."""

    def test_who_is_not_signed_in_is_told_how(self) -> None:
        self.file.unlink()
        self.assertIn("defenderctl login HOST --ca FILE", self.bad("status"))
        self.sign_in("wrong")
        self.assertIn("(defenderctl login)", self.bad("status"))

    def test_who_may_not_is_told_what_is_missing(self) -> None:
        self.sign_in(only("status.read"))
        self.good("status")
        self.assertIn("locks.read", self.bad("lock", "list"))

    def test_ctrl_c_is_free_again_afterwards(self) -> None:
        before = signal.getsignal(signal.SIGINT)
        self.good("status")
        self.assertIs(signal.getsignal(signal.SIGINT), before)

    def test_nobody_there(self) -> None:
        self.server.stop()
        self.patch(self.server, "stop", lambda: None)
        told = self.bad("status").splitlines()
        self.assertEqual(len(told), 2, told)

    def test_every_command_has_an_example_and_json(self) -> None:
        from docs.cli_page import commands, help_text  # its imports are many

        silent = {"login", "logout", "pki", "local"}
        for words, command in commands():
            if len(words) == 1 or words[1] in silent or hasattr(command, "commands"):
                continue
            told = help_text(words, command)
            self.assertIn("Example", told, words)
            if words[1:] not in (("policy", "show"), ("audit", "export")):
                self.assertIn("--json", told, words)

    def test_nothing_of_twisted_is_imported_for_a_local_command(self) -> None:
        script = (
            "import sys\n"
            "from controller.cli.main import defenderctl\n"
            "for words in (['policy', 'check', '--help'], ['audit', 'tail', '--help'], ['--help']):\n"
            "    defenderctl(words, standalone_mode=False)\n"
            "print('treq' in sys.modules)\n"
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=True
        )
        self.assertEqual(done.stdout.split()[-1], b"False")


class LockTests(FleetTestCase):
    """`defenderctl lock`."""

    def test_add(self) -> None:
        told = self.good("lock", "add", "--user", "bruce@example.com", "--reason", "laptop lost")
        self.assertIn("Locked: user bruce@example.com; 1 of 1 defender have it", told)
        self.assertEqual(
            self.world.fleet.locks_held,
            [{"kind": "user", "value": "bruce@example.com", "reason": "laptop lost"}],
        )
        again = self.good("lock", "add", "--user", "bruce@example.com", "--reason", "laptop lost")
        self.assertIn("Locked already", again)

    def test_the_numbers_are_those_after_a_moment(self) -> None:
        waiting = {**example("Lock"), "counts": {**example("Lock")["counts"], "acked": 0, "waiting": 1}}
        answers = [waiting, waiting, {**waiting, "counts": {**waiting["counts"], "acked": 1, "waiting": 0}}]
        seen: list[Any] = []

        def locks(page: Any) -> Any:
            seen.append(page)
            return succeed({"items": [answers[min(len(seen), 2)]], "next": None})

        self.patch(self.world.fleet, "locks", locks)
        self.patch(self.world.fleet, "add_lock", lambda actor, wanted: succeed((waiting, True)))
        told = self.good("lock", "add", "--user", "bruce@example.com")
        self.assertIn("1 of 1 defender have it", told)
        self.assertEqual(len(seen), 2)

    def test_a_certificate(self) -> None:
        document = json.loads(self.good("lock", "add", "--serial", "0A1B", "--issuer", "CN=x", "--json"))
        self.assertEqual(document["id"], example("Lock")["id"])
        self.assertEqual(self.world.fleet.locks_held[0]["issuer"], "CN=x")

    def test_a_defender_is_unlocked_by_its_name_or_its_id(self) -> None:
        self.good("lock", "add", "--defender", "web1")
        self.assertEqual(self.world.fleet.locks_held[0]["kind"], "defender")
        gone: list[str] = []

        def remove(actor: Any, lock: str) -> Any:
            gone.append(lock)
            return succeed(None)

        held = {**example("Lock"), "kind": "defender", "value": "7f3a", "name": "web1"}
        self.patch(self.world.fleet, "locks", lambda page: succeed({"items": [held], "next": None}))
        self.patch(self.world.fleet, "remove_lock", remove)
        for name in ("web1", "7f3a"):
            self.good("lock", "remove", "--defender", name)
        self.assertEqual(gone, [held["id"]] * 2)
        self.assertIn("defender web1", self.good("lock", "list"))
        self.assertIn("not locked", self.bad("lock", "remove", "--defender", "web2"))
        self.assertIn("not locked", self.bad("lock", "remove", "--user", "web1"))

    def test_exactly_one_subject(self) -> None:
        self.assertIn("exactly one", self.bad("lock", "add", code=2))
        self.assertIn("exactly one", self.bad("lock", "add", "--user", "a", "--group", "b", code=2))
        self.assertIn("say which", self.bad("lock", "remove", "x", "--user", "a", code=2))

    def test_remove_by_id_and_by_subject(self) -> None:
        gone: list[str] = []

        def remove(actor: Any, lock: str) -> Any:
            gone.append(lock)
            return succeed(None)

        self.patch(self.world.fleet, "remove_lock", remove)
        self.assertIn("k1, k2", self.good("lock", "remove", "k1", "k2"))
        self.assertIn("user bruce", self.good("lock", "remove", "--user", "bruce@example.com"))
        self.assertEqual(gone, ["k1", "k2", example("Lock")["id"]])
        self.assertIn("not locked: user eve", self.bad("lock", "remove", "--user", "eve"))

    def test_list(self) -> None:
        self.assertIn("laptop lost", " ".join(self.good("lock", "list").split()))
        self.assertEqual(json.loads(self.good("lock", "list", "--json")), [example("Lock")])


class TokenTests(FleetTestCase):
    """`defenderctl tokens` and `api-tokens`."""

    def test_create(self) -> None:
        asked: list[Any] = []

        def create(actor: Any, wanted: Any) -> Any:
            asked.append(wanted)
            return succeed(example("CreatedJoinToken"))

        self.patch(self.world.fleet, "create_join_token", create)
        options = ("--uses", "3", "--expires", "2h", "--network", "10.0.0.0/8", "--label", "site=vienna")
        names = ("--name", "web*", "--host", "*.example.com")
        told = self.good("tokens", "create", *options, *names, "--approval", "--comment", "new")
        self.assertEqual(told, "dft1.EXAMPLE\n")
        self.assertEqual(
            asked[0],
            {
                "uses": 3,
                "expires_in": 7200,
                "networks": ["10.0.0.0/8"],
                "names": ["web*"],
                "hosts": ["*.example.com"],
                "labels": {"site": "vienna"},
                "approval": True,
                "comment": "new",
            },
        )
        said = self.run_command("tokens", "create").stderr
        self.assertIn("twistd defender --controller controller.example.com:8084 --join-token TOKEN", said)
        self.assertIn("longer than 30 days", self.bad("tokens", "create", "--expires", "31d", code=2))

    def test_list_and_revoke(self) -> None:
        told = self.good("tokens", "list")
        for text in ("k7c3q", "1/3", "usable", "site=vienna"):
            self.assertIn(text, " ".join(told.split()))
        self.assertEqual(json.loads(self.good("tokens", "list", "--json")), [example("JoinToken")])
        self.assertIn("Revoked k7c3q", self.good("tokens", "revoke", "k7c3q"))

    def test_api_tokens(self) -> None:
        told = self.good("api-tokens", "create", "prometheus", "--permission", "metrics.read")
        self.assertEqual(told, "dfa1.EXAMPLE\n")
        self.assertIn("you lack", self.bad("api-tokens", "create", "x", "--permission", "all.ofit"))
        self.assertIn("metrics.read", self.good("api-tokens", "list"))
        self.assertEqual(json.loads(self.good("api-tokens", "revoke", "x1", "--json")), {"revoked": "x1"})


class StatusTests(FleetTestCase):
    """`defenderctl status`."""

    def test_the_fleet(self) -> None:
        told = self.good("status")
        for text in ("3 online, 0 stale, 0 offline", "4711 events", "check store", "defender.fleet"):
            self.assertIn(text, told)
        self.assertEqual(json.loads(self.good("status", "--json")), example("FleetStatus"))

    def test_a_check_that_does_not_hold(self) -> None:
        found = example("FleetStatus")
        found["checks"] = [{"name": "store", "ok": False, "detail": "the disk is full"}]
        self.patch(self.world.health, "status", lambda: succeed(found))
        result = self.run_command("status")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("NOT OK: the disk is full", result.stdout)

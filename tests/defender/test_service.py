"""The defender put together, in this process: settings, policy and locks that change while it runs."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from defender.contract.errors import ContractError
from defender.contract.facts import Subject
from defender.service import Defender, make_service
from defender.settings import load_settings
from tests.spool import read_events

POLICY = "schema: 1\nrules:\n  - {name: all, users: [bruce], effect: allow}\n"
CLOCK: Any = reactor


class DefenderTests(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(rmtree, self.state)
        (self.state / "policy.yaml").write_text(POLICY)
        self.write_settings()
        before = signal.getsignal(signal.SIGHUP)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        self.defender = self.start()

    def write_settings(self, more: str = "") -> None:
        (self.state / "defender.toml").write_text(
            f'[defender]\nname = "web1"\nstate = "{self.state}"\n'
            f'[engine]\naddress = "unix://{self.state}/engine.sock"\n[listen]\nmode = "unix"\n{more}'
        )

    def start(self) -> Defender:
        defender = make_service(load_settings(self.state / "defender.toml"), reactor)
        defender.startService()
        self.addCleanup(defender.stopService)
        return defender

    def events(self) -> list[dict[str, Any]]:
        self.defender.journal.settle()
        return read_events(self.state)

    @inlineCallbacks
    def until(self, holds: Callable[[], object]) -> Any:
        """Wait, a turn of the reactor at a time, until `holds`; the test's own time limit ends it."""
        while not holds():
            yield deferLater(CLOCK, 0.02)

    def locked(self, user: str) -> str | None:
        locks = self.defender.proxy.locks
        assert locks is not None
        return locks.reason(Subject(user=user))

    def effect(self, user: str = "bruce") -> str:
        from defender.contract.actions import recognize

        operation, _ = recognize("GET", "/info")
        return self.defender.activation.table.decide(Subject(user=user, via="unix"), operation).effect

    @inlineCallbacks
    def test_policy_that_changes_is_taken_over(self) -> Any:
        self.assertEqual(self.effect(), "allow")
        (self.state / "policy.yaml").write_text(POLICY.replace("bruce", "alice"))
        yield self.until(lambda: self.effect("alice") == "allow")
        self.assertEqual(self.effect(), "deny")
        loads = [event for event in self.events() if event["req"]["action"] == "policy_load"]
        self.assertEqual([event["result"]["version"] for event in loads], [1, 2])

    @inlineCallbacks
    def test_broken_policy_is_reported_and_kept_out(self) -> Any:
        (self.state / "policy.yaml").write_text("schema: 1\nrules: [{name: all, efect: allow}]\n")
        yield self.until(lambda: self.defender.activation.error)
        self.assertEqual(self.effect(), "allow")
        event = self.events()[-1]
        self.assertFalse(event["result"]["ok"])
        self.assertIn("policy.yaml:2:", event["result"]["problems"][0])
        problems = self.defender._answer_status({}).result["policy"]["problems"]  # type: ignore[index]
        self.assertIn("efect", " ".join(problems))

    @inlineCallbacks
    def test_locks_in_the_file_come_into_force(self) -> Any:
        self.defender._add_lock({"kind": "user", "value": "Eve"})
        self.assertEqual(self.locked("eve"), "user eve is locked")
        self.assertEqual(self.defender._add_lock({"kind": "user", "value": "EVE"}).result, {"changed": False})
        self.assertEqual(
            self.defender._list_locks({}).result["locks"], [{"kind": "user", "value": "Eve", "issuer": ""}]
        )
        self.assertEqual((self.state / "locks.json").stat().st_mode & 0o777, 0o600)
        (self.state / "locks.json").write_text("{")
        yield self.until(lambda: self.defender._locks_problem)
        self.assertIsNotNone(self.locked("eve"))
        self.assertRaises(ContractError, self.defender._remove_lock, {"kind": "user", "value": "Eve"})
        (self.state / "locks.json").unlink()
        yield self.until(lambda: self.locked("eve") is None)
        self.defender._add_lock({"kind": "user", "value": "Eve"})
        self.assertEqual(
            self.defender._remove_lock({"kind": "user", "value": "eve"}).result, {"changed": True}
        )
        self.assertIsNone(self.locked("eve"))

    @inlineCallbacks
    def test_locks_broken_at_the_start_deny_everybody(self) -> Any:
        yield self.defender.stopService()
        (self.state / "locks.json").write_text("{")
        self.defender = self.start()
        self.assertIsNone(self.defender.proxy.locks)
        (self.state / "locks.json").write_text("")
        yield self.until(lambda: self.defender.proxy.locks is not None)

    @inlineCallbacks
    def test_return_to_the_good_policy_is_noted(self) -> Any:
        (self.state / "policy.yaml").write_text("rules: [")
        yield self.until(lambda: self.defender.activation.error)
        (self.state / "policy.yaml").write_text(POLICY)
        yield self.until(lambda: not self.defender.activation.error)
        loads = [event["result"]["ok"] for event in self.events() if event["kind"] == "policy"]
        self.assertEqual(loads, [True, False, True])

    @inlineCallbacks
    def test_reload_takes_over_what_can_change(self) -> Any:
        self.write_settings('drain = 5.0\n[policy]\nprefix = "[ACME]"\n[limits]\nidle_timeout = 7\n')
        told = yield self.defender.reload()
        self.assertTrue(told.ok, told.said)
        self.assertEqual(self.defender.proxy.prefix, "[ACME]")
        self.assertEqual(self.defender.proxy.limits.idle_timeout, 7)

    @inlineCallbacks
    def test_reload_takes_over_whether_calls_wait_for_their_record(self) -> Any:
        for durability, strict in (("best_effort", False), ("strict", True)):
            self.write_settings(f'[audit]\ndurability = "{durability}"\n')
            told = yield self.defender.reload()
            self.assertEqual(told.said, ["audit.durability has changed"])
            self.assertIs(self.defender.proxy.strict, strict)

    @inlineCallbacks
    def test_reload_says_what_needs_a_restart(self) -> Any:
        self.write_settings('[audit]\ndirectory = "elsewhere"\n')
        told = yield self.defender.reload()
        self.assertEqual(told.said, ["audit.directory has changed, which takes effect at the next start"])
        self.assertEqual(self.defender.settings.audit.directory, self.state / "audit")

    @inlineCallbacks
    def test_bad_settings_change_nothing(self) -> Any:
        self.write_settings("unix_mod = 1\n")
        told = yield self.defender.reload()
        self.assertFalse(told.ok)
        self.assertIn("defender.toml:8:1: listen.unix_mod", "\n".join(told.said))
        self.assertEqual(self.defender.listener.actual, "unix")

    @inlineCallbacks
    def test_hang_up_reloads_and_is_noted(self) -> Any:
        self.write_settings('[policy]\nprefix = "[ACME]"\n')
        os.kill(os.getpid(), signal.SIGHUP)
        yield self.until(lambda: self.defender.proxy.prefix == "[ACME]")
        yield self.until(lambda: any(event["req"]["action"] == "reload" for event in self.events()))

    @inlineCallbacks
    def test_stop_is_noted_and_leaves_no_socket(self) -> Any:
        yield self.until(lambda: (self.state / "docker.sock").exists())
        yield self.defender.stopService()
        actions = [event["req"]["action"] for event in read_events(self.state)]
        self.assertEqual(actions[-2:], ["defender_stop", "audit_close"])
        self.assertFalse((self.state / "docker.sock").exists())
        self.assertFalse((self.state / "control.sock").exists())

    @inlineCallbacks
    def test_service_manager_hears_of_the_life(self) -> Any:
        """Ready when the listeners have been tried, well while clients are served, stopping at the end."""
        yield self.defender.stopService()
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(manager.close)
        manager.bind(str(self.state / "notify"))
        variables = {"NOTIFY_SOCKET": str(self.state / "notify"), "WATCHDOG_USEC": "400000"}
        os.environ.update(variables)
        self.defender = self.start()
        self.assertEqual([name for name in variables if name in os.environ], [])
        heard: list[bytes] = []

        def listen() -> bool:
            try:
                heard.append(manager.recv(4096))
            except BlockingIOError:
                return False
            return heard.count(b"WATCHDOG=1\n") > 2

        yield self.until(listen)
        self.assertEqual(heard[0], b"READY=1\nSTATUS=listening on unix; policy of 1 rules\n")
        yield self.defender.reload()
        (self.state / "policy.yaml").write_text(
            POLICY + POLICY.partition("rules:\n")[2].replace("name: all", "name: more")
        )
        yield self.defender.reload()
        yield self.defender.stopService()
        while b"STOPPING=1\n" not in heard:
            listen()
        self.assertIn(b"STATUS=listening on unix; policy of 2 rules\n", heard)

    @inlineCallbacks
    def test_poll_that_does_not_come_round_is_found(self) -> Any:
        yield self.until(lambda: self.defender.listener.started.called)
        pulse = self.defender._pulse
        yield pulse.check()
        self.defender._poll.removeReader(pulse)
        self.assertNoResult(pulse.check())
        self.defender._poll.addReader(pulse)

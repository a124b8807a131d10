"""A policy or a lock that comes into force while terminals are open."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.engine.clients import shared_box
from tests.engine.dockerd import docker_clis
from tests.engine.guarded import BRUCE, Guarded, defenderctl, of
from tests.engine.terminal import Terminal

EVERYBODY = """\
schema: 1
rules:
  - {name: all, effect: allow}
"""
NOT_BRUCE = """\
schema: 1
rules:
  - name: no_streams_for_bruce
    users: [bruce@example.com]
    effect: deny
    actions: [container_exec_*]
  - {name: all, effect: allow}
"""


class ReloadTests(SynchronousTestCase):
    """Bruce and admin each have a shell in a container."""

    def setUp(self) -> None:
        self.defender = Guarded(mode="tcp", policy=EVERYBODY).start()
        self.addCleanup(self.defender.stop)

    def shell(self, user: str, *groups: str) -> Terminal:
        command = [str(docker_clis()[-1].path), "exec", "-it", shared_box(), "sh"]
        terminal = Terminal(command, self.defender.tls(user, *groups))
        self.addCleanup(terminal.end)
        terminal.expect(rb"# ")
        return terminal

    def assert_bruce_was_cut(self, bruce: Terminal, admin: Terminal, why: str) -> None:
        self.assertNotEqual(bruce.wait(), 0)
        (ended,) = self.defender.trail.wait_for(of("container_exec_start", "stream_end"))
        self.assertEqual((ended["actor"]["user"], ended["result"]["error"]), (BRUCE, why))
        admin.ask(b"echo $((40 + 2))", rb"\n42")
        admin.send(b"exit\n")
        self.assertEqual(admin.wait(), 0)

    def test_a_stream_that_a_new_policy_denies_is_cut(self) -> None:
        bruce, admin = self.shell(BRUCE), self.shell("admin")
        before = self.defender.trail.mark()
        self.defender.policy.write_text(NOT_BRUCE, "utf-8")
        self.defender.trail.wait_for(of("policy_load"), since=before)
        self.assert_bruce_was_cut(bruce, admin, "no longer allowed: denied by rule 'no_streams_for_bruce'")
        # The rest of what he may do goes on.
        docker_clis()[-1].run("ps", environment=self.defender.tls(BRUCE))

    def test_a_lock_cuts_and_denies_everything(self) -> None:
        bruce, admin = self.shell(BRUCE), self.shell("admin")
        state = ("--state", str(self.defender.state))
        defenderctl("local", "lock", "add", "--user", BRUCE, *state)
        self.assert_bruce_was_cut(bruce, admin, "no longer allowed: denied by rule 'lock'")
        done = docker_clis()[-1].run("ps", environment=self.defender.tls(BRUCE), check=False)
        self.assertIn(b"denied for user 'bruce@example.com' by rule 'lock' You are locked out", done.stderr)
        defenderctl("local", "lock", "remove", "--user", BRUCE, *state)
        docker_clis()[-1].run("ps", environment=self.defender.tls(BRUCE))

    def test_a_broken_policy_changes_nothing_and_is_reported(self) -> None:
        bruce = self.shell(BRUCE)
        before = self.defender.trail.mark()
        self.defender.policy.write_text(NOT_BRUCE.replace("effect: deny", "effect: perhaps"), "utf-8")
        (event,) = self.defender.trail.wait_for(of("policy_load"), since=before)
        self.assertFalse(event["result"]["ok"])
        (problem,) = event["result"]["problems"]
        self.assertIn(f"{self.defender.policy}:5:13: rules[0].effect:", problem)
        self.assertIn(problem, self.defender.words())
        bruce.ask(b"echo $((40 + 2))", rb"\n42")

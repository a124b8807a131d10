"""Listeners are switched at run time, and a terminal that is open on the old one goes on."""

from __future__ import annotations

import os
import signal
import socket

from tests.engine.clients import ClientCase, for_every_client
from tests.engine.guarded import Event, Guarded, defenderctl, of


def is_open(port: int) -> bool:
    """Tell whether somebody listens on a port of the loopback."""
    with socket.socket() as probe:
        probe.settimeout(10)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@for_every_client("tls")
class SwitchTests(ClientCase):
    """A defender of this test's own, which starts on TCP."""

    own: Guarded

    def setUp(self) -> None:
        self.own = Guarded(mode="tcp").start()
        self.addCleanup(self.own.stop)

    @property
    def defender(self) -> Guarded:
        return self.own

    def set_mode(self, mode: str, check: bool = True) -> str:
        """Switch by the command; return what it says."""
        done = defenderctl("local", "listener", "set", mode, "--state", str(self.own.state), check=check)
        self.assertEqual(done.returncode, 0 if check else 1)
        return done.stdout

    def answers(self, environment: dict[str, str]) -> bool:
        done = self.cli.run("version", environment=environment, check=False)
        return done.returncode == 0

    def test_a_session_goes_on_across_tcp_unix_tcp(self) -> None:
        own = self.own
        terminal = self.terminal("exec", "-it", self.box, "sh")
        terminal.expect(rb"# ")
        terminal.ask(b"word=before; echo one $word", rb"one before")
        self.set_mode("unix")
        self.assertFalse(is_open(own.port))
        self.assertFalse(self.answers(own.tls()))
        self.assertTrue(self.answers(own.unix()))
        terminal.ask(b"echo two $word", rb"two before")
        self.set_mode("tcp")
        self.assertTrue(self.answers(own.tls()))
        self.assertFalse(own.socket.exists())
        terminal.ask(b"echo three $word", rb"three before")
        terminal.resize(50, 100)
        own.trail.wait_for(lambda e: of("container_exec_resize")(e) and e["req"]["query"].get("h") == "50")
        terminal.ask(b"stty size", rb"50 100")
        terminal.send(b"exit 7\n")
        self.assertEqual(terminal.wait(), 7)
        _, ended = own.trail.stream("container_exec_start")
        self.assertNotIn("error", ended["result"])

    def test_both_at_once_and_none(self) -> None:
        own = self.own
        self.set_mode("unix+tcp")
        self.assertEqual((self.answers(own.tls()), self.answers(own.unix())), (True, True))
        self.set_mode("none")
        self.assertEqual((self.answers(own.tls()), self.answers(own.unix())), (False, False))
        self.assertFalse(own.socket.exists())
        # The control socket stays: it is the way back.
        self.set_mode("unix")
        self.assertTrue(self.answers(own.unix()))

    def test_a_chosen_mode_outlives_a_restart(self) -> None:
        own = self.own
        self.set_mode("unix")
        own.stop()
        own.mode = "unix"  # where to look for it, the settings still say tcp
        own.start()
        self.assertFalse(is_open(own.port))
        self.assertTrue(self.answers(own.unix()))

    def test_new_settings_and_a_hangup(self) -> None:
        own = self.own
        terminal = self.terminal("exec", "-it", self.box, "sh")
        terminal.expect(rb"# ")
        old = own.port
        before = own.trail.mark()
        own.mode = "unix"
        own.write_settings()
        os.kill(own.pid, signal.SIGHUP)
        own.trail.wait_for(of("reload"), since=before)
        self.assertFalse(is_open(old))
        self.assertTrue(self.answers(own.unix()))
        terminal.ask(b"echo $((40 + 2))", rb"\n42")
        # Its exit code is a question of its own, to a port where nobody answers any more.
        terminal.send(b"exit\n")
        _, ended = own.trail.stream("container_exec_start")
        self.assertNotIn("error", ended["result"])

    def test_an_occupied_port_leaves_the_old_listener_serving(self) -> None:
        own = self.own
        terminal = self.terminal("exec", "-it", self.box, "sh")
        terminal.expect(rb"# ")
        self.set_mode("unix")
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", own.port))
            taken.listen()
            before = own.trail.mark()
            said = self.set_mode("tcp", check=False)
            self.assertIn(f"127.0.0.1:{own.port}", said)
            self.assertIn("in use", said)
            self.assertTrue(self.answers(own.unix()))
            (event,) = own.trail.wait_for(self.listener_event, since=before)
            self.assertFalse(event["result"]["ok"])
            self.assertIn("in use", event["result"]["detail"])
            shown = defenderctl("local", "listener", "show", "--state", str(own.state)).stdout
            self.assertIn("in use", shown)
        terminal.ask(b"echo $((40 + 2))", rb"\n42")
        self.set_mode("tcp")
        self.assertTrue(self.answers(own.tls()))
        terminal.ask(b"echo $((40 + 3))", rb"\n43")

    def listener_event(self, event: Event) -> bool:
        return of("listener_set")(event)

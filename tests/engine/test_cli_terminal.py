"""docker run -t and docker exec -t under a terminal: size, keys, detaching, interrupts."""

from __future__ import annotations

from collections.abc import Callable

from tests.engine.clients import ClientCase, for_every_client, remove_container
from tests.engine.guarded import Event
from tests.engine.terminal import Terminal

DETACH = b"\x10\x11"
INTERRUPT = b"\x03"


def resized(rows: int, columns: int) -> Callable[[Event], bool]:
    """Return a test for the event of a resize to this size."""

    def wanted(event: Event) -> bool:
        request = event["req"]
        return (
            request["action"] in ("container_resize", "container_exec_resize")
            and event["phase"] == "result"
            and event["result"]["status"] in (200, 201)
            and (request["query"]["h"], request["query"]["w"]) == (str(rows), str(columns))
        )

    return wanted


@for_every_client("tls", "unix")
class TerminalTests(ClientCase):
    """A shell in a container."""

    def assert_resizes(self, terminal: Terminal, before: int) -> None:
        trail = self.defender.trail
        trail.wait_for(resized(24, 80), since=before)
        self.assertEqual(terminal.ask(b"stty size", rb"\n(\d+ \d+)\r\n")[1], b"24 80")
        terminal.resize(43, 132)
        trail.wait_for(resized(43, 132), since=before)
        self.assertEqual(terminal.ask(b"stty size", rb"\n(\d+ \d+)\r\n")[1], b"43 132")

    def test_run(self) -> None:
        before = self.defender.trail.mark()
        terminal = self.terminal("run", "-it", "--rm", "--network=none", "busybox", "sh")
        terminal.expect(rb"# ")
        self.assert_resizes(terminal, before)
        terminal.send(b"exit 5\n")
        self.assertEqual(terminal.wait(), 5)

    def test_exec(self) -> None:
        before = self.defender.trail.mark()
        terminal = self.terminal("exec", "-it", self.box, "sh")
        terminal.expect(rb"# ")
        self.assert_resizes(terminal, before)
        terminal.ask(b"tty", rb"/dev/pts/\d+")
        # An interrupt at the terminal is the shell's business, and it goes on.
        # The one who says so is in the foreground already: the shell itself may still be on its way there.
        terminal.ask(b"sh -c \"echo run''ning; exec sleep 1000000\"", rb"running\r\n")
        terminal.send(INTERRUPT)
        terminal.expect(rb"\^C")
        terminal.ask(b"echo again $((40 + 2))", rb"again 42")
        terminal.send(b"exit 6\n")
        self.assertEqual(terminal.wait(), 6)

    def test_an_interrupt_ends_what_runs(self) -> None:
        script = "trap 'echo caught; exit 3' INT; echo ready; while :; do usleep 20000; done"
        terminal = self.terminal("run", "-it", "--rm", "--network=none", "busybox", "sh", "-c", script)
        terminal.expect(rb"ready")
        terminal.send(INTERRUPT)
        terminal.expect(rb"caught")
        self.assertEqual(terminal.wait(), 3)

    def test_detach_keys_leave_the_container_running(self) -> None:
        box = self.name("box")
        self.addCleanup(remove_container, box)
        terminal = self.terminal("run", "-it", "--network=none", "--name", box, "busybox", "sh")
        terminal.expect(rb"# ")
        terminal.ask(b"kept=before", rb"# ")
        terminal.send(DETACH)
        self.assertEqual(terminal.wait(), 0)
        self.assertEqual(self.direct("inspect", "--format={{.State.Running}}", box), "true")
        again = self.terminal("attach", box)
        again.ask(b"echo still $kept", rb"still before")
        again.send(b"exit 4\n")
        self.assertEqual(again.wait(), 4)

    def test_detach_keys_leave_an_exec_running(self) -> None:
        box = self.sleeper()
        terminal = self.terminal("exec", "-it", "--detach-keys=ctrl-x", box, "sh", "-c", "echo up; cat")
        terminal.expect(rb"up")
        terminal.send(b"\x18")
        self.assertIn(terminal.wait(), (0, 1))  # 20.10 says "read escape sequence" with exit code 1
        self.assertIn("cat", self.direct("top", box))

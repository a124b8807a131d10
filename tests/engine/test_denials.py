"""What a denied person reads, and how little a denied request does."""

from __future__ import annotations

import json
import time

from deploy.docker_api import call, connection
from tests.engine.clients import ClientCase, for_every_client
from tests.engine.dockerd import engine
from tests.engine.guarded import BRUCE, Guarded, of, scratch
from tests.engine.test_cli_run import noise
from tests.engine.test_cli_streams import tar_of


@for_every_client("tls")
class DenialTests(ClientCase):
    """Bruce of the Dev team, who may look and not touch."""

    @property
    def environment(self) -> dict[str, str]:
        return self.defender.tls(BRUCE, "Dev team")

    def denial(self, action: str) -> str:
        """Return what the client prints for a denial of an action."""
        return (
            f"Error response from daemon: [Defender] The command '{action}' denied for user "
            f"'bruce@example.com' by rule 'devs_rule'"
        )

    def assert_denied(self, action: str, *arguments: str, stdin: bytes = b"") -> None:
        """The command fails with these words; around them clients differ."""
        done = self.docker(*arguments, stdin=stdin, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(self.denial(action), done.stderr.decode())
        self.assertNotIn("broken pipe", done.stderr.decode())

    def test_what_is_allowed(self) -> None:
        self.assertIn(self.box, self.text("ps", "--format={{.Names}}"))
        self.assertEqual(json.loads(self.text("inspect", self.box))[0]["Name"], f"/{self.box}")
        self.docker("logs", self.box)
        self.assertIn("Version:", self.text("version"))

    def test_pull_to_the_letter(self) -> None:
        for arguments in (("pull", "nginx"), ("pull", "-q", "nginx:1.25")):
            done = self.docker(*arguments, check=False)
            self.assertEqual((done.returncode, done.stderr.decode()), (1, self.denial("image_create") + "\n"))

    def test_ordinary_commands(self) -> None:
        for action, *arguments in (
            ("image_list", "images"),
            ("image_delete", "rmi", "busybox"),
            ("container_delete", "rm", "-f", self.box),
            ("container_kill", "kill", self.box),
            ("container_export", "export", "-o", str(scratch() / "never"), self.box),
            ("volume_create", "volume", "create", "x"),
            ("network_create", "network", "create", "x"),
            ("docker_events", "events"),
            ("swarm_init", "swarm", "init"),
            ("docker_info", "info"),
        ):
            with self.subTest(action):
                done = self.docker(*arguments, check=False)
                self.assertNotEqual(done.returncode, 0)
                said = (done.stdout + done.stderr).decode()
                self.assertIn(self.denial(action).removeprefix("Error response from daemon: "), said)
        self.assertFalse((scratch() / "never").exists())

    def test_run_creates_nothing(self) -> None:
        name = self.name("denied")
        done = self.docker("run", "-i", "--rm", "--name", name, "busybox", "cat", stdin=b"x\n", check=False)
        self.assertEqual((done.returncode, done.stdout), (125, b""))
        self.assertIn(self.denial("container_create"), done.stderr.decode())
        everything = call(connection(engine().address), "GET", "/containers/json?all=1")
        self.assertNotIn(f"/{name}", str([box["Names"] for box in everything]))

    def test_exec_opens_no_stream(self) -> None:
        before = self.defender.trail.mark()
        self.assert_denied("container_exec_create", "exec", "-i", self.box, "cat", stdin=b"x\n")
        terminal = self.terminal("exec", "-it", self.box, "sh")
        terminal.expect(rb"The command 'container_exec_create' denied")
        self.assertEqual(terminal.wait(), 1)
        # Of a refused upgrade the clients print the status, and never the message.
        attached = self.docker("attach", self.box, stdin=b"x\n", check=False)
        self.assertIn(b"unable to upgrade to tcp, received 403", attached.stderr)
        self.defender.trail.wait_for(of("container_attach"), since=before)
        events = self.defender.trail.read(before)
        mine = [event for event in events if event["actor"]["user"] == BRUCE]
        self.assertEqual([event for event in mine if event["phase"] == "stream_end"], [])
        self.assertEqual(
            {event["req"]["action"] for event in mine if event["decision"]["effect"] == "deny"},
            {"container_exec_create", "container_attach", "container_wait"},
        )

    def test_a_large_upload_ends_quickly_and_with_the_words(self) -> None:
        before = self.defender.trail.mark()
        begun = time.monotonic()
        self.assert_denied("images_load", "load", stdin=tar_of(layer=noise(50)))
        # Far less than the upload alone would take if it were read to its end and drained at leisure.
        self.assertLess(time.monotonic() - begun, 10)
        (event,) = self.defender.trail.wait_for(of("images_load"), since=before)
        self.assertEqual((event["result"]["status"], event["decision"]["rule"]), (403, "devs_rule"))

    def test_a_copy_into_a_container_and_out_of_it(self) -> None:
        file = scratch() / self.name("file")
        file.write_bytes(noise(5))
        done = self.docker("cp", str(file), f"{self.box}:/tmp", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(self.denial("container_archive_extract"), done.stderr.decode())
        self.assertEqual(self.direct("exec", self.box, "ls", "/tmp"), "")
        done = self.docker("cp", f"{self.box}:/etc/passwd", "-", check=False)
        self.assertEqual((done.returncode, done.stdout), (1, b""))


POLICY = """\
schema: 1
rules:
  - name: readers
    groups: ["Dev team"]
    effect: allow
    actions: [docker_ping, container_list]
    message: "Production is read-only; ask #platform."
"""


@for_every_client("tls")
class WordsTests(ClientCase):
    """Prefix and message are for the administrator to choose."""

    def test_prefix_message_and_default(self) -> None:
        defender = Guarded(mode="tcp", policy=POLICY, settings={"policy": 'prefix = "[web1]"'}).start()
        self.addCleanup(defender.stop)
        for environment, words in (
            (
                defender.tls(BRUCE, "Dev team"),
                "[web1] The command 'image_create' denied for user 'bruce@example.com' by rule 'readers' "
                "Production is read-only; ask #platform.",
            ),
            (defender.tls(), "[web1] The command 'image_create' denied for user 'admin' by rule 'default'"),
        ):
            done = self.cli.run("pull", "nginx", environment=environment, check=False)
            self.assertEqual(done.stderr.decode(), f"Error response from daemon: {words}\n")

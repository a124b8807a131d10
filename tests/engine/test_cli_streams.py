"""Attach, exec, logs, events, stats: what goes on until somebody ends it."""

from __future__ import annotations

import io
import json
import tarfile

from tests.engine.clients import ClientCase, for_every_client
from tests.engine.guarded import of
from tests.engine.test_cli_run import noise


def tar_of(**files: bytes) -> bytes:
    """Return a tar archive with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@for_every_client("tls", "unix")
class AttachTests(ClientCase):
    """Attaching to a container that is there already."""

    def test_input_and_output(self) -> None:
        box = self.name("box")
        self.docker("create", "-i", "--rm", "--network=none", "--name", box, "busybox", "cat")
        self.docker("start", box)
        # The container was created with StdinOnce: the end of this input is the end of its own.
        attached = self.docker("attach", box, stdin=b"hello\n")
        self.assertEqual(attached.stdout, b"hello\n")

    def test_start_attached(self) -> None:
        box = self.name("box")
        options = ("-i", "--rm", "--network=none", "--name", box)
        self.docker("create", *options, "busybox", "sh", "-c", "cat; exit 8")
        done = self.docker("start", "-ai", box, stdin=b"from the start\n", check=False)
        self.assertEqual((done.stdout, done.returncode), (b"from the start\n", 8))

    def test_output_only(self) -> None:
        box = self.container("sh", "-c", "while [ ! -e /go ]; do usleep 20000; done; echo gone; exit 2")
        before = self.defender.trail.mark()
        attached = self.started("attach", "--no-stdin", box)
        self.defender.trail.wait_for(of("container_attach", target=box), since=before)
        self.docker("exec", box, "touch", "/go")
        assert attached.stdout is not None
        self.assertEqual(attached.stdout.read(), b"gone\n")
        self.assertEqual(attached.wait(20), 2)


@for_every_client("tls", "unix")
class ExecTests(ClientCase):
    """Programs in a running container."""

    def test_exit_code_user_and_directory(self) -> None:
        done = self.docker(
            "exec", "-u", "www-data", "-w", "/var/www", "-e", "WORD=x", self.box,
            "sh", "-c", "id -un; pwd; echo $WORD; exit 11", check=False,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stdout), (11, b"www-data\n/var/www\nx\n"))

    def test_detached(self) -> None:
        box = self.sleeper()
        self.docker("exec", "-d", box, "sh", "-c", "mkfifo /p; echo done >/p")
        script = "until [ -p /p ]; do usleep 20000; done; cat /p"
        self.assertEqual(self.text("exec", box, "sh", "-c", script), "done")

    def test_a_tar_on_its_input(self) -> None:
        box = self.sleeper()
        self.docker("exec", "-i", box, "tar", "-xC", "/tmp", stdin=tar_of(one=noise(3), two=b"second\n"))
        self.assertEqual(self.docker("exec", box, "cat", "/tmp/one").stdout, noise(3))
        self.assertEqual(self.docker("exec", box, "cat", "/tmp/two").stdout, b"second\n")

    def test_many_at_once(self) -> None:
        many = [self.started("exec", "-i", self.box, "cat") for _ in range(8)]
        for number, one in enumerate(many):
            assert one.stdin is not None
            one.stdin.write(f"line {number}\n".encode())
            one.stdin.flush()
        for number, one in enumerate(many):
            assert one.stdout is not None
            self.assertEqual(one.stdout.readline(), f"line {number}\n".encode())
        for one in many:
            self.assertEqual(one.communicate(timeout=30), (b"", b""))
            self.assertEqual(one.returncode, 0)


@for_every_client("tls", "unix")
class FollowingTests(ClientCase):
    """What is read as it happens."""

    def test_logs_end_with_the_container(self) -> None:
        script = "echo one; while [ ! -e /go ]; do usleep 20000; done; echo two; echo three >&2"
        box = self.container("sh", "-c", script)
        following = self.started("logs", "-f", box)
        assert following.stdout is not None
        self.assertEqual(following.stdout.readline(), b"one\n")
        self.docker("exec", box, "touch", "/go")
        self.assertEqual(following.communicate(timeout=30), (b"two\n", b"three\n"))
        self.assertEqual(following.returncode, 0)
        self.assertEqual(self.docker("logs", "--tail=all", box).stdout, b"one\ntwo\n")

    def test_an_event_arrives_and_a_killed_client_ends_the_engines_request(self) -> None:
        box = self.sleeper()
        before = self.defender.trail.mark()
        form = "--format={{.Status}}"
        watching = self.started("events", "--since=10m", f"--filter=container={box}", form)
        assert watching.stdout is not None
        while watching.stdout.readline() != b"start\n":  # the past: the stream is up
            pass
        self.docker("pause", box)
        self.assertEqual(watching.stdout.readline(), b"pause\n")
        self.docker("unpause", box)
        self.assertEqual(watching.stdout.readline(), b"unpause\n")
        watching.kill()
        (event,) = self.defender.trail.wait_for(of("docker_events"), since=before)
        self.assertIn("the client disconnected", event["result"]["error"])
        self.assertGreater(event["result"]["bytes"], 100)

    def test_wait(self) -> None:
        box = self.sleeper()
        waiting = self.started("wait", box)
        self.docker("kill", box)
        self.assertEqual(waiting.communicate(timeout=30)[0], b"137\n")


@for_every_client("tls")
class StatsTests(ClientCase):
    """Figures of a container; the Engine takes its second for each."""

    def test_once(self) -> None:
        box = self.sleeper()
        sample = json.loads(self.text("stats", "--no-stream", "--format={{json .}}", box))
        self.assertEqual(sample["Name"], box)
        self.assertEqual(sample["PIDs"], "1")

    def test_streaming(self) -> None:
        box = self.sleeper()
        before = self.defender.trail.mark()
        watching = self.started("stats", "--format={{.Name}} {{.PIDs}}", box)
        assert watching.stdout is not None
        samples = 0
        for line in watching.stdout:
            samples += f"{box} 1".encode() in line
            if samples == 2:
                break
        watching.kill()
        (event,) = self.defender.trail.wait_for(of("container_stats"), since=before)
        self.assertIn("the client disconnected", event["result"]["error"])

"""docker run: exit codes, signals, and every byte of input and output."""

from __future__ import annotations

import functools
import hashlib
import os
import signal

from tests.engine.clients import ClientCase, for_every_client

MEGABYTE = 1024 * 1024


@functools.cache
def noise(megabytes: int) -> bytes:
    """Return random bytes, the same ones for the whole process: nothing in them repeats."""
    return os.urandom(megabytes * MEGABYTE)


@for_every_client("tls", "unix")
class RunTests(ClientCase):
    """What a container says and takes."""

    def test_output_and_exit_code(self) -> None:
        done = self.docker(
            "run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", check=False
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (7, b"out\n", b"err\n"))

    def test_a_missing_program_is_127(self) -> None:
        done = self.docker("run", "--rm", "--network=none", "busybox", "no-such-program", check=False)
        self.assertEqual(done.returncode, 127)
        self.assertIn(b"executable file not found", done.stderr)

    def test_a_killed_container_is_137(self) -> None:
        name = self.name()
        running = self.started(
            "run", "--rm", "--name", name, "busybox", "sh", "-c", "echo ready; sleep 1000000"
        )
        assert running.stdout is not None
        self.assertEqual(running.stdout.readline(), b"ready\n")
        self.docker("kill", name)
        self.assertEqual(running.wait(30), 137)

    def test_a_signal_to_the_client_reaches_the_container(self) -> None:
        running = self.started(
            "run",
            "--rm",
            "--network=none",
            "busybox",
            "sh",
            "-c",
            "trap 'echo caught; exit 9' TERM; echo ready; while :; do usleep 20000; done",
        )
        assert running.stdout is not None
        self.assertEqual(running.stdout.readline(), b"ready\n")
        running.send_signal(signal.SIGTERM)
        self.assertEqual(running.stdout.read(), b"caught\n")
        self.assertEqual(running.wait(30), 9)

    def test_piped_input(self) -> None:
        done = self.docker("run", "-i", "--rm", "busybox", "cat", stdin=b"hello\n")
        self.assertEqual(done.stdout, b"hello\n")

    def test_output_after_the_end_of_input(self) -> None:
        script = "cat; usleep 300000; echo late; usleep 300000; echo later >&2"
        done = self.docker("run", "-i", "--rm", "busybox", "sh", "-c", script, stdin=b"first\n")
        self.assertEqual((done.stdout, done.stderr), (b"first\nlate\n", b"later\n"))

    def test_a_container_that_ends_before_its_input_does(self) -> None:
        done = self.docker("run", "-i", "--rm", "busybox", "head", "-c", "5", stdin=noise(1))
        self.assertEqual(done.stdout, noise(1)[:5])


@for_every_client("tls", "unix")
class RoundTripTests(ClientCase):
    """The same bytes up and down at the same time, through an exec that is not logged by the Engine."""

    def test_a_hundred_megabytes_there_and_back(self) -> None:
        before = self.defender.trail.mark()
        done = self.docker("exec", "-i", self.box, "cat", stdin=noise(100))
        self.assertEqual(len(done.stdout), 100 * MEGABYTE)
        self.assertEqual(hashlib.sha256(done.stdout).digest(), hashlib.sha256(noise(100)).digest())
        _, end = self.defender.trail.stream("container_exec_start", before)
        self.assertEqual(end["result"]["rx"], 100 * MEGABYTE)
        # Output without a terminal comes in frames with a head of eight bytes each (Engine API, attach).
        self.assertGreater(end["result"]["tx"], 100 * MEGABYTE)
        self.assertNotIn("error", end["result"])


@for_every_client("tls")
class ThroughAPipelineTests(ClientCase):
    """Shell pipelines around the client."""

    def test_a_hundred_megabytes_up(self) -> None:
        running = self.docker("run", "-i", "--rm", "--network=none", "busybox", "sha256sum", stdin=noise(100))
        self.assertEqual(running.stdout.split()[0].decode(), hashlib.sha256(noise(100)).hexdigest())

    def test_a_container_between_two_programs(self) -> None:
        running = self.started("run", "-i", "--rm", "--network=none", "busybox", "tr", "a-z", "A-Z")
        output, errors = running.communicate(b"one\ntwo\n" * 1000, timeout=60)
        self.assertEqual((output, errors), (b"ONE\nTWO\n" * 1000, b""))

    def test_a_reader_that_goes_away(self) -> None:
        before = self.defender.trail.mark()
        # The Engine lets an exec run on without its client: it ends by itself.
        running = self.started("exec", self.box, "sh", "-c", "yes | head -c 50000000")
        assert running.stdout is not None
        self.assertEqual(running.stdout.read(2), b"y\n")
        running.stdout.close()
        self.assertNotEqual(running.wait(30), 0)
        self.defender.trail.stream("container_exec_start", before)

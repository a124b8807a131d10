"""A process is ended by its identity: a pid that somebody else has now is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from deploy.processes import Process, processes_naming, read_pidfile

IGNORING = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
)


class ProcessTests(SynchronousTestCase):
    """On real children."""

    def child(
        self, program: str = "import signal; print(flush=True); signal.pause()", *arguments: str
    ) -> int:
        child = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()

        def end() -> None:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()

        self.addCleanup(end)
        return child.pid

    def test_ends_by_sigterm(self) -> None:
        process = Process.of(self.child())
        assert process is not None
        self.assertTrue(process.alive)
        self.assertTrue(process.end(patience=30))
        self.assertFalse(process.alive)

    def test_ends_by_sigkill_in_the_end(self) -> None:
        process = Process.of(self.child(IGNORING))
        assert process is not None
        self.assertFalse(process.end(patience=0.1))
        self.assertFalse(process.alive)

    def test_another_process_with_the_same_pid_is_left_alone(self) -> None:
        present = Process.of(self.child())
        assert present is not None
        earlier = Process(present.pid, present.started - 1)
        self.assertFalse(earlier.alive)
        self.assertTrue(earlier.end(patience=1))
        self.assertTrue(present.alive)

    def test_found_by_a_path_in_its_arguments(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            pid = self.child("import signal; print(flush=True); signal.pause()", f"--config={scratch}/x.toml")
            self.assertEqual([process.pid for process in processes_naming(Path(scratch))], [pid])
            self.assertEqual([process.pid for process in processes_naming(Path(scratch, "x.toml"))], [pid])
            self.assertEqual(list(processes_naming(Path(scratch[:-1]))), [])

    def test_pid_files(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "pid")
            self.assertIsNone(read_pidfile(file))
            file.write_text("nonsense", "ascii")
            self.assertIsNone(read_pidfile(file))
            file.write_text(f"{os.getpid()}\n", "ascii")
            self.assertEqual(read_pidfile(file), Process.of(os.getpid()))

"""The log of a defender that `make up` started: strangers cause lines, so its size is bounded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from shutil import rmtree

from twisted.logger import Logger, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from defender import tap


class LogTests(SynchronousTestCase):
    def test_old_lines_go(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(rmtree, folder)
        self.patch(os, "environ", {**os.environ, "DEFENDER_LOG": str(folder / "log")})
        self.patch(tap, "LOG_BYTES", 10_000)
        publisher = LogPublisher(tap.bounded_log())
        log = Logger(observer=publisher)
        for number in range(2000):
            log.warn("refused a peer, number {number}", number=number)
        files = sorted(folder.iterdir())
        self.assertEqual(len(files), 1 + tap.LOG_FILES)
        self.assertTrue(all(file.stat().st_size < 11_000 for file in files))
        self.assertIn("number 1999", (folder / "log").read_text())
        self.assertEqual({file.stat().st_mode & 0o777 for file in files}, {0o600})

"""Who stops listening does not stop the work."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from deploy.choices import ROOT

TALKING = """\
import sys
from deploy.output import say
say("first")
sys.stdin.readline()
say("second")
say("third")
print("done", file=sys.stderr)
"""


class SayTests(SynchronousTestCase):
    """On a real pipe."""

    def test_a_reader_that_leaves(self) -> None:
        talking = subprocess.Popen(
            [sys.executable, "-c", TALKING],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert talking.stdin is not None
        assert talking.stdout is not None
        self.assertEqual(talking.stdout.readline(), b"first\n")
        talking.stdout.close()
        talking.stdout = None
        self.assertEqual(talking.communicate(b"go on\n", timeout=60)[1], b"done\n")
        self.assertEqual(talking.returncode, 0)

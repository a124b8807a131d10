"""The installer as hosts get it from the controller."""

from __future__ import annotations

import subprocess
from hashlib import sha256

from twisted.trial.unittest import SynchronousTestCase

from controller.api.installer import installer
from tests.controller.api.harness import Harness
from tests.test_docs import ROOT

SCRIPT = ROOT / "deploy" / "install" / "defender.sh"


class InstallerTests(SynchronousTestCase):
    def test_everybody_gets_it_with_the_address_and_its_digest(self) -> None:
        harness = Harness()
        reply = harness.request("GET", "/install/defender.sh", token=None)
        self.assertEqual(reply.status, 200, reply.body)
        self.assertEqual(reply.headers["content-type"], "text/x-shellscript")
        self.assertEqual(reply.headers["etag"], f'"{sha256(reply.body).hexdigest()}"')
        before = SCRIPT.read_bytes().splitlines()
        changed = [pair for pair in zip(before, reply.body.splitlines(), strict=True) if pair[0] != pair[1]]
        self.assertEqual(changed, [(b"FLEET=''", b"FLEET='controller.example.com:8084'")])

    def test_nothing_but_an_address_gets_into_it(self) -> None:
        for odd in ("", "fleet", "fleet:8084'; reboot #", "fleet:8084\n", "$(reboot):8084", "fleet.:x"):
            self.assertEqual(installer(odd), SCRIPT.read_bytes(), odd)
        for good in ("fleet.example.com:8084", "[fd00::1]:8084", "10.0.0.1:18084"):
            script = installer(good)
            self.assertIn(b"\nFLEET='%b'\n" % good.encode(), script)
            done = subprocess.run(["sh", "-n"], input=script, check=False)
            self.assertEqual(done.returncode, 0, good)

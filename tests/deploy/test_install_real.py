"""The installer with the real program: from wheels to a defender that answers on its socket."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.deploy.install_host import InstallHost, account_to_itself
from tests.deploy.wheelhouse import build_wheelhouse

POLICY = "schema: 1\nrules:\n  - {name: all, users: [root], effect: allow, actions: [docker_ping]}\n"


class RealTests(SynchronousTestCase):
    def test_from_wheels_to_an_answer(self) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="dfleet-wheels-"))
        self.addCleanup(shutil.rmtree, scratch)
        wheels = scratch / "wheels"
        wheels.mkdir()
        build_wheelhouse(wheels)
        (scratch / "policy.yaml").write_text(POLICY)
        alone = contextlib.ExitStack()
        alone.enter_context(account_to_itself())
        self.addCleanup(alone.close)
        host = InstallHost()
        self.addCleanup(host.remove)
        python = f"python3.{sys.version_info.minor}"
        done = host.install(
            *("--from", str(wheels), "--python", python, "--policy", str(scratch / "policy.yaml"))
        )
        journal = host.path("/run/fake-systemd/journal")
        self.assertEqual(done.returncode, 0, done.stdout + (journal.read_text() if journal.exists() else ""))
        asked = host.run("defenderctl", "local", "status", "--state", "/var/lib/defender", "--json")
        status = json.loads(asked.stdout)
        self.assertEqual(status["listener"]["actual"], "unix")
        self.assertEqual((status["policy"]["rules"], status["policy"]["problems"]), (1, []))
        answer = host.run("curl", "-s", "--unix-socket", "/run/defender/docker.sock", "http://engine/info")
        self.assertIn("[Defender] The command 'docker_info' denied for user 'root'", answer.stdout)
        [cache] = host.path("/opt/defender-fleet").glob(
            "[0-9]*/lib/python*/site-packages/twisted/plugins/dropin.cache"
        )
        self.assertEqual((cache.stat().st_uid, cache.stat().st_mode & 0o022), (0, 0))
        again = host.install("--from", str(wheels), "--python", python)
        self.assertIn("nothing has changed for it", again.stdout)
        gone = host.install("--uninstall", "--purge")
        self.assertEqual(gone.returncode, 0, gone.stdout)
        self.assertFalse(host.path("/run/defender").exists())

"""env.sh leads every shell to the defender, and away from it again."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from deploy.choices import Choices
from deploy.client import write_environment

PROGRAMS = Path("/it's a/.venv/bin")


class EnvironmentFileTests(SynchronousTestCase):
    """What a shell has after reading it."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="a place with 'quotes' ")
        self.addCleanup(scratch.cleanup)
        self.state = Path(scratch.name)

    def after(self, listen: str, mode: str = "fleet") -> dict[str, str]:
        write_environment(Choices(state=self.state, listen=listen, port=1234, mode=mode), PROGRAMS)
        before = {
            "PATH": "/usr/bin:/bin",
            "DOCKER_HOST": "old",
            "DOCKER_TLS_VERIFY": "old",
            "DOCKER_CERT_PATH": "old",
        }
        script = '. "$1/env.sh"; . "$1/env.sh"; env -0'
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", self.state], env=before, capture_output=True, check=True
        )
        return dict(entry.split("=", 1) for entry in done.stdout.decode().rstrip("\0").split("\0"))

    def test_tcp(self) -> None:
        for listen in ("tcp", "unix+tcp"):
            variables = self.after(listen)
            self.assertEqual(variables["DOCKER_HOST"], "tcp://127.0.0.1:1234")
            self.assertEqual(variables["DOCKER_TLS_VERIFY"], "1")
            self.assertEqual(variables["DOCKER_CERT_PATH"], f"{self.state}/certs/admin")

    def test_unix_unsets_what_belongs_to_tls(self) -> None:
        variables = self.after("unix")
        self.assertEqual(variables["DOCKER_HOST"], f"unix://{self.state}/docker.sock")
        self.assertNotIn("DOCKER_TLS_VERIFY", variables)
        self.assertNotIn("DOCKER_CERT_PATH", variables)

    def test_none_leads_nowhere(self) -> None:
        self.assertEqual([name for name in self.after("none") if name.startswith("DOCKER")], [])

    def test_programs_are_on_the_path_once(self) -> None:
        variables = self.after("tcp")
        self.assertEqual(variables["PATH"], f"{PROGRAMS}:/usr/bin:/bin")
        self.assertEqual(variables["FLEET_STATE"], str(self.state))

    def test_defenderctl_is_signed_in_where_there_is_a_controller(self) -> None:
        self.assertEqual(self.after("tcp")["DEFENDERCTL_CONFIG"], f"{self.state}/defenderctl")
        self.assertNotIn("DEFENDERCTL_CONFIG", self.after("tcp", mode="standalone"))

    def test_the_lines_to_paste_are_in_the_file(self) -> None:
        lines = write_environment(Choices(state=self.state), PROGRAMS)
        self.assertEqual(lines[0], "export DOCKER_HOST=tcp://127.0.0.1:9998")
        text = (self.state / "env.sh").read_text("utf-8")
        for line in lines:
            self.assertIn(f"\n{line}\n", text)

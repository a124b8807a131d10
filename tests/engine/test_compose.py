"""docker-compose 1.29, the Python one that Debian ships: it speaks through docker-py 5."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from deploy.docker_api import call, connection
from deploy.engine import SYSTEM_PATH
from tests.engine.dockerd import engine
from tests.engine.guarded import Guarded, guarded, scratch

PROJECT = """\
version: "3"
services:
  front:
    image: busybox
    command: sh -c 'echo front is up; sleep 1000000'
    stop_signal: SIGKILL
    depends_on: [back]
    volumes: ["kept:/kept"]
  back:
    build: .
    stop_signal: SIGKILL
    environment: {WORD: given}
volumes:
  kept: {}
"""


class ComposeTests(SynchronousTestCase):
    """A project with two services, an image of its own, a network and a volume."""

    def compose(self, environment: dict[str, str], folder: Path, *arguments: str) -> str:
        program = shutil.which("docker-compose", path=SYSTEM_PATH)
        assert program is not None, "there is no docker-compose here: apt-get install docker-compose"
        done = subprocess.run(
            [program, "--ansi=never", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        said = done.stdout.decode("utf-8", "replace")
        self.assertEqual(done.returncode, 0, said)
        return said

    def assert_up_and_down(self, name: str, environment: dict[str, str]) -> None:
        folder = scratch() / name
        folder.mkdir()
        (folder / "docker-compose.yml").write_text(PROJECT, "ascii")
        steps = f"FROM busybox\nRUN echo {name} > /name\nCMD echo back has $WORD; sleep 1000000\n"
        (folder / "Dockerfile").write_text(steps, "ascii")
        self.compose(environment, folder, "up", "-d")
        try:
            self.assertIn("Up", self.compose(environment, folder, "ps"))
            found = call(connection(engine().address), "GET", f"/networks/{name}_default")
            self.assertEqual(len(found["Containers"]), 2)
            self.assertIn(name, self.compose(environment, folder, "exec", "-T", "back", "cat", "/name"))
            self.assertIn("given", self.compose(environment, folder, "logs"))
        finally:
            self.compose(environment, folder, "down", "-v", "--rmi=local", "-t", "0")
        rest = call(connection(engine().address), "GET", "/containers/json?all=1")
        self.assertEqual([box["Names"] for box in rest if name in str(box["Names"])], [])

    def test_over_tls(self) -> None:
        # docker-py 5 speaks TLS 1.2 and nothing newer.
        defender = Guarded(mode="tcp", settings={"tls": 'minimum = "1.2"'}).start()
        self.addCleanup(defender.stop)
        self.assert_up_and_down("overtls", defender.tls())

    def test_over_the_unix_socket(self) -> None:
        self.assert_up_and_down("overunix", guarded().unix())

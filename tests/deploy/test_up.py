"""Which Engine `make up` takes, and what it says when there is none."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.policy_schema import load_policy
from deploy import packages, up
from deploy.choices import Choices, SetupError
from deploy.docker_api import call, connection
from deploy.engine import OwnEngine
from tests.engine.dockerd import engine


class FindEngineTests(SynchronousTestCase):
    """The variable, then our own that runs, then the host's, then a new one of our own."""

    def setUp(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="dfleet-", dir="/tmp"))
        self.addCleanup(shutil.rmtree, self.state, ignore_errors=True)
        self.default = f"unix://{self.state}/host.sock"
        self.patch(up, "DEFAULT_ENGINE", self.default)
        self.said: list[str] = []
        self.patch(up, "say", self.said.append)

    def find(self, address: str | None = None) -> str:
        return up.find_engine(Choices(state=self.state, engine=address))

    def refused(self, address: str | None = None) -> str:
        return str(self.assertRaises(SetupError, self.find, address))

    def test_the_one_that_was_named(self) -> None:
        self.assertEqual(self.find(engine().address), engine().address)

    def test_a_named_one_that_is_silent(self) -> None:
        said = self.refused(f"unix://{self.state}/none.sock")
        self.assertIn(
            f"no Engine answers at ENGINE=unix://{self.state}/none.sock (No such file or directory)", said
        )
        self.assertIn("leave ENGINE unset", said)

    def test_a_named_one_that_refuses(self) -> None:
        with socket.socket(socket.AF_UNIX) as closed:
            closed.bind(f"{self.state}/closed.sock")
        self.assertIn("(Connection refused)", self.refused(f"unix://{self.state}/closed.sock"))

    def test_the_hosts_own(self) -> None:
        os.symlink(engine().socket, self.state / "host.sock")
        self.assertEqual(self.find(), self.default)
        self.assertEqual(self.said, [])

    def test_none_and_no_right_to_start_one(self) -> None:
        self.patch(os, "geteuid", lambda: 1000)
        self.assertIn("run make up as root, which has one installed", self.refused())
        self.assertEqual(self.said, [f"No Engine answers at {self.default} (No such file or directory)."])

    def test_no_right_to_open_the_hosts(self) -> None:
        self.patch(up, "why_silent", lambda address: "Permission denied")
        self.assertIn(f"you may not open {self.default}", self.refused())

    def test_the_package_started_the_hosts(self) -> None:
        """As on a machine with systemd; it has no images, and nobody else put it there."""

        def require(programs: object, purpose: str) -> None:
            os.symlink(engine().socket, self.state / "host.sock")

        self.patch(packages, "missing", dict)
        self.patch(packages, "require", require)
        loaded: list[str] = []
        self.patch(up, "load_small_images", loaded.append)
        self.assertEqual(self.find(), self.default)
        self.assertEqual(loaded, [self.default])

    def test_one_of_our_own(self) -> None:
        self.patch(up, "OwnEngine", partial(OwnEngine, isolated=True, ends_with_parent=True))
        own = OwnEngine(self.state / "engine", isolated=True)
        self.addCleanup(own.stop)
        self.assertEqual(self.find(), own.address)
        self.assertIn("Starting an Engine of our own", self.said[-1])
        images = call(connection(own.address), "GET", "/images/json")
        self.assertEqual(
            sorted(tag for image in images for tag in image["RepoTags"]),
            ["busybox:latest", "defender/hello:latest"],
        )
        self.said.clear()
        self.assertEqual(self.find(), own.address)
        self.assertEqual(self.said, [])


class StateDirectoryTests(SynchronousTestCase):
    """What is somebody else's is not made ours by a slip of the pen."""

    def setUp(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(shutil.rmtree, self.state)
        self.state.chmod(0o755)

    def mode(self) -> int:
        return self.state.stat().st_mode & 0o777

    def test_an_empty_one_is_taken(self) -> None:
        up.prepare_state(Choices(state=self.state))
        self.assertEqual(self.mode(), 0o711)
        self.assertEqual((self.state / "pki").stat().st_mode & 0o777, 0o700)

    def test_one_with_an_authority_and_a_policy_is_taken(self) -> None:
        (self.state / "pki").mkdir()
        (self.state / "policy.yaml").touch()
        up.prepare_state(Choices(state=self.state))
        self.assertEqual(self.mode(), 0o711)

    def test_our_own_is_taken_again(self) -> None:
        for _ in range(2):
            up.prepare_state(Choices(state=self.state))
            with up.locked(self.state):
                (self.state / "defender.toml").touch()

    def test_a_home_is_left_alone(self) -> None:
        (self.state / "letters").mkdir()
        said = str(self.assertRaises(SetupError, up.prepare_state, Choices(state=self.state)))
        self.assertIn(f"FLEET_STATE={self.state}: this directory holds other things (letters)", said)
        self.assertEqual(self.mode(), 0o755)

    def test_what_cannot_be_made_is_named(self) -> None:
        (self.state / "file").touch()
        said = str(self.assertRaises(SetupError, up.prepare_state, Choices(state=self.state / "file" / "x")))
        self.assertEqual(said, f"FLEET_STATE={self.state}/file/x: Not a directory")


class StartPolicyTests(SynchronousTestCase):
    """The policy of a first `make up` says what the README says."""

    def test_it_is_valid_and_lets_two_in(self) -> None:
        text = up.START_POLICY.format(admin=up.quoted("admin"), owner=up.quoted("uid:1000"))
        policy = load_policy(text, "policy.yaml")
        self.assertEqual(
            [(rule.name, rule.via) for rule in policy.rules],
            [("admin_rule", ("tls",)), ("owner_rule", ("unix",))],
        )

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
from deploy import up
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
        self.assertIn("only root can have one started", self.refused())
        self.assertEqual(self.said, [f"No Engine answers at {self.default} (No such file or directory)."])

    def test_no_right_to_open_the_hosts(self) -> None:
        self.patch(up, "why_silent", lambda address: "Permission denied")
        self.assertIn(f"you may not open {self.default}", self.refused())

    def test_one_of_our_own(self) -> None:
        self.patch(up, "OwnEngine", partial(OwnEngine, isolated=True, ends_with_parent=True))
        own = OwnEngine(self.state / "engine", isolated=True)
        self.addCleanup(own.stop)
        self.assertEqual(self.find(), own.address)
        self.assertIn("Starting an Engine of our own", self.said[1])
        images = call(connection(own.address), "GET", "/images/json")
        self.assertEqual(
            sorted(tag for image in images for tag in image["RepoTags"]),
            ["busybox:latest", "defender/hello:latest"],
        )
        self.said.clear()
        self.assertEqual(self.find(), own.address)
        self.assertEqual(self.said, [])


class StartPolicyTests(SynchronousTestCase):
    """The policy of a first `make up` says what the README says."""

    def test_it_is_valid_and_lets_two_in(self) -> None:
        text = up.START_POLICY.format(admin=up.quoted("admin"), owner=up.quoted("uid:1000"))
        policy = load_policy(text, "policy.yaml")
        self.assertEqual(
            [(rule.name, rule.via) for rule in policy.rules],
            [("admin_rule", ("tls",)), ("owner_rule", ("unix",))],
        )

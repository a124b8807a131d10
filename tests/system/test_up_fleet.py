"""`make up`: a controller, this host's defender enrolled with it, and a defenderctl that is signed in."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
from typing import Any

from deploy.processes import wait_until
from tests.engine.dockerd import docker_clis
from tests.system.up_case import GUEST_POLICY, UpCase, free_port

HOST = socket.gethostname().partition(".")[0]


class FleetUpTests(UpCase):
    """MODE=fleet, which is what nobody has to say."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.https = free_port()
        cls.fixed = {"CONTROLLER_PORT": str(cls.https), "CHANNEL_PORT": str(free_port())}

    https: int

    def ask(self, command: str) -> Any:
        return json.loads(self.in_shell(f"defenderctl {command} --json").stdout)

    def defenders(self) -> dict[str, Any]:
        return {each["name"]: each for each in self.ask("defenders list")}

    def versions(self) -> list[int]:
        return [each["number"] for each in self.ask("policy history start")]

    def test_a_working_docker_command_and_a_fleet_of_one(self) -> None:
        said = self.up()
        self.assertIn(f"Proof: docker version through {self.address}: Engine ", said)
        for cli in docker_clis():
            self.assertIn(
                "ran through a defender", self.in_shell(f"{cli.path} run --rm defender/hello").stdout
            )
        status = self.in_shell("defenderctl status")
        self.assertIn(f"controller 127.0.0.1:{self.https} as admin", status.stderr)
        self.assertIn("1 online", status.stdout)
        self.assertTrue(self.versions())
        wanted = f"--action container_start --defender {HOST}"
        started = "defenderctl audit search --json " + wanted
        self.assertTrue(wait_until(lambda: self.in_shell(started).stdout != "", 20), "no event arrived")
        # The local verbs go on as without a controller.
        self.assertIn(
            "[Defender] The command 'container_list' denied for user 'bruce' by rule 'default'",
            self.denial("bruce", "ps"),
        )
        self.assertIn("container_start", self.in_shell("defenderctl audit tail").stdout)

    def test_users_reach_it_by_the_name_of_the_host(self) -> None:
        self.stand()
        out = self.scratch / "certificates" / "carol"
        said = self.in_shell(f"defenderctl pki issue --user carol --out {out} --force").stdout
        self.assertIn(f"export DOCKER_HOST=tcp://{HOST}:{self.port}\n", said + "\n")
        names = f"openssl s_client -connect {self.address[6:]} -cert {out}/cert.pem -key {out}/key.pem"
        shown = self.in_shell(f"{names} < /dev/null 2> /dev/null | openssl x509 -noout -ext subjectAltName")
        self.assertRegex(shown.stdout, rf"DNS:{HOST}\b")

    def test_again_changes_nothing(self) -> None:
        self.stand()
        names = (
            *("defender.toml", "controller.toml", "policy.yaml", "env.sh", "certs/admin/cert.pem"),
            *("pki/root.pem", "fleet/member.json", "defenderctl/login.json", "admin-password"),
        )
        before = {name: (self.state / name).read_bytes() for name in names}
        processes = self.process(), self.process("controller")
        versions = self.versions()
        self.up()
        self.assertEqual({name: (self.state / name).read_bytes() for name in names}, before)
        self.assertEqual((self.process(), self.process("controller")), processes)
        self.assertEqual(self.versions(), versions)

    def test_another_listener_in_the_same_process(self) -> None:
        process = self.stand()
        self.assertIn(f"through unix://{self.state}/docker.sock", self.up(LISTEN="unix"))
        # What the fleet has ordered meanwhile gives way too.
        self.disturb()
        self.in_shell(f"defenderctl defenders set-listener {HOST} unix+tcp")
        self.assertIn(f"through {self.address}", self.up())
        self.assertFalse((self.state / "docker.sock").exists())
        self.assertEqual(self.process(), process)
        self.assertEqual(self.defenders()[HOST]["listener"]["desired"], "tcp")

    def test_a_policy_is_published_once(self) -> None:
        self.stand()
        before = self.versions()
        policy = self.scratch / "policy.yaml"
        policy.write_text(GUEST_POLICY.format(actions="image_list"), "utf-8")
        self.assertIn("Published", self.up(POLICY=str(policy)))
        self.assertIn("denied for user 'bruce' by rule 'guest_rule'", self.denial("bruce", "ps"))
        self.assertEqual(len(self.versions()), len(before) + 1)
        # What somebody publishes to the fleet afterwards stays.
        other = self.scratch / "other.yaml"
        other.write_text(GUEST_POLICY.format(actions='"container_*", "docker_*"'), "utf-8")
        self.disturb()
        self.in_shell(f"defenderctl policy publish {other} --at-once --yes")
        self.assertEqual(self.denial("bruce", "ps"), "")
        self.assertNotIn("Published", self.up(POLICY=str(policy)))
        self.assertEqual(self.denial("bruce", "ps"), "")
        policy.write_text(GUEST_POLICY.format(actions="volume_list"), "utf-8")
        self.up(POLICY=str(policy))
        self.assertIn("denied for user 'bruce' by rule 'guest_rule'", self.denial("bruce", "ps"))

    def test_both_are_started_again_after_a_kill(self) -> None:
        self.stand()
        self.disturb()
        before = self.defenders()[HOST]["id"]
        for program in ("defender", "controller"):
            process = self.process(program)
            os.kill(process.pid, signal.SIGKILL)
            self.assertTrue(wait_until(lambda killed=process: not killed.alive, 10))  # type: ignore[misc]
        self.up()
        self.assertEqual(self.defenders()[HOST]["id"], before)

    def test_alone_and_back(self) -> None:
        self.stand()
        before = self.defenders()[HOST]["id"]
        controller = self.process("controller")
        self.assertIn("Stopped the controller", self.up(MODE="standalone"))
        self.assertFalse(controller.alive)
        self.assertIn("ran through a defender", self.in_shell("docker run --rm defender/hello").stdout)
        self.up()
        self.assertEqual({name: each["id"] for name, each in self.defenders().items()}, {HOST: before})

    def test_another_name(self) -> None:
        self.stand()
        self.up(DEFENDER_NAME="build-7")
        found = {name: each["state"] for name, each in self.defenders().items()}
        self.assertEqual(found, {"build-7": "online"})

    def test_ports_that_cannot_be_had(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as occupied:
            port = occupied.getsockname()[1]
            for name in ("CONTROLLER_PORT", "CHANNEL_PORT"):
                said = self.refused(**{name: str(port)})
                self.assertIn(f"make up: {name}={port}: another program listens", said)
        said = self.refused(CONTROLLER_PORT=str(self.port))
        self.assertIn("these must be three different ports", said)

    def test_a_mode_that_is_none(self) -> None:
        self.assertIn("make up: MODE=cluster: must be fleet or standalone", self.refused(MODE="cluster"))

    def test_secrets_are_the_owners_and_stand_in_no_log(self) -> None:
        self.stand()
        for path in self.state.iterdir():
            mode = stat.S_IMODE(path.stat().st_mode)
            if path.is_dir():
                self.assertEqual(mode, 0o700, path)
            elif not path.name.startswith(("running", "env.sh", "up.lock", "listener.json")):
                self.assertEqual(mode & 0o077, 0, path)
        self.assertFalse((self.state / "first-admin-password").exists())
        self.assertFalse((self.state / "join-token").exists())
        secrets = [
            (self.state / "admin-password").read_text().strip(),
            json.loads((self.state / "defenderctl" / "login.json").read_text())["token"],
        ]
        for log in ("controller.log", "defender.log"):
            text = (self.state / log).read_text()
            self.assertTrue(text)
            self.assertFalse([secret for secret in secrets if secret in text], log)
            self.assertIsNone(re.search(r"df[ta]1\.[a-z0-9]{4}", text), log)

    def test_down(self) -> None:
        processes = [self.stand(), self.process("controller")]
        self.disturb()
        said = self.make("down").stdout
        self.assertIn("Stopped the defender.\nStopped the controller.\n", said)
        self.assertEqual([process.alive for process in processes], [False, False])

"""`make up MODE=standalone`: a working docker command, again and again, and `make down`."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from typing import ClassVar

from deploy.docker_api import answers
from deploy.processes import wait_until
from tests.engine.dockerd import docker_clis, engine
from tests.system.up_case import GUEST_POLICY, UpCase, free_port


class UpTests(UpCase):
    """MODE=standalone."""

    fixed: ClassVar[Mapping[str, str]] = {"MODE": "standalone"}

    def test_a_working_docker_command(self) -> None:
        said = self.up()
        self.assertIn(f"Proof: docker version through {self.address}: Engine ", said)
        self.assertIn(f"export DOCKER_HOST={self.address}\n", said)
        for cli in docker_clis():
            self.assertIn(
                "ran through a defender", self.in_shell(f"{cli.path} run --rm defender/hello").stdout
            )
        self.assertIn("defenderctl", self.in_shell("defenderctl --version").stdout)

    def test_everyone_else_is_denied(self) -> None:
        self.stand()
        self.assertIn(
            "[Defender] The command 'container_list' denied for user 'bruce' by rule 'default'",
            self.denial("bruce", "ps"),
        )

    def test_again_changes_nothing(self) -> None:
        self.stand()
        names = (
            "defender.toml",
            "policy.yaml",
            "certs/admin/cert.pem",
            "tls/server.pem",
            "pki/root.pem",
            "env.sh",
        )
        before = (
            self.process(),
            {name: (self.state / name).read_bytes() for name in names if (self.state / name).exists()},
        )
        self.up()
        after = self.process(), {name: (self.state / name).read_bytes() for name in before[1]}
        self.assertEqual(after, before)
        self.assertGreaterEqual(len(before[1]), 5)

    def test_from_a_shell_that_is_set_up_for_it(self) -> None:
        """env.sh puts the environment's own Python first; the environment is the same for both."""
        process = self.stand()
        given = f"ENGINE={engine().address} DEFENDER_PORT={self.port} MODE=standalone"
        said = self.in_shell(
            f'test "$(command -v python3)" = "{self.checkout}/.venv/bin/python3" && '
            f'make -C "{self.checkout}" up {given}'
        ).stdout
        self.assertIn("Proof: ", said)
        self.assertNotIn(".venv", said)
        self.assertEqual(self.process(), process)

    def test_another_listener_in_the_same_process(self) -> None:
        process = self.stand()
        self.assertIn(f"through unix://{self.state}/docker.sock", self.up(LISTEN="unix"))
        self.assertEqual(
            self.in_shell('echo "$DOCKER_HOST$DOCKER_TLS_VERIFY"').stdout,
            f"unix://{self.state}/docker.sock\n",
        )
        self.assertIn("ran through a defender", self.in_shell("docker run --rm defender/hello").stdout)
        self.assertFalse(answers(self.address, self.state / "certs/admin"))
        self.assertEqual(self.up(LISTEN="unix+tcp").count("Proof: "), 2)
        self.assertIn("no proof call", self.up(LISTEN="none"))
        self.assertFalse((self.state / "docker.sock").exists())
        other = str(free_port())
        self.assertIn(f"through tcp://127.0.0.1:{other}", self.up(DEFENDER_PORT=other))
        self.assertFalse(answers(self.address, self.state / "certs/admin"))
        self.up()
        self.assertEqual(self.process(), process)

    def test_a_listener_chosen_at_run_time_gives_way(self) -> None:
        self.stand()
        self.disturb()
        self.in_shell("defenderctl local listener set unix")
        self.assertIn(f"through {self.address}", self.up())

    def test_a_policy_of_ones_own_is_watched(self) -> None:
        policy = self.scratch / "policy.yaml"
        policy.write_text(GUEST_POLICY.format(actions="image_list"), "utf-8")
        self.up(POLICY=str(policy))
        self.assertIn("denied for user 'bruce' by rule 'guest_rule'", self.denial("bruce", "ps"))
        fresh = policy.with_suffix(".new")
        fresh.write_text(GUEST_POLICY.format(actions='"container_*", "docker_*"'), "utf-8")
        os.replace(fresh, policy)
        self.assertTrue(wait_until(lambda: self.denial("bruce", "ps") == "", 20))

    def test_a_policy_that_denies_the_admin_is_no_failure(self) -> None:
        policy = self.scratch / "nobody.yaml"
        policy.write_text("schema: 1\nrules:\n  - {name: nobody, effect: deny}\n", "utf-8")
        self.assertIn("denied for user 'admin' by rule 'nobody'", self.up(POLICY=str(policy)))

    def test_an_expired_certificate_is_renewed(self) -> None:
        self.stand()
        self.disturb()
        out = self.state / "certs/admin"
        self.in_shell(f"defenderctl pki issue --user admin --ttl 1s --out {out}")
        show = f"defenderctl pki show {out}/cert.pem"
        self.assertTrue(wait_until(lambda: self.in_shell(show, check=False).returncode == 1, 20))
        self.assertIn("Issued a certificate for admin", self.up())
        self.assertEqual(self.in_shell(show).returncode, 0)

    def test_a_killed_defender_is_started_again(self) -> None:
        self.up(LISTEN="unix+tcp")
        self.disturb()
        process = self.process()
        os.kill(process.pid, signal.SIGKILL)
        self.assertTrue(wait_until(lambda: not process.alive, 10))
        self.up(LISTEN="unix+tcp")
        self.assertNotEqual(self.process(), process)

    def test_new_code_is_started(self) -> None:
        process = self.stand()
        with (self.checkout / "defender" / "tap.py").open("a") as file:
            file.write("# another line\n")
        self.up()
        self.assertNotEqual(self.process(), process)
        self.assertFalse(process.alive)

    def test_an_occupied_port(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as occupied:
            port = occupied.getsockname()[1]
            self.assertIn(
                f"make up: DEFENDER_PORT={port}: another program listens",
                self.refused(DEFENDER_PORT=str(port)),
            )

    def test_a_silent_engine(self) -> None:
        address = f"unix://{self.scratch}/none.sock"
        self.assertIn(f"make up: no Engine answers at ENGINE={address}", self.refused(ENGINE=address))

    def test_a_broken_policy(self) -> None:
        policy = self.scratch / "broken.yaml"
        policy.write_text("schema: 1\nrules:\n  - name: x\n    efect: allow\n", "utf-8")
        said = self.refused(POLICY=str(policy))
        self.assertIn(f"make up: the policy cannot be used:\n{policy}:3:5: ", said)

    def test_down(self) -> None:
        process = self.stand()
        self.disturb()
        self.assertIn("Stopped the defender.", self.make("down").stdout)
        self.assertFalse(process.alive)
        self.assertFalse(answers(self.address, self.state / "certs/admin"))
        self.assertTrue(answers(engine().address), "an Engine that make up did not start goes on")
        again = self.make("down")
        self.assertEqual((again.returncode, again.stdout), (0, "The defender was not running.\n"))

    def test_secrets_are_the_owners(self) -> None:
        self.stand()
        wide = [
            str(path.relative_to(self.state))
            for path in self.state.rglob("*")
            if path.is_file()
            and path.stat().st_mode & 0o077
            and path.parent == self.state
            and path.name != "env.sh"
        ]
        self.assertEqual([name for name in wide if not name.endswith((".lock", ".json"))], [])
        for name in ("audit", "certs", "pki", "tls"):
            self.assertEqual((self.state / name).stat().st_mode & 0o777, 0o700, name)

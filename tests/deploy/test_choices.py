"""The variables of `make up`: read, defaulted, and refused by name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from deploy.choices import SetupError, read_choices

HERE = Path("/checkout")


class ReadChoicesTests(SynchronousTestCase):
    """What a person may write, and what they are told."""

    def refused(self, **variables: str) -> str:
        return str(self.assertRaises(SetupError, read_choices, variables, HERE))

    def test_defaults(self) -> None:
        choices = read_choices({}, HERE)
        self.assertEqual(choices.state, Path("/checkout/.state"))
        self.assertEqual((choices.port, choices.listen), (9998, "tcp"))
        self.assertEqual((choices.engine, choices.policy, choices.name), (None, None, None))
        self.assertEqual((choices.mode, choices.controller_port, choices.channel_port), ("fleet", 8083, 8084))

    def test_an_empty_variable_is_not_set(self) -> None:
        names = ("FLEET_STATE", "ENGINE", "DEFENDER_PORT", "LISTEN", "POLICY", "DEFENDER_NAME", "MODE")
        self.assertEqual(read_choices(dict.fromkeys(names, ""), HERE), read_choices({}, HERE))

    def test_everything_chosen(self) -> None:
        handle, policy = tempfile.mkstemp(suffix=".yaml")
        os.close(handle)
        self.addCleanup(os.unlink, policy)
        choices = read_choices(
            {
                "FLEET_STATE": "elsewhere/../state",
                "ENGINE": "unix:///run/other.sock",
                "DEFENDER_PORT": "19998",
                "LISTEN": "unix+tcp",
                "POLICY": policy,
                "DEFENDER_NAME": "prod-1",
                "MODE": "standalone",
                "CONTROLLER_PORT": "18083",
                "CHANNEL_PORT": "18084",
            },
            HERE,
        )
        self.assertEqual(
            (choices.mode, choices.controller_port, choices.channel_port), ("standalone", 18083, 18084)
        )
        self.assertEqual(choices.state, Path("/checkout/state"))
        self.assertEqual(choices.engine, "unix:///run/other.sock")
        self.assertEqual((choices.port, choices.listen, choices.name), (19998, "unix+tcp", "prod-1"))
        self.assertEqual(choices.policy, Path(policy))

    def test_three_programs_need_three_ports(self) -> None:
        for name, port in (("DEFENDER_PORT", "8084"), ("CONTROLLER_PORT", "9998"), ("CHANNEL_PORT", "8083")):
            self.assertIn(f"{name}={port}", self.refused(**{name: port}))
        self.assertEqual(read_choices({"DEFENDER_PORT": "8083", "MODE": "standalone"}, HERE).port, 8083)

    def test_listener_modes(self) -> None:
        sides = {}
        for mode in ("tcp", "unix", "unix+tcp", "none"):
            choices = read_choices({"LISTEN": mode}, HERE)
            sides[mode] = (choices.listens_on_tcp, choices.listens_on_unix)
        self.assertEqual(
            sides,
            {"tcp": (True, False), "unix": (False, True), "unix+tcp": (True, True), "none": (False, False)},
        )

    def test_each_refusal_names_variable_and_value(self) -> None:
        for variable, value in (
            ("MODE", "cluster"),
            ("LISTEN", "tpc"),
            ("DEFENDER_PORT", "0"),
            ("DEFENDER_PORT", "65536"),
            ("DEFENDER_PORT", "http"),
            ("CONTROLLER_PORT", "-1"),
            ("CHANNEL_PORT", "x"),
            ("ENGINE", "tcp://127.0.0.1:2375"),
            ("ENGINE", "unix://relative"),
            ("DEFENDER_NAME", "two words"),
            ("POLICY", "missing.yaml"),
        ):
            self.assertIn(f"{variable}={value}: ", self.refused(**{variable: value}))

"""File descriptors: connections must not take those that the record, the Engine and locks need."""

from __future__ import annotations

import resource
from typing import Any
from unittest import mock

from twisted.logger import Logger, formatEvent

from defender import host
from tests.security.running import DefenderCase


class DescriptorTests(DefenderCase):
    def limited(self, soft: int, hard: int) -> tuple[int, list[Any]]:
        """Start under these limits; the most connections, and the limits that were set."""
        with (
            mock.patch.object(resource, "getrlimit", return_value=(soft, hard)),
            mock.patch.object(resource, "setrlimit") as changed,
        ):
            defender = self.start()
        return defender.listener.reception.terms.connections, [call.args for call in changed.call_args_list]

    def test_soft_limit_is_raised(self) -> None:
        """1024, which most shells give, is fewer than the connections of the default settings."""
        connections, set_to = self.limited(1024, 1048576)
        self.assertEqual(connections, 4096)
        self.assertEqual(set_to, [(resource.RLIMIT_NOFILE, (1048576, 1048576))])

    def test_connections_leave_descriptors_for_the_rest(self) -> None:
        for hard in (256, 1024, 4096):
            connections, _ = self.limited(hard, hard)
            self.assertTrue(hard // 2 <= connections <= hard - 64 - hard // 16, (hard, connections))
            [line] = [text for text in self.logged if "LimitNOFILE" in text]
            self.assertIn(f"{hard} ", line)
            self.logged.clear()

    def test_limit_that_may_not_be_raised(self) -> None:
        with mock.patch.object(resource, "setrlimit", side_effect=PermissionError(1, "no")):
            self.assertLessEqual(host.room_for(4096, 512), 4096)

    def setUp(self) -> None:
        super().setUp()
        self.logged: list[str] = []
        observer: Any = lambda event: self.logged.append(str(formatEvent(event)))  # noqa: E731
        self.patch(host, "_log", Logger(observer=observer))

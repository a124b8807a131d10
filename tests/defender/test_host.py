"""What a host says of itself."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from defender.host import own_names


class OwnNames(SynchronousTestCase):
    """A defender that joins a fleet without settings for it is reached under its own name all the same."""

    def test_they_are_the_defenders_and_the_hosts(self) -> None:
        host = os.uname().nodename
        local = ("localhost", "127.0.0.1", "::1")
        self.assertEqual(own_names("web1"), ("web1", host, *local))
        self.assertEqual(own_names(host), (host, *local))

"""`twistd controller` is listed, has help, and refuses to start until there is a controller."""

from __future__ import annotations

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from controller.tap import Options, makeService


class NotYetTests(SynchronousTestCase):
    """One clear sentence, and what to run instead."""

    def test_refuses_as_a_usage_error(self) -> None:
        said = self.assertRaises(usage.UsageError, Options().parseOptions, [])
        self.assertEqual(
            str(said),
            "the controller is not there yet; a single defender needs none: run `make up MODE=standalone`",
        )
        self.assertRaises(usage.UsageError, makeService, Options())

    def test_help_says_so_too(self) -> None:
        self.assertIn("the controller is not there yet", " ".join(str(Options()).split()))

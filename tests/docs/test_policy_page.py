"""What the page about policies shows is true."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.policy import load_policy
from defender.contract.policy_schema import RULE_KEYS
from docs.generate import DOCS

PAGE = (DOCS / "reference" / "policy.md").read_text("utf-8")


class PolicyPageTests(SynchronousTestCase):
    """`docs/reference/policy.md`."""

    def test_the_example_is_valid(self) -> None:
        example = re.search(r"```yaml\n(schema: 1\n.*?)```", PAGE, re.DOTALL)
        assert example is not None
        self.assertEqual(len(load_policy(example[1], "policy.md").rules), 4)

    def test_every_key_is_described(self) -> None:
        for key in (*RULE_KEYS, "schema", "rules"):
            self.assertIn(f"\n| `{key}` | ", PAGE)

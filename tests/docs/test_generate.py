"""The page of actions is that of the catalogue, and nothing generated is out of date."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.actions import KNOWN_NAMES, OPERATIONS
from docs.generate import DOCS, PAGES, main


class GeneratedPagesTests(SynchronousTestCase):
    """`python docs/generate.py` was run."""

    def test_pages_equal_the_code(self) -> None:
        for name, make in PAGES.items():
            self.assertEqual((DOCS / name).read_text("utf-8"), make(), f"docs/{name}: run make docs")
        self.assertEqual(main(["--check"]), 0)

    def test_every_operation_and_every_name_is_on_the_page(self) -> None:
        page = PAGES["reference/actions.md"]()
        for operation in OPERATIONS:
            self.assertIn(f"| `{operation.action}` | `{operation.method} ", page)
        rows = sum(line.startswith("| `") and line.count("|") == 6 for line in page.splitlines())
        self.assertEqual(rows, len(OPERATIONS))
        for name in KNOWN_NAMES:
            self.assertIn(f"| `{name}` |", page)

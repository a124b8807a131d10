"""The generated pages are those of this code, and their example is a valid event."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from controller import settings as controller_settings
from defender import settings as defender_settings
from docs.reference_pages import DOCS, EXAMPLE, PAGES, main
from tests.schema import faults


class Pages(SynchronousTestCase):
    def test_the_pages_are_up_to_date(self) -> None:
        for name, make in PAGES.items():
            self.assertEqual((DOCS / name).read_text("utf-8"), make(), f"docs/{name}: run make docs")
        self.assertEqual(main(["--check"]), 0)

    def test_every_setting_is_on_its_page(self) -> None:
        page = PAGES["reference/settings.md"]()
        defender, controller = page.split("\n# The controller\n")
        for part, program in ((defender, defender_settings), (controller, controller_settings)):
            for setting in program.describe():
                table = part.split(f"\n## [{setting.table}]\n")[1].split("\n## ")[0]
                self.assertIn(f"| `{setting.key}` | {setting.type} |", table)

    def test_every_key_of_the_schema_is_on_its_page(self) -> None:
        schema = json.loads((DOCS / "reference/event.schema.json").read_text("utf-8"))
        page = PAGES["reference/events.md"]()
        for part in (schema, *schema["$defs"].values()):
            for key in part.get("properties", ()):
                self.assertIn(f"| `{key}` | ", page)

    def test_the_example_is_an_event(self) -> None:
        schema = json.loads((DOCS / "reference/event.schema.json").read_text("utf-8"))
        self.assertEqual(faults(EXAMPLE, schema), [])

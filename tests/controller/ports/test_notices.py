"""What enrollment tells of stands in the audit trail."""

from __future__ import annotations

from twisted.internet.defer import inlineCallbacks

from controller.pki.registry import Notice
from controller.ports.notices import notices
from tests.controller.ports.case import PortCase
from tests.controller.store.trails import Steps


class Notices(PortCase):
    @inlineCallbacks
    def test_who_joined_and_who_was_turned_away(self) -> Steps[None]:
        write = notices(self.ledger)
        joined = Notice("joined", "d1", "web1", "k7c3q", "10.1.2.3")
        refused = Notice("refused", name="web2", token="k7c3q", source="10.1.2.4", detail="it was used")
        for notice in (joined, refused):
            yield self.database.write(write, notice)
        first, second = yield self.told("defender_*")
        self.assertEqual(
            (first["req"]["action"], first["req"]["target"], first["actor"]["src"]),
            ("defender_joined", "web1", "10.1.2.3"),
        )
        self.assertEqual(first["after"], {"defender": "d1", "join_token": "k7c3q"})
        self.assertEqual(
            (second["decision"]["effect"], second["decision"]["reason"]), ("deny", "it was used")
        )

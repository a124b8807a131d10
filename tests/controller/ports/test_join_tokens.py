"""Join tokens over the API, on a store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from twisted.internet.defer import inlineCallbacks

from controller.api.ports import PageWish
from controller.pki.authority import Authority
from controller.pki.custody import MemoryCustody
from controller.pki.kept import find_token
from controller.ports.join_tokens import JoinTokens
from controller.store import join_tokens
from defender.contract.join_token import parse_token, pin_of
from tests.controller.ports.case import PortCase, items, run
from tests.controller.store.trails import NOON, Steps

PATH = "/api/v1/join-tokens"


class Tokens(PortCase):
    def changes(self) -> dict[str, Any]:
        now = datetime.fromtimestamp(NOON, UTC)
        self.root = Authority.create("defender.fleet", MemoryCustody(), now).root
        return {
            **super().changes(),
            "join_tokens": JoinTokens(self.ledger, self.root, lambda: "localhost:8084"),
        }

    @inlineCallbacks
    def test_made_shown_used_and_revoked(self) -> Steps[None]:
        session = yield self.admin()
        wanted = {
            "uses": 2,
            "expires_in": 600,
            "networks": ["10.0.0.0/8"],
            "labels": {"site": "vienna"},
            "names": ["web*"],
            "hosts": ["*.example.com", "10.9.0.0/16", "fd00::/8"],
            "comment": "new rack",
        }
        made = yield self.ask("POST", PATH, wanted, token=session)
        self.assertEqual(made.status, 201, made.body)
        token = parse_token(made.json["token"])
        self.assertEqual((token.id, token.pin), (made.json["id"], pin_of(self.root)))
        kept = yield self.database.read(find_token, token.id)
        self.assertEqual((kept.digest, kept.expires), (token.digest, int(NOON) + 600))
        self.assertEqual((kept.names, kept.created_by), (("web*",), "admin"))
        self.assertEqual(made.json["hosts"], wanted["hosts"])
        self.assertEqual(list(kept.hosts), wanted["hosts"])
        (shown,) = items((yield self.ask("GET", PATH, token=session)))
        self.assertEqual((shown["state"], shown["used"], shown["uses"]), ("usable", 0, 2))
        self.assertNotIn("token", shown)
        for _ in range(2):
            yield self.database.write(join_tokens.consume, token.id, token.digest, self.now)
        (shown,) = items((yield self.ask("GET", PATH, token=session)))
        self.assertEqual((shown["state"], shown["used"]), ("used", 2))
        for _ in range(2):
            gone = yield self.ask("DELETE", f"{PATH}/{token.id}", token=session)
            self.assertEqual(gone.status, 204)
        (shown,) = items((yield self.ask("GET", PATH, token=session)))
        self.assertEqual(shown["state"], "revoked")
        told = yield self.told("join_token_*")
        self.assertEqual([each["req"]["action"] for each in told], ["join_token_create", "join_token_revoke"])
        self.assertEqual((told[0]["after"]["uses"], told[0]["req"]["comment"]), (2, "new rack"))
        self.assertNotIn(made.json["token"].split(".")[2], repr(told))

    @inlineCallbacks
    def test_pages_from_the_newest_on(self) -> Steps[None]:
        session = yield self.admin()
        made = []
        for _ in range(3):
            self.now += 1
            made.append((yield self.ask("POST", PATH, {}, token=session)).json["id"])
        first = yield self.ask("GET", f"{PATH}?limit=2", token=session)
        self.assertEqual([each["id"] for each in items(first)], [made[2], made[1]])
        rest = yield self.ask("GET", f"{PATH}?limit=2&cursor={first.json['next']}", token=session)
        self.assertEqual(([each["id"] for each in items(rest)], rest.json["next"]), ([made[0]], None))
        wrong = yield self.ask("GET", f"{PATH}?cursor=aaaa", token=session)
        self.assertEqual(wrong.status, 400)
        self.now += 3599
        page = yield run(self.ports().join_tokens.join_tokens(PageWish()))
        self.assertEqual([each["state"] for each in page["items"]], ["usable", "expired", "expired"])

    @inlineCallbacks
    def test_terms_that_make_no_sense(self) -> Steps[None]:
        session = yield self.admin()
        wrong = yield self.ask("POST", PATH, {"networks": ["10.1.2.3/8"]}, token=session)
        self.assertEqual((wrong.status, wrong.json["errors"][0]["pointer"]), (422, "/networks"))
        gone = yield self.ask("DELETE", f"{PATH}/nobody", token=session)
        self.assertEqual((gone.status, gone.json["detail"]), (404, "there is no join token 'nobody'"))

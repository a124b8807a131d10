"""Join tokens, accounts, sessions: used as often as they may be, under races too, and shown by no repr."""

from __future__ import annotations

import sqlite3

from twisted.internet.defer import DeferredList, inlineCallbacks

from controller.store import defenders, join_tokens, users
from controller.store.errors import ExistsError, MissingError
from controller.store.join_tokens import JoinTokenRow, JoinUseRow
from controller.store.users import ApiTokenRow, SessionRow, UserRow
from tests.controller.store.test_database import DatabaseCase
from tests.controller.store.test_repositories import RepositoryCase
from tests.controller.store.trails import Steps

DIGEST = b"d" * 32


def token(ident: str = "t1", uses: int = 1, created: float = 100.0) -> JoinTokenRow:
    return JoinTokenRow(ident, DIGEST, created, created + 3600, uses, "alice", {"labels": {"env": "prod"}})


class JoinTokens(RepositoryCase):
    def test_one(self) -> None:
        c = self.connection
        join_tokens.add(c, token())
        self.assertEqual(join_tokens.find(c, "t1"), token())
        self.assertRaises(ExistsError, join_tokens.add, c, token())
        self.assertNotIn("ddd", repr(token()))

    def test_when_it_cannot_be_used(self) -> None:
        c = self.connection
        join_tokens.add(c, token(uses=2))
        cases = (("t2", DIGEST, 200.0), ("t1", b"e" * 32, 200.0), ("t1", DIGEST, 3700.0))
        for ident, digest, now in cases:
            self.assertEqual(join_tokens.consume(c, ident, digest, now), None)
        self.assertEqual(join_tokens.consume(c, "t1", DIGEST, 3699.0), 1)
        self.assertEqual(join_tokens.revoke(c, "t1", 300.0), True)
        self.assertEqual(join_tokens.revoke(c, "t1", 400.0), False)
        self.assertEqual(join_tokens.consume(c, "t1", DIGEST, 200.0), None)
        found = join_tokens.find(c, "t1")
        self.assertEqual(found and (found.uses, found.revoked), (1, 300.0))
        self.assertRaises(MissingError, join_tokens.revoke, c, "t2", 1.0)

    def test_uses(self) -> None:
        c = self.connection
        join_tokens.add(c, token(uses=3))
        use = JoinUseRow("t1", b"k1", "id-a", "a", "waiting", "::1", 150.0)
        join_tokens.keep_use(c, use)
        join_tokens.keep_use(c, JoinUseRow("t1", b"k2", "id-b", "b", "waiting", "::1", 140.0))
        self.assertEqual([each.name for each in join_tokens.waiting(c)], ["b", "a"])
        self.assertEqual([each.name for each in join_tokens.waiting(c, 145.0)], ["a"])
        issued = JoinUseRow("t1", b"k1", "id-a", "a", "issued", "::1", 150.0, 160.0)
        join_tokens.keep_use(c, issued)
        self.assertEqual(join_tokens.find_use(c, "t1", b"k1"), issued)
        self.assertEqual(join_tokens.find_use(c, "t1", b"k3"), None)
        self.assertEqual(join_tokens.forget(c, 3700.0), 0)
        self.assertEqual(join_tokens.forget(c, 3701.0), 1)
        self.assertEqual(join_tokens.waiting(c), [])

    def test_pages(self) -> None:
        c = self.connection
        for number in range(5):
            join_tokens.add(c, token(f"t{number}", created=100.0 + number // 2))
        first = join_tokens.page(c, limit=3)
        rest = join_tokens.page(c, first[-1].id, 3)
        self.assertEqual([each.id for each in [*first, *rest]], ["t4", "t3", "t2", "t1", "t0"])


class Races(DatabaseCase):
    @inlineCallbacks
    def test_a_token_is_used_as_often_as_it_may_be(self) -> Steps[None]:
        """Two hundred join at once with a token for three; one of the three cannot be kept."""
        database = self.open()
        yield database.write(join_tokens.add, token(uses=3))

        def join(connection: sqlite3.Connection, number: int) -> int | None:
            taken = join_tokens.consume(connection, "t1", DIGEST, 200.0)
            if taken is None:
                return None
            # What cannot be kept takes no use: both are one transaction.
            name = "taken" if number < 2 else f"web{number}"
            defenders.add(connection, f"d{number}", name, enrolled=1.0, token="t1")
            return taken

        results = yield DeferredList([database.write(join, n) for n in range(200)], consumeErrors=True)
        taken = [value for good, value in results if good and value is not None]
        self.assertEqual(taken, [1, 2, 3])
        failed = [value.value for good, value in results if not good]
        self.assertEqual([type(each) for each in failed], [ExistsError])
        self.assertEqual(len((yield database.read(defenders.every))), 3)


class Users(RepositoryCase):
    def user(self, name: str = "alice", **fields: object) -> UserRow:
        values = {"id": f"id-{name}", "roles": ("admin",), "password": "$argon2id$secret", "created": 1.0}
        return UserRow(name=name, **{**values, "changed": 1.0, **fields})  # type: ignore[arg-type]

    def test_accounts(self) -> None:
        c = self.connection
        users.add(c, self.user())
        self.assertEqual(users.find(c, "ALICE"), self.user())
        self.assertEqual(users.find_id(c, "id-alice"), self.user())
        self.assertRaises(ExistsError, users.add, c, self.user("Alice", id="other"))
        changed = self.user(roles=("auditor", "user"), disabled=True, must_change=True, last_login=5.0)
        users.keep(c, changed)
        users.add(c, self.user("bob"))
        self.assertEqual(users.every(c), [changed, self.user("bob")])
        self.assertNotIn("secret", repr(changed))
        self.assertRaises(MissingError, users.keep, c, self.user("carol"))
        self.assertEqual(users.find(c, "carol"), None)

    def test_sessions(self) -> None:
        c = self.connection
        users.add(c, self.user())
        for number in range(3):
            row = SessionRow(f"s{number}", bytes([number]) * 32, "id-alice", 1.0, 10.0 + number, 1.0, "::1")
            users.add_session(c, row)
        self.assertEqual(users.find_session(c, b"\0" * 32), users.sessions_of(c, "id-alice")[0])
        self.assertEqual(users.find_session(c, b"x"), None)
        users.keep_used(c, [("s0", 5.0), ("s0", 4.0), ("gone", 1.0)], [])
        self.assertEqual([each.used for each in users.sessions_of(c, "id-alice")], [5.0, 1.0, 1.0])
        users.end_sessions(c, ["s1", "gone"])
        self.assertEqual(users.forget_sessions(c, 10.0), 1)
        self.assertEqual([each.id for each in users.sessions_of(c, "id-alice")], ["s2"])
        self.assertNotIn("\\x02\\x02", repr(users.sessions_of(c, "id-alice")))

    def test_api_tokens(self) -> None:
        c = self.connection
        users.add(c, self.user())
        users.add(c, self.user("bob"))
        mine = ApiTokenRow("t1", b"1" * 32, "id-alice", "ci", ("audit.read",), 1.0, 99.0)
        users.add_token(c, mine)
        users.add_token(c, ApiTokenRow("t2", b"2" * 32, "id-bob", "ci", (), 2.0, 99.0))
        self.assertEqual(users.find_token(c, b"1" * 32), mine)
        self.assertEqual([each.id for each in users.tokens(c)], ["t1", "t2"])
        self.assertEqual(users.tokens(c, "id-alice"), [mine])
        users.keep_used(c, [], [("t1", 7.0)])
        self.assertRaises(MissingError, users.revoke_token, c, "t1", 5.0, "id-bob")
        self.assertEqual(users.revoke_token(c, "t1", 5.0, "id-alice").revoked, 5.0)
        self.assertEqual(users.revoke_token(c, "t1", 6.0).revoked, 5.0)
        found = users.find_token(c, b"1" * 32)
        self.assertEqual(found and found.used, 7.0)
        self.assertNotIn("1111", repr(found))

    def test_removal_ends_everything(self) -> None:
        c = self.connection
        users.add(c, self.user())
        users.add_session(c, SessionRow("s", b"s", "id-alice", 1.0, 10.0, 1.0, ""))
        users.add_token(c, ApiTokenRow("t", b"t", "id-alice", "ci", (), 1.0, 99.0))
        users.remove(c, "id-alice")
        self.assertEqual((users.find_session(c, b"s"), users.find_token(c, b"t")), (None, None))
        self.assertRaises(MissingError, users.remove, c, "id-alice")

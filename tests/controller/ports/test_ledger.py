"""A change and its event are one; what a store cannot do is told; what is over is forgotten."""

from __future__ import annotations

import sqlite3
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase

from controller.api.ports import InvalidError, PageWish
from controller.ports.housekeeping import KEEP_TOKENS, tidy
from controller.ports.paging import part, read_cursor, write_cursor
from controller.store import join_tokens, trail, users
from controller.store.errors import UnwritableStoreError
from controller.store.join_tokens import JoinTokenRow
from tests.controller.ports.case import GOOD, PortCase, run
from tests.controller.store.trails import NOON, Steps

BOB = {"user": "bob", "password": GOOD, "roles": ["operator"]}


class Transactions(PortCase):
    @inlineCallbacks
    def test_no_change_without_its_event(self) -> Steps[None]:
        session = yield self.admin()
        with mock.patch.object(trail, "append", side_effect=ValueError("no event can hold this")):
            reply = yield self.ask("POST", "/api/v1/accounts", BOB, token=session)
        self.assertEqual(reply.status, 500)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        found = yield self.database.read(users.find, "bob")
        self.assertIsNone(found)

    @inlineCallbacks
    def test_no_event_without_its_change(self) -> Steps[None]:
        session = yield self.admin()
        with mock.patch.object(users, "add", side_effect=sqlite3.IntegrityError("no")):
            reply = yield self.ask("POST", "/api/v1/accounts", BOB, token=session)
        self.assertEqual(reply.status, 500)
        self.flushLoggedErrors(sqlite3.IntegrityError)
        self.assertEqual(len((yield self.told("account_create"))), 1)

    @inlineCallbacks
    def test_a_store_that_cannot_be_written(self) -> Steps[None]:
        session = yield self.admin()
        told = UnwritableStoreError("the controller's store: the disk is full")
        with mock.patch.object(users, "add", side_effect=told):
            reply = yield self.ask("POST", "/api/v1/accounts", BOB, token=session)
        self.assertEqual((reply.status, reply.json["detail"]), (503, str(told)))


class Housekeeping(PortCase):
    @inlineCallbacks
    def test_what_is_over_goes(self) -> Steps[None]:
        yield self.admin()
        token = JoinTokenRow("old", b"d" * 32, NOON, NOON + 600, 1, "admin", {})
        yield self.database.write(join_tokens.add, token)
        yield run(tidy(self.ledger))
        owner = yield self.database.read(users.find, "admin")
        self.assertEqual(len((yield self.database.read(users.sessions_of, owner.id))), 1)
        self.now += KEEP_TOKENS + 601
        yield run(tidy(self.ledger))
        self.assertEqual((yield self.database.read(users.sessions_of, owner.id)), [])
        self.assertIsNone((yield self.database.read(join_tokens.find, "old")))


class Paging(SynchronousTestCase):
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    def test_a_cursor_of_any_key(self, key: str) -> None:
        self.assertEqual(read_cursor(write_cursor(key)), key)

    @given(st.text(max_size=60))
    def test_a_cursor_that_was_made_up(self, cursor: str) -> None:
        try:
            read_cursor(cursor)
        except InvalidError as error:
            self.assertEqual(error.where, "query")

    @given(st.sets(st.integers(0, 200), max_size=40), st.integers(1, 9), st.booleans())
    def test_pages_are_the_whole_list_once(self, items: set[int], limit: int, newest: bool) -> None:
        found: list[int] = []
        cursor: str | None = ""
        while cursor is not None:
            page = part(
                items,
                PageWish(cursor, limit),
                key=lambda item: f"{item:04d}",
                show=lambda item: {"n": item},
                newest_first=newest,
            )
            found += [each["n"] for each in page["items"]]
            cursor = page["next"]
        self.assertEqual(found, sorted(items, reverse=newest))

"""Bearer secrets and sessions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.credentials import (
    API_TOKEN,
    ENTROPY,
    MAX_SESSIONS,
    SESSION,
    SESSION_IDLE,
    SESSION_LIFE,
    Session,
    digest_of,
    make_credential,
    read_credential,
    sessions_to_end,
)


class Secrets(SynchronousTestCase):
    @given(st.binary(min_size=ENTROPY, max_size=ENTROPY), st.sampled_from([SESSION, API_TOKEN]))
    def test_they_are_read_as_they_were_made(self, entropy: bytes, kind: str) -> None:
        made = make_credential(kind, entropy)
        self.assertEqual(read_credential(made.text), (kind, made.digest))
        self.assertEqual(made.digest, digest_of(made.text))
        self.assertNotIn(made.text[5:], repr(made))

    @given(st.text(max_size=60))
    def test_anything_else_is_none(self, text: str) -> None:
        self.assertIsNone(read_credential(text))
        self.assertIsNone(read_credential("dfs1_" + text))

    def test_one_spelling_each(self) -> None:
        text = make_credential(SESSION, bytes(ENTROPY)).text
        self.assertEqual(text, "dfs1_" + "A" * 43)
        for other in (text[:-1] + "B", text + "=", text + "\n", " " + text, text.replace("dfs1", "dfx1")):
            self.assertIsNone(read_credential(other), other)
        with self.assertRaises(ValueError):
            make_credential(SESSION, bytes(16))


class Sessions(SynchronousTestCase):
    def test_they_end(self) -> None:
        session = Session("ann", created=1000.0, used=1000.0)
        self.assertFalse(session.is_over(1000.0 + SESSION_IDLE - 1))
        self.assertTrue(session.is_over(1000.0 + SESSION_IDLE))
        busy = Session("ann", created=1000.0, used=1000.0 + SESSION_LIFE - 1)
        self.assertFalse(busy.is_over(1000.0 + SESSION_LIFE - 1))
        self.assertTrue(busy.is_over(1000.0 + SESSION_LIFE))
        self.assertTrue(session.is_over(900.0))

    def test_a_use_is_noted_now_and_then(self) -> None:
        session = Session("ann", 1000.0, 1000.0)
        self.assertEqual([session.is_to_be_noted(now) for now in (1001.0, 1060.0)], [False, True])

    def test_one_more_ends_the_one_used_longest_ago(self) -> None:
        sessions = {bytes([number]): Session("ann", 0.0, float(number)) for number in range(MAX_SESSIONS)}
        self.assertEqual(sessions_to_end(sessions, 100.0), (bytes([0]),))
        sessions[b"old"] = Session("ann", -SESSION_LIFE, 0.0)
        self.assertEqual(sessions_to_end(sessions, 100.0), (b"old", bytes([0])))
        self.assertEqual(sessions_to_end({}, 100.0), ())

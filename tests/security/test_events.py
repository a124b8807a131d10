"""Events under attack: what they cost, what they give away."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.redaction import hide_url_secrets
from defender.http1.head import MAX_HEAD
from tests.defender.proxy.house import HouseCase, status_of
from tests.security.hang import guarded


class CostTests(HouseCase):
    """One request, denied or not, must not keep the others waiting while it is noted."""

    def test_url_of_nothing_but_separators(self) -> None:
        for piece in ("?", "&", ";", "=", "@", "#", ":", "/", "://", "?=", "?&", "a?b=", "\\"):
            for start in ("https://h/", "https://", ""):
                with guarded(f"remote={start}{piece}..."):
                    hide_url_secrets(start + piece * (MAX_HEAD // len(piece)))

    def test_denied_request_with_such_a_url(self) -> None:
        client = self.house.client()
        with guarded("a request"):
            client.deliver(
                b"GET /v1.41/nowhere?remote=h://h/" + b"?" * 60000 + b"= HTTP/1.1\r\nHost: x\r\n\r\n"
            )
        self.assertEqual(status_of(client.take()), 403)


class UrlTests(SynchronousTestCase):
    """What stands in the query of a URL is not written down, however it is separated."""

    def test_query_values(self) -> None:
        for url, shown in (
            ("https://h/a?token=S", "https://h/a?token=***"),
            ("https://h/a?b=S&c=S;d=S#main", "https://h/a?b=***&c=***;d=***#main"),
            ("https://h/a?S", "https://h/a?***"),
            ("https://h/a?S&b=S", "https://h/a?***&b=***"),
            ("https://h/a?b=S?S", "https://h/a?b=***?***"),
            ("https://h/a?b=S S", "https://h/a?b=***"),
            ("https://h/a;sid=S/b", "https://h/a;sid=***"),
            ("https://h/a?b", "https://h/a?***"),
            ("https://h/a?b=", "https://h/a?b=***"),
            ("https://h/a?", "https://h/a?***"),
            ("https://h/a&b/c", "https://h/a&b/c"),
        ):
            self.assertEqual(hide_url_secrets(url), shown)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from(["?", "&", ";", "=", "/", "#main", "a", " ", "SECRET"]), max_size=12))
    def test_no_value_is_left(self, parts: list[str]) -> None:
        """Behind an equals sign in the query nothing stays, up to the fragment."""
        tail, _, _ = "".join(parts).partition("#")
        shown = hide_url_secrets(f"https://h/?{tail}").partition("#")[0]
        for piece in shown.replace(";", "&").replace("?", "&").split("&")[1:]:
            self.assertIn(piece.partition("=")[2], ("", "***"), shown)


class LeakTests(HouseCase):
    """What a request that cannot be read held is in no event and in no answer."""

    def test_credentials_in_what_cannot_be_read(self) -> None:
        for raw in (
            b"GET http://u:SECRET@h/containers/json HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET http://u:SEC%ZZSECRET@h/x HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET http://u:a/SECRET@h/ HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT u:SECRET@h:443 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /http://u:SECRET@h/ HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET //u:SECRET@h/ HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET http://u:SECRET@h/ HTTP/1.1 x\r\nHost: x\r\n\r\n",
            b"GET /_ping HTTP/1.1\r\nHost: u:SECRET@h\r\n\r\n",
            # A client that counted its body wrongly: the rest of it stands where a request should.
            b'"password":"SECRET"}\r\n\r\n',
            b"X-Registry-Auth: SECRET\r\n\r\n",
            b"SECRET\r\n\r\n",
        ):
            client = self.house.client()
            client.deliver(raw)
            answer = client.take()
            self.assertIn(status_of(answer), (400, 403), raw)
            self.assertNotIn(b"SECRET", answer, raw)
            self.assertNotIn("SECRET", str(self.house.events.last()), raw)

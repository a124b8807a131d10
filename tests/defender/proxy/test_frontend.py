"""One client connection over streams in memory: what reaches the Engine, what the client gets."""

from __future__ import annotations

import dataclasses

from defender.contract.facts import Subject
from defender.contract.locks import LockSet, make_lock
from tests.defender.proxy.house import (
    BRUCE,
    CREATE,
    EMPTY,
    LIST,
    HouseCase,
    message_of,
    status_of,
)


class ForwardingTests(HouseCase):
    """What is allowed reaches the Engine, written anew."""

    def test_request_is_written_from_what_was_judged(self) -> None:
        """Headers that mean nothing to the Engine, odd spellings and hop-by-hop headers do not pass."""
        client = self.house.client()
        client.deliver(
            b"GET /v1.41/%63ontainers/json?all=%31 HTTP/1.1\r\nHost: evil\r\n"
            b"Connection: keep-alive, x-drop\r\nX-Drop: 1\r\nCookie: secret\r\n"
            b"User-Agent: Docker-Client\r\nUpgrade: tcp\r\n\r\n"
        )
        self.assertEqual(
            self.house.engine.take(),
            b"GET /v1.41/containers/json?all=1 HTTP/1.1\r\nHost: docker\r\nuser-agent: Docker-Client\r\n\r\n",
        )

    def test_unversioned_request_is_pinned(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(self.house.engine.take().startswith(b"GET /v1.41/containers/json HTTP/1.1\r\n"))

    def test_connection_is_reused_for_both_sides(self) -> None:
        client = self.house.client()
        for _ in range(3):
            client.deliver(LIST)
            self.house.engine.deliver(EMPTY)
            self.assertEqual(
                client.take(), b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 3\r\n\r\n[]\n"
            )
        self.assertEqual(len(self.house.engines), 1)
        self.assertEqual([event["result"]["status"] for event in self.house.events.kept], [200] * 3)

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        client = self.house.client()
        client.deliver(LIST + b"DELETE /v1.41/containers/a HTTP/1.1\r\nHost: x\r\n\r\n")
        engine = self.house.engine
        self.assertIn(b"/containers/json", engine.take())
        engine.deliver(EMPTY)
        self.assertTrue(engine.take().startswith(b"DELETE /v1.41/containers/a "))
        engine.deliver(b"HTTP/1.1 204 No Content\r\n\r\n")
        self.assertTrue(client.take().endswith(b"HTTP/1.1 204 No Content\r\n\r\n"))

    def test_many_pipelined_errors_do_not_nest(self) -> None:
        """A thousand buffered requests that are answered at once do not exhaust the stack."""
        self.house.pool._limit = 0
        self.house.pool.close()
        client = self.house.client()
        one = b"GET /v1.41/info HTTP/1.1\r\nHost:\r\n\r\n"
        client.deliver(one * 1000)
        self.house.clock.pump([0.001] * 40)
        self.assertEqual(client.take().count(b"HTTP/1.1 503 "), 1000)

    def test_chunked_answer_and_trailers(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        self.house.engine.deliver(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5\r\nhello\r\n"
        )
        self.assertEqual(
            client.take(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        )
        self.house.engine.deliver(b"0\r\nX-T: 1\r\n\r\n")
        self.assertEqual(client.take(), b"0\r\nx-t: 1\r\n\r\n")
        self.assertEqual(self.house.pool.idle, 1)

    def test_chunked_answer_to_http_1_0_ends_with_the_connection(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /v1.41/containers/json HTTP/1.0\r\n\r\n")
        self.house.engine.deliver(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        )
        self.assertEqual(client.take(), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")
        self.assertTrue(client.closed)

    def test_answer_until_close(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        self.house.engine.deliver(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nNo such")
        self.house.engine.end()
        self.assertEqual(
            client.take(),
            b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nNo such",
        )
        self.assertTrue(client.closed)
        self.assertEqual(self.house.pool.idle, 0)

    def test_head_answer_has_no_body(self) -> None:
        client = self.house.client()
        client.deliver(b"HEAD /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        self.house.engine.deliver(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\n")
        self.assertEqual(client.take(), b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\n")
        self.assertEqual(self.house.pool.idle, 1)

    def test_interim_answers_are_dropped(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        self.house.engine.deliver(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + EMPTY)
        self.assertTrue(client.take().startswith(b"HTTP/1.1 200 OK\r\n"))

    def test_version_is_capped_at_what_is_understood(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        self.house.engine.deliver(b"HTTP/1.1 200 OK\r\nApi-Version: 1.99\r\nContent-Length: 0\r\n\r\n")
        self.assertIn(b"Api-Version: 1.56\r\n", client.take())
        client.deliver(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(
            self.house.engine.take().endswith(b"GET /v1.56/_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
        )


class BodyTests(HouseCase):
    """Request bodies: framed anew, held back, dropped, bounded."""

    def test_length_body_passes_in_pieces(self) -> None:
        client = self.house.client()
        client.deliver(CREATE + b"Content-Length: 6\r\n\r\n{")
        client.deliver(b'"a":1')
        self.assertTrue(
            self.house.engine.take().endswith(
                b"Content-Type: application/json\r\nContent-Length: 6\r\n\r\n" + b'{"a":1'
            )
        )

    def test_chunked_body_is_chunked_anew(self) -> None:
        """Extensions, trailers and the sender's chunk sizes end here."""
        client = self.house.client()
        client.deliver(
            CREATE + b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX-Evil: 1\r\n\r\n"
        )
        self.assertTrue(
            self.house.engine.take().endswith(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
        )

    def test_expect_continue_is_answered_here(self) -> None:
        client = self.house.client()
        client.deliver(CREATE + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        self.assertEqual(client.take(), b"HTTP/1.1 100 Continue\r\n\r\n")
        client.deliver(b"{}")
        sent = self.house.engine.take()
        self.assertTrue(sent.endswith(b"\r\n\r\n{}"))
        self.assertNotIn(b"xpect", sent)

    def test_body_where_none_belongs_is_dropped(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /v1.41/containers/a/start HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n")
        self.assertEqual(self.house.engine.take(), b"")
        client.deliver(b'{"Privileged":1'[:14])
        self.assertEqual(
            self.house.engine.take(),
            b"POST /v1.41/containers/a/start HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n",
        )

    def test_large_body_where_none_belongs_is_refused(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /v1.41/containers/a/start HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n")
        self.assertEqual(status_of(client.take()), 400)
        self.assertTrue(client.closed)

    def test_form_bodies_are_refused(self) -> None:
        """The Engine would merge them into the query that was judged."""
        for content_type in (b"application/x-www-form-urlencoded", b"MULTIPART/form-data; boundary=x"):
            client = self.house.client()
            client.deliver(
                b"POST /v1.41/containers/a/rename?name=b HTTP/1.1\r\nHost: x\r\nContent-Type: "
                + content_type
                + b"\r\nContent-Length: 6\r\n\r\nname=c"
            )
            self.assertEqual(status_of(client.take()), 400)
        self.assertEqual(self.house.engine.take(), b"")

    def test_json_route_takes_json_only(self) -> None:
        client = self.house.client()
        client.deliver(
            b"POST /v1.41/swarm/init HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        self.assertEqual(
            message_of(client.take()), "Content-Type specified (text/plain) must be 'application/json'"
        )

    def test_back_pressure_both_ways(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /v1.41/images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        engine = self.house.engine
        engine.fill()
        self.assertTrue(client.paused)
        engine.drain()
        self.assertFalse(client.paused)
        client.fill()
        self.assertTrue(engine.paused)
        client.drain()
        self.assertFalse(engine.paused)

    def test_early_answer_passes_while_the_upload_goes_on(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        engine = self.house.engine
        engine.deliver(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        self.assertTrue(client.take().endswith(b"2\r\nhi\r\n"))
        engine.take()
        client.deliver(b"67890")
        self.assertEqual(engine.take(), b"67890")
        engine.deliver(b"0\r\n\r\n")
        self.assertEqual(client.take(), b"0\r\n\r\n")
        self.assertFalse(client.closed)
        self.assertEqual(self.house.pool.idle, 1)

    def test_answer_before_the_upload_ends_closes_both(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        self.house.engine.deliver(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno")
        self.assertTrue(client.take().endswith(b"\r\n\r\nno"))
        self.assertTrue(client.closed)
        self.assertTrue(self.house.engine.aborted)

    def test_client_gone_during_upload_cancels(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        client.lose(clean=False, detail="connection reset")
        self.assertTrue(self.house.engine.aborted)
        self.assertEqual(
            self.house.events.last()["result"]["error"], "the client disconnected: connection reset"
        )
        self.assertEqual(len(self.house.closed), 1)

    def test_a_closed_unix_client_is_told_from_a_half_closed_one_at_once(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n")
        self.house.engine.deliver(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.gone = True
        client.end()
        self.assertTrue(self.house.engine.aborted)
        self.assertEqual(self.house.events.last()["result"]["error"], "the client disconnected")

    def test_a_sweep_that_finds_the_client_gone_first_says_the_same(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n")
        self.house.engine.deliver(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.gone = True
        self.house.advance(1)
        self.assertTrue(self.house.engine.aborted)
        self.assertEqual(self.house.events.last()["result"]["error"], "the client disconnected")

    def test_body_that_ends_early_is_refused(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        client.end()
        self.assertEqual(status_of(client.take()), 400)
        self.assertTrue(self.house.engine.aborted)

    def test_broken_chunks_are_refused(self) -> None:
        client = self.house.client()
        client.deliver(
            b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"
        )
        client.deliver(b"0x2\r\n")
        self.assertEqual(status_of(client.take()), 400)
        self.assertTrue(self.house.engine.aborted)


class DenialTests(HouseCase):
    """What is denied never reaches the Engine, and says so in the Engine's shape."""

    READER = Subject(user="bruce@example.com", groups=("readers",), address="10.0.0.1", port=1)

    def test_exact_text(self) -> None:
        client = self.house.client(self.READER)
        client.deliver(
            b"POST /v1.41/images/create?fromImage=nginx HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        )
        answer = client.take()
        self.assertEqual(
            message_of(answer),
            "[Defender] The command 'image_create' denied for user 'bruce@example.com' by rule 'readers' "
            "Ask #platform.",
        )
        head = answer.partition(b"\r\n\r\n")[0]
        self.assertTrue(head.startswith(b"HTTP/1.1 403 Forbidden\r\nApi-Version: 1.41\r\n"))
        self.assertIn(b"\r\nOstype: linux\r\n", head)
        self.assertIn(b"\r\nContent-Type: application/json\r\n", head)
        self.assertEqual(self.house.engine.take(), b"")
        event = self.house.events.last()
        self.assertEqual(event["decision"]["rule"], "readers")
        self.assertEqual(event["result"]["status"], 403)
        self.assertEqual(event["result"]["bytes"], len(answer.partition(b"\r\n\r\n")[2]))
        self.assertEqual(event["actor"]["user"], "bruce@example.com")

    def test_head_has_no_body(self) -> None:
        client = self.house.client(self.READER)
        client.deliver(b"HEAD /v1.41/containers/a/archive?path=/ HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(client.take().endswith(b"\r\n\r\n"))

    def test_unknown_is_denied_for_everyone(self) -> None:
        for line in (
            b"GET /v1.41/nowhere",
            b"OPTIONS /v1.41/containers/json",
            b"get /_ping",
            b"POST /debug/vars",
        ):
            client = self.house.client()
            client.deliver(line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = client.take()
            self.assertEqual(status_of(answer), 403, line)
            self.assertIn("The command 'unknown' denied for user 'bruce'", message_of(answer))
        self.assertEqual(self.house.engine.take(), b"")

    def test_connection_goes_on_after_a_denied_body(self) -> None:
        client = self.house.client(self.READER)
        client.deliver(CREATE + b"Content-Length: 2\r\n\r\n{")
        self.assertEqual(status_of(client.take()), 403)
        client.deliver(b"}" + LIST)
        self.assertFalse(client.closed)
        self.assertIn(b"/containers/json", self.house.engine.take())

    def test_denied_upload_ends_the_connection(self) -> None:
        for framing in (b"Transfer-Encoding: chunked", b"Content-Length: 70000"):
            client = self.house.client(self.READER)
            client.deliver(b"POST /v1.41/images/load HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
            self.assertIn(b"\r\nConnection: close\r\n", client.take())
            self.assertTrue(client.closed)

    def test_denied_expectation_gets_no_continue(self) -> None:
        client = self.house.client(self.READER)
        client.deliver(CREATE + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        self.assertTrue(client.take().startswith(b"HTTP/1.1 403 "))
        self.assertTrue(client.closed)

    def test_control_characters_are_escaped(self) -> None:
        client = self.house.client(dataclasses.replace(self.READER, user="a\x1b[31m\nb"))
        client.deliver(b"GET /v1.41/info HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn("for user 'a\\x1b[31m\\nb'", message_of(client.take()))

    def test_expired_certificate_is_denied_at_the_request(self) -> None:
        client = self.house.client(dataclasses.replace(BRUCE, not_after=self.house.now + 5))
        client.deliver(LIST)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(client.take()), 200)
        self.house.now += 5
        client.deliver(LIST)
        self.assertIn("by rule 'certificate'", message_of(client.take()))

    def test_lock_is_looked_at_per_request(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        self.house.engine.deliver(EMPTY)
        client.take()
        self.house.proxy.locks = LockSet(frozenset((make_lock("serial", "7F"),)))
        client.deliver(LIST)
        self.assertIn("by rule 'lock'", message_of(client.take()))

    def test_unread_locks_deny_everybody(self) -> None:
        """Who is locked out cannot be told, so nobody is let in."""
        self.house.proxy.locks = None
        client = self.house.client()
        client.deliver(LIST)
        self.assertIn("by rule 'lock'", message_of(client.take()))
        self.assertEqual(self.house.engine.take(), b"")


class BadInputTests(HouseCase):
    """What cannot be read is answered with 400 and a closed connection."""

    def test_refused_heads(self) -> None:
        for raw, status in (
            (b"GET  /x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            (b"GET /v1.41//containers/json HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            (b"GET /v1.23/info HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (
                b"POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            (b"\x16\x03\x01\x02\x00", 400),
            (b"GET /" + b"a" * 70000, 431),
        ):
            client = self.house.client()
            client.deliver(raw)
            answer = client.take()
            self.assertEqual(status_of(answer), status, raw[:40])
            self.assertTrue(message_of(answer))
            self.assertIn(b"\r\nConnection: close\r\n", answer)
            self.assertTrue(client.closed)
            self.assertEqual(self.house.events.last()["result"]["status"], status)
        self.assertEqual(self.house.engine.take(), b"")

    def test_nothing_after_a_refusal_is_read(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /v1.23/info HTTP/1.1\r\nHost: x\r\n\r\n" + LIST)
        client.deliver(LIST)
        self.assertEqual(self.house.engine.take(), b"")

    def test_slow_head_is_closed(self) -> None:
        client = self.house.client()
        for byte in b"GET /v1.41/inf":
            client.deliver(bytes((byte,)))
            self.house.advance(1)
        self.assertEqual(status_of(client.take()), 408)
        self.assertTrue(client.closed)

    def test_silent_client_is_closed_without_an_answer(self) -> None:
        client = self.house.client()
        self.house.advance(12)
        self.assertEqual(client.take(), b"")
        self.assertTrue(client.closed)

    def test_idle_connection_is_closed_between_requests_only(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        self.house.engine.deliver(EMPTY)
        self.house.advance(290)
        self.assertFalse(client.closed)
        self.house.advance(15)
        self.assertTrue(client.closed)

    def test_events_may_be_silent_for_hours(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n")
        self.house.engine.deliver(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.house.advance(7200)
        self.assertFalse(client.closed or client.aborted)

    def test_upload_that_stalls_is_refused(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        self.house.advance(125)
        self.assertEqual(status_of(client.take()), 408)
        self.assertTrue(self.house.engine.aborted)

    def test_bytes_behind_a_request_are_bounded(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        client.deliver(b"x" * 66000)
        self.assertTrue(client.paused)


class DrainTests(HouseCase):
    """A retired listener's connections end after what they are doing."""

    def test_idle_connection_closes_at_once(self) -> None:
        client = self.house.client()
        frontend = next(iter(self.house.proxy._frontends))
        frontend.close_when_idle()
        self.assertTrue(client.closed)

    def test_open_request_is_answered_first(self) -> None:
        client = self.house.client()
        frontend = next(iter(self.house.proxy._frontends))
        client.deliver(LIST)
        frontend.close_when_idle()
        self.assertFalse(client.closed)
        self.house.engine.deliver(EMPTY)
        self.assertIn(b"\r\nConnection: close\r\n", client.take())
        self.assertTrue(client.closed)

"""Heads of the Engine's responses: framing, and 502 for what is ambiguous."""

from __future__ import annotations

from defender.http1.head import (
    MAX_HEAD,
    MAX_HEADERS,
    Framing,
    parse_response_head,
)
from tests.defender.http1.heads import Refusals, response


class ResponseTests(Refusals):
    def framing(
        self, *lines: str, method: str = "GET", line: str = "HTTP/1.1 200 OK"
    ) -> tuple[Framing, int, bool]:
        head = parse_response_head(response(*lines, line=line), request_method=method)
        return head.framing, head.length, head.keep_alive

    def test_a_response_of_the_engine(self) -> None:
        head = parse_response_head(
            b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n"
            b"Content-Length: 3\r\n\r\n",
            request_method="GET",
        )
        self.assertEqual((head.status, head.reason, head.version), (200, b"OK", (1, 1)))
        self.assertEqual((head.framing, head.length, head.keep_alive), (Framing.LENGTH, 3, True))
        self.assertEqual(head.get(b"api-version"), b"1.41")

    def test_reasons(self) -> None:
        for line, reason in (
            ("HTTP/1.1 101 UPGRADED", b"UPGRADED"),
            ("HTTP/1.1 200 ", b""),
            ("HTTP/1.1 200", b""),
            ("HTTP/1.1 404 Not Found", b"Not Found"),
        ):
            self.assertEqual(parse_response_head(response(line=line), request_method="GET").reason, reason)

    def test_framings(self) -> None:
        self.assertEqual(self.framing("Content-Length: 5"), (Framing.LENGTH, 5, True))
        self.assertEqual(self.framing("Transfer-Encoding: chunked"), (Framing.CHUNKED, 0, True))
        self.assertEqual(self.framing(), (Framing.UNTIL_CLOSE, 0, False))
        self.assertEqual(self.framing("Connection: keep-alive"), (Framing.UNTIL_CLOSE, 0, False))
        self.assertEqual(self.framing("Content-Length: 5", "Connection: close"), (Framing.LENGTH, 5, False))
        self.assertEqual(
            self.framing("Content-Length: 5", line="HTTP/1.0 200 OK"), (Framing.LENGTH, 5, False)
        )

    def test_messages_without_a_body(self) -> None:
        self.assertEqual(self.framing("Content-Length: 5", method="HEAD"), (Framing.NONE, 0, True))
        self.assertEqual(self.framing("Transfer-Encoding: chunked", method="HEAD"), (Framing.NONE, 0, True))
        self.assertEqual(self.framing(method="HEAD"), (Framing.NONE, 0, True))
        for status in (100, 102, 204, 304):
            self.assertEqual(self.framing(line=f"HTTP/1.1 {status} x"), (Framing.NONE, 0, True))
        self.assertEqual(self.framing("Content-Length: 9", line="HTTP/1.1 304 x"), (Framing.NONE, 0, True))
        self.assertEqual(self.framing("Content-Length: 0", line="HTTP/1.1 204 x"), (Framing.NONE, 0, True))

    def test_a_switched_connection_is_not_used_again(self) -> None:
        switched = self.framing("Connection: Upgrade", "Upgrade: tcp", line="HTTP/1.1 101 UPGRADED")
        self.assertEqual(switched, (Framing.NONE, 0, False))

    def test_a_body_where_none_may_be(self) -> None:
        for status in (100, 101, 204):
            self.refuse_response(response("Content-Length: 5", line=f"HTTP/1.1 {status} x"))
            self.refuse_response(response("Transfer-Encoding: chunked", line=f"HTTP/1.1 {status} x"))

    def test_conflicting_framing(self) -> None:
        for lines in (
            ("Content-Length: 5", "Transfer-Encoding: chunked"),
            ("Content-Length: 5", "Content-Length: 5"),
            ("Content-Length: +5",),
            ("Content-Length: ",),
            ("Transfer-Encoding: gzip",),
            ("Transfer-Encoding: gzip, chunked",),
            ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ):
            for method in ("GET", "HEAD"):
                self.refuse_response(response(*lines), method=method)
        self.refuse_response(response("Transfer-Encoding: chunked", line="HTTP/1.0 200 OK"))

    def test_malformed_heads(self) -> None:
        for line in (
            "HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 099 OK", "HTTP/2.0 200 OK", "HTTP/1.1  200 OK",
            "", " ",
            "http/1.1 200 OK", "HTTP/1.1 +20 OK", "HTTP/1.1 200OK", "HTTP/1.1 200 a\0", "HTTP/1.1 2x0 OK",
            "SM", "OK",
        ):  # fmt: skip
            self.refuse_response(response(line=line))
        for lines in (
            ("A : b",),
            ("A",),
            ("A: b\r\n c",),
            ("A: \0",),
            ("A: b\nC: d",),
            (" A: b",),
            ("A: b\rc",),
        ):
            self.refuse_response(response(*lines))
        self.refuse_response(response()[:-2])
        self.refuse_response(response(*[f"A{number}: b" for number in range(MAX_HEADERS + 1)]))
        self.refuse_response(response("A: " + "b" * MAX_HEAD))

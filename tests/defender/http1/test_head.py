"""Request heads: what is read, what is refused and with which status."""

from __future__ import annotations

from defender.http1.errors import HTTPError
from defender.http1.head import (
    _FIELDS,
    MAX_HEAD,
    MAX_HEADERS,
    Framing,
    find_head_end,
    parse_request_head,
    parse_response_head,
)
from tests.defender.http1.heads import Refusals, request


class RequestLineTests(Refusals):
    def test_a_request_of_the_docker_client(self) -> None:
        head = parse_request_head(
            b"POST /v1.41/containers/create?name=x HTTP/1.1\r\nHost: docker\r\n"
            b"User-Agent: Docker-Client/28.2\r\n"
            b"Content-Length: 14\r\nContent-Type: application/json\r\n\r\n"
        )
        self.assertEqual(
            (head.method, head.target, head.version), ("POST", "/v1.41/containers/create?name=x", (1, 1))
        )
        self.assertEqual((head.framing, head.length), (Framing.LENGTH, 14))
        self.assertEqual(head.headers[1], (b"user-agent", b"Docker-Client/28.2"))
        self.assertEqual(head.content_type, b"application/json")
        self.assertEqual((head.keep_alive, head.expect_continue, head.upgrade), (True, False, None))

    def test_methods_are_tokens_as_they_are(self) -> None:
        for method in ("GET", "get", "Get", "M-SEARCH", "A" * 16):
            self.assertEqual(parse_request_head(request(line=f"{method} / HTTP/1.1")).method, method)
        for method in ("A" * 17, "G(T", '"GET"', "GÉT", "G\tT", "G\0T", ""):
            self.refuse(request(line=f"{method} / HTTP/1.1"))

    def test_single_spaces_and_exact_versions(self) -> None:
        for line in (
            "GET  / HTTP/1.1", "GET /  HTTP/1.1", " GET / HTTP/1.1", "GET / HTTP/1.1 ", "GET\t/ HTTP/1.1",
            "GET /",
            "GET / http/1.1", "GET / HTTP/01.1", "GET / HTTP/1.10", "GET / HTTP/1,1", "GET / HTTP/1.1 x",
            "GET", "",
            "GET / HTTP/+1.1", "GET / HTTP/1.", "GET / HTTP/ 1.1", "GET HTTP/1.1", "GET / HTTP/11",
            "/ GET HTTP/1.1",
            "GET / HTTP/\u00b9.1",
        ):  # fmt: skip
            self.refuse(request(line=line))

    def test_other_versions_are_505(self) -> None:
        for version in ("0.9", "1.2", "1.9", "2.0", "2.1", "3.0", "9.9", "0.0"):
            self.refuse(request(line=f"GET / HTTP/{version}"), 505, "use HTTP/1.1")

    def test_an_http2_preface_is_505_and_says_so(self) -> None:
        data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self.refuse(data[: find_head_end(data, 0)], 505, "HTTP/2 is not served here")

    def test_targets_are_printable_ascii(self) -> None:
        self.assertEqual(
            parse_request_head(request(line='GET /"<\\^`{|}>?"#;% HTTP/1.1')).target, '/"<\\^`{|}>?"#;%'
        )
        for character in ("\0", "\t", "\x0b", "\x7f", "\x80", "\xa0", "\xff", "\x1b"):
            self.refuse(request(line=f"GET /{character} HTTP/1.1"))
            self.refuse(request(line=f"GET /?a={character} HTTP/1.1"))

    def test_a_query_is_not_repeated_in_the_message(self) -> None:
        error = self.assertRaises(
            HTTPError, parse_request_head, request(line="GET /build?a=CANARY HTTP/1.1 ")
        )
        self.assertNotIn("CANARY", error.message)

    def test_nothing_before_the_request_line(self) -> None:
        for prefix in (
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\0",
            b"\xef\xbb\xbf",
            b"\x16\x03\x01\x02\x00",
        ):
            data = prefix + request()
            self.refuse(data[: find_head_end(data, 0)])
            self.refuse(data)


class HeaderLineTests(Refusals):
    def test_names_are_lowered_and_values_trimmed(self) -> None:
        head = parse_request_head(request("X-ReGistry-AUTH: \t a b\tc \t", "Empty:", "Blank: \t "))
        self.assertEqual(
            head.headers[1:], [(b"x-registry-auth", b"a b\tc"), (b"empty", b""), (b"blank", b"")]
        )
        self.assertEqual(head.get(b"x-registry-auth"), b"a b\tc")
        self.assertIsNone(head.get(b"absent"))

    def test_get_gives_the_first(self) -> None:
        head = parse_request_head(request("A: 1", "a: 2"))
        self.assertEqual(head.get(b"a"), b"1")

    def test_bad_names(self) -> None:
        for line in (
            "Foo : bar", "Foo\t: bar", " Foo: bar", ": bar", "Fo o: bar", "F\u00f6o: bar", "Foo\0: bar",
            "Foo",
            "Fo(o: bar", "Fo\x0bo: a", "[: a", "Content-Length\x0b: 5", "Content-Length\xa0: 5", "\x7f: a",
            '"a": b',
        ):  # fmt: skip
            self.refuse(request(line))

    def test_bad_values(self) -> None:
        for character in ("\0", "\x0b", "\x0c", "\x7f", "\x01", "\x1f", "\x1b"):
            self.refuse(request(f"Foo: a{character}b"), words="header line 2")
            self.refuse(request(f"Foo:{character}b"))
            self.refuse(request(f"Foo: b{character}"))

    def test_no_bare_line_ends(self) -> None:
        for line in ("A: b\rc", "A: b\r", "A: b\nC: d", "A: b\n", "\nA: b", "A\r: b", "A: b\r\r", "A: b\n\r"):
            self.refuse(request(line))
        self.refuse(request().replace(b"\r\n", b"\n"))
        self.refuse(request().replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"))

    def test_no_folded_lines(self) -> None:
        for fold in ("Foo: a\r\n b", "Foo: a\r\n\tb", "Foo:\r\n b", "Content-Length:\r\n 5", "Foo: a\r\n "):
            self.refuse(request(fold), words="folded")

    def test_obs_text_is_kept(self) -> None:
        self.assertEqual(parse_request_head(request("A: \xe9\xff\x80")).get(b"a"), b"\xe9\xff\x80")

    def test_a_value_is_not_repeated_in_the_message(self) -> None:
        for line in ("X-Registry-Auth: CANARY\0", "CANARY", "X-Registry-Auth : CANARY", "CANARY\0: a"):
            error = self.assertRaises(HTTPError, parse_request_head, request(line))
            self.assertNotIn("CANARY", error.message)

    def test_an_empty_line_only_at_the_end(self) -> None:
        self.refuse(request("A: b\r\n", "C: d"))
        self.refuse(request() + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.refuse(request() + b"x")
        self.refuse(request()[:-2])
        self.refuse(b"")

    def test_limits_are_431(self) -> None:
        many = [f"A{number}: b" for number in range(MAX_HEADERS - 1)]
        self.assertEqual(len(parse_request_head(request(*many)).headers), MAX_HEADERS)
        self.refuse(request(*many, "B: c"), 431)
        room = MAX_HEAD - len(request("A: "))
        self.assertEqual(parse_request_head(request("A: " + "b" * room)).get(b"a"), b"b" * room)
        self.refuse(request("A: " + "b" * (room + 1)), 431)
        error = self.assertRaises(HTTPError, parse_request_head, request("A: b"), max_headers=1)
        self.assertEqual(error.status, 431)
        error = self.assertRaises(HTTPError, parse_request_head, request("A: b"), max_head=30)
        self.assertEqual(error.status, 431)

    def test_many_bad_bytes_are_refused_in_linear_time(self) -> None:
        for filler in ("a", "a:", ":", " ", "a: b\r\n", "\r\n ", "\t", "\r"):
            data = b"GET / HTTP/1.1\r\n" + (filler * (60000 // len(filler))).encode() + b"\0\r\n\r\n"
            self.assertRaises(HTTPError, parse_request_head, data)
            self.assertRaises(HTTPError, parse_response_head, data, request_method="GET")


class HostTests(Refusals):
    def test_exactly_one_on_1_1(self) -> None:
        self.refuse(request(host=None), words="Host header is missing")
        self.refuse(request("Host: x"), words="more than once")
        self.refuse(request("HOST: y"), words="more than once")

    def test_none_or_one_on_1_0(self) -> None:
        line = "GET / HTTP/1.0"
        self.assertEqual(parse_request_head(request(line=line, host=None)).version, (1, 0))
        self.assertEqual(parse_request_head(request(line=line)).version, (1, 0))
        self.refuse(request("Host: x", line=line))

    def test_accepted_values(self) -> None:
        for host in (
            "",
            "x",
            "docker",
            "h:2376",
            "[::1]:2376",
            "[fe80::1%25eth0]",
            "api.moby.localhost",
            "1.2.3.4",
        ):
            self.assertEqual(parse_request_head(request(host=host)).get(b"host"), host.encode())

    def test_refused_values(self) -> None:
        for host in (
            "a/b",
            "/var/run/docker.sock",
            "a b",
            "u@h",
            "a?b",
            "a#b",
            "a\\b",
            "\xe9",
            "a\tb",
            '"a"',
            "http://x",
        ):
            self.refuse(request(host=host), words="Host header")


class FramingTests(Refusals):
    def test_no_framing_is_no_body(self) -> None:
        for method in ("GET", "POST", "PUT", "DELETE"):
            head = parse_request_head(request(line=f"{method} / HTTP/1.1"))
            self.assertEqual((head.framing, head.length), (Framing.NONE, 0))

    def test_lengths(self) -> None:
        for value, length in (
            ("0", 0),
            ("5", 5),
            ("005", 5),
            ("9223372036854775807", 2**63 - 1),
            (" 7\t", 7),
        ):
            head = parse_request_head(request(f"Content-Length:{value}"))
            self.assertEqual((head.framing, head.length), (Framing.LENGTH, length))

    def test_bad_lengths(self) -> None:
        for value in (
            "", "+5", "-1", "-0", "5, 5", "5,5", "0x5", "5_0", "5 0", "5.0", "1e3", "5;", "'5'",
            "9223372036854775808",
            "99999999999999999999", "0" * 20, "\xb2", "\xd9\xa3", "five", "5\xa0", "5\x0b", "5\x00",
        ):  # fmt: skip
            self.refuse(request(f"Content-Length: {value}"))

    def test_duplicate_lengths_even_when_equal(self) -> None:
        self.refuse(request("Content-Length: 5", "Content-Length: 5"), words="more than once")
        self.refuse(request("Content-Length: 5", "content-length: 6"), words="more than once")

    def test_chunked_in_any_case(self) -> None:
        for value in ("chunked", "Chunked", "CHUNKED", " chunked ", "\tchunked"):
            head = parse_request_head(request(f"TrAnSfEr-EnCoDiNg: {value}"))
            self.assertEqual((head.framing, head.length), (Framing.CHUNKED, 0))

    def test_other_codings_are_501(self) -> None:
        for value in (
            "identity", "gzip", "gzip, chunked", "chunked, chunked", "chunked, identity",
            '"chunked"', "chunk", "",
            "chunked;q=1", "chunked;", ",chunked", "chunked,", "xchunked", "chunked\xa0", "chun ked",
            "trailers",
            "c\u017fhunked".encode().decode("latin-1"),
        ):  # fmt: skip
            self.refuse(request(f"Transfer-Encoding: {value}"), 501)

    def test_one_coding_header(self) -> None:
        self.refuse(
            request("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), words="more than once"
        )
        self.refuse(
            request("Transfer-Encoding: identity", "transfer-encoding: chunked"), words="more than once"
        )

    def test_coding_and_length_exclude_each_other(self) -> None:
        self.refuse(request("Content-Length: 5", "Transfer-Encoding: chunked"), words="exclude")
        self.refuse(request("Transfer-Encoding: chunked", "Content-Length: 0"), words="exclude")
        self.refuse(request("Transfer-Encoding: identity", "Content-Length: 5"), words="exclude")

    def test_no_coding_on_1_0(self) -> None:
        for extra in ((), ("Connection: keep-alive",)):
            self.refuse(
                request("Transfer-Encoding: chunked", *extra, line="POST / HTTP/1.0"), words="HTTP/1.0"
            )

    def test_look_alikes_frame_nothing(self) -> None:
        for name in (
            "Transfer_Encoding",
            "Transfer-Encodin",
            "X-Transfer-Encoding",
            "TE",
            "Content_Length",
            "Length",
        ):
            self.assertIs(parse_request_head(request(f"{name}: 5")).framing, Framing.NONE)


class OptionTests(Refusals):
    def test_expect(self) -> None:
        head = parse_request_head(request("Expect: 100-Continue", "Content-Length: 5"))
        self.assertTrue(head.expect_continue)
        self.assertTrue(
            parse_request_head(request("Expect: 100-continue", "Transfer-Encoding: chunked")).expect_continue
        )

    def test_expect_without_a_body_or_on_1_0_is_not_waited_for(self) -> None:
        self.assertFalse(parse_request_head(request("Expect: 100-continue")).expect_continue)
        self.assertFalse(
            parse_request_head(request("Expect: 100-continue", "Content-Length: 0")).expect_continue
        )
        old = request("Expect: 100-continue", "Content-Length: 5", line="POST / HTTP/1.0")
        self.assertFalse(parse_request_head(old).expect_continue)

    def test_other_expectations_are_417(self) -> None:
        for value in ("", "200-ok", "100-continue, x", "100", "100-continue;a=b"):
            self.refuse(request(f"Expect: {value}"), 417)
        self.refuse(request("Expect: 100-continue", "Expect: 100-continue"), words="more than once")

    def test_upgrade_presence_counts(self) -> None:
        self.assertEqual(parse_request_head(request("Upgrade:")).upgrade, b"")
        self.assertEqual(parse_request_head(request("Upgrade: tcp")).upgrade, b"tcp")
        self.assertIsNone(parse_request_head(request("Connection: Upgrade")).upgrade)
        self.refuse(request("Upgrade: tcp", "Upgrade: h2c"), words="more than once")

    def test_one_content_type(self) -> None:
        self.refuse(request("Content-Type: a/b", "Content-Type: a/b"), words="more than once")

    def test_keep_alive(self) -> None:
        cases: tuple[tuple[bool, str, tuple[str, ...]], ...] = (
            (True, "1.1", ()),
            (True, "1.1", ("keep-alive",)),
            (True, "1.1", ("Upgrade",)),
            (False, "1.1", ("close",)),
            (False, "1.1", ("Close",)),
            (False, "1.1", ("keep-alive, close",)),
            (False, "1.1", ("keep-alive", "close")),
            (False, "1.1", ("close", "keep-alive")),
            (False, "1.1", ("Upgrade,\tCLOSE ,",)),
            (True, "1.1", ("closed",)),
            (False, "1.0", ()),
            (False, "1.0", ("Upgrade",)),
            (True, "1.0", ("keep-alive",)),
            (True, "1.0", ("Keep-Alive",)),
            (False, "1.0", ("keep-alive, close",)),
        )
        for expected, version, options in cases:
            data = request(*[f"Connection: {option}" for option in options], line=f"GET / HTTP/{version}")
            self.assertIs(parse_request_head(data).keep_alive, expected, (version, options))


class KeptLineTests(Refusals):
    def test_lines_with_credentials_are_not_kept(self) -> None:
        secret = b"c2VjcmV0LXRoYXQtaXMtc2hvcnQ="
        names = (b"X-Registry-Auth", b"x-registry-config", b"Authorization", b"Proxy-Authorization")
        for name in names:
            parse_request_head(b"GET / HTTP/1.1\r\nHost: x\r\n" + name + b": " + secret + b"\r\n\r\n")
        for line in (b"X-Registry-Auth : " + secret, secret):
            self.refuse(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")
        self.assertEqual([line for line in _FIELDS if secret in line], [])
        self.assertIn(b"Host: x", _FIELDS)

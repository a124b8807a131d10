"""Requests next to the recorded ones, made systematically: one thing changed, everywhere it could matter.

Each function yields (name, bytes of one connection). Most end with `SMUGGLED`, which an Engine would answer
if anything before it were read in another way than it was judged.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.vectors import SMUGGLED

Requests = Iterator[tuple[str, bytes]]

LIST = "/v1.41/containers/json"
HOST = b"Host: x\r\n"
PRUNE = b"POST /v1.41/images/prune HTTP/1.1\r\n" + HOST
LOAD = b"POST /v1.41/images/load HTTP/1.1\r\n" + HOST
CREATE = b"POST /v1.41/containers/create HTTP/1.1\r\n" + HOST


def get(target: str | bytes, extra: bytes = b"") -> bytes:
    """A GET, and one more behind it."""
    raw = target.encode("latin-1") if isinstance(target, str) else target
    return b"GET " + raw + b" HTTP/1.1\r\n" + HOST + extra + b"\r\n" + SMUGGLED


def encoded_bytes() -> Requests:
    """Each byte, percent-encoded, at several places of a path."""
    for byte in range(256):
        code = f"%{byte:02{'xX'[byte & 1]}}"
        yield f"{code} before", get(f"/v1.41/{code}containers/json")
        yield f"{code} inside", get(f"/v1.41/containers/a{code}b/json")
        yield f"{code} behind", get(f"{LIST}{code}")
        yield f"{code} as slash", get(f"/v1.41{code}containers{code}json")


def raw_bytes() -> Requests:
    """Each byte as it is, in a path, a header's name and a header's value."""
    for byte in range(256):
        char = bytes((byte,))
        yield f"{byte:02x} in a path", get(b"/v1.41/containers/a" + char + b"b/json")
        yield f"{byte:02x} in a name", get(LIST, b"X-A" + char + b"B: 1\r\n")
        yield f"{byte:02x} in a value", get(LIST, b"User-Agent: a" + char + b"b\r\n")
        yield f"{byte:02x} before a name", get(LIST, char + b"Content-Length: 5\r\n")


def encoded_letters() -> Requests:
    """A character that is spelled as its code is the same character, once."""
    for index, char in enumerate(LIST):
        code = f"%{ord(char):02x}"
        yield f"{index} encoded", get(LIST[:index] + code + LIST[index + 1 :])
        yield f"{index} encoded twice", get(LIST[:index] + code.replace("%", "%25") + LIST[index + 1 :])
    yield "all encoded", get("/" + "".join(f"%{ord(char):02X}" for char in LIST[1:]))


def segments() -> Requests:
    """Dots and slashes at the start, behind the version, in the middle and at the end."""
    pieces = [
        "/",
        "/.",
        "/..",
        "/...",
        "/.%2e",
        "/%2e",
        "/%2E%2e",
        "/a/..",
        "/./a/..",
        "//",
        "/%2f",
        "/%2F/",
        "/%5c",
        "/\\",
        "/;/",
        "/..;/",
        "/..%00/",
        "/%252e",
    ]
    for piece in pieces:
        yield f"{piece} first", get(f"{piece}{LIST}")
        yield f"{piece} behind the version", get(f"/v1.41{piece}/containers/json")
        yield f"{piece} in the middle", get(f"/v1.41/containers{piece}/json")
        yield f"{piece} last", get(f"{LIST}{piece}")
        yield f"{piece} in a name", get(f"/v1.41/containers/a{piece}/json")


def versions() -> Requests:
    """Spellings of the version before a path."""
    spellings = (
        "v1.41 V1.41 v01.41 v1.041 v1.41. v1.41.0 v1.41.1 v1..41 v.1.41 v1 v1. v141 v1.4e1 v1,41 v1.41%20"
        " %761.41 v%31.41 v1%2e41 v1.%341 v1.23 v1.24 v1.42 v1.56 v1.57 v1.999 v1.99999 v0.41 v2.0"
        " v1.41/v1.41 v1.41/v1.24 v-1.41 v1.+41 v+1.41 v1.0x29 v1.%EF%BC%94%EF%BC%91 v1.41%00 v1.41;"
        " v1.41a v v. v1.41.. version 1.41 v1_41"
    )
    for spelling in spellings.split():
        yield f"{spelling} of a list", get(f"/{spelling}/containers/json")
        yield f"{spelling} of a ping", get(f"/{spelling}/_ping")


def queries() -> Requests:
    """Separators, escapes, plus signs, empty pieces, other alphabets."""
    for query in (
        *("", "&", "&&", "=", "=1", "all", "all=", "all=1", "all=1&all=0", "all=0&all=1", "ALL=1", "a%6cl=1"),
        *(
            "all=%31",
            "all=+1",
            "all=%2B1",
            "all=%201",
            "all=1+",
            "a+b=c+d",
            "a%2Bb=c%2Bd",
            "all=1;x=2",
            "all=1%3Bx=2",
        ),
        *(
            ";",
            "all;1",
            "all=1&;&x=2",
            "all=1%26limit=2",
            "all=1%3D2",
            "all==1",
            "all=%",
            "all=%z",
            "all=%zz",
            "all=%1",
        ),
        *(
            "%zz=1",
            "all=1&%",
            "all=1?limit=2",
            "?all=1",
            "all=1#x",
            "#",
            "all=%00",
            "%00=1",
            "all=%0d%0a",
            "all=%C3%A9",
        ),
        *(
            "all=%E2%80%AE",
            "all=%ff",
            "all=%c0%af",
            "all=%ed%a0%80",
            "all=é",
            "all=\x7f",
            "all=a b",
            "all=/../..",
            "//",
        ),
        *(
            'filters={"a":["b"]}',
            "filters=%7B%7D",
            "filters[]=1",
            "a.b=1",
            "'\"<>=1",
            "all=%2525",
            "+=+",
            "%20=%20",
        ),
        "&".join(f"a{n}=1" for n in range(999)),
        "&".join(f"a{n}=1" for n in range(1002)),
        "all=" + "1" * 60000,
    ):
        yield f"?{query[:30]}", get(f"{LIST}?{query}".encode())


def forms() -> Requests:
    """Targets of other forms: absolute with all schemes, authority, asterisk, nothing, relative."""
    for scheme in [
        "http",
        "https",
        "HTTP",
        "unix",
        "tcp",
        "ftp",
        "file",
        "foo",
        "a+b",
        "x-y",
        "h2c",
        "ws",
        "mailto",
    ]:
        for rest in ("://x", "://", ":", "://u:p@h:1", ":/", "://x/.."):
            yield f"{scheme}{rest}", get(f"{scheme}{rest}{LIST}")
    for target in (
        "*",
        "x",
        "x:80",
        "containers/json",
        "?all=1",
        "#",
        ".",
        "\\v1.41\\containers\\json",
        "//x" + LIST,
    ):
        yield f"target {target}", get(target)
    for line in (
        *("GET", "GET ", f"GET {LIST}", f"GET {LIST} ", f"GET {LIST} HTTP/1.1 ", f"GET  {LIST} HTTP/1.1"),
        *(f"GET\t{LIST} HTTP/1.1", f" GET {LIST} HTTP/1.1", f"GET {LIST} http/1.1", f"GET {LIST} HTTP/1.10"),
        *(f"GET {LIST} HTTP/11", f"GET {LIST} HTTP/2.0", f"GET {LIST} HTTP/0.9", f"GET {LIST} HTTP/1.2"),
        *(f"GET {LIST} HTTP/1.1 HTTP/1.1", f"GET {LIST}?a HTTP/1.1?b HTTP/1.1", f'G"T {LIST} HTTP/1.1'),
        *(
            f"GET{LIST} HTTP/1.1",
            f"{LIST} HTTP/1.1",
            f"GETGETGETGETGETGETGET {LIST} HTTP/1.1",
            "\r\nGET / HTTP/1.1",
        ),
    ):
        yield f"line {line[:40]!r}", line.encode() + b"\r\n" + HOST + b"\r\n" + SMUGGLED


def header_lines() -> Requests:
    """Lines that one reader takes for framing and another does not; each before a body of five bytes."""
    for line in (
        *(
            "Content-Length : 5",
            "Content-Length\t: 5",
            "Content_Length: 5",
            "ContentLength: 5",
            "Content-Length:5",
        ),
        *(
            "Content-Length: 5 ",
            "Content-Length: +5",
            "Content-Length: -5",
            "Content-Length: 5,5",
            "Content-Length: 5, 6",
        ),
        *(
            "Content-Length: 05",
            "Content-Length: 0x5",
            "Content-Length: 5.0",
            "Content-Length: 5;",
            "Content-Length:",
        ),
        *(
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 0",
            "content-length: 5",
        ),
        *(
            "Content-Length: 5\r\nTransfer-Encoding: identity",
            "Content-Length: 0\r\nContent-Length: 5",
            "Content-Length: ٥",
        ),
        *(
            "Content-Length: 18446744073709551621",
            "Content-Length: 9223372036854775808",
            "Content-Length: 1e1",
        ),
        *(
            "Content-Length: 5\r\nX: \r\n y",
            "X: y\r\n Content-Length: 5",
            "X:\r\n\tContent-Length: 5",
            ": 5",
            "Content-Length",
        ),
        *(
            "X: a\rContent-Length: 5",
            "X: a\nContent-Length: 5",
            "X: a\x0bContent-Length: 5",
            "X: a\0Content-Length: 5",
        ),
        *(
            "Content-Length: 5\0",
            "Content-Length: \x0b5",
            "Content-Length: 5\x85",
            "Content-Length: \xa05",
            "Host: y",
        ),
        *(
            "Host : y",
            "Connection: close\r\nConnection: keep-alive",
            "Connection: Content-Length\r\nContent-Length: 5",
        ),
        *(
            "Transfer-Encoding: identity",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding:",
            "Upgrade: h2c",
            "Upgrade:",
        ),
        *(
            "X-HTTP-Method-Override: DELETE",
            "X-Original-URL: /v1.41/info",
            "X-Forwarded-For: 1",
            "Forwarded: for=1",
        ),
        *(
            "Authorization: Basic eDp5",
            "Proxy-Authorization: x",
            "Cookie: a=b",
            "Keep-Alive: timeout=1",
            "Trailer: X",
        ),
    ):
        yield f"line {line[:50]!r}", PRUNE + line.encode("latin-1", "replace") + b"\r\n\r\nhello" + SMUGGLED


def duplicates() -> Requests:
    """Each header that means something, twice: equal, then different."""
    for name, one, other in (
        *(
            ("Host", "x", "y"),
            ("Content-Type", "application/json", "text/plain"),
            ("Content-Length", "2", "3"),
        ),
        *(
            ("Transfer-Encoding", "chunked", "identity"),
            ("Expect", "100-continue", "x"),
            ("Upgrade", "tcp", "h2c"),
        ),
        *(
            ("Connection", "close", "keep-alive"),
            ("User-Agent", "a", "b"),
            ("X-Registry-Auth", "e30=", "e30"),
        ),
        *(
            ("Content-Encoding", "gzip", "br"),
            ("X-Registry-Config", "e30=", "e30"),
            ("Accept", "*/*", "text/plain"),
        ),
    ):
        for second in (one, other):
            for spelled in (name, name.lower(), name.upper()):
                lines = f"{name}: {one}\r\n{spelled}: {second}\r\n".encode()
                kind = b"" if name == "Content-Type" else b"Content-Type: application/json\r\n"
                length = b"" if name in ("Content-Length", "Transfer-Encoding") else b"Content-Length: 2\r\n"
                yield f"{name} {second} {spelled}", CREATE + kind + lines + length + b"\r\n{}" + SMUGGLED


def codings() -> Requests:
    """Spellings of the transfer coding."""
    for value in (
        *(
            "chunked",
            "Chunked",
            "CHUNKED",
            " chunked",
            "chunked ",
            "\tchunked",
            "chunked\t",
            "chunked,",
            ",chunked",
        ),
        *(
            "chunked, chunked",
            "chunked,identity",
            "identity,chunked",
            "gzip, chunked",
            "xchunked",
            "chunkedx",
            "chun ked",
        ),
        *(
            '"chunked"',
            "chunked;q=1",
            "chunked;",
            "\x0bchunked",
            "chunked\x0b",
            "\xa0chunked",
            "chunked\0",
            "identity",
            "",
            "c",
        ),
        *("cHuNkEd\r\nTransfer-Encoding: chunked", "\r\n chunked", "chunked\r\n ", "\x00", "chu\u017fnked"),
    ):
        head = b"Transfer-Encoding:" + value.encode("latin-1", "replace") + b"\r\n\r\n"
        for start in (PRUNE, LOAD):
            yield f"coding {value!r}", start + head + b"5\r\nhello\r\n0\r\n\r\n" + SMUGGLED
        yield f"coding {value!r} on 1.0", PRUNE.replace(b"/1.1", b"/1.0") + head + b"0\r\n\r\n" + SMUGGLED


def chunks() -> Requests:
    """Sizes, line ends, extensions and trailers of a chunked body."""
    for body in (
        *(
            "5\r\nhello\r\n0\r\n\r\n",
            "05\r\nhello\r\n00\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
        ),
        *(
            " 5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            "5.0\r\nhello\r\n0\r\n\r\n",
        ),
        *("5\nhello\r\n0\r\n\r\n", "5\rhello\r\n0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "5\r\nhello0\r\n\r\n"),
        *(
            "5\r\nhello\r\n0\n\r\n",
            "5\r\nhello\r\n0\r\n\n",
            "5\r\nhello\r\n0\r\r\n\r\n",
            "6\r\nhello\r\n0\r\n\r\n",
        ),
        *(
            "4\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "g\r\nhello\r\n0\r\n\r\n",
            "5_0\r\nhello\r\n0\r\n\r\n",
        ),
        *("5;a\r\nhello\r\n0\r\n\r\n", "5;a=b\r\nhello\r\n0;c=d\r\n\r\n", '5;a="\r\n"\r\nhello\r\n0\r\n\r\n'),
        *("5;a\nb\r\nhello\r\n0\r\n\r\n", "5;a\rb\r\nhello\r\n0\r\n\r\n", "5;a\0b\r\nhello\r\n0\r\n\r\n"),
        *(
            "5;\xff\r\nhello\r\n0\r\n\r\n",
            f"5;{'a' * 250}\r\nhello\r\n0\r\n\r\n",
            f"5;{'a' * 300}\r\nhello\r\n0\r\n\r\n",
        ),
        *("5 ;a\r\nhello\r\n0\r\n\r\n", "5,5\r\nhello\r\n0\r\n\r\n", f"{'0' * 15}5\r\nhello\r\n0\r\n\r\n"),
        *(f"{'0' * 16}5\r\nhello\r\n0\r\n\r\n", "8000000000000000\r\nhello", "ffffffffffffffffff\r\nhello"),
        *(
            "0\r\nX: 1\r\n\r\n",
            "0\r\nX: 1\r\nY: 2\r\n\r\n",
            "0\r\nx\r\n\r\n",
            "0\r\n X: 1\r\n\r\n",
            "0\r\nX : 1\r\n\r\n",
        ),
        *(
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "0\r\nHost: y\r\n\r\n",
        ),
        *(
            "0\r\nAuthorization: x\r\n\r\n",
            "0\r\nX-Registry-Auth: x\r\n\r\n",
            "0\r\nContent-Type: text/html\r\n\r\n",
        ),
        *("0\r\nX: a\nY: b\r\n\r\n", "0\r\nX: a\0\r\n\r\n", f"0\r\nX: {'a' * 9000}\r\n\r\n", "0\r\n\r\n\r\n"),
        *(
            "1\r\nh\r\n" * 3000 + "0\r\n\r\n",
            "1;" + "a" * 99 + "\r\nh\r\n0\r\n\r\n",
            "0;" + "a" * 99 + "\r\n\r\n",
        ),
    ):
        for start in (PRUNE, LOAD):
            head = b"Transfer-Encoding: chunked\r\n\r\n"
            yield f"chunks {body[:30]!r}", start + head + body.encode("latin-1") + SMUGGLED


def old_versions() -> Requests:
    """HTTP/1.0, with and without keep-alive, lengths and Host."""
    for line in (f"GET {LIST} HTTP/1.0", "HEAD /_ping HTTP/1.0", "POST /v1.41/images/prune HTTP/1.0"):
        for fields in (
            *(
                "",
                "Host: x",
                "Connection: keep-alive",
                "Connection: close",
                "Connection: upgrade\r\nUpgrade: tcp",
            ),
            *("Expect: 100-continue", "Transfer-Encoding: chunked", "Host: x\r\nHost: y", "Host: a/b"),
            *("Connection: keep-alive\r\nContent-Length: 5", "Content-Length: 5", "Keep-Alive: 5", "Host:"),
        ):
            head = f"{line}\r\n{fields}\r\n\r\n" if fields else f"{line}\r\n\r\n"
            yield f"{line[:20]} {fields[:30]!r}", head.encode() + b"hello" * ("Length" in fields) + SMUGGLED
    for host in (
        "",
        "x",
        "x:1",
        "[::1]:2",
        "a b",
        "a/b",
        "x\t",
        "\xff",
        "x@y",
        "x,y",
        "x?y",
        "x#y",
        "_",
        "x\\y",
    ):
        raw = f"GET {LIST} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")
        yield f"host {host!r}", raw + SMUGGLED
    yield "no host", f"GET {LIST} HTTP/1.1\r\n\r\n".encode() + SMUGGLED


def prefaces() -> Requests:
    """HTTP/2's preface first, second, behind a body, and pieces of it."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
    ping = b"GET /_ping HTTP/1.1\r\n" + HOST + b"\r\n"
    yield "preface first", preface + SMUGGLED
    yield "preface second", ping + preface + SMUGGLED
    yield "preface third", ping + ping + preface
    yield "preface behind a body", PRUNE + b"Content-Length: 5\r\n\r\nhello" + preface
    yield "preface as a body", PRUNE + b"Content-Length: 24\r\n\r\n" + preface[:24] + SMUGGLED
    yield "preface with a host", b"PRI * HTTP/2.0\r\n" + HOST + b"\r\n" + SMUGGLED
    yield "preface on 1.1", b"PRI * HTTP/1.1\r\n" + HOST + b"\r\n" + SMUGGLED
    yield "preface on a path", b"PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED
    yield (
        "h2c upgrade",
        get("/_ping", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n"),
    )
    yield "h2c on a list", get(LIST, b"Connection: Upgrade\r\nUpgrade: h2c\r\n") + preface
    yield "a TLS record", b"\x16\x03\x01\x00\x05hello" + SMUGGLED
    yield "nothing but NUL", b"\0" * 100 + SMUGGLED
    yield "a websocket frame", b"\x81\x85abcdefghi" + SMUGGLED


def expectations() -> Requests:
    """Expect, spelled in many ways, with and without a body."""
    for value in (
        *(
            "100-continue",
            "100-Continue",
            "100-CONTINUE",
            " 100-continue ",
            "100-continue, x",
            "100-continue;q=1",
            "x",
        ),
        *(
            "",
            "100",
            "continue",
            "100-continue\r\nExpect: 100-continue",
            "200-ok",
            "100-continue\x0b",
            '"100-continue"',
        ),
    ):
        line = f"Expect: {value}\r\n".encode("latin-1")
        yield f"expect {value!r} on a list", get(LIST, line)
        yield f"expect {value!r} with a body", LOAD + line + b"Content-Length: 5\r\n\r\nhello" + SMUGGLED
        yield f"expect {value!r} to drop", PRUNE + line + b"Content-Length: 5\r\n\r\nhello" + SMUGGLED
        yield f"expect {value!r} empty", LOAD + line + b"Content-Length: 0\r\n\r\n" + SMUGGLED


def hijacks() -> Requests:
    """What follows a request that could become a stream, when the Engine refuses to make it one."""
    followers = (
        SMUGGLED,
        SMUGGLED * 3,
        b"\r\n" + SMUGGLED,
        b"stdin\n",
        b"DELETE /v1.41/containers/a HTTP/1.1\r\n" + HOST + b"\r\n",
    )
    json = b"Content-Type: application/json\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: tcp\r\n"
    for number, follower in enumerate(followers):
        for name, path, body in (
            ("unknown exec", "/exec/nonexist/start", b"{}"),
            ("detached exec", f"/exec/{'35' * 32}/start", b'{"Detach":true}'),
            ("bad JSON", f"/exec/{'35' * 32}/start", b"}"),
            ("no JSON", f"/exec/{'35' * 32}/start", b""),
        ):
            for extra in (upgrade, b"", b"Upgrade:\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n"):
                head = f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
                yield (
                    f"{name} {number} {extra[:20]!r}",
                    head + HOST + json + extra + b"\r\n" + body + follower,
                )
        for kind in (b"tcp", b"H2C", b"h2c,tcp", b"websocket", b""):
            for path in ("/session", "/grpc"):
                head = f"POST {path} HTTP/1.1\r\nContent-Length: 0\r\n".encode() + HOST
                yield f"{path} {kind!r} {number}", head + b"Upgrade: " + kind + b"\r\n\r\n" + follower
        for method in ("GET", "HEAD", "PUT", "OPTIONS"):
            head = f"{method} /v1.41/containers/web/attach?stream=1 HTTP/1.1\r\n".encode()
            yield f"{method} attach {number}", head + HOST + upgrade + b"\r\n" + follower
        for path in (LIST, "/_ping", "/v1.41/containers/web/json", "/v1.41/info"):
            yield f"upgrade on {path} {number}", get(path, upgrade)[: -len(SMUGGLED)] + follower


GENERATORS = (
    *(
        encoded_bytes,
        raw_bytes,
        encoded_letters,
        segments,
        versions,
        queries,
        forms,
        header_lines,
        duplicates,
    ),
    *(codings, chunks, old_versions, prefaces, expectations, hijacks),
)

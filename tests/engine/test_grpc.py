"""BuildKit's own API behind POST /grpc, which only a plugin of the docker CLI uses, by a few bytes of HTTP/2.

RFC 9113 for the frames, RFC 7541 for the headers (literals without indexing, no Huffman code), and gRPC over
HTTP/2 for the message in them.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from tests.engine.guarded import CAROL, certificates, guarded

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS, ACK = 1, 4, 1

UPGRADE = (
    b"POST /v1.41/grpc HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n"
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write one HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(**headers: str) -> bytes:
    """Write headers; ``_x`` stands for the pseudo-header ``:x``, and ``_`` inside a name for a hyphen."""
    block = b""
    for name, value in headers.items():
        spelled = (":" + name[1:] if name.startswith("_") else name.replace("_", "-")).encode()
        block += b"\x00" + bytes((len(spelled),)) + spelled + bytes((len(value),)) + value.encode()
    return block


class GRPCTests(SynchronousTestCase):
    """A tunnel in which two programs speak HTTP/2."""

    def connected(self, user: str, *groups: str) -> ssl.SSLSocket:
        folder = certificates(user, *groups)
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        plain = socket.create_connection(("127.0.0.1", guarded().port), timeout=20)
        link = context.wrap_socket(plain, server_hostname="127.0.0.1")
        self.addCleanup(link.close)
        return link

    def head(self, link: ssl.SSLSocket) -> bytes:
        """Read up to the end of an answer's head, and not a byte further."""
        seen = b""
        while not seen.endswith(b"\r\n\r\n"):
            seen += link.recv(1)
        return seen

    def frames(self, link: ssl.SSLSocket) -> Iterator[tuple[int, int, int, bytes]]:
        """Read frames to the end of the connection."""
        seen = b""
        while True:
            while len(seen) < 9 or len(seen) < 9 + int.from_bytes(seen[:3], "big"):
                part = link.recv(65536)
                if not part:
                    return
                seen += part
            size = int.from_bytes(seen[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", seen[3:9])
            yield kind, flags, stream, seen[9 : 9 + size]
            seen = seen[9 + size :]

    def test_a_call_over_http_2(self) -> None:
        before = guarded().trail.mark()
        link = self.connected("admin")
        link.sendall(UPGRADE)
        self.assertTrue(self.head(link).startswith(b"HTTP/1.1 101 "))
        call = header_block(
            _method="POST",
            _scheme="http",
            _path="/moby.buildkit.v1.Control/ListWorkers",
            _authority="localhost",
            content_type="application/grpc",
            te="trailers",
        )
        link.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0)
            + frame(HEADERS, END_HEADERS, 1, call)
            + frame(DATA, END_STREAM, 1, b"\0\0\0\0\0")
        )
        answer = b""
        for kind, flags, stream, payload in self.frames(link):
            if kind == SETTINGS and not flags & ACK:
                link.sendall(frame(SETTINGS, ACK, 0))
            if stream == 1 and kind == DATA:
                answer += payload
            if stream == 1 and flags & END_STREAM:
                break
        # One worker, whose platform is in the answer.
        self.assertIn(b"linux", answer)
        link.close()
        began, ended = guarded().trail.stream("grpc", before)
        self.assertEqual((began["result"]["status"], began["decision"]["rule"]), (101, "admin_rule"))
        self.assertGreater(ended["result"]["tx"], len(answer))

    def test_only_a_rule_that_names_it_lets_it_pass(self) -> None:
        link = self.connected(CAROL, "Builders")
        link.sendall(UPGRADE)
        self.assertTrue(self.head(link).startswith(b"HTTP/1.1 403 "))
        self.assertIn(b"'grpc' denied for user 'carol@example.com' by rule 'builders_rule'", link.recv(4096))

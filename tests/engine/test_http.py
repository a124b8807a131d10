"""HTTP as other programs than Docker's speak it, with the real Engine behind the defender."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import tarfile
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from deploy.docker_api import call, connection
from tests.engine.clients import shared_box
from tests.engine.dockerd import engine
from tests.engine.guarded import certificates, guarded
from tests.engine.test_cli_run import noise
from tests.engine.test_cli_streams import tar_of

IMPORT = "/v1.41/images/create?fromSrc=-&repo="


class HTTPCase(SynchronousTestCase):
    """Connections over TLS and over the unix socket."""

    def links(self) -> Iterator[http.client.HTTPConnection]:
        defender = guarded()
        for link in (
            connection(defender.tcp_address, certificates("admin")),
            connection(defender.unix_address),
        ):
            yield link
            link.close()

    def answer(self, link: http.client.HTTPConnection) -> tuple[int, bytes]:
        response = link.getresponse()
        return response.status, response.read()

    def remove(self, image: str) -> None:
        self.assertIn("Deleted", str(call(connection(engine().address), "DELETE", f"/images/{image}")))


class BodyTests(HTTPCase):
    """Bodies in every framing."""

    def test_chunks_of_every_size(self) -> None:
        content = tar_of(file=noise(1))
        for link in self.links():
            sizes = (1, 2, 3, 1000, 4096, 65536, 100_000, len(content))
            cuts = [sum(sizes[:index]) for index in range(len(sizes))]
            pieces = [content[cut : cut + size] for cut, size in zip(cuts, sizes, strict=True)]
            link.request("POST", IMPORT + "chunks", iter(pieces), encode_chunked=True)
            status, words = self.answer(link)
            self.assertEqual(status, 200, words)
            self.assertIn(b"sha256:", words)
            # The same connection goes on.
            link.request("GET", "/v1.41/images/chunks/json")
            self.assertEqual(self.answer(link)[0], 200)
            self.remove("chunks")

    def test_expecting_100_continue(self) -> None:
        content = tar_of(file=noise(1))
        for link in self.links():
            link.putrequest("POST", IMPORT + "continue")
            link.putheader("Content-Length", str(len(content)))
            link.putheader("Expect", "100-continue")
            link.endheaders()
            assert link.sock is not None
            seen = b""
            while not seen.endswith(b"\r\n\r\n"):
                seen += link.sock.recv(1)
            self.assertEqual(seen, b"HTTP/1.1 100 Continue\r\n\r\n")
            link.send(content)
            self.assertEqual(self.answer(link)[0], 200)
            self.remove("continue")

    def test_an_answer_before_the_upload_is_over(self) -> None:
        for link in self.links():
            link.putrequest("PUT", f"/v1.41/containers/{shared_box()}/archive?path=/no/such/directory")
            link.putheader("Content-Length", str(50 * 1024 * 1024))
            link.endheaders()
            status, words = self.answer(link)
            self.assertEqual(status, 404)
            self.assertIn("/no/such/directory", json.loads(words)["message"])

    def test_an_answer_while_a_client_goes_on_uploading(self) -> None:
        link = connection(guarded().tcp_address, certificates("admin"))
        self.addCleanup(link.close)
        link.putrequest("POST", IMPORT + "never")
        link.putheader("Transfer-Encoding", "chunked")
        link.endheaders()
        piece = b"%x\r\n" % (1024 * 1024) + b"x" * 1024 * 1024 + b"\r\n"
        # No tar: the Engine says so after the first bytes. This client reads nothing until it is done or
        # stopped, and must find the answer all the same.
        with contextlib.suppress(OSError):
            for _ in range(50):
                link.send(piece)
        status, words = self.answer(link)
        self.assertEqual(status, 500)
        self.assertIn(b"invalid tar header", words)


class ConnectionTests(HTTPCase):
    """One connection, many requests."""

    def test_kept_alive_and_head(self) -> None:
        for link in self.links():
            link.connect()
            first = link.sock
            for number in range(50):
                link.request("HEAD" if number % 2 else "GET", "/_ping")
                self.assertEqual(self.answer(link), (200, b"" if number % 2 else b"OK"))
            self.assertIs(link.sock, first)

    def test_pipelined(self) -> None:
        for link in self.links():
            link.connect()
            assert link.sock is not None
            ping = b"GET /v1.41/_ping HTTP/1.1\r\nHost: docker\r\n\r\n"
            missing = b"GET /v1.41/containers/no-such/json HTTP/1.1\r\nHost: docker\r\n\r\n"
            last = b"GET /v1.41/_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"
            link.sock.sendall(ping + missing + ping + last)
            seen = b""
            while part := link.sock.recv(65536):
                seen += part
            statuses = re.findall(rb"HTTP/1\.1 (\d+) ", seen)
            self.assertEqual(statuses, [b"200", b"404", b"200", b"200"])

    def test_http_1_0(self) -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(guarded().socket))
            link.sendall(b"GET /v1.41/images/json HTTP/1.0\r\n\r\n")
            head, _, body = b"".join(iter(lambda: link.recv(65536), b"")).partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertNotIn(b"transfer-encoding", head.lower())
        self.assertIsInstance(json.loads(body), list)

    def test_an_archive_in_one_piece(self) -> None:
        for link in self.links():
            link.request("GET", f"/v1.41/containers/{shared_box()}/archive?path=/etc")
            response = link.getresponse()
            with tarfile.open(fileobj=io.BytesIO(response.read())) as archive:
                self.assertIn("etc/passwd", archive.getnames())

"""The free Engine serves what proxies ask of it."""

from __future__ import annotations

import socket
import tempfile
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.bench.children import stop_process
from tests.bench.stage import compile_c, cores, start_engine


class FreeEngine(SynchronousTestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory(prefix="b", dir="/tmp")
        self.addCleanup(holder.cleanup)
        path = Path(holder.name) / "engine.sock"
        process = start_engine(compile_c("free_engine", Path(holder.name)), path, cores()[1])
        self.addCleanup(stop_process, process)
        self.sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.sock.close)
        self.sock.settimeout(20)
        self.sock.connect(str(path))

    def until(self, mark: bytes) -> bytes:
        data = b""
        while not data.endswith(mark):
            got = self.sock.recv(1 << 20)
            self.assertTrue(got, data[-80:])
            data += got
        return data

    def test_connection_is_kept_over_small_answers_uploads_and_a_download(self) -> None:
        self.sock.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n")
        small = self.until(b"]\n")
        head, _, body = small.partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: %d" % len(body), head)
        self.sock.sendall(b"POST /images/load HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n" + b"y" * 3_000_000)
        self.assertEqual(self.until(b"]\n"), small)
        chunks = b"".join(b"%x\r\n%b\r\n" % (size, b"z" * size) for size in (1, 70_000, 5))
        head = b"POST /images/load HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.sock.sendall(head + chunks + b"0\r\nX-Trailer: 1\r\n\r\n")
        self.assertEqual(self.until(b"]\n"), small)
        self.sock.sendall(b"GET /v1.41/images/get?names=2 HTTP/1.1\r\nHost: x\r\n\r\n")
        download = self.until(b"\r\n0\r\n\r\n").partition(b"\r\n\r\n")[2]
        self.assertEqual(download.count(b"x"), 2 << 20)

    def test_tunnel_echoes_until_the_half_close(self) -> None:
        self.sock.sendall(b"POST /exec/1/start HTTP/1.1\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}")
        self.assertTrue(self.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 "))
        data = bytes(range(256)) * 20_000

        def talk() -> None:
            self.sock.sendall(data)
            self.sock.shutdown(socket.SHUT_WR)

        talker = threading.Thread(target=talk)
        talker.start()
        parts = []
        while got := self.sock.recv(1 << 20):
            parts.append(got)
        talker.join(20)
        self.assertEqual(b"".join(parts), data)

    def test_without_an_upgrade_the_tunnel_begins_after_an_ordinary_answer(self) -> None:
        self.sock.sendall(b"POST /exec/1/start HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        head = self.until(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 "))
        self.assertNotIn(b"Content-Length", head)
        self.sock.sendall(b"to and fro")
        self.assertEqual(self.until(b"fro"), b"to and fro")

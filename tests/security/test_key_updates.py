"""A client that changes its keys without end (TLS 1.3 KeyUpdate): OpenSSL reads on as long as such records
come, and one connection stopped the reactor for seconds.
"""

from __future__ import annotations

import shutil
import socket
import subprocess

from defender.streams.tls import TLSStream
from tests.defender.streams.harness import Recorder, TLSCase, fleet

UPDATES = 6


class KeyUpdateTests(TLSCase):
    def s_client(self, port: int) -> subprocess.Popen[bytes]:
        program = shutil.which("openssl")
        assert program, "the test needs the program openssl"
        user = fleet().user
        # fmt: off
        return subprocess.Popen(
            [program, "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-cert", user.certificate_chain,
             "-key", user.private_key, "-CAfile", user.ca, "-brief"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        # fmt: on

    async def test_others_have_their_turn_after_each(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = self.s_client(listener.getsockname()[1])
            server, _ = await self.in_thread(listener.accept)
        stream = self.tls(server, fleet().context())
        await stream.handshake()
        turns = 0
        read = stream.doRead

        def counted() -> None:
            nonlocal turns
            turns += 1
            read()

        self.patch(TLSStream, "doRead", lambda _stream: counted())
        # Without a receiver nothing is read: all of it waits in the kernel.
        assert process.stdin
        assert process.stdout
        for line in [b"K\n"] * UPDATES + [b"end\n"]:
            process.stdin.write(line)
            process.stdin.flush()
            await self.turn(0.05)  # s_client takes a command only when it is all that it read
        receiver = Recorder(stream)
        await receiver.until_bytes(4)
        self.assertEqual(bytes(receiver.data), b"end\n")
        self.assertGreater(turns, UPDATES)
        process.stdin.close()
        stream.close()
        await receiver.until_lost()
        await self.in_thread(process.wait)
        process.stdout.close()

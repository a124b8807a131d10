"""attach/ws with a client that is nobody's docker CLI."""

from __future__ import annotations

import ssl

from twisted.trial.unittest import SynchronousTestCase
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect
from websockets.typing import Origin

from deploy.docker_api import call, connection
from tests.engine.clients import remove_container
from tests.engine.dockerd import engine
from tests.engine.guarded import BRUCE, certificates, guarded, of

ORIGIN = Origin("https://console.example")


class WebsocketTests(SynchronousTestCase):
    """A terminal in a browser would come like this."""

    def container(self, name: str) -> None:
        """Start a container with an open standard input and a terminal."""
        self.addCleanup(remove_container, name)
        form = (
            b'{"Image": "busybox", "Cmd": ["cat"], "OpenStdin": true, "Tty": true, "NetworkDisabled": true}'
        )
        header = {"Content-Type": "application/json"}
        address = engine().address
        call(connection(address), "POST", f"/containers/create?name={name}", form, **header)
        call(connection(address), "POST", f"/containers/{name}/start")

    def open(self, name: str, user: str = "admin", *groups: str) -> ClientConnection:
        """Connect with a user's certificate."""
        folder = certificates(user, *groups)
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        port = guarded().port
        address = f"wss://127.0.0.1:{port}/v1.41/containers/{name}/attach/ws?stream=1&stdin=1&stdout=1&logs=1"
        return connect(address, ssl=context, origin=ORIGIN, proxy=None)

    def read(self, socket: ClientConnection, wanted: bytes) -> bytes:
        """Read messages until they hold what is wanted."""
        seen = b""
        while wanted not in seen:
            message = socket.recv(timeout=20)
            seen += message.encode() if isinstance(message, str) else message
        return seen

    def test_both_ways_over_tls(self) -> None:
        self.container("ws-tls")
        before = guarded().trail.mark()
        with self.open("ws-tls") as socket:
            socket.send(b"through a websocket\n")
            self.read(socket, b"through a websocket\r\nthrough a websocket\r\n")
            socket.send("as text\n")
            self.read(socket, b"as text\r\nas text\r\n")
        began, ended = guarded().trail.stream("container_attach_websocket", before)
        self.assertEqual(began["result"]["status"], 101)
        self.assertGreater(ended["result"]["rx"], 30)
        self.assertGreater(ended["result"]["tx"], 60)

    def test_over_the_unix_socket(self) -> None:
        self.container("ws-unix")
        address = "ws://docker/v1.41/containers/ws-unix/attach/ws?stream=1&stdin=1&stdout=1"
        path = str(guarded().socket)
        with unix_connect(path, address, origin=ORIGIN, proxy=None) as socket:
            socket.send(b"through a websocket\n")
            self.read(socket, b"through a websocket\r\nthrough a websocket\r\n")

    def test_the_end_of_the_container_ends_it(self) -> None:
        self.container("ws-end")
        before = guarded().trail.mark()
        with self.open("ws-end") as socket:
            socket.send(b"first\n")
            self.read(socket, b"first\r\nfirst\r\n")
            call(connection(engine().address), "POST", "/containers/ws-end/kill")
            for _ in socket:
                pass
            guarded().trail.stream("container_attach_websocket", before)

    def test_a_denied_user_gets_403_and_no_stream(self) -> None:
        self.container("ws-denied")
        before = guarded().trail.mark()
        with self.assertRaises(InvalidStatus) as caught:
            self.open("ws-denied", BRUCE, "Dev team")
        response = caught.exception.response
        self.assertEqual(response.status_code, 403)
        self.assertEqual(
            response.body,
            b'{"message":"[Defender] The command \'container_attach_websocket\' denied for user '
            b"'bruce@example.com' by rule 'devs_rule'\"}\n",
        )
        guarded().trail.wait_for(of("container_attach_websocket"), since=before)
        mine = [event for event in guarded().trail.read(before) if event["actor"]["user"] == BRUCE]
        self.assertEqual([event for event in mine if event["phase"] == "stream_end"], [])

"""Real clients on real sockets: they accept our server certificate, and our server accepts theirs.

The docker CLI stands for Go's TLS, which is stricter than the others about names, extensions and OIDs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.identity import load_certificate, subject_of_certificate
from tests.fakes.authority import Credentials, ServerFiles, TestAuthority

TIMEOUT = 60.0
MANY_GROUPS = [f"group {number:03} of a large company" for number in range(256)]

TLS_FAILURE = re.compile("certificate|x509|alert|ssl error|altname", re.IGNORECASE)
"""What each client says when the handshake failed, and not when its command line was wrong."""

NODE = """
const [, url, directory] = process.argv;
const read = (name) => require('fs').readFileSync(directory + '/' + name);
require('https').get(url, {ca: read('ca.pem'), cert: read('cert.pem'), key: read('key.pem')}, (answer) => {
  answer.on('data', (data) => process.stdout.write(data));
}).on('error', (error) => { console.error(error.message); process.exit(1); });
"""

PYTHON = """
import ssl, sys, urllib.request
url, directory = sys.argv[1:]
context = ssl.create_default_context(cafile=directory + "/ca.pem")
context.load_cert_chain(directory + "/cert.pem", directory + "/key.pem")
sys.stdout.write(urllib.request.urlopen(url, context=context, timeout=30).read().decode())
"""


class Server:
    """A TLS server in a thread that asks for a client certificate, and greets each client by its name.

    Its trust set is what a defender's is: the user intermediate alone, as the end of a partial chain.
    """

    def __init__(self, files: ServerFiles, trust_domain: str) -> None:
        self.trust_domain = trust_domain
        self.users: list[str] = []
        self.failures: list[str] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._context.load_cert_chain(files.certificate_chain, files.private_key)
        self._context.load_verify_locations(files.client_ca)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        # shutdown() wakes the accept() of the other thread; close() alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(TIMEOUT)
            stream = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            try:
                stream.do_handshake()
                self._answer(stream)
            except OSError as error:
                self.failures.append(str(error))
            # Read on until the client ends: a close with its request unread would reset the connection, and
            # the client might then never see the alert that tells why.
            with socket.socket(fileno=stream.detach()) as rest, contextlib.suppress(OSError):
                rest.settimeout(TIMEOUT)
                rest.shutdown(socket.SHUT_WR)
                while rest.recv(65536):
                    pass

    def _answer(self, stream: ssl.SSLSocket) -> None:
        der = stream.getpeercert(binary_form=True)
        assert der is not None
        subject = subject_of_certificate(load_certificate(der), self.trust_domain)
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                received = stream.recv(65536)
                if not received:
                    return
                buffer += received
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            self.users.append(subject.user)
            method, target, _ = head.decode("latin-1").split("\r\n")[0].split(" ")
            if target.endswith("/version"):
                body = json.dumps(
                    {"Version": f"for {subject.user}", "ApiVersion": "1.41", "MinAPIVersion": "1.12"}
                )
                kind = "application/json"
            else:
                body, kind = f"hello {subject.user} of {len(subject.groups)} groups", "text/plain"
            answer = (
                f"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            stream.sendall((answer + ("" if method == "HEAD" else body)).encode())


def docker_clients() -> list[str]:
    """Return every docker CLI on the path: distributions' and newer ones differ in their Go."""
    found = [os.path.join(folder, "docker") for folder in os.get_exec_path()]
    return list(dict.fromkeys(os.path.realpath(path) for path in found if os.access(path, os.X_OK)))


class ClientTests(SynchronousTestCase):
    """curl, Node, Python and the docker CLI (Go) against one server."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.pki = TestAuthority()
        self.server = self.serve(self.pki.server())

    def serve(self, credentials: Credentials) -> Server:
        files = self.pki.write_server(self.directory / f"server-{credentials.serial}", credentials)
        server = Server(files, self.pki.trust_domain)
        self.addCleanup(server.stop)
        return server

    def credentials_of(self, user: Credentials, pki: TestAuthority | None = None) -> Path:
        """Return a DOCKER_CERT_PATH with this user's certificate, trusting this (or another) authority."""
        return (pki or self.pki).write_user(self.directory / f"user-{user.serial}", user).directory

    def commands(self, server: Server, directory: Path) -> dict[str, list[str]]:
        """Return each client's command line, by a name for messages."""
        url = f"https://localhost:{server.port}/hello"
        ca, certificate, key = (str(directory / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        curl, node = shutil.which("curl"), shutil.which("node")
        assert curl, "curl is needed: apt-get install curl"
        assert node, "node is needed: apt-get install nodejs"
        commands = {
            "curl": [curl, "-sS", "--cacert", ca, "--cert", certificate, "--key", key, url],
            "node": [node, "-e", NODE, "--", url, str(directory)],
            "python": [sys.executable, "-c", PYTHON, url, str(directory)],
        }
        dockers = docker_clients()
        assert dockers, "the docker CLI is needed: apt-get install docker.io"
        for path in dockers:
            commands[path] = [path, "version", "--format", "{{.Server.Version}}"]
        return commands

    def run_client(self, command: list[str], server: Server, directory: Path) -> tuple[int, str]:
        # Nothing of the caller's environment: a CA bundle named there would be trusted too.
        environment = {
            "PATH": os.defpath,
            "HOME": str(self.directory),
            "DOCKER_HOST": f"tcp://localhost:{server.port}",
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(directory),
        }
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def assert_all_welcome(self, directory: Path, user: str) -> None:
        for name, command in self.commands(self.server, directory).items():
            self.server.users.clear()
            status, output = self.run_client(command, self.server, directory)
            self.assertEqual(status, 0, f"{name}: {output}")
            self.assertIn(user, output, name)
            self.assertEqual(set(self.server.users), {user}, name)

    def assert_all_refused(self, server: Server, directory: Path) -> None:
        for name, command in self.commands(server, directory).items():
            status, output = self.run_client(command, server, directory)
            self.assertNotEqual(status, 0, f"{name}: {output}")
            self.assertRegex(output, TLS_FAILURE, name)
        self.assertEqual(server.users, [])

    def test_accepted(self) -> None:
        """Both sides accept the other's chain."""
        self.assert_all_welcome(self.credentials_of(self.pki.user("bruce@example.com")), "bruce@example.com")

    def test_many_groups(self) -> None:
        """The largest group extension passes through every client."""
        user = self.pki.user("alice", MANY_GROUPS)
        self.assert_all_welcome(self.credentials_of(user), "alice")

    def test_server_of_another_authority(self) -> None:
        """A client that trusts another root does not speak to our server."""
        other = TestAuthority()
        directory = self.credentials_of(self.pki.user())
        other.write_user(directory, self.pki.user())  # our user's certificate, the other's ca.pem
        self.assert_all_refused(self.server, directory)

    def test_client_of_another_authority(self) -> None:
        """Our server does not speak to a client whose certificate another authority issued."""
        directory = self.credentials_of(TestAuthority().user())
        self.assert_all_refused(self.server, directory)

    def test_fleet_certificate_is_no_user(self) -> None:
        """A certificate that the fleet intermediate signed opens nothing, though the root is the same."""
        for credentials in (self.pki.odd("fleet-signed"), self.pki.server(), self.pki.odd("root-signed")):
            self.assert_all_refused(self.server, self.credentials_of(credentials))

    def test_expired(self) -> None:
        """An expired certificate opens nothing."""
        self.assert_all_refused(self.server, self.credentials_of(self.pki.odd("expired")))

    def test_wrong_host_name(self) -> None:
        """A server certificate for other names is refused by every client."""
        server = self.serve(self.pki.server(["web1.example.com", "10.0.0.7"]))
        self.assert_all_refused(server, self.credentials_of(self.pki.user()))

    def test_user_certificate_is_no_server(self) -> None:
        """A user cannot pose as a defender: no name, and no serverAuth."""
        server = self.serve(self.pki.user())
        self.assert_all_refused(server, self.credentials_of(self.pki.user()))

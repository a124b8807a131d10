"""Who is not let in: the handshake fails, and the defender says which check failed and for whom."""

from __future__ import annotations

import http.client
import socket
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests.engine.dockerd import client_environment, docker_clis
from tests.engine.guarded import Event, Guarded, scratch
from tests.fakes.authority import ODD, TestAuthority

BY_TLS = {
    "expired": "certificate has expired",
    "not-yet-valid": "certificate is not yet valid",
    "fleet-signed": "unable to get local issuer certificate",
    "foreign-ca": "unable to get local issuer certificate",
    "root-signed": "self-signed certificate in certificate chain",
    "self-signed": "self-signed certificate",
    "server-eku": "unsuitable certificate purpose",
    "groups-critical": "unhandled critical extension",
    "ca": "unsuitable certificate purpose",
    "no-signing": "unsuitable certificate purpose",
}
"""What OpenSSL says of a chain or a certificate, before our own checks are asked."""

POLICY = """\
schema: 1
rules: [{name: all, effect: allow}]
"""


class CertificateTests(SynchronousTestCase):
    """Certificates that no authority should have signed, in the hands of the docker CLI."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=scratch()))
        self.pki = TestAuthority()
        self.pki.write_server(self.folder / "tls")
        self.pki.write_user(self.folder / "good", self.pki.user())
        self.defender = Guarded(
            mode="tcp", policy=POLICY, tls=self.folder / "tls", probe=self.folder / "good"
        ).start()
        self.addCleanup(self.defender.stop)

    def environment(self, kind: str) -> dict[str, str]:
        """Return the environment of a client that has a certificate of this kind."""
        if kind != "good":
            self.pki.write_user(self.folder / kind, self.pki.odd(kind))
        return client_environment(self.defender.tcp_address, self.folder / kind)

    def context(self) -> ssl.SSLContext:
        """Return a context that trusts the defender and has no certificate."""
        return ssl.create_default_context(cafile=str(self.folder / "good" / "ca.pem"))

    def refusal(self, since: int, *words: str) -> Event:
        """Wait for the event of a refused peer with some of these words; a command makes several of them."""

        def wanted(event: Event) -> bool:
            reason: str = event.get("decision", {}).get("reason", "")
            return event["kind"] == "identity" and reason.startswith(words)

        return self.defender.trail.wait_for(wanted, since=since)[0]

    def test_every_odd_certificate_fails_in_the_handshake(self) -> None:
        self.assertEqual(docker_clis()[0].run("version", environment=self.environment("good")).returncode, 0)
        for number, (kind, check) in enumerate(ODD.items()):
            if kind == "groups-twice":  # newer clients of Go refuse to load it
                continue
            with self.subTest(kind):
                before = self.defender.trail.mark()
                cli = docker_clis()[number % len(docker_clis())]
                done = cli.run("ps", environment=self.environment(kind), check=False)
                self.assertNotEqual(done.returncode, 0)
                self.assertRegex(done.stderr.decode(), "remote error: tls: |bad certificate")
                event = self.refusal(before, *filter(None, (check, BY_TLS.get(kind))))
                if check != "cn":
                    self.assertEqual(event["actor"]["user"], "bruce@example.com")
        # The log keeps to twenty such lines in a second; the first kind's are among them.
        self.assertRegex(
            self.defender.words(),
            r"refused a peer: check=certificate has expired subject=bruce@example\.com peer=127\.0\.0\.1 ",
        )
        # It goes on serving.
        docker_clis()[0].run("version", environment=self.environment("good"))

    def test_no_certificate(self) -> None:
        before = self.defender.trail.mark()
        plain = socket.create_connection(("127.0.0.1", self.defender.port), timeout=20)
        # In TLS 1.3 a client is done before the server has looked at its certificate.
        link = self.context().wrap_socket(plain, server_hostname="127.0.0.1")
        self.addCleanup(link.close)
        with self.assertRaisesRegex(ssl.SSLError, "CERTIFICATE_REQUIRED"):
            link.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
            link.recv(1)
        event = self.refusal(before, "no client certificate")
        self.assertEqual(event["actor"]["user"], "")
        bare = self.folder / "bare"
        bare.mkdir()
        (bare / "ca.pem").write_bytes((self.folder / "good" / "ca.pem").read_bytes())
        for cli in docker_clis():
            environment = client_environment(self.defender.tcp_address, bare)
            done = cli.run("ps", environment=environment, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertRegex(done.stderr.decode(), "certificate required|bad certificate")

    def test_no_tls_at_all(self) -> None:
        before = self.defender.trail.mark()
        link = http.client.HTTPConnection("127.0.0.1", self.defender.port, timeout=20)
        self.addCleanup(link.close)
        with self.assertRaises((OSError, http.client.HTTPException)):
            link.request("GET", "/_ping")
            link.getresponse()
        self.refusal(before, "protocol: http request")

    def test_a_certificate_that_expires_while_its_connection_is_open(self) -> None:
        with mock.patch.object(self.pki, "now", datetime.now(UTC)):
            short = self.pki.user(life=timedelta(seconds=3))
        self.pki.write_user(self.folder / "short", short)
        context = self.context()
        context.load_cert_chain(self.folder / "short" / "cert.pem", self.folder / "short" / "key.pem")
        link = http.client.HTTPSConnection("127.0.0.1", self.defender.port, timeout=20, context=context)
        self.addCleanup(link.close)
        statuses = []
        while 403 not in statuses:
            link.request("GET", "/_ping")
            response = link.getresponse()
            statuses.append(response.status)
            words = response.read()
        self.assertEqual(statuses[0], 200)
        self.assertIn(b"by rule 'certificate' Your certificate has expired", words)

"""OpenSSL is loaded so that it sends no tickets. Each test is a process of its own: it is loaded once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.defender.streams.harness import fleet

ROOT = Path(__file__).resolve().parents[3]

HANDSHAKE = """
import os, ssl, sys
from OpenSSL import SSL
from defender.listener.tls import TLSFiles, server_context
from defender.streams.tls import PeerCheck

chain, key, users, trust_domain, ca, user_chain, user_key = sys.argv[1:]
server = SSL.Connection(server_context(TLSFiles(chain, key, users), trust_domain=trust_domain), None)
server.set_app_data(PeerCheck())
server.set_accept_state()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.load_verify_locations(ca)
context.load_cert_chain(user_chain, user_key)
there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
client = context.wrap_bio(back, there, server_hostname="localhost")
for step in (client.do_handshake, server.do_handshake, client.do_handshake, server.do_handshake):
    try:
        step()
    except (ssl.SSLWantReadError, SSL.WantReadError):
        pass
    if step == client.do_handshake:
        server.bio_write(there.read())
    elif client.version() is None or not client.getpeercert():
        back.write(server.bio_read(65536))
try:
    print("tickets", len(server.bio_read(65536)))
except SSL.WantReadError:
    print("no tickets")
print(server.get_protocol_version_name(), os.environ.get("OPENSSL_CONF"))
"""


class TicketTests(SynchronousTestCase):
    """What comes behind a TLS 1.3 handshake."""

    def handshake(self, before: str, **environment: str) -> list[str]:
        files, user = fleet().files, fleet().user
        arguments = [files.certificate_chain, files.private_key, files.client_ca, fleet().pki.trust_domain]
        arguments += [str(path) for path in (user.ca, user.certificate_chain, user.private_key)]
        done = subprocess.run(
            [sys.executable, "-c", before + HANDSHAKE, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()

    load = "from defender.streams.openssl import load_without_tickets; print(load_without_tickets())"

    def test_no_tickets_are_sent(self) -> None:
        self.assertEqual(self.handshake(self.load), ["True", "no tickets", "TLSv1.3 None"])

    def test_by_itself_openssl_sends_some(self) -> None:
        """Else this module is of no use any more."""
        self.assertRegex(self.handshake("")[0], "^tickets [1-9]")

    def test_too_late_is_said_and_harmless(self) -> None:
        said = self.handshake("import OpenSSL.SSL\n" + self.load)
        self.assertEqual(said[0], "False")
        self.assertRegex(said[1], "^tickets [1-9]")

    def test_a_configuration_of_the_environment_is_left_in_force(self) -> None:
        said = self.handshake(self.load, OPENSSL_CONF="/dev/null")
        self.assertEqual((said[0], said[2]), ("False", "TLSv1.3 /dev/null"))

    def test_twistd_has_not_loaded_openssl_before_the_service_is_made(self) -> None:
        program = (
            "import sys, defender.tap, defender.streams.openssl as ours\n"
            "def load():\n"
            "    print('loaded before' if 'OpenSSL' in sys.modules else 'in time'); raise SystemExit\n"
            "ours.load_without_tickets = load\n"
            "from twisted.scripts.twistd import run\n"
            "sys.argv = ['twistd', '--nodaemon', '--pidfile=', 'defender', '--config', sys.argv[1]]\n"
            "run()"
        )
        settings = fleet().path / "ticket-test.toml"
        settings.write_text('[defender]\nstate = "."\nname = "web1"\n')
        done = subprocess.run(
            [sys.executable, "-c", program, str(settings)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.assertEqual((done.stdout.strip(), done.returncode), ("in time", 0), done.stderr)

"""Who the TLS listener lets in, and what it says of those it does not."""

from __future__ import annotations

import contextlib
import socket
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.authority import certificate_pem
from defender.contract.errors import IdentityError
from defender.contract.identity import CertificateSubject, subject_of_certificate
from defender.listener import tls as listener_tls
from defender.listener.tls import TLSFiles, TLSFilesError, server_context
from defender.streams.tls import HandshakeError, TLSStream
from tests.defender.streams.harness import Recorder, StreamCase, TLSClient, TruncatedError, fleet, tcp_pair
from tests.fakes.authority import ODD, Credentials, TestAuthority

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


OPENSSL_IS_FIRST = {"unsuitable certificate purpose", "unhandled critical extension"}


class HandshakeCase(StreamCase):
    """A test case that shakes hands with one listener context."""

    def accept(self, context: SSL.Context, **options: Any) -> tuple[socket.socket, Deferred[TLSStream]]:
        sock, server = tcp_pair()
        self.addCleanup(sock.close)
        return sock, self.tls(server, context, **options).handshake()

    async def failure(self, shaken: Deferred[TLSStream]) -> HandshakeError:
        try:
            await shaken
        except HandshakeError as error:
            return error
        raise AssertionError("the handshake succeeded")

    async def succeed(self, client: ssl.SSLContext, context: SSL.Context) -> tuple[TLSClient, TLSStream]:
        sock, shaken = self.accept(context)
        tls_client, stream = await gatherResults(
            [self.in_thread(TLSClient(sock, client).handshake), shaken], consumeErrors=True
        )
        return tls_client, stream

    async def refuse(self, client: ssl.SSLContext, context: SSL.Context) -> tuple[HandshakeError, str]:
        """Return the listener's error, and the alert as the client sees it."""
        sock, shaken = self.accept(context)
        alert = self.in_thread(self.provoke, sock, client)
        error = await self.failure(shaken)
        self.assertEqual(error.peer, sock.getsockname())
        return error, await alert

    @staticmethod
    def provoke(sock: socket.socket, context: ssl.SSLContext) -> str:
        """Shake hands and send a request, as clients do before they know that TLS 1.3 refused them."""
        client = TLSClient(sock, context)
        try:
            client.handshake()
            client.send(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n" * 1000)
            client.recv()
        except ssl.SSLError as error:
            return error.reason or str(error).upper().replace(" ", "_")
        except TruncatedError:
            return "no alert"
        return "nothing"


class CertificateTests(HandshakeCase):
    """The certificates of clients."""

    async def test_a_user_comes_in(self) -> None:
        for version in (TLS12, TLS13):
            _, stream = await self.succeed(fleet().client_context(version), fleet().context())
            assert stream.certificate is not None
            self.assertIn("CN=bruce@example.com", stream.certificate.subject.rfc4514_string())
            self.assertEqual(stream.version, version.name.replace("_", "."))

    async def test_a_leaf_without_its_intermediate_is_enough(self) -> None:
        user = fleet().pki.user()
        files = fleet().write("leaf-alone", Credentials(user.chain[:1], user.key))
        await self.succeed(fleet().client_context(files=files), fleet().context())

    async def test_every_odd_certificate_is_refused_with_an_alert_and_a_reason(self) -> None:
        for version in (TLS12, TLS13):
            for kind, check in ODD.items():
                files = fleet().write(kind, fleet().pki.odd(kind))
                error, alert = await self.refuse(fleet().client_context(version, files), fleet().context())
                self.assertTrue(alert.startswith(("SSLV3_ALERT_", "TLSV1_ALERT_")), (kind, alert))
                self.assertNotEqual(alert, "TLSV1_ALERT_INTERNAL_ERROR", kind)
                self.assertNotEqual(error.check, "certificate", kind)
                if check is not None and error.check not in OPENSSL_IS_FIRST:
                    self.assertEqual(error.check, check, kind)
                if "cn" not in kind.split("-"):
                    self.assertIn("bruce", error.subject, kind)

    async def test_the_reasons_that_openssl_finds(self) -> None:
        expected = {
            "expired": ("certificate has expired", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
            "not-yet-valid": ("certificate is not yet valid", "SSLV3_ALERT_BAD_CERTIFICATE"),
            "fleet-signed": ("unable to get local issuer certificate", "TLSV1_ALERT_UNKNOWN_CA"),
            "root-signed": ("self-signed certificate in certificate chain", "TLSV1_ALERT_UNKNOWN_CA"),
            "foreign-ca": ("unable to get local issuer certificate", "TLSV1_ALERT_UNKNOWN_CA"),
            "self-signed": ("self-signed certificate", "TLSV1_ALERT_UNKNOWN_CA"),
        }
        for kind, (check, alert) in expected.items():
            files = fleet().write(kind, fleet().pki.odd(kind))
            error, seen = await self.refuse(fleet().client_context(files=files), fleet().context())
            self.assertTrue(error.check.startswith(check), (kind, error.check))
            self.assertEqual(seen, alert, kind)

    async def test_a_bad_groups_extension_is_a_bad_certificate(self) -> None:
        files = fleet().write("groups-garbage", fleet().pki.odd("groups-garbage"))
        error, alert = await self.refuse(fleet().client_context(files=files), fleet().context())
        self.assertEqual(error.check, "groups-extension")
        self.assertIn("bruce", str(error))
        self.assertEqual(alert, "SSLV3_ALERT_BAD_CERTIFICATE")

    async def test_clients_are_not_told_which_issuers_to_choose_by(self) -> None:
        # Go's clients send no certificate at all where none fits: nobody could say for whom a check failed.
        self.assertEqual(SSL.Connection(fleet().context(), None).get_client_ca_list(), [])

    async def test_without_a_certificate(self) -> None:
        for version, alert in (
            (TLS12, "SSLV3_ALERT_HANDSHAKE_FAILURE"),
            (TLS13, "TLSV13_ALERT_CERTIFICATE_REQUIRED"),
        ):
            client = fleet().client_context(version, certificate=False)
            error, seen = await self.refuse(client, fleet().context())
            self.assertEqual((error.check, error.subject, seen), ("no client certificate", "", alert))

    async def test_a_server_certificate_of_ours_is_no_user(self) -> None:
        files = fleet().write("a-server", fleet().pki.server())
        error, alert = await self.refuse(fleet().client_context(files=files), fleet().context())
        self.assertEqual(alert, "TLSV1_ALERT_UNKNOWN_CA")
        self.assertNotEqual(error.check, "")

    async def test_a_check_that_fails_by_itself_refuses(self) -> None:
        def broken(certificate: object) -> None:
            raise ZeroDivisionError("bug")

        context = server_context(fleet().files, trust_domain="x", verify=broken)
        error, alert = await self.refuse(fleet().client_context(), context)
        self.assertEqual((error.check, alert), ("certificate", "SSLV3_ALERT_BAD_CERTIFICATE"))

    async def test_the_check_is_ours_to_choose(self) -> None:
        def verify(certificate: object) -> None:
            raise IdentityError("locked", "the serial is locked", subject="bruce")

        context = server_context(fleet().files, trust_domain="x", verify=verify)
        error, _ = await self.refuse(fleet().client_context(), context)
        self.assertEqual((error.check, error.detail), ("locked", "the serial is locked"))
        self.assertEqual(error.subject, "bruce")

    async def test_whom_a_certificate_names_is_found_out_once(self) -> None:
        seen: list[x509.Certificate] = []

        def verify(certificate: x509.Certificate) -> object:
            seen.append(certificate)
            return subject_of_certificate(certificate, fleet().pki.trust_domain)

        context = server_context(fleet().files, trust_domain="x", verify=verify)
        other = fleet().write("other", fleet().pki.user("ada@example.com"))
        for files, user in ((None, "bruce"), (other, "ada"), (None, "bruce"), (other, "ada")):
            _, stream = await self.succeed(fleet().client_context(files=files), context)
            assert isinstance(stream.verified, CertificateSubject)
            self.assertEqual(stream.verified.user, f"{user}@example.com")
        self.assertEqual(len(seen), 2)
        self.assertEqual(len({certificate.serial_number for certificate in seen}), 2)

    async def test_a_refused_certificate_is_judged_each_time(self) -> None:
        count = 0

        def verify(certificate: object) -> object:
            nonlocal count
            count += 1
            if count < 3:
                raise IdentityError("locked", "not yet", subject="bruce")
            return "let in"

        context = server_context(fleet().files, trust_domain="x", verify=verify)
        for _ in range(2):
            error, _ = await self.refuse(fleet().client_context(), context)
            self.assertEqual(error.check, "locked")
        _, stream = await self.succeed(fleet().client_context(), context)
        self.assertEqual((stream.verified, count), ("let in", 3))

    async def test_what_is_remembered_of_certificates_is_bounded(self) -> None:
        self.patch(listener_tls, "KNOWN_CERTIFICATES", 2)
        count = 0

        def verify(certificate: object) -> object:
            nonlocal count
            count += 1
            return "let in"

        context = server_context(fleet().files, trust_domain="x", verify=verify)
        users = [None, *(fleet().write(f"user-{n}", fleet().pki.user()) for n in range(2))]
        for files, expected in (*zip(users, (1, 2, 3), strict=True), (users[2], 3), (users[0], 4)):
            await self.succeed(fleet().client_context(files=files), context)
            self.assertEqual(count, expected)

    async def test_the_chain_of_a_known_certificate_is_checked_again(self) -> None:
        context = fleet().context()
        await self.succeed(fleet().client_context(), context)
        store = context.get_cert_store()
        assert store is not None
        store.set_time(datetime.now(UTC) + timedelta(days=36500))
        error, alert = await self.refuse(fleet().client_context(), context)
        self.assertIn("expired", error.check)
        self.assertEqual(alert, "SSLV3_ALERT_CERTIFICATE_EXPIRED")

    async def test_several_anchors(self) -> None:
        other = TestAuthority()
        both = fleet().path / "both.pem"
        both.write_bytes(certificate_pem(fleet().pki.users) + certificate_pem(other.users))
        files = TLSFiles(fleet().files.certificate_chain, fleet().files.private_key, str(both))
        context = server_context(files, trust_domain=other.trust_domain)
        for credentials in (fleet().pki.user(), other.user()):
            user = fleet().write("of-two", credentials)
            await self.succeed(fleet().client_context(files=user), context)


class ProtocolTests(HandshakeCase):
    """Versions, ciphers, ALPN, sessions."""

    async def test_tls_1_3_only_unless_told(self) -> None:
        error, alert = await self.refuse(fleet().client_context(TLS12), fleet().context("1.3"))
        self.assertEqual((error.check, alert), ("protocol", "TLSV1_ALERT_PROTOCOL_VERSION"))
        self.assertIn("unsupported protocol", error.detail)
        await self.succeed(fleet().client_context(TLS12), fleet().context("1.2"))

    async def test_weak_ciphers_of_tls_1_2_are_refused(self) -> None:
        for ciphers in ("AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256"):
            client = fleet().client_context(TLS12)
            client.set_ciphers(ciphers)
            error, _ = await self.refuse(client, fleet().context())
            self.assertEqual((error.check, error.detail), ("protocol", "no shared cipher"))

    async def test_only_the_strong_groups(self) -> None:
        client = fleet().client_context(TLS12)
        client.set_ecdh_curve("secp521r1")
        error, _ = await self.refuse(client, fleet().context())
        self.assertEqual(error.check, "protocol")
        client.set_ecdh_curve("prime256v1")
        await self.succeed(client, fleet().context())

    async def test_alpn(self) -> None:
        for offered, chosen in (
            ([], None),
            (["http/1.1"], "http/1.1"),
            (["h2", "http/1.1"], "http/1.1"),  # Go's and curl's clients: they fall back
        ):
            client = fleet().client_context()
            if offered:
                client.set_alpn_protocols(offered)
            tls_client, _ = await self.succeed(client, fleet().context())
            self.assertEqual(tls_client.tls.selected_alpn_protocol(), chosen)

    async def test_a_client_of_http_2_alone_is_told_in_the_handshake(self) -> None:
        """RFC 7301 section 3.2: no_application_protocol. It would only send what we cannot read."""
        client = fleet().client_context()
        client.set_alpn_protocols(["h2"])
        error, alert = await self.refuse(client, fleet().context())
        self.assertEqual(error.check, "protocol")
        self.assertIn("NO_APPLICATION_PROTOCOL", alert)
        self.assertIn("h2", error.detail)

    async def test_no_session_is_ever_resumed(self) -> None:
        """A resumed session would not be verified again."""
        for version in (TLS12, TLS13):
            context = fleet().context()
            client_context = fleet().client_context(version)
            client, stream = await self.succeed(client_context, context)
            Recorder(stream)
            stream.write(b"x")
            await self.in_thread(client.recv)  # with TLS 1.3 a session comes after the handshake
            session = client.tls.session
            sock, shaken = self.accept(context)
            second = TLSClient(sock, client_context, session=session)
            await gatherResults([self.in_thread(second.handshake), shaken])
            self.assertFalse(second.tls.session_reused)


class BadPeerTests(HandshakeCase):
    """Peers that do not shake hands as they should."""

    async def test_silence_ends_with_the_timeout(self) -> None:
        sock, shaken = self.accept(fleet().context(), handshake_timeout=0.05)
        error = await self.failure(shaken)
        self.assertEqual(error.check, "timeout")
        self.assertIn(f"from 127.0.0.1:{sock.getsockname()[1]} failed: timeout", str(error))
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(sock.recv(10), b"")

    async def test_slow_loris_ends_with_the_timeout(self) -> None:
        """A byte now and then does not buy time."""
        sock, shaken = self.accept(fleet().context(), handshake_timeout=0.1)
        hello = TLSClient(sock, fleet().client_context()).first_flight()
        sent = 0
        while not shaken.called:
            with contextlib.suppress(ConnectionError):
                sock.sendall(hello[sent : sent + 1])
            sent += 1
            await self.turn(0.005)
        error = await self.failure(shaken)
        self.assertEqual(error.check, "timeout")
        self.assertLess(sent, len(hello))

    async def test_a_handshake_byte_by_byte_is_a_handshake(self) -> None:
        sock, shaken = self.accept(fleet().context())
        client = TLSClient(sock, fleet().client_context())

        def crawl() -> None:
            def send(data: bytes) -> None:
                for position in range(len(data)):
                    sock.sendall(data[position : position + 1])

            client.flush = lambda: send(client._out.read())  # type: ignore[method-assign]
            client.handshake()

        await gatherResults([self.in_thread(crawl), shaken])

    async def test_plain_http(self) -> None:
        sock, shaken = self.accept(fleet().context())
        sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        error = await self.failure(shaken)
        self.assertEqual((error.check, error.detail), ("protocol", "http request"))

    async def test_a_peer_that_leaves(self) -> None:
        sock, shaken = self.accept(fleet().context())
        sock.close()
        error = await self.failure(shaken)
        self.assertEqual((error.check, error.detail), ("disconnected", "the peer closed"))

    async def test_a_client_that_does_not_trust_the_listener(self) -> None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_cert_chain(fleet().user.certificate_chain, fleet().user.private_key)
        error, _ = await self.refuse(client, fleet().context())
        self.assertEqual(error.check, "refused by the peer")
        self.assertIn("unknown ca", error.detail)

    async def test_aborting_fails_the_handshake(self) -> None:
        for method in ("abort", "close", "half_close"):
            sock, shaken = self.accept(fleet().context())
            getattr(self.streams[-1], method)()
            error = await self.failure(shaken)
            self.assertEqual(error.check, "cancelled")
            sock.close()

    async def test_cancelling_closes_the_socket(self) -> None:
        sock, shaken = self.accept(fleet().context())
        shaken.cancel()
        self.failureResultOf(shaken)
        self.assertEqual(self.streams[-1].fileno(), -1)
        sock.close()


class FilesTests(SynchronousTestCase):
    """Errors of files name the file."""

    def refused(self, **changes: str) -> str:
        good = fleet().files
        names = {
            "certificate_chain": good.certificate_chain,
            "private_key": good.private_key,
            "client_ca": good.client_ca,
        }
        with self.assertRaises(TLSFilesError) as caught:
            server_context(TLSFiles(**(names | changes)), trust_domain="x")
        return str(caught.exception)

    def file(self, content: bytes) -> str:
        path = fleet().path / "odd-file.pem"
        path.write_bytes(content)
        return str(path)

    def test_missing(self) -> None:
        for name in ("certificate_chain", "private_key", "client_ca"):
            self.assertEqual(self.refused(**{name: "/no/such"}), "/no/such: No such file or directory")

    def test_not_pem(self) -> None:
        path = self.file(b"rubbish")
        for name in ("certificate_chain", "private_key", "client_ca"):
            self.assertTrue(self.refused(**{name: path}).startswith(path + ": no "), name)

    def test_a_key_of_another_certificate(self) -> None:
        path = self.file(fleet().pki.user().key_pem)
        chain = fleet().files.certificate_chain
        self.assertEqual(
            self.refused(private_key=path), f"{path}: not the key of the first certificate in {chain}"
        )

    def test_a_key_with_a_password(self) -> None:
        path = self.file(
            ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        self.assertIn("has a password", self.refused(private_key=path))

    def test_a_key_that_tls_does_not_know(self) -> None:
        path = self.file(
            dsa.generate_private_key(1024).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self.assertIn("a key of this kind cannot serve TLS", self.refused(private_key=path))

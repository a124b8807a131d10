"""``defenderctl pki`` as its users see it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

from click.testing import CliRunner, Result
from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from controller.cli import pki as command
from controller.pki.custody import load_private_key
from controller.pki.storage import MissingAuthorityError, read_certificate
from defender.contract.identity import subject_of_certificate
from tests.fakes.authority import TestAuthority


class PKITestCase(SynchronousTestCase):
    """Runs the command in a directory of its own, without what the caller's environment says."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.state = self.directory / "state"
        unset = ("FLEET_STATE", "DOCKER_CERT_PATH", "DOCKER_CONFIG", "DEFENDER_PORT", "NO_COLOR")
        self.environment: dict[str, str | None] = dict.fromkeys(unset)
        self.environment["HOME"] = str(self.directory / "home")
        self.environment["FLEET_STATE"] = str(self.state)

    def run_pki(self, *arguments: str, status: int = 0) -> Result:
        result = CliRunner().invoke(command.pki, arguments, env=self.environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.assertEqual(result.exit_code, status, result.output)
        return result

    def refused(self, *arguments: str, status: int = 1) -> str:
        """Run what must fail; return its complaint, which is one line after the usage."""
        result = self.run_pki(*arguments, status=status)
        self.assertEqual(result.stdout, "")
        lines = result.stderr.strip().splitlines()
        self.assertTrue(lines[-1].startswith("Error: "), result.stderr)
        if status == 1:
            self.assertEqual(len(lines), 1)
        return lines[-1]

    def at(self, moment: datetime) -> None:
        """Let the command believe that it is this time."""
        patch = mock.patch.object(command, "_now", return_value=moment)
        patch.start()
        self.addCleanup(patch.stop)

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.state / "pki").iterdir()}


class InitTests(PKITestCase):
    """``pki init``."""

    def test_layout(self) -> None:
        """The files that the reference names, closed to others."""
        self.run_pki("init")
        directory = self.state / "pki"
        self.assertEqual(
            sorted(os.listdir(directory)),
            [
                "fleet-ca.key",
                "fleet-ca.pem",
                "root.key",
                "root.pem",
                "trust.json",
                "user-ca.key",
                "user-ca.pem",
            ],
        )
        self.assertEqual(stat.S_IMODE(directory.stat().st_mode), 0o700)
        for path in directory.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path)
        self.assertEqual(os.listdir(self.state), ["pki"])

    def test_again(self) -> None:
        """A whole authority is kept, and the command says so."""
        self.run_pki("init", "--trust-domain", "corp.example")
        before = self.contents()
        output = self.run_pki("init").output
        self.assertIn("corp.example", output)
        self.assertIn("Nothing was changed", output)
        self.run_pki("init", "--trust-domain", "corp.example")
        self.assertIn("corp.example", self.refused("init", "--trust-domain", "other.example"))
        self.assertEqual(self.contents(), before)

    def test_root_off_line(self) -> None:
        """Without the root's key the authority is still complete."""
        self.run_pki("init")
        (self.state / "pki" / "root.key").unlink()
        self.run_pki("init")
        self.run_pki("issue", "--user", "bruce")

    def test_broken(self) -> None:
        """A broken authority is named and left alone."""
        self.run_pki("init")
        directory = self.state / "pki"
        other = TestAuthority()
        for name, damage in (
            ("user-ca.key", None),
            ("fleet-ca.pem", None),
            ("trust.json", None),
            ("trust.json", b"{"),
            ("trust.json", b'{"trust_domain": 7}'),
            ("user-ca.pem", b"garbage"),
            ("user-ca.pem", other.user().chain_pem),
            ("fleet-ca.key", other.user().key_pem),
        ):
            path = directory / name
            good = path.read_bytes()
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            before = self.contents()
            self.refused("init")
            self.refused("issue", "--user", "bruce")
            self.assertEqual(self.contents(), before)
            path.write_bytes(good)
            path.chmod(0o600)
        self.run_pki("init")

    def test_open_to_others(self) -> None:
        """A key or a directory that others can read is not used."""
        self.run_pki("init")
        (self.state / "pki" / "user-ca.key").chmod(0o640)
        self.assertIn("user-ca.key", self.refused("init"))
        (self.state / "pki" / "user-ca.key").chmod(0o600)
        (self.state / "pki").chmod(0o755)
        self.assertIn("0755", self.refused("init"))

    def test_replace(self) -> None:
        """Only on demand, and the old one is kept aside."""
        self.run_pki("init")
        before = self.contents()
        self.run_pki("init", "--replace")
        self.assertNotEqual(self.contents()["root.pem"], before["root.pem"])
        (aside,) = self.state.glob("pki.replaced-*")
        self.assertEqual((aside / "root.key").read_bytes(), before["root.key"])

    def test_made_by_another_at_once(self) -> None:
        """Of two that make it, one wins and the other finds it whole."""
        self.run_pki("init")
        won = self.contents()
        with mock.patch.object(
            command, "open_authority", side_effect=[MissingAuthorityError(self.state), mock.DEFAULT]
        ) as opened:
            opened.return_value = TestAuthority().authority
            self.assertIn("Nothing was changed", self.run_pki("init").output)
        self.assertEqual(self.contents(), won)
        self.assertEqual(os.listdir(self.state), ["pki"])

    def test_bad_trust_domain(self) -> None:
        """A usage error, before anything is made."""
        self.refused("init", "--trust-domain", "Corp Example", status=2)
        self.assertFalse(self.state.exists())

    def test_unwritable(self) -> None:
        """A state that cannot be made is one line."""
        self.directory.mkdir()
        self.state.write_text("a file")
        self.refused("init", status=2)
        self.environment["FLEET_STATE"] = str(self.state / "below")
        self.refused("init")


class IssueTests(PKITestCase):
    """``pki issue``."""

    def setUp(self) -> None:
        super().setUp()
        self.run_pki("init")

    def test_default_place(self) -> None:
        """STATE/certs/USER with the three files that docker reads, and what to export."""
        output = self.run_pki(
            "issue", "--user", "bruce@example.com", "--group", "Dev team", "--group", "ops"
        ).output
        directory = self.state / "certs" / "bruce@example.com"
        self.assertEqual(sorted(os.listdir(directory)), ["ca.pem", "cert.pem", "key.pem"])
        self.assertEqual(stat.S_IMODE(directory.stat().st_mode), 0o700)
        for path in directory.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path)
        leaf, issuer = x509.load_pem_x509_certificates((directory / "cert.pem").read_bytes())
        leaf.verify_directly_issued_by(issuer)
        issuer.verify_directly_issued_by(read_certificate(directory / "ca.pem"))
        self.assertEqual(load_private_key(directory / "key.pem").public_key(), leaf.public_key())
        subject = subject_of_certificate(leaf, "defender.fleet")
        self.assertEqual((subject.user, subject.groups), ("bruce@example.com", ("Dev team", "ops")))
        self.assertEqual(leaf.not_valid_after_utc - leaf.not_valid_before_utc, timedelta(hours=8, minutes=5))
        self.assertIn(f"export DOCKER_CERT_PATH={directory}\n", output)
        self.assertIn("export DOCKER_TLS_VERIFY=1\n", output)
        self.assertIn(":9998\n", output)

    def test_exports_name_the_server(self) -> None:
        """The host in DOCKER_HOST is one that the server's certificate carries; the port is the setting."""
        self.run_pki("server", "--name", "web1.example.com", "--name", "10.0.0.1")
        self.environment["DEFENDER_PORT"] = "12345"
        output = self.run_pki("issue", "--user", "bruce").output
        self.assertIn("export DOCKER_HOST=tcp://web1.example.com:12345\n", output)

    def test_exports_name_the_port_of_the_settings(self) -> None:
        """A defender of this state is asked for its own port, whatever the environment says."""
        self.environment["DEFENDER_PORT"] = "12345"
        settings = self.state / "defender.toml"
        for text, port in (('tcp = ["127.0.0.1:29998"]', 29998), ("tcp = []", 12345), ("tcp = [", 12345)):
            settings.write_text(f"[listen]\n{text}\n")
            self.assertIn(f":{port}\n", self.run_pki("issue", "--user", "bruce").output, text)

    def test_out(self) -> None:
        """Any directory; one that exists keeps its mode, a path with spaces is quoted for the shell."""
        out = self.directory / "my certificates"
        out.mkdir()
        out.chmod(0o755)
        output = self.run_pki("issue", "--user", "bruce", "--out", str(out)).output
        self.assertIn(f"export DOCKER_CERT_PATH='{out}'\n", output)
        self.assertEqual(stat.S_IMODE(out.stat().st_mode), 0o755)

    def test_install(self) -> None:
        """Where docker looks: DOCKER_CERT_PATH, DOCKER_CONFIG, ~/.docker."""
        self.run_pki("issue", "--user", "bruce", "--install")
        self.assertTrue((self.directory / "home/.docker/key.pem").exists())
        self.environment["DOCKER_CONFIG"] = str(self.directory / "config")
        self.run_pki("issue", "--user", "bruce", "--install")
        self.assertTrue((self.directory / "config/key.pem").exists())
        self.environment["DOCKER_CERT_PATH"] = str(self.directory / "path")
        self.run_pki("issue", "--user", "bruce", "--install")
        self.assertTrue((self.directory / "path/key.pem").exists())
        self.refused("issue", "--user", "bruce", "--install", "--out", "x", status=2)

    def test_renewal(self) -> None:
        """What this authority issued is replaced without asking, by a new key."""
        self.run_pki("issue", "--user", "bruce", "--install")
        before = (self.directory / "home/.docker/key.pem").read_bytes()
        self.run_pki("issue", "--user", "bruce", "--install")
        self.assertNotEqual((self.directory / "home/.docker/key.pem").read_bytes(), before)

    def test_foreign_credentials(self) -> None:
        """Somebody else's credentials are not overwritten, unless told; half a set counts."""
        home = self.directory / "home/.docker"
        other = TestAuthority()
        other.write_user(home)
        for remove in ("", "ca.pem", "cert.pem"):
            if remove:
                (home / remove).unlink()
            before = {path.name: path.read_bytes() for path in home.iterdir()}
            self.assertIn("--force", self.refused("issue", "--user", "bruce", "--install"))
            self.assertEqual({path.name: path.read_bytes() for path in home.iterdir()}, before)
        self.run_pki("issue", "--user", "bruce", "--install", "--force")
        self.assertEqual(
            subject_of_certificate(read_certificate(home / "cert.pem"), "defender.fleet").user, "bruce"
        )

    def test_names_stay_in_their_directory(self) -> None:
        """A user's name is a name, not a path."""
        for user in ("../../escape", "..", ".", "/etc/x"):
            self.run_pki("issue", "--user", user)
        self.assertEqual(len(os.listdir(self.state / "certs")), 4)
        self.assertEqual(sorted(os.listdir(self.state)), ["certs", "pki"])
        for directory in (self.state / "certs").iterdir():
            self.assertTrue((directory / "key.pem").exists())

    def test_times_to_live(self) -> None:
        """30m, 8h, 7d; long ones are warned of, nonsense is a usage error."""
        for text, life in (
            ("30m", timedelta(minutes=30)),
            ("90s", timedelta(seconds=90)),
            ("24h", timedelta(1)),
        ):
            result = self.run_pki("issue", "--user", "bruce", "--ttl", text)
            leaf = read_certificate(self.state / "certs/bruce/cert.pem")
            self.assertEqual(
                leaf.not_valid_after_utc - leaf.not_valid_before_utc, life + timedelta(minutes=5)
            )
            self.assertEqual(result.stderr, "")
        self.assertIn("24h", self.run_pki("issue", "--user", "bruce", "--ttl", "7d").stderr)
        for text in ("", "8", "h", "0h", "-1h", "1.5h", "8H", "1w", "366d", "8h8m", "9" * 30 + "d", "٣h"):
            self.refused("issue", "--user", "bruce", "--ttl", text, status=2)

    def test_cut_life(self) -> None:
        """A life cut by the authority's end is said."""
        end = read_certificate(self.state / "pki/user-ca.pem").not_valid_after_utc
        self.at(end - timedelta(hours=1))
        self.assertIn("cut", self.run_pki("issue", "--user", "bruce").stderr)
        self.at(end)
        self.refused("issue", "--user", "bruce")

    def test_bad_names(self) -> None:
        """Names that no certificate carries."""
        for user in ("", "a\nb", "anonymous", "uid:7"):
            self.refused("issue", "--user", user, status=2)
        self.refused("issue", "--user", "u" * 65)
        self.refused("issue", "--user", "bruce", "--group", "a\x00")
        self.refused("issue", "--user", "bruce", *(f"--group=g{number}" for number in range(257)))
        self.assertFalse((self.state / "certs").exists())
        self.refused("issue", status=2)

    def test_without_authority(self) -> None:
        """The complaint says what to do."""
        shutil.rmtree(self.state)
        self.assertIn("pki init", self.refused("issue", "--user", "bruce"))
        self.assertIn("pki init", self.refused("server"))


class ServerTests(PKITestCase):
    """``pki server``."""

    def setUp(self) -> None:
        super().setUp()
        self.run_pki("init")
        self.chain = self.state / "tls/server.pem"

    def issued(self, *arguments: str) -> bool:
        before = self.chain.read_bytes() if self.chain.exists() else b""
        output = self.run_pki("server", *arguments).output
        changed = self.chain.read_bytes() != before
        self.assertEqual("still valid" in output, not changed, output)
        return changed

    def test_files(self) -> None:
        """The chain, its key, and the user intermediate as the trust set for clients."""
        self.assertTrue(self.issued())
        directory = self.state / "tls"
        self.assertEqual(sorted(os.listdir(directory)), ["client-ca.pem", "server.key", "server.pem"])
        self.assertEqual(stat.S_IMODE(directory.stat().st_mode), 0o700)
        leaf, issuer = x509.load_pem_x509_certificates(self.chain.read_bytes())
        leaf.verify_directly_issued_by(issuer)
        self.assertEqual(load_private_key(directory / "server.key").public_key(), leaf.public_key())
        self.assertEqual(
            (directory / "client-ca.pem").read_bytes(), (self.state / "pki/user-ca.pem").read_bytes()
        )
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertIn("localhost", names.get_values_for_type(x509.DNSName))

    def test_kept_while_it_serves(self) -> None:
        """Issued once; again for other names, another defender, a lost key, another authority."""
        self.assertTrue(self.issued())
        self.assertFalse(self.issued())
        self.assertTrue(self.issued("--name", "web1"))
        self.assertFalse(self.issued("--name", "WEB1"))
        self.assertTrue(self.issued("--name", "web1", "--name", "10.0.0.1"))
        self.assertTrue(self.issued("--name", "web1"))
        self.assertTrue(self.issued("--name", "web1", "--defender", "front"))
        (self.state / "tls/server.key").unlink()
        self.assertTrue(self.issued("--name", "web1", "--defender", "front"))
        self.chain.write_text("garbage")
        self.assertTrue(self.issued("--name", "web1", "--defender", "front"))
        self.run_pki("init", "--replace")
        self.assertTrue(self.issued("--name", "web1", "--defender", "front"))
        self.assertFalse(self.issued("--name", "web1", "--defender", "front"))

    def test_default_names_may_shrink(self) -> None:
        """An address that went away does not make a new certificate, one that came does."""
        with mock.patch.object(command, "local_names", return_value=("web1", "10.0.0.1")):
            self.assertTrue(self.issued())
        with mock.patch.object(command, "local_names", return_value=("web1",)):
            self.assertFalse(self.issued())
        with mock.patch.object(command, "local_names", return_value=("web1", "10.0.0.2")):
            self.assertTrue(self.issued())

    def test_renewed_in_the_last_third(self) -> None:
        """Two thirds of its life are served; an expired one is replaced."""
        now = datetime.now(UTC)
        self.at(now)
        self.assertTrue(self.issued("--ttl", "30d"))
        self.at(now + timedelta(days=19))
        self.assertFalse(self.issued("--ttl", "30d"))
        self.at(now + timedelta(days=21))
        self.assertTrue(self.issued("--ttl", "30d"))
        self.at(now + timedelta(days=100))
        self.assertIn("expired", self.run_pki("server").output)

    def test_trust_set_is_restored(self) -> None:
        """A changed client-ca.pem is set right although the certificate is kept."""
        self.issued()
        path = self.state / "tls/client-ca.pem"
        path.write_bytes((self.state / "pki/root.pem").read_bytes())
        self.assertFalse(self.issued())
        self.assertEqual(path.read_bytes(), (self.state / "pki/user-ca.pem").read_bytes())

    def test_bad_names(self) -> None:
        """Names that no certificate carries."""
        for name in ("*.example.com", "0.0.0.0", "a b", ""):
            self.refused("server", "--name", name)
        self.issued()
        self.refused("server", "--name", "*.example.com")


class ShowTests(PKITestCase):
    """``pki show``."""

    def setUp(self) -> None:
        super().setUp()
        self.run_pki("init", "--trust-domain", "corp.example")

    def write(self, content: bytes) -> str:
        path = self.directory / "shown.pem"
        path.write_bytes(content)
        return str(path)

    def shown(self, *arguments: str, status: int = 0) -> dict[str, object]:
        document = json.loads(self.run_pki("show", "--json", *arguments, status=status).output)
        assert isinstance(document, dict)
        return document

    def test_accepted(self) -> None:
        """What the defender reads, and that it would accept it."""
        self.run_pki("issue", "--user", "bruce", "--group", "ops")
        path = str(self.state / "certs/bruce/cert.pem")
        output = self.run_pki("show", path).output
        for text in ("bruce", "ops", "spiffe://corp.example/user/", "accepted", "(checked)"):
            self.assertIn(text, output)
        document = self.shown(path)
        self.assertEqual((document["user"], document["groups"]), ("bruce", ["ops"]))
        self.assertEqual((document["accepted"], document["issuer_checked"]), (True, True))

    def test_times(self) -> None:
        """Expired and not yet valid are failed checks."""
        self.run_pki("issue", "--user", "bruce")
        path = str(self.state / "certs/bruce/cert.pem")
        now = datetime.now(UTC)
        for moment, words in (
            (now + timedelta(hours=9), "expired"),
            (now - timedelta(hours=1), "not valid yet"),
        ):
            self.at(moment)
            self.assertIn(words, self.run_pki("show", path, status=1).output)

    def test_refused(self) -> None:
        """Every failed check is named; another authority's certificate fails that of its issuer."""
        pki = TestAuthority("corp.example")
        document = self.shown(self.write(pki.odd("both-ekus").chain_pem), status=1)
        failed = document["failed"]
        assert isinstance(failed, list)
        self.assertEqual([problem["check"] for problem in failed], ["eku", "issuer"])
        document = self.shown(self.write(pki.odd("groups-garbage").chain_pem), status=1)
        self.assertIsNone(document["groups"])

    def test_without_authority(self) -> None:
        """On a user's own machine only the issuer stays unchecked."""
        path = self.write(TestAuthority("elsewhere.example").user().chain_pem)
        self.environment["FLEET_STATE"] = str(self.directory / "nothing")
        self.assertIn("not checked", self.run_pki("show", path).output)
        document = self.shown("--trust-domain", "corp.example", path, status=1)
        failed = document["failed"]
        assert isinstance(failed, list)
        self.assertEqual([problem["check"] for problem in failed], ["trust-domain"])

    def test_hostile_names(self) -> None:
        """Nothing in a certificate moves the cursor."""
        output = self.run_pki(
            "show", self.write(TestAuthority().odd("control-cn").chain_pem), status=1
        ).output
        self.assertNotIn("\r", output)

    def test_no_certificate(self) -> None:
        """A file that is none, and none at all."""
        self.refused("show", self.write(b"garbage"))
        self.refused("show", str(self.directory / "missing"), status=2)


class HelpTests(PKITestCase):
    """Each command explains itself, with an example."""

    def test_examples(self) -> None:
        """--help ends with lines to copy."""
        for name in ("init", "issue", "server", "show"):
            self.assertIn(f"  defenderctl pki {name}", self.run_pki(name, "--help").output)

"""The folder of sinks: what it may say, and every mistake by its key."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.sinks.description import KEYS, Files, SinkFileError, describe_sink
from controller.sinks.folder import MAX_FILE, read_sinks
from controller.sinks.targets import HecTarget, SyslogTarget, WebhookTarget
from tests.layers import ROOT

SECRET = "whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
TOKEN = "0a1b2c3d-0000-1111-2222-333344445555"


class FolderTests(SynchronousTestCase):
    """Files as an administrator writes them."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.write("hook.secret", SECRET + "\n", 0o600)
        self.write("token", TOKEN + "\n", 0o640)
        self.write("ca.pem", "-- an authority --")

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def refused(self, text: str, name: str = "siem.toml") -> str:
        self.write(name, text)
        with self.assertRaises(SinkFileError) as raised:
            read_sinks(self.folder)
        for secret in (SECRET, TOKEN):
            self.assertNotIn(secret, str(raised.exception))
        return str(raised.exception)

    def test_no_folder_no_sinks(self) -> None:
        self.assertEqual(read_sinks(self.folder / "none"), [])
        self.assertEqual(read_sinks(self.folder), [])

    def test_a_sink_of_each_kind(self) -> None:
        self.write("a-siem.toml", 'kind = "syslog"\nhost = "siem.example.com"\nfacility = 4\nca = "ca.pem"')
        self.write(
            "b-hook.toml", 'kind = "webhook"\nurl = "https://h.example.com/x"\nsecret_file = "hook.secret"'
        )
        self.write(
            "c-splunk.toml",
            'kind = "hec"\nurl = "https://s.example.com:8088"\ntoken_file = "token"\nindex = "audit"',
        )
        siem, hook, splunk = read_sinks(self.folder)
        assert isinstance(siem, SyslogTarget)
        assert isinstance(hook, WebhookTarget)
        assert isinstance(splunk, HecTarget)
        self.assertEqual(
            (siem.name, siem.host, siem.port, siem.format.facility), ("a-siem", "siem.example.com", 6514, 4)
        )
        self.assertEqual((siem.tls.ca, hook.tls.ca), (b"-- an authority --", None))
        self.assertEqual(hook.secret, SECRET)
        self.assertEqual((splunk.format.token, splunk.format.index), (TOKEN, "audit"))

    def test_every_mistake_is_named_at_once(self) -> None:
        text = self.refused('kind = "syslog"\nhots = "x"\nport = "6514"\nca = "missing.pem"')
        for words in (
            "hots: there is no such key (did you mean host?)",
            "host: it is required",
            "port: it is a whole number",
            "ca: ",
            "no such file or directory",
        ):
            self.assertIn(words, text)

    def test_a_kind_that_is_none(self) -> None:
        for text in ("", 'kind = "udp"', "kind = 5"):
            self.assertIn("kind: it is one of syslog, webhook and hec", self.refused(text))

    def test_what_is_no_toml(self) -> None:
        self.assertIn("this is not TOML", self.refused("kind ="))

    def test_a_secret_that_all_may_read_is_refused(self) -> None:
        (self.folder / "token").chmod(0o644)
        text = self.refused('kind = "hec"\nurl = "https://s.example.com"\ntoken_file = "token"')
        self.assertIn("everybody may read this secret; run chmod o=", text)

    def test_a_secret_that_is_none_is_not_repeated(self) -> None:
        self.write("hook.secret", "hunter2", 0o600)
        text = self.refused('kind = "webhook"\nurl = "https://h.example.com"\nsecret_file = "hook.secret"')
        self.assertIn("a webhook secret is whsec_", text)
        self.assertNotIn("hunter2", text)

    def test_values_that_cannot_be(self) -> None:
        for text, words in (
            ('kind = "syslog"\nhost = "a b"', "host"),
            ('kind = "syslog"\nhost = "x"\nfacility = 99', "facility"),
            ('kind = "syslog"\nhost = "x"\nport = 0', "port"),
            ('kind = "syslog"\nhost = "x"\ncertificate = "ca.pem"', "certificate and key go together"),
            ('kind = "webhook"\nurl = "http://h.example.com"\nsecret_file = "hook.secret"', "https"),
        ):
            self.assertIn(words, self.refused(text))

    def test_a_name_that_cannot_be(self) -> None:
        self.assertIn("name is 1 to 64", self.refused('kind = "syslog"\nhost = "x"', "Bad Name.toml"))

    def test_files_that_are_none_or_too_long(self) -> None:
        (self.folder / "pipe").mkdir()
        self.assertIn("this is not a file", self.refused('kind = "syslog"\nhost = "x"\nca = "pipe"'))
        self.write("long", "x" * (MAX_FILE + 1))
        self.assertIn("longer than", self.refused('kind = "syslog"\nhost = "x"\nca = "long"'))

    def test_no_repr_shows_a_secret(self) -> None:
        self.write(
            "hook.toml", 'kind = "webhook"\nurl = "https://h.example.com/"\nsecret_file = "hook.secret"'
        )
        self.write("hec.toml", 'kind = "hec"\nurl = "https://s.example.com"\ntoken_file = "token"')
        shown = repr(read_sinks(self.folder))
        self.assertNotIn(SECRET, shown)
        self.assertNotIn(TOKEN, shown)

    @given(
        st.sampled_from(sorted(KEYS)),
        st.dictionaries(
            st.sampled_from(sorted({key for keys in KEYS.values() for key in keys})),
            st.sampled_from(['"x"', '""', "7", "-1", "true", "[]", '"https://x.example.com/"', '"\\u0000"']),
        ),
    )
    def test_any_description_is_a_sink_or_a_complaint(self, kind: str, values: dict[str, str]) -> None:
        text = f'kind = "{kind}"\n' + "".join(f"{key} = {value}\n" for key, value in values.items())
        try:
            describe_sink("siem", text, "siem.toml", Files(lambda name: b"", lambda name: SECRET.encode()))
        except SinkFileError as error:
            self.assertTrue(error.problems)


class PageTests(SynchronousTestCase):
    """What readers may copy."""

    def test_every_example_of_the_page_is_a_sink(self) -> None:
        page = (ROOT / "docs" / "how-to" / "send-the-audit-trail-to-a-siem.md").read_text("utf-8")
        secrets = {"hook.secret": SECRET.encode(), "splunk.token": TOKEN.encode()}
        files = Files(lambda name: b"-- an authority --", lambda name: secrets[name])
        found = [
            describe_sink("siem", text, "page", files)
            for text in re.findall(r"^```ini\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        ]
        self.assertEqual([type(each) for each in found], [SyslogTarget, WebhookTarget, HecTarget])

"""Settings: what a file may say, and what a person is told when it says something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings, strategies
from twisted.trial.unittest import SynchronousTestCase

from defender.settings import (
    Settings,
    SettingsError,
    changed,
    describe,
    load_settings,
    read_settings,
    table_meaning,
)

BASE = Path("/etc/defender")
STATE = '[defender]\nstate = "/var/lib/defender"\n'


def read(text: str, host_name: str = "web1") -> Settings:
    return read_settings(text, source="defender.toml", base=BASE, host_name=host_name)


class Defaults(SynchronousTestCase):
    def test_a_state_directory_is_all_that_is_needed(self) -> None:
        settings = read(STATE)
        self.assertEqual(settings.defender.name, "web1")
        self.assertEqual(settings.defender.trust_domain, "defender.fleet")
        self.assertEqual(settings.engine.address, "unix:///var/run/docker.sock")
        self.assertEqual(settings.engine.socket, "/var/run/docker.sock")
        self.assertEqual(settings.engine.response_timeout, 60.0)
        self.assertEqual(settings.engine.action_timeout, 3600.0)
        self.assertEqual(settings.listen.mode, "tcp")
        self.assertEqual(settings.listen.tcp, ("0.0.0.0:9998",))
        self.assertEqual(settings.listen.unix, ("/var/lib/defender/docker.sock",))
        self.assertEqual(settings.listen.unix_mode, 0o660)
        self.assertEqual(settings.tls.key, Path("/var/lib/defender/tls/server.key"))
        self.assertEqual(settings.tls.minimum, "1.3")
        self.assertEqual(settings.policy.file, Path("/var/lib/defender/policy.yaml"))
        self.assertEqual(settings.policy.prefix, "[Defender]")
        self.assertEqual(settings.audit.directory, Path("/var/lib/defender/audit"))
        self.assertEqual(settings.audit.max_bytes, 2**30)
        self.assertEqual((settings.audit.durability, settings.audit.when_full), ("strict", "rotate"))
        self.assertEqual(settings.limits.head_bytes, 65536)
        self.assertEqual(settings.control.socket, Path("/var/lib/defender/control.sock"))
        self.assertEqual(settings.source, "defender.toml")

    def test_relative_paths_start_at_the_settings_file(self) -> None:
        settings = read('[defender]\nstate = "state"\n[tls]\nkey = "keys/../k.pem"\n')
        self.assertEqual(settings.defender.state, BASE / "state")
        self.assertEqual(settings.policy.file, BASE / "state" / "policy.yaml")
        self.assertEqual(settings.tls.key, BASE / "keys/../k.pem")

    def test_given_values_are_taken(self) -> None:
        settings = read(
            STATE
            + 'name = "db-7"\n[engine]\nresponse_timeout = 3\n[listen]\nmode = "unix+tcp"\n'
            + 'tcp = ["[::1]:0", "10.0.0.1:2376"]\nunix = ["a.sock", "unix:///run/b.sock", "fd://d"]\n'
            + 'unix_mode = "600"\n'
        )
        self.assertEqual(settings.defender.name, "db-7")
        self.assertIsInstance(settings.engine.response_timeout, float)
        self.assertEqual(settings.listen.tcp, ("[::1]:0", "10.0.0.1:2376"))
        self.assertEqual(settings.listen.unix, (f"{BASE}/a.sock", "/run/b.sock", "fd://d"))
        self.assertEqual(settings.listen.unix_mode, 0o600)


class Problems(SynchronousTestCase):
    def refused(self, text: str, host_name: str = "web1") -> list[str]:
        with self.assertRaises(SettingsError) as caught:
            read(text, host_name)
        return str(caught.exception).split("\n")

    def test_unknown_table_and_key_name_line_and_nearest(self) -> None:
        self.assertEqual(
            self.refused(STATE + '[lisen]\nmode = "tcp"\n\n[engine]\n  adress = "x"\n'),
            [
                "defender.toml:3:1: lisen: unknown table (did you mean 'listen'?)",
                "defender.toml:7:3: engine.adress: unknown setting (did you mean 'address'?)",
            ],
        )

    def test_a_key_of_another_table_is_sent_there(self) -> None:
        self.assertEqual(
            self.refused(STATE + "[listen]\nidle_timeout = 3\n"),
            ["defender.toml:4:1: listen.idle_timeout: unknown setting (it belongs in [limits])"],
        )

    def test_a_setting_outside_of_a_table(self) -> None:
        self.assertEqual(
            self.refused('mode = "tcp"\n' + STATE),
            ["defender.toml:1:1: mode: unknown setting outside of a table"],
        )

    def test_every_problem_is_reported_in_the_order_of_the_file(self) -> None:
        lines = self.refused(
            "[limits]\nheaders = 2\nlinger = true\n[engine]\npool = 1.5\nconnect_timeout = nan\n"
            '[audit]\nmax_bytes = "8"\n[listen]\nmode = 1\n'
        )
        self.assertEqual(
            lines,
            [
                "defender.toml:1:1: defender.state: is required",
                "defender.toml:2:1: limits.headers: 2 is out of range: 8 to 10000",
                "defender.toml:3:1: limits.linger: must be a number of seconds, not a boolean",
                "defender.toml:5:1: engine.pool: must be a whole number, not a number",
                "defender.toml:6:1: engine.connect_timeout: nan is out of range: 0.1 to 300 seconds",
                "defender.toml:8:1: audit.max_bytes: must be a whole number, not a string",
                "defender.toml:10:1: listen.mode: must be a string in quotes, not a whole number",
            ],
        )

    def test_wrong_values(self) -> None:
        for table, line, words in (
            ("listen", 'mode = "both"', "'both' is not one of none, unix, tcp, unix+tcp"),
            ("listen", 'tcp = "0.0.0.0:1"', "must be a list in square brackets, not a string"),
            ("listen", 'tcp = ["localhost:9998"]', "a host name is not looked up; write an IP address"),
            ("listen", 'tcp = ["0.0.0.0:65536"]', "'65536' is not a port (0 to 65535)"),
            ("listen", 'tcp = ["::1:9998"]', "write an IPv6 address in brackets"),
            ("listen", 'tcp = ["[127.0.0.1]:9998"]', "an IPv4 address stands without brackets"),
            ("listen", 'tcp = ["0.0.0.0:1", "0.0.0.0:1"]', "'0.0.0.0:1' is listed twice"),
            ("listen", 'tcp = ["fd://a b"]', "write fd://NAME"),
            ("listen", 'unix = ["tcp://0.0.0.0:1"]', "a TCP address where a unix socket is expected"),
            ("listen", "tcp = []", "must not be empty in mode 'tcp'"),
            ("listen", "unix_mode = 660", "must be a string in quotes, not a whole number"),
            ("listen", 'unix_mode = "0888"', "'0888' is not an octal file mode such as \"0660\""),
            ("listen", 'unix_mode = "4755"', "is not an octal file mode"),
            ("engine", 'address = "tcp://10.0.0.1:2375"', "only an Engine on a unix socket is supported"),
            ("engine", 'address = "unix://docker.sock"', "is not unix:// and an absolute path"),
            ("engine", f'address = "unix:///{"a" * 120}"', "longer than 107 bytes"),
            ("engine", "pool = 4096", "4096 is more than engine.max_connections (512)"),
            ("tls", 'minimum = "1.1"', "'1.1' is not one of 1.3, 1.2"),
            ("tls", 'key = ""', "must not be empty"),
            ("tls", 'key = "~/key.pem"', "`~` is not expanded"),
            ("tls", "key = 2026-11-21", "must be a string in quotes, not a date or time"),
            ("policy", r'prefix = "a\u001b[31m"', "must not contain control characters"),
            ("control", 'socket = "/var/run/docker.sock"', "is the Engine's own socket (engine.address)"),
            ("control", 'socket = "/var/lib/defender/docker.sock"', "is also in listen.unix"),
            ("control", f'socket = "/{"s" * 107}"', "is longer than 107 bytes"),
            ("listen", 'unix = ["/var/run/docker.sock"]', "is the Engine's own socket"),
        ):
            with self.subTest(line=line):
                key = line.split(" ")[0]
                [problem] = self.refused(f"{STATE}\n[{table}]\n{line}\n")
                self.assertTrue(problem.startswith(f"defender.toml:5:1: {table}.{key}: "), problem)
                self.assertIn(words, problem)

    def test_a_name_cannot_steer_the_terminal(self) -> None:
        self.assertEqual(
            self.refused(STATE + '"\\u001b[2J" = 1\n'),
            ["defender.toml:1:1: defender.\\x1b[2J: unknown setting"],
        )

    def test_a_table_that_is_a_value(self) -> None:
        self.assertEqual(
            self.refused('listen = "tcp"\n' + STATE),
            ["defender.toml:1:1: listen: must be a table, [listen], not a string"],
        )

    def test_text_that_is_not_toml_names_its_place(self) -> None:
        self.assertEqual(
            self.refused("[defender\n")[0].split(": ")[:2], ["defender.toml:1:10", "is not TOML"]
        )
        self.assertIn("defender.toml:2:7: is not TOML", self.refused("[audit]\n[audit]\n")[0])
        self.assertIn("defender.toml:2:1: is not TOML", self.refused("a = [\n")[0])

    def test_a_host_without_a_usable_name(self) -> None:
        self.assertEqual(
            self.refused(STATE, host_name=""),
            ["defender.toml:1:1: defender.name: is not set, and the host's own name '' cannot be used"],
        )

    def test_problems_in_dotted_and_inline_keys_find_their_line(self) -> None:
        self.assertEqual(
            self.refused(STATE + '[policy]\nprefix = """\npool = "x"\n"""\n[engine]\n"pool" = -1\n'),
            [
                "defender.toml:4:1: policy.prefix: must not contain control characters",
                "defender.toml:8:1: engine.pool: -1 is out of range: 0 to 4096",
            ],
        )
        self.assertEqual(
            self.refused('defender.state = "/s"\nengine = {pool = -1}\naudit.segment_bytes = 0\n'),
            [
                "defender.toml:2:1: engine.pool: -1 is out of range: 0 to 4096",
                "defender.toml:3:1: audit.segment_bytes: 0 is out of range: 65536 to 268435456",
            ],
        )

    @settings(max_examples=200, deadline=None)
    @given(strategies.text(strategies.sampled_from("[]=\"'.#\\\n \tadefstn_-0123{}é\x1b,"), max_size=120))
    def test_any_text_gives_settings_or_problems(self, text: str) -> None:
        try:
            read(text)
        except SettingsError as error:
            self.assertTrue(error.problems)
            self.assertNotIn("\x1b", str(error))


class Files(SynchronousTestCase):
    def directory(self) -> Path:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        return Path(directory.name)

    def test_a_file_is_read_and_named(self) -> None:
        path = self.directory()
        file = path / "defender.toml"
        file.write_text('[defender]\nstate = "state"\n')
        settings = load_settings(file, "web1")
        self.assertEqual(settings.source, str(file))
        self.assertEqual(settings.defender.state, path / "state")

    def test_the_host_gives_its_short_name(self) -> None:
        path = self.directory() / "defender.toml"
        path.write_text(STATE)
        self.patch(__import__("socket"), "gethostname", lambda: "web1.example.com")
        self.assertEqual(load_settings(path).defender.name, "web1")

    def test_a_file_that_cannot_be_read(self) -> None:
        with self.assertRaises(SettingsError) as caught:
            load_settings("/nonexistent/defender.toml", "web1")
        self.assertEqual(
            str(caught.exception), "/nonexistent/defender.toml: cannot be read: No such file or directory"
        )

    def test_a_file_that_is_not_text(self) -> None:
        path = self.directory() / "defender.toml"
        path.write_bytes(b"[defender]\nstate = '\xff'\n")
        with self.assertRaises(SettingsError) as caught:
            load_settings(path, "web1")
        self.assertEqual(str(caught.exception), f"{path}:2:1: is not UTF-8 text")


class Change(SynchronousTestCase):
    def test_equal_settings_have_no_changes(self) -> None:
        other = dataclasses.replace(read(STATE), source="elsewhere.toml")
        self.assertFalse(changed(read(STATE), other))

    def test_changes_name_what_needs_a_restart(self) -> None:
        new = read('[defender]\nstate = "/srv"\n[listen]\nmode = "unix"\n[policy]\nprefix = "no"\n')
        changes = changed(read(STATE), new)
        self.assertTrue(changes)
        self.assertIn("listen.mode", changes.live)
        self.assertIn("policy.prefix", changes.live)
        self.assertIn("defender.state", changes.fixed)
        self.assertIn("audit.directory", changes.fixed)
        self.assertNotIn("listen.mode", changes.fixed)
        self.assertEqual(set(changes.keys), set(changes.fixed) | set(changes.live))


class Description(SynchronousTestCase):
    def test_every_setting_is_described(self) -> None:
        tables = {field.name for field in dataclasses.fields(Settings)} - {"source"}
        self.assertEqual({setting.table for setting in describe()}, tables)
        for setting in describe():
            self.assertTrue(setting.meaning.endswith("."), setting)
            self.assertTrue(setting.type, setting)
            self.assertEqual(setting.default == "", setting.key == "state", setting)
            self.assertTrue(table_meaning(setting.table).endswith("."))

    def test_the_printed_defaults_are_the_defaults(self) -> None:
        text = "".join(
            f"{setting.table}.{setting.key} = {setting.default.replace('STATE', '/var/lib/defender')}\n"
            for setting in describe()
            if setting.default.startswith(('"', "[")) or setting.default[:1].isdigit()
        )
        self.assertEqual(read('defender.state = "/var/lib/defender"\n' + text), read(STATE))

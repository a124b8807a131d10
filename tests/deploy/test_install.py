"""The installer: fresh hosts, second runs, upgrades good and bad, joining, uninstalling.

The program is a stub that does in an instant what a defender does; `test_install_real` installs the real one.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from controller.api.installer import installer
from deploy.choices import ROOT
from tests.deploy.install_host import FLEET, SCRIPT, TOKEN, InstallHost, account_to_itself, stub_wheel


class Originals:
    """The host that every test has a copy of, and the wheels; made once, since a virtual environment takes
    seconds."""

    host: InstallHost
    wheels: Path


def setUpModule() -> None:  # noqa: N802 - unittest's name
    """Make a host with versions 1.0, in use and not started, and 1.1."""
    Originals.wheels = Path(tempfile.mkdtemp(prefix="dfleet-wheels-"))
    Originals.wheels.chmod(0o755)
    Originals.host = InstallHost()
    for version in ("1.0", "1.1"):
        stub_wheel(Originals.wheels, version)
    for version in ("1.0", "1.1", "1.0"):
        done = Originals.host.install("--from", str(Originals.wheels), "--version", version, "--no-start")
        assert done.returncode == 0, done.stdout
    Originals.host.calls()


def tearDownModule() -> None:  # noqa: N802 - unittest's name
    """Remove them."""
    Originals.host.remove()
    shutil.rmtree(Originals.wheels)


class InstallCase(SynchronousTestCase):
    """Each test has a host of its own, with versions 1.0, in use and not started, and 1.1."""

    def setUp(self) -> None:
        self.wheels = Originals.wheels
        self.host = self.copy()

    def copy(self) -> InstallHost:
        host = InstallHost(Originals.host)
        self.addCleanup(host.remove)
        return host

    def forget_everything(self) -> None:
        """Make the host one that no defender was ever on, but keep the programs."""
        shutil.rmtree(self.host.path("/etc/defender"))
        self.host.path("/opt/defender-fleet/current").unlink()
        self.host.path("/etc/systemd/system/defender.service").unlink()

    def install(self, *arguments: str, code: int = 0, given: str = "") -> str:
        """Run the installer on our wheels; return what it wrote."""
        done = self.host.install("--from", str(self.wheels), *arguments, given=given)
        self.assertEqual(done.returncode, code, done.stdout)
        self.assertNotIn(TOKEN.split(".")[2], done.stdout)
        return done.stdout

    def behave(self, version: str, how: str) -> None:
        self.host.path(f"/run/behavior-{version}").write_text(how)

    def current(self) -> str:
        return str(self.host.path("/opt/defender-fleet/current").readlink())

    def text(self, path: str) -> str:
        return self.host.path(path).read_text()

    def is_running(self) -> bool:
        return self.host.run("systemctl", "is-active").returncode == 0


class InstallTests(InstallCase):
    """A host without a controller."""

    def test_what_is_there_afterwards(self) -> None:
        said = self.install("--version", "1.0")
        self.assertIn("Version 1.0 runs and does well", said)
        self.assertIn("denies everything until there is a policy", said)
        asked = [call.split()[0] for call in self.host.calls()]
        self.assertEqual(asked, ["daemon-reload", "enable", "is-active", "restart"])
        self.assertTrue(self.is_running())
        self.assertEqual(
            self.text("/etc/systemd/system/defender.service"),
            (ROOT / "deploy/systemd/defender.service").read_text("utf-8"),
        )
        self.assertEqual(self.current(), "1.0")
        self.assertEqual(
            str(self.host.path("/usr/local/bin/defenderctl").readlink()),
            "/opt/defender-fleet/current/bin/defenderctl",
        )
        self.assertIn('unix_group = "docker"', self.text("/etc/defender/defender.toml"))
        self.assertRegex(self.text("/etc/passwd"), r"(?m)^defender:.*:/var/lib/defender:\S*(nologin|false)$")
        self.assertEqual(self.host.path("/etc/defender").stat().st_mode & 0o777, 0o750)
        self.assertEqual(self.host.path("/etc/defender/defender.toml").stat().st_mode & 0o777, 0o640)

    def test_nobody_but_root_can_change_the_program(self) -> None:
        loose = [
            str(path)
            for path in self.host.path("/opt/defender-fleet").rglob("*")
            if not path.is_symlink() and (path.stat().st_uid != 0 or path.stat().st_mode & 0o022)
        ]
        self.assertEqual(loose, [])

    def test_a_second_run_changes_nothing(self) -> None:
        self.install("--version", "1.0")
        before = self.host.everything()
        self.host.calls()
        said = self.install("--version", "1.0")
        self.assertIn("nothing has changed for it", said)
        self.assertEqual(self.host.everything(), before)
        self.assertEqual([call for call in self.host.calls() if call.startswith("restart")], [])

    def test_settings_are_written_as_asked_and_never_overwritten(self) -> None:
        self.forget_everything()
        policy = self.host.path("/root.yaml")
        policy.write_text("schema: 1\nrules: []\n")
        self.install(
            *("--version", "1.0", "--name", "web1", "--listen", "none"),
            *("--engine=unix:///run/docker-engine/docker.sock", "--policy", str(policy)),
        )
        settings = self.text("/etc/defender/defender.toml")
        for line in ('name = "web1"', 'mode = "none"', 'address = "unix:///run/docker-engine/docker.sock"'):
            self.assertIn(line, settings)
        self.assertEqual(self.text("/etc/defender/policy.yaml"), policy.read_text())
        said = self.install("--version", "1.0", "--name", "web2")
        self.assertIn("stay as they are", said)
        self.assertIn("change nothing; edit the file", said)
        self.assertEqual(self.text("/etc/defender/defender.toml"), settings)
        policy.write_text("schema: 1\nrules: [] # mine\n")
        said = self.install("--version", "1.0", "--policy", str(policy), code=1)
        self.assertIn("another policy in /etc/defender/policy.yaml", said)

    def test_host_without_the_group_of_clients(self) -> None:
        group = self.host.path("/etc/group")
        lines = [line for line in group.read_text().splitlines(True) if not line.startswith("docker:")]
        group.write_text("".join(lines))
        shutil.rmtree(self.host.path("/etc/defender"))
        said = self.install("--version", "1.0")
        self.assertIn("no group docker", said)
        dropin = "/etc/systemd/system/defender.service.d/10-install.conf"
        self.assertEqual(self.text(dropin), "[Service]\nSupplementaryGroups=\n")
        self.assertNotIn("unix_group", self.text("/etc/defender/defender.toml"))
        group.write_text("".join(lines) + "docker:x:3999:\n")
        self.install("--version", "1.0")
        self.assertFalse(self.host.path(dropin).exists())

    def test_somebody_elses_command_stays(self) -> None:
        command = self.host.path("/usr/local/bin/defenderctl")
        command.unlink()
        command.write_text("theirs")
        self.assertIn("somebody else's", self.install("--version", "1.0"))
        self.assertEqual(command.read_text(), "theirs")


class UpgradeTests(InstallCase):
    """Another version beside the one that runs."""

    def setUp(self) -> None:
        super().setUp()
        self.install("--version", "1.0")
        self.host.calls()

    def test_a_good_one_takes_over(self) -> None:
        said = self.install()
        self.assertIn("Version 1.1 runs and does well", said)
        self.assertEqual(self.current(), "1.1")
        self.assertEqual(self.host.calls().count("restart defender.service"), 1)
        self.assertTrue(self.host.path("/opt/defender-fleet/1.0/installed").exists(), "to go back to")
        self.install("--version", "1.0")
        self.assertEqual(self.current(), "1.0")

    def test_a_bad_one_is_taken_back(self) -> None:
        unit = self.host.path("/etc/systemd/system/defender.service")
        unit.write_text(unit.read_text() + "# of version 1.0\n")
        for how, why in (
            ("dies", "it did not start"),
            ("closed", "its listener mode is none and should be unix: permission denied"),
            ("policy", "it refuses the policy that was good before: policy.yaml:1:1: unknown key"),
        ):
            self.behave("1.1", how)
            said = self.install(code=1)
            self.assertIn(f"version 1.1 was not installed: {why}", said)
            self.assertIn("Version 1.0 runs again", said)
            self.assertEqual(self.current(), "1.0")
            self.assertIn("# of version 1.0", unit.read_text(), "its unit is back, too")
            self.assertTrue(self.is_running())

    def test_when_neither_does_well_that_is_said(self) -> None:
        self.behave("1.0", "dies")
        self.behave("1.1", "dies")
        said = self.install(code=1)
        self.assertIn("Version 1.0 does not run either: it does not answer: no defender answers", said)

    def test_settings_that_it_cannot_use_stop_it_before_the_service(self) -> None:
        settings = self.host.path("/etc/defender/defender.toml")
        settings.write_text("refused\n")
        before = self.host.everything()
        said = self.install(code=1)
        self.assertIn("defender.toml:1:1: refused: unknown key", said)
        self.assertIn("the service was not touched", said)
        self.assertEqual(self.host.everything(), before)
        self.assertEqual(self.host.calls(), [])

    def test_what_was_begun_is_made_anew_and_the_oldest_goes(self) -> None:
        stub_wheel(self.wheels, "1.2")
        self.addCleanup((self.wheels / "defender_fleet-1.2-py3-none-any.whl").unlink)
        half = self.host.path("/opt/defender-fleet/1.2")
        half.mkdir()
        (half / "half").write_text("of it")
        (half / ".begun-by-the-installer").touch()
        said = self.install()
        self.assertIn("Putting version 1.2 into", said)
        self.assertIn("Removing version 1.1", said)
        self.assertFalse((half / "half").exists())
        left = sorted(path.name for path in self.host.path("/opt/defender-fleet").iterdir())
        self.assertEqual(left, [".lock", "1.0", "1.2", "current"])

    def test_another_build_of_the_version_stands_beside_it(self) -> None:
        other = Path(tempfile.mkdtemp(prefix="dfleet-wheels-"))
        self.addCleanup(shutil.rmtree, other)
        stub_wheel(other, "1.0")
        (other / "constraints.txt").write_text("# other libraries\n")
        done = self.host.install("--from", str(other))
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex(self.current(), r"^1\.0-[0-9a-f]{8}$")

    def test_what_is_not_its_own_stays(self) -> None:
        """A controller on the same host, put there by hand."""
        stub_wheel(self.wheels, "1.2")
        self.addCleanup((self.wheels / "defender_fleet-1.2-py3-none-any.whl").unlink)
        other = self.host.path("/opt/defender-fleet/1.2")
        other.mkdir()
        (other / "controller").write_text("runs from here")
        self.install()
        self.assertRegex(self.current(), r"^1\.2-[0-9a-f]{8}$")
        self.assertEqual((other / "controller").read_text(), "runs from here")

    def test_a_library_that_is_missing_leaves_everything_as_it_was(self) -> None:
        other = Path(tempfile.mkdtemp(prefix="dfleet-wheels-"))
        self.addCleanup(shutil.rmtree, other)
        stub_wheel(other, "1.3", "Requires-Dist: dfleet-is-nowhere\n")
        before = self.host.everything()
        done = self.host.install("--from", str(other))
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("dfleet-is-nowhere", done.stdout)
        self.assertIn("nothing was changed", done.stdout)
        self.assertEqual(self.host.everything(), before)

    def test_one_at_a_time(self) -> None:
        command = f"flock /opt/defender-fleet/.lock sh {SCRIPT} --from {self.wheels}"
        done = self.host.run("sh", "-c", command)
        self.assertEqual((done.returncode, "another installation" in done.stdout), (1, True), done.stdout)


class JoinTests(InstallCase):
    """A host that joins a fleet."""

    def setUp(self) -> None:
        super().setUp()
        self.forget_everything()

    def test_one_line_joins_and_the_token_is_gone(self) -> None:
        said = self.install("--controller", FLEET, "--join-token", TOKEN)
        self.assertIn("has been used and is removed", said)
        self.assertEqual(self.text("/etc/defender/options"), f'DEFENDER_OPTIONS="--controller {FLEET}"\n')
        self.assertFalse(self.host.path("/etc/defender/join-token").exists())
        self.assertNotIn("[policy]", self.text("/etc/defender/defender.toml"))
        before = self.host.everything()
        said = self.install("--controller", FLEET, "--join-token", TOKEN)
        self.assertIn("joined the fleet of fleet.example.com:8084 already", said)
        self.assertEqual(self.host.everything(), before)
        said = self.install()
        self.assertEqual(self.text("/etc/defender/options"), f'DEFENDER_OPTIONS="--controller {FLEET}"\n')

    def test_a_script_from_a_controller_knows_its_fleet(self) -> None:
        script = installer(FLEET).decode()
        done = self.host.run("sh", "-s", "--", "--from", str(self.wheels), given=script)
        self.assertEqual((done.returncode, "it needs a join token" in done.stdout), (1, True), done.stdout)
        line = ("sh", "-s", "--", "--from", str(self.wheels), "--join-token", TOKEN)
        done = self.host.run(*line, given=script)
        self.assertEqual(done.returncode, 0, done.stdout)
        options = f'DEFENDER_OPTIONS="--controller {FLEET}"\n'
        self.assertEqual(self.text("/etc/defender/options"), options)
        other = installer("other.example.com:8084").decode()
        done = self.host.run("sh", "-s", "--", "--from", str(self.wheels), given=other)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(self.text("/etc/defender/options"), options, "an upgrade moves nobody")

    def test_token_that_waits_is_for_the_defender_alone(self) -> None:
        self.behave("1.1", "pending")
        said = self.install("--controller", FLEET, "--join-token-file", "-", given=TOKEN + "\n")
        self.assertIn("Until an operator approves this host, it denies everything", said)
        token = self.host.path("/etc/defender/join-token")
        self.assertEqual((token.read_text(), token.stat().st_mode & 0o777), (TOKEN + "\n", 0o640))
        self.assertNotEqual(token.stat().st_gid, 0)
        open_to_all = [
            path
            for path in self.host.directory.rglob("*")
            if path.is_file() and path.stat().st_mode & 0o004 and TOKEN.encode() in path.read_bytes()
        ]
        self.assertEqual(open_to_all, [])

    def test_without_a_token_nothing_begins(self) -> None:
        before = self.host.everything()
        said = self.install("--controller", FLEET, code=1)
        self.assertIn("it needs a join token", said)
        self.assertEqual(self.host.everything(), before)

    def test_one_that_cannot_join_says_why(self) -> None:
        self.host.path("/var/lib/defender").mkdir()
        said = self.install("--controller", FLEET, code=1)
        self.assertIn("does not do well: it has not joined the fleet: no token", said)

    def test_another_controller_that_refuses_is_taken_back(self) -> None:
        self.install("--controller", FLEET, "--join-token", TOKEN)
        self.host.path("/var/lib/defender/joined").unlink()
        said = self.install("--controller", "other.example.com:8084", code=1)
        self.assertIn("has not joined the fleet", said)
        self.assertEqual(self.text("/etc/defender/options"), f'DEFENDER_OPTIONS="--controller {FLEET}"\n')


class UninstallTests(InstallCase):
    """What goes and what stays."""

    def setUp(self) -> None:
        super().setUp()
        self.install("--version", "1.0")
        self.host.path("/var/lib/defender/events").write_text("kept")

    def uninstall(self, *arguments: str) -> str:
        done = self.host.install("--uninstall", *arguments)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_state_stays_and_comes_back(self) -> None:
        said = self.uninstall()
        self.assertIn("kept: /etc/defender", said)
        self.assertFalse(self.is_running())
        for path in ("/opt/defender-fleet", "/etc/systemd/system/defender.service"):
            self.assertFalse(self.host.path(path).exists(), path)
        self.assertFalse(self.host.path("/usr/local/bin/defenderctl").is_symlink())
        self.assertEqual(self.text("/var/lib/defender/events"), "kept")
        self.assertTrue(self.host.path("/etc/defender/defender.toml").exists())
        self.assertIn("No defender is installed here", self.uninstall())

    def test_purge_leaves_no_trace(self) -> None:
        with account_to_itself():
            self.uninstall("--purge")
        for path in ("/opt/defender-fleet", "/etc/defender", "/var/lib/defender", "/run/defender"):
            self.assertFalse(self.host.path(path).exists(), path)
        self.assertNotIn("\ndefender:", self.text("/etc/passwd"))
        self.assertIn("No defender is installed here", self.uninstall("--purge"))

    def test_purge_comes_later_too(self) -> None:
        self.uninstall()
        self.uninstall("--purge")
        self.assertFalse(self.host.path("/var/lib/defender").exists())

    def test_controller_of_the_host_keeps_its_program(self) -> None:
        self.host.path("/etc/systemd/system/controller.service").write_text("")
        self.assertIn("a controller of this host uses it", self.uninstall())
        self.assertTrue(self.host.path("/opt/defender-fleet/current/bin/twistd").exists())


class DryRunTests(InstallCase):
    def test_everything_is_said_and_nothing_done(self) -> None:
        self.forget_everything()
        before = self.host.everything()
        for asker in ((), ("setpriv", "--reuid=65534", "--clear-groups")):
            for arguments in (
                ("--from", str(self.wheels), "--controller", FLEET, "--join-token", TOKEN),
                ("--uninstall", "--purge"),
                ("--version", "3.0"),
            ):
                done = self.host.run(*asker, "sh", str(SCRIPT), *arguments, "--dry-run")
                self.assertEqual(done.returncode, 0, done.stdout)
                self.assertNotIn("b" * 32, done.stdout)
                self.assertIn("would", done.stdout)
        self.assertEqual(self.host.everything(), before)
        self.assertEqual(self.host.calls(), [])


class RefusalTests(InstallCase):
    """Bad input: one sentence, the right exit code, and nothing done."""

    def test_what_is_asked_wrongly(self) -> None:
        wrong = {
            "--frm x": (2, "there is no option --frm"),
            "install": (2, "what is meant by this word"),
            "--from": (2, "needs a value"),
            "--name=": (2, "its value is empty"),
            "--controller fleet": (2, "must be HOST:PORT"),
            "--controller fleet:8084;reboot": (2, "must be HOST:PORT"),
            f"--join-token {TOKEN}": (2, "say --controller HOST:PORT, too"),
            f"--controller {FLEET} --join-token dft1.abc": (1, "this is no join token"),
            f"--controller {FLEET} --join-token {TOKEN} --join-token-file x": (2, "exclude each other"),
            f"--controller {FLEET} --join-token-file /nowhere": (1, "no such file"),
            f"--controller {FLEET} --policy /etc/passwd": (2, "has its policy from there"),
            "--listen all": (2, "must be unix, tcp, unix+tcp or none"),
            "--engine tcp://engine:2375": (2, "must be a unix socket"),
            "--name -x": (2, "must be a host name"),
            "--version ../1.0": (2, "this is no version"),
            "--purge": (2, "goes with --uninstall"),
            "--from /nowhere": (1, "there is no such directory"),
            "--from /etc": (1, "there is no wheel"),
            "--wheel /etc/passwd": (1, "the program's wheel is called"),
            "--python /nowhere/python3": (1, "there is no program /nowhere/python3"),
            "--python /bin/false": (1, "is not Python 3.11 or newer"),
        }
        before = self.host.everything()
        for line, (code, words) in wrong.items():
            done = self.host.install(*line.split(" "))
            self.assertEqual((done.returncode, words in done.stdout), (code, True), f"{line}: {done.stdout}")
            self.assertNotIn("b" * 32, done.stdout)
        done = self.host.install("--name", "a\nb")
        self.assertEqual((done.returncode, "control characters" in done.stdout), (2, True), done.stdout)
        self.assertEqual(self.host.everything(), before)

    def test_hosts_that_it_cannot_be_on(self) -> None:
        done = self.host.run("setpriv", "--reuid=65534", "--clear-groups", "sh", str(SCRIPT))
        self.assertEqual((done.returncode, "only root can" in done.stdout), (1, True), done.stdout)
        self.host.path("/run/systemd/system").rmdir()
        done = self.host.install("--from", str(self.wheels))
        self.assertEqual((done.returncode, "systemd does not run this host" in done.stdout), (1, True))

    def test_python_that_others_can_change(self) -> None:
        python = self.host.path("/fake/python3.14")
        python.write_text('#!/bin/sh\nexec python3 "$@"\n')
        python.chmod(0o777)
        done = self.host.install("--from", str(self.wheels), "--python", "python3.14")
        self.assertEqual((done.returncode, "changed by others than root" in done.stdout), (1, True))


class ScriptTests(SynchronousTestCase):
    """The text of it."""

    def test_shellcheck_has_nothing_to_say(self) -> None:
        done = subprocess.run(["shellcheck", str(SCRIPT)], stdout=subprocess.PIPE, text=True, check=False)
        self.assertEqual(done.stdout, "")

    def test_its_unit_is_the_unit(self) -> None:
        from deploy.embed_unit import UNIT, embedded

        script = SCRIPT.read_text("utf-8")
        self.assertEqual(
            script, embedded(script, UNIT.read_text("utf-8")), "run python3 -m deploy.embed_unit"
        )

    def test_half_of_it_does_nothing(self) -> None:
        """As when the download ends early, and the half goes straight into a shell."""
        lines = SCRIPT.read_text("utf-8").splitlines(keepends=True)
        for end in range(20, len(lines) - 1, 37):
            done = subprocess.run(
                ["sh", "-s", "--", "--uninstall", "--dry-run"],
                input="".join(lines[:end]),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=False,
            )
            self.assertEqual(done.stdout, "", f"{end} lines")

"""The commands around a container's life, and copying in and out of it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from tests.engine.clients import ClientCase, for_every_client
from tests.engine.guarded import scratch
from tests.engine.test_cli_run import noise
from tests.engine.test_cli_streams import tar_of


@for_every_client("tls")
class LifeTests(ClientCase):
    """One container, from its creation to its removal."""

    def state(self, box: str, field: str) -> str:
        return self.text("inspect", f"--format={{{{{field}}}}}", box)

    def test_rename_update_restart_pause_stop_remove(self) -> None:
        box = self.sleeper("--label=purpose=life")
        renamed = self.name("renamed")
        self.docker("rename", box, renamed)
        self.addCleanup(self.docker, "rm", "-f", "-v", renamed, check=False)
        self.docker("update", "--restart=on-failure:3", "--cpu-shares=512", renamed)
        self.assertEqual(self.state(renamed, ".HostConfig.CpuShares"), "512")
        self.assertEqual(self.state(renamed, ".HostConfig.RestartPolicy.MaximumRetryCount"), "3")
        first = self.state(renamed, ".State.Pid")
        self.docker("restart", "-t", "0", renamed)
        self.assertNotEqual(self.state(renamed, ".State.Pid"), first)
        self.docker("pause", renamed)
        self.assertEqual(self.state(renamed, ".State.Status"), "paused")
        self.docker("unpause", renamed)
        self.docker("stop", "-t", "0", renamed)
        self.assertEqual(self.state(renamed, ".State.Status"), "exited")
        self.docker("start", renamed)
        self.assertEqual(
            self.text("ps", "-q", "--no-trunc", "--filter=label=purpose=life"), self.state(renamed, ".Id")
        )
        self.docker("rm", "-f", renamed)
        gone = self.docker("inspect", "--type=container", renamed, check=False)
        self.assertIn(b"No such container: " + renamed.encode(), gone.stderr)

    def test_signals_one_by_one(self) -> None:
        script = (
            "trap 'echo usr1' USR1; trap 'echo term; exit 4' TERM; echo up; while :; do usleep 20000; done"
        )
        box = self.container("sh", "-c", script)
        following = self.started("logs", "-f", box)
        assert following.stdout is not None
        self.assertEqual(following.stdout.readline(), b"up\n")
        self.docker("kill", "-s", "USR1", box)
        self.assertEqual(following.stdout.readline(), b"usr1\n")
        self.docker("stop", "-t", "30", box)
        self.assertEqual(following.stdout.read(), b"term\n")
        self.assertEqual(self.text("wait", box), "4")

    def test_top_and_diff(self) -> None:
        box = self.container("sh", "-c", "mkdir /made; rm /etc/greeting; exec sleep 1000000")
        self.docker("exec", box, "sh", "-c", "until [ ! -e /etc/greeting ]; do usleep 20000; done")
        self.assertIn("sleep 1000000", self.text("top", box, "-o", "pid,args"))
        self.assertEqual(set(self.text("diff", box).splitlines()), {"A /made", "C /etc", "D /etc/greeting"})

    def test_inspect_says_what_the_engine_says(self) -> None:
        box = self.sleeper()
        for arguments in (("inspect", box), ("inspect", "--size", box), ("image", "inspect", "busybox")):
            self.assertEqual(json.loads(self.text(*arguments)), json.loads(self.direct(*arguments)))


@for_every_client("tls")
class CopyTests(ClientCase):
    """docker cp, with files and with tar streams."""

    def folder(self) -> Path:
        folder = scratch() / self.name("folder")
        folder.mkdir()
        return folder

    def test_files_and_folders(self) -> None:
        box, folder = self.sleeper(), self.folder()
        (folder / "one").write_bytes(noise(2))
        (folder / "below").mkdir()
        (folder / "below" / "two").write_bytes(b"two\n")
        self.docker("cp", str(folder), f"{box}:/copied")
        self.assertEqual(self.docker("exec", box, "cat", "/copied/one").stdout, noise(2))
        self.docker("cp", f"{box}:/copied/below", str(folder / "back"))
        self.assertEqual((folder / "back" / "two").read_bytes(), b"two\n")
        self.docker("cp", f"{box}:/copied/one", str(folder / "single"))
        self.assertEqual((folder / "single").read_bytes(), noise(2))

    def test_tar_streams(self) -> None:
        box = self.sleeper()
        self.docker("cp", "-", f"{box}:/tmp", stdin=tar_of(inside=b"from standard input\n"))
        archive = self.docker("cp", f"{box}:/tmp/inside", "-").stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            member = opened.extractfile("inside")
            assert member is not None
            self.assertEqual(member.read(), b"from standard input\n")

    def test_a_missing_file_and_a_stopped_container(self) -> None:
        box = self.name("box")
        self.addCleanup(self.docker, "rm", "-f", box)
        self.docker("create", "--name", box, "busybox")
        missing = self.docker("cp", f"{box}:/no/such/file", "-", check=False)
        self.assertNotEqual(missing.returncode, 0)
        self.assertIn(b"/no/such/file", missing.stderr)
        self.assertIn(b"root:x:0:0", self.docker("cp", f"{box}:/etc/passwd", "-").stdout)

"""Images: saved, loaded, imported, committed, built, tagged and removed."""

from __future__ import annotations

from pathlib import Path

from tests.engine.clients import ClientCase, for_every_client
from tests.engine.guarded import CAROL, of, scratch
from tests.engine.test_cli_streams import tar_of


@for_every_client("tls")
class ImageTests(ClientCase):
    """What is done with images that are there."""

    def image(self) -> str:
        """Import a small image of this test's own."""
        name = self.name("small")
        self.docker("import", "-", name, stdin=tar_of(etc_name=name.encode()))
        self.addCleanup(self.docker, "rmi", "-f", name, check=False)
        return name

    def test_import_and_export(self) -> None:
        box = self.sleeper()
        self.docker("exec", box, "sh", "-c", "echo kept > /kept")
        exported = self.docker("export", box).stdout
        name = self.name("imported")
        self.addCleanup(self.docker, "rmi", "-f", name, check=False)
        self.docker("import", "-m", "from a pipe", "-c", "ENV PATH=/bin", "-", name, stdin=exported)
        self.assertEqual(self.text("run", "--rm", "--network=none", name, "cat", "/kept"), "kept")

    def test_save_and_load(self) -> None:
        name = self.image()
        saved = self.docker("save", name).stdout
        identifier = self.text("image", "inspect", "--format={{.Id}}", name)
        self.docker("rmi", name)
        self.assertEqual(self.docker("image", "inspect", name, check=False).returncode, 1)
        self.assertIn(f"Loaded image: {name}", self.text("load", stdin=saved))
        self.assertEqual(self.text("image", "inspect", "--format={{.Id}}", name), identifier)

    def test_save_to_a_file(self) -> None:
        name, file = self.image(), scratch() / self.name("saved")
        self.docker("save", "-o", str(file), name)
        self.assertIn(name, self.text("load", "-q", "-i", str(file)))

    def test_commit(self) -> None:
        box = self.sleeper()
        self.docker("exec", box, "sh", "-c", "echo changed > /changed")
        name = self.name("committed")
        self.addCleanup(self.docker, "rmi", "-f", name, check=False)
        self.docker("commit", "-a", "bruce", "-m", "changed", "-c", 'CMD ["cat", "/changed"]', box, name)
        self.assertEqual(self.text("run", "--rm", "--network=none", name), "changed")
        self.assertIn("changed", self.text("history", "--no-trunc", name))

    def test_tag_list_history_and_remove(self) -> None:
        name = self.image()
        other = self.name("tagged") + ":v1"
        self.docker("tag", name, other)
        listed = self.text("images", "--format={{.Repository}}:{{.Tag}}").splitlines()
        self.assertIn(other, listed)
        # When it was made is told in words, which change while the two are asked.
        shown = ("history", "--human=false", other)
        self.assertEqual(self.text(*shown), self.direct(*shown))
        self.assertIn(f"Untagged: {other}", self.text("rmi", other))
        self.assertIn("Deleted: sha256:", self.text("rmi", name))

    def test_what_a_registry_would_answer_fails_as_without_a_defender(self) -> None:
        for arguments in (
            ("pull", "127.0.0.1:1/nothing"),
            ("search", "127.0.0.1:1/nothing"),
            ("login", "-u", "someone", "-p", "nothing", "127.0.0.1:1"),
        ):
            done = self.docker(*arguments, check=False)
            self.assertNotEqual(done.returncode, 0, arguments)
            self.assertIn(b"127.0.0.1:1", done.stderr)
            self.assertIn(b"connection refused", done.stderr)
        pushed = self.docker("push", "127.0.0.1:1/nothing", check=False)
        self.assertIn(b"An image does not exist locally with the tag", pushed.stderr)


class BuildCase(ClientCase):
    """A folder to build from, and the build."""

    def folder(self, *lines: str) -> str:
        """Make a folder whose one file differs from all others, so that no build is answered from a cache."""
        folder = Path(scratch() / self.name("context"))
        folder.mkdir()
        (folder / "Dockerfile").write_text("\n".join(["FROM busybox", *lines, ""]), "ascii")
        (folder / "file").write_text(f"from {folder.name}\n", "ascii")
        return str(folder)

    def build(self, folder: str, *arguments: str, buildkit: bool) -> tuple[str, str]:
        """Build an image, and return its name and all that was said."""
        name = self.name("built")
        self.addCleanup(self.docker, "rmi", "-f", name, check=False)
        environment = {**self.environment, "DOCKER_BUILDKIT": str(int(buildkit))}
        done = self.cli.run("build", "-t", name, *arguments, folder, environment=environment)
        return name, (done.stdout + done.stderr).decode()


DOCKERFILE = ("ARG WORD", "COPY file /file", "RUN echo $WORD > /word && cat /file", "CMD cat /word")


@for_every_client("tls", "unix")
class ClassicBuildTests(BuildCase):
    """The builder that sends its context with the request."""

    def test_a_build(self) -> None:
        folder = self.folder(*DOCKERFILE)
        name, said = self.build(folder, "--build-arg=WORD=given", buildkit=False)
        self.assertIn(f"from {Path(folder).name}", said)
        self.assertIn(f"Successfully tagged {name}:latest", said)
        self.assertEqual(self.text("run", "--rm", "--network=none", name), "given")

    def test_a_failing_step(self) -> None:
        environment = {**self.environment, "DOCKER_BUILDKIT": "0"}
        done = self.cli.run("build", self.folder("RUN exit 9"), environment=environment, check=False)
        self.assertIn(b"returned a non-zero code: 9", done.stderr)
        self.assertEqual(done.returncode, 9)


@for_every_client("tls", "unix", versions=lambda version: version < (23,))
class BuildKitTests(BuildCase):
    """BuildKit, with the clients that have it built in; newer ones have it in a plugin of its own."""

    def test_a_build(self) -> None:
        folder = self.folder(*DOCKERFILE)
        before = self.defender.trail.mark()
        name, said = self.build(folder, "--progress=plain", "--build-arg=WORD=given", buildkit=True)
        self.assertIn(f"from {Path(folder).name}", said)
        self.assertEqual(self.text("run", "--rm", "--network=none", name), "given")
        trail = self.defender.trail
        began, ended = trail.stream("session", before)
        self.assertEqual(began["result"]["status"], 101)
        self.assertGreater(ended["result"]["rx"], 100)
        (built,) = trail.wait_for(of("image_build"), since=before)
        self.assertEqual(built["req"]["query"]["version"], "2")


@for_every_client("tls", versions=lambda version: version < (23,))
class DeniedBuildKitTests(BuildCase):
    """A rule that lists builds, and neither `session` nor `grpc`."""

    def test_the_client_says_403_and_the_classic_build_works(self) -> None:
        folder = self.folder("RUN true")
        environment = {**self.defender.tls(CAROL, "Builders"), "DOCKER_BUILDKIT": "1"}
        before = self.defender.trail.mark()
        done = self.cli.run("build", folder, environment=environment, check=False)
        self.assertNotEqual(done.returncode, 0)
        # This client prints the status of a refused session, and never its message.
        self.assertIn(b"unable to upgrade to h2c, received 403", done.stderr)
        (denied,) = self.defender.trail.wait_for(of("session"), since=before)
        self.assertEqual(denied["decision"]["rule"], "builders_rule")
        self.assertEqual(denied["result"]["status"], 403)
        self.cli.run("build", folder, environment={**environment, "DOCKER_BUILDKIT": "0"})

"""A controller's files from outside: copied while it runs, changed while it rests, and no lock forgotten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from click.testing import CliRunner

from controller.cli import at_rest
from controller.cli.at_rest import AtRestError
from controller.cli.controller import controller
from controller.fleet import Mode
from controller.pki.signing import BUNDLE, ROOT, SNAPSHOT, SigningKeys
from controller.publisher_steps import read_policy
from controller.releases import Ahead
from controller.selection import Selection
from controller.store import locks, trail
from defender.contract.contents import LocksContent
from defender.contract.locks import Lock, make_lock
from defender.contract.trust import LOCKS, POLICY, STREAMS, TRUST
from tests.controller.publisher_fleet import Host
from tests.controller.test_publisher import EVERYBODY, NEW, OLD, PublisherCase

ADA, BRUCE, CLEO = (make_lock("user", f"{name}@example.com") for name in ("ada", "bruce", "cleo"))


class AtRestCase(PublisherCase):
    """A controller with a trail, as one has that was started, and what is kept of what hosts were pushed."""

    async def found(self) -> Host:
        self.orders = await self.begin()
        assert self.database is not None
        await self.database.write(trail.begin, 4711)
        host = await self.enroll("web1")
        await self.calm()
        return host

    async def restored(self, backup: Path) -> None:
        """Let the controller end, and put the backup in place of its files."""
        await self.crash()
        for name in ("store", "signing"):
            shutil.rmtree(self.directory / name)
            shutil.copytree(backup / name, self.directory / name)

    def newest(self, host: Host, stream: str) -> Path:
        """The newest bundle of a stream that a host was pushed, in a file of its own as on the host."""
        data = [data for its, _, data in host.pushed if its == stream][-1]
        path = self.directory / f"{stream}.bundle"
        path.write_bytes(data)
        return path

    def locked(self, host: Host) -> set[Lock]:
        content = host.content[LOCKS]
        assert isinstance(content, LocksContent)
        return set(content.locks.locks)

    def run_command(self, *words: str, code: int = 0) -> str:
        done = CliRunner().invoke(controller, [*words, "--state", str(self.directory)])
        self.assertEqual(done.exit_code, code, done.output)
        return done.output


class Restores(AtRestCase):
    async def test_no_lock_is_forgotten_and_no_number_given_twice(self) -> None:
        host = await self.found()
        await self.orders.add_lock(ADA, "", "ada")
        lifted, _ = await self.orders.add_lock(CLEO, "", "ada")
        await self.publish(self.orders, "prod", OLD)
        await self.calm()
        backup = self.directory / "backup"
        at_rest.back_up(self.directory, backup)  # it runs

        await self.orders.add_lock(BRUCE, "laptop lost", "ada")
        await self.orders.remove_lock(lifted.id, "ada")
        await self.publish(self.orders, "prod", NEW)
        await self.calm()
        before = {stream: at.version for stream, at in host.held.items()}
        await self.restored(backup)
        files = [self.newest(host, stream) for stream in (LOCKS, POLICY)]
        told = at_rest.take_back(self.directory, files, "root")
        self.assertEqual(
            [news for each in told for news in each.news],
            [
                "locked again: user bruce@example.com",
                "still locked, but lifted in this version: user cleo@example.com",
                "policy prod: its text is the draft now; its hosts keep it until you publish",
            ],
        )

        orders = await self.begin()
        host.mark = None
        self.desk.connect(host)
        await self.calm()
        self.assertEqual(self.locked(host), {ADA, BRUCE, CLEO})
        self.assertGreater(host.held[LOCKS].version, before[LOCKS])
        self.assertNotIn(LOCKS, [stream for stream, _ in self.told])
        self.assertEqual([type(each) for stream, each in self.told if stream == POLICY], [Ahead])
        self.assertEqual(self.texts(host), ["new"])
        await orders.publish("prod", "ada")
        await self.calm()
        self.assertEqual(host.held[POLICY].version, before[POLICY] + 1)
        self.assertEqual(self.texts(host), ["new"])

    async def test_who_holds_the_same_locks_under_another_number_gets_them_again(self) -> None:
        host = await self.found()
        backup = self.directory / "backup"
        at_rest.back_up(self.directory, backup)
        row, _ = await self.orders.add_lock(BRUCE, "", "ada")
        await self.orders.remove_lock(row.id, "ada")
        await self.calm()
        number = host.held[LOCKS].version
        await self.restored(backup)
        (told,) = at_rest.take_back(self.directory, [self.newest(host, LOCKS)], "root")
        self.assertEqual(told.news, ("the same locks",))
        await self.begin()
        host.mark = None
        self.desk.connect(host)
        await self.calm()
        self.assertEqual(self.told, [])
        self.assertEqual(host.held[LOCKS].version, number + 1)

    async def test_what_is_not_signed_by_us_changes_nothing(self) -> None:
        host = await self.found()
        backup = self.directory / "backup"
        at_rest.back_up(self.directory, backup)
        await self.orders.add_lock(BRUCE, "", "ada")
        await self.calm()
        await self.restored(backup)
        good = self.newest(host, LOCKS)
        forged = self.directory / "forged.bundle"
        forged.write_bytes(good.read_bytes().replace(b"bruce", b"boris"))
        for name, words in ((forged, "bad-signature"), (self.directory / "signing" / "roots", "wrong-type")):
            error = self.assertRaises(AtRestError, at_rest.take_back, self.directory, [good, name], "root")
            self.assertIn(words, str(error))
        await self.begin()
        assert self.database is not None
        self.assertEqual(await self.database.read(locks.every), [])
        with self.assertRaises(AtRestError) as caught:
            at_rest.take_back(self.directory, [good], "root")
        self.assertIn("runs (process ", str(caught.exception))

    async def test_only_the_newest_counts(self) -> None:
        host = await self.found()
        await self.orders.add_lock(ADA, "", "ada")
        await self.calm()
        backup = self.directory / "backup"
        at_rest.back_up(self.directory, backup)
        row, _ = await self.orders.add_lock(CLEO, "", "ada")
        await self.calm()
        older = self.newest(host, LOCKS).rename(self.directory / "older.bundle")
        await self.orders.remove_lock(row.id, "ada")
        await self.orders.add_lock(BRUCE, "", "ada")
        await self.calm()
        await self.restored(backup)
        newer = self.newest(host, LOCKS)
        told = at_rest.take_back(self.directory, [older, newer], "root")
        self.assertEqual(
            [each.news for each in told],
            [("locked again: user bruce@example.com",), ("there is a newer one among these",)],
        )
        for role in (SNAPSHOT, BUNDLE):
            self.run_command("replace-key", role)
        (over,) = at_rest.take_back(self.directory, [newer], "root")
        self.assertEqual(over.news, ("it is over: its key was replaced",))

    async def test_keys_from_before_a_key_was_replaced_are_told(self) -> None:
        host = await self.found()
        backup = self.directory / "backup"
        at_rest.back_up(self.directory, backup)
        await self.orders.replace_key(BUNDLE)
        await self.calm()
        await self.restored(backup)
        error = self.assertRaises(
            AtRestError, at_rest.take_back, self.directory, [self.newest(host, LOCKS)], "r"
        )
        self.assertIn("wrong-key", str(error))
        self.assertIn("signing keys of this backup are older", str(error))


class Keys(AtRestCase):
    async def test_each_is_replaced_while_the_controller_rests(self) -> None:
        host = await self.found()
        await self.publish(self.orders, "prod", NEW)
        await self.calm()
        await self.crash()
        for version, role in enumerate((BUNDLE, ROOT, SNAPSHOT), 2):
            told = json.loads(self.run_command("replace-key", role, "--json"))
            self.assertEqual(told, {"role": role, "root": version})
        self.assertIn("document 5", self.run_command("replace-key", BUNDLE, "--stolen"))
        await self.begin()
        self.desk.connect(host)
        await self.calm()
        self.assertEqual((host.root.version, host.root.key_epoch), (5, 2))
        self.assertEqual(self.texts(host), ["new"])
        self.assertEqual({host.held[stream].key_epoch for stream in (TRUST, LOCKS, POLICY)}, {2})
        self.assertEqual(set(host.lost), {TRUST, LOCKS, POLICY})
        assert self.database is not None
        batch = await self.database.read(trail.pending, lambda epoch: 0, 100)
        assert batch is not None
        self.assertEqual(batch.records.count(b"key_replace"), 4)

    async def test_in_two_steps_nothing_ceases_to_be_in_force(self) -> None:
        host = await self.found()
        await self.publish(self.orders, "prod", NEW)
        await self.orders.set_mode(Selection(), Mode("tcp"), "ada")
        await self.calm()
        await self.crash()
        self.run_command("replace-key", BUNDLE, "--keep-old")
        self.assertIn("is signed by the old key", self.run_command("retire-key", code=1))
        for step in ("retire-key", ""):
            await self.begin()
            before = dict(host.held)
            self.desk.connect(host)
            await self.calm()
            self.assertEqual(host.lost, [])
            self.assertEqual(self.texts(host), ["new"])
            await self.crash()
            signed_again = {each for each in before if host.held[each] != before[each]}
            self.assertEqual(signed_again, set(STREAMS) if step else {TRUST})
            if step:
                self.run_command(step)
        self.assertEqual(host.root.version, 3)
        self.assertEqual(len(host.root.bundle.keys), 1)
        self.run_command("retire-key", code=1)
        self.run_command("replace-key", BUNDLE, "--keep-old", "--stolen", code=2)

    async def test_none_goes_while_a_policy_is_on_its_way(self) -> None:
        await self.found()
        await self.enroll("web2")
        await self.calm()
        await self.publish(self.orders, "prod", NEW)
        await self.publisher.kept()
        await self.crash()
        self.assertIn("the rollout of prod is not over", self.run_command("replace-key", BUNDLE, code=1))
        self.assertEqual(SigningKeys.load(self.directory / "signing").root.version, 1)
        self.run_command("replace-key", BUNDLE, "--even-now")
        self.run_command("replace-key", ROOT, "--stolen", code=2)


class Backups(AtRestCase):
    async def test_a_copy_is_a_state_directory_that_only_its_owner_reads(self) -> None:
        await self.found()
        await self.publish(self.orders, "prod", NEW)
        await self.calm()
        (self.directory / "controller.toml").write_text("[controller]\n")
        out = self.directory / "copy"
        self.assertIn("6 files", self.run_command("backup", "--out", str(out)))
        self.assertEqual(
            sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()),
            [
                "controller.toml",
                *(f"signing/{name}" for name in ("bundle.key", "root.key", "roots", "snapshot.key")),
                "store/control.db",
            ],
        )
        for path in (out, *out.rglob("*")):
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
        self.assertIn("is there already", self.run_command("backup", "--out", str(out), code=1))
        await self.crash()
        shutil.rmtree(self.directory / "store")
        self.assertIn("there is no store", self.run_command("backup", "--out", str(out / "b"), code=1))
        shutil.copytree(out / "store", self.directory / "store")
        await self.begin()
        assert self.database is not None
        state = await self.database.read(read_policy, "prod")
        assert state.published is not None
        self.assertEqual((state.published.text, state.published.target), (NEW, EVERYBODY))

    async def test_a_store_that_never_ran_is_not_changed(self) -> None:
        await self.begin()
        await self.crash()
        self.assertIn("was never started", self.run_command("replace-key", ROOT, code=1))

"""What the defender remembers of containers and exec commands."""

from __future__ import annotations

from hypothesis import given, settings, strategies
from twisted.trial.unittest import SynchronousTestCase

from defender.proxy.objects import SHORT_ID, Objects

WEB = "3f2a" * 16
DATABASE = "9b1c" * 16


class Containers(SynchronousTestCase):
    def setUp(self) -> None:
        self.objects = Objects()
        self.objects.learned_container(WEB, "/web", "nginx:1.25")

    def field(self, reference: str) -> object:
        known = self.objects.container(reference)
        return None if known is None else known.field

    def test_by_id_name_and_beginning(self) -> None:
        for reference in (WEB, "web", "/web", WEB[:SHORT_ID], WEB[:40]):
            self.assertEqual(self.field(reference), {"id": WEB, "name": "web", "image": "nginx:1.25"})
        for reference in ("", "we", WEB[: SHORT_ID - 1], WEB + "0", DATABASE):
            self.assertIsNone(self.field(reference))

    def test_a_beginning_of_two_is_nobodys(self) -> None:
        twin = WEB[:SHORT_ID] + "0" * 52
        self.objects.learned_container(twin, "twin")
        self.assertIsNone(self.field(WEB[:SHORT_ID]))
        self.assertEqual(self.field(WEB[: SHORT_ID + 1]), self.field("web"))

    def test_a_name_comes_before_a_beginning(self) -> None:
        """As the Engine has it: who names a container like another's short id does not pass for it."""
        self.objects.learned_container(DATABASE, WEB[:SHORT_ID], "evil")
        self.assertEqual(
            self.field(WEB[:SHORT_ID]), {"id": DATABASE, "name": WEB[:SHORT_ID], "image": "evil"}
        )

    def test_more_is_learned_later(self) -> None:
        self.objects.learned_container(DATABASE)
        self.assertEqual(self.field(DATABASE), {"id": DATABASE})
        self.objects.learned_container(DATABASE, "db")
        self.objects.learned_container(DATABASE, image="postgres")
        self.assertEqual(self.field("db"), {"id": DATABASE, "name": "db", "image": "postgres"})

    def test_renamed(self) -> None:
        self.objects.renamed("web", "old-web")
        self.assertIsNone(self.field("web"))
        self.assertEqual(self.field("old-web"), {"id": WEB, "name": "old-web", "image": "nginx:1.25"})
        self.objects.learned_container(DATABASE, "web", "postgres")
        self.assertEqual(self.field("web"), {"id": DATABASE, "name": "web", "image": "postgres"})
        self.objects.renamed("nobody", "x")

    def test_a_name_that_moved_is_taken_from_the_one_that_had_it(self) -> None:
        self.objects.learned_container(DATABASE, "web")
        self.assertEqual(self.field(WEB), {"id": WEB, "image": "nginx:1.25"})
        self.objects.forget_container(WEB)
        self.assertEqual(self.field("web"), {"id": DATABASE, "name": "web"})

    def test_forgotten(self) -> None:
        self.objects.forget_container(WEB[:SHORT_ID])
        for reference in (WEB, "web", WEB[:SHORT_ID]):
            self.assertIsNone(self.field(reference))
        self.assertEqual((len(self.objects), self.objects.size), (0, 0))

    def test_what_is_no_id_is_not_learned(self) -> None:
        for identity in ("", "web", "a" * 200):
            self.assertIsNone(self.objects.learned_container(identity, "x"))
        self.assertEqual(len(self.objects), 1)


class Execs(SynchronousTestCase):
    def test_a_command_leads_to_its_container(self) -> None:
        objects = Objects()
        objects.learned_container(WEB, "web", "nginx")
        objects.learned_exec("e" * 64, "web", "ls -la", "bruce")
        known = objects.exec("e" * 64)
        assert known is not None
        self.assertEqual((known.container, known.command, known.user), (WEB, "ls -la", "bruce"))
        web = {"id": WEB, "name": "web", "image": "nginx"}
        for action, target in (
            ("container_exec_start", "e" * 64),
            ("container_exec_inspect", "e" * 64),
            ("container_exec_create", "web"),
            ("container_stop", WEB[:12]),
            ("container_commit", "web"),
            ("checkpoint_create", "web"),
        ):
            self.assertEqual(objects.container_of(action, target), web)
        self.assertEqual(objects.container_of("network_connect", "n", {"container": "web"}), web)
        for action, target in (
            ("container_list", ""),
            ("image_delete", "web"),
            ("network_connect", "web"),
            ("container_exec_start", "web"),
            ("docker_ping", ""),
        ):
            self.assertIsNone(objects.container_of(action, target))
        objects.forget_exec("e" * 64)
        self.assertIsNone(objects.exec("e" * 64))

    def test_a_container_that_is_not_known(self) -> None:
        objects = Objects()
        objects.learned_exec("e", "web", "ls")
        known = objects.exec("e")
        assert known is not None
        self.assertEqual(known.container, "web")
        self.assertIsNone(objects.container_of("container_exec_start", "e"))
        objects.learned_container(WEB, "web")
        self.assertEqual(objects.container_of("container_exec_start", "e"), {"id": WEB, "name": "web"})


class Bounds(SynchronousTestCase):
    def test_the_least_recently_used_goes(self) -> None:
        objects = Objects(entries=3)
        for number in range(3):
            objects.learned_container(f"{number}" * 64, f"n{number}")
        objects.container("n0")
        objects.learned_container("9" * 64, "n9")
        self.assertIsNotNone(objects.container("n0"))
        self.assertIsNone(objects.container("n1"))
        self.assertIsNotNone(objects.container("n9"))

    def test_bytes_are_bounded(self) -> None:
        objects = Objects(size=100_000)
        for number in range(2000):
            objects.learned_container(f"{number:064x}", f"name{number}", "i" * 10_000)
            objects.learned_exec(f"e{number}", f"name{number}", "c" * 1000)
            self.assertLessEqual(objects.size, 100_000)
        self.assertGreater(len(objects), 20)

    @settings(deadline=None)
    @given(
        strategies.lists(
            strategies.tuples(
                strategies.sampled_from(["learn", "rename", "forget", "exec", "ask"]),
                strategies.integers(0, 7),
                strategies.integers(0, 5),
            ),
            max_size=80,
        )
    )
    def test_names_lead_to_whoever_had_them_last(self, steps: list[tuple[str, int, int]]) -> None:
        objects = Objects(entries=5)
        for step, number, other in steps:
            identity, name = f"{number:x}" * 64, f"n{other}"
            if step == "learn":
                objects.learned_container(identity, name, "i")
                known = objects.container(name)
                assert known is not None
                self.assertEqual(known.id, identity)
            elif step == "rename":
                objects.renamed(identity, name)
            elif step == "forget":
                objects.forget_container(identity)
                self.assertIsNone(objects.container(identity))
            elif step == "exec":
                objects.learned_exec(name, identity, "ls")
            for reference in (name, identity, identity[:12]):
                known = objects.container(reference)
                if known is not None:
                    self.assertIn(reference, (known.name, known.id, known.id[:12]))
        self.assertLessEqual(len(objects), 10)
        for number in range(8):
            objects.forget_container(f"{number:x}" * 64)
        for number in range(6):
            objects.forget_exec(f"n{number}")
        self.assertEqual((len(objects), objects.size), (0, 0))
        self.assertEqual((objects._names, objects._short), ({}, {}))

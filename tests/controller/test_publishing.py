"""From a draft to a version, and back."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from controller.fleet import Target
from controller.publishing import (
    MAX_COMMENT,
    Draft,
    PolicyState,
    PublishError,
    Version,
    check,
    check_expected,
    check_name,
    difference,
    discard_draft,
    publish,
    roll_back,
    save_draft,
)
from controller.selection import Selection
from defender.contract.document import MAX_BYTES

ONE = "schema: 1\nrules:\n  - {name: all, effect: allow}\n"
TWO = "schema: 1\nrules:\n  - {name: all, effect: deny}\n"
BROKEN = "schema: 1\nrules:\n  - {name: all, effect: perhaps, usrs: [x]}\n"
EVERYBODY = Target(Selection())
PROD = Target(Selection(labels={"env": "prod"}), rank=3)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.state = PolicyState("default")

    def draft(self, text: str, target: Target = EVERYBODY, at: float = 50.0) -> None:
        self.state = save_draft(self.state, Draft(text, target, "ann", at))

    def publish(self, number: int, **more: str) -> Version:
        self.state, version = publish(self.state, number, "bob", 100.0 + number, **more)
        return version

    def refused(self, code: str, text: str) -> _Refusal:
        return _Refusal(self, code, text)


class _Refusal:
    """Expects a PublishError of a code, with a text."""

    def __init__(self, case: Case, code: str, text: str) -> None:
        self.case, self.code, self.text = case, code, text
        self.error = PublishError("", "")

    def __enter__(self) -> _Refusal:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        self.case.assertIsInstance(error, PublishError)
        assert isinstance(error, PublishError)
        self.case.assertEqual(error.code, self.code)
        self.case.assertIn(self.text, str(error))
        self.error = error
        return True


class Publishing(Case):
    def test_a_draft_becomes_a_version(self) -> None:
        self.draft(ONE)
        version = self.publish(7, comment="CHG-1")
        self.assertEqual(
            version, Version("default", 7, ONE, EVERYBODY, version.digest, "bob", 107.0, "CHG-1")
        )
        self.assertTrue(version.digest.startswith("sha256:"))
        self.assertEqual(self.state, PolicyState("default", published=version))

    def test_a_broken_draft_is_kept_and_not_published(self) -> None:
        self.draft(BROKEN)
        before = self.state
        with self.refused("invalid", "policy 'default' has 2 problems") as refusal:
            self.publish(1)
        self.assertEqual([each.line for each in refusal.error.problems], [3, 3])
        self.assertEqual(self.state, before)

    def test_nothing_to_publish(self) -> None:
        with self.refused("no-draft", "has no draft to publish"):
            self.publish(1)
        self.draft(ONE)
        self.publish(1)
        self.draft(ONE)
        with self.refused("unchanged", "version 1 is the same already"):
            self.publish(2)

    def test_another_target_is_a_change(self) -> None:
        self.draft(ONE)
        self.publish(1)
        self.draft(ONE, PROD)
        self.assertEqual(self.publish(2).target, PROD)

    def test_numbers_rise(self) -> None:
        self.draft(ONE)
        self.publish(5)
        self.draft(TWO)
        with self.assertRaisesRegex(ValueError, "version 5 after version 5"):
            self.publish(5)

    def test_limits(self) -> None:
        self.draft(ONE)
        with self.refused("comment", "at most 1000"):
            self.publish(1, comment="x" * (MAX_COMMENT + 1))
        with self.refused("invalid", "at most"):
            self.draft("#" * (MAX_BYTES + 1))
        for name in ("", "Default", "-x", "a/b", "x" * 65, "a\n"):
            with self.refused("name", "is no name for a policy"):
                check_name(name)
        with self.refused("name", "is no name"):
            save_draft(PolicyState("A"), Draft(ONE, EVERYBODY, "ann", 0))

    def test_a_draft_is_given_up(self) -> None:
        self.draft(ONE)
        self.assertEqual(discard_draft(self.state), PolicyState("default"))
        with self.refused("no-draft", "has no draft"):
            discard_draft(PolicyState("default"))


class RollingBack(Case):
    def setUp(self) -> None:
        super().setUp()
        self.draft(ONE)
        self.first = self.publish(1)
        self.draft(TWO, PROD)
        self.second = self.publish(2)

    def test_old_content_under_a_new_number(self) -> None:
        self.draft(BROKEN)
        self.state, version = roll_back(self.state, self.first, 3, "eve", 200.0, comment="it locked us out")
        self.assertEqual(
            version,
            replace(
                self.first,
                number=3,
                author="eve",
                published_at=200.0,
                comment="it locked us out",
                rolled_back_to=1,
            ),
        )
        assert self.state.draft is not None
        self.assertEqual(self.state.draft.text, BROKEN)
        # Forward again, and back to what was rolled back to: the origin stays in sight.
        self.state, again = roll_back(self.state, self.second, 4, "eve", 201.0)
        self.state, last = roll_back(self.state, version, 5, "eve", 202.0)
        self.assertEqual((again.rolled_back_to, last.rolled_back_to), (2, 1))

    def test_what_is_published_already(self) -> None:
        with self.refused("unchanged", "version 2 has the content of version 2"):
            roll_back(self.state, self.second, 3, "eve", 0)

    def test_a_version_that_there_is_not(self) -> None:
        for wrong in (None, replace(self.first, policy="other")):
            with self.refused("no-version", "has no such version"):
                roll_back(self.state, wrong, 3, "eve", 0)

    def test_a_version_that_is_no_longer_read(self) -> None:
        with self.refused("invalid", "version 1 can no longer be used") as refusal:
            roll_back(self.state, replace(self.first, text=BROKEN), 3, "eve", 0)
        self.assertEqual(len(refusal.error.problems), 2)


class Etags(Case):
    def test_every_change_makes_another(self) -> None:
        seen = [self.state.etag]

        def note() -> None:
            self.assertNotIn(self.state.etag, seen)
            seen.append(self.state.etag)

        self.draft(ONE)
        note()
        self.draft(ONE, PROD)
        note()
        self.draft(ONE, at=51.0)
        note()
        self.publish(1)
        note()
        self.assertEqual(self.state.etag, replace(self.state).etag)

    def test_the_second_of_two_is_told(self) -> None:
        self.draft(ONE)
        seen_by_both = self.state.etag
        check_expected(self.state, seen_by_both.__eq__)
        self.publish(7)
        with self.refused("changed", "there is version 7 by bob") as refusal:
            check_expected(self.state, seen_by_both.__eq__)
        self.assertEqual(refusal.error.etag, self.state.etag)
        self.draft(TWO)
        with self.refused("changed", "version 7 by bob and a draft by ann"):
            check_expected(self.state, seen_by_both.__eq__)

    def test_one_that_there_is_not_has_no_etag(self) -> None:
        check_expected(self.state, "".__eq__)
        with self.refused("changed", "there is no policy 'default'") as refusal:
            check_expected(self.state, "x".__eq__)
        self.assertEqual(refusal.error.etag, "")


class Looking(Case):
    def test_a_check_tells_everything(self) -> None:
        bad = check(BROKEN, "p")
        self.assertFalse(bad.ok)
        self.assertEqual([each.key for each in bad.problems], ["rules[0].effect", "rules[0].usrs"])
        self.assertEqual(bad.summaries(), ())
        good = check(ONE, "p")
        self.assertTrue(good.ok)
        self.assertEqual(good.summaries(), ("everybody: allow everything",))
        self.assertIn("can become root", good.advice[0].message)

    def test_a_difference(self) -> None:
        self.draft(ONE)
        first = self.publish(1)
        assert first is not None
        wanted = Draft(TWO, PROD, "ann", 0)
        found = difference(first, wanted, "default")
        self.assertIn("--- default version 1\n+++ default draft\n", found.unified)
        self.assertEqual(found.rules[0].describe(), "effect: allow -> deny; otherwise: deny -> continue")
        self.assertEqual(found.target, "all defenders -> all defenders with env=prod, rank 3")
        new = difference(None, first, "default")
        self.assertIn("--- /dev/null\n", new.unified)
        self.assertEqual((new.rules[0].change, new.target), ("added", "all defenders"))
        broken = difference(first, replace(wanted, text=BROKEN, target=EVERYBODY), "default")
        self.assertEqual((broken.rules, broken.target), ((), ""))
        self.assertIn("perhaps", broken.unified)

"""Publishing policies to a fleet on the command line."""

from __future__ import annotations

import json
from typing import Any

from controller.api.ports import ChangedError
from controller.cli import progress
from tests.controller.api.doubles import example
from tests.controller.cli.fleet_server import FleetTestCase

POLICY = "schema: 1\nrules:\n  - name: ci\n    users: [ci-*]\n    effect: allow\n"


def rollout(state: str, step: str, detail: str = "", version: int = 13, wave: int = 1) -> dict[str, Any]:
    """A rollout whose one defender is in this state."""
    made = example("Rollout")
    made["defenders"][0] |= {"state": step, "detail": detail}
    counts = {"acked": 0, "refused": 0, "waiting": 0, "offline": 0, "total": 1, step: 1}
    return {**made, "state": state, "counts": counts, "version": version, "wave": wave, "detail": detail}


class PolicyTestCase(FleetTestCase):
    """Has a file, and a rollout that goes on."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(progress, "POLL", 0.01)
        self.policy_file = self.folder / "builders.yaml"
        self.policy_file.write_text(POLICY)
        self.drafts: list[Any] = []
        self.rollouts = [
            rollout("running", "waiting"),
            rollout("running", "waiting"),
            rollout("done", "acked"),
        ]
        fake = self.world.policies
        save = fake.save_draft

        async def save_draft(actor: Any, name: str, wanted: Any, expected: Any) -> Any:
            self.drafts.append((name, wanted, expected))
            return await save(actor, name, wanted, expected)

        async def publish(actor: Any, name: str, wanted: Any, expected: Any) -> Any:
            if not expected.admits(fake.etag):
                raise ChangedError("the policy was changed in the meantime", fake.etag)
            fake.published.append(wanted)
            return self.rollouts.pop(0)

        async def look(name: str) -> Any:
            return self.rollouts.pop(0) if len(self.rollouts) > 1 else self.rollouts[0]

        for name, function in (
            ("save_draft", save_draft),
            ("publish", publish),
            ("roll_back", publish),
            ("rollout", look),
        ):
            self.patch(fake, name, function)

    def publish(self, *more: str) -> str:
        """Publish the file."""
        return self.good("policy", "publish", str(self.policy_file), *more)


class PublishTests(PolicyTestCase):
    """`policy publish`."""

    def test_it_is_saved_shown_published_and_watched(self) -> None:
        told = self.publish("--comment", "CI may build")
        name, wanted, expected = self.drafts[0]
        self.assertEqual((name, wanted["text"], expected.etags), ("builders", POLICY, ("12-8b1f2e6c",)))
        # For whom it was: nothing was said about that.
        self.assertEqual(wanted["target"], {"labels": {"site": "vienna"}})
        self.assertEqual(self.world.policies.published, [{"comment": "CI may build", "waves": True}])
        lines = told.splitlines()
        self.assertIn("rule ci: added at place 1", lines)
        self.assertIn("web2 would get it", lines)
        self.assertEqual(
            lines[-2:],
            [
                "builders version 13: 0 of 1 defender done, 0 refused, 1 waiting, 0 offline (wave 1 of 3)",
                "builders version 13: 1 of 1 defender done, 0 refused, 0 offline.",
            ],
        )

    def test_a_halt_is_told_with_its_reason(self) -> None:
        self.rollouts = [rollout("running", "waiting"), rollout("halted", "refused", "no such key")]
        told = self.bad("policy", "publish", str(self.policy_file))
        self.assertIn("halted: no such key", told)

    def test_a_new_policy_is_made_only_if_there_is_none(self) -> None:
        self.publish("--name", "new", "--host", "web*", "--rank", "3", "--at-once")
        name, wanted, expected = self.drafts[0]
        self.assertEqual((name, wanted["target"]), ("new", {"names": ["web*"], "rank": 3}))
        self.assertTrue(expected.absent)
        self.assertEqual(self.world.policies.published[0]["waves"], False)

    def test_an_invalid_file_does_not_leave_this_machine(self) -> None:
        self.policy_file.write_text("schema: 1\nruls: []\n")
        told = self.bad("policy", "publish", str(self.policy_file))
        self.assertIn("builders.yaml:2", told)
        self.assertEqual(self.drafts, [])

    def test_who_was_faster_is_not_overwritten(self) -> None:
        fake = self.world.policies
        preview = fake.preview

        async def overtaken(name: str) -> Any:
            fake.etag = "13-other"
            return await preview(name)

        self.patch(fake, "preview", overtaken)
        self.assertIn("changed in the meantime", self.bad("policy", "publish", str(self.policy_file)))
        self.assertEqual(fake.published, [])

    def test_nothing_new_is_not_published(self) -> None:
        async def same(name: str, old: int | None, new: int | None) -> Any:
            return {**example("Difference"), "unified": "", "rules": []}

        self.patch(self.world.policies, "diff", same)
        self.assertIn("nothing to publish", self.publish())
        self.assertEqual(self.world.policies.published, [])

    def test_the_draft_that_is_there(self) -> None:
        self.good("policy", "publish", "--name", "builders")
        self.assertEqual((self.drafts, len(self.world.policies.published)), ([], 1))
        self.assertIn("has no draft", self.bad("policy", "publish", "--name", "other"))

    def test_json_is_the_last_state_alone(self) -> None:
        document = json.loads(self.publish("--json"))
        self.assertEqual((document["state"], document["counts"]["acked"]), ("done", 1))

    def test_a_newer_version_ends_the_watch(self) -> None:
        self.rollouts = [rollout("running", "waiting"), rollout("running", "waiting", version=14)]
        told = self.bad("policy", "publish", str(self.policy_file))
        self.assertIn("a newer version has taken its place", told)

    def test_wrong_usage(self) -> None:
        self.assertIn("--name NAME", self.bad("policy", "publish", code=2))
        self.assertIn("with FILE", self.bad("policy", "publish", "--name", "a", "--rank", "1", code=2))
        words = ("policy", "publish", str(self.policy_file), "--everywhere", "--host", "a")
        self.assertIn("stands alone", self.bad(*words, code=2))


class RollTests(PolicyTestCase):
    """Rollback, halt, resume, abort."""

    def test_rollback_to_a_version(self) -> None:
        told = self.good("policy", "rollback", "builders", "11", "--comment", "too much")
        self.assertIn("1 of 1 defender done", told)
        self.assertEqual(
            self.world.policies.published, [{"version": 11, "comment": "too much", "waves": True}]
        )

    def test_rollback_to_the_version_before(self) -> None:
        self.assertIn("no version before", self.bad("policy", "rollback", "builders"))

        async def two(name: str, page: Any) -> Any:
            item = example("VersionItem")
            return {"items": [item, {**item, "number": 11}], "next": None}

        self.patch(self.world.policies, "versions", two)
        self.good("policy", "rollback", "builders")
        self.assertEqual(self.world.policies.published[0]["version"], 11)

    def test_steering(self) -> None:
        self.assertIn("builders version 13: running", self.good("policy", "halt", "builders"))
        self.assertIn("builders version 13: running", self.good("policy", "abort", "builders"))
        self.assertIn("1 of 1 defender done", self.good("policy", "resume", "builders"))


class ReadTests(PolicyTestCase):
    """What there is to see."""

    def test_status_of_one_shows_who_refused_it_and_why(self) -> None:
        self.rollouts = [rollout("halted", "refused", "unknown action 'x'")]
        told = self.good("policy", "status", "builders")
        for text in ("halted", "web1", "refused", "unknown action 'x'", "policy resume builders"):
            self.assertIn(text, told)

    def test_status_of_all(self) -> None:
        self.rollouts = [rollout("done", "offline")]
        told = " ".join(self.good("policy", "status").split())
        self.assertIn("builders 12 yes site=vienna done: 0 of 1 defender done", told)
        document = json.loads(self.good("policy", "status", "--json"))
        self.assertEqual(document[0]["rollout"]["state"], "done")

    def test_history(self) -> None:
        told = self.good("policy", "history", "builders")
        for text in ("12", "bruce", "CI may build", "8b1f2e6c0d9a"):
            self.assertIn(text, told)
        self.assertEqual(json.loads(self.good("policy", "history", "builders", "--json"))[0]["number"], 12)

    def test_a_file_is_compared_with_what_is_published(self) -> None:
        self.assertIn("no difference", self.good("policy", "diff", str(self.policy_file)))
        self.policy_file.write_text(POLICY.replace("allow", "deny"))
        lines = self.good("policy", "diff", str(self.policy_file)).splitlines()
        self.assertIn("-    effect: allow", lines)
        self.assertIn("+    effect: deny", lines)
        self.assertEqual(self.drafts, [])

    def test_drafts_and_versions_are_compared_there(self) -> None:
        told = self.good("policy", "diff", "--name", "builders", "--old", "11")
        self.assertIn("rule ci: added at place 1", told)
        document = json.loads(self.good("policy", "diff", "--name", "builders", "--json"))
        self.assertEqual(document, example("Difference"))

    def test_the_text(self) -> None:
        for options in ((), ("--version", "11"), ("--draft",)):
            self.assertEqual(self.good("policy", "show", "builders", *options), POLICY)
        self.assertIn("there is no policy other", self.bad("policy", "show", "other"))

"""Policies with targets on their way through a fleet."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from controller.distribution import AT_ONCE, GRADUAL
from controller.fleet import NO_POLICY, Target
from controller.policy_stream import PolicyStream
from controller.releases import (
    Advanced,
    Command,
    Halted,
    Held,
    Offer,
    Phase,
    Plan,
    Position,
    Refusal,
    Reissue,
    Release,
    Standing,
    Superseded,
)
from controller.selection import Defender, Selection

EVERYBODY = Target(Selection())
PROD = Target(Selection(labels={"env": "prod"}))


class Case(SynchronousTestCase):
    """Three hosts, two of them in production, all connected."""

    def setUp(self) -> None:
        self.policies = PolicyStream()
        self.number = 0
        self.held: dict[str, int] = {}
        self.policies.begin(self.release(None), 0.0)
        for number, env in enumerate(("prod", "prod", "test"), 1):
            who = f"web{number}"
            self.policies.stream.connected(who, None, 0.0)
            self.answer(self.policies.enrolled(Defender(who, who, {"env": env}), 0.0))

    def release(self, audience: frozenset[str] | None, origin: Position | None = None) -> Release:
        self.number += 1
        position = Position(1, self.number)
        return Release(position, bytes([self.number]), origin or position, audience)

    def publish(self, policy: str, target: Target, plan: Plan = AT_ONCE) -> list[Command]:
        release = self.release(self.policies.fleet.audience(policy, target))
        return self.policies.published(policy, target, release, plan, 0.0)

    def answer(self, commands: list[Command], refuse: bool = False) -> list[Command]:
        """Take, or refuse, everything that is offered; sign what is to be signed. Returns all commands."""
        said = list(commands)
        for command in commands:
            if isinstance(command, Offer):
                for who in command.defenders:
                    said += self.answer(self.answer_one(who, command.position, refuse), refuse)
            elif isinstance(command, Reissue):
                release = self.release(frozenset(command.defenders), command.origin)
                said += self.answer(self.policies.stream.reissued(command.line, release, 0.0), refuse)
        return said

    def answer_one(self, who: str, position: Position, refuse: bool) -> list[Command]:
        if refuse:
            return self.policies.stream.refused(who, position, Refusal("schema"), 0.0)
        self.held[who] = position.version
        return self.policies.stream.acked(who, Held(position, bytes([position.version])), 0.0)

    def following(self) -> dict[str, str | None]:
        return {f"web{number}": self.policies.fleet.policy_of(f"web{number}") for number in (1, 2, 3)}


class Stories(Case):
    def test_without_a_policy_all_have_the_bundle_that_denies_everything(self) -> None:
        self.assertEqual(self.held, {"web1": 1, "web2": 1, "web3": 1})
        self.assertEqual(self.policies.stream.progress(NO_POLICY).acked, 3)

    def test_the_first_version_of_a_policy_goes_in_waves_too(self) -> None:
        said = self.publish("all", EVERYBODY, GRADUAL)
        (offer,) = (each for each in said if isinstance(each, Offer))
        self.assertEqual(len(offer.defenders), 1)
        self.answer(said)
        self.assertEqual(self.held, {"web1": 2, "web2": 2, "web3": 2})
        self.assertIs(self.policies.stream.progress("all").phase, Phase.SETTLED)

    def test_a_refused_first_version_leaves_the_others_alone(self) -> None:
        said = self.answer(self.publish("all", EVERYBODY, GRADUAL), refuse=True)
        self.assertEqual(len([each for each in said if isinstance(each, Halted)]), 1)
        self.assertEqual(self.held, {"web1": 1, "web2": 1, "web3": 1})
        progress = self.policies.stream.progress("all")
        self.assertEqual((progress.refused, progress.waiting, progress.total), (1, 2, 3))

    def test_a_wider_target_goes_in_waves(self) -> None:
        """Who comes to a policy by its new version keeps the other until its wave, never the old version."""
        self.answer(self.publish("all", EVERYBODY))
        self.answer(self.publish("prod", PROD))
        self.assertEqual(self.held, {"web1": 3, "web2": 3, "web3": 2})
        wider = Target(Selection(names=["web*"]))
        said = self.publish("prod", wider, GRADUAL)
        self.assertEqual(sum(len(each.defenders) for each in said if isinstance(each, Offer)), 1)
        self.assertFalse([each for each in said if isinstance(each, Reissue)])
        self.answer(said)
        self.assertEqual(self.held, {"web1": 4, "web2": 4, "web3": 4})

    def test_a_narrower_target_gives_the_others_their_next_policy_at_once(self) -> None:
        self.answer(self.publish("all", EVERYBODY))
        self.answer(self.publish("prod", PROD))
        narrow = Target(Selection(names=["web1"]))
        self.answer(self.publish("prod", narrow))
        self.assertEqual(self.following(), {"web1": "prod", "web2": "all", "web3": "all"})
        # The content of version 2, under a number that web2 accepts.
        self.assertEqual(self.held, {"web1": 4, "web2": 5, "web3": 2})
        self.assertEqual(self.policies.stream.standing("web2"), (Standing.ACKED, None))

    def test_a_new_label_takes_a_defender_to_another_policy_and_back(self) -> None:
        self.answer(self.publish("all", EVERYBODY))
        self.answer(self.publish("prod", PROD))
        self.answer(self.policies.enrolled(Defender("web3", "web3", {"env": "prod"}), 0.0))
        # Version 3 was signed for web1 and web2 only.
        self.assertEqual(self.held["web3"], 4)
        self.answer(self.policies.enrolled(Defender("web3", "web3", {"env": "test"}), 0.0))
        self.assertEqual((self.following()["web3"], self.held["web3"]), ("all", 5))

    def test_one_that_enrols_later_gets_what_is_in_force(self) -> None:
        self.answer(self.publish("all", EVERYBODY))
        self.policies.stream.connected("new", None, 0.0)
        self.answer(self.policies.enrolled(Defender("new", "new"), 0.0))
        self.assertEqual(self.held["new"], 2)

    def test_a_policy_that_is_withdrawn(self) -> None:
        self.answer(self.publish("prod", PROD))
        self.answer(self.policies.withdrawn("prod", 0.0))
        self.assertEqual(self.following(), {"web1": NO_POLICY, "web2": NO_POLICY, "web3": NO_POLICY})
        self.assertEqual(self.policies.stream.progress(NO_POLICY).acked, 3)
        self.assertNotIn("prod", self.policies.stream.lines())

    def test_one_that_leaves_the_fleet(self) -> None:
        self.answer(self.publish("all", EVERYBODY))
        self.policies.removed("web3", 0.0)
        self.assertEqual(self.policies.stream.progress("all").total, 2)

    def test_the_loser_of_a_race_changes_no_target(self) -> None:
        older, newer = self.release(None), self.release(None)
        self.answer(self.policies.published("p", EVERYBODY, newer, AT_ONCE, 0.0))
        said = self.policies.published("p", PROD, older, AT_ONCE, 0.0)
        self.assertEqual(said, [Superseded("p", older.position, newer.position)])
        self.assertEqual(set(self.following().values()), {"p"})

    def test_rollouts_of_two_policies_do_not_wait_for_each_other(self) -> None:
        self.answer(self.publish("all", EVERYBODY))
        self.answer(self.publish("prod", PROD))
        self.answer(self.publish("prod", PROD, GRADUAL), refuse=True)
        said = self.answer(self.publish("all", EVERYBODY, GRADUAL))
        self.assertTrue(any(isinstance(each, Advanced) for each in said))
        self.assertIs(self.policies.stream.progress("prod").phase, Phase.HALTED)
        self.assertIs(self.policies.stream.progress("all").phase, Phase.SETTLED)
        self.assertEqual(self.held, {"web1": 3, "web2": 3, "web3": 5})

    def test_what_was_published_last_is_known_after_another_start(self) -> None:
        for policy in ("b", "a", "b"):
            self.answer(self.publish(policy, EVERYBODY))
        old, self.policies = self.policies, PolicyStream()
        states = [old.stream.state(line) for line in old.stream.lines()]
        targets = {"a": EVERYBODY, "b": EVERYBODY}
        self.policies.restore(old.fleet.defenders(), targets, {}, states, [], 0.0)
        self.assertEqual(set(self.following().values()), {"b"})

    def test_a_controller_that_starts_again_goes_on(self) -> None:
        self.answer(self.publish("all", EVERYBODY))
        self.answer(self.publish("prod", PROD))
        said = self.publish("prod", PROD, GRADUAL)
        (first,) = (each.defenders[0] for each in said if isinstance(each, Offer))
        self.policies.stream.refused(first, Position(1, 4), Refusal("schema"), 0.0)
        old, self.policies = self.policies, PolicyStream()
        states = [old.stream.state(line) for line in old.stream.lines()]
        kept = {who: Held(Position(1, version), bytes([version])) for who, version in self.held.items()}
        targets = {"all": EVERYBODY, "prod": PROD}
        with self.assertRaisesRegex(ValueError, "nothing was kept of the rollout of prod"):
            PolicyStream().restore([], targets, {}, states[:2], [], 0.0)
        origin = old.stream.origin_of(Position(1, 4))
        commands = self.policies.restore(
            old.fleet.defenders(), targets, kept, states, [(first, origin, Refusal("schema"))], 0.0
        )
        self.assertEqual(commands, [])
        self.assertEqual(self.following(), {"web1": "prod", "web2": "prod", "web3": "all"})
        for who in ("web1", "web2", "web3"):
            self.assertEqual(self.policies.stream.connected(who, kept[who], 0.0), [])
        self.assertEqual(self.policies.stream.standing(first), (Standing.REFUSED, Refusal("schema")))
        resumed = self.answer(self.policies.stream.resume("prod", 0.0))
        self.assertTrue(any(isinstance(each, Advanced) for each in resumed))
        other = "web2" if first == "web1" else "web1"
        self.assertEqual((self.held[first], self.held[other]), (3, 4))

"""Which policy and which listener mode each defender should have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.fleet import (
    NO_POLICY,
    NO_POLICY_TEXT,
    Fleet,
    Follow,
    Mode,
    ModeError,
    ModeOrder,
    Preview,
    Target,
    order_mode,
)
from controller.selection import Defender, Selection, SelectionError
from defender.contract.policy import load_policy

EVERYBODY = Target(Selection())
PROD = Target(Selection(labels={"env": "prod"}))


class FleetCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.fleet = Fleet()
        for number, env in enumerate(("prod", "prod", "test"), 1):
            self.fleet.enrolled(Defender(f"id{number}", f"web{number}", {"env": env}))


class Policies(FleetCase):
    def test_without_a_policy_everything_is_denied(self) -> None:
        self.assertEqual(self.fleet.policy_of("id1"), NO_POLICY)
        self.assertEqual(load_policy(NO_POLICY_TEXT, "none").rules, ())
        self.assertIsNone(self.fleet.policy_of("stranger"))

    def test_a_policy_for_all_and_one_for_some(self) -> None:
        self.assertEqual(
            self.fleet.targeted("all", EVERYBODY), [Follow(f"id{number}", "all") for number in (1, 2, 3)]
        )
        # The one that names labels goes first, whatever it is called.
        self.assertEqual(self.fleet.targeted("prod", PROD), [Follow("id1", "prod"), Follow("id2", "prod")])
        self.assertEqual(self.fleet.followers("prod"), {"id1", "id2"})
        self.assertEqual(self.fleet.targeted("prod", None), [Follow("id1", "all"), Follow("id2", "all")])

    def test_the_rank_decides_first(self) -> None:
        self.fleet.targeted("prod", PROD)
        self.fleet.targeted("guard", Target(Selection(), rank=1))
        self.assertEqual(self.fleet.followers("guard"), {"id1", "id2", "id3"})
        for wrong in (-1, 1001):
            with self.assertRaisesRegex(ValueError, "a rank is between"):
                Target(Selection(), wrong)

    def test_targets_come_back_as_they_went(self) -> None:
        for target in (EVERYBODY, PROD, Target(Selection(names=["web*"]), 7)):
            self.assertEqual(Target.from_document(target.as_document()), target)
        for document in ({"rank": True}, {"rank": "1"}, {"rank": 1001}, {"rank": None}, {"hosts": ["x"]}):
            with self.assertRaises(SelectionError):
                Target.from_document(document)

    def test_a_new_label_changes_the_policy(self) -> None:
        self.fleet.targeted("prod", PROD)
        self.assertEqual(
            self.fleet.enrolled(Defender("id3", "web3", {"env": "prod"})), [Follow("id3", "prod")]
        )
        self.assertEqual(self.fleet.enrolled(Defender("id3", "web3", {})), [Follow("id3", NO_POLICY)])
        self.assertEqual(self.fleet.enrolled(Defender("id3", "renamed", {})), [])
        with self.assertRaises(SelectionError):
            self.fleet.enrolled(Defender("id3", "web3", {"a b": ""}))

    def test_one_that_leaves_the_fleet(self) -> None:
        self.assertEqual(self.fleet.removed("id1"), [Follow("id1", None)])
        self.assertEqual(self.fleet.removed("id1"), [])
        self.assertIsNone(self.fleet.policy_of("id1"))

    def test_a_policy_without_a_name(self) -> None:
        with self.assertRaises(ValueError):
            self.fleet.targeted(NO_POLICY, EVERYBODY)

    def test_what_would_change(self) -> None:
        self.fleet.targeted("prod", PROD)
        narrow = Target(Selection(names=["web2", "web3"]))
        self.assertEqual(
            self.fleet.preview("prod", narrow), Preview(enter=("id3",), leave=("id1",), uncovered=("id1",))
        )
        self.fleet.targeted("all", EVERYBODY)
        self.assertEqual(self.fleet.preview("prod", None), Preview((), ("id1", "id2"), ()))
        # Nothing was changed by asking.
        self.assertEqual(self.fleet.followers("prod"), {"id1", "id2"})

    def test_whom_it_is_signed_for(self) -> None:
        self.assertIsNone(self.fleet.audience("all", EVERYBODY))
        self.assertEqual(self.fleet.audience("prod", PROD), {"id1", "id2"})
        self.fleet.targeted("web1", Target(Selection(names=["web1"]), rank=5))
        self.assertEqual(self.fleet.audience("prod", PROD), {"id2"})

    def test_of_equals_the_one_that_was_published_last(self) -> None:
        self.fleet.targeted("b", EVERYBODY)
        self.assertEqual(self.fleet.preview("a", EVERYBODY).enter, ("id1", "id2", "id3"))
        self.fleet.targeted("a", EVERYBODY)
        self.assertEqual(self.fleet.followers("a"), {"id1", "id2", "id3"})
        self.fleet.targeted("b", EVERYBODY)
        self.assertEqual(self.fleet.followers("b"), {"id1", "id2", "id3"})
        self.fleet.targeted("b", None)
        self.assertEqual(self.fleet.followers("a"), {"id1", "id2", "id3"})

    def test_where_only_the_time_decides(self) -> None:
        self.fleet.targeted("prod", PROD)
        self.fleet.targeted("web", Target(Selection(names=["web*"])))
        self.fleet.targeted("all", EVERYBODY)
        self.assertEqual(self.fleet.overlaps(), [("web", "prod", ("id1", "id2"))])
        self.fleet.targeted("web", Target(Selection(names=["web*"]), rank=1))
        self.assertEqual(self.fleet.overlaps(), [])

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b", "c"]),
                st.none() | st.tuples(st.sampled_from(["*", "web1", "web?"]), st.integers(0, 2)),
            )
        )
    )
    def test_what_was_told_is_what_holds(self, changes: list[tuple[str, tuple[str, int] | None]]) -> None:
        fleet = Fleet()
        follows: dict[str, str | None] = {}
        for number in (1, 2, 3):
            for told in fleet.enrolled(Defender(f"id{number}", f"web{number}")):
                follows[told.defender] = told.policy
        for policy, wanted in changes:
            target = None if wanted is None else Target(Selection(names=[wanted[0]]), wanted[1])
            preview = fleet.preview(policy, target)
            changed = fleet.targeted(policy, target)
            self.assertEqual({each.defender for each in changed}, {*preview.enter, *preview.leave})
            for told in changed:
                follows[told.defender] = told.policy
            for who in ("id1", "id2", "id3"):
                self.assertEqual(follows[who], fleet.policy_of(who))


class Finding(FleetCase):
    def test_by_id_or_name(self) -> None:
        self.assertEqual(self.fleet.find("id2"), self.fleet.find("WEB2"))
        self.assertIsNone(self.fleet.find("web9"))

    def test_a_name_that_two_have_finds_neither(self) -> None:
        self.fleet.enrolled(Defender("id4", "Web2"))
        self.assertIsNone(self.fleet.find("web2"))

    def test_in_the_order_of_their_names(self) -> None:
        self.fleet.enrolled(Defender("id0", "Alpha"))
        self.assertEqual([each.name for each in self.fleet.defenders()], ["Alpha", "web1", "web2", "web3"])
        self.assertEqual(
            [each.name for each in self.fleet.defenders(Selection(labels={"env": "prod"}))], ["web1", "web2"]
        )


class Modes(FleetCase):
    def test_for_those_that_are_selected_and_lack_it(self) -> None:
        tcp = Mode("tcp", 600)
        ordered = {"id1": tcp, "id2": Mode("tcp", 0)}
        selected = Selection(names=["web1", "web2"])
        self.assertEqual(
            order_mode(tcp, selected, self.fleet.defenders(), ordered), ModeOrder(tcp, frozenset({"id2"}))
        )
        # Asked for again, it is told again: somebody asks because a port was taken.
        one = Selection(names=["web1"])
        self.assertEqual(
            order_mode(tcp, one, self.fleet.defenders(), ordered.get), ModeOrder(tcp, frozenset({"id1"}))
        )

    def test_what_cannot_be_ordered(self) -> None:
        for listener, drain, text in (
            ("udp", None, "'udp' is not one of none, unix, tcp, unix\\+tcp"),
            ("tcp", -1, "a drain of -1 s"),
            ("tcp", 700_000, "is not between 0 and 604800 s"),
        ):
            with self.assertRaisesRegex(ModeError, text):
                Mode(listener, drain)
        with self.assertRaisesRegex(ModeError, "no defender is selected by x"):
            order_mode(Mode("none"), Selection(names=["x"]), self.fleet.defenders(), {})

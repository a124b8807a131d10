"""A head that was read before is treated like one that was not: it is only read faster."""

from __future__ import annotations

from defender.contract.facts import Subject
from tests.defender.proxy.house import BRUCE, EMPTY, LIST, HouseCase, message_of, status_of


class RepeatedTests(HouseCase):
    def setUp(self) -> None:
        super().setUp()
        self.client = self.house.client()
        self.ask()

    def ask(self) -> None:
        self.client.deliver(LIST)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(self.client.take()), 200)
        self.house.engine.take()

    def test_the_policy_in_force_decides(self) -> None:
        self.house.activation.offer("schema: 1\nrules: []\n", "policy.yaml")
        self.house.proxy.judge_again()
        self.client.deliver(LIST)
        self.assertIn("denied for user 'bruce'", message_of(self.client.take()))
        decision = self.house.events.last()["decision"]
        policy = self.house.activation.policy
        assert policy is not None
        self.assertEqual((decision["effect"], decision["digest"]), ("deny", policy.digest))

    def test_every_connection_is_judged_by_its_own_subject(self) -> None:
        other = self.house.client(Subject(user="anne", groups=("nobodies",), address="10.1.2.3"))
        other.deliver(LIST)
        self.assertIn("denied for user 'anne'", message_of(other.take()))
        self.ask()

    def test_it_may_come_in_pieces(self) -> None:
        self.client.deliver(LIST[:30])
        self.client.deliver(LIST[30:])
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(self.client.take()), 200)

    def test_it_waits_behind_what_has_begun(self) -> None:
        self.client.deliver(LIST[:30])
        self.client.deliver(LIST)
        self.assertEqual(self.house.engine.take(), b"")
        self.assertEqual(status_of(self.client.take()), 400)

    def test_it_waits_while_its_user_floods(self) -> None:
        share = self.house.proxy.budgets.enter(BRUCE.user, BRUCE.via)
        share.flooded_until = self.house.proxy.seconds() + 1.5
        self.client.deliver(LIST)
        self.assertEqual(self.house.engine.take(), b"")
        self.assertTrue(self.client.paused)
        self.house.advance(3)
        self.assertNotEqual(self.house.engine.take(), b"")
        self.assertEqual(len(self.house.events.kept), 1)

    def test_it_waits_while_its_client_does_not_read(self) -> None:
        self.client.fill()
        self.client.deliver(LIST)
        self.assertEqual(self.house.engine.take(), b"")
        self.client.drain()
        self.assertNotEqual(self.house.engine.take(), b"")

    def test_other_limits_begin_anew(self) -> None:
        readings = self.house.proxy.readings
        self.assertIsNotNone(readings.known(LIST))
        self.house.proxy.limits = self.house.proxy.limits
        self.assertIsNone(self.house.proxy.readings.known(LIST))

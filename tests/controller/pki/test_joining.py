"""Who may ask to join how often, and which host names a defender may serve users under."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from controller.pki.hosts import allowed_hosts
from controller.pki.join_rates import MAX_ADDRESSES, OVERALL, PER_ADDRESS, JoinRates

ONE = ip_address("10.1.2.3")


class RateTests(SynchronousTestCase):
    """Five a second from one address, fifty from all."""

    def test_one_address(self) -> None:
        rates = JoinRates()
        self.assertEqual([rates.admit(ONE, 100.0) for _ in range(7)], [True] * 5 + [False] * 2)
        self.assertTrue(rates.admit(ONE, 100.21))
        self.assertFalse(rates.admit(ONE, 100.22))
        self.assertEqual((PER_ADDRESS, OVERALL), (5, 50))

    def test_a_flooder_shuts_nobody_out(self) -> None:
        rates = JoinRates()
        for _ in range(10_000):
            rates.admit(ONE, 100.0)
        self.assertTrue(rates.admit(ip_address("10.1.2.4"), 100.0))

    def test_all_together(self) -> None:
        rates = JoinRates()
        admitted = [rates.admit(ip_address(0x0A000000 + number), 100.0) for number in range(60)]
        self.assertEqual(sum(admitted), 50)

    def test_an_ipv6_host_has_a_network(self) -> None:
        rates = JoinRates()
        addresses = [ip_address(f"2001:db8::{number:x}") for number in range(1, 8)]
        self.assertEqual(sum(rates.admit(each, 100.0) for each in addresses), 5)
        mapped = ip_address("::ffff:10.1.2.3")
        self.assertEqual(sum(rates.admit(each, 100.0) for each in (ONE, mapped) * 4), 5)

    def test_memory_is_bounded(self) -> None:
        rates = JoinRates()
        for number in range(3 * MAX_ADDRESSES):
            rates.admit(ip_address(number + 1), 100.0 + number)
        self.assertLessEqual(len(rates._full), MAX_ADDRESSES)


class HostTests(SynchronousTestCase):
    """A defender says under which names it is reached; whom it could pose as is not its choice."""

    def test_its_own(self) -> None:
        allowed, left_out = allowed_hosts(
            "web1",
            ["web1", "WEB1.Example.com", "localhost", "127.0.0.1", "::1", "10.1.2.3"],
            source=ip_address("::ffff:10.1.2.3"),
        )
        self.assertEqual(allowed, ("web1", "web1.example.com", "localhost", "127.0.0.1", "::1", "10.1.2.3"))
        self.assertEqual(left_out, ())

    def test_others(self) -> None:
        wanted = ["db1", "web10", "example.com", "10.1.2.4", "*", "a b", "0.0.0.0"]
        self.assertEqual(allowed_hosts("web1", wanted, source=ONE), ((), tuple(wanted)))

    def test_what_the_token_adds(self) -> None:
        allowed, left_out = allowed_hosts(
            "web1",
            ["docker.example.com", "other.test", "10.9.0.1", "192.0.2.1"],
            source=ONE,
            patterns=("*.example.com", "10.9.0.0/16"),
        )
        self.assertEqual(
            (allowed, left_out), (("docker.example.com", "10.9.0.1"), ("other.test", "192.0.2.1"))
        )

    def test_what_another_one_has(self) -> None:
        allowed, left_out = allowed_hosts(
            "web1", ["web1.a.test", "10.1.2.3"], source=ONE, taken={"web1.a.test", "10.1.2.3"}
        )
        self.assertEqual((allowed, left_out), ((), ("web1.a.test", "10.1.2.3")))

    def test_what_another_one_has_and_an_administrator_gives_away(self) -> None:
        taken, wanted = (
            {"hq", "hq.a.test", "10.1.2.3", "10.1.2.9"},
            ["hq", "hq.a.test", "10.1.2.3", "10.1.2.9"],
        )
        allowed, left_out = allowed_hosts(
            "web1", wanted, source=ONE, taken=taken, patterns=("hq", "*.a.test", "10.1.2.9", "10.1.0.0/16")
        )
        self.assertEqual((allowed, left_out), (("hq", "10.1.2.9"), ("hq.a.test", "10.1.2.3")))

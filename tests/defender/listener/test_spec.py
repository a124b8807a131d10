"""Addresses, modes and the specs made of them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.listener.spec import (
    MODES,
    DesiredMode,
    Inherited,
    ListenSpec,
    SpecError,
    TCPAddress,
    UnixAddress,
    mode_of,
    parse_mode,
    parse_tcp,
    parse_unix,
    read_hosts,
    read_spec,
    reconcile,
)


class TCPTexts(SynchronousTestCase):
    def test_ipv4(self) -> None:
        self.assertEqual(parse_tcp("0.0.0.0:9998"), TCPAddress("0.0.0.0", 9998))

    def test_ipv6_in_brackets_is_made_canonical(self) -> None:
        self.assertEqual(parse_tcp("[2001:DB8:0::1]:9998"), TCPAddress("2001:db8::1", 9998))
        self.assertEqual(str(parse_tcp("tcp://[::]:9998")), "tcp://[::]:9998")

    def test_scheme(self) -> None:
        self.assertEqual(parse_tcp("tcp://127.0.0.1:0"), TCPAddress("127.0.0.1", 0))

    def test_inherited(self) -> None:
        self.assertEqual(parse_tcp("fd://tls"), Inherited("tls", "tcp"))

    def test_what_is_wrong_is_said(self) -> None:
        for text, words in {
            "9998": "has no port",
            ":9998": "0.0.0.0 for all of IPv4",
            "0.0.0.0:": "is not a port",
            "0.0.0.0:65536": "is not a port",
            "0.0.0.0:+1": "is not a port",
            "localhost:9998": "a host name is not looked up",
            "010.0.0.1:9998": "is not an IP address",
            "::1:9998": "in brackets, such as [::1]:9998",
            "[127.0.0.1]:9998": "without brackets",
            "[::ffff:1.2.3.4]:9998": "write IPv4 addresses as IPv4",
            "[fe80::1%eth0]:9998": "no zone",
            "unix:///x": "a unix socket where a TCP address is expected",
            "fd://": "FileDescriptorName=",
            "fd://a/b": "FileDescriptorName=",
        }.items():
            error = self.assertRaises(SpecError, parse_tcp, text)
            self.assertIn(words, str(error), text)
            self.assertIn(repr(text), str(error))


class UnixTexts(SynchronousTestCase):
    def test_path_and_scheme_are_the_same(self) -> None:
        expected = UnixAddress("/run/defender/docker.sock")
        for text in (
            "/run/defender/docker.sock",
            "unix:///run/defender/docker.sock",
            "/run//defender/./docker.sock",
        ):
            self.assertEqual(parse_unix(text), expected)

    def test_inherited(self) -> None:
        self.assertEqual(parse_unix("fd://docker"), Inherited("docker", "unix"))

    def test_longest_path(self) -> None:
        self.assertEqual(len(str(parse_unix("/" + "x" * 106))), len("unix://") + 107)
        self.assertIn("108 bytes", str(self.assertRaises(SpecError, parse_unix, "/" + "x" * 107)))

    def test_bytes_are_counted_not_characters(self) -> None:
        self.assertRaises(SpecError, parse_unix, "/" + "é" * 60)

    def test_what_is_wrong_is_said(self) -> None:
        for text, words in {
            "": "not an absolute path",
            "run/x": "not an absolute path",
            "unix://run/x": "not an absolute path",
            "/": "plain path",
            "/run/x/": "plain path",
            "/run/../x": "plain path",
            "/run/\nx": "control character",
            "tcp://0.0.0.0:1": "a TCP address where a unix socket is expected",
        }.items():
            self.assertIn(words, str(self.assertRaises(SpecError, parse_unix, text)), text)


class Modes(SynchronousTestCase):
    def test_every_mode(self) -> None:
        for mode in MODES:
            self.assertEqual(parse_mode(mode), mode)

    def test_unknown_mode_names_the_choices(self) -> None:
        error = self.assertRaises(SpecError, parse_mode, "tcp+unix")
        self.assertIn("none, unix, tcp, unix+tcp", str(error))

    def test_mode_of_kinds(self) -> None:
        self.assertEqual(mode_of([]), "none")
        self.assertEqual(mode_of(["tcp", "tcp"]), "tcp")
        self.assertEqual(mode_of(["unix"]), "unix")
        self.assertEqual(mode_of(["unix", "tcp"]), "unix+tcp")

    def test_a_mode_chosen_at_run_time_wins_until_the_file_changes(self) -> None:
        self.assertEqual(reconcile("tcp", None), "tcp")
        self.assertEqual(reconcile("tcp", DesiredMode("unix", over="tcp")), "unix")
        self.assertEqual(reconcile("unix+tcp", DesiredMode("unix", over="tcp")), "unix+tcp")


class Specs(SynchronousTestCase):
    def test_addresses_are_those_of_the_mode(self) -> None:
        spec = read_spec("unix+tcp", ["0.0.0.0:1", "[::]:1"], ["/a"])
        tcp = (TCPAddress("0.0.0.0", 1), TCPAddress("::", 1))
        self.assertEqual(spec.addresses, (*tcp, UnixAddress("/a")))
        self.assertEqual(spec.in_mode("tcp").addresses, tcp)
        self.assertEqual(spec.in_mode("unix").addresses, (UnixAddress("/a"),))
        self.assertEqual(spec.in_mode("none").addresses, ())

    def test_a_mode_needs_its_addresses(self) -> None:
        self.assertIn("TCP address", str(self.assertRaises(SpecError, read_spec, "tcp", [], ["/a"])))
        spec = read_spec("tcp", ["0.0.0.0:1"], [])
        self.assertIn("unix socket", str(self.assertRaises(SpecError, spec.in_mode, "unix+tcp")))

    def test_doubles_and_overlaps(self) -> None:
        for tcp, unix, words in [
            (["0.0.0.0:1", "tcp://0.0.0.0:1"], [], "twice"),
            (["0.0.0.0:1"], ["/a", "//a"], "twice"),
            (["fd://x"], ["fd://x"], "twice"),
            (["0.0.0.0:1", "127.0.0.1:1"], [], "overlap"),
            (["[::1]:1", "[::]:1"], [], "overlap"),
        ]:
            error = self.assertRaises(SpecError, read_spec, "none", tcp, unix)
            self.assertIn(words, str(error))

    def test_both_families_on_one_port_do_not_overlap(self) -> None:
        read_spec("tcp", ["0.0.0.0:1", "[::]:1", "127.0.0.1:2"], [])

    def test_permission_bits(self) -> None:
        self.assertRaises(SpecError, read_spec, "none", [], [], unix_mode=0o060)
        self.assertRaises(SpecError, read_spec, "none", [], [], unix_mode=0o4660)


class Hosts(SynchronousTestCase):
    def test_kinds_make_the_mode(self) -> None:
        spec = read_hosts(["tcp://0.0.0.0:1", "unix:///a", "fd://d"], {"d": "unix"}, unix_group="docker")
        self.assertEqual(spec.mode, "unix+tcp")
        self.assertEqual(spec.unix, (UnixAddress("/a"), Inherited("d", "unix")))
        self.assertEqual(spec.access, (0o660, "docker"))
        self.assertEqual(read_hosts(["fd://d"], {"d": "tcp"}).mode, "tcp")

    def test_a_scheme_is_needed(self) -> None:
        for text in ("0.0.0.0:1", "/a", "http://0.0.0.0:1"):
            self.assertIn("begin with", str(self.assertRaises(SpecError, read_hosts, [text], {})))

    def test_an_unknown_inherited_socket_names_the_known(self) -> None:
        error = self.assertRaises(SpecError, read_hosts, ["fd://x"], {"b": "tcp", "a": "unix"})
        self.assertIn("passed: a, b", str(error))


class AnyText(SynchronousTestCase):
    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=60) | st.text(alphabet="tcpunixfd:/[]0123456789.%-", max_size=40))
    def test_is_an_address_or_an_error_and_round_trips(self, text: str) -> None:
        for parse in (parse_tcp, parse_unix):
            try:
                address = parse(text)
            except SpecError:
                continue
            self.assertEqual(parse(str(address)), address)

    def test_a_spec_is_hashable(self) -> None:
        self.assertEqual(len({ListenSpec("none"), ListenSpec("none")}), 1)

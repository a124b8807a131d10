"""The listener switch: playbooks of single stories, and a walk through all of them."""

from __future__ import annotations

from automat import NoTransition
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.trial.unittest import SynchronousTestCase

from defender.listener.spec import ListenSpec, TCPAddress, UnixAddress, read_spec
from defender.listener.switch import (
    Bind,
    CloseStreams,
    Command,
    Drain,
    Listener,
    Permit,
    Probe,
    Report,
    Restore,
    Retry,
    StopAccepting,
    SwitchState,
    build,
)

TCP = TCPAddress("0.0.0.0", 9998)
UNIX = UnixAddress("/run/d.sock")
MACHINE = build()


def spec(
    mode: str, tcp: str = "0.0.0.0:9998", unix: str = "/run/d.sock", unix_mode: int = 0o660
) -> ListenSpec:
    return read_spec(mode, tcp.split(), unix.split(), unix_mode=unix_mode, unix_group="docker")


class Playbook(SynchronousTestCase):
    def setUp(self) -> None:
        self.state = SwitchState()
        self.switch = MACHINE(self.state)

    def serve(self, first: ListenSpec) -> list[Listener]:
        """Open a spec; return its listeners in order."""
        listeners = []
        for command in self.switch.start(1, first):
            assert isinstance(command, Bind)
            listeners.append(command.listener)
            self.switch.bound(command.listener)
        return listeners


class Starting(Playbook):
    def test_every_address_is_bound_and_then_reported(self) -> None:
        one, two = Listener(1, TCP), Listener(2, UNIX)
        wanted = spec("unix+tcp")
        self.assertEqual(
            self.switch.start(7, wanted), [Bind(one, 0o660, "docker"), Bind(two, 0o660, "docker")]
        )
        self.assertEqual(self.switch.bound(one), [])
        self.assertEqual(self.switch.bound(two), [Report(7, "switched", wanted, "")])
        self.assertEqual(self.state.serving, {TCP: one, UNIX: two})

    def test_mode_none_opens_nothing(self) -> None:
        wanted = spec("none")
        self.assertEqual(self.switch.start(1, wanted), [Report(1, "switched", wanted, "")])
        self.assertEqual(self.switch.select(2, wanted, 0), [Report(2, "unchanged", wanted, "")])

    def test_an_occupied_address_is_retried_while_the_others_serve(self) -> None:
        wanted = spec("unix+tcp")
        self.switch.start(1, wanted)
        self.switch.bound(Listener(2, UNIX))
        self.assertEqual(
            self.switch.bind_failed(Listener(1, TCP), "in use"),
            [Retry(TCP, 1.0, "in use"), Report(1, "partial", wanted, "tcp://0.0.0.0:9998: in use")],
        )
        self.assertEqual(self.state.serving, {UNIX: Listener(2, UNIX)})
        self.assertEqual(self.switch.retry(TCP), [Bind(Listener(3, TCP), 0o660, "docker")])
        self.assertEqual(self.switch.bound(Listener(3, TCP)), [])
        self.assertEqual(self.state.serving, {UNIX: Listener(2, UNIX), TCP: Listener(3, TCP)})
        self.assertEqual(self.state.missing, {})

    def test_the_delay_of_retries_grows_to_a_minute(self) -> None:
        self.switch.start(1, spec("tcp"))
        commands = self.switch.bind_failed(Listener(1, TCP), "in use")
        delays = []
        for _ in range(12):
            [delay] = [command.delay for command in commands if isinstance(command, Retry)]
            delays.append(delay)
            [bind] = self.switch.retry(TCP)
            assert isinstance(bind, Bind)
            commands = self.switch.bind_failed(bind.listener, "in use")
        self.assertEqual(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60])

    def test_a_retry_that_a_switch_made_needless_does_nothing(self) -> None:
        self.switch.start(1, spec("tcp"))
        self.switch.bind_failed(Listener(1, TCP), "in use")
        self.switch.select(2, spec("unix"), 0)
        self.switch.bound(Listener(2, UNIX))
        self.switch.probed(Listener(2, UNIX))
        self.assertEqual(self.switch.retry(TCP), [])
        self.switch.select(3, spec("none"), 0)
        self.assertEqual(self.switch.retry(TCP), [])

    def test_a_retry_during_a_switch_waits(self) -> None:
        self.switch.start(1, spec("tcp"))
        self.switch.bind_failed(Listener(1, TCP), "in use")
        self.switch.select(2, spec("unix"), 0)
        [again] = self.switch.retry(TCP)
        self.assertEqual(again, Retry(TCP, 1.0, "a switch is under way"))
        self.assertEqual(self.switch.retry(UNIX), [])
        self.switch.bind_failed(Listener(2, UNIX), "no such directory")
        self.assertEqual(self.switch.retry(TCP), [Bind(Listener(3, TCP), 0o660, "docker")])

    def test_a_second_start_is_a_bug(self) -> None:
        self.serve(spec("tcp"))
        self.assertRaises(NoTransition, self.switch.start, 2, spec("tcp"))


class Switching(Playbook):
    def test_make_before_break(self) -> None:
        [old] = self.serve(spec("tcp"))
        new = Listener(2, UNIX)
        wanted = spec("unix")
        self.assertEqual(self.switch.select(2, wanted, 600), [Bind(new, 0o660, "docker")])
        self.assertEqual(self.switch.bound(new), [Probe(new)])
        self.assertEqual(
            self.switch.probed(new),
            [StopAccepting(old), Drain(old, 600), Report(2, "switched", wanted, "")],
        )
        self.assertEqual(self.state.serving, {UNIX: new})
        self.assertEqual(self.state.draining, {old})
        self.assertEqual(self.switch.drained(old), [])
        self.assertEqual(self.state.draining, set())

    def test_a_common_address_is_not_touched(self) -> None:
        [tcp] = self.serve(spec("tcp"))
        both, unix = spec("unix+tcp"), Listener(2, UNIX)
        self.assertEqual(self.switch.select(2, both, 0), [Bind(unix, 0o660, "docker")])
        self.switch.bound(unix)
        self.assertEqual(self.switch.probed(unix), [Report(2, "switched", both, "")])
        only = spec("unix")
        self.assertEqual(
            self.switch.select(3, only, 0),
            [StopAccepting(tcp), Drain(tcp, 0), Report(3, "switched", only, "")],
        )

    def test_the_same_again_is_unchanged(self) -> None:
        self.serve(spec("tcp"))
        self.assertEqual(self.switch.select(2, spec("tcp"), 0), [Report(2, "unchanged", spec("tcp"), "")])

    def test_none_stops_all(self) -> None:
        one, two = self.serve(spec("unix+tcp"))
        none = spec("none")
        self.assertEqual(
            self.switch.select(2, none, 5),
            [
                StopAccepting(one),
                StopAccepting(two),
                Drain(one, 5),
                Drain(two, 5),
                Report(2, "switched", none, ""),
            ],
        )
        self.assertEqual(self.state.serving, {})

    def test_an_occupied_port_keeps_the_old_mode_and_says_why(self) -> None:
        [old] = self.serve(spec("unix"))
        wanted = spec("tcp")
        self.switch.select(2, wanted, 0)
        self.assertEqual(
            self.switch.bind_failed(Listener(2, TCP), "in use"),
            [Report(2, "failed", wanted, "tcp://0.0.0.0:9998: in use")],
        )
        self.assertEqual(self.state.serving, {UNIX: old})
        self.assertEqual(self.state.spec, spec("unix"))

    def test_one_failure_closes_the_other_new_ones(self) -> None:
        [old] = self.serve(spec("unix"))
        wanted = spec("tcp", tcp="127.0.0.1:1 127.0.0.1:2 127.0.0.1:3")
        one, two, three = (
            command.listener for command in self.switch.select(2, wanted, 0) if isinstance(command, Bind)
        )
        self.switch.bound(one)
        self.assertEqual(self.switch.bind_failed(two, "in use"), [])
        # It is bound and needs no probe any more.
        self.assertEqual(self.switch.bound(three), [])
        self.assertEqual(
            self.switch.probe_failed(one, "no answer"),
            [
                StopAccepting(three),
                StopAccepting(one),
                CloseStreams(three),
                CloseStreams(one),
                Report(2, "failed", wanted, "tcp://127.0.0.1:2: in use; tcp://127.0.0.1:1: no answer"),
            ],
        )
        self.assertEqual(self.state.serving, {UNIX: old})
        self.assertEqual(self.state.draining, {one, three})

    def test_an_overlap_with_a_served_address_fails_at_once(self) -> None:
        self.serve(spec("tcp", tcp="127.0.0.1:9998"))
        wanted = spec("tcp", tcp="0.0.0.0:9998")
        [report] = self.switch.select(2, wanted, 0)
        assert isinstance(report, Report)
        self.assertEqual(report.outcome, "failed")
        self.assertIn("overlaps tcp://127.0.0.1:9998", report.reason)

    def test_a_failed_switch_from_none_stays_none(self) -> None:
        self.switch.start(1, spec("none"))
        self.switch.select(2, spec("tcp"), 0)
        self.switch.bind_failed(Listener(1, TCP), "in use")
        self.assertEqual(self.state.serving, {})
        self.assertEqual(self.switch.select(3, spec("tcp"), 0), [Bind(Listener(2, TCP), 0o660, "docker")])

    def test_an_address_selected_again_while_it_drains_is_a_new_listener(self) -> None:
        [first] = self.serve(spec("tcp"))
        self.switch.select(2, spec("unix"), 0)
        self.switch.bound(Listener(2, UNIX))
        self.switch.probed(Listener(2, UNIX))
        self.assertEqual(self.switch.select(3, spec("tcp"), 9), [Bind(Listener(3, TCP), 0o660, "docker")])
        self.switch.bound(Listener(3, TCP))
        self.switch.probed(Listener(3, TCP))
        self.assertEqual(self.state.draining, {first, Listener(2, UNIX)})
        self.assertEqual(self.switch.drain_expired(Listener(2, UNIX)), [CloseStreams(Listener(2, UNIX))])
        self.switch.drained(Listener(2, UNIX))
        self.assertEqual(self.switch.drain_expired(Listener(2, UNIX)), [])
        self.assertEqual(self.state.draining, {first})

    def test_an_answer_that_nobody_awaits_is_loud(self) -> None:
        self.serve(spec("tcp"))
        self.switch.select(2, spec("unix"), 0)
        self.assertRaises(ValueError, self.switch.bound, Listener(99, UNIX))


class Waiting(Playbook):
    def test_the_latest_of_several_selections_wins(self) -> None:
        [old] = self.serve(spec("tcp"))
        self.assertEqual(self.switch.select(2, spec("unix"), 0), [Bind(Listener(2, UNIX), 0o660, "docker")])
        self.assertEqual(self.switch.select(3, spec("none"), 0), [])
        [superseded] = self.switch.select(4, spec("tcp"), 7)
        assert isinstance(superseded, Report)
        self.assertEqual((superseded.ticket, superseded.outcome), (3, "superseded"))
        self.switch.bound(Listener(2, UNIX))
        self.assertEqual(
            self.switch.probed(Listener(2, UNIX)),
            [
                StopAccepting(old),
                Drain(old, 0),
                Report(2, "switched", spec("unix"), ""),
                Bind(Listener(3, TCP), 0o660, "docker"),
            ],
        )
        self.switch.bound(Listener(3, TCP))
        self.assertEqual(
            self.switch.probed(Listener(3, TCP)),
            [
                StopAccepting(Listener(2, UNIX)),
                Drain(Listener(2, UNIX), 7),
                Report(4, "switched", spec("tcp"), ""),
            ],
        )

    def test_a_waiting_selection_begins_after_a_failure_too(self) -> None:
        self.serve(spec("tcp"))
        self.switch.select(2, spec("unix"), 0)
        self.switch.select(3, spec("none"), 0)
        reports = self.switch.bind_failed(Listener(2, UNIX), "no")
        self.assertEqual(
            [(report.ticket, report.outcome) for report in reports if isinstance(report, Report)],
            [(2, "failed"), (3, "switched")],
        )
        self.assertEqual(self.state.serving, {})

    def test_a_selection_during_the_start_waits_for_it(self) -> None:
        self.switch.start(1, spec("tcp"))
        self.assertEqual(self.switch.select(2, spec("unix"), 0), [])
        commands = self.switch.bound(Listener(1, TCP))
        self.assertEqual(commands[-1], Bind(Listener(2, UNIX), 0o660, "docker"))
        self.assertEqual(self.switch.bound(Listener(2, UNIX)), [Probe(Listener(2, UNIX))])


class Permissions(Playbook):
    def test_another_mode_of_the_same_socket_is_set_in_place(self) -> None:
        [unix] = self.serve(spec("unix"))
        wanted = spec("unix", unix_mode=0o600)
        self.assertEqual(self.switch.select(2, wanted, 0), [Permit(unix, 0o600, "docker")])
        self.assertEqual(self.switch.permitted(unix), [Report(2, "switched", wanted, "")])

    def test_it_is_restored_when_the_switch_fails(self) -> None:
        [unix] = self.serve(spec("unix"))
        self.switch.select(2, spec("unix+tcp", unix_mode=0o600), 0)
        self.switch.permitted(unix)
        commands = self.switch.bind_failed(Listener(2, TCP), "in use")
        self.assertEqual(commands[0], Restore(unix, 0o660, "docker"))

    def test_a_refusal_fails_the_switch(self) -> None:
        [unix] = self.serve(spec("unix"))
        self.switch.select(2, spec("unix", unix_mode=0o600), 0)
        [report] = self.switch.permit_failed(unix, "not permitted")
        assert isinstance(report, Report)
        self.assertEqual((report.outcome, report.reason), ("failed", f"{UNIX}: not permitted"))
        self.assertEqual(self.state.spec.unix_mode, 0o660)


SPECS = [
    spec("none"),
    spec("tcp", tcp="127.0.0.1:1"),
    spec("tcp", tcp="127.0.0.1:1 127.0.0.1:2"),
    spec("tcp", tcp="127.0.0.1:2 0.0.0.0:3"),
    spec("tcp", tcp="0.0.0.0:1"),
    spec("unix"),
    spec("unix", unix_mode=0o600),
    spec("unix+tcp", tcp="127.0.0.1:2", unix="/run/d.sock /run/e.sock"),
]


class Walk(RuleBasedStateMachine):
    """A shell that answers in any order, with any outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.state = SwitchState()
        self.switch = MACHINE(self.state)
        self.accepting: set[Listener] = set()
        self.retired: set[Listener] = set()
        self.open: list[Command] = []
        self.tickets = 0
        self.unreported: set[int] = set()
        self.committed: set[Listener] = set()
        self.started = False

    def perform(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Bind() | Probe() | Permit() | Retry():
                    self.open.append(command)
                case StopAccepting(listener):
                    self.accepting.remove(listener)
                case Drain(listener) | CloseStreams(listener):
                    assert listener not in self.accepting
                    self.retired.add(listener)
                case Report(ticket, outcome, selected, reason):
                    self.unreported.remove(ticket)
                    serving = {listener.address for listener in self.accepting}
                    if outcome in ("switched", "unchanged"):
                        assert serving == set(selected.addresses)
                        assert reason == ""
                        self.committed = set(self.accepting)
                    elif outcome == "failed":
                        assert reason
                        assert self.accepting == self.committed
                case Restore(listener):
                    assert listener in self.accepting

    def ticket(self) -> int:
        self.tickets += 1
        self.unreported.add(self.tickets)
        return self.tickets

    @precondition(lambda self: not self.started)
    @rule(wanted=st.sampled_from(SPECS))
    def start(self, wanted: ListenSpec) -> None:
        self.started = True
        self.perform(self.switch.start(self.ticket(), wanted))

    @precondition(lambda self: self.started)
    @rule(wanted=st.sampled_from(SPECS), drain=st.sampled_from([0.0, 5.0]))
    def select(self, wanted: ListenSpec, drain: float) -> None:
        self.perform(self.switch.select(self.ticket(), wanted, drain))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), well=st.booleans())
    def answer(self, data: st.DataObject, well: bool) -> None:
        command = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        match command:
            case Bind(listener) if well:
                self.accepting.add(listener)
                assert self.state.attempt is not None
                if self.state.attempt.selection.ticket <= 1:
                    # The start, or a retry: what is open counts at once.
                    self.committed.add(listener)
                self.perform(self.switch.bound(listener))
            case Bind(listener):
                self.perform(self.switch.bind_failed(listener, "no"))
            case Probe(listener) if well:
                self.perform(self.switch.probed(listener))
            case Probe(listener):
                self.perform(self.switch.probe_failed(listener, "no"))
            case Permit(listener) if well:
                self.perform(self.switch.permitted(listener))
            case Permit(listener):
                self.perform(self.switch.permit_failed(listener, "no"))
            case Retry(address):
                self.perform(self.switch.retry(address))

    @precondition(lambda self: self.retired)
    @rule(data=st.data(), expired=st.booleans())
    def end(self, data: st.DataObject, expired: bool) -> None:
        listener = data.draw(st.sampled_from(sorted(self.retired, key=lambda each: each.number)))
        if expired:
            self.perform(self.switch.drain_expired(listener))
        else:
            self.retired.remove(listener)
            self.perform(self.switch.drained(listener))

    @invariant()
    def old_listeners_accept_while_new_ones_are_made(self) -> None:
        assert self.committed <= self.accepting
        serving = set(self.state.serving.values())
        assert serving <= self.accepting
        assert len({listener.address for listener in self.accepting}) == len(self.accepting)
        if self.state.attempt is None:
            assert serving == self.accepting
            assert self.state.queued is None
            assert not self.unreported
            assert serving | set(self.state.missing) or not self.state.spec.addresses

    @invariant()
    def the_draining_are_the_retired(self) -> None:
        assert self.state.draining == self.retired


WalkTest = Walk.TestCase
WalkTest.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)

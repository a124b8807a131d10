"""The defender, put together: every part is made here and introduced to those it works with.

Nothing here decides anything. The parts know each other only by what they are handed: the proxy gets a pool
and a recorder, the listeners get the proxy's `accept`, the control socket gets the verbs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender import __version__
from defender.audit.journal import Journal
from defender.bundles.activation import Activated, PolicyActivation
from defender.bundles.store import BundleStore
from defender.bundles.watch import FileWatch, replace_file
from defender.channel.store import MemberStore
from defender.contract.audit import SYSTEM, control_event, defender_event, identity_event, policy_event
from defender.contract.errors import ContractError
from defender.contract.join_token import JoinToken
from defender.contract.local import Answer
from defender.contract.locks import Lock, LockSet, dump_locks, load_locks, make_lock, same
from defender.host import boot_id, own_names, room_for
from defender.listener.acceptor import InheritedSockets, listen_privately
from defender.listener.connection import Refusal
from defender.listener.frontend import Terms
from defender.listener.service import ListenerService
from defender.listener.spec import ListenSpec, SpecError, parse_mode, read_spec
from defender.listener.store import ModeStore
from defender.listener.switch import Report
from defender.listener.tls import TLSFiles, anchors_in, server_context
from defender.local.control import ControlService
from defender.member import FleetMember
from defender.proxy.backend import BackendPool
from defender.proxy.peer import PeerNames
from defender.proxy.service import Proxy
from defender.proxy.watch import EngineWatch
from defender.setting_kinds import controller_address
from defender.settings import Settings, SettingsError, changed, load_settings
from defender.steering import Parts, Steering
from defender.streams.plain import connect_unix
from defender.streams.poll import Poll
from defender.supervision.service import Pulse, SupervisionService, adopt_supervision


def make_service(settings: Settings, reactor: Any, token: JoinToken | None = None) -> Defender:
    """The defender for `settings`, not started; `token` lets it join a fleet that it is not a member of yet.

    Raises ContractError or OSError with a sentence for people.
    """
    os.makedirs(settings.defender.state, mode=0o700, exist_ok=True)
    return Defender(settings, reactor, token)


def _listen_spec(settings: Settings) -> ListenSpec:
    listen = settings.listen
    try:
        return read_spec(
            listen.mode,
            listen.tcp,
            listen.unix,
            unix_mode=listen.unix_mode,
            unix_group=listen.unix_group,
        )
    except SpecError as error:
        raise ContractError(f"{settings.source}: listen: {error}") from None


@dataclass(frozen=True, slots=True)
class Told:
    """What a reload has to say, and whether all of it went well."""

    ok: bool
    said: list[str]


class Defender(MultiService):
    """One guarded Engine."""

    log = Logger()

    def __init__(self, settings: Settings, reactor: Any, token: JoinToken | None = None) -> None:
        super().__init__()
        self.settings = settings
        self._reactor = reactor
        # Clients, Engine and spool: what the reactor itself still watches is no request's business.
        self._poll = poll = Poll(reactor)
        self.journal = Journal(
            settings.audit.directory,
            settings.defender.name,
            reactor=poll,
            segment_bytes=settings.audit.segment_bytes,
            max_bytes=settings.audit.max_bytes,
            refuse=settings.audit.when_full == "refuse",
            boot=boot_id(),
        )
        self.activation = PolicyActivation(settings.defender.name)
        self.pool = BackendPool(
            lambda: connect_unix(poll, self.settings.engine.socket, self.settings.engine.connect_timeout),
            address=settings.engine.address,
            limit=settings.engine.max_connections,
            idle_limit=settings.engine.pool,
        )
        self.proxy = Proxy(
            reactor,
            pool=self.pool,
            activation=self.activation,
            recorder=self.journal,
            engine=settings.engine,
            limits=settings.limits,
            outlasting=settings.streams,
            prefix=settings.policy.prefix,
            strict=settings.audit.durability == "strict",
            spool_bytes=settings.audit.max_bytes,
        )
        self._policy_watch = FileWatch(
            reactor, str(settings.policy.file), self._policy_changed, self._policy_unreadable
        )
        self._locks_watch = FileWatch(
            reactor,
            str(settings.policy.locks),
            self._locks_changed,
            self._locks_unreadable,
            missing_is_empty=True,
        )
        self._locks_problem = ""
        self._local_locks: LockSet | None = None
        self._fleet_locks: LockSet | None = None
        self._vouched = False  # the fleet's authorities of users are known
        self._steering: Steering | None = None
        self._anchors: frozenset[bytes] = frozenset()
        self._distrusted: frozenset[bytes] = frozenset()
        self._names = PeerNames(reactor)
        self.listener = ListenerService(
            poll,
            _listen_spec(settings),
            self._terms(settings),
            drain=settings.listen.drain,
            store=ModeStore(settings.defender.state / "listener.json"),
            inherited=InheritedSockets.adopt(os.environ, os.getpid()),
        )
        self.fleet = self._fleet_of(settings, token) if settings.controller.address else None
        self._engine_watch = EngineWatch(reactor, self.pool)
        self._began = reactor.seconds()
        control = ControlService(
            reactor,
            lambda took: listen_privately(reactor, str(settings.control.socket), took),
            {
                "status": self._answer_status,
                "listener_set": self._set_listener,
                "reload": self._answer_reload,
                "lock_add": self._add_lock,
                "lock_remove": self._remove_lock,
                "lock_list": self._list_locks,
            },
            self.journal,
        )
        self._pulse = Pulse(poll)
        self.supervision = SupervisionService(
            reactor,
            adopt_supervision(os.environ, os.getpid()),
            {"clients": self._pulse.check, "recorder": self.journal.check},
        )
        # Started in this order and stopped in the reverse: nothing is let in before there is a policy to
        # judge it.
        self.proxy.setServiceParent(self)
        self._engine_watch.setServiceParent(self)
        self.listener.setServiceParent(self)
        if self.fleet is not None:
            # What it puts in force from the disk is so before the reactor lets anybody in.
            self.fleet.setServiceParent(self)
        control.setServiceParent(self)
        self.supervision.setServiceParent(self)

    def _fleet_of(self, settings: Settings, token: JoinToken | None) -> FleetMember:
        """Where policy, trust, locks and mode come from, if there is a controller."""
        folder = settings.defender.state / "fleet"
        self._steering = Steering(
            folder,
            Parts(
                activation=self.activation,
                listener=self.listener,
                locked=self._locked_by_fleet,
                judged=self.proxy.judge_again,
                trusted=self._trust,
                distrusted=self._distrust,
                frozen=partial(setattr, self.proxy, "frozen"),
                status=self._short_status,
            ),
        )
        return FleetMember(
            self._reactor,
            self._steering,
            self.journal,
            controller=controller_address(settings.controller.address),
            store=MemberStore(folder),
            bundles=BundleStore(settings.defender.state / "bundles"),
            name=settings.defender.name,
            names=settings.controller.names or own_names(settings.defender.name),
            version=__version__,
            token=token,
            silence=settings.controller.longest_silence,
        )

    def _terms(self, settings: Settings) -> Terms:
        return Terms(
            connections=room_for(settings.limits.connections, settings.engine.max_connections),
            handshake_timeout=settings.limits.handshake_timeout,
            linger=settings.limits.linger,
            load_context=self._load_context,
            identify=self._names.identify,
            accept=self.proxy.accept,
            refused=self._refused,
        )

    def _load_context(self) -> Any:
        tls = self.settings.tls
        trust_domain = self.settings.defender.trust_domain
        files = TLSFiles(str(tls.certificate), str(tls.key), str(tls.client_ca))
        if self.fleet is not None and self._steering is not None:
            own = str(self.fleet.server_file)
            files = TLSFiles(own, own, str(self._steering.users))
            if self.fleet.member is not None:
                trust_domain = self.fleet.member.trust_domain
        anchors = anchors_in(files.client_ca)
        context = server_context(files, trust_domain=trust_domain, minimum=tls.minimum)
        self._distrusted |= self._anchors - anchors
        self._anchors = anchors
        return context

    # -- service

    def startService(self) -> None:
        self.journal.start()
        self.journal.record(defender_event("defender_start", version=__version__))
        self._names.start()
        if self.fleet is None:
            self._policy_watch.start()
        self._locks_watch.start()
        self._pulse.start()
        self.listener.started.addCallback(self._reported)
        super().startService()
        self._poll.lead()
        signal.signal(signal.SIGHUP, self._hang_up)

    def stopService(self) -> Deferred[None]:
        stopping = self._drained().addCallback(lambda _: super(Defender, self).stopService())

        def stopped(result: Any) -> Any:
            self._policy_watch.stop()
            self._locks_watch.stop()
            self._names.stop()
            self._pulse.stop()
            self._poll.follow()
            self.journal.record(defender_event("defender_stop", version=__version__))
            return self.journal.stop().addCallback(lambda _: result)

        return stopping.addBoth(stopped)

    def _drained(self) -> Deferred[None]:
        """Let nobody in any more; fires when nothing is open, or has had its time."""
        streams = self.settings.streams
        limit = streams.stop_drain if streams.on_stop == "drain" else 0.0
        self.log.info("stopping: {count} connections are open", count=self.proxy.connections)
        return self.listener.retire(limit)

    def _hang_up(self, _number: int, _frame: Any) -> None:
        self._reactor.callFromThread(self._reload_by_signal)

    def _reload_by_signal(self) -> None:
        def note(told: Told) -> None:
            self.journal.record(control_event(SYSTEM, "reload", ok=told.ok, detail="; ".join(told.said)))

        self.reload().addCallback(note).addErrback(lambda f: self.log.failure("the reload failed", f))

    # -- policy and locks

    def _policy_changed(self, text: str) -> None:
        source = str(self.settings.policy.file)
        was_refused = self.activation.error is not None
        outcome = self.activation.offer(text, source)
        if isinstance(outcome, Activated):
            if outcome.unchanged and not was_refused:
                return
            cut = self.proxy.judge_again()
            self.log.info(
                "policy {source} is active: rules: {rules}, {digest}; open streams cut: {cut}",
                source=source,
                rules=len(outcome.policy.rules),
                digest=outcome.policy.digest,
                cut=cut,
            )
            self._note_policy("policy_load", source, [])
        else:
            self._policy_kept(str(outcome.error).splitlines())

    def _policy_unreadable(self, why: str) -> None:
        source = str(self.settings.policy.file)
        self._policy_kept(str(self.activation.unreadable(source, why).error).splitlines())

    def _policy_kept(self, problems: list[str]) -> None:
        kept = "the last good one stays active" if self.activation.policy else "everything is denied"
        self.log.error("policy refused, {kept}:\n{problems}", kept=kept, problems="\n".join(problems))
        self._note_policy("policy_load", str(self.settings.policy.file), problems)

    def _note_policy(self, action: str, source: str, problems: list[str]) -> None:
        policy = self.activation.policy
        self.journal.record(
            policy_event(
                action,
                source,
                ok=not problems,
                version=self.activation.version,
                digest=policy.digest if policy else "",
                rules=len(policy.rules) if policy else 0,
                problems=problems,
            )
        )
        self._say_condition()

    def _locks_changed(self, text: str) -> None:
        try:
            locks = load_locks(text)
        except ContractError as error:
            self._locks_unreadable(str(error))
            return
        was_refused, self._locks_problem = bool(self._locks_problem), ""
        before = self._local_locks
        self._local_locks = locks
        self._put_locks()
        if before is None and not locks and not was_refused:
            return
        if before is not None and locks.locks == before.locks and not was_refused:
            return
        cut = self.proxy.judge_again()
        self.log.info("locks in force: {count}; open streams cut: {cut}", count=len(locks.locks), cut=cut)
        self._note_policy("locks_load", str(self.settings.policy.locks), [])

    def _locks_unreadable(self, why: str) -> None:
        source = str(self.settings.policy.locks)
        self._locks_problem = why
        kept = "everything is denied" if self._local_locks is None else "the locks before stay in force"
        self.log.error("{source}: {why}; {kept}", source=source, why=why, kept=kept)
        self._note_policy("locks_load", source, [f"{source}: {why}"])

    def _trust(self) -> Deferred[Report]:
        """The fleet's authorities of users are on disk: let in whom they vouch for."""
        self._vouched = True
        self._put_locks()
        return self.listener.reload(_listen_spec(self.settings), self.settings.listen.drain)

    def _distrust(self) -> None:
        """Nobody vouches for users any more: nobody is let in."""
        self._vouched = False
        self._put_locks()
        self.listener.cut("tcp", "no authority of users is known")

    def _locked_by_fleet(self, locks: LockSet | None) -> None:
        self._fleet_locks = locks
        self._put_locks()

    def _put_locks(self) -> None:
        """Those of this host and of its fleet count together; while either is not known nobody is let in."""
        known, fleet = self._local_locks, self._fleet_locks
        hosts: tuple[str, ...] = (self.settings.defender.name,)
        if self.fleet is not None:
            if known is None or fleet is None or not self._vouched:
                self.proxy.locks = None
                return
            known = LockSet(known.locks | fleet.locks)
            if self.fleet.member is not None:
                hosts += (self.fleet.member.defender,)
        self.proxy.locks = None if known is None else LockSet(known.locks, hosts)

    # -- listeners

    def _refused(self, refusal: Refusal) -> None:
        now = self._reactor.seconds()
        if self.proxy.budgets.turned_away(refusal.address or "", refusal.check, now, refusal.via):
            self.journal.record(
                identity_event(
                    refusal.check,
                    refusal.detail,
                    subject=refusal.subject,
                    address=refusal.address,
                    port=refusal.port,
                    via=refusal.via,
                )
            )

    def _reported(self, report: Report) -> None:
        self.journal.record(
            control_event(
                SYSTEM,
                "listener_set",
                fields={"mode": self.listener.desired},
                ok=report.outcome in ("switched", "unchanged"),
                detail=report.reason or report.outcome,
            )
        )
        self._say_condition()

    def _say_condition(self) -> None:
        """Tell the service manager, but nothing before each listener has been tried."""
        if not self.listener.started.called:
            return
        policy = self.activation.policy
        rules = f"policy of {len(policy.rules)} rules" if policy else "no policy, everything is denied"
        wanted = "" if self.listener.actual == self.listener.desired else f" of {self.listener.desired}"
        self.supervision.serving(f"listening on {self.listener.actual}{wanted}; {rules}")

    # -- settings

    def reload(self) -> Deferred[Told]:
        """Read the settings again and take over what can change at run time; fires with what there is to say.

        A file that cannot be used changes nothing. The policy, the locks and the certificates are read again
        too, and a member without a link tries its controller at once.
        """
        said: list[str] = []
        try:
            settings = load_settings(self.settings.source)
            spec = _listen_spec(settings)
        except (SettingsError, ContractError) as error:
            said = ["the settings were refused, nothing was changed", *str(error).splitlines()]
            return succeed(self._reloaded(said, ok=False))
        if not settings.controller.address:
            # It may have been named on the command line.
            settings = replace(settings, controller=self.settings.controller)
        changes = changed(self.settings, settings)
        keep = replace(
            settings,
            defender=self.settings.defender,
            audit=replace(self.settings.audit, durability=settings.audit.durability),
            control=self.settings.control,
            controller=self.settings.controller,
            engine=replace(settings.engine, address=self.settings.engine.address),
            policy=replace(settings.policy, file=self.settings.policy.file, locks=self.settings.policy.locks),
        )
        self.settings = keep
        self.pool.resize(limit=keep.engine.max_connections, idle_limit=keep.engine.pool)
        self.proxy.engine = keep.engine
        self.proxy.limits = keep.limits
        self.proxy.outlasting = keep.streams
        self.proxy.prefix = keep.policy.prefix
        self.proxy.strict = keep.audit.durability == "strict"
        self.listener.reception.terms = self._terms(keep)
        if self.fleet is None:
            self._policy_watch.read_now()
        elif self.fleet.link is not None:
            self.fleet.link.hurry()
        self._locks_watch.read_now()
        said += [f"{key} has changed" for key in changes.live]
        said += [f"{key} has changed, which takes effect at the next start" for key in changes.fixed]
        return self.listener.reload(spec, keep.listen.drain).addCallback(self._listened, said)

    def _listened(self, report: Report, said: list[str]) -> Told:
        ok = report.outcome in ("switched", "unchanged")
        ok = ok and self.activation.error is None and not self._locks_problem
        if self.activation.error is not None:
            said += ["the policy was refused", *str(self.activation.error).splitlines()]
        if self._locks_problem:
            said.append(f"{self.settings.policy.locks}: {self._locks_problem}")
        if self._distrusted:
            # Whoever came in by it may be anybody that it named.
            self._distrusted = frozenset()
            cut = self.listener.cut("tcp", "an authority of users is no longer trusted")
            said.append(f"an authority of clients is no longer trusted: TLS connections cut: {cut}")
        if report.outcome != "unchanged" or report.reason:
            said.append(f"listeners: {report.outcome}" + (f": {report.reason}" if report.reason else ""))
        return self._reloaded(said, ok=ok)

    def _reloaded(self, said: list[str], *, ok: bool) -> Told:
        self._say_condition()
        said = said or ["nothing has changed"]
        (self.log.info if ok else self.log.error)("reload: {said}", said="; ".join(said))
        return Told(ok, said)

    # -- the control socket's verbs

    def _short_status(self) -> Mapping[str, object]:
        """What the controller shows of this defender."""
        api = self.pool.facts.api_version
        audit = self.journal.status()
        return {
            "listener": self.listener.status(),
            "engine": f"{api[0]}.{api[1]}" if api else "",
            "streams": self.proxy.streams,
            "audit_problem": audit["problem"],
        }

    def _answer_status(self, _arguments: Mapping[str, object]) -> Answer:
        policy = self.activation.policy
        api = self.pool.facts.api_version
        counters = self.proxy.trail.counters
        return Answer(
            True,
            {
                "name": self.settings.defender.name,
                "version": __version__,
                "pid": os.getpid(),
                "uptime": round(self._reactor.seconds() - self._began, 1),
                "listener": self.listener.status(),
                "policy": {
                    "source": str(self.settings.policy.file),
                    "digest": policy.digest if policy else "",
                    "version": self.activation.version,
                    "rules": len(policy.rules) if policy else 0,
                    "problems": str(self.activation.error).splitlines() if self.activation.error else [],
                },
                "locks": len(self._locks()),
                "engine": {
                    "address": self.settings.engine.address,
                    "api": f"{api[0]}.{api[1]}" if api else "",
                    "connections": self.pool.connections,
                    "idle": self.pool.idle,
                },
                "clients": {"connections": self.proxy.connections, "streams": self.proxy.streams},
                "counters": {
                    "requests": counters.requests,
                    "denied": counters.denied,
                    "turned_down": counters.turned_down,
                    "unrecorded": counters.unrecorded,
                    "unreadable": counters.unreadable,
                    "engine_errors": counters.engine_errors,
                    "streams_ended": counters.tunnels,
                },
                "audit": self.journal.status(),
                **({"fleet": self.fleet.status()} if self.fleet is not None else {}),
            },
        )

    def _set_listener(self, arguments: Mapping[str, object]) -> Deferred[Answer]:
        drain = arguments.get("drain")
        mode = parse_mode(str(arguments["mode"]))

        def answer(report: Report) -> Answer:
            # "partial": switched, but the mode could not be kept on disk; that is said and is no failure.
            served = report.outcome in ("switched", "unchanged", "partial")
            result = {"mode": self.listener.actual, "outcome": report.outcome, **self.listener.status()}
            if served and report.reason:
                result["warning"] = report.reason
            return Answer(served, result, "" if served else report.reason or report.outcome)

        def refused(failure: Failure) -> Answer:
            failure.trap(SpecError)
            return Answer(False, {}, str(failure.value))

        switching = self.listener.set_mode(mode, float(drain) if isinstance(drain, (int, float)) else None)
        return switching.addCallbacks(answer, refused)

    def _answer_reload(self, _arguments: Mapping[str, object]) -> Deferred[Answer]:
        return self.reload().addCallback(
            lambda told: Answer(told.ok, {"said": told.said}, "; ".join(told.said))
        )

    def _list_locks(self, _arguments: Mapping[str, object]) -> Answer:
        locks = [
            {"kind": lock.kind, "value": lock.value, "issuer": lock.issuer} for lock in sorted(self._locks())
        ]
        return Answer(True, {"locks": locks})

    def _add_lock(self, arguments: Mapping[str, object]) -> Answer:
        return self._change_locks(arguments, add=True)

    def _remove_lock(self, arguments: Mapping[str, object]) -> Answer:
        return self._change_locks(arguments, add=False)

    def _locks(self) -> frozenset[Lock]:
        return self._local_locks.locks if self._local_locks is not None else frozenset()

    def _change_locks(self, arguments: Mapping[str, object], *, add: bool) -> Answer:
        lock = make_lock(str(arguments["kind"]), str(arguments["value"]), str(arguments.get("issuer", "")))
        self._locks_watch.read_now()
        if self._locks_problem:
            raise ContractError(f"{self.settings.policy.locks}: {self._locks_problem}; mend the file first")
        before = self._locks()
        known = frozenset(each for each in before if same(each, lock))
        after = before if add and known else before | {lock} if add else before - known
        if after != before:
            file = str(self.settings.policy.locks)
            try:
                replace_file(file, dump_locks(after))
            except OSError as error:
                raise ContractError(f"{file}: cannot be written: {error.strerror}") from None
            self._locks_watch.read_now()
            if self._locks() != after:
                raise ContractError(f"{file} was written and is not in force: {self._locks_problem}")
        return Answer(True, {"changed": after != before})

"""A host joins a fleet, starts again, renews, and comes back; against the controller's own rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.admission import admit, keys_of
from controller.pki.renewals import CertificateName, Cloned, Welcome, name_of, seen
from controller.pki.tokens import decide_waiting
from defender.channel.store import Member, MemberStore
from defender.contract.codec import encode
from defender.contract.errors import IdentityError
from defender.contract.identity import subject_of_certificate
from defender.contract.join import Joined, decode_request, encode_answer
from defender.contract.join_token import JoinToken, JoinTokenError, format_token
from defender.contract.renewal import GRACE, LIFE
from defender.enrollment import Enrollment, EnrollmentError, Step, next_step, read_token
from tests.fakes.join_controller import TRUST, JoinController

DAY = 86_400


class EnrollmentCase(SynchronousTestCase):
    """A controller, and a host's state directory."""

    def setUp(self) -> None:
        self.controller = JoinController()
        self.clock = Clock()
        self.directory = Path(self.mktemp()) / "fleet"
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def enrollment(self, ask: Any = None, *, name: str = "web1", directory: Path | None = None) -> Enrollment:
        """As each start of the defender makes it."""
        return Enrollment(
            MemberStore(directory or self.directory),
            self.clock,
            ask or self.controller.ask,
            name=name,
            hosts=(name, "db.example"),
            agent="1.0",
            clock=lambda: float(self.controller.now),
        )

    def join(self, token: JoinToken | None = None, **more: Any) -> Member:
        member: Member = self.successResultOf(self.enrollment(**more).begin(token or self.controller.token()))
        return member

    def refused(self, token: JoinToken | None = None, **more: Any) -> EnrollmentError:
        error: EnrollmentError = self.failureResultOf(
            self.enrollment(**more).begin(token), EnrollmentError
        ).value
        return error

    def named(self, member: Member) -> CertificateName:
        return name_of(self.controller.peer(member.certificate))

    def nobody(self, *arguments: object) -> Deferred[bytes]:
        self.fail("the network was used")

    def logged(self) -> str:
        return "\n".join(repr(event) for event in self.events)


class FirstStartTests(EnrollmentCase):
    """With a join token."""

    def test_a_member(self) -> None:
        member = self.join()
        self.assertEqual((member.name, member.trust_domain), ("web1", "defender.fleet"))
        self.assertEqual(member.answer.trust, TRUST)
        self.assertEqual(member.answer.left_out, ("db.example",))
        self.assertEqual(member.certificate.public_key(), member.keys.key.public_key())
        self.assertEqual(member.not_after, self.controller.now + LIFE)
        self.assertEqual(member.anchors, (self.controller.pki.fleet,))
        peer = self.controller.peer(member.certificate)
        self.assertEqual((peer.identifier, peer.serial), (member.defender, member.serial))

    def test_its_certificate_opens_no_engine(self) -> None:
        member = self.join()
        self.assertRaises(
            IdentityError, subject_of_certificate, member.certificate, self.controller.pki.trust_domain
        )

    def test_the_keys_never_leave_the_host(self) -> None:
        """Nothing that is sent holds a key, in any form; the requests hold public keys and no names."""
        member = self.join()
        (payload,) = self.controller.requests
        for key in (member.keys.key, member.keys.server_key):
            number = key.private_numbers().private_value.to_bytes(32, "big")
            der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            self.assertNotIn(number, payload)
            self.assertNotIn(der, payload)
            self.assertNotIn(b"PRIVATE KEY", payload)
        request = decode_request(payload)
        for csr, own in ((request.csr, member.keys.key), (request.server_csr, member.keys.server_key)):
            asked = x509.load_der_x509_csr(csr)
            self.assertEqual(asked.public_key(), own.public_key())
            self.assertEqual((list(asked.subject), list(asked.extensions)), ([], []))

    def test_nothing_secret_is_logged_or_shown(self) -> None:
        token = self.controller.token()
        member = self.join(token)
        number = str(member.keys.key.private_numbers().private_value)
        for text in (self.logged(), repr(member), repr(member.keys), repr(token), repr(self.enrollment())):
            self.assertNotIn(format_token(token).split(".")[2], text)
            self.assertNotIn(repr(token.secret), text)
            self.assertNotIn("PRIVATE KEY", text)
            self.assertNotIn(number, text)
        self.assertIn(token.id, self.logged())

    def test_without_a_token(self) -> None:
        error = self.refused(ask=self.nobody)
        self.assertEqual(error.code, "no-token")
        self.assertIn("--join-token", str(error))

    def test_refused(self) -> None:
        """The controller's sentence, for people; nothing is kept but the keys that were asked for."""
        token = self.controller.token()
        self.join(token, directory=self.directory.with_name("other"))
        error = self.refused(token, name="web2")
        self.assertEqual((error.code, error.retry_after), ("token-used", None))
        self.assertIn("was used", str(error))
        self.assertEqual([path.name for path in self.directory.glob("*.json")], ["next.json"])

    def test_a_bad_name(self) -> None:
        error = self.refused(self.controller.token(), name="x" * 65)
        self.assertEqual(error.code, "name")
        self.assertEqual(self.controller.requests, [])

    def test_nobody_there(self) -> None:
        def ask(*_: object) -> Deferred[bytes]:
            return fail(OSError(111, "Connection refused"))

        error = self.refused(self.controller.token(), ask=ask)
        self.assertEqual(error.code, "unreachable")
        self.assertIsNotNone(error.retry_after)

    def test_answers_that_are_not_right(self) -> None:
        """Of another fleet, for another key, garbage: refused, and nothing is kept."""
        other = JoinController()

        def elsewhere(pins: Any, build: Any) -> Deferred[bytes]:
            other.tokens = self.controller.tokens
            return other.ask(pins, build)

        def other_key(pins: Any, build: Any) -> Deferred[bytes]:
            good = self.join(self.controller.token(), directory=self.directory.with_name("x"), name="x")
            done: Deferred[bytes] = Deferred()
            done.callback(encode_answer(good.answer))
            return done

        def garbage(pins: Any, build: Any) -> Deferred[bytes]:
            done: Deferred[bytes] = Deferred()
            done.callback(encode(["joined", {"defender": 7}]))
            return done

        for ask in (elsewhere, other_key, garbage):
            error = self.refused(self.controller.token(), ask=ask)
            self.assertEqual(error.code, "answer")
            self.assertFalse((self.directory / "member.json").exists())


class TokenOptionTests(EnrollmentCase):
    """--join-token."""

    def test_the_token_itself_or_a_file(self) -> None:
        token = self.controller.token()
        path = Path(self.mktemp())
        path.write_text(format_token(token) + "\n")
        self.assertEqual(read_token(format_token(token)), token)
        self.assertEqual(read_token(f"@{path}"), token)

    def test_refused(self) -> None:
        self.assertRaises(JoinTokenError, read_token, "@/nowhere/at/all")
        self.assertRaises(JoinTokenError, read_token, "hunter2")


class SecondStartTests(EnrollmentCase):
    """A start that needs no token and no network."""

    def test_without_a_token(self) -> None:
        member = self.join()
        again = self.successResultOf(self.enrollment(self.nobody).begin())
        self.assertEqual((again.defender, again.answer.chain), (member.defender, member.answer.chain))
        self.assertEqual(again.serial, member.serial)

    def test_with_the_same_token(self) -> None:
        """As a unit file gives it at each start."""
        token = self.controller.token()
        self.join(token)
        self.successResultOf(self.enrollment(self.nobody).begin(token))

    def test_with_the_token_of_another_fleet(self) -> None:
        self.join()
        error = self.refused(JoinController().token(), ask=self.nobody)
        self.assertEqual(error.code, "fleet")
        self.assertIn("'defender.fleet'", str(error))

    def test_with_a_new_token_that_is_refused(self) -> None:
        """A membership that holds goes on."""
        member = self.join()
        again = self.successResultOf(self.enrollment().begin(self.controller.token()))
        self.assertEqual(again.answer.chain, member.answer.chain)
        self.assertIn("did not join anew", self.logged())

    def test_with_a_new_token_for_its_name(self) -> None:
        """It joins anew, keeps its id, and its old certificate is superseded."""
        member = self.join()
        again = self.join(self.controller.token(names=("web1",)))
        self.assertEqual(again.defender, member.defender)
        self.assertNotEqual(again.serial, member.serial)
        known = self.controller.certificates[member.defender]
        self.assertEqual(known.used, self.named(again))
        self.assertEqual([each.certificate for each in known.superseded], [self.named(member)])

    def test_a_token_that_waits_for_an_administrator_holds_nothing_up(self) -> None:
        member = self.join()
        again = self.successResultOf(
            self.enrollment().begin(self.controller.token(names=("web1",), approval=True))
        )
        self.assertEqual(again.serial, member.serial)


class RetryTests(EnrollmentCase):
    """Answers that are lost, and crashes."""

    def test_a_lost_answer_burns_nothing(self) -> None:
        token = self.controller.token()

        def lost(pins: Any, build: Any) -> Deferred[bytes]:
            self.controller.ask(pins, build)
            return fail(ConnectionError("gone"))

        self.assertEqual(self.refused(token, ask=lost).code, "unreachable")
        member = self.join(token)
        self.assertEqual(len(self.controller.certificates), 1)
        known = self.controller.certificates[member.defender]
        self.assertEqual(known.used, self.named(member))
        self.assertEqual(self.controller.tokens[token.id].uses, 1)

    def test_only_for_ten_minutes(self) -> None:
        token = self.controller.token()

        def lost(pins: Any, build: Any) -> Deferred[bytes]:
            self.controller.ask(pins, build)
            return fail(ConnectionError("gone"))

        self.refused(token, ask=lost)
        self.controller.now += 601
        self.assertEqual(self.refused(token).code, "token-used")

    def test_a_copy_of_the_token_is_worth_nothing_then(self) -> None:
        """Another host, with another key, within the ten minutes."""
        token = self.controller.token()
        self.join(token)
        error = self.refused(token, directory=self.directory.with_name("thief"), name="thief")
        self.assertEqual(error.code, "token-used")


class ApprovalTests(EnrollmentCase):
    """An administrator has to agree."""

    def test_it_waits_and_asks_again(self) -> None:
        token = self.controller.token(approval=True)
        enrollment = self.enrollment()
        joining = enrollment.begin(token)
        self.assertNoResult(joining)
        self.assertIn("has to agree", enrollment.waiting)
        self.clock.advance(10)
        self.assertNoResult(joining)
        self.assertEqual(len(self.controller.requests), 2)
        ((place, use),) = self.controller.uses.items()
        agreed = decide_waiting(use, agree=True, now=self.controller.now)
        assert agreed is not None
        self.controller.uses[place] = agreed
        self.clock.advance(10)
        self.assertEqual(self.successResultOf(joining).name, "web1")
        self.assertEqual(self.controller.tokens[token.id].uses, 1)
        self.assertEqual(enrollment.waiting, "")

    def test_whoever_agrees_can_compare_the_key(self) -> None:
        joining = self.enrollment().begin(self.controller.token(approval=True))
        ((place, _),) = self.controller.uses.items()
        self.assertIn(f"the key {place[1].hex()}", "\n".join(map(formatEvent, self.events)))
        joining.cancel()
        self.failureResultOf(joining)

    def test_it_is_told_no(self) -> None:
        joining = self.enrollment().begin(self.controller.token(approval=True))
        ((place, use),) = self.controller.uses.items()
        denied = decide_waiting(use, agree=False, now=self.controller.now)
        assert denied is not None
        self.controller.uses[place] = denied
        self.clock.advance(10)
        self.assertEqual(self.failureResultOf(joining, EnrollmentError).value.code, "denied")

    def test_it_is_stopped(self) -> None:
        joining = self.enrollment().begin(self.controller.token(approval=True))
        joining.cancel()
        self.failureResultOf(joining, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class RenewalTests(EnrollmentCase):
    """Over the channel, in two phases."""

    def setUp(self) -> None:
        super().setUp()
        self.member = self.join()
        self.controller.now += LIFE // 2

    def reply(self, csr: bytes, server_csr: bytes) -> Joined:
        """What a controller puts in RENEWED."""
        return admit(
            self.controller.pki.authority,
            keys_of(csr, server_csr),
            identifier=self.member.defender,
            name="web1",
            requested=("web1",),
            source=None,
            now=self.controller.moment,
        )

    def test_it_is_due_at_half_of_its_life(self) -> None:
        issued = self.controller.now - LIFE // 2
        share = (self.member.renewal - issued) / LIFE
        self.assertTrue(0.44 < share < 0.56, share)
        reread = self.successResultOf(self.enrollment(self.nobody).begin())
        self.assertEqual(reread.renewal, self.member.renewal, "a restart does not draw lots again")

    def test_two_phases(self) -> None:
        """Asked for with the same keys until there is an answer; the old certificate counts till then."""
        enrollment = self.enrollment()
        keys = enrollment.ask_renewal()
        again = self.enrollment().ask_renewal()
        self.assertEqual(again.key.public_key(), keys.key.public_key())
        still = self.successResultOf(self.enrollment(self.nobody).begin())
        self.assertEqual(still.serial, self.member.serial)
        answer = self.reply(keys.csr, keys.server_csr)
        new = self.enrollment().renewed(self.member, answer.chain, answer.server_chain)
        self.assertNotEqual(new.serial, self.member.serial)
        self.assertEqual(new.keys.key.public_key(), keys.key.public_key())
        after = self.successResultOf(self.enrollment(self.nobody).begin())
        self.assertEqual((after.serial, after.defender), (new.serial, self.member.defender))
        self.assertNotEqual(
            enrollment.ask_renewal().key.public_key(), keys.key.public_key(), "each time a new key"
        )

    def test_without_a_server_certificate(self) -> None:
        keys = self.enrollment().ask_renewal()
        answer = self.reply(keys.csr, b"")
        new = self.enrollment().renewed(self.member, answer.chain, ())
        self.assertEqual(new.answer.server_chain, self.member.answer.server_chain)
        self.successResultOf(self.enrollment(self.nobody).begin())

    def test_an_answer_that_is_not_right(self) -> None:
        """For another key, or of another defender: the old certificate goes on."""
        enrollment = self.enrollment()
        keys = enrollment.ask_renewal()
        good = self.reply(keys.csr, keys.server_csr)
        for chain in (self.member.answer.chain, good.server_chain, good.chain[:1] * 2, (b"x", b"y")):
            self.assertRaises(EnrollmentError, enrollment.renewed, self.member, chain, good.server_chain)
        after = self.successResultOf(self.enrollment(self.nobody).begin())
        self.assertEqual(after.serial, self.member.serial)


class AbsenceTests(EnrollmentCase):
    """A certificate that expired while the host was off."""

    def test_it_proves_its_old_key(self) -> None:
        member = self.join()
        self.controller.now += LIFE + GRACE - DAY
        again = self.successResultOf(self.enrollment().begin())
        self.assertEqual(again.defender, member.defender)
        self.assertNotEqual(again.serial, member.serial)
        self.assertNotEqual(again.keys.key.public_key(), member.keys.key.public_key())
        self.assertEqual(again.not_after, self.controller.now + LIFE)
        known = self.controller.certificates[member.defender]
        outcome = seen(known, self.named(again), self.controller.now)
        self.assertIsInstance(outcome, Welcome)

    def test_a_lost_answer(self) -> None:
        """The offer stands; the proof of the old key is good until the new one was used."""
        member = self.join()
        self.controller.now += LIFE + DAY

        def lost(pins: Any, build: Any) -> Deferred[bytes]:
            self.controller.ask(pins, build)
            return fail(ConnectionError("gone"))

        self.assertEqual(self.refused(ask=lost).code, "unreachable")
        again = self.successResultOf(self.enrollment().begin())
        self.assertEqual(again.defender, member.defender)

    def test_a_copy_of_its_state(self) -> None:
        """Both come back: the second one is noticed, and that defender is shut out."""
        member = self.join()
        store = MemberStore(self.directory.with_name("copy"))
        store.save(member)
        self.controller.now += LIFE + DAY
        mine = self.successResultOf(self.enrollment().begin())
        known = self.controller.certificates[member.defender]
        outcome = seen(known, self.named(mine), self.controller.now)
        assert isinstance(outcome, Welcome)
        self.controller.certificates[member.defender] = outcome.certificates
        self.controller.now += 60
        error = self.refused(directory=self.directory.with_name("copy"))
        self.assertEqual(error.code, "locked")
        self.assertIn("in use twice", str(error))
        shut = seen(
            self.controller.certificates[member.defender],
            self.named(member),
            self.controller.now,
        )
        self.assertIsInstance(shut, Cloned)

    def test_too_late(self) -> None:
        member = self.join()
        self.controller.now += LIFE + GRACE + DAY
        error = self.refused(ask=self.nobody)
        self.assertEqual(error.code, "expired")
        self.assertIn("--join-token", str(error))
        again = self.join(self.controller.token(names=("web1",)))
        self.assertEqual(again.defender, member.defender)

    def test_steps(self) -> None:
        member = self.join()
        end = member.not_after
        self.assertEqual(next_step(member, None, end), Step.GO_ON)
        self.assertEqual(next_step(member, None, end + 1), Step.RENEW)
        self.assertEqual(next_step(member, None, end + GRACE), Step.RENEW)
        self.assertRaises(EnrollmentError, next_step, member, None, end + GRACE + 1)
        self.assertEqual(next_step(member, self.controller.token(), end), Step.JOIN)

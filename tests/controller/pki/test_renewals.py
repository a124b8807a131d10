"""Renewal in two phases, and what betrays a copied key."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.renewals import (
    CROSSING,
    MAX_SUPERSEDED,
    CertificateName,
    Certificates,
    Cloned,
    Offer,
    OfferAgain,
    Turned,
    Welcome,
    asked,
    expired,
    name_of,
    offered,
    rejoined,
    seen,
)
from defender.contract.peer_check import check_defender
from defender.contract.renewal import GRACE, LIFE
from tests.fakes.authority import TestAuthority
from tests.fakes.fleet import defender_of

DAY = 86_400


def certificate(day: float, key: str = "") -> CertificateName:
    """One that was issued on a day."""
    begin = int(day * DAY)
    mark = f"{day}{key}".encode().ljust(32)
    return CertificateName(mark, mark[::-1], begin, begin + LIFE)


OLD, NEW, NEWER = certificate(1), certificate(4.5), certificate(8)
KNOWN = Certificates(OLD)


def welcomed(known: Certificates, shown: CertificateName, now: float) -> Certificates:
    outcome = seen(known, shown, int(now * DAY))
    assert isinstance(outcome, Welcome), outcome
    return outcome.certificates


class RenewalTests(SynchronousTestCase):
    """The old one counts until the new one is used."""

    def test_two_phases(self) -> None:
        self.assertEqual(asked(KNOWN, OLD, NEW.key), Offer())
        known = offered(KNOWN, NEW, int(4.5 * DAY))
        self.assertEqual(seen(known, OLD, 5 * DAY), Welcome(known))
        outcome = seen(known, NEW, 5 * DAY)
        assert isinstance(outcome, Welcome)
        self.assertEqual((outcome.how, outcome.changed), ("promoted", True))
        self.assertEqual((outcome.certificates.used, outcome.certificates.offered), (NEW, None))
        self.assertEqual(seen(outcome.certificates, NEW, 6 * DAY), Welcome(outcome.certificates))

    def test_a_lost_answer(self) -> None:
        """The same new key gets the same certificate; meanwhile the old one is as good as ever."""
        known = offered(KNOWN, NEW, 4 * DAY)
        self.assertEqual(asked(known, OLD, NEW.key), OfferAgain(NEW))
        self.assertEqual(welcomed(known, OLD, 7.9), known)

    def test_a_new_certificate_needs_a_new_key(self) -> None:
        outcome = asked(KNOWN, OLD, OLD.key)
        assert isinstance(outcome, Turned)
        self.assertEqual(outcome.code, "key")

    def test_an_old_session_does_not_renew(self) -> None:
        """A channel that was opened with the old certificate, and is still up."""
        known = welcomed(offered(KNOWN, NEW, 4 * DAY), NEW, 5)
        self.assertIsInstance(asked(known, OLD, NEWER.key), Turned)

    def test_from_a_certificate(self) -> None:
        pki = TestAuthority()
        shown = name_of(check_defender(defender_of(pki).certificate, pki.trust_domain))
        self.assertEqual(shown.not_after - int(pki.now.timestamp()), LIFE)


class CloneTests(SynchronousTestCase):
    """A superseded certificate that is seen again."""

    def setUp(self) -> None:
        self.known = welcomed(offered(KNOWN, NEW, 4 * DAY), NEW, 5)

    def test_alarm_and_lock(self) -> None:
        outcome = seen(self.known, OLD, 6 * DAY)
        assert isinstance(outcome, Cloned)
        self.assertTrue(outcome.new)
        self.assertIn("in use twice", outcome.detail)
        locked = outcome.certificates
        for shown in (NEW, certificate(7)):
            turned = seen(locked, shown, 6 * DAY)
            assert isinstance(turned, Turned)
            self.assertEqual(turned.code, "locked")
        self.assertIsInstance(asked(locked, NEW, NEWER.key), Turned)
        self.assertIsInstance(expired(locked, NEW, 13 * DAY), Turned)

    def test_one_alarm(self) -> None:
        first = seen(self.known, OLD, 6 * DAY)
        assert isinstance(first, Cloned)
        again = seen(first.certificates, OLD, 7 * DAY)
        assert isinstance(again, Cloned)
        self.assertFalse(again.new)
        self.assertEqual(again.certificates, first.certificates)

    def test_a_crossing_handshake_is_no_clone(self) -> None:
        """One that began before the new certificate was first used. It is refused all the same."""
        outcome = seen(self.known, OLD, 5 * DAY + CROSSING - 1)
        assert isinstance(outcome, Turned)
        self.assertEqual(outcome.code, "superseded")
        self.assertIsInstance(seen(self.known, OLD, 5 * DAY + CROSSING), Cloned)

    def test_a_thief_who_renews_first(self) -> None:
        """A stolen key that renews and is used: the defender itself, with the old one, gives the alarm."""
        stolen = certificate(4.6, "thief")
        known = welcomed(offered(KNOWN, stolen, 4 * DAY), stolen, 4.7)
        self.assertIsInstance(seen(known, OLD, 5 * DAY), Cloned)

    def test_two_that_ask_for_new_keys(self) -> None:
        """The offer that was taken back must not be used."""
        mine = certificate(4.6, "thief")
        known = offered(offered(KNOWN, NEW, 4 * DAY), mine, 4 * DAY + 60)
        self.assertEqual(known.offered, mine)
        self.assertIsInstance(seen(known, NEW, 5 * DAY), Cloned)

    def test_a_new_token_settles_it(self) -> None:
        locked = seen(self.known, OLD, 6 * DAY)
        assert isinstance(locked, Cloned)
        known = rejoined(locked.certificates, NEWER, 8 * DAY)
        self.assertEqual(welcomed(known, NEWER, 9), known)
        for old in (OLD, NEW):
            self.assertIsInstance(seen(known, old, 9 * DAY), Cloned)

    def test_what_is_remembered_is_bounded(self) -> None:
        known = KNOWN
        for number in range(200):
            new = certificate(1.1 + number / 1000)
            known = welcomed(offered(known, new, DAY), new, 2)
        self.assertEqual(len(known.superseded), MAX_SUPERSEDED)
        late = offered(known, certificate(60), 60 * DAY)
        self.assertEqual(welcomed(late, certificate(60), 60).superseded[:-1], ())


class ExpiryTests(SynchronousTestCase):
    """By proof of the old key, for thirty days."""

    END = OLD.not_after

    def test_within_thirty_days(self) -> None:
        for later in (1, GRACE):
            self.assertEqual(expired(KNOWN, OLD, self.END + later), Welcome(KNOWN))
        self.assertEqual(GRACE, 30 * DAY)

    def test_later_only_with_a_token(self) -> None:
        outcome = expired(KNOWN, OLD, self.END + GRACE + 1)
        assert isinstance(outcome, Turned)
        self.assertEqual(outcome.code, "too-late")
        self.assertIn("new token", outcome.detail)

    def test_an_offer_that_was_never_used(self) -> None:
        """The defender had put it in place and was off before it could use it."""
        outcome = expired(offered(KNOWN, NEW, 4 * DAY), NEW, NEW.not_after + DAY)
        assert isinstance(outcome, Welcome)
        self.assertEqual(outcome.how, "promoted")

    def test_a_superseded_one_is_a_clone(self) -> None:
        known = welcomed(offered(KNOWN, NEW, 4 * DAY), NEW, 5)
        self.assertIsInstance(expired(known, OLD, self.END + DAY), Cloned)

    def test_a_locked_one(self) -> None:
        self.assertIsInstance(expired(replace(KNOWN, lock="x"), OLD, self.END + 1), Turned)


class RestoredControllerTests(SynchronousTestCase):
    """The controller came back from a backup; its defenders reconnect untouched."""

    def test_a_younger_certificate_is_taken_over(self) -> None:
        outcome = seen(KNOWN, NEW, 5 * DAY)
        assert isinstance(outcome, Welcome)
        self.assertEqual(outcome.how, "restored")
        self.assertEqual(outcome.certificates.used, NEW)
        self.assertIsInstance(seen(outcome.certificates, OLD, 6 * DAY), Cloned)

    def test_an_older_one_is_not(self) -> None:
        outcome = seen(Certificates(NEW), OLD, 5 * DAY)
        assert isinstance(outcome, Turned)
        self.assertEqual(outcome.code, "unknown-certificate")


class AnyOrderTests(SynchronousTestCase):
    """Renewals with lost answers, crashes and reconnections, in any order."""

    @given(st.lists(st.sampled_from(["renew", "lose", "use", "connect"]), max_size=40))
    def test_an_honest_defender_is_never_shut_out(self, steps: list[str]) -> None:
        """It keeps one new key until it is settled, and puts a new certificate in place before it uses it."""
        known, held, key, day = KNOWN, OLD, 0, 1.0
        for step in steps:
            day += 0.01
            now = int(day * DAY)
            if step == "connect":
                known = welcomed(known, held, day)
                continue
            known = welcomed(known, held, day)
            new = certificate(1.001 + key, "honest")
            outcome = asked(known, held, new.key)
            if isinstance(outcome, Offer):
                known = offered(known, new, now)
            else:
                self.assertEqual(outcome, OfferAgain(new))
            if step == "lose":
                continue  # the same key is asked for again
            held, key = new, key + 1
            if step == "use":
                known = welcomed(known, held, day)
        self.assertEqual(known.lock, "")

"""Join tokens at the controller: what each request leads to, whoever races whom."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.tokens import (
    APPROVAL_LIFE,
    LIFE,
    REPEAT,
    Issue,
    Refuse,
    Repeat,
    StoredToken,
    TokenTermsError,
    TokenUse,
    Verdict,
    Wait,
    consume,
    decide_waiting,
    folded,
    judge,
    store_token,
)
from defender.contract.join import JoinRequest
from defender.contract.join_token import new_token
from tests.fakes.authority import TestAuthority

NOW = 1_800_000_000
TOKEN = new_token(bytes(range(30)), TestAuthority().root)
HERE = ip_address("10.1.2.3")
KEY = b"k" * 32


def request(name: str = "web1", secret: bytes = TOKEN.secret) -> JoinRequest:
    return JoinRequest(token=TOKEN.id, secret=secret, name=name, csr=b"csr")


def stored(**terms: Any) -> StoredToken:
    return store_token(TOKEN, now=NOW, **terms)


def ask(token: StoredToken | None, previous: TokenUse | None = None, **more: Any) -> Verdict:
    arguments: dict[str, Any] = {
        "request": request(),
        "key": KEY,
        "source": HERE,
        "holder": None,
        "new_id": "new",
        "now": NOW + 1,
        **more,
    }
    asked = arguments.pop("request")
    return judge(token, previous, asked, **arguments)


class TermsTests(SynchronousTestCase):
    """What a token can be made of."""

    def test_by_default_one_use_and_one_hour(self) -> None:
        token = stored()
        self.assertEqual((token.max_uses, token.expires - token.created), (1, 3600))
        self.assertEqual(LIFE, 3600)

    def test_no_secret_is_kept(self) -> None:
        token = stored()
        self.assertEqual(token.digest, TOKEN.digest)
        kept = [getattr(token, name) for name in token.__slots__]
        self.assertNotIn(TOKEN.secret, kept)
        self.assertNotIn(repr(token.digest), repr(token))

    def test_refused(self) -> None:
        for field_name, terms in (
            ("life", {"life": 59}),
            ("life", {"life": 31 * 86_400}),
            ("max_uses", {"max_uses": 0}),
            ("max_uses", {"max_uses": 10_001}),
            ("networks", {"networks": ("10.0.0.0/33",)}),
            ("networks", {"networks": ("10.1.2.3/8",)}),
            ("networks", {"networks": ("10.0.0.0/8",) * 65}),
            ("labels", {"labels": {str(n): "" for n in range(65)}}),
            ("labels", {"labels": {"": "x"}}),
            ("names", {"names": ("a\nb",)}),
            ("names", {"names": ("",)}),
            ("hosts", {"hosts": ("a",) * 65}),
            ("comment", {"comment": "x" * 1001}),
        ):
            with self.assertRaises(TokenTermsError) as caught:
                stored(**terms)
            self.assertEqual(caught.exception.field, field_name, terms)
            self.assertIn(field_name, str(caught.exception))


class VerdictTests(SynchronousTestCase):
    """One request after the other."""

    def refused(self, *arguments: Any, **more: Any) -> str:
        verdict = ask(*arguments, **more)
        assert isinstance(verdict, Refuse), verdict
        self.assertNotIn(repr(TOKEN.secret), repr(verdict))
        return verdict.code

    def test_the_first_use(self) -> None:
        verdict = ask(stored())
        use = TokenUse(TOKEN.id, KEY, "new", "web1", "issued", NOW + 1, NOW + 1)
        self.assertEqual(verdict, Issue(use, consumes=True))

    def test_who_does_not_know_the_secret_learns_nothing(self) -> None:
        wrong = request(secret=bytes(20))
        used = replace(stored(), uses=1)
        answers = {
            repr(ask(token, request=wrong, now=now))
            for token in (
                None,
                stored(),
                used,
                replace(used, revoked=True),
                stored(networks=("10.9.0.0/16",)),
            )
            for now in (NOW, NOW + 7200)
        }
        self.assertEqual(len(answers), 1)
        self.assertEqual(self.refused(None), "token")

    def test_used_up(self) -> None:
        self.assertEqual(self.refused(replace(stored(), uses=1)), "token-used")

    def test_n_uses(self) -> None:
        token: StoredToken | None = stored(max_uses=3)
        for _ in range(3):
            assert token is not None
            self.assertIsInstance(ask(token), Issue)
            token = consume(token, NOW)
        self.assertEqual(self.refused(token), "token-used")

    def test_expired(self) -> None:
        self.assertIsInstance(ask(stored(), now=NOW + LIFE - 1), Issue)
        self.assertEqual(self.refused(stored(), now=NOW + LIFE), "token-expired")

    def test_revoked(self) -> None:
        token = replace(stored(), revoked=True)
        self.assertEqual(self.refused(token), "token-revoked")
        issued = TokenUse(TOKEN.id, KEY, "d", "web1", "issued", NOW, NOW)
        self.assertEqual(self.refused(token, issued), "token-revoked")

    def test_networks(self) -> None:
        token = stored(networks=("10.1.0.0/16", "2001:db8::/32"))
        for source in ("10.1.2.3", "2001:db8::1", "::ffff:10.1.9.9"):
            self.assertIsInstance(ask(token, source=ip_address(source)), Issue, source)
        for source in ("10.2.0.1", "2001:db9::1", "::1"):
            self.assertEqual(self.refused(token, source=ip_address(source)), "address")

    def test_a_token_for_one_name(self) -> None:
        token = stored(names=("Web1",))
        self.assertIsInstance(ask(token), Issue)
        self.assertEqual(self.refused(token, request=request("web2")), "name")

    def test_a_token_for_some_names(self) -> None:
        token = stored(names=("web*", "-web9"))
        self.assertIsInstance(ask(token), Issue)
        for name in ("db1", "web9"):
            self.assertEqual(self.refused(token, request=request(name)), "name", name)

    def test_a_name_that_is_taken(self) -> None:
        self.assertEqual(self.refused(stored(), holder="old"), "name-taken")

    def test_a_token_for_several_replaces_nobody(self) -> None:
        for terms in ({"names": ("web*",)}, {"names": ("web1", "web2")}, {"names": ("web1",), "max_uses": 2}):
            self.assertEqual(self.refused(stored(**terms), holder="old"), "name-taken")

    def test_a_token_for_a_name_lets_its_defender_in_again(self) -> None:
        """With the same id: its events, labels and locks go on."""
        for name in ("web1", "web-1.example"):
            verdict = ask(stored(names=(name.upper(),)), holder="old", request=request(name))
            assert isinstance(verdict, Issue)
            self.assertEqual((verdict.use.defender, verdict.replaces), ("old", True))

    def test_names_are_compared_folded(self) -> None:
        self.assertEqual(folded("WEB\u00e9"), folded("web\u0065\u0301"))


class RetryTests(SynchronousTestCase):
    """A lost answer burns nothing."""

    USE = TokenUse(TOKEN.id, KEY, "d", "web1", "issued", NOW, NOW)
    USED = replace(store_token(TOKEN, now=NOW), uses=1)

    def test_the_same_key_gets_the_same_again(self) -> None:
        for later in (0, 1, REPEAT - 1):
            self.assertEqual(ask(self.USED, self.USE, now=NOW + later), Repeat(self.USE))
        self.assertEqual(REPEAT, 600)

    def test_not_for_ever(self) -> None:
        verdict = ask(self.USED, self.USE, now=NOW + REPEAT)
        assert isinstance(verdict, Refuse)
        self.assertEqual(verdict.code, "token-used")

    def test_also_when_the_token_has_expired_since(self) -> None:
        use = replace(self.USE, issued=NOW + LIFE - 1)
        self.assertEqual(ask(self.USED, use, now=NOW + LIFE + 60), Repeat(use))

    def test_and_its_own_name_is_not_taken(self) -> None:
        self.assertEqual(ask(self.USED, self.USE, holder="d"), Repeat(self.USE))

    def test_not_under_another_name(self) -> None:
        verdict = ask(self.USED, self.USE, request=request("web2"))
        assert isinstance(verdict, Refuse)
        self.assertEqual(verdict.code, "name")

    def test_the_secret_is_needed_all_the_same(self) -> None:
        verdict = ask(self.USED, self.USE, request=request(secret=bytes(20)))
        assert isinstance(verdict, Refuse)
        self.assertEqual(verdict.code, "token")


class ApprovalTests(SynchronousTestCase):
    """An administrator has to agree first."""

    def setUp(self) -> None:
        self.token = stored(approval=True)
        verdict = ask(self.token)
        assert isinstance(verdict, Wait)
        self.assertTrue(verdict.consumes)
        self.use = verdict.use
        consumed = consume(self.token, NOW)
        assert consumed is not None
        self.token = consumed

    def test_it_waits_without_a_second_use(self) -> None:
        self.assertEqual(ask(self.token, self.use, now=NOW + 10), Wait(self.use, consumes=False))

    def test_agreed(self) -> None:
        """Also after the token's own life: an administrator has a day."""
        agreed = decide_waiting(self.use, agree=True, now=NOW + 7200)
        assert agreed is not None
        verdict = ask(self.token, agreed, now=NOW + 7210)
        self.assertEqual(verdict, Issue(replace(agreed, state="issued", issued=NOW + 7210), consumes=False))
        assert isinstance(verdict, Issue)
        self.assertEqual(ask(self.token, verdict.use, now=NOW + 7220), Repeat(verdict.use))

    def test_denied(self) -> None:
        denied = decide_waiting(self.use, agree=False, now=NOW + 5)
        verdict = ask(self.token, denied, now=NOW + 10)
        assert isinstance(verdict, Refuse)
        self.assertEqual(verdict.code, "denied")

    def test_too_late(self) -> None:
        self.assertIsNone(decide_waiting(self.use, agree=True, now=NOW + 1 + APPROVAL_LIFE))
        verdict = ask(self.token, self.use, now=NOW + 1 + APPROVAL_LIFE)
        assert isinstance(verdict, Refuse)
        self.assertEqual(verdict.code, "approval-expired")

    def test_a_decision_is_made_once(self) -> None:
        denied = decide_waiting(self.use, agree=False, now=NOW)
        assert denied is not None
        self.assertIsNone(decide_waiting(denied, agree=True, now=NOW))

    def test_another_key_gets_nothing(self) -> None:
        verdict = ask(self.token, None, key=b"x" * 32)
        assert isinstance(verdict, Refuse)
        self.assertEqual(verdict.code, "token-used")


@dataclass
class Store:
    """The store's part: what is read, and writes that hold only if nothing came between."""

    token: StoredToken
    uses: dict[bytes, TokenUse] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    certificates: dict[str, list[bytes]] = field(default_factory=dict)

    def judge(self, key: bytes, name: str, now: int) -> Verdict:
        return ask(
            self.token,
            self.uses.get(key),
            request=request(name),
            key=key,
            holder=self.names.get(name),
            new_id=f"id of {key!r}",
            now=now,
        )

    def write(self, key: bytes, verdict: Verdict, now: int) -> bool:
        """Do what a verdict says, that may be of an older state; False if it does not hold any more.

        This is `UPDATE ... WHERE uses < max_uses ... RETURNING`, and the unique keys of uses and names.
        """
        if not isinstance(verdict, (Issue, Wait)):
            return True
        if verdict.consumes:
            after = consume(self.token, now)
            if after is None or key in self.uses or verdict.use.name in self.names:
                return False
            self.token = after
            self.names[verdict.use.name] = verdict.use.defender
        self.uses[key] = verdict.use
        if isinstance(verdict, Issue):
            self.certificates.setdefault(verdict.use.defender, []).append(key)
        return True


REQUESTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=8)


class RaceTests(SynchronousTestCase):
    """Requests that come at once, in every order of their reading and writing."""

    @given(REQUESTS, st.integers(1, 3), st.booleans(), st.randoms(use_true_random=False))
    def test_no_token_is_used_more_often_than_it_may(
        self, requests: list[tuple[int, int]], uses: int, approval: bool, random: Any
    ) -> None:
        store = Store(stored(max_uses=uses, approval=approval))
        waiting = list(range(len(requests)))
        judged: dict[int, Verdict] = {}
        ended: dict[int, Verdict] = {}
        while waiting:
            number = random.choice(waiting)
            key, name = bytes([requests[number][0]]) * 32, f"web{requests[number][1]}"
            if number not in judged:
                judged[number] = store.judge(key, name, NOW + 1)
            elif store.write(key, judged[number], NOW + 1):
                ended[number] = judged[number]
                waiting.remove(number)
            else:
                del judged[number]  # read again
        self.assertLessEqual(store.token.uses, uses)
        self.assertEqual(store.token.uses, len(store.uses))
        for defender, keys in store.certificates.items():
            self.assertEqual(len(keys), 1, f"{defender} has several certificates")
        for number, verdict in ended.items():
            if isinstance(verdict, (Issue, Repeat, Wait)):
                key = bytes([requests[number][0]]) * 32
                self.assertEqual(verdict.use.defender, store.uses[key].defender)

    @given(st.integers(1, 5), st.integers(2, 20))
    def test_exactly_as_many_as_it_may_get_in(self, uses: int, hosts: int) -> None:
        """All read before the first one writes."""
        store = Store(stored(max_uses=uses))
        keys = [bytes([number]) * 32 for number in range(hosts)]
        first = [store.judge(key, f"web{key[0]}", NOW) for key in keys]
        self.assertTrue(all(isinstance(verdict, Issue) for verdict in first))
        won = [store.write(key, verdict, NOW) for key, verdict in zip(keys, first, strict=True)]
        self.assertEqual(sum(won), min(uses, hosts))
        for key, winner in zip(keys, won, strict=True):
            again = store.judge(key, f"web{key[0]}", NOW)
            self.assertIsInstance(again, Repeat if winner else Refuse)

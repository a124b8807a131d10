"""What is packed from parts is the event that its builder makes."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.audit import actor_of, decision_of, describe, request_event
from defender.contract.facts import Subject
from defender.contract.fragments import attempt_body, packed, request_fragment, result_body
from defender.contract.packing import pack_body
from defender.contract.policy import Decision

BRUCE = Subject(user="bruce", groups=("ops",), address="10.1.2.3", port=51234, serial="7f")


class ResultTests(SynchronousTestCase):
    def same(self, query: tuple[tuple[str, str], ...], error: str, user: Subject = BRUCE) -> None:
        actor = actor_of(user)
        request = describe("image_create", "POST", "/images/create", query, {}, (1, 41))
        decision = decision_of(Decision("allow", "ops", "listed", None, "all"), 3, "sha256:00")
        fragment = request_fragment(request.fields, request.redacted)
        for sent in (0, 127, 300, 70_000):
            event = request_event(actor, request, decision, status=200, sent=sent, ms=0.41449, error=error)
            del event["corr"]
            made = result_body(packed(actor), fragment, packed(decision), 200, sent, 0.41449, error)
            self.assertEqual(made, pack_body(event))
        event = request_event(actor, request, decision)
        del event["corr"]
        self.assertEqual(attempt_body(packed(actor), fragment, packed(decision)), pack_body(event))

    def test_packed_result_is_the_builders_event(self) -> None:
        self.same((("fromImage", "nginx"),), "")

    def test_packed_result_with_an_error_and_something_hidden(self) -> None:
        self.same((("fromSrc", "https://u:secret@host/x"),), "the client disconnected")

    def test_name_that_no_encoding_holds(self) -> None:
        self.same((), "", Subject(user="b\udcff", via="unix", uid=1000))

"""The defender's own answers."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.policy import Decision
from defender.http1.head import parse_response_head
from defender.proxy.refusal import denial_message, error_response


def deny(message: str | None = None) -> Decision:
    return Decision(effect="deny", rule="devs_rule", reason="action not listed", message=message)


class DenialTextTests(SynchronousTestCase):
    def test_exact_text(self) -> None:
        self.assertEqual(
            denial_message("[Defender]", "image_create", "bruce@example.com", deny()),
            "[Defender] The command 'image_create' denied for user 'bruce@example.com' by rule 'devs_rule'",
        )

    def test_own_prefix_and_message(self) -> None:
        self.assertEqual(
            denial_message("[ACME]", "image_create", "bruce", deny("Ask #platform.")),
            "[ACME] The command 'image_create' denied for user 'bruce' by rule 'devs_rule' Ask #platform.",
        )
        self.assertTrue(denial_message("", "a", "b", deny()).startswith("The command "))

    @settings(max_examples=200)
    @given(st.text(max_size=50))
    def test_no_control_character_reaches_a_terminal(self, user: str) -> None:
        self.assertTrue(denial_message("[Defender]", "a", user, deny()).isprintable())


class ErrorResponseTests(SynchronousTestCase):
    @settings(max_examples=200)
    @given(
        st.text(max_size=50),
        st.booleans(),
        st.sampled_from([400, 403, 408, 417, 429, 431, 501, 502, 503, 504, 505]),
    )
    def test_always_one_readable_answer(self, message: str, close: bool, status: int) -> None:
        answer = error_response(status, message, close=close)
        head, _, body = answer.partition(b"\r\n\r\n")
        read = parse_response_head(head + b"\r\n\r\n", request_method="GET")
        self.assertEqual((read.status, read.length, read.keep_alive), (status, len(body), not close))
        self.assertEqual(list(json.loads(body)), ["message"])
        self.assertTrue(read.reason and read.reason != b"Error")

    def test_head_has_the_length_of_what_get_would_bring(self) -> None:
        whole = error_response(403, "no")
        self.assertEqual(
            error_response(403, "no", head_only=True), whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        )

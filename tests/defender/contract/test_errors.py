"""Errors say what, where and what to do, on one line each."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.errors import ContractError, IdentityError, PolicyError, Problem, one_line


class ErrorTests(SynchronousTestCase):
    """What people read."""

    def test_problem_with_and_without_its_parts(self) -> None:
        self.assertEqual(Problem(3, 7, "a.b", "is bad", "try c").describe("f"), "f:3:7: a.b: is bad (try c)")
        self.assertEqual(Problem(3, 7, "", "is bad").describe("f"), "f:3:7: is bad")
        self.assertEqual(Problem(0, 0, "", "is bad").describe("f"), "f: is bad")

    def test_policy_error_sorts_by_place(self) -> None:
        error = PolicyError("f", (Problem(9, 1, "b", "second"), Problem(2, 5, "a", "first")))
        self.assertEqual([problem.line for problem in error.problems], [2, 9])
        self.assertEqual(str(error), "f:2:5: a: first\nf:9:1: b: second")
        self.assertIsInstance(error, ContractError)

    def test_text_of_others_cannot_forge_a_line(self) -> None:
        shown = Problem(1, 1, "k\nx", "bad \x1b[31m", "\u2028").describe("f\ng")
        self.assertEqual(shown, r"f\ng:1:1: k\nx: bad \x1b[31m (\u2028)")
        self.assertEqual(one_line("plain é"), "plain é")

    def test_identity_error_names_check_and_subject(self) -> None:
        error = IdentityError("expired", "ended at 12:00", subject="bruce")
        self.assertEqual(str(error), "identity check 'expired' failed for 'bruce': ended at 12:00")
        self.assertEqual((error.check, error.subject), ("expired", "bruce"))
        self.assertEqual(str(IdentityError("chain", "no issuer")), "identity check 'chain' failed: no issuer")

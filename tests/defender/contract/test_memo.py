"""What is remembered is bounded, and found out again when it was forgotten."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.memo import Memo


class MemoTests(SynchronousTestCase):
    def test_finds_once_and_holds_no_more_than_its_limit(self) -> None:
        asked: list[int] = []

        def find(key: int) -> int:
            asked.append(key)
            return -key

        memo = Memo(find, 3)
        self.assertEqual([memo[1], memo[1], memo[2], memo[3]], [-1, -1, -2, -3])
        self.assertEqual(asked, [1, 2, 3])
        self.assertEqual(memo[4], -4)
        self.assertLessEqual(len(memo), 3)
        self.assertEqual(memo[1], -1)

    def test_nothing_is_remembered_of_a_failure(self) -> None:
        memo: Memo[str, int] = Memo(int, 3)
        self.assertRaises(ValueError, lambda: memo["x"])
        self.assertEqual(len(memo), 0)

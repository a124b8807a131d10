"""Patterns against a naive model."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.pattern import Patterns, compile_glob

texts = st.text("abAB-\n*?", max_size=8) | st.sampled_from(["straße", "STRASSE", "Ⅷ", "İ"])
globs = st.text("abA*?-\n", max_size=8)


def naive_glob(pattern: str, text: str) -> bool:
    """Try every way: what the words `any text` and `one character` say."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(naive_glob(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and naive_glob(pattern[1:], text[1:])


class GlobTests(SynchronousTestCase):
    """One pattern, one text."""

    def assert_matches(self, pattern: str, *folded: str) -> None:
        for text in folded:
            self.assertTrue(compile_glob(pattern)(text), (pattern, text))

    def assert_not(self, pattern: str, *folded: str) -> None:
        for text in folded:
            self.assertFalse(compile_glob(pattern)(text), (pattern, text))

    def test_whole_text(self) -> None:
        self.assert_matches("prod*", "prod", "prod1", "prod/x", "prod\nx")
        self.assert_not("prod*", "xprod", "pro")
        self.assert_not("prod", "prod1", "prod\n", "")

    def test_middle_and_end(self) -> None:
        self.assert_matches("*.example.com", "a.example.com", ".example.com", "a/b.example.com")
        self.assert_matches("a*b*c", "abc", "axxbxxc", "abcbc")
        self.assert_not("a*b*c", "acb", "ab", "abcd")
        self.assert_not("ab*ba", "aba")

    def test_question_mark_is_one_character(self) -> None:
        self.assert_matches("web?", "web1", "web/", "web\n", "web?")
        self.assert_not("web?", "web", "web12")
        self.assert_matches("?*?", "ab", "abc")
        self.assert_not("?*?", "a")

    def test_other_characters_mean_themselves(self) -> None:
        self.assert_matches("a.c[1]+(x)?", "a.c[1]+(x)y")
        self.assert_not("a.c", "abc")
        self.assert_matches("[ab]*", "[ab]")

    def test_unicode_folding(self) -> None:
        self.assert_matches("Straße*", "STRASSE 1".casefold())
        self.assert_matches("ΣΊΣΥΦΟΣ", "Σίσυφος".casefold())

    def test_no_backtracking(self) -> None:
        """A pattern made to be slow in a backtracking matcher ends at once: this would take years."""
        for pattern in ("*a" * 200 + "b", "*?a" * 200 + "b"):
            self.assertFalse(compile_glob(pattern)("a" * 1000))

    @settings(max_examples=300, deadline=None)
    @given(globs, texts)
    def test_like_the_naive_model(self, pattern: str, text: str) -> None:
        self.assertEqual(
            compile_glob(pattern)(text.casefold()),
            naive_glob(pattern.casefold(), text.casefold()),
            (pattern, text),
        )


class PatternsTests(SynchronousTestCase):
    """Lists with exemptions."""

    def test_exemptions_come_first(self) -> None:
        patterns = Patterns(("prod-web", "prod*", "-prod-canary*", "-prod-web"))
        self.assertTrue(patterns.matches("prod1"))
        self.assertFalse(patterns.matches("prod-canary2"))
        self.assertFalse(patterns.matches("prod-web"))

    def test_one_exempted_group_takes_the_subject_out(self) -> None:
        patterns = Patterns(("dev", "ops", "-contractors"))
        self.assertTrue(patterns.matches_any(["dev"]))
        self.assertTrue(patterns.matches_any(["x", "ops"]))
        self.assertFalse(patterns.matches_any(["dev", "contractors"]))
        self.assertFalse(patterns.matches_any([]))

    def test_star_matches_a_subject_without_groups(self) -> None:
        self.assertTrue(Patterns(("*",)).matches_any([]))
        self.assertTrue(Patterns(("*", "-contractors")).matches_any([]))
        self.assertFalse(Patterns(("**",)).matches_any([]))
        self.assertFalse(Patterns(("?*",)).matches_any([]))

    def test_everything(self) -> None:
        self.assertTrue(Patterns(("a", "*")).everything)
        self.assertFalse(Patterns(("a*",)).everything)
        self.assertFalse(Patterns(("*", "-a")).everything)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(globs, min_size=1, max_size=4), texts)
    def test_like_the_naive_model(self, patterns: list[str], text: str) -> None:
        folded = text.casefold()
        exempt = any(p.startswith("-") and naive_glob(p[1:].casefold(), folded) for p in patterns)
        wanted = any(not p.startswith("-") and naive_glob(p.casefold(), folded) for p in patterns)
        self.assertEqual(Patterns(patterns).matches(folded), wanted and not exempt)

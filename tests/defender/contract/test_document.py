"""The YAML reader: what it keeps, what it refuses, and that nothing else can come out of it."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.document import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_PROBLEMS,
    Document,
    Mapping,
    Scalar,
    Sequence,
    describe,
    place_of,
    read_document,
)
from defender.contract.errors import Problem


class ReadingTests(SynchronousTestCase):
    """What is kept of a file."""

    def test_tree_with_lines_and_columns(self) -> None:
        document = read_document('a: x\nb:\n  - "y"\n  - {c: 1}\n')
        self.assertEqual(document.problems, ())
        self.assertEqual(
            document.root,
            Mapping(
                1,
                1,
                (
                    (Scalar(1, 1, "a", "str"), Scalar(1, 4, "x", "str")),
                    (
                        Scalar(2, 1, "b", "str"),
                        Sequence(
                            3,
                            3,
                            (
                                Scalar(3, 5, "y", "str"),
                                Mapping(4, 5, ((Scalar(4, 6, "c", "str"), Scalar(4, 9, "1", "int")),)),
                            ),
                        ),
                    ),
                ),
            ),
        )

    def test_kinds_of_yaml_1_1(self) -> None:
        for text, kind in (
            ("yes", "bool"),
            ("on", "bool"),
            ("12", "int"),
            ("12:30", "int"),
            ("0x1f", "int"),
            ("1.5", "float"),
            ("~", "null"),
            ("null", "null"),
            ("2020-01-01", "timestamp"),
            ("y", "str"),
            ('"yes"', "str"),
            ("'12'", "str"),
            ("10.0.0.0/8", "str"),
            ("-x", "str"),
        ):
            root = read_document(f"[{text}]").root
            assert isinstance(root, Sequence)
            item = root.items[0]
            assert isinstance(item, Scalar)
            self.assertEqual(item.kind, kind, text)

    def test_nothing_to_look_at(self) -> None:
        for text in ("", "# a comment\n", "\ufeff", "---\n# nothing\n"):
            document = read_document(text)
            self.assertEqual(document.problems, ())
            self.assertIn(document.root, (None, Scalar(3, 1, "", "null")), text)

    def test_describe(self) -> None:
        described = [
            describe(node) for node in (Sequence(1, 1, ()), Mapping(1, 1, ()), Scalar(1, 1, "x", "str"))
        ]
        self.assertEqual(described, ["a list", "a mapping", "text"])

    def test_place_of_counts_every_line_break(self) -> None:
        text = "ab\r\ncd\ne"
        self.assertEqual(
            [place_of(text, n) for n in (0, 1, 4, 5, 7)], [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]
        )


class RefusalTests(SynchronousTestCase):
    """What YAML accepts and this reader does not, and what is no YAML."""

    def assert_problem(
        self, text: str, line: int, column: int, key: str, message: str, suggestion: str = ""
    ) -> None:
        problems = read_document(text).problems
        self.assertTrue(problems, text)
        found = problems[0]
        self.assertEqual((found.line, found.column, found.key), (line, column, key), found)
        self.assertIn(message, found.message)
        self.assertIn(suggestion, found.suggestion)

    def test_anchor_and_alias(self) -> None:
        self.assert_problem("a: &x 1\n", 1, 4, "a", "anchors are not accepted", '"&x"')
        self.assert_problem("a: [*x]\n", 1, 5, "a[0]", "aliases are not accepted", '"*x"')

    def test_a_bare_star_is_told_to_be_quoted(self) -> None:
        self.assert_problem("a: [*]\n", 1, 6, "", "not YAML", 'write "*" in quotes')

    def test_tags(self) -> None:
        self.assert_problem("a: !!python/object:os.system x\n", 1, 4, "a", "tags are not accepted")
        self.assert_problem("a:\n  - !x {b: 1}\n", 2, 5, "a[0]", "tags are not accepted")

    def test_repeated_key(self) -> None:
        self.assert_problem("a: 1\nb: 2\na: 3\n", 3, 1, "", "the key 'a' appears twice", "line 1")
        self.assert_problem('r: [{"a": 1, a: 2}]\n', 1, 14, "r[0]", "the key 'a' appears twice")

    def test_keys_that_are_not_text(self) -> None:
        for text in ("1: x\n", "yes: x\n", "~: x\n", "<<: {a: 1}\n", "? [a]\n: x\n", "2020-01-01: x\n"):
            self.assertIn("a key must be text", read_document(text).problems[0].message, text)

    def test_second_document(self) -> None:
        self.assert_problem("a: 1\n---\na: 2\n", 2, 1, "", "a second document")

    def test_too_large(self) -> None:
        for text in ("#" * (MAX_BYTES + 1), "é" * (MAX_BYTES // 2 + 1)):
            self.assert_problem(text, 0, 0, "", f"larger than {MAX_BYTES} bytes")

    def test_largest(self) -> None:
        self.assertEqual(read_document("#" * MAX_BYTES), Document(None, ()))

    def test_too_deep(self) -> None:
        self.assertEqual(read_document("[" * MAX_DEPTH + "]" * MAX_DEPTH).problems, ())
        self.assert_problem("[" * 500_000, 1, MAX_DEPTH + 1, "[0]" * MAX_DEPTH, "nested deeper")
        self.assertEqual(len(read_document("{a: " * 500).problems), 1)

    def test_characters(self) -> None:
        for character in ("\x00", "\x07", "\x7f", "\x85", "\u2028", "\ud800", "\ufeff", "\uffff"):
            self.assert_problem(f"a: 1\nb: x{character}\n", 2, 5, "", f"U+{ord(character):04X}")

    def test_syntax_errors_have_a_place_and_a_hint(self) -> None:
        self.assert_problem("a: b: c\n", 1, 5, "", "not YAML", "colon")
        self.assert_problem("a:\n\tb: c\n", 2, 1, "", "not YAML", "spaces")
        self.assert_problem("a: 1\nb: 'x\n", 2, 4, "", "not YAML", "closing quote")
        self.assert_problem("a: @x\n", 1, 4, "", "not YAML", "needs quotes")
        self.assert_problem("a: [1, 2\nb: 3\n", 2, 2, "", "not YAML", "brackets")

    def test_many_faults_end_the_reading(self) -> None:
        self.assertEqual(len(read_document("a: 1\n" * 5000).problems), MAX_PROBLEMS)

    @settings(max_examples=300, deadline=None)
    @given(st.text(max_size=200) | st.text("[]{}:,-?&*!|>'\"%@` \n\tab1", max_size=200))
    @example("? " * 40)
    @example("%YAML 9.9\n---\na")
    @example("\ud800")
    @example("'" * 3)
    def test_any_text_gives_a_document(self, text: str) -> None:
        document = read_document(text)
        for problem in document.problems:
            self.assertIsInstance(problem, Problem)
            self.assertTrue(problem.message)

"""Which defenders a selection means, and which selections are refused."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from controller.selection import (
    MAX_IDS,
    MAX_LABELS,
    MAX_NAMES,
    Defender,
    Selection,
    SelectionError,
    change_labels,
    check_labels,
    parse_label,
)

WEB1 = Defender("id-1", "Web1", {"env": "prod", "team": "shop"})
WEB2 = Defender("id-2", "web2", {"env": "test"})
DB = Defender("id-3", "db.example.com")
ALL = (WEB1, WEB2, DB)


def chosen(**conditions: object) -> list[str]:
    return [each.name for each in Selection(**conditions).choose(ALL)]  # type: ignore[arg-type]


class Choosing(SynchronousTestCase):
    def test_no_condition_means_all(self) -> None:
        self.assertEqual(chosen(), ["Web1", "web2", "db.example.com"])
        self.assertTrue(Selection().is_everything)

    def test_names_are_globs_without_regard_to_case(self) -> None:
        self.assertEqual(chosen(names=["WEB?"]), ["Web1", "web2"])
        self.assertEqual(chosen(names=["web1", "db.*"]), ["Web1", "db.example.com"])
        self.assertEqual(chosen(names=["*", "-web*"]), ["db.example.com"])
        self.assertTrue(Selection(names=["*"]).is_everything)
        self.assertFalse(Selection(names=["*", "-web*"]).is_everything)

    def test_every_label_must_be_there(self) -> None:
        self.assertEqual(chosen(labels={"env": "prod"}), ["Web1"])
        self.assertEqual(chosen(labels={"env": "prod", "team": "bank"}), [])
        self.assertEqual(chosen(labels={"env": "Prod"}), [])

    def test_ids_are_ids_or_names(self) -> None:
        self.assertEqual(chosen(ids=["id-2", "db.example.com"]), ["web2", "db.example.com"])

    def test_all_conditions_hold_together(self) -> None:
        self.assertEqual(chosen(names=["web*"], labels={"env": "test"}), ["web2"])
        self.assertFalse(Selection(labels={"env": "test"}).is_everything)


class Refusing(SynchronousTestCase):
    def refused(self, text: str, **conditions: object) -> None:
        with self.assertRaisesRegex(SelectionError, text):
            Selection(**conditions)  # type: ignore[arg-type]

    def test_names(self) -> None:
        for name in ("", "-", " web", "a\nb", "x" * 257):
            self.refused("is not 1 to 256 printable", names=[name])
        self.refused('write "\\*" before', names=["-web*"])
        self.refused("at most 256", names=["x"] * (MAX_NAMES + 1))
        self.refused("at most 1000", ids=[str(number) for number in range(MAX_IDS + 1)])

    def test_labels(self) -> None:
        self.refused("the label name '-x'", labels={"-x": "y"})
        self.refused("the value 'a b' of env", labels={"env": "a b"})
        self.refused("the label name 'aaa", labels={"a" * 64: "y"})
        with self.assertRaisesRegex(SelectionError, "at most 64"):
            check_labels({f"k{number}": "" for number in range(MAX_LABELS + 1)})

    def test_documents(self) -> None:
        for document, text in (
            ({"name": ["x"]}, "unknown key 'name'"),
            ({"names": "x"}, "names is a list of texts"),
            ({"ids": [1]}, "ids is a list of texts"),
            ({"labels": [["a", "b"]]}, "labels is an object"),
            ({"labels": {"a": 1}}, "labels is an object"),
        ):
            with self.assertRaisesRegex(SelectionError, text):
                Selection.from_document(document)


class Texts(SynchronousTestCase):
    def test_documents_come_back_as_they_went(self) -> None:
        for selection in (
            Selection(),
            Selection(ids=["a"], names=["web*", "-web9"], labels={"env": "prod", "a/b": ""}),
        ):
            self.assertEqual(Selection.from_document(selection.as_document()), selection)
            self.assertEqual(hash(Selection.from_document(selection.as_document())), hash(selection))
        self.assertNotEqual(Selection(), Selection(names=["*"]))
        self.assertNotEqual(Selection(), "all")

    def test_words(self) -> None:
        self.assertEqual(Selection().describe(), "all defenders")
        self.assertEqual(
            Selection(names=["web*", "db1"], labels={"env": "prod"}).describe(), "web*, db1 with env=prod"
        )
        self.assertEqual(repr(Selection(names=["x"])), "<Selection x>")

    def test_labels_on_a_command_line(self) -> None:
        self.assertEqual(parse_label("env=prod"), ("env", "prod"))
        self.assertEqual(parse_label("env="), ("env", ""))
        for text in ("env", "=x", "env=a=b"):
            with self.assertRaises(SelectionError):
                parse_label(text)

    def test_labels_are_set_and_removed(self) -> None:
        self.assertEqual(
            change_labels({"env": "prod", "old": "x"}, {"old": None, "new": "1", "env": "test"}),
            {"env": "test", "new": "1"},
        )
        with self.assertRaises(SelectionError):
            change_labels({}, {"new": "a b"})

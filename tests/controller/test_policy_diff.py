"""What changes between two versions of a policy."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.policy_diff import MAX_COMPARED_LINES, FieldChange, RuleChange, compare_rules, compare_text
from defender.contract.policy import Policy, load_policy


def policy(*rules: str) -> Policy:
    return load_policy("schema: 1\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules), "p")


def named(names: str) -> Policy:
    return policy(*(f"name: {name}, effect: allow" for name in names))


class Rules(SynchronousTestCase):
    def test_added_removed_and_changed(self) -> None:
        old = policy("name: gone, effect: deny", 'name: devs, effect: allow, groups: ["Dev team"]')
        new = policy(
            'name: devs, effect: allow, groups: [Ops], message: "Ask Ann.", networks: [10.0.0.0/8]',
            "name: new, effect: deny, actions: [image_create]",
        )
        changed, added, removed = compare_rules(old, new)
        self.assertEqual(
            changed.fields,
            (
                FieldChange("groups", "[Dev team]", "[Ops]"),
                FieldChange("networks", "", "[10.0.0.0/8]"),
                FieldChange("message", "", "Ask Ann."),
            ),
        )
        self.assertEqual(
            changed.describe(),
            "groups: [Dev team] -> [Ops]; networks: - -> [10.0.0.0/8]; message: - -> Ask Ann.; place 2 -> 1",
        )
        self.assertEqual(
            (added, removed), (RuleChange("new", "added", 0, 2), RuleChange("gone", "removed", 1, 0))
        )
        self.assertEqual((added.describe(), removed.describe()), ("added at place 2", "removed at place 1"))

    def test_no_policy_before(self) -> None:
        self.assertEqual(compare_rules(None, named("a")), (RuleChange("a", "added", 0, 1),))

    def test_nothing_changes_by_another_layout(self) -> None:
        other = load_policy("# a remark\nschema: 1\nrules:\n- effect: allow\n  name: a\n", "p")
        self.assertEqual(compare_rules(named("a"), other), ())

    def test_only_what_moved_is_told_to_have_moved(self) -> None:
        for old, new, expected in (
            ("abcd", "dabc", "d"),
            ("abcd", "bcda", "a"),
            ("abcd", "acbd", ("b", "c")),
            ("abc", "axbc", ""),
            ("abc", "ac", ""),
        ):
            found = [each.rule for each in compare_rules(named(old), named(new)) if each.change == "moved"]
            self.assertEqual(len(found), min(1, len(expected)), (old, new))
            self.assertLessEqual(set(found), set(expected))

    @given(st.permutations("abcdefg"))
    def test_the_others_are_in_the_same_order(self, order: list[str]) -> None:
        moved = {each.rule for each in compare_rules(named("abcdefg"), named("".join(order)))}
        self.assertEqual([name for name in order if name not in moved], sorted(set("abcdefg") - moved))


def patched(before: str, difference: str) -> str:
    """What `patch` makes of a text."""
    old = re.findall(r"[^\n]*\n|[^\n]+\Z", before)
    lines = re.findall(r"[^\n]*\n", difference)[2:]
    new: list[str] = []
    place = 0
    for index, line in enumerate(lines):
        text = line[1:]
        if index + 1 < len(lines) and lines[index + 1].startswith("\\"):
            text = text[:-1]
        if line.startswith("@@"):
            match = re.match(r"@@ -(\d+)(?:,(\d+))? ", line)
            assert match is not None
            start = int(match[1]) - (match[2] != "0")
            new += old[place:start]
            place = start
        elif line[0] in " -":
            assert old[place] == text, (old[place], text)
            place += 1
            new += [text] if line[0] == " " else []
        elif line[0] == "+":
            new.append(text)
    return "".join(new + old[place:])


TEXTS = st.lists(st.sampled_from(["a", "b", "c", "", "--- x", "@@ y"]), max_size=40).map("\n".join)


class Lines(SynchronousTestCase):
    def test_as_diff_writes_it(self) -> None:
        before = "".join(f"{number}\n" for number in range(1, 21))
        after = before.replace("10\n", "ten\n")
        self.assertEqual(
            compare_text(before, after, "p version 1", "p draft"),
            "--- p version 1\n+++ p draft\n@@ -7,7 +7,7 @@\n 7\n 8\n 9\n-10\n+ten\n 11\n 12\n 13\n",
        )

    def test_equal_is_empty(self) -> None:
        self.assertEqual(compare_text("a\n", "a\n", "x", "y"), "")

    def test_a_missing_last_newline_is_told(self) -> None:
        self.assertEqual(
            compare_text("a\n", "a", "x", "y"),
            "--- x\n+++ y\n@@ -1 +1 @@\n-a\n+a\n\\ No newline at end of file\n",
        )

    def test_a_text_of_nothing_but_changes_is_shown_whole(self) -> None:
        count = MAX_COMPARED_LINES
        before = "".join(f"same\n{number}\n" for number in range(count))
        after = "".join(f"same\n{number + count}\n" for number in range(count))
        difference = compare_text(before, after, "x", "y")
        self.assertEqual(difference.count("@@ -"), 1)
        self.assertEqual(patched(before, difference), after)

    @given(TEXTS, TEXTS)
    def test_it_leads_from_one_to_the_other(self, before: str, after: str) -> None:
        difference = compare_text(before, after, "x", "y")
        self.assertEqual(patched(before, difference) if difference else before, after)

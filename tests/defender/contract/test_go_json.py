"""Bodies are read as the Engine's decoder reads them."""

from __future__ import annotations

import json

from hypothesis import given, strategies
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.go_json import MAX_NAMED, MAX_REPEATS, Object, UnreadableError, fold, read_json


def top(text: str) -> Object:
    value = read_json(text.encode("utf-8", "surrogatepass")).value
    assert isinstance(value, Object)
    return value


class Names(SynchronousTestCase):
    def test_case_does_not_count(self) -> None:
        for key in ("Privileged", "privileged", "PRIVILEGED"):
            self.assertIs(top(f'{{"{key}": true}}').get("privileged"), True)
        self.assertIs(top('{"Ho\\u017ftConfig": true}').get("hostconfig"), True)
        self.assertIs(top('{"\u212aey": true}').get("key"), True)

    def test_nothing_else_folds(self) -> None:
        for name in ("ß", "ı", "İ", "ﬁ"):
            self.assertNotIn(fold(name), ("ss", "i", "fi"))

    def test_a_map_keeps_its_names(self) -> None:
        self.assertEqual(dict(top('{"A": 1, "a": 2, "A": 3}').items()), {"A": 3, "a": 2})


class Repeats(SynchronousTestCase):
    def test_objects_merge(self) -> None:
        read = read_json(b'{"HostConfig": {"Privileged": true}, "hostconfig": {"Pid": 1}}')
        assert isinstance(read.value, Object)
        host = read.value.get("hostconfig")
        assert isinstance(host, Object)
        self.assertIs(host.get("privileged"), True)
        self.assertEqual(host.get("pid"), 1)
        self.assertEqual(read.repeated, ["hostconfig"])

    def test_null_leaves_a_scalar_and_clears_the_rest(self) -> None:
        self.assertIs(top('{"a": true, "A": null}').get("a"), True)
        self.assertIsNone(top('{"a": {"b": 1}, "A": null}').get("a"))
        self.assertIsNone(top('{"a": [1], "A": null}').get("a"))

    def test_a_list_is_read_into_the_one_before(self) -> None:
        mounts = top('{"Mounts": [{"Source": "/etc"}], "mounts": [{}, {"Source": "/b"}]}').get("mounts")
        assert isinstance(mounts, list)
        self.assertEqual([mount.get("source") for mount in mounts], ["/etc", "/b"])
        self.assertEqual(top('{"a": ["x", "y"], "A": ["z"]}').get("a"), ["z"])
        self.assertEqual(top('{"a": ["x"], "A": []}').get("a"), [])

    def test_endless_repeats_are_not_paid_for(self) -> None:
        body = "{" + ",".join(['"a": {"b": 1}'] * (MAX_REPEATS + 1)) + "}"
        with self.assertRaises(UnreadableError):
            top(body).get("a")

    def test_many_repeated_names_are_not_compared_with_each_other(self) -> None:
        read = read_json(
            ("{" + ",".join(f'"n{i}": 1, "n{i}": 2' for i in range(2 * MAX_NAMED)) + "}").encode()
        )
        assert isinstance(read.value, Object)
        self.assertEqual(read.value.get(f"n{MAX_NAMED + 1}"), 2)
        self.assertEqual(read.repeated, [f"n{i}" for i in range(MAX_NAMED)])


class Bodies(SynchronousTestCase):
    def test_what_follows_the_first_value(self) -> None:
        self.assertTrue(read_json(b' {"a": 1} {"a": 2}').trailing)
        self.assertFalse(read_json(b'{"a": 1} \r\n').trailing)

    def test_what_the_engine_does_not_read(self) -> None:
        for body in (
            b"",
            b"{",
            b'{"a": NaN}',
            b"\xef\xbb\xbf{}",
            b"\x00{}",
            b"[" * 100_000,
            b'{"a": -Infinity}',
        ):
            with self.assertRaises(UnreadableError):
                read_json(body)

    def test_values_are_ones_that_can_be_packed(self) -> None:
        read = top('{"a": "\\ud800x", "n": 99999999999999999999999, "f": 1e999, "s": 5}')
        self.assertEqual(
            (read.get("n"), read.get("f"), read.get("s")), ("99999999999999999999999", "1e999", 5)
        )
        self.assertEqual(dict(top('{"\\ud800": 1}').items()), {"\ufffd": 1})

    @given(strategies.dictionaries(strategies.text(), strategies.integers(-(10**15), 10**15)))
    def test_a_plain_body_is_as_json_has_it(self, body: dict[str, int]) -> None:
        text = json.dumps(body, ensure_ascii=True)
        expected = {
            key.encode("utf-16", "surrogatepass").decode("utf-16", "replace"): value
            for key, value in body.items()
        }
        self.assertEqual(dict(top(text).items()), expected)

"""Targets: one canonical reading, or 400 with the reason."""

from __future__ import annotations

import posixpath
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.actions import NEWEST_API, OLDEST_API
from defender.http1.errors import HTTPError
from defender.http1.target import MAX_PAIRS, Target, read_target, write_target

ALLOWED = "ABCXYZabcxyz0189._~:@/+=,!$&'()*-"


def clean_path(path: str) -> str:
    """gorilla/mux's cleanPath: path.Clean, with a trailing slash kept."""
    if path == "":
        return "/"
    if path[0] != "/":
        path = "/" + path
    cleaned = posixpath.normpath(path)
    cleaned = cleaned[1:] if cleaned.startswith("//") else cleaned
    if path[-1] == "/" and cleaned != "/":
        cleaned += "/"
    return cleaned


class TargetCase(SynchronousTestCase):
    def refuse(self, *targets: str, words: str = "") -> None:
        for target in targets:
            error = self.assertRaises(HTTPError, read_target, target)
            self.assertEqual(error.status, 400, target)
            self.assertIn(words, error.message)
            self.assertTrue(error.message.isascii() and error.message.isprintable(), error.message)

    def path(self, raw: str) -> str:
        return read_target(raw).path


class FormTests(TargetCase):
    def test_origin_form_only(self) -> None:
        self.refuse(
            "http://h/containers/json", "HTTP://h/_ping", "foo:/containers/json", "http:containers/json",
            "unix:///x",
            "http:///_ping", "http://[::1]/_ping", "http://u:p@h/_ping", "https://h", "*", "x:80",
            "x/containers/json",
            "containers/json", "?/_ping", "#/_ping", "%2fcontainers/json", "%2f", ".", "..", "?", "", "a",
            "\\_ping",
            words="",
        )  # fmt: skip
        self.refuse("http://h/_ping", "*", "%2f_ping", words="not of the form /path?query")

    def test_a_message_does_not_repeat_the_query(self) -> None:
        for raw in (
            "/build?a=CANARY;",
            "/build?a=CANARY%zz",
            "/build?a=CANARY\xff",
            "//build?CANARY",
            "/b;?CANARY",
        ):
            error = self.assertRaises(HTTPError, read_target, raw)
            self.assertNotIn("CANARY", error.message)

    def test_no_raw_controls_spaces_or_non_ascii(self) -> None:
        for character in (
            "\0",
            "\t",
            "\n",
            "\r",
            " ",
            "\x0b",
            "\x1f",
            "\x7f",
            "\x80",
            "\xff",
            "\u0663",
            "\ud800",
        ):
            self.refuse(f"/a{character}", f"/a?b={character}", f"{character}/a", f"/a?{character}")


class PathTests(TargetCase):
    def test_decoded_once(self) -> None:
        for raw in ("/containers%2fjson", "/containers%2Fjson", "/%63ontainers/%6Ason", "/containers/json"):
            self.assertEqual(self.path(raw), "/containers/json")
        self.assertEqual(
            self.path("/images/docker.io%2Flibrary%2Fbb/json"), "/images/docker.io/library/bb/json"
        )
        self.refuse("/containers/%256ason", words="character '%'")

    def test_bad_escapes(self) -> None:
        self.refuse("/a%", "/a%4", "/%zz", "/%u0061", "/%4g", "/%%34", "/a%\u0663", "/% 20", "/%+4", "/%-1")

    def test_allowed_characters(self) -> None:
        self.assertEqual(self.path("/" + ALLOWED.replace("/", "")), "/" + ALLOWED.replace("/", ""))
        for code in range(256):
            raw = f"/a%{code:02x}b"
            if chr(code) in "._~:@/+=,!$&'()*-" or (chr(code).isalnum() and code < 128):
                self.assertEqual(self.path(raw), f"/a{chr(code)}b")
            else:
                self.refuse(raw, words="which is not accepted")
        for character in ';\\"<>^`{|}#[]':
            self.refuse(f"/containers/json{character}")
        self.assertEqual(read_target("/a+b").path, "/a+b")

    def test_unclean_paths(self) -> None:
        self.refuse(
            "//", "//containers/json", "/containers//json", "/containers/json//", "/./containers",
            "/containers/.",
            "/containers/./json", "/..", "/.", "/../containers/json", "/x/../containers/json", "/x/..",
            "/x/../",
            "/%2fcontainers", "/containers%2f/json", "/containers/%2f", "/%2e%2e/x", "/x/%2e",
            "/x%2f..%2fy", "/.%2e",
            "/x/%2e%2e%2f", "/containers/rsch-run%2F/json", "/v1.41//x", "/v1.41/../x", "/v1.41%2f/_ping",
            "/v1.41/.",
            words="segment",
        )  # fmt: skip

    def test_dots_that_are_names(self) -> None:
        for path in ("/...", "/.a", "/a.", "/a..b", "/..a/b", "/a.../b", "/.a."):
            self.assertEqual(self.path(path), path)

    def test_a_trailing_slash_is_kept(self) -> None:
        for path in ("/", "/networks/", "/containers/json/", "/containers%2f".replace("%2f", "/")):
            self.assertEqual(self.path(path), path)
        self.assertEqual(self.path("/volumes%2F"), "/volumes/")

    def test_case_is_kept(self) -> None:
        self.assertEqual(self.path("/CONTAINERS/Json"), "/CONTAINERS/Json")


class VersionTests(TargetCase):
    def version(self, raw: str) -> tuple[tuple[int, int] | None, str]:
        target = read_target(raw)
        return target.version, target.path

    def test_versions(self) -> None:
        self.assertEqual(self.version("/_ping"), (None, "/_ping"))
        for minor in range(OLDEST_API[1], NEWEST_API[1] + 1):
            self.assertEqual(self.version(f"/v1.{minor}/_ping"), ((1, minor), "/_ping"))
        for raw in ("/v1%2e41/_ping", "/%76%31.41/_ping", "/%76%31%2E%34%31%2f_ping", "/v1.41%2f_ping"):
            self.assertEqual(self.version(raw), ((1, 41), "/_ping"))

    def test_too_old_in_the_engines_words(self) -> None:
        self.refuse(
            "/v1.23/_ping",
            words="client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your"
            " client to a newer version",
        )
        self.refuse("/v1.12/swarm", "/v1.0/x", "/v1.9/x", "/v0.99/x", "/v1.1/x", words="too old")

    def test_too_new_in_the_engines_words(self) -> None:
        self.refuse("/v1.99/x", words="client version 1.99 is too new. Maximum supported API version is 1.56")
        self.refuse(f"/v1.{NEWEST_API[1] + 1}/x", "/v2.0/x", "/v9.99/x", "/v1.9999/x", words="too new")

    def test_other_spellings_that_the_engine_takes(self) -> None:
        self.refuse(
            "/v1./x", "/v1.41./x", "/v1.41.0/x", "/v1.40.99/x", "/v01.41/x", "/v1.041/x", "/v.1.41/x",
            "/v./x", "/v0/x",
            "/v1/x", "/v41/x", "/v1..41/x", "/v1.99999999999999999999/x", "/v1.41.1/x", "/v01.041/x",
            "/v%2e/x",
            "/v1%2e41%2e/x", "/v.../x", "/v1.41.", "/v..",
            words="malformed",
        )  # fmt: skip

    def test_what_the_engine_does_not_take_as_a_version(self) -> None:
        for raw in (
            "/V1.41/x",
            "/v1.41x/x",
            "/v/x",
            "/v1,41/x",
            "/v1.41-/x",
            "/vv1.41/x",
            "/1.41/x",
            "/v-1.41/x",
            "/v",
        ):
            self.assertEqual(self.version(raw), (None, raw))

    def test_a_second_prefix_is_path(self) -> None:
        self.assertEqual(self.version("/v1.41/v1.41/_ping"), ((1, 41), "/v1.41/_ping"))
        self.assertEqual(self.version("/v1.41/v1.12/_ping"), ((1, 41), "/v1.12/_ping"))
        self.assertEqual(self.version("/x/v1.41/_ping"), (None, "/x/v1.41/_ping"))

    def test_a_version_alone(self) -> None:
        self.refuse("/v1.41", "/v1%2e41", "/v1.41?a=1", words="ends after the API version")
        self.refuse("/v1", "/v1.")
        self.assertEqual(self.version("/v1.41/"), ((1, 41), "/"))


class QueryTests(TargetCase):
    def query(self, raw: str) -> list[tuple[str, str]]:
        return list(read_target("/x?" + raw).query)

    def test_pairs(self) -> None:
        self.assertEqual(self.query(""), [])
        self.assertEqual(self.query("a=1&b=2"), [("a", "1"), ("b", "2")])
        self.assertEqual(self.query("a"), [("a", "")])
        self.assertEqual(self.query("a="), [("a", "")])
        self.assertEqual(self.query("=1"), [("", "1")])
        self.assertEqual(self.query("="), [("", "")])
        self.assertEqual(self.query("a==1"), [("a", "=1")])
        self.assertEqual(self.query("&&&a=1&"), [("a", "1")])
        self.assertEqual(self.query("a=1&a=2&A=3"), [("a", "1"), ("a", "2"), ("A", "3")])

    def test_decoding(self) -> None:
        self.assertEqual(self.query("%61ll=x+y%2Bz%20"), [("all", "x y+z ")])
        self.assertEqual(self.query("+all=1"), [(" all", "1")])
        self.assertEqual(self.query("a=1%26b=2%3Bc"), [("a", "1&b=2;c")])
        self.assertEqual(self.query("a%3D1=2"), [("a=1", "2")])
        self.assertEqual(self.query("a=%2561"), [("a", "%61")])
        self.assertEqual(self.query("a=%C2%A0%c5%bf%00%0d%0a"), [("a", "\xa0\u017f\0\r\n")])

    def test_data_that_other_parsers_split_at(self) -> None:
        self.assertEqual(self.query("?a=1"), [("?a", "1")])
        self.assertEqual(self.query("a=0?"), [("a", "0?")])
        self.assertEqual(self.query("a=false#x"), [("a", "false#x")])
        self.assertEqual(self.query("#a=1"), [("#a", "1")])
        self.assertEqual(self.query("a=/../x//y"), [("a", "/../x//y")])
        self.assertEqual(self.query('a[]="<>|\\^`{}'), [("a[]", '"<>|\\^`{}')])
        self.assertEqual(read_target("/x??").query, (("?", ""),))

    def test_semicolons(self) -> None:
        self.refuse("/x?a=1;b=2", "/x?;", "/x?a;", "/x?a=1&;b=2", words="semicolon")

    def test_bad_escapes(self) -> None:
        self.refuse(
            "/x?a=%", "/x?a=%z", "/x?%zz&a=1", "/x?a=1&b=%4", "/x?a=%u0041", "/x?a=%+1", words="hexadecimal"
        )

    def test_not_utf8(self) -> None:
        self.refuse(
            "/x?a=%ff", "/x?%ff=1", "/x?a=%c3%28", "/x?a=%85", "/x?a=%c0%af", "/x?a=%ed%a0%80",
            "/x?a=%f5%80%80%80",
            words="UTF-8",
        )  # fmt: skip
        self.refuse("/x?a=%c3&b=%a9", words="UTF-8")

    def test_the_number_of_pairs_is_bounded(self) -> None:
        self.assertEqual(len(self.query("&".join(["a=1"] * MAX_PAIRS))), MAX_PAIRS)
        self.refuse(
            "/x?" + "&".join(["a"] * (MAX_PAIRS + 1)), "/x?" + "&" * MAX_PAIRS, words="more than 1000"
        )


class WritingTests(TargetCase):
    def test_canonical_spellings(self) -> None:
        for raw, written in (
            ("/v1.41/containers/json?all=1", "/v1.41/containers/json?all=1"),
            ("/%76%31.41/containers%2fjson?%61ll", "/v1.41/containers/json?all="),
            ("/x?a=b+c%2b&=#", "/x?a=b%20c%2B&=%23"),
            ("/x?a=%c3%a9;".rstrip(";"), "/x?a=%C3%A9"),
            ("/x?&", "/x"),
            ("/x?", "/x"),
            ("/a+b:@c", "/a+b:@c"),
            ("/v1.41/", "/v1.41/"),
        ):
            target = read_target(raw)
            self.assertEqual(write_target(target, target.version), written)

    def test_another_version(self) -> None:
        self.assertEqual(write_target(read_target("/_ping?a=1"), (1, 41)), "/v1.41/_ping?a=1")
        self.assertEqual(write_target(read_target("/v1.41/_ping"), None), "/_ping")

    def test_a_path_never_turns_into_a_prefix(self) -> None:
        for raw in ("/v1.41/v1.30/_ping", "/v1.41/v1.30", "/v1.41/v0/x"):
            self.assertRaises(ValueError, write_target, read_target(raw), None)


_ESCAPED = st.integers(0, 255).map(lambda code: f"%{code:02x}")
_ATOMS = st.sampled_from(
    [*ALLOWED, "/", "/", "//", ".", "..", "/../", "/v1.41/", "/v1.4", "containers", "json", "?", "&", "=",
    ";", "#",
     "%", "%2", "%zz", "%2f", "%2e", "%25", "%c3%a9", "+", " ", "\0", "\xe9", "[", "http://h"]
)  # fmt: skip
_TARGETS = st.one_of(
    st.text(max_size=30),
    st.lists(st.one_of(_ATOMS, _ESCAPED), max_size=14).map("".join),
    st.lists(st.one_of(_ATOMS, _ESCAPED), max_size=14).map(lambda atoms: "/" + "".join(atoms)),
    st.lists(st.sampled_from([*ALLOWED, "%2f", "%61", "?", "&", "=", "+"]), max_size=20).map(
        lambda atoms: "/v1.41/" + "".join(atoms)
    ),
)
_PATHS = st.lists(st.text("abz._-:@", min_size=1, max_size=6), max_size=5).map(
    lambda parts: "/" + "/".join(parts)
)


class FuzzTests(SynchronousTestCase):
    @given(_TARGETS)
    def test_read_or_refused(self, raw: str) -> None:
        try:
            target = read_target(raw)
        except HTTPError as error:
            self.assertEqual(error.status, 400)
            return
        prefix = "" if target.version is None else f"/v{target.version[0]}.{target.version[1]}"
        self.assertEqual(clean_path(prefix + target.path), prefix + target.path)
        self.assertTrue(
            set(target.path)
            <= set(ALLOWED) | set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
        )
        if target.version is None:
            self.assertIsNone(re.match(r"/v[0-9.]+(/|\Z)", target.path))
        written = write_target(target, target.version)
        self.assertTrue(all("\x21" <= character <= "\x7e" for character in written))
        self.assertEqual(read_target(written), target)
        self.assertEqual(write_target(read_target(written), target.version), written)

    @given(
        _PATHS,
        st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=5),
        st.one_of(st.none(), st.integers(OLDEST_API[1], NEWEST_API[1]).map(lambda minor: (1, minor))),
    )
    def test_what_is_written_is_read(
        self, path: str, query: list[tuple[str, str]], version: tuple[int, int] | None
    ) -> None:
        target = Target(version, path, tuple(query))
        try:
            read = read_target(write_target(target, version))
        except (HTTPError, ValueError):
            # Not a Target that read_target would give: dots, a path like a version, a lone surrogate.
            surrogate = any(
                "\ud800" <= character <= "\udfff" for pair in query for text in pair for character in text
            )
            versioned = re.match(r"/v[0-9.]+(/|\Z)", path) is not None
            self.assertTrue(surrogate or versioned or clean_path(path) != path)
        else:
            self.assertEqual(read, target)

"""From the text of a YAML file to a small tree that remembers lines and columns.

The one reader of both programs: what the controller accepts, a defender must read the same way.  It is
stricter than YAML.  Nothing is constructed: scalars stay text with the kind YAML 1.1 gives them, so that the
schema can refuse an unquoted `yes` where text is wanted.  Anchors, aliases, tags, repeated keys, keys that
are not text, second documents and control characters are problems, because what a person reads must be what
is decided.  Size and depth are bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from defender.contract.errors import Problem

MAX_BYTES = 1024 * 1024
"""The largest file, in bytes of UTF-8."""

MAX_DEPTH = 20
"""The deepest nesting of lists and mappings."""

MAX_PROBLEMS = 1000
"""Reading stops after this many problems: nobody reads further, and each costs memory."""

# libyaml's binding reads 1 MiB in a quarter of a second, the Python scanner in five seconds.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What YAML calls printable, less the line breaks that editors do not count as lines (NEL, LS, PS).
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)

_TAG_PREFIX = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value as text.

    `kind` is "str" for everything quoted and for plain text; otherwise what YAML 1.1 makes of the plain text:
    "bool", "int", "float", "null", "timestamp", "merge", "value".  "invalid" stands for what a problem was
    already found with.
    """

    line: int
    column: int
    value: str
    kind: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    column: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping; keys are text and appear once, in the file's order."""

    line: int
    column: int
    entries: tuple[tuple[Scalar, Node], ...]


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Document:
    """What was read.  `root` is `None` if there is nothing to look at: an empty file, or one that is not
    YAML."""

    root: Node | None
    problems: tuple[Problem, ...]


class _TooManyError(Exception):
    """Enough problems were found."""


class _Reader:
    """Builds the tree from the parser's events; one per text."""

    def __init__(self, text: str) -> None:
        self.loader: Any = _Loader(text)
        self.problems: list[Problem] = []

    def report(self, mark: Any, key: str, message: str, suggestion: str = "") -> None:
        self.problems.append(Problem(mark.line + 1, mark.column + 1, key, message, suggestion))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _TooManyError

    def read(self) -> Node | None:
        """The first document's tree."""
        root: Node | None = None
        documents = 0
        while self.loader.check_event():
            event = self.loader.get_event()
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.report(event.start_mark, "", "a second document starts here", "one file holds one")
                    break
            elif isinstance(event, yaml.NodeEvent):
                root = self.node(event, 1, "")
        return root

    def node(self, event: Any, depth: int, path: str) -> Node:
        mark = event.start_mark
        line, column = mark.line + 1, mark.column + 1
        if isinstance(event, yaml.AliasEvent):
            self.report(mark, path, "aliases are not accepted", f'in quotes if it is text: "*{event.anchor}"')
            return Scalar(line, column, "", "invalid")
        if event.anchor is not None:
            self.report(mark, path, "anchors are not accepted", f'in quotes if it is text: "&{event.anchor}"')
        if event.tag is not None:
            self.report(mark, path, f"tags are not accepted: {event.tag}", "in quotes if it is text")
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(line, column, event.value, self.kind(event))
        if depth > MAX_DEPTH:
            self.report(mark, path, f"nested deeper than {MAX_DEPTH} levels")
            # The rest is not worth a tree, and recursion must stay bounded.
            raise _TooManyError
        if isinstance(event, yaml.SequenceStartEvent):
            return Sequence(line, column, tuple(self.items(depth, path)))
        return Mapping(line, column, tuple(self.entries(depth, path)))

    def kind(self, event: Any) -> str:
        if event.tag is not None:
            return "invalid"
        tag: str = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        return tag.removeprefix(_TAG_PREFIX)

    def items(self, depth: int, path: str) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := self.loader.get_event(), yaml.SequenceEndEvent):
            items.append(self.node(event, depth + 1, f"{path}[{len(items)}]"))
        return items

    def entries(self, depth: int, path: str) -> list[tuple[Scalar, Node]]:
        entries: list[tuple[Scalar, Node]] = []
        lines: dict[str, int] = {}
        while not isinstance(event := self.loader.get_event(), yaml.MappingEndEvent):
            mark = event.start_mark
            key = self.node(event, depth + 1, path)
            below = join_key(path, key.value if isinstance(key, Scalar) else "?")
            value = self.node(self.loader.get_event(), depth + 1, below)
            if not isinstance(key, Scalar):
                self.report(mark, path, "a key must be text, not a list or a mapping")
            elif key.kind == "invalid":
                pass
            elif key.kind != "str":
                self.report(mark, path, f"a key must be text, but {key.value!r} is read as {describe(key)}")
            elif key.value in lines:
                first = f"it is set on line {lines[key.value]} already"
                self.report(mark, path, f"the key {key.value!r} appears twice", first)
            else:
                lines[key.value] = key.line
                entries.append((key, value))
        return entries


_KINDS = {
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "null": "nothing",
    "timestamp": "a date",
    "merge": "a merge key",
    "value": "a default value",
    "binary": "binary data",
}


def describe(node: Node) -> str:
    """What a node is, in words for an error message: `a list`, `true or false`, `nothing`."""
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    return _KINDS.get(node.kind, "text")


def join_key(path: str, key: str) -> str:
    """The path of a key inside a mapping: `rules[2]` and `effect` make `rules[2].effect`."""
    return f"{path}.{key}" if path else key


def place_of(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of a character of the text."""
    before = text[:offset].replace("\r\n", "\n").replace("\r", "\n")
    return before.count("\n") + 1, offset - max(text.rfind("\n", 0, offset), text.rfind("\r", 0, offset))


def _syntax_problem(text: str, error: yaml.YAMLError) -> Problem:
    """A parser's complaint, with what people usually meant."""
    mark = getattr(error, "problem_mark", None)
    if "quoted scalar" in f"{getattr(error, 'context', '')}":
        # Where the quote was opened says more than where the file ended.
        mark = getattr(error, "context_mark", None)
    if mark is None:
        return Problem(0, 0, "", f"not YAML: {error}")
    message = getattr(error, "problem", None) or "cannot be read"
    context = getattr(error, "context", None)
    suggestion = ""
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    character = line[mark.column : mark.column + 1]
    if "alias" in f"{context} {message}":
        suggestion = 'write "*" in quotes'
    elif "\t" in line[: mark.column + 1]:
        suggestion = "indent with spaces, not with tabs"
    elif character and character in "@`%!&":
        suggestion = f"text that starts with {character} needs quotes"
    elif "mapping values are not allowed" in message:
        suggestion = "text with a colon needs quotes; check the indentation too"
    elif "quoted scalar" in f"{context}":
        suggestion = "the closing quote is missing"
    elif "did not find expected" in message or "expected" in message:
        suggestion = "check brackets, commas and the indentation of this line and the one before"
    told = f"not YAML: {message}" + (f" {context}" if context else "")
    return Problem(mark.line + 1, mark.column + 1, "", told, suggestion)


def read_document(text: str) -> Document:
    """Read the text of one YAML document.  Raises nothing: faults are in the result's `problems`."""
    # A surrogate cannot be encoded; it is found and placed by the search below.
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        problem = Problem(0, 0, "", f"larger than {MAX_BYTES} bytes", "split it, or use patterns for names")
        return Document(None, (problem,))
    text = text.removeprefix("\ufeff")
    unprintable = _UNPRINTABLE.search(text)
    if unprintable is not None:
        line, column = place_of(text, unprintable.start())
        message = f"the character U+{ord(unprintable[0]):04X} is not accepted"
        return Document(None, (Problem(line, column, "", message, "remove it"),))
    reader: _Reader | None = None
    try:
        reader = _Reader(text)
        root = reader.read()
    except _TooManyError:
        return Document(None, tuple(reader.problems if reader else ()))
    except yaml.YAMLError as error:
        found = reader.problems if reader else []
        return Document(None, (*found, _syntax_problem(text, error)))
    return Document(root, tuple(reader.problems))

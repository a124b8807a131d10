"""What the documentation shows is there and works: links, commands, policies."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from twisted.trial.unittest import SynchronousTestCase

from controller import settings as controller_settings
from controller.cli.main import defenderctl
from defender.contract.policy import Decision, load_policy
from defender.http1.head import MAX_HEAD
from defender.proxy.refusal import denial_message
from defender.settings import describe, read_settings
from defender.streams.descriptor import READ_SIZE, READ_SIZE_BUSY
from defender.streams.interface import HIGH_WATER, LOW_WATER
from deploy.up import START_POLICY
from docs.generate import DOCS

ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


def prose(text: str) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", text)


def blocks(text: str, *languages: str) -> Iterator[str]:
    """The code blocks of a page in any of the languages; "" for those that name none."""
    for found in _FENCE.finditer(text):
        if found[1] in languages:
            yield found[2]


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links, as GitHub makes it of them."""
    names = set()
    for heading in _HEADING.findall(prose(text)):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        names.add(plain.replace(" ", "-"))
    return names


def shown_commands(text: str) -> Iterator[str]:
    """Every command line of a page that calls defenderctl, continued lines joined, without the prompt."""
    for block in blocks(text, "", "console", "sh", "text"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:[$#] )?(?:runuser -u [\w-]+ -- )?(defenderctl .*)", line)
            if found is not None:
                yield found[1]


def words_of(line: str) -> list[str]:
    """The arguments of the first command of a line: up to a pipe, `&&`, `>` or a comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if re.fullmatch(r"[|&;>]+", word):
            break
        words.append(word)
    return words[1:]


def parse(words: list[str]) -> None:
    """Have click parse a command line and run nothing; raises what click raises.

    Files need not be there: a path is a word here.
    """
    context = click.Context(defenderctl, info_name="defenderctl")
    command: click.Command = defenderctl
    rest = words
    while isinstance(command, click.Group):
        if not rest:
            raise click.UsageError("a group is not a command")
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"no such command {rest[0]!r}")
        context = click.Context(found, info_name=rest[0], parent=context)
        command, rest = found, rest[1:]
    with _paths_are_words(command):
        command.make_context(command.name, list(rest), parent=context.parent)


@contextmanager
def _paths_are_words(command: click.Command) -> Iterator[None]:
    """While it lasts, the paths of a command are taken as they are."""
    kept = [(parameter, parameter.type) for parameter in command.params]
    for parameter, kind in kept:
        if isinstance(kind, click.Path):
            parameter.type = click.STRING
    try:
        yield
    finally:
        for parameter, kind in kept:
            parameter.type = kind


class LinkTests(SynchronousTestCase):
    """Links inside the project."""

    def test_every_relative_link_leads_somewhere(self) -> None:
        broken = []
        for page in PAGES:
            for link in _LINK.findall(prose(page.read_text("utf-8"))):
                if re.match(r"[a-z]+:", link):
                    continue
                path, _, anchor = link.partition("#")
                target = (page.parent / path).resolve() if path else page
                if not target.exists():
                    broken.append(f"{page.relative_to(ROOT)}: {link}: no such file")
                elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text("utf-8")):
                    broken.append(f"{page.relative_to(ROOT)}: {link}: no such heading")
        self.assertEqual(broken, [])

    def test_every_page_is_reached_from_the_index(self) -> None:
        index = (DOCS / "index.md").read_text("utf-8")
        linked = {(DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall(index)}
        pages = {page for page in PAGES if page.parent.name not in ("newsfragments", "decisions")}
        pages -= {ROOT / "README.md", DOCS / "index.md"}
        self.assertEqual(sorted(str(page.relative_to(ROOT)) for page in pages - linked), [])


class CommandTests(SynchronousTestCase):
    """Commands that readers are told to type."""

    def test_every_defenderctl_line_parses(self) -> None:
        wrong = []
        seen = 0
        for page in PAGES:
            for line in shown_commands(page.read_text("utf-8")):
                seen += 1
                try:
                    parse(words_of(line))
                except click.ClickException as error:
                    wrong.append(f"{page.relative_to(ROOT)}: {line}: {error.format_message()}")
        self.assertEqual(wrong, [])
        self.assertGreater(seen, 50)

    def test_a_wrong_line_is_found(self) -> None:
        for line in (
            "defenderctl policy chek p.yaml",
            "defenderctl local lock add --usr x",
            "defenderctl pki",
        ):
            self.assertRaises(click.ClickException, parse, words_of(line))

    def test_readme_names_the_two_commands(self) -> None:
        readme = (ROOT / "README.md").read_text("utf-8")
        makefile = (ROOT / "Makefile").read_text("utf-8")
        for goal in ("up", "test", "down"):
            self.assertIn(f"make {goal}", readme)
            self.assertRegex(makefile, rf"(?m)^{goal}:")


class ExampleTests(SynchronousTestCase):
    """Policies, settings and JSON that readers may copy."""

    def test_every_whole_policy_loads(self) -> None:
        loaded = 0
        for page in PAGES:
            for block in blocks(page.read_text("utf-8"), "yaml"):
                if block.startswith("schema:"):
                    load_policy(block, page.name)
                    loaded += 1
        self.assertGreater(loaded, 5)

    def test_every_settings_example_is_valid(self) -> None:
        read = 0
        for page in PAGES:
            for block in blocks(page.read_text("utf-8"), "toml"):
                read_one: Callable[..., object] = read_settings
                whole = block
                if block.startswith("[controller]\nstate = "):
                    read_one = controller_settings.read_settings
                elif "[defender]" not in block:
                    whole = f'[defender]\nstate = "/var/lib/defender"\n{block}'
                tomllib.loads(whole)
                read_one(whole, source=page.name, base=Path("/"), host_name="web1")
                read += 1
        self.assertGreater(read, 1)

    def test_every_json_example_is_json(self) -> None:
        for page in PAGES:
            for block in blocks(page.read_text("utf-8"), "json"):
                json.loads(block)

    def test_the_tutorials_rule_fits_the_start_policy(self) -> None:
        page = (DOCS / "tutorial" / "one-host-guarded.md").read_text("utf-8")
        (rule,) = blocks(page, "yaml")
        policy = load_policy(START_POLICY.format(admin='"admin"', owner='"alice"') + rule, "policy.yaml")
        self.assertEqual([found.name for found in policy.rules], ["admin_rule", "owner_rule", "devs_rule"])

    def test_denials_read_as_the_code_writes_them(self) -> None:
        text = " ".join(" ".join(page.read_text("utf-8").split()) for page in PAGES)
        decision = Decision("deny", "default", "no rule matched")
        self.assertIn(denial_message("[Defender]", "container_list", "bruce@example.com", decision), text)


class FigureTests(SynchronousTestCase):
    """Numbers and names of settings in the text."""

    def test_settings_that_are_named_exist(self) -> None:
        settings = (*describe(), *controller_settings.describe())
        known = {f"{setting.table}.{setting.key}" for setting in settings}
        tables = "|".join({setting.table for setting in settings})
        unknown = []
        for page in PAGES:
            for name in re.findall(rf"`((?:{tables})\.[a-z_]+)`", page.read_text("utf-8")):
                if name not in known and name not in _NOT_SETTINGS:
                    unknown.append(f"{page.relative_to(ROOT)}: {name}")
        self.assertEqual(unknown, [])

    def test_figures_beside_settings_are_their_defaults(self) -> None:
        defaults = {f"{setting.table}.{setting.key}": setting.default for setting in describe()}
        page = " ".join((DOCS / "explanation" / "data-path.md").read_text("utf-8").split())
        seconds = re.findall(r"`([a-z]+\.[a-z_]+)`, ([0-9]+) (s|h)\b", page)
        self.assertGreater(len(seconds), 5)
        for name, number, unit in seconds:
            self.assertEqual(float(defaults[name]), int(number) * {"s": 1, "h": 3600}[unit], name)
        counts = re.findall(r"([0-9]+)( KiB)?(?: [a-z ,]+)? \(`([a-z]+\.[a-z_]+)`\)", page)
        self.assertGreater(len(counts), 4)
        for number, unit, name in counts:
            self.assertEqual(float(defaults[name]), int(number) * (1024 if unit else 1), name)

    def test_bounds_of_the_data_path_are_those_of_the_code(self) -> None:
        page = " ".join((DOCS / "explanation" / "data-path.md").read_text("utf-8").split())
        self.assertIn(f"more than {HIGH_WATER // 1024} KiB unsent", page)
        self.assertIn(f"below {LOW_WATER // 1024} KiB reading goes on", page)
        self.assertIn(f"{READ_SIZE // 1024} KiB, or {READ_SIZE_BUSY // 1024} KiB where", page)
        self.assertIn(f"one read more, {(HIGH_WATER + READ_SIZE_BUSY) // 1024} KiB", page)
        self.assertIn(f"at most {MAX_HEAD // 1024} KiB", page)


_NOT_SETTINGS = frozenset(
    (
        *("audit.problem", "policy.problems", "policy.source"),  # keys of the status
        *("accounts.read", "accounts.write", "audit.read"),  # permissions
        *("defender.contract", "defender.socket", "defender.toml", "policy.yaml"),
    )
)
"""What looks like the name of a setting and is none."""


class NeutralityTests(SynchronousTestCase):
    """The pages are about no machine in particular."""

    def test_no_path_of_the_machine_they_were_written_on(self) -> None:
        found = []
        for page in PAGES:
            for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
                if re.search(r"(?<![\w.])/(?:work|tmp)/", line):
                    found.append(f"{page.relative_to(ROOT)}:{number}: {line.strip()}")
        self.assertEqual(found, [])

"""A command line as it may be recorded: what runs stays readable, what it is told in secret does not.

The rules are in `docs/reference/events.md`. They read as a shell does where a word is a script, and err on
the side of hiding: where the end of a secret cannot be told, the rest of the word or line goes with it. What
no rule can know is a secret that looks like anything else, such as the second of two plain words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from defender.contract.programs import AFTER_KEY, AFTER_NAME, HIDE, NO_PROGRAM, PROGRAMS, SHELLS
from defender.contract.redaction import HIDDEN, hide_password, hide_url, shorten, words_of
from defender.contract.secret_shapes import hide_shapes, is_secret_name

#: Longest recorded command line, most words and characters of it that are looked at.
MAX_COMMAND: Final = 1024
MAX_WORDS: Final = 128
MAX_READ: Final = 2048
_DEPTH: Final = 4


def redact_command(words: Sequence[str]) -> tuple[str, bool]:
    """The words of a command as one line, quoted where a word has spaces, and whether something is hidden.

    Beyond `MAX_COMMAND` characters it is its beginning, its length and a digest of what may be shown.
    """
    line = _Line(0)
    shown: list[str] = []
    left = MAX_READ
    for index, word in enumerate(words):
        if line.rest:
            shown.append(line.hide())
            break
        if index == MAX_WORDS or left <= 0:
            shown.append(f"...({len(words) - index} more words)")
            break
        text = word if len(word) <= left else _whole_words(word[:left])
        left -= len(text) + 1
        seen = _quoted(line.read(text))
        shown.append(seen if len(text) == len(word) else f"{seen}...({len(word)} characters)")
    return shorten(" ".join(shown), MAX_COMMAND), line.hidden


def redact_script(text: str) -> tuple[str, bool]:
    """The same for a text that a shell reads."""
    return _text_of(text, is_shell=True)


def redact_text(text: str) -> tuple[str, bool]:
    """The same for any other text, such as a sentence in which a command line is repeated."""
    return _text_of(text, is_shell=False)


def _text_of(text: str, *, is_shell: bool) -> tuple[str, bool]:
    cut = text if len(text) <= MAX_READ else _whole_words(text[:MAX_READ])
    shown, hidden = _script(cut, 0, is_shell=is_shell)
    if len(cut) < len(text):
        shown = f"{shown}...({len(text)} characters)"
    return shorten(shown, MAX_COMMAND), hidden


def _whole_words(text: str) -> str:
    """Without the word that the cut went through: half a token no longer looks like one."""
    end = len(text)
    while end and not text[end - 1].isspace():
        end -= 1
    return text[:end]


_PLAIN_WORD: Final = re.compile(r"[\w@%+=:,./*-]+")


def _quoted(word: str) -> str:
    if _PLAIN_WORD.fullmatch(word):
        return word
    return "'" + word.replace("'", "'\\''") + "'" if "'" not in word or '"' in word else f'"{word}"'


_SCRIPT_FLAG: Final = re.compile(r"-[a-zA-Z]*c")
#: Programs and options that take a secret from the command before them in a pipe.
_READS_SECRET: Final = frozenset(
    words_of("chpasswd --password-stdin --with-token --passphrase-fd --stdin -S cryptsetup")
)

_PAIR: Final = re.compile(r"(?<![\w.\[\]-])([\w.\[\]-]++)\\?[\"']?(?:=|:(?!//))")
_STARTS_SECRET: Final = re.compile(r"\s*[\"']?(-{0,2}[A-Za-z_][\w.-]*)[\"']?\s*[=:]\s*")
_SPACE: Final = re.compile(r"\s")
_NOUNS: Final = words_of("password passwd secret token passphrase")


class _Line:
    """Reads the words of one command after another; `hidden` tells whether any of them held a secret."""

    def __init__(self, depth: int) -> None:
        self.hidden = False
        self.takes_stdin = False  # the command reads a secret from the one before it
        self.takes_stdin_of_text = False  # some command of the text does
        self.rest = False  # a secret began whose end cannot be told
        self.is_open = False  # a word ended where a secret begins: `NAME=`
        self._depth = depth
        self._previous = ""
        self.begin()

    def begin(self) -> None:
        """Another command begins."""
        self.takes_stdin = False
        self._pending = ""
        self._program = NO_PROGRAM
        self._operands = False
        self._is_shell = False
        self._words: set[str] = set()

    def hide(self, shown: str = "") -> str:
        """What stands for a secret, behind the part of its word that may be shown."""
        self.hidden = True
        return shown + HIDDEN

    def read(self, word: str, *, quoted: bool = False) -> str:
        """The word as it may be shown; `quoted` if a script had it in quotes."""
        pending, self._pending = self._pending, ""
        previous, self._previous = self._previous, word.lower()
        if not word:
            return word
        if word in ("=", ":", ":=") and not pending:
            self._previous = previous
            if is_secret_name(previous):
                self._pending = HIDE
            return word
        if pending:
            return self._value(pending, word)
        if word in _READS_SECRET or word.rpartition("/")[2] in _READS_SECRET:
            self.takes_stdin = self.takes_stdin_of_text = True
        if self._operands:
            key, equals, _ = word.partition("=")
            return self.hide(key + equals if equals and key.isidentifier() else "")
        if word.startswith("-") and len(word) > 1:
            shown = self._option(word)
            if shown is not None:
                return shown
        else:
            if quoted and (previous in _NOUNS or (previous == "by" and "identified" in self._words)):
                return self.hide()
            self._notice(word, previous)
        return self._text(word)

    def _notice(self, word: str, previous: str) -> None:
        """Learn from a word that is no option: what runs, and what comes next."""
        name = word.rpartition("/")[2].lower()
        program = PROGRAMS.get(name)
        if program is not None:
            self._program = program
            self._operands = "" in program.words
        elif name in SHELLS:
            self._is_shell = True
        elif name in self._program.words:
            self._operands = True
        elif previous == "set" and "/" not in word and "=" not in word and is_secret_name(word):
            self._pending = HIDE
        self._words.add(name)

    def _option(self, word: str) -> str | None:
        """An option by itself or with its value; None for one that says nothing of secrets."""
        bare = word.lstrip("-")
        dashes = word[: len(word) - len(bare)]
        name, equals, value = bare.partition("=")
        program = self._program
        if self._is_shell and _SCRIPT_FLAG.fullmatch(word):
            self._pending = "script"
            return word
        if len(dashes) == 1 and (not program.when or program.when in self._words):
            if bare[0] in program.attached and len(bare) > 1:
                return self.hide(word[:2])
            for at, letter in enumerate(bare):
                if letter in program.short:
                    if program.exact and len(bare) > 1:
                        break
                    mode = program.short[letter]
                    if at + 1 == len(bare):
                        self._pending = mode
                        return word
                    return word[: at + 2] + self._value(mode, bare[at + 1 :])
                if not letter.isalpha():
                    break
            if any(flag[:1] == "-" and flag[1:] in bare for flag in program.words):
                self._operands = True
        known = program.long.get(name) if len(dashes) == 2 else None
        if known is None and is_secret_name(name) and not _SPACE.search(name) and ":" not in name:
            known = HIDE
        if known is not None:
            if equals:
                return f"{dashes}{name}=" + self._value(known, value) if value else word
            if bare.isprintable() and "@" not in bare:
                self._pending = known
                return word
        return None

    def _value(self, mode: str, value: str) -> str:
        """What follows an option that is known."""
        if mode == "script":
            return self._inner(value, is_shell=True)
        if mode == AFTER_NAME:
            found = re.search(r"[:%,]", value)
            if found is None:
                return self._text(value)
            return self.hide(value[: found.end()])
        if mode == AFTER_KEY:
            key, equals, _ = value.partition("=")
            return self.hide(key + equals) if equals else value
        return self.hide()

    def _text(self, word: str) -> str:
        """A word that no option announced: what is in it."""
        if _SPACE.search(word):
            start = _STARTS_SECRET.match(word)
            if start is not None and is_secret_name(start[1].lstrip("-")):
                return self.hide(start[0])
            return self._inner(word)
        return self._leaf(word)

    def _inner(self, text: str, *, is_shell: bool = False) -> str:
        """A word with words in it; `is_shell` if a shell reads it."""
        if self._depth >= _DEPTH:
            return self.hide()
        shown, hidden = _script(text, self._depth + 1, is_shell=is_shell)
        self.hidden = self.hidden or hidden
        return shown

    def _leaf(self, word: str) -> str:
        """A word without spaces: URLs, NAME=SECRET, NAME:PASSWORD@HOST, and tokens that have a shape."""
        shown = word
        if "://" in shown:
            shown = hide_url(shown)
        elif "@" in shown:
            shown = hide_password(shown)
        if "=" in shown or ":" in shown:
            for found in _PAIR.finditer(shown):
                if is_secret_name(found[1]):
                    if found.end() < len(shown):
                        shown = shown[: found.end()] + HIDDEN
                    elif shown.endswith(":"):
                        self.rest = True
                    else:
                        self.is_open = True
                    break
        shown = hide_shapes(shown, HIDDEN)
        if shown != word:
            self.hidden = True
        return shown


# -- scripts

_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
    | (?P<operator><<<|<<-?|[;|&()<>`{}]+)
    | (?P<word>(?:[^\s'"\\;|&()<>`]|\\.|'[^']*'|"(?:[^"\\]|\\.)*"|['"\\])+)
    """,
    re.VERBOSE | re.DOTALL,
)
_HEREDOC: Final = re.compile(r"(?<!<)<<(?!<)")
_QUOTED: Final = re.compile(r"\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


def _unquoted(found: re.Match[str]) -> str:
    text = found[0]
    if text[0] == "'":
        return text[1:-1]
    return _ESCAPED.sub(r"\1", text[1:-1] if text[0] == '"' else text)


def _script(text: str, depth: int, *, is_shell: bool) -> tuple[str, bool]:
    """A text that a shell reads if `is_shell`, or one that merely has spaces in it.

    In the latter, and where quotes do not pair as a shell would have them, nobody can tell where a secret
    ends: then the rest of its line is hidden too.
    """
    safe = hide_shapes(text, HIDDEN)
    unsure = (
        not is_shell
        or _HEREDOC.search(safe) is not None
        or any(mark in _QUOTED.sub("", safe) for mark in "'\"")
    )
    reading = _Script(_Line(depth), unsure)
    for found in _TOKEN.finditer(safe):
        reading.add(found.lastgroup or "", found[0])
    if reading.line.takes_stdin_of_text and _HEREDOC.search(safe) is not None:
        return HIDDEN, True
    return "".join(reading.shown), reading.line.hidden or safe != text


class _Script:
    """Reads the tokens of a text; `shown` are those that may be shown."""

    def __init__(self, line: _Line, unsure: bool) -> None:
        self.line = line
        self.shown: list[str] = []
        self._unsure = unsure
        self._command = 0  # where in `shown` the command begins, and the one whose output it reads
        self._writer = 0
        self._is_here_string = False

    def add(self, kind: str, piece: str) -> None:
        """One more piece: "space", "operator" or "word"."""
        line = self.line
        if kind == "space" and "\n" in piece:
            line.rest = False
            self._begin(piped=False)
            self.shown.append(piece)
        elif line.rest and (self._unsure or kind != "operator"):
            if not self.shown[-1].endswith(HIDDEN):
                self.shown.append(line.hide(" "))
        elif kind == "space":
            self.shown.append(piece)
        elif kind == "operator":
            if line.rest:  # the shell ends the command here, and the secret with it
                line.rest = False
                self.shown.append(" ")
            self.shown.append(piece)
            self._is_here_string = piece == "<<<"
            if "(" in piece or not set(piece) & set("<>{}"):
                self._begin(piped=piece in ("|", "|&"))
        else:
            self._word(piece)

    def _begin(self, *, piped: bool) -> None:
        self.line.begin()
        self._writer = self._command if piped else len(self.shown)
        self._command = len(self.shown)

    def _word(self, token: str) -> None:
        line = self.line
        if self._is_here_string:
            self._is_here_string = False
            self.shown.append(line.hide())
            return
        plain = _QUOTED.sub(_unquoted, token)
        seen = line.read(plain, quoted=token[0] in "'\"")
        self.shown.append(token if seen == plain else _requoted(seen, token))
        if self._unsure and (seen != plain or line.is_open):
            line.rest = True
        line.is_open = False
        if line.takes_stdin:
            for at in [at for at in range(self._writer, self._command) if self.shown[at].strip(" |&")][1:]:
                self.shown[at] = line.hide()


def _requoted(seen: str, token: str) -> str:
    quote = token[0]
    if quote in "'\"" and token[-1] == quote and len(token) > 1 and _SPACE.search(seen):
        return f"{quote}{seen}{quote}"
    return seen

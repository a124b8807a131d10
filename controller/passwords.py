"""Which passwords are good enough, and what the controller asks of whatever hashes them.

As NIST SP 800-63B has it: length instead of kinds of characters, and nothing that is guessed first. The
hashing itself takes a third of a second and belongs into a thread; here is only its interface.
"""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from typing import Final, Protocol

from defender.contract.redaction import words_of

SHORTEST: Final = 12
LONGEST: Final = 1024
FEWEST_CHARACTERS: Final = 5
"""Different characters that a password has at least."""

_GUESSED_FIRST: Final = words_of("""
    123456789 987654321 abcdefgh administrator asdfgh autumn azerty baseball changeme controller default
    defender docker dragon football iloveyou letmein master monkey p@ssw0rd passw0rd password passwort
    princess qwerty qwertz secret spring summer sunshine superman trustno1 welcome winter zxcvbn
""")
_ALIKE: Final = str.maketrans("013457@$!", "oieastasi")


class PasswordError(Exception):
    """A password that is not accepted; the text says why and never quotes it."""


class Hasher(Protocol):
    """Makes and checks the text that is kept in place of a password; slow on purpose."""

    def hash(self, password: str) -> str:
        """A text with its parameters and salt."""

    def verify(self, kept: str, password: str) -> bool:
        """Whether a password belongs to a text; False for a text that cannot be read, too."""

    def is_outdated(self, kept: str) -> bool:
        """Whether the text was made with weaker parameters than today's, and is to be made anew."""


def prepare(password: str) -> str:
    """A password as it is hashed: the same however a keyboard composed its accents (NFKC)."""
    return unicodedata.normalize("NFKC", password)


def check_password(password: str, user: str) -> None:
    """Raise PasswordError unless a password is good enough for this user."""
    if len(password) > LONGEST:
        raise PasswordError(f"the password has more than {LONGEST} characters")
    text = prepare(password)
    if len(text) < SHORTEST:
        raise PasswordError(f"the password has fewer than {SHORTEST} characters; a sentence is easy to keep")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise PasswordError("the password holds control characters, which not every keyboard can type")
    folded = text.casefold()
    if len(set(folded)) < FEWEST_CHARACTERS:
        raise PasswordError(f"the password has fewer than {FEWEST_CHARACTERS} different characters")
    for name in {user.casefold(), user.casefold().partition("@")[0]}:
        if len(name) >= 3 and len(folded.replace(name, "")) < SHORTEST - 4:
            raise PasswordError("the password is little more than the user's name")
    rest = folded
    for word in _GUESSED_FIRST:
        rest = rest.replace(word, "")
    plain = folded.translate(_ALIKE)
    for word in _GUESSED_FIRST:
        plain = plain.replace(word, "")
    if min(len(rest), len(plain)) < SHORTEST // 2:
        raise PasswordError("the password is made of what is guessed first; take a sentence of your own")
    steps = [ord(after) - ord(before) for before, after in pairwise(folded)]
    if all(step in (-1, 0, 1) for step in steps):
        raise PasswordError("the password only counts or spells the alphabet")

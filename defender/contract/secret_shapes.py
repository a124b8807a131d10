"""How a secret is recognized: by the name of what holds it, or by the shape that its issuer gave it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from defender.contract.redaction import words_of

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PARTS: Final = re.compile(r"[^a-z0-9]+")

_ANYWHERE: Final = (
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "secret",
    "token",
    "credential",
    "apikey",
    "bearer",
    "authorization",
)
_ENDINGS: Final = ("key", "keys", "pass", "pwd", "auth", "cred", "creds", "pw")
_WHOLE: Final = words_of("""
    cookie cookies dsn hmac jwt otp pat pin psk psw salt sas sig signature totp webhook
""")
_PASS: Final = re.compile(r"pass(?!e|i(?!n$)|th)")

#: Endings and beginnings of a name that is about a secret and does not hold one: a path, a question.
_ABOUT: Final = re.compile(
    r"(?:[-_.]?(?:file|path|dir|stdin|prompt|fd|command|helper|length|expiry|ttl))$"
    r"|^(?:no|ask|prompt|skip|without|disable)[-_]",
    re.IGNORECASE,
)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether an option, variable, header or key of this name holds a secret: `--db-password`, `API_KEY`,
    `authToken`, `X-Vault-Token`. A name that is merely about one (`--password-file`) does not.
    """
    if len(name) > 256:
        return True
    if _ABOUT.search(name):
        return False
    for part in _PARTS.split(_CAMEL.sub("_", name).lower()):
        if part in _WHOLE or part.endswith(_ENDINGS) or _PASS.match(part) is not None:
            return True
    folded = name.lower()
    return any(word in folded for word in _ANYWHERE)


#: Tokens whose issuers gave them a shape of their own, keys in PEM, and what follows the scheme of an
#: `Authorization` header. All begin where a word does, so that one word is looked at once.
SHAPES: Final = re.compile(
    r"""
    -----BEGIN[ ][A-Z0-9 ]*PRIVATE[ ]KEY.*
    | hooks\.slack\.com/\S+
    | (?<![\w-])(?:
        (?:Bearer|Basic|Negotiate|Digest)\s++[A-Za-z0-9+/=_.~:-]{6,}
        | eyJ[\w-]{8,}+(?:\.[\w-]*+)++
        | gh[opusr]_[A-Za-z0-9]{16,} | github_pat_\w{16,}
        | gl(?:pat|dt|rt|ptt|ft|soat|cbt|agent)-[\w.-]{12,} | glsa_\w{16,}
        | xox[a-z]-[\w-]{8,} | xapp-[\w-]{8,} | whsec_\w{8,} | [rsp]k_(?:live|test)_\w{8,}
        | (?:AKIA|ASIA|AGPA|AIDA|AROA|ANPA)[0-9A-Z]{12,} | AIza[\w-]{30,} | ya29\.[\w-]{8,}
        | sk-[\w-]{16,} | SG\.[\w-]{8,}+\.[\w-]+ | hf_[A-Za-z0-9]{16,} | dapi[0-9a-f]{32}
        | npm_[A-Za-z0-9]{16,} | pypi-[\w-]{16,} | dckr_(?:pat|oat)_[\w-]{8,} | tskey-[\w-]{8,}
        | hv[sbr]\.[\w-]{16,} | dop_v1_\w{16,} | shp(?:at|ss|ca|pa)_\w{16,}
        | SWMTKN-1-[\w-]+ | SWMKEY-1-[\w+/=-]+ | AGE-SECRET-KEY-\w+
        | dft1\.[a-z2-7]{1,16}\.[a-z2-7]{4,}+(?:\.[a-z2-7]*+)? | df[sa]1_[\w-]{8,}
    )
    """,
    re.VERBOSE | re.DOTALL,
)

_BLOB: Final = re.compile(r"(?<![\w+/.-])[A-Za-z0-9+/_-]{40,}={0,2}(?![\w+/=.-])")
_PATH_LIKE: Final = re.compile(r"/[^/]{0,30}(?:/|$)")


def hide_shapes(text: str, mark: str) -> str:
    """The text with `mark` for everything that has the shape of a secret, and for long random-looking words.

    Hexadecimal words are kept: they name containers and images.
    """
    if len(text) < 8:
        return text
    text = SHAPES.sub(mark, text)
    return (
        _BLOB.sub(lambda found: mark if _is_random(found[0]) else found[0], text) if len(text) >= 40 else text
    )


def _is_random(word: str) -> bool:
    """Whether a long word mixes cases and digits as encoded bytes do, and is no path."""
    if word.startswith("/") or len(_PATH_LIKE.findall(word)) > 1:
        return False
    return (
        any("a" <= letter <= "z" for letter in word)
        and any("A" <= letter <= "Z" for letter in word)
        and any("0" <= letter <= "9" for letter in word)
    )

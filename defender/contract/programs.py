"""How programs take a secret on their command line without a name that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from defender.contract.redaction import words_of

#: What of a value is hidden: all; of ``NAME:SECRET``, ``NAME%SECRET`` or ``NAME,SECRET`` what follows the
#: name; of ``KEY=SECRET`` what follows the key.
HIDE: Final = "hide"
AFTER_NAME: Final = "after name"
AFTER_KEY: Final = "after key"


@dataclass(frozen=True, slots=True)
class Program:
    """How one program takes a secret.

    `short`: letters of options with a value, apart or attached, and what of it is hidden; `attached` ones
    have theirs attached or none; `long`: names of options. `when`: a word that must have come for `short` to
    count. `words`: after one of these every word is hidden, "" stands for the program itself. `exact`: its
    options of one letter are not run together.
    """

    short: dict[str, str] = field(default_factory=dict)
    attached: str = ""
    long: dict[str, str] = field(default_factory=dict)
    when: str = ""
    words: frozenset[str] = frozenset()
    exact: bool = False


def _all(letters: str, when: str = "", words: str | None = None) -> Program:
    given = frozenset() if words is None else frozenset(words.split() or [""])
    return Program(dict.fromkeys(letters, HIDE), when=when, words=given)


_HTTP: Final = Program(
    {"u": AFTER_NAME, "U": AFTER_NAME, "b": HIDE},
    long={"user": AFTER_NAME, "proxy-user": AFTER_NAME, "cookie": HIDE, "oauth2-bearer": HIDE},
)
PROGRAMS: Final[dict[str, Program]] = {
    **dict.fromkeys(
        words_of(
            "mysql mysqldump mysqlimport mysqlcheck mysqlshow mysqlslap mysqlbinlog mysqlpump mysqlsh "
            "mariadb mariadb-dump mariadb-import mariadb-check"
        ),
        Program(attached="p"),
    ),
    "mysqladmin": Program(attached="p", words=frozenset({"password"})),
    "mariadb-admin": Program(attached="p", words=frozenset({"password"})),
    **dict.fromkeys(
        words_of("sshpass mongo mongosh mongodump mongorestore mongoexport mongoimport cqlsh"), _all("p")
    ),
    **dict.fromkeys(
        words_of("docker podman nerdctl buildah skopeo helm oras crane az oc"), _all("p", when="login")
    ),
    **dict.fromkeys(words_of("useradd usermod 7z 7za 7zr rar unrar"), _all("p")),
    "curl": _HTTP,
    **dict.fromkeys(words_of("http https xh"), Program({"a": AFTER_NAME}, long={"auth": HIDE})),
    **dict.fromkeys(words_of("ldapsearch ldapadd ldapmodify ldapdelete ldapwhoami kadmin"), _all("w")),
    "ldappasswd": _all("was"),
    **dict.fromkeys(
        words_of("ipmitool mosquitto_pub mosquitto_sub sqlcmd bcp isql osql zip unzip"), _all("P")
    ),
    **dict.fromkeys(
        words_of("smbclient rpcclient net"), Program({"U": AFTER_NAME}, long={"user": AFTER_NAME})
    ),
    **dict.fromkeys(words_of("snmpget snmpset snmpwalk snmpbulkwalk"), _all("AXc")),
    **dict.fromkeys(words_of("sqlplus sqlldr expdp impdp wpa_passphrase"), _all("", words="")),
    "redis-cli": _all("a", words="auth"),
    "lftp": Program({"u": AFTER_NAME}),
    "openssl": Program({"k": HIDE, "K": HIDE}, exact=True),
    "htpasswd": _all("", words="-b"),
    "rabbitmqctl": _all("", words="add_user change_password authenticate_user"),
    "vault": _all("", words="login unseal put write"),
    "rclone": _all("", words="obscure reveal"),
    "kubectl": Program(long={"from-literal": AFTER_KEY}),
}
NO_PROGRAM: Final = Program()
SHELLS: Final = words_of("sh bash ash dash zsh ksh mksh fish busybox su runuser")

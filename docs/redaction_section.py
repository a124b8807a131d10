"""What the page of events says of bodies, and of what is hidden in requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from defender.contract.command_line import MAX_COMMAND, MAX_READ
from defender.contract.particulars import MAX_ANSWER_BODY, MAX_REQUEST_BODY, MEANINGS
from defender.contract.programs import PROGRAMS

_HIDDEN: Final = """\
## What is hidden

Secrets are taken out where the event is made: what is hidden in it is on no disk and on no wire. `redacted`
names the parameters of the query, and the fields of the body as `body.NAME`, that are hidden in part or
whole. In the place of a secret stands `***`.

| what | recorded |
| --- | --- |
| headers, `X-Registry-Auth` and `X-Registry-Config` among them | nothing |
| query parameters that may hold a secret, or that the Engine does not know | the name |
| build arguments | the names |
| Dockerfile lines of a commit (`changes`) | the instruction |
| URLs | without user and password, and without the values of their query |
| environment variables | the names |
| labels | how many; the project and service of Compose and of a swarm |
| data of secrets and configs | that there is some |
| passwords and tokens of registries, join tokens, unlock keys, signing keys | that there is one |
| options of volume drivers | values of `type`, `device`, `size`; of `o` those that are known to be harmless |
| options of log drivers, networks and others | the names |
| command lines | by the rules below |
| any other part of a body | nothing, but the fields that are listed above |

### Command lines

A command line is shown as one line, with quotes where a word has spaces. These are hidden in it:

| what | example |
| --- | --- |
| the value of an option whose name tells of a secret: `pass`, `pwd`, `secret`, `token`, `key`, `auth`, \
`cred` and such; not of one that names a file or asks (`--password-file`, `--no-password`) | \
`--password ***`, `--api-key=***`, `-Ddb.password=***` |
| the value of a variable or parameter whose name does | `DB_PASSWORD=***`, `"password":***` |
| passwords in URLs, and in `NAME:PASSWORD@HOST` | `postgres://***@db/shop` |
| headers that tell of a secret | `-H 'Authorization: ***'`, `-H 'X-Api-Key: ***'` |
| what some programs take without saying so | `mysql -p***`, `curl -u bob:***`, `docker login -p ***` |
| what one command of a script gives another in secret | `echo *** \\| chpasswd` |
| words behind `PASSWORD` or `IDENTIFIED BY` in quotes | `CREATE USER x WITH PASSWORD ***` |
| tokens that have a shape: JSON Web Tokens, those of GitHub, GitLab, Slack, AWS, Google, npm, PyPI, Vault, \
Docker Hub, Stripe and others; private keys in PEM; long words that mix cases and digits | `***` |

What follows `-c` of a shell is read as a shell reads it, also inside quotes:
`sh -c 'TOKEN=*** run; ls /etc'`.
In any other text with spaces, and where quotes do not pair, the end of a secret cannot be told: the rest of
its line is hidden too. Only the first {read} characters are read; beyond {command} the record is cut.

Known programs: {programs}.

No rule knows a secret that looks like anything else: the second of two plain words, a password in a
sentence, one that a program of your own takes as `-x`. Give secrets in files or in the environment. And what
stands in the place of a secret is hidden from you as well: a command may be put there on purpose.
"""

_BODIES: Final = """\
## body and answer

`req.body` says what a request's body was about, `result.answer` what the Engine answered: particulars, of
operations with a body in JSON and of answers that name what was made. Of an answer with an error it is the
Engine's message. A field that is empty, false or not given is left out; lists end after 16 entries with the
number of the others. A body over {request} KiB, or an answer over {answer} KiB, is not read for the record;
it is forwarded all the same.

Bodies are read as the Engine reads them: names whatever their case, and repeated ones merged.
"""


def sections() -> Iterator[str]:
    """The lines of both sections."""
    yield _BODIES.format(request=MAX_REQUEST_BODY // 1024, answer=MAX_ANSWER_BODY // 1024)
    yield "| key | meaning |"
    yield "| --- | --- |"
    for name, meaning in MEANINGS.items():
        if not meaning.startswith("See "):
            yield f"| `{name}` | {meaning} |"
    yield ""
    programs = ", ".join(f"`{name}`" for name in sorted(PROGRAMS))
    yield _HIDDEN.format(read=MAX_READ, command=MAX_COMMAND, programs=programs).rstrip()

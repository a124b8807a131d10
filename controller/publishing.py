"""From a draft to a numbered version: what is checked, and what stops two people from undoing each other.

Every function is told everything it needs and decides; storing is the shell's. What it stores in one
transaction with the number it takes: the version, the policy's new state, the audit event.

* A version never changes and is never removed; its number is the one that its bundle has in the policy
  stream, so that history, status and audit events speak of the same number.
* What is published loads: it went through the defender's own reader.
* A policy has one etag, which changes whenever its draft, its target or its published version does. A change
  has to name the one it was made from. A rollback is a publication: of old content, under a new number.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from controller.fleet import Target
from controller.policy_diff import RuleChange, compare_rules, compare_text
from defender.contract.advice import Advice, advise, describe_rule
from defender.contract.document import MAX_BYTES
from defender.contract.errors import PolicyError, Problem
from defender.contract.policy import Policy, load_policy

MAX_COMMENT: Final = 1000

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class PublishError(Exception):
    """A change that cannot be made; the text is one sentence for the person who asked.

    `code`: "changed" (the state is another one by now; `etag` is the present one), "invalid" (the policy has
    `problems`), "unchanged" (there is nothing to publish), "no-draft", "no-version", "name", "comment".
    """

    def __init__(self, code: str, text: str, *, etag: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.etag = etag
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Draft:
    """A text that is being worked on; it need not be valid. `saved_at` is in unix seconds."""

    text: str
    target: Target
    author: str
    saved_at: float


@dataclass(frozen=True, slots=True)
class Version:
    """What was published under a number, for good; `rolled_back_to` is the version its content is from.

    `digest` is `sha256:` and the hex digest of the text. `published_at` is in unix seconds.
    """

    policy: str
    number: int
    text: str
    target: Target
    digest: str
    author: str
    published_at: float
    comment: str = ""
    rolled_back_to: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyState:
    """A policy as it is now: its newest version and the draft for the next one."""

    name: str
    published: Version | None = None
    draft: Draft | None = None

    @property
    def exists(self) -> bool:
        """Whether there is anything of it: a version or a draft."""
        return self.published is not None or self.draft is not None

    @property
    def etag(self) -> str:
        """Names this state: 32 hexadecimal digits, without quotes."""
        draft = self.draft
        parts = [
            self.name,
            self.published.number if self.published else None,
            None if draft is None else [draft.text, draft.target.as_document(), draft.author, draft.saved_at],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a text is as a policy: `policy` if it can be used, else None and every problem."""

    policy: Policy | None
    problems: tuple[Problem, ...]
    advice: tuple[Advice, ...]

    @property
    def ok(self) -> bool:
        """Whether it can be published."""
        return self.policy is not None

    def summaries(self) -> tuple[str, ...]:
        """What each rule does, in one line."""
        return () if self.policy is None else tuple(map(describe_rule, self.policy.rules))


@dataclass(frozen=True, slots=True)
class Difference:
    """What changes from one text to another. `rules` is empty where one of them is no policy; `target` says
    how the target changes, "" if it does not."""

    unified: str
    rules: tuple[RuleChange, ...]
    target: str = ""


def check_name(name: str) -> None:
    """Raise PublishError `name` unless a policy may be called this."""
    if _NAME.fullmatch(name) is None:
        raise PublishError(
            "name",
            f"{name[:80]!r} is no name for a policy: 1 to 64 lower-case letters, digits and . _ -, beginning "
            "with a letter or digit",
        )


def check(text: str, source: str) -> Checked:
    """Look at a text as a defender would; `source` is what problems call it. Raises nothing."""
    try:
        policy = load_policy(text, source)
    except PolicyError as error:
        return Checked(None, error.problems, ())
    return Checked(policy, (), advise(policy))


def check_expected(state: PolicyState, admits: Callable[[str], bool]) -> None:
    """Hold what a change was made from to what is there; `admits` tells whether an etag is meant by the
    request, and is asked with "" where there is no such policy yet.

    Raises PublishError `changed`, which says what is there now and who put it there.
    """
    if admits(state.etag if state.exists else ""):
        return
    if not state.exists:
        raise PublishError("changed", f"there is no policy {state.name!r} any more, or not yet")
    now = [f"version {state.published.number} by {state.published.author}"] if state.published else []
    now += [f"a draft by {state.draft.author}"] if state.draft else []
    raise PublishError(
        "changed",
        f"policy {state.name!r} is not what the change was made from: there is {' and '.join(now)}",
        etag=state.etag,
    )


def save_draft(state: PolicyState, draft: Draft) -> PolicyState:
    """The state with another draft; raises PublishError `name`, `invalid` only if the text is too large."""
    check_name(state.name)
    size = len(draft.text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        problem = Problem(0, 0, "", f"the policy has {size} bytes; at most {MAX_BYTES} are accepted")
        raise PublishError("invalid", problem.message, problems=(problem,))
    return replace(state, draft=draft)


def discard_draft(state: PolicyState) -> PolicyState:
    """The state without a draft; raises PublishError `no-draft`."""
    if state.draft is None:
        raise PublishError("no-draft", f"policy {state.name!r} has no draft", etag=state.etag)
    return replace(state, draft=None)


def publish(
    state: PolicyState, number: int, author: str, now: float, *, comment: str = ""
) -> tuple[PolicyState, Version]:
    """Make the draft the version `number`, the next of the policy stream.

    Raises PublishError `no-draft`, `invalid` with every problem, `unchanged` where text and target are those
    of the newest version, `comment`.
    """
    draft = state.draft
    if draft is None:
        raise PublishError("no-draft", f"policy {state.name!r} has no draft to publish", etag=state.etag)
    found = check(draft.text, state.name)
    if found.policy is None:
        raise PublishError(
            "invalid",
            f"policy {state.name!r} has {_counted(len(found.problems), 'problem')} and cannot be published",
            etag=state.etag,
            problems=found.problems,
        )
    newest = state.published
    if newest is not None and (newest.text, newest.target) == (draft.text, draft.target):
        raise PublishError("unchanged", f"version {newest.number} is the same already", etag=state.etag)
    version = Version(
        policy=state.name,
        number=number,
        text=draft.text,
        target=draft.target,
        digest=found.policy.digest,
        author=author,
        published_at=now,
        comment=comment,
    )
    return _published(state, version, keep_draft=False)


def roll_back(
    state: PolicyState, to: Version | None, number: int, author: str, now: float, *, comment: str = ""
) -> tuple[PolicyState, Version]:
    """Publish what the version `to` held, text and target, as version `number`. A draft stays as it is.

    Raises PublishError `no-version` if there is none such of this policy, `unchanged` if that is what is
    published, `invalid` if this program no longer reads it, `comment`.
    """
    newest = state.published
    if to is None or to.policy != state.name or newest is None:
        raise PublishError("no-version", f"policy {state.name!r} has no such version", etag=state.etag)
    if (newest.text, newest.target) == (to.text, to.target):
        raise PublishError(
            "unchanged", f"version {newest.number} has the content of version {to.number}", etag=state.etag
        )
    found = check(to.text, f"{state.name} version {to.number}")
    if found.policy is None:
        raise PublishError(
            "invalid",
            f"version {to.number} can no longer be used; publish a repaired text instead",
            etag=state.etag,
            problems=found.problems,
        )
    # The content of a version that was itself rolled back to is named by where it comes from.
    source = to.number if to.rolled_back_to is None else to.rolled_back_to
    version = replace(
        to, number=number, author=author, published_at=now, comment=comment, rolled_back_to=source
    )
    return _published(state, version, keep_draft=True)


def difference(old: Version | Draft | None, new: Version | Draft, name: str) -> Difference:
    """What changes from one to the other; None before is nothing at all."""
    before = "" if old is None else old.text
    unified = compare_text(before, new.text, _called(old, name), _called(new, name))
    checked_new = check(new.text, name)
    checked_old = None if old is None else check(old.text, name)
    rules: tuple[RuleChange, ...] = ()
    if checked_new.policy is not None and (checked_old is None or checked_old.ok):
        rules = compare_rules(checked_old.policy if checked_old else None, checked_new.policy)
    target = ""
    if old is None or old.target != new.target:
        told = _described(new.target)
        target = told if old is None else f"{_described(old.target)} -> {told}"
    return Difference(unified, rules, target)


# Small


def _published(state: PolicyState, version: Version, *, keep_draft: bool) -> tuple[PolicyState, Version]:
    check_name(state.name)
    if len(version.comment) > MAX_COMMENT:
        raise PublishError("comment", f"a comment has at most {MAX_COMMENT} characters", etag=state.etag)
    newest = state.published
    if newest is not None and version.number <= newest.number:
        raise ValueError(f"version {version.number} after version {newest.number} of {state.name!r}")
    return replace(state, published=version, draft=state.draft if keep_draft else None), version


def _described(target: Target) -> str:
    rank = f", rank {target.rank}" if target.rank else ""
    return target.selection.describe() + rank


def _called(text: Version | Draft | None, name: str) -> str:
    """What a text is called in the head of a difference."""
    if text is None:
        return "/dev/null"
    return f"{name} version {text.number}" if isinstance(text, Version) else f"{name} draft"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

"""What the record says of bundles: an event for each command that tells something. Pure."""

from __future__ import annotations

from defender.bundles.commands import (
    ROOT,
    SNAPSHOT,
    Accepted,
    Command,
    Frozen,
    Graded,
    Refused,
    Rooted,
    Skewed,
    Withdraw,
)
from defender.contract.audit import Event, policy_event, timestamp


def note_of(command: Command) -> Event | None:
    """The event of a command, None for one that is not for the record.

    `req.target` is the stream (or `root`, `snapshot`, `high-water`); version and digest are those of what is
    in force afterwards.
    """
    match command:
        case Accepted(bundle, restored):
            return policy_event(
                "bundle_restore" if restored else "bundle_activate",
                bundle.stream,
                ok=True,
                version=bundle.version,
                digest=f"sha256:{bundle.digest.hex()}",
            )
        case Refused(what, code, detail, kept):
            return policy_event(
                "snapshot_refuse" if what == SNAPSHOT else "bundle_refuse",
                what,
                ok=False,
                version=kept.version,
                digest=f"sha256:{kept.digest.hex()}" if kept.digest else "",
                problems=[f"{code}: {detail}"],
            )
        case Withdraw(stream, reason):
            return policy_event("bundle_withdraw", stream, ok=False, problems=[reason])
        case Rooted(version, key_epoch, digest):
            return policy_event(
                "root_activate",
                ROOT,
                ok=True,
                version=version,
                digest=f"sha256:{digest.hex()}",
                problems=[f"key epoch {key_epoch}"],
            )
        case Graded(stream, grade, since):
            problems = [] if grade == "fresh" else [f"{grade} since {timestamp(since)}"]
            return policy_event("bundle_grade", stream, ok=not problems, problems=problems)
        case Frozen(reason):
            return policy_event(
                "changes_freeze", SNAPSHOT, ok=not reason, problems=[reason] if reason else []
            )
        case Skewed(seconds):
            way = "behind" if seconds > 0 else "ahead of"
            problems = (
                [f"this host's clock is {abs(seconds):.0f} seconds {way} the controller's"] if seconds else []
            )
            return policy_event("clock_skew", SNAPSHOT, ok=not problems, problems=problems)
        case _:
            return None

"""The policy stream: who has which policy (`fleet`) and how its versions go out (`distribution`), as one.

Inputs in, commands out; the commands are the distribution's. What a defender itself does, and what people
decide about a rollout, goes to `stream` directly.

* Who comes to a policy by a new version of it waits for its wave, with what it had until then. Who comes to
  it otherwise (enrolled, labelled anew, left by another policy) gets what the policy has in force.
* Who leaves a policy leaves it at once, and is not counted in its rollout any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controller.distribution import AT_ONCE, Distribution
from controller.fleet import NO_POLICY, Fleet, Follow, Target
from controller.releases import (
    Command,
    Held,
    LineState,
    Plan,
    Position,
    Refusal,
    Release,
    Superseded,
)
from controller.selection import Defender


class PolicyStream:
    """See the module. `fleet` and `stream` may be asked anything; only the inputs here change the fleet."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.stream = Distribution()

    def begin(self, release: Release, now: float) -> list[Command]:
        """The bundle that denies everything (`fleet.NO_POLICY_TEXT`), for defenders without a policy; signed
        for the whole fleet, once, before anything else is published."""
        return self.stream.publish(NO_POLICY, release, AT_ONCE, now)

    def restore(
        self,
        defenders: Iterable[Defender],
        targets: Mapping[str, Target],
        held: Mapping[str, Held],
        states: Iterable[LineState],
        refusals: Iterable[tuple[str, Position, Refusal]],
        now: float,
    ) -> list[Command]:
        """Go on where a controller stopped, before anybody is connected; once, in place of `begin`.

        `targets` are those of the newest versions, in any order, `held` is what each defender said last,
        `refusals` are (defender, origin, why). Raises ValueError unless there is a state for each policy with
        a target.
        """
        states = list(states)
        missing = sorted(set(targets) - {state.line for state in states})
        if missing:
            raise ValueError(f"nothing was kept of the rollout of {', '.join(missing)}")
        for state in sorted(states, key=lambda state: state.release.origin):
            if state.line in targets:
                self.fleet.targeted(state.line, targets[state.line])
        for defender in defenders:
            self.fleet.enrolled(defender)
            line = self.fleet.policy_of(defender.id)
            self.stream.restore_defender(defender.id, line, held.get(defender.id))
        commands = [command for state in states for command in self.stream.restore(state, now)]
        for who, origin, refusal in refusals:
            self.stream.restore_refusal(who, origin, refusal)
        return commands

    def enrolled(self, defender: Defender, now: float) -> list[Command]:
        """A defender is in the fleet, or has another name or other labels; raises SelectionError."""
        return self._moved(self.fleet.enrolled(defender), now)

    def removed(self, defender: str, now: float) -> list[Command]:
        """A defender left the fleet."""
        self.fleet.removed(defender)
        return self.stream.remove(defender, now)

    def published(
        self, policy: str, target: Target, release: Release, plan: Plan, now: float
    ) -> list[Command]:
        """A version of a policy, signed for `fleet.audience(policy, target)`, goes out by a plan."""
        if policy in self.stream.lines():
            current = self.stream.state(policy).release.position
            if release.position <= current:
                # The loser of a race changes no target either.
                return [Superseded(policy, release.position, current)]
        changes = self.fleet.targeted(policy, target)
        leaving = self._moved([each for each in changes if each.policy != policy], now)
        joining = [each.defender for each in changes if each.policy == policy]
        return [*leaving, *self.stream.publish(policy, release, plan, now, joining)]

    def withdrawn(self, policy: str, now: float) -> list[Command]:
        """A policy is removed from the fleet: who had it gets what comes next for it, at once."""
        commands = self._moved(self.fleet.targeted(policy, None), now)
        self.stream.retire(policy)
        return commands

    def _moved(self, changes: list[Follow], now: float) -> list[Command]:
        return self.stream.assign_all({each.defender: each.policy for each in changes}, now)

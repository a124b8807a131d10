"""`make down`: end what `make up` started for this state directory. Everything written stays."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deploy.choices import Choices, SetupError, read_choices
from deploy.engine import OwnEngine
from deploy.fleet import Fleet
from deploy.guard import Guard
from deploy.output import say
from deploy.up import locked
from deploy.virtualenv import Virtualenv


def down(choices: Choices) -> None:
    """End the defender, its controller, then the Engine if it was ours."""
    if not choices.state.is_dir():
        say(f"Nothing to stop: there is no {choices.state}")
        return
    with locked(choices.state):
        tools = Virtualenv()
        if Guard(choices, tools).stop():
            say("Stopped the defender.")
        else:
            say("The defender was not running.")
        if Fleet(choices, tools).stop():
            say("Stopped the controller.")
        engine = OwnEngine(choices.state / "engine")
        if engine.process() is not None:
            engine.stop()
            say("Stopped the Engine that make up had started.")


def main() -> int:
    """Run `make down`; return the exit code."""
    try:
        # What it listened on and which policy it had do not matter to the end.
        kept = {name: value for name, value in os.environ.items() if name == "FLEET_STATE"}
        down(read_choices(kept, Path.cwd()))
    except SetupError as error:
        print(f"make down: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

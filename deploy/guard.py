"""The running defender of a state directory: started, told of new settings, started anew when it must be."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from deploy.choices import Choices, SetupError
from deploy.daemon import Daemon
from deploy.docker_api import answers
from deploy.ports import check_port
from deploy.processes import Process, remove, wait_until
from deploy.virtualenv import Virtualenv

START_PATIENCE = 30.0


class Guard:
    """The defender of one state directory.

    Args:
        choices: where it is and how it listens.
        tools: the virtual environment it runs in.
    """

    def __init__(self, choices: Choices, tools: Virtualenv) -> None:
        self.choices = choices
        self._daemon = Daemon("defender", choices.state, tools)

    def process(self) -> Process | None:
        """Return it if it runs."""
        return self._daemon.process()

    def ensure(self, settings: str, options: Sequence[str] = ()) -> None:
        """Have it run with these settings.

        Args:
            settings: text of its settings file.
            options: of its command line, if it has to be started.

        Raises:
            SetupError: when an address is taken, the settings are bad, or it does not come up.
        """
        daemon = self._daemon
        process = daemon.process()
        self.check_port()
        need = daemon.write_settings(settings)
        if process is not None and (need == "fixed" or not daemon.is_of_present_code()):
            self.stop()
            process = None
        if process is None:
            self._mode_from_settings()
            daemon.start(*options)
        elif need == "live" or not self._serves():
            self._mode_from_settings()
            os.kill(process.pid, signal.SIGHUP)
        if not wait_until(self._serves, START_PATIENCE):
            running = "runs" if self.process() is not None else "has ended"
            raise SetupError(
                f"the defender {running} and does not answer on {self.choices.listen}; the end of its log:\n"
                f"{daemon.log_end()}"
            )

    def stop(self) -> bool:
        """End it, if it runs, by its pid; return whether it did run."""
        return self._daemon.stop()

    def _mode_from_settings(self) -> None:
        """Forget a mode chosen by `defenderctl local listener set`: make up says which one it is now."""
        remove(self.choices.state / "listener.json")

    def check_port(self) -> None:
        """Refuse a port that another program has; one that answers with our own certificates is ours.

        Raises:
            SetupError: for such a one.
        """
        choices = self.choices
        if not choices.listens_on_tcp:
            return
        if self.process() is not None and answers(choices.tcp_address, choices.certificates):
            return
        check_port("DEFENDER_PORT", choices.port)

    def _serves(self) -> bool:
        """Tell whether exactly the chosen listeners answer."""
        choices = self.choices
        tcp = answers(choices.tcp_address, choices.certificates)
        unix = choices.socket.exists() and answers(choices.unix_address)
        return (tcp, unix) == (choices.listens_on_tcp, choices.listens_on_unix) and self.process() is not None

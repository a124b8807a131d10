"""Two sessions and what is between them, for tests: nothing arrives that was not sent."""

from __future__ import annotations

from typing import Any, Final

from defender.contract.controller_session import ControllerSession
from defender.contract.defender_session import DefenderSession
from defender.contract.message_fields import Cursor, Position
from defender.contract.messages import NEWEST, OLDEST, STREAMS, Hello, Welcome
from defender.contract.session import Close, Output, Outputs, Send
from defender.contract.spool import first_chain, seal

NOWHERE: Final = Position(0, 0, b"")
EPOCH: Final = 0x9F3C0A6D51E8B274


def hello(oldest: int = OLDEST, newest: int = NEWEST, streams: tuple[str, ...] = STREAMS) -> Hello:
    return Hello(oldest, newest, "1.0", "web1", "boot", (), dict.fromkeys(streams, NOWHERE), None)


class Records:
    """A spool's records, sealed and numbered on: EVENTS of any number of them."""

    def __init__(self, epoch: int = EPOCH) -> None:
        self.epoch = epoch
        self.seq = 0
        self.chain = first_chain("web1", epoch)

    def take(self, count: int, size: int = 30) -> dict[str, Any]:
        """The arguments of `send_events` for the next `count` records."""
        previous, first = self.chain, self.seq + 1
        payloads = [b"%d" % (first + number) * size for number in range(count)]
        records, self.chain = seal(previous, first, payloads)
        self.seq += count
        return {
            "epoch": self.epoch,
            "first_seq": first,
            "count": count,
            "previous": previous,
            "records": records,
            "chain": self.chain,
        }


class Link:
    """A defender's and a controller's session, a clock, and the bytes on their way.

    `heard` is what each caller was told, `closed` how each session ended.
    """

    def __init__(
        self,
        *,
        greeted: bool = True,
        say: Hello | None = None,
        newest: int = NEWEST,
        cursor: Cursor | None = None,
        **welcome: Any,
    ) -> None:
        self.now = 100.0
        self.defender = DefenderSession(self.now, say or hello())
        self.controller = ControllerSession(self.now, newest=newest)
        self.up = b""
        self.down = b""
        self.defender_heard: list[Output] = []
        self.controller_heard: list[Output] = []
        self.defender_closed: Close | None = None
        self.controller_closed: Close | None = None
        self.of_defender(self.defender.start())
        if greeted:
            self.deliver()
            self.welcome(cursor=cursor, **welcome)
            self.deliver()

    def welcome(self, generation: int = 1, cursor: Cursor | None = None, **more: Any) -> None:
        self.of_controller(
            self.controller.welcome(
                self.now,
                generation=generation,
                version="1.0",
                time=1_800_000_000_000_000,
                cursor=cursor,
                **more,
            )
        )

    def of_defender(self, outputs: Outputs) -> None:
        """Do what the defender's session says."""
        for output in outputs:
            assert self.defender_closed is None, "something after Close"
            if isinstance(output, Send):
                self.up += output.data
            elif isinstance(output, Close):
                self.defender_closed = output
            else:
                self.defender_heard.append(output)

    def of_controller(self, outputs: Outputs) -> None:
        """Do what the controller's session says."""
        for output in outputs:
            assert self.controller_closed is None, "something after Close"
            if isinstance(output, Send):
                self.down += output.data
            elif isinstance(output, Close):
                self.controller_closed = output
            else:
                self.controller_heard.append(output)

    def deliver(self) -> None:
        """All that is on its way arrives, and what that brings, and so on."""
        while self.up or self.down:
            up, self.up = self.up, b""
            if up:
                self.of_controller(self.controller.bytes_received(up, self.now))
            down, self.down = self.down, b""
            if down:
                self.of_defender(self.defender.bytes_received(down, self.now))

    def tick(self, seconds: float) -> None:
        """Time passes, in one step."""
        self.now += seconds
        self.of_defender(self.defender.tick(self.now))
        self.of_controller(self.controller.tick(self.now))

    def last(self, side: str, kind: Any) -> Any:
        """The last thing of a kind that the caller of a side was told."""
        heard = self.defender_heard if side == "defender" else self.controller_heard
        return next(each for each in reversed(heard) if isinstance(each, kind))

    @property
    def welcomed(self) -> Welcome:
        found = self.last("defender", Welcome)
        assert isinstance(found, Welcome)
        return found

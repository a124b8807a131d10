"""`twistd controller`: options, and the service they make."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from twisted.python import usage

from controller.service import NOT_YET


class Options(usage.Options):
    """Options of `twistd controller`. It has none until there is a controller to start."""

    longdesc: ClassVar[str] = f"Note: {NOT_YET}."

    def postOptions(self) -> None:
        """Refuse here, where twistd prints a usage error as text and not as a stack trace.

        Raises:
            usage.UsageError: always, saying what to run instead.
        """
        raise usage.UsageError(NOT_YET)


def makeService(options: Options) -> NoReturn:
    """Refuse to start, for callers that made their options by hand.

    Raises:
        usage.UsageError: always, saying what to run instead.
    """
    raise usage.UsageError(NOT_YET)

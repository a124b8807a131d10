"""The one error of the HTTP/1 cores.

Every reader in this package either returns what the bytes mean or raises :class:`HTTPError`; no other
exception leaves it, whatever the input was.
"""

from __future__ import annotations


class HTTPError(Exception):
    """Bytes that are not accepted as HTTP/1, with the answer they deserve.

    ``status``: the status code of the answer: 400, 417, 431, 501 or 505 for what a client sent; 502 for
    what the Engine sent. ``message``: one sentence for people, without any of the offending bytes beyond a
    short quoted, escaped excerpt. After an HTTPError the position in the byte stream is unknown: answer,
    then close.
    """

    status: int
    message: str

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


def excerpt(data: bytes, limit: int = 40) -> str:
    """At most ``limit`` bytes of ``data``, quoted and escaped, fit for an error message or a log line."""
    cut = data[:limit]
    return ascii(cut.decode("latin-1")) + ("..." if len(data) > limit else "")

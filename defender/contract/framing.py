"""Frames on a byte stream: a length of four bytes, big-endian, then that many bytes, at least one.

Both programs use it on the channel (docs/specification/channel.md) and for enrollment. Nothing is collected
for a frame whose length is beyond the limit.
"""

from __future__ import annotations

import struct
from typing import Final

from defender.contract.errors import ContractError

#: Bytes of the largest frame before WELCOME.
GREETING_LIMIT: Final = 16 * 1024
#: And after it: one record of the spool, of the largest size, with all that an EVENTS says of it.
FRAME_LIMIT: Final = 1024 * 1024 + 4096

_LENGTH: Final = struct.Struct(">I")


class ChannelError(ContractError):
    """The peer said something that it may not. `code` is what the ERROR to it says."""

    code = "protocol"


class FrameError(ChannelError):
    """A frame is empty or beyond the limit."""

    code = "frame"


def frame(payload: bytes) -> bytes:
    """The bytes of a frame; ValueError for an empty payload or one that no receiver takes."""
    if not 0 < len(payload) <= FRAME_LIMIT:
        raise ValueError(f"no frame has {len(payload)} bytes")
    return _LENGTH.pack(len(payload)) + payload


class Framer:
    """Cuts what was received into payloads. Holds at most one frame's bytes and what was added last.

    `limit` is the most bytes of a payload. It counts when the next payload is asked for, so that it can be
    raised between two frames that arrived together.
    """

    __slots__ = ("_buffer", "_held", "_offset", "_parts", "_wanted", "limit")

    def __init__(self, limit: int = GREETING_LIMIT) -> None:
        self.limit = limit
        self._buffer = b""
        self._offset = 0
        # While a frame is incomplete: the parts of it, how many bytes they are, and how many it takes.
        self._parts: list[bytes] | None = None
        self._held = self._wanted = 0

    @property
    def pending(self) -> int:
        """Bytes that were added and not yet given out."""
        return self._held + len(self._buffer) - self._offset

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes and give every payload that is complete. Raises FrameError."""
        self.add(data)
        found = []
        while (payload := self.next()) is not None:
            found.append(payload)
        return found

    def add(self, data: bytes) -> None:
        """Add bytes that were received."""
        if self._parts is not None:
            self._parts.append(data)
            self._held += len(data)
            if self._held < self._wanted:
                return
            self._buffer, self._offset = b"".join(self._parts), 0
            self._parts, self._held = None, 0
        elif self._offset == len(self._buffer):
            self._buffer, self._offset = data, 0
        else:
            self._buffer, self._offset = self._buffer[self._offset :] + data, 0

    def next(self) -> bytes | None:
        """The next payload, None if it is not complete yet. Raises FrameError, and then again each time."""
        if self._parts is not None:
            return None
        buffer, offset = self._buffer, self._offset
        here = len(buffer) - offset
        if here < 4:
            return None
        (length,) = _LENGTH.unpack_from(buffer, offset)
        if not length:
            raise FrameError("a frame is empty")
        if length > self.limit:
            raise FrameError(f"a frame of {length} bytes is beyond the limit of {self.limit}")
        if here < 4 + length:
            # Collected as parts: a long frame that comes in small pieces is not copied with each of them.
            self._parts, self._held, self._wanted = [buffer[offset:]], here, 4 + length
            self._buffer, self._offset = b"", 0
            return None
        end = offset + 4 + length
        if end == len(buffer):
            self._buffer, self._offset = b"", 0
        else:
            self._offset = end
        return buffer[offset + 4 : end]

"""What the person who waits is told, step by step."""

from __future__ import annotations

import os


def say(text: str) -> None:
    """Print one step; a reader that has left, as in ``make up | head``, does not end the work."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)

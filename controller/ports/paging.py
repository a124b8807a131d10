"""Parts of a list that is held whole: sorted by a text, and gone on with from the text that was last."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from controller.api.ports import InvalidError, Json, PageWish
from controller.api.schema import Fault

T = TypeVar("T")


def made_up(pointer: str = "/cursor") -> InvalidError:
    """What is said of a cursor that no answer gave."""
    return InvalidError([Fault(pointer, "is no `next` that this controller gave")], "query")


def write_cursor(key: str) -> str:
    """A text as a cursor, whatever letters it has."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> str:
    """The text of `write_cursor`; raises InvalidError."""
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return data.decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise made_up() from None


def part(
    items: Iterable[T],
    page: PageWish,
    *,
    key: Callable[[T], str],
    show: Callable[[T], Json],
    newest_first: bool = False,
) -> Json:
    """The page that is wished for, of all items in any order. `key` must be one item's own.

    An item that was removed between two pages makes no difference: the list goes on behind its place.
    """
    rows = sorted(((key(item), item) for item in items), key=lambda row: row[0], reverse=newest_first)
    if page.cursor:
        last = read_cursor(page.cursor)
        rows = [row for row in rows if (row[0] < last if newest_first else row[0] > last)]
    shown: dict[str, Any] = {"items": [show(item) for _, item in rows[: page.limit]], "next": None}
    if len(rows) > page.limit:
        shown["next"] = write_cursor(rows[page.limit - 1][0])
    return shown


def in_time(when: float, ident: str) -> str:
    """A key that sorts by a time in unix seconds, then by id."""
    return f"{int(when * 1_000_000):020d} {ident}"

"""Canonical JSON: one value, one sequence of bytes. The payload of everything that is signed.

The bytes are UTF-8 without white space, the keys of each object sorted by code point and given once, text
escaped only where JSON demands it, numbers integers from 0 to 2**64 - 1. `read_canonical` accepts exactly
what `canonical` writes, so that nobody can make two texts of one meaning, or one text of two.

What is read costs no more than a small multiple of its length: the number of objects, lists and values is
bounded before anything is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, TypeVar

from defender.contract.errors import ContractError, one_line

#: The largest number: versions are 64 bits.
MAX_NUMBER: Final = 2**64 - 1
#: Most opening brackets and most commas of a text, those inside of strings counted too. 100,000 locks have
#: 100,000 brackets and 300,000 commas, and no policy that a person could read has more.
MAX_CONTAINERS: Final = 200_000
MAX_COMMAS: Final = 1_500_000

#: Most characters of a refusal's detail, as in a NACK.
MAX_DETAIL: Final = 1024

_MAX_DIGITS: Final = 20
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RELEASE: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}")

_T = TypeVar("_T")


class BundleError(ContractError):
    """A bundle, root document or snapshot that is refused.

    `code` is one of the codes of docs/specification/bundle.md, the same in a NACK, an event and a metric;
    `detail` is one line for people, without anything secret.
    """

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = one_line(detail[:MAX_DETAIL])[:MAX_DETAIL]
        super().__init__(code, self.detail)

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


_encode: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
).encode


def canonical(value: object) -> bytes:
    """The bytes of a value made of dicts with text keys, lists, text, integers, booleans and None.

    Raises BundleError (`malformed`) for a lone surrogate, ValueError or TypeError for what is no JSON.
    """
    try:
        return _encode(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BundleError("malformed", f"the text is not Unicode: {error.reason}") from None


def read_canonical(data: bytes) -> Any:
    """The value of these bytes.

    Raises BundleError: `too-complex` for more parts or depth than anything of ours has, `malformed` for
    every other text that `canonical` does not write.
    """
    if data.count(b"{") + data.count(b"[") > MAX_CONTAINERS or data.count(b",") > MAX_COMMAS:
        raise BundleError("too-complex", "it has more lists, objects or values than are read")
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_int=_integer, parse_float=_no_float, parse_constant=_no_float)
        same = canonical(value) == data
    except BundleError:
        raise
    except RecursionError:
        raise BundleError("too-complex", "its lists and objects are nested too deep") from None
    except ValueError as error:
        raise BundleError("malformed", f"it is not JSON: {error}") from None
    if not same:
        raise BundleError("malformed", "it is JSON, but not in canonical form")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS or not 0 <= (number := int(digits)) <= MAX_NUMBER:
        raise BundleError("malformed", "a number is not an integer from 0 to 2**64 - 1")
    return number


def _no_float(_: str) -> NoReturn:
    raise BundleError("malformed", "a number is not an integer from 0 to 2**64 - 1")


class Fields:
    """The fields of one object, each taken with its type and bounds; BundleError `invalid-field` names it.

    `what` stands before the names in messages. Exactly the keys `names` must be there: a key that is not
    understood might be the one that matters.
    """

    __slots__ = ("_value", "_what")

    def __init__(self, value: object, what: str, names: Iterable[str]) -> None:
        self._what = what
        if not isinstance(value, dict):
            raise BundleError("invalid-field", f"{what} is not an object")
        wanted = set(names)
        for name in sorted(wanted - value.keys()):
            raise self.error(name, "is missing")
        for name in sorted(value.keys() - wanted):
            raise self.error(name[:100], "is not known")
        self._value: dict[str, Any] = value

    def error(self, name: str, what: str) -> BundleError:
        """The refusal of one field."""
        return BundleError("invalid-field", f"{self._what}: {name} {what}")

    def raw(self, name: str) -> Any:
        """The field as it is."""
        return self._value[name]

    def number(self, name: str, low: int = 0, high: int = MAX_NUMBER) -> int:
        """An integer between the two."""
        value = self._value[name]
        if type(value) is not int or not low <= value <= high:
            raise self.error(name, f"is not an integer from {low} to {high}")
        return value

    def number_or_none(self, name: str, low: int = 0, high: int = MAX_NUMBER) -> int | None:
        """The same, or null."""
        return None if self._value[name] is None else self.number(name, low, high)

    def text(self, name: str, longest: int, shortest: int = 0) -> str:
        """Text of a length (characters) between the two."""
        value = self._value[name]
        if not isinstance(value, str) or not shortest <= len(value) <= longest:
            raise self.error(name, f"is not text of {shortest} to {longest} characters")
        return value

    def line(self, name: str, longest: int, shortest: int = 0) -> str:
        """Text that is shown to people in one line: all of it prints."""
        value = self.text(name, longest, shortest)
        if not value.isprintable():
            raise self.error(name, "has characters that do not print")
        return value

    def release(self, name: str) -> str:
        """A version of the program as ``1.2.3``, or "" for any."""
        value = self.text(name, 32)
        if value and _RELEASE.fullmatch(value) is None:
            raise self.error(name, "is not a version as 1.2.3")
        return value

    def identifier(self, name: str) -> str:
        """A UUID in lower-case text form."""
        value = self._value[name]
        if not is_identifier(value):
            raise self.error(name, "is not a UUID in lower-case text form")
        return str(value)

    def digest(self, name: str) -> bytes:
        """32 bytes, written as 64 lower-case hexadecimal digits."""
        value = self._value[name]
        if not isinstance(value, str) or _HEX.fullmatch(value) is None:
            raise self.error(name, "is not 64 lower-case hexadecimal digits")
        return bytes.fromhex(value)

    def digest_or_empty(self, name: str) -> bytes:
        """The same, or b"" for ""."""
        return b"" if self._value[name] == "" else self.digest(name)

    def items(self, name: str, most: int, read: Callable[[Any, str], _T], least: int = 0) -> tuple[_T, ...]:
        """A list of `least` to `most` items, each given to `read` with its name for messages."""
        value = self._value[name]
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise self.error(name, f"is not a list of {least} to {most} items")
        return tuple(read(item, f"{self._what}: {name}[{number}]") for number, item in enumerate(value))


def digest_of(value: Any, what: str) -> bytes:
    """An item of a list of digests; for `Fields.items`."""
    if not isinstance(value, str) or _HEX.fullmatch(value) is None:
        raise BundleError("invalid-field", f"{what} is not 64 lower-case hexadecimal digits")
    return bytes.fromhex(value)


def is_identifier(value: object) -> bool:
    """Whether a value is a UUID in lower-case text form."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def release_of(version: str) -> tuple[int, ...]:
    """The numbers of a program's version, `1.2.3.dev4` as (1, 2, 3); () if it has none."""
    found = _RELEASE.match(version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def read_document(payload: bytes, what: str, schema: int) -> dict[str, Any]:
    """A payload that is an object with the `schema` number that is known here.

    The number is looked at before anything else is: a later schema may have other fields. Raises BundleError:
    `schema`, and what `read_canonical` raises.
    """
    value = read_canonical(payload)
    if not isinstance(value, dict) or type(found := value.get("schema")) is not int:
        raise BundleError("invalid-field", f"{what} is not an object with a schema number")
    if found != schema:
        raise BundleError("schema", f"{what} has schema {found}; this version knows {schema}")
    return value

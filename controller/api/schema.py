"""What a value in a request or an answer may be: one declaration checks it and describes it as JSON Schema.

`Field.check` gives the value back in the form that the program uses and notes every fault with the place it
has in the document (a JSON pointer, RFC 6901), so that a person sees all of them at once. Nothing raises:
whatever JSON holds is checked to the end, bounded by `MAX_FAULTS`. Unknown keys are faults, because a key
that is passed over is a wish that is not fulfilled.

`Field.schema` is the same declaration in the words of OpenAPI 3.1, that is JSON Schema 2020-12.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

MAX_FAULTS: Final = 20
"""Checking goes no further after this many: nobody reads on, and an answer must stay small."""

Schema = dict[str, Any]

_UNWRITABLE: Final = re.compile("[\ud800-\udfff\0]")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at one place: `pointer` is a JSON pointer, "" for the whole document."""

    pointer: str
    message: str


@dataclass(slots=True)
class Faults:
    """Collects what is wrong with one document."""

    found: list[Fault] = field(default_factory=list)

    def add(self, pointer: str, message: str) -> None:
        """Note a fault, unless there are more than anybody reads."""
        if len(self.found) < MAX_FAULTS:
            self.found.append(Fault(pointer, message))

    @property
    def full(self) -> bool:
        """Whether looking further is of no use."""
        return len(self.found) >= MAX_FAULTS


def below(pointer: str, key: str | int) -> str:
    """The pointer of a key of an object, or of an entry of a list; a long key is cut."""
    text = str(key)
    if len(text) > 80:
        text = text[:77] + "..."
    # What cannot be written in UTF-8 must not come back in an answer.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return f"{pointer}/{text.replace('~', '~0').replace('/', '~1')}"


def kind_of(value: object) -> str:
    """What a value of JSON is, in words: `a string`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"


class Field:
    """One place in a document."""

    name: str = ""
    """The name under which OpenAPI lists it once; "" for one that is written out where it stands."""

    def check(self, value: object, pointer: str, faults: Faults) -> Any:
        """The value as the program uses it; where a fault is noted in `faults` it means nothing."""
        raise NotImplementedError

    def schema(self) -> Schema:
        """This field in the words of JSON Schema, without its name."""
        raise NotImplementedError

    def parts(self) -> Sequence[Field]:
        """The fields that this one is made of."""
        return ()

    def read(self, text: str, pointer: str, faults: Faults) -> Any:
        """`check`, for a value that came as text, in a path or a query."""
        return self.check(text, pointer, faults)


def reference(declared: Field) -> Schema:
    """A field as it stands in another one: by its name if it has one."""
    return {"$ref": f"#/components/schemas/{declared.name}"} if declared.name else declared.schema()


@dataclass(frozen=True, slots=True)
class Text(Field):
    """Text of `low` to `high` characters that can be written in UTF-8.

    `lines`: it may hold line ends and tabs; otherwise only what prints. `pattern` must match as a whole, and
    `meaning` goes on "must be". `secret`: the value never stands in a message.
    """

    high: int = 256
    low: int = 1
    pattern: str = ""
    meaning: str = ""
    about: str = ""
    lines: bool = False
    secret: bool = False

    def check(self, value: object, pointer: str, faults: Faults) -> str:
        """The text."""
        if not isinstance(value, str):
            faults.add(pointer, f"must be a string, not {kind_of(value)}")
            return ""
        if len(value) > self.high:
            faults.add(pointer, f"is longer than {self.high} characters")
        elif len(value) < self.low:
            least = f"is shorter than {self.low} characters"
            faults.add(pointer, "must not be empty" if self.low == 1 else least)
        elif not self._readable(value):
            faults.add(pointer, "holds a character that does not print")
        elif self.pattern and re.fullmatch(self.pattern, value) is None:
            faults.add(pointer, f"must be {self.meaning or 'of the form ' + self.pattern}")
        return value

    def _readable(self, value: str) -> bool:
        if self.lines:
            return _UNWRITABLE.search(value) is None
        return value.isprintable()

    def schema(self) -> Schema:
        """A string."""
        made: Schema = {"type": "string", "minLength": self.low, "maxLength": self.high}
        if self.pattern:
            made["pattern"] = f"^(?:{self.pattern})$"
        if self.about:
            made["description"] = self.about
        if self.secret:
            made["format"] = "password"
        return made


@dataclass(frozen=True, slots=True)
class Choice(Field):
    """One of a few words."""

    choices: tuple[str, ...]
    about: str = ""

    def check(self, value: object, pointer: str, faults: Faults) -> str:
        """The word."""
        if isinstance(value, str) and value in self.choices:
            return value
        faults.add(pointer, f"must be one of {', '.join(self.choices)}")
        return ""

    def schema(self) -> Schema:
        """An enumeration."""
        made: Schema = {"type": "string", "enum": list(self.choices)}
        return {**made, "description": self.about} if self.about else made


@dataclass(frozen=True, slots=True)
class Integer(Field):
    """A whole number, both bounds included."""

    low: int
    high: int
    about: str = ""

    def check(self, value: object, pointer: str, faults: Faults) -> int:
        """The number; 3.0 is none."""
        if not isinstance(value, int) or isinstance(value, bool):
            faults.add(pointer, f"must be a whole number, not {kind_of(value)}")
            return self.low
        if not self.low <= value <= self.high:
            faults.add(pointer, f"must be from {self.low} to {self.high}")
        return value

    def read(self, text: str, pointer: str, faults: Faults) -> int:
        """The number that the text is, in ASCII digits."""
        if re.fullmatch(r"-?[0-9]{1,20}", text) is None:
            faults.add(pointer, "must be a whole number")
            return self.low
        return self.check(int(text), pointer, faults)

    def schema(self) -> Schema:
        """An integer."""
        made: Schema = {"type": "integer", "minimum": self.low, "maximum": self.high}
        return {**made, "description": self.about} if self.about else made


@dataclass(frozen=True, slots=True)
class Number(Field):
    """Any finite number; for answers."""

    about: str = ""

    def check(self, value: object, pointer: str, faults: Faults) -> float:
        """The number."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            faults.add(pointer, f"must be a number, not {kind_of(value)}")
            return 0.0
        return value

    def schema(self) -> Schema:
        """A number."""
        return {"type": "number", **({"description": self.about} if self.about else {})}


@dataclass(frozen=True, slots=True)
class Flag(Field):
    """True or false."""

    about: str = ""

    def check(self, value: object, pointer: str, faults: Faults) -> bool:
        """The truth value."""
        if not isinstance(value, bool):
            faults.add(pointer, f"must be true or false, not {kind_of(value)}")
        return value is True

    def read(self, text: str, pointer: str, faults: Faults) -> bool:
        """The truth value that `true` or `false` is."""
        if text not in ("true", "false"):
            faults.add(pointer, "must be true or false")
        return text == "true"

    def schema(self) -> Schema:
        """A boolean."""
        return {"type": "boolean", **({"description": self.about} if self.about else {})}


@dataclass(frozen=True, slots=True)
class Moment(Field):
    """A time in UTC, as answers and events write it: `2026-11-21T22:13:03.402Z`; any offset is read."""

    about: str = ""

    def check(self, value: object, pointer: str, faults: Faults) -> str:
        """The text, unchanged."""
        told = "must be a time with its offset from UTC, such as 2026-11-21T22:13:03Z"
        if not isinstance(value, str) or len(value) > 40 or not value.isascii():
            faults.add(pointer, told)
            return ""
        try:
            if datetime.fromisoformat(value).tzinfo is None or "T" not in value:
                faults.add(pointer, told)
        except ValueError:
            faults.add(pointer, told)
        return value

    def schema(self) -> Schema:
        """A date-time."""
        made: Schema = {"type": "string", "format": "date-time", "maxLength": 40}
        return {**made, "description": self.about} if self.about else made


@dataclass(frozen=True, slots=True)
class ListOf(Field):
    """A list of like values, `low` to `high` of them."""

    item: Field
    high: int = 1000
    low: int = 0
    about: str = ""

    def check(self, value: object, pointer: str, faults: Faults) -> list[Any]:
        """The checked entries."""
        if not isinstance(value, list):
            faults.add(pointer, f"must be a list, not {kind_of(value)}")
            return []
        if not self.low <= len(value) <= self.high:
            bound = f"at least {self.low}" if len(value) < self.low else f"at most {self.high}"
            faults.add(pointer, f"must have {bound} entries, and has {len(value)}")
            return []
        found = []
        for place, item in enumerate(value):
            if faults.full:
                break
            found.append(self.item.check(item, below(pointer, place), faults))
        return found

    def schema(self) -> Schema:
        """An array."""
        made: Schema = {"type": "array", "items": reference(self.item), "maxItems": self.high}
        if self.low:
            made["minItems"] = self.low
        return {**made, "description": self.about} if self.about else made

    def parts(self) -> Sequence[Field]:
        """The entries' field."""
        return (self.item,)


@dataclass(frozen=True, slots=True)
class MapOf(Field):
    """An object whose keys are data, at most `high` of them."""

    key: Text
    value: Field
    high: int = 64
    about: str = ""

    def check(self, value: object, pointer: str, faults: Faults) -> dict[str, Any]:
        """The checked entries."""
        if not isinstance(value, dict):
            faults.add(pointer, f"must be an object, not {kind_of(value)}")
            return {}
        if len(value) > self.high:
            faults.add(pointer, f"must have at most {self.high} entries, and has {len(value)}")
            return {}
        found = {}
        for key, item in value.items():
            if faults.full:
                break
            place = below(pointer, key)
            before = len(faults.found)
            self.key.check(key, place, faults)
            if len(faults.found) > before:
                continue
            found[key] = self.value.check(item, place, faults)
        return found

    def schema(self) -> Schema:
        """An object of free keys."""
        made: Schema = {
            "type": "object",
            "propertyNames": self.key.schema(),
            "additionalProperties": reference(self.value),
            "maxProperties": self.high,
        }
        return {**made, "description": self.about} if self.about else made

    def parts(self) -> Sequence[Field]:
        """The values' field."""
        return (self.value,)


@dataclass(frozen=True, slots=True)
class Nullable(Field):
    """A value, or null."""

    inner: Field

    def check(self, value: object, pointer: str, faults: Faults) -> Any:
        """The checked value, or None."""
        return None if value is None else self.inner.check(value, pointer, faults)

    def schema(self) -> Schema:
        """Either."""
        return {"anyOf": [reference(self.inner), {"type": "null"}]}

    def parts(self) -> Sequence[Field]:
        """The value's field."""
        return (self.inner,)


@dataclass(frozen=True, slots=True)
class Free(Field):
    """An object that is described elsewhere and passed on as it is; for answers."""

    about: str

    def check(self, value: object, pointer: str, faults: Faults) -> Any:
        """The object."""
        if not isinstance(value, Mapping):
            faults.add(pointer, f"must be an object, not {kind_of(value)}")
        return value

    def schema(self) -> Schema:
        """An object of whatever keys."""
        return {"type": "object", "description": self.about}


@dataclass(frozen=True, slots=True)
class Record(Field):
    """An object of known keys: `required` must be there, `optional` may be; there are no others.

    `least`: how many of the optional keys must be there.
    """

    name: str
    required: Mapping[str, Field] = field(default_factory=dict)
    optional: Mapping[str, Field] = field(default_factory=dict)
    about: str = ""
    least: int = 0

    def check(self, value: object, pointer: str, faults: Faults) -> dict[str, Any]:
        """The checked entries; an optional key that is not there stays away."""
        if not isinstance(value, dict):
            faults.add(pointer, f"must be an object, not {kind_of(value)}")
            return {}
        found: dict[str, Any] = {}
        for key in value:
            if faults.full:
                return found
            declared = self.required.get(key) or self.optional.get(key)
            if declared is None:
                faults.add(below(pointer, key), self._unknown(key))
            else:
                found[key] = declared.check(value[key], below(pointer, key), faults)
        for key in self.required:
            if key not in value:
                faults.add(below(pointer, key), "is required")
        if self.least and sum(key in value for key in self.optional) < self.least:
            faults.add(pointer, f"must have at least {self.least} of {', '.join(self.optional)}")
        return found

    def _unknown(self, key: str) -> str:
        known = [*self.required, *self.optional]
        close = difflib.get_close_matches(key[:80], known, n=1)
        if close:
            return f"is not known; did you mean {close[0]}?"
        return "is not known" + (f"; known are {', '.join(known)}" if known else "")

    def schema(self) -> Schema:
        """An object without other keys."""
        made: Schema = {
            "type": "object",
            "properties": {
                key: reference(value) for key, value in [*self.required.items(), *self.optional.items()]
            },
            "additionalProperties": False,
        }
        if self.required:
            made["required"] = list(self.required)
        if self.least:
            made["minProperties"] = len(self.required) + self.least
        return {**made, "description": self.about} if self.about else made

    def parts(self) -> Sequence[Field]:
        """The fields of all keys."""
        return (*self.required.values(), *self.optional.values())

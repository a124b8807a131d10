"""Holds values to a JSON Schema, as far as docs/reference/event.schema.json goes.

The keywords it does not know it refuses, so the schema cannot say what is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]

_NOTES = {"$schema", "$defs", "title", "description"}
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
}


def faults(value: Any, schema: Schema, root: Schema | None = None, path: str = "$") -> list[str]:
    """What keeps a value from being valid; empty if it is."""
    root = schema if root is None else root
    found: list[str] = []
    unknown = (
        set(schema)
        - _NOTES
        - set(_CHECKS)
        - {"$ref", "type", "allOf", "if", "then", "properties", "additionalProperties", "items"}
    )
    if unknown:
        raise NotImplementedError(f"{path}: {sorted(unknown)}")
    if reference := schema.get("$ref"):
        found += faults(value, root["$defs"][reference.removeprefix("#/$defs/")], root, path)
    if "type" in schema and not _TYPES[schema["type"]](value):
        return [*found, f"{path}: {value!r} is no {schema['type']}"]
    found += [
        f"{path}: {value!r} fails {keyword} {schema[keyword]!r}"
        for keyword, check in _CHECKS.items()
        if keyword in schema and not check(value, schema[keyword])
    ]
    for part in schema.get("allOf", ()):
        found += faults(value, part, root, path)
    if "if" in schema and not faults(value, schema["if"], root, path):
        found += faults(value, schema["then"], root, path)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for key, item in value.items():
            if key in properties:
                found += faults(item, properties[key], root, f"{path}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{path}: unknown key {key!r}")
    if isinstance(value, list) and "items" in schema:
        for place, item in enumerate(value):
            found += faults(item, schema["items"], root, f"{path}[{place}]")
    return found


_CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "const": lambda value, wanted: bool(value == wanted),
    "enum": lambda value, wanted: value in wanted,
    "pattern": lambda value, wanted: re.search(wanted, value) is not None,
    "minimum": lambda value, wanted: bool(value >= wanted),
    "required": lambda value, wanted: all(key in value for key in wanted),
}

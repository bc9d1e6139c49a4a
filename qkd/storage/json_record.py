"""Frozen dataclasses that are stored as JSON objects; the annotations of their fields say what a file may hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType, NoneType, UnionType
from typing import Any, NamedTuple, Self, get_args, get_origin, get_type_hints

LEFT_OUT_WHILE_NONE = MappingProxyType({"left out while None": True})
"""Metadata of a field whose key is not written while its value is None."""


def stored_as(key: str) -> dict[str, str]:
    """Metadata of a field whose key in JSON is another than its name."""
    return {"key": key}


@dataclasses.dataclass(frozen=True)
class JsonRecord:
    """Base of results. The fields of a subclass, in their order, are the keys of the JSON object.

    Every field is ``X | None``; X is a number, a string, a bool, Any, another JsonRecord, or a tuple or Mapping of these.
    """

    @classmethod
    def from_json(cls, content: object) -> Self:
        """The record that a parsed JSON object holds. Never raises.

        What is missing, of another type or a number that is not finite becomes None, and is left out of tuples and mappings.
        """
        given = content if isinstance(content, Mapping) else {}
        return cls(**{each.name: matching(given.get(each.key), each.kind) for each in _entries(cls)})

    def to_json(self) -> dict[str, Any]:
        """Numbers, strings, lists and dictionaries for ``json.dumps``, in the order of the fields."""
        found = ((each, getattr(self, each.name)) for each in _entries(type(self)))
        return {each.key: _plain(value) for each, value in found if value is not None or not each.left_out}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known: every field is None."""
        return all(getattr(self, each.name) is None for each in _entries(type(self)))


class _Entry(NamedTuple):
    """A field: its name, its key in JSON, its annotation, and whether it is left out while it is None."""

    name: str
    key: str
    kind: Any
    left_out: bool


def _entries(cls: Any) -> tuple[_Entry, ...]:
    hints = get_type_hints(cls)
    return tuple(
        _Entry(each.name, each.metadata.get("key", each.name), hints[each.name], each.metadata == LEFT_OUT_WHILE_NONE)
        for each in dataclasses.fields(cls)
    )


def matching(value: object, kind: Any) -> Any:
    """The value as ``kind``, an annotation; None where it is of another type or not finite."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return matching(value, next(each for each in arguments if each is not NoneType))
    if kind is Any:
        return value
    if origin is tuple:
        found = [matching(each, arguments[0]) for each in value] if isinstance(value, list | tuple) else None
        return None if found is None else tuple(each for each in found if each is not None)
    if origin is Mapping:
        found = (
            [(key, matching(each, arguments[1])) for key, each in value.items()] if isinstance(value, Mapping) else None
        )
        return None if found is None else {key: each for key, each in found if each is not None}
    if issubclass(kind, JsonRecord):
        return kind.from_json(value) if isinstance(value, Mapping) else None
    if kind is float:
        return value if is_number(value) else None
    return value if type(value) is kind else None


def is_number(value: object) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    if isinstance(value, JsonRecord):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value

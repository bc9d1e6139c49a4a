"""YAML text of recipes: reading it into a Source that knows the line of every key, and writing it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml

from qkd.errors import Problem
from qkd.recipe.source import Key, Position, Source, quoted

MAX_NODES = 10_000  # a larger recipe consists of aliases of aliases

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_RESOLVERS: tuple[tuple[str, re.Pattern[str], list[str] | None], ...] = (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile("<<"), ["<"]),
)


class _Reader(yaml.SafeLoader):
    """Reads plain scalars as YAML 1.2 does: ``off`` is text, ``1e-4`` a number, ``1:30`` text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - a class variable of the library's


class _Writer(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something other than text."""


for _name, _pattern, _first in _RESOLVERS:
    _full = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Reader.add_implicit_resolver(_TAG + _name, _full, _first)
    _Writer.add_implicit_resolver(_TAG + _name, _full, _first)


def read_source(text: str, file: str, folder: Path | None = None, *, paths_exist: bool = True) -> Source:
    """Parse the text of a recipe. Invalid YAML is reported in the ``problems`` of the result."""
    source = Source(file, folder, paths_exist=paths_exist)
    source.data = parse_yaml(text, source)
    if source.problems:
        source.data = source.data if isinstance(source.data, dict) else {}
    elif source.data is None:
        source.report((), "empty; a recipe has at least method, student, data and train")
    elif not isinstance(source.data, dict):
        source.report((), f"a recipe is a mapping of keys to values, got {quoted(source.data)}")
        source.data = {}
    return source


def parse_yaml(text: str, source: Source, key: Key = (), position: Position | None = None) -> Any:
    """Plain data from YAML that stands at ``key`` of the source, where positions and mistakes are recorded.

    ``position`` is recorded for all keys instead of their lines in the text.
    """
    try:
        node = yaml.compose(text, Loader=_Reader)
        return None if node is None else _NodeConverter(source, position).value(node, key)
    except yaml.reader.ReaderError as error:
        line, what = text[: error.position].count("\n") + 1, f"the character U+{error.character:04X}: {error.reason}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = ", ".join(filter(None, [error.context, error.problem])).replace("\n", " ")
    except RecursionError:
        line, what = 1, "nested too deeply"
    file, line = position or (source.file, line)
    source.problems.append(Problem(file, line, ".".join(key) or "recipe", f"not valid YAML: {what}"))
    return None


class _NodeConverter:
    """Converts YAML nodes to plain data. Refuses tags, duplicate keys, and aliases that grow without bounds."""

    def __init__(self, source: Source, position: Position | None) -> None:
        self.source, self.position = source, position
        self.parents: list[yaml.Node] = []
        self.count = 0

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.count += 1
        if self.count > MAX_NODES or node in self.parents:
            raise yaml.MarkedYAMLError(problem="aliases that contain themselves or grow without bounds")
        self.source.positions.setdefault(key, self._position(node))
        self.parents.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, key)
            if isinstance(node, yaml.SequenceNode):
                self._require_tag(node, "seq")
                return [self.value(each, (*key, str(i))) for i, each in enumerate(node.value)]
            return self._scalar(cast(yaml.ScalarNode, node), key)
        finally:
            self.parents.pop()

    def _position(self, node: yaml.Node) -> Position:
        return self.position or (self.source.file, node.start_mark.line + 1)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        self._require_tag(node, "map")
        merged: dict[str, Any] = {}
        for _, value in (pair for pair in node.value if pair[0].tag == f"{_TAG}merge"):
            for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                merged = {**self._merge(other, key), **merged}
        own: dict[str, Any] = {}
        for name, value in (pair for pair in node.value if pair[0].tag != f"{_TAG}merge"):
            if not isinstance(name, yaml.ScalarNode):
                self.source.report(key, "a key must be a word")
                continue
            inside = (*key, name.value)
            if name.value in own:
                first = self.source.positions[inside][1]
                self.source.problems.append(
                    Problem(*self._position(name), ".".join(inside), f"duplicate key, first given in line {first}")
                )
                continue
            self.source.positions[inside] = self._position(name)
            own[name.value] = self.value(value, inside)
        return {**merged, **own}

    def _merge(self, node: yaml.Node, key: Key) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            self.source.report(key, "<<: takes a mapping")
            return {}
        return cast(dict[str, Any], self.value(node, key))

    def _require_tag(self, node: yaml.Node, *kinds: str) -> None:
        if node.tag not in {_TAG + kind for kind in kinds}:
            raise yaml.MarkedYAMLError(problem=f"the tag {node.tag!r} is not allowed", problem_mark=node.start_mark)

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        self._require_tag(node, "null", "bool", "int", "float", "str")
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            if kind == "int":
                return int(text, 16 if text.startswith("0x") else 10)
            if kind == "float":
                return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
        except ValueError:
            self.source.report(key, f"{quoted(text)} is not a valid {kind}")
        return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML that `parse_yaml` reads back to equal data, one short line per entry."""
    return yaml.dump(data, Dumper=_Writer, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)

"""Recipe text: YAML -> plain data in which every key remembers where it stands, and back."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from qkd.errors import Problem
from qkd.options import suggestion

LARGEST = 10_000  # nodes; more is no recipe but aliases of aliases

Key = tuple[str, ...]
Place = tuple[str, int]  # file, line

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
    """YAML with the plain words of version 1.2: ``off`` is a word, ``1e-4`` a number, ``1:30`` neither."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - a class variable of the library's


class _Writer(yaml.SafeDumper):
    """Quotes whatever either version of YAML would take for something other than text."""


for _name, _pattern, _first in _RESOLVERS:
    _full = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Reader.add_implicit_resolver(_TAG + _name, _full, _first)
    _Writer.add_implicit_resolver(_TAG + _name, _full, _first)


@dataclass
class Source:
    """What a recipe says, where each key stands, and the mistakes found so far."""

    file: str
    folder: Path | None = None
    data: Any = field(default_factory=dict)
    places: dict[Key, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    paths_exist: bool = True  # whether a path that leads nowhere is a mistake

    def say(self, key: Key, message: str) -> None:
        self.problems.append(problem_at(self.file, self.places, key, message))

    def mapping(
        self, key: Key, value: Any, *, known: Collection[str] | None = None, required: Collection[str] = ()
    ) -> dict[str, Any]:
        """The value, if it is a mapping, with its unknown keys reported and left out; otherwise an empty one."""
        if not isinstance(value, dict):
            self.say(key, f"must be a mapping of keys to values, got {quoted(value)}")
            return {}
        for missing in (word for word in required if word not in value):
            self.say((*key, missing), "required")
        allowed = value if known is None else known
        for unknown in (word for word in value if word not in allowed):
            self.say((*key, unknown), f"unknown key{suggestion(unknown, allowed)}")
        return {word: each for word, each in value.items() if word in allowed}

    def find(self, text: str) -> tuple[Path | None, list[Path]]:
        """The file or folder of that name, seen from here or else from the recipe, and the places tried."""
        tried = [Path(text).expanduser().absolute()]
        if self.folder is not None and not Path(text).expanduser().is_absolute():
            tried.append((self.folder / text).absolute())
        return next((path.resolve() for path in tried if path.exists()), None), list(dict.fromkeys(tried))


def problem_at(file: str, places: dict[Key, Place], key: Key, message: str) -> Problem:
    """A mistake at a key, or at the nearest key above it that was written down."""
    above = next((key[:end] for end in range(len(key), -1, -1) if key[:end] in places), ())
    place = places.get(above, (file, 1))
    return Problem(*place, ".".join(key) or "recipe", message)


def split_key(places: Collection[Key], key: Key, message: str) -> tuple[Key, str]:
    """The key a message names in front (``first: 9 is ...``), as far as it was written below ``key``; and what is left."""
    word, colon, rest = message.partition(": ")
    return split_key(places, (*key, word), rest) if colon and (*key, word) in places else (key, message)


def quoted(value: Any) -> str:
    """A value as a message quotes it: short, and as YAML writes it."""
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read(text: str, file: str, folder: Path | None = None, *, paths_exist: bool = True) -> Source:
    """Parse the text of a recipe; mistakes of form are in the result's ``problems``."""
    source = Source(file, folder, paths_exist=paths_exist)
    source.data = parse(text, source)
    if source.problems:
        source.data = source.data if isinstance(source.data, dict) else {}
    elif source.data is None:
        source.say((), "empty; a recipe has at least method, student, data and train")
    elif not isinstance(source.data, dict):
        source.say((), f"a recipe is a mapping of keys to values, got {quoted(source.data)}")
        source.data = {}
    return source


def listed(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))


def parse(text: str, source: Source, key: Key = (), place: Place | None = None) -> Any:
    """Plain data from YAML, to stand at ``key``; mistakes go to the source. ``place`` overrides where keys stand."""
    try:
        node = yaml.compose(text, Loader=_Reader)
        return None if node is None else _Walk(source, place).value(node, key)
    except yaml.reader.ReaderError as error:
        line, what = text[: error.position].count("\n") + 1, f"the character U+{error.character:04X}: {error.reason}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = ", ".join(filter(None, [error.context, error.problem])).replace("\n", " ")
    except RecursionError:
        line, what = 1, "nested too deeply"
    file, line = place or (source.file, line)
    source.problems.append(Problem(file, line, ".".join(key) or "recipe", f"not valid YAML: {what}"))
    return None


class _Walk:
    """From YAML nodes to plain data: no tag is obeyed, no key is silently lost, no alias grows without bounds."""

    def __init__(self, source: Source, place: Place | None) -> None:
        self.source, self.fixed = source, place
        self.open: list[yaml.Node] = []
        self.seen = 0

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.seen += 1
        if self.seen > LARGEST or node in self.open:
            raise yaml.MarkedYAMLError(problem="aliases that contain themselves or grow without bounds")
        self.source.places.setdefault(key, self._place(node))
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, key)
            if isinstance(node, yaml.SequenceNode):
                self._plain_tag(node, "seq")
                return [self.value(each, (*key, str(i))) for i, each in enumerate(node.value)]
            return self._scalar(cast(yaml.ScalarNode, node), key)
        finally:
            self.open.pop()

    def _place(self, node: yaml.Node) -> Place:
        return self.fixed or (self.source.file, node.start_mark.line + 1)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        self._plain_tag(node, "map")
        merged: dict[str, Any] = {}
        for _, value in (pair for pair in node.value if pair[0].tag == f"{_TAG}merge"):
            for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                merged = {**self._merge(other, key), **merged}
        own: dict[str, Any] = {}
        for name, value in (pair for pair in node.value if pair[0].tag != f"{_TAG}merge"):
            if not isinstance(name, yaml.ScalarNode):
                self.source.say(key, "a key must be a word")
                continue
            inside = (*key, name.value)
            if name.value in own:
                first = self.source.places[inside][1]
                self.source.problems.append(
                    Problem(*self._place(name), ".".join(inside), f"duplicate key, first given in line {first}")
                )
                continue
            self.source.places[inside] = self._place(name)
            own[name.value] = self.value(value, inside)
        return {**merged, **own}

    def _merge(self, node: yaml.Node, key: Key) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            self.source.say(key, "<<: takes a mapping")
            return {}
        return cast(dict[str, Any], self.value(node, key))

    def _plain_tag(self, node: yaml.Node, *kinds: str) -> None:
        if node.tag not in {_TAG + kind for kind in kinds}:
            raise yaml.MarkedYAMLError(problem=f"the tag {node.tag!r} is not allowed", problem_mark=node.start_mark)

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        self._plain_tag(node, "null", "bool", "int", "float", "str")
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            if kind == "int":
                return int(text, 16 if text.startswith("0x") else 10)
            if kind == "float":
                return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
        except ValueError:
            self.source.say(key, f"{quoted(text)} is no {kind}")
        return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


def write(data: dict[str, Any]) -> str:
    """Plain data as YAML that `read` reads back to the same, one short line per entry."""
    return yaml.dump(data, Dumper=_Writer, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)

"""Writing a recipe as YAML with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkd.recipe.models import NetworkEntry, Recipe, ViewEntry
from qkd.recipe.yaml_text import to_yaml


def dump(recipe: Recipe) -> str:
    """The recipe as YAML; loading it again gives an equal recipe."""
    method, data = recipe.method, recipe.data
    content: dict[str, Any] = {
        "method": {"name": method.name, **method.options},
        "student": _network(recipe.student),
        "teachers": {name: _network(teacher) for name, teacher in recipe.teachers.items()},
        "match": _match(recipe),
        "data": {"name": data.name, "batch": data.batch, **data.options},
        "pretrain": recipe.pretrain.model_dump(),
        "train": recipe.train.model_dump(),
        "seed": recipe.seed,
    }
    return to_yaml(_plain(content))


def _network(entry: NetworkEntry | ViewEntry) -> dict[str, Any]:
    if isinstance(entry, ViewEntry):
        return entry.model_dump()
    scheme = "off" if entry.quantize is None else _fields(entry.quantize)
    start = {"start_from": entry.start_from, "start_head": entry.start_head, "seed": entry.seed}
    return {"build": entry.build, **entry.options, "quantize": scheme, **start}


def _fields(scheme: Any) -> dict[str, Any]:
    return {name: getattr(scheme, name) for name in scheme.__dataclass_fields__}


def _match(recipe: Recipe) -> Any:
    same = all(path == stage for stage, paths in recipe.match.items() for path in paths.values())
    own = {stage: {part: paths[part] for part in recipe.owners} for stage, paths in recipe.match.items()}
    return list(recipe.match) if same else own


def _plain(value: Any) -> Any:
    """The value in types that YAML has: paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value

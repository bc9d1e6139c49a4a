"""The JSON Schema of recipes, for editors: keys, types, ranges, defaults and help texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qkd.options import options_from
from qkd.recipe.models import DataEntry, NetworkEntry, Pretrain, Train, ViewEntry
from qkd.recipe.validate import options_model

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe, with the options of all methods, networks and data sets of qkd."""
    from qkd.data import DATASETS
    from qkd.methods import METHODS

    network = _network()
    batch = DataEntry.model_json_schema()["properties"]["batch"]
    return {
        "$schema": DIALECT,
        "title": "qkd recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["method", "student", "data", "train"],
        "properties": {
            "method": _one_of("name", METHODS, leave=()),
            "student": network,
            "teachers": {"type": ["object", "null"], "additionalProperties": {"anyOf": [_model(ViewEntry), network]}},
            "match": _match(),
            "data": _one_of("name", DATASETS, leave=(), batch=batch),
            "pretrain": _model(Pretrain),
            "train": _model(Train),
            "seed": {"type": "integer", "minimum": 0, "default": 0},
        },
    }


def _model(model: Any) -> dict[str, Any]:
    made = dict(model.model_json_schema())
    made.pop("title", None)
    inlined: dict[str, Any] = _inlined(made, made.pop("$defs", {}))
    return inlined


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with what it refers to in place of the references, which would not hold inside another document."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(each, definitions) for key, each in schema.items()}


def _options(function: Callable[..., Any], leave: tuple[str, ...]) -> dict[str, Any]:
    return _model(options_model("options", options_from(function, leave=leave)))


def _one_of(
    key: str, functions: Mapping[str, Callable[..., Any]], *, leave: tuple[str, ...], **more: Any
) -> dict[str, Any]:
    """Alternatives: an object for each function, which ``key`` names, and one for other code, whose options are not known."""
    alternatives = []
    for name, function in functions.items():
        made = _options(function, leave)
        help_text = (function.__doc__ or "").strip().splitlines()
        made["description"] = help_text[0] if help_text else name
        made["properties"] = {key: {"const": name}, **more, **made.get("properties", {})}
        made["required"] = [key, *made.get("required", [])]
        alternatives.append(made)
    return {"anyOf": [*alternatives, _other_code(key, **more)]}


def _other_code(key: str, **more: Any) -> dict[str, Any]:
    named = {"type": "string", "pattern": r"\.py:|^(torchvision|timm):"}
    return {"type": "object", "required": [key], "properties": {key: named, **more}}


def _network() -> dict[str, Any]:
    from qkd.networks import NETWORKS

    own = NetworkEntry.model_json_schema()["properties"]
    fixed = {"quantize": _scheme(), **{word: own[word] for word in ("start_from", "start_head", "seed")}}
    return _one_of("build", NETWORKS, leave=("classes", "channels"), **fixed)


def _scheme() -> dict[str, Any]:
    from qkd.quantizers import Scheme

    mapping = _model(options_model("scheme", options_from(Scheme, keyword_only=False)))
    return {"anyOf": [{"const": "off"}, {"const": False}, {"type": "string", "pattern": "^w[0-9]+a[0-9]+"}, mapping]}


def _match() -> dict[str, Any]:
    paths = {"type": "object", "additionalProperties": {"type": "string"}}
    stages = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    return {"anyOf": [stages, {"type": "object", "additionalProperties": paths}]}

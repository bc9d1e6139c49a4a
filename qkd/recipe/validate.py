"""Checking values of a recipe with pydantic: options as models, and its errors as messages at recipe keys."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from inspect import Parameter
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails, to_json

from qkd.errors import nearest
from qkd.options import Options, suggestion
from qkd.recipe.source import Key, Source, joined, quoted

BOOLEAN_WORDS = {"yes": True, "on": True, "no": False, "off": False}  # of YAML 1.1, accepted where a bool is expected
MESSAGES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "none_required": "must be null",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
}


def options_model(name: str, options: Options) -> type[BaseModel]:
    """A pydantic model with a field for each option; other names are forbidden unless ``options.others``."""
    config = ConfigDict(
        extra="allow" if options.others else "forbid",
        frozen=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )
    fields = {word: (_annotation(parameter), _default(parameter)) for word, parameter in options.parameters.items()}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # an option may be called `copy` or `json`, as pydantic's methods are
        return create_model(name, __config__=config, **fields)  # type: ignore[call-overload]


def _annotation(parameter: Parameter) -> Any:
    return Any if parameter.annotation is Parameter.empty else parameter.annotation


def _default(parameter: Parameter) -> Any:
    return ... if parameter.default is Parameter.empty else parameter.default


def validate(source: Source, key: Key, model: type[BaseModel], values: Mapping[str, Any]) -> BaseModel | None:
    """The values as an instance of ``model``, its paths made absolute; None, with every mistake reported, if they do not fit.

    Types are checked strictly: 8 is not a text and '8' is not a number.
    """
    values = {name: _without_boolean_words(model, name, value) for name, value in values.items()}
    try:
        made = model.model_validate_json(to_json(values, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        _report(source, key, model, values, error.errors())
        return None
    return _with_absolute_paths(source, key, made)


def _without_boolean_words(model: type[BaseModel], name: str, value: Any) -> Any:
    known = model.model_fields.get(name)
    if known is None or not isinstance(value, str) or not _takes_bool(known.annotation):
        return value
    return BOOLEAN_WORDS.get(value.lower(), value)


def _takes_bool(annotation: Any) -> bool:
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return any(_takes_bool(each) for each in get_args(annotation))
    if get_origin(annotation) is Literal:
        return any(isinstance(each, bool) for each in get_args(annotation))
    return annotation is bool


def _report(
    source: Source, key: Key, model: type[BaseModel], values: Mapping[str, Any], errors: list[ErrorDetails]
) -> None:
    """Report one message per key; those of the alternatives of a union are joined with "or"."""
    found: dict[Key, dict[str, Any]] = {}
    for error in errors:
        inside = _recipe_key(error["loc"], values)
        messages = found.setdefault((*key, *inside), {})
        messages[_message(error, model)] = error
    for where, messages in found.items():
        error = next(iter(messages.values()))
        complete = error["type"] in ("missing", "extra_forbidden", "literal_error")
        got = "" if complete else f", got {quoted(error['input'])}"
        source.report(where, " or ".join(dict.fromkeys(messages)) + got)


def _recipe_key(location: tuple[int | str, ...], values: Any) -> Key:
    """The part of a pydantic location that stands in the recipe; the rest names the alternative of a union."""
    key: Key = ()
    for at, word in enumerate(location):
        if isinstance(values, dict) and (word in values or at == 0):
            values = values.get(word)
        elif isinstance(values, list) and isinstance(word, int) and word < len(values):
            values = values[word]
        else:
            break
        key = (*key, str(word))
    return key


def _message(error: ErrorDetails, model: type[BaseModel]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("missing", "extra_forbidden") and len(error["loc"]) > 1:  # of a mapping that is the value of an option
        return f"{'lacks the' if kind == 'missing' else 'has an unknown'} key {error['loc'][-1]}"
    if kind == "missing":
        return "required"
    if kind == "extra_forbidden":
        return f"unknown key{suggestion(str(error['loc'][-1]), model.model_fields)}"
    if kind == "literal_error":
        near = nearest(error["input"], _literals(model, str(error["loc"][0])))
        expected = context["expected"].replace("True", "true").replace("False", "false")
        return f"must be {expected}, got {quoted(error['input'])}{near}"
    if kind in MESSAGES:
        return MESSAGES[kind].format(**context)
    return error["msg"][:1].lower() + error["msg"][1:]


def _literals(model: type[BaseModel], name: str) -> list[str]:
    """The texts that a field of the model allows."""
    field = model.model_fields.get(name)
    pending, found = [field.annotation if field else None], []
    while pending:
        annotation = pending.pop()
        if get_origin(annotation) is Literal:
            found += [each for each in get_args(annotation) if isinstance(each, str)]
        else:
            pending += get_args(annotation)
    return found


def _with_absolute_paths(source: Source, key: Key, made: BaseModel) -> BaseModel:
    found = {}
    for name, value in made:
        if not isinstance(value, Path):
            continue
        path, tried = source.find_path(str(value))
        if path is None and source.paths_exist:
            source.report((*key, name), f"no such file or folder: {value} (tried {joined(tried)})")
        found[name] = path or value
    return made.model_copy(update=found)

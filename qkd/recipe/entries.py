"""The entries of a recipe that name something: a method, a data set, a network with its scheme."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from typing import Any

from qkd.errors import SchemeError, UsageError, nearest
from qkd.options import Count, Options, is_user_code, look_up, options_from
from qkd.recipe.models import FLOAT, SCRATCH, DataEntry, MethodEntry, NetworkEntry
from qkd.recipe.source import Key, Source, listed, quoted, split_key
from qkd.recipe.validate import model_of, validated


def method(source: Source, key: Key, value: Any) -> MethodEntry | None:
    from qkd.methods import METHODS

    fixed = {"name": (str, ...)}
    given, options = _named(source, key, value, "name", fixed, lambda name: _options_of(name, METHODS, "method"))
    made = _completed(source, key, given, options, fixed) if options is not None else None
    return MethodEntry(name=made.pop("name"), options=made) if made is not None else None


def data(source: Source, key: Key, value: Any) -> DataEntry | None:
    from qkd.data import DATASETS

    fixed = {"name": (str, ...), "batch": (Count, DataEntry.model_fields["batch"].default)}
    given, options = _named(source, key, value, "name", fixed, lambda name: _options_of(name, DATASETS, "data set"))
    made = _completed(source, key, given, options, fixed) if options is not None else None
    return DataEntry(name=made.pop("name"), batch=made.pop("batch"), options=made) if made is not None else None


def network(source: Source, key: Key, value: Any) -> NetworkEntry | None:
    from qkd.networks.build import options_of

    fixed = {"build": (str, ...), "quantize": (Any, None), "start_from": (Any, FLOAT)}
    given, options = _named(source, key, value, "build", fixed, options_of)
    scheme = _scheme(source, (*key, "quantize"), given.get("quantize"))
    start = _start(source, (*key, "start_from"), given.get("start_from", FLOAT))
    made = _completed(source, key, given, options, fixed) if options is not None else None
    if made is None:
        return None
    rest = {name: value for name, value in made.items() if name not in fixed}
    return NetworkEntry(build=made["build"], options=rest, quantize=scheme, start_from=start)


def _options_of(name: str, known: Mapping[str, Any], what: str) -> Options:
    function = look_up(name, known, what=what)
    if not callable(function):
        raise UsageError(f"{name} is {type(function).__name__}, not a function")
    return options_from(function)


def _named(
    source: Source, key: Key, value: Any, word: str, fixed: Collection[str], look_up: Callable[[str], Options]
) -> tuple[dict[str, Any], Options | None]:
    """An entry, and the options of what its ``word`` names; None if there is no such thing, which is then reported."""
    if isinstance(value, str):
        source.say(key, f"must be a mapping of keys to values: write {{{word}: {value}}}")
        return {}, None
    given = source.mapping(key, value, required=(word,))
    name = given.get(word)
    if word in given and not isinstance(name, str):
        source.say((*key, word), f"must be text, got {quoted(name)}")
    if isinstance(name, str):
        name = given[word] = _absolute(source, (*key, word), name)
    if isinstance(name, str):
        try:
            return given, look_up(name)
        except UsageError as error:
            source.say((*key, word), str(error))
    for other in given:  # whose options are unknown; but what looks like a misspelt key is told
        if other not in fixed and nearest(other, fixed):
            source.say((*key, other), f"unknown key{nearest(other, fixed)}")
    return given, None


def _completed(
    source: Source, key: Key, given: dict[str, Any], options: Options, fixed: Mapping[str, tuple[Any, Any]]
) -> dict[str, Any] | None:
    """The fixed keys of an entry and the options of its function, checked together and completed with defaults."""
    own = {
        word: Parameter(word, Parameter.KEYWORD_ONLY, annotation=kind, default=Parameter.empty if d is ... else d)
        for word, (kind, d) in fixed.items()
    }
    together = Options({**own, **options.parameters, **own}, options.others, options.complete)
    made = validated(source, key, model_of("_".join(key), together), given)
    if made is None:
        return None
    values = {name: value for name, value in made}
    return {n: v for n, v in values.items() if options.complete or n in made.model_fields_set or n in fixed}


def _absolute(source: Source, key: Key, name: str) -> str | None:
    """``./file.py:Name`` with the file's full path, so that the recipe means the same from everywhere."""
    if not is_user_code(name):
        return name
    file, _, rest = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    path, tried = source.find(file)
    if path is None:
        source.say(key, f"no such file: {file} (tried {listed(tried)})")
        return None
    return f"{path}:{rest}"


def _start(source: Source, key: Key, value: Any) -> str:
    if not isinstance(value, str):
        source.say(key, f"must be float, scratch or the path of a checkpoint, got {quoted(value)}")
        return FLOAT
    if value in (FLOAT, SCRATCH):
        return value
    path, tried = source.find(value)
    if path is None and source.paths_exist:
        near = nearest(value, (FLOAT, SCRATCH))
        source.say(key, f"neither float nor scratch{near}, and no such checkpoint: {value} (tried {listed(tried)})")
    return str(path or value)


def _scheme(source: Source, key: Key, value: Any) -> Any:
    """``off``, ``w4a8`` or a mapping of the fields of Scheme. -> Scheme or None"""
    from qkd.quantizers import Scheme

    if value is None or value is False or str(value).lower() == "off":
        return None
    try:
        if isinstance(value, str):
            return Scheme.parse(value)
        if isinstance(value, dict):
            made = validated(source, key, model_of("scheme", options_from(Scheme, keyword_only=False)), value)
            return Scheme(**dict(made)) if made is not None else None
    except SchemeError as error:
        for line in str(error).splitlines():
            source.say(*split_key(source.places, key, line))
        return None
    source.say(
        key, f"must be off, a scheme such as w4a8, or a mapping with weights and activations, got {quoted(value)}"
    )
    return None

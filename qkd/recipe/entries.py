"""Parsing the entries of a recipe that name a function and set its options: method, data set, networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from typing import Any, Literal

from qkd.errors import SchemeError, UsageError, nearest
from qkd.options import MAX_SEED, Count, Options, is_user_code, look_up, options_from
from qkd.recipe.models import FLOAT, SAME, SCRATCH, DataEntry, MethodEntry, NetworkEntry, ViewEntry
from qkd.recipe.source import Key, Source, joined, quoted, split_key
from qkd.recipe.stored_scheme import at_its_time
from qkd.recipe.validate import options_model, validate

OF_OWNERS = ("build", "quantize", "start_from", "start_head", "seed")
"""Keys of a network that has parameters of its own."""


def parse_method(source: Source, key: Key, value: Any) -> MethodEntry | None:
    """The entry at ``key``; None, with the mistakes reported, if it does not fit."""
    from qkd.methods import METHODS

    fixed = {"name": (str, ...)}
    given, options = _entry_and_options(
        source, key, value, "name", fixed, lambda name: _options_of(name, METHODS, "method")
    )
    made = _validate_entry(source, key, given, options, fixed) if options is not None else None
    return MethodEntry(name=made.pop("name"), options=made) if made is not None else None


def parse_data(source: Source, key: Key, value: Any) -> DataEntry | None:
    """The entry at ``key``; None, with the mistakes reported, if it does not fit."""
    from qkd.data import DATASETS

    fixed = {"name": (str, ...), "batch": (Count, DataEntry.model_fields["batch"].default)}
    given, options = _entry_and_options(
        source, key, value, "name", fixed, lambda name: _options_of(name, DATASETS, "data set")
    )
    made = _validate_entry(source, key, given, options, fixed) if options is not None else None
    return DataEntry(name=made.pop("name"), batch=made.pop("batch"), options=made) if made is not None else None


def parse_teacher(source: Source, key: Key, value: Any) -> NetworkEntry | ViewEntry | None:
    """The entry at ``key``, with ``of`` a view of another network; None, with the mistakes reported, if it does not fit."""
    if not isinstance(value, dict) or "of" not in value:
        return parse_network(source, key, value)
    before = len(source.problems)
    given = source.mapping(key, value)
    for word in [word for word in given if word in OF_OWNERS]:
        source.report((*key, word), f"a view has none: its parameters are those of {given['of']}; leave it out")
        del given[word]
    made = validate(source, key, ViewEntry, given)
    if isinstance(made, ViewEntry) and made.activations is None:
        if not made.is_seen_otherwise:
            source.report(key, "sees nothing otherwise: add activations (bits), average (a decay) or dropout")
        elif made.share != 1:
            source.report((*key, "share"), "no effect without activations; it is how often they take those bits")
    return made if isinstance(made, ViewEntry) and len(source.problems) == before else None


def parse_network(source: Source, key: Key, value: Any) -> NetworkEntry | None:
    """The entry at ``key``; None, with the mistakes reported, if it does not fit."""
    from qkd.networks.build import options_of, why_no_weights

    if isinstance(value, dict) and "of" in value and "build" not in value:
        source.report((*key, "of"), "only a teacher can be a view of another network; write build")
        return None

    fixed: dict[str, tuple[Any, Any]] = {
        "build": (str, ...),
        "quantize": (Any, None),
        "start_from": (Any, FLOAT),
        "start_head": (Literal["loaded", "fresh"], "loaded"),
        "seed": (Any, None),
    }
    given, options = _entry_and_options(source, key, value, "build", fixed, options_of)
    if options is not None and (why := why_no_weights(given["build"], given)):
        source.report((*key, "weights"), why)
        del given["weights"]
    scheme = _parse_scheme(source, (*key, "quantize"), given.get("quantize"))
    start = _parse_start(source, (*key, "start_from"), given.get("start_from", FLOAT))
    seed = _parse_seed(source, (*key, "seed"), given.get("seed"))
    made = _validate_entry(source, key, given, options, fixed) if options is not None else None
    if made is None:
        return None
    rest = {name: value for name, value in made.items() if name not in fixed}
    return NetworkEntry(
        build=made["build"],
        options=rest,
        quantize=scheme,
        start_from=start,
        start_head=made["start_head"],
        seed=seed,
    )


def _options_of(name: str, known: Mapping[str, Any], what: str) -> Options:
    function = look_up(name, known, what=what)
    if not callable(function):
        raise UsageError(
            f"{name} is {type(function).__name__}, not a function", key=f"{what.replace(' ', '-')}.not-callable"
        )
    return options_from(function)


def _entry_and_options(
    source: Source, key: Key, value: Any, word: str, fixed: Collection[str], options_of: Callable[[str], Options]
) -> tuple[dict[str, Any], Options | None]:
    """The mapping at ``key``, and the options of the function that its key ``word`` names.

    If there is no such function, this is reported and the options are None.
    """
    if isinstance(value, str):
        source.report(key, f"must be a mapping of keys to values: write {{{word}: {value}}}")
        return {}, None
    given = source.mapping(key, value, required=(word,))
    name = given.get(word)
    if word in given and not isinstance(name, str):
        source.report((*key, word), f"must be text, got {quoted(name)}")
    if isinstance(name, str):
        name = given[word] = _absolute_name(source, (*key, word), name)
    if isinstance(name, str):
        try:
            return given, options_of(name)
        except UsageError as error:
            source.report((*key, word), str(error))
    for other in given:  # without known options, only what resembles a fixed key is taken for a misspelt one
        if other not in fixed and nearest(other, fixed):
            source.report((*key, other), f"unknown key{nearest(other, fixed)}")
    return given, None


def _validate_entry(
    source: Source, key: Key, given: dict[str, Any], options: Options, fixed: Mapping[str, tuple[Any, Any]]
) -> dict[str, Any] | None:
    """The fixed keys of an entry and the options of its function, checked together, with defaults filled in.

    ``fixed`` gives type and default of each fixed key. None, with the mistakes reported, if a value does not fit.
    """
    own = {
        word: Parameter(word, Parameter.KEYWORD_ONLY, annotation=kind, default=Parameter.empty if d is ... else d)
        for word, (kind, d) in fixed.items()
    }
    together = Options({**own, **options.parameters, **own}, options.others, options.complete)
    made = validate(source, key, options_model("_".join(key), together), given)
    if made is None:
        return None
    values = {name: value for name, value in made}
    return {n: v for n, v in values.items() if options.complete or n in made.model_fields_set or n in fixed}


def _absolute_name(source: Source, key: Key, name: str) -> str | None:
    """``./file.py:Name`` with the absolute path of the file, other names unchanged; None if there is no such file."""
    if not is_user_code(name):
        return name
    file, _, rest = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    path, tried = source.find_path(file)
    if path is None:
        source.report(key, f"no such file: {file} (tried {joined(tried)})")
        return None
    return f"{path}:{rest}"


def _parse_start(source: Source, key: Key, value: Any) -> str:
    if not isinstance(value, str):
        source.report(key, f"must be float, scratch or the path of a checkpoint, got {quoted(value)}")
        return FLOAT
    if value in (FLOAT, SCRATCH):
        return value
    path, tried = source.find_path(value)
    if path is None and source.paths_exist:
        near = nearest(value, (FLOAT, SCRATCH))
        source.report(key, f"neither float nor scratch{near}, and no such checkpoint: {value} (tried {joined(tried)})")
    return str(path or value)


def _parse_seed(source: Source, key: Key, value: Any) -> int | Literal["same"] | None:
    if value is None or value == SAME:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED:
        return value
    near = nearest(value, (SAME,)) if isinstance(value, str) else ""
    source.report(key, f"must be null, same or a whole number from 0 to 2^63 - 1, got {quoted(value)}{near}")
    return None


def _parse_scheme(source: Source, key: Key, value: Any) -> Any:
    """The Scheme that ``off``, ``w4a8`` or a mapping of its fields describes; None for ``off`` or a mistake."""
    from qkd.quantizers import Scheme

    if value is None or value is False or str(value).lower() == "off":
        return None
    try:
        if isinstance(value, str):
            return Scheme.parse(value)
        if isinstance(value, dict):
            made = validate(source, key, options_model("scheme", options_from(Scheme, keyword_only=False)), value)
            return at_its_time(Scheme(**dict(made)), value) if made is not None else None
    except SchemeError as error:
        for line in str(error).splitlines():
            source.report(*split_key(source.positions, key, line))
        return None
    source.report(
        key, f"must be off, a scheme such as w4a8, or a mapping with weights and activations, got {quoted(value)}"
    )
    return None

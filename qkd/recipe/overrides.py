"""Overrides from the command line, ``train.epochs=3``: they change a recipe before it is checked."""

from __future__ import annotations

from typing import Any

from qkd.errors import Problem
from qkd.recipe.source import Key, Source, parse, quoted

OVERRIDE = "<override>"  # the file that mistakes in them are reported in; the line is the number of the override


def apply_override(source: Source, number: int, text: str) -> None:
    """Set one key of the source to another value, as the ``number``-th override says."""
    name, sign, value = text.partition("=")
    key: Key = tuple(name.strip().split("."))
    if not sign or not all(key):
        _say(source, number, text, "not of the form key.key=value")
        return
    if not value.strip():
        _say(source, number, name, f"no value; write {name}=null for none or {name}='' for an empty text")
        return
    container = _container(source, number, key)
    if container is None:
        return
    before = len(source.problems)
    for old in [path for path in source.places if path[: len(key)] == key]:
        del source.places[old]
    source.places[key] = (OVERRIDE, number)
    parsed = parse(value, source, key, (OVERRIDE, number))
    if len(source.problems) == before:
        container[int(key[-1]) if isinstance(container, list) else key[-1]] = parsed


def _container(source: Source, number: int, key: Key) -> Any:
    """The mapping or list that holds the last word of the key, None if there is none; missing mappings are made."""
    here = source.data
    for depth, word in enumerate(key):
        above = ".".join(key[:depth])
        if isinstance(here, list) and not (word.isdecimal() and int(word) < len(here)):
            _say(source, number, ".".join(key), f"{above} is a list of {len(here)}, counted from 0")
            return None
        if not isinstance(here, list | dict):
            _say(source, number, ".".join(key), f"{above} is {quoted(here)}, not a mapping; give {above} as a whole")
            return None
        if depth == len(key) - 1:
            return here
        if isinstance(here, dict) and here.get(word) is None:
            here[word] = {}
            source.places.setdefault(key[: depth + 1], (OVERRIDE, number))
        here = here[int(word)] if isinstance(here, list) else here[word]
    return None


def _say(source: Source, number: int, key: str, message: str) -> None:
    source.problems.append(Problem(OVERRIDE, number, key, message))

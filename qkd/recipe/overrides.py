"""Overrides from the command line, ``train.epochs=3``, which change a recipe before it is checked."""

from __future__ import annotations

from typing import Any

from qkd.errors import Problem
from qkd.recipe.source import Key, Source, quoted
from qkd.recipe.yaml_text import parse_yaml

OVERRIDE = "<override>"
"""In place of the file of mistakes in overrides; their line is the number of the override."""


def apply_override(source: Source, number: int, text: str) -> None:
    """Set the key that the override ``text`` names to its value; mistakes are reported as line ``number`` of the overrides."""
    name, sign, value = text.partition("=")
    key: Key = tuple(name.strip().split("."))
    if not sign or not all(key):
        _report(source, number, text, "not of the form key.key=value")
        return
    if not value.strip():
        _report(source, number, name, f"no value; write {name}=null for none or {name}='' for an empty text")
        return
    container = _container(source, number, key)
    if container is None:
        return
    before = len(source.problems)
    for old in [path for path in source.positions if path[: len(key)] == key]:
        del source.positions[old]
    source.positions[key] = (OVERRIDE, number)
    parsed = parse_yaml(value, source, key, (OVERRIDE, number))
    if len(source.problems) == before:
        container[int(key[-1]) if isinstance(container, list) else key[-1]] = parsed


def _container(source: Source, number: int, key: Key) -> Any:
    """The mapping or list that holds the last word of the key; missing mappings are created.

    None, with the mistake reported, if a word of the key leads into a value that is neither.
    """
    here = source.data
    for depth, word in enumerate(key):
        above = ".".join(key[:depth])
        if isinstance(here, list) and not (word.isdecimal() and int(word) < len(here)):
            _report(source, number, ".".join(key), f"{above} is a list of {len(here)}, counted from 0")
            return None
        if not isinstance(here, list | dict):
            _report(source, number, ".".join(key), f"{above} is {quoted(here)}, not a mapping; give {above} as a whole")
            return None
        if depth == len(key) - 1:
            return here
        if isinstance(here, dict) and here.get(word) is None:
            here[word] = {}
            source.positions.setdefault(key[: depth + 1], (OVERRIDE, number))
        here = here[int(word)] if isinstance(here, list) else here[word]
    return None


def _report(source: Source, number: int, key: str, message: str) -> None:
    source.problems.append(Problem(OVERRIDE, number, key, message))

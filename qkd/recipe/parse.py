"""From what was written to a Recipe: names looked up, options completed, every mistake reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qkd.distill.taps import LOGITS, SHARED
from qkd.options import Seed
from qkd.recipe.entries import data, method, network
from qkd.recipe.models import STUDENT, Origin, Pretrain, Recipe, Section, Train
from qkd.recipe.source import Key, Source, quoted
from qkd.recipe.validate import validated

REQUIRED = ("method", "student", "data", "train")
RESERVED = (STUDENT, "exchange", SHARED)  # names that mean something else in the address of a tensor


class _Seed(Section):
    seed: Seed


def parse_recipe(source: Source) -> Recipe | None:
    """The recipe, or None when the source has problems, all of them reported."""
    known = [name for name in Recipe.model_fields if name != "origin"]
    top = source.mapping((), source.data, known=known, required=REQUIRED)
    made: dict[str, Any] = {name: CHECKS[name](source, (name,), top[name]) for name in CHECKS if name in top}
    teachers = top.get("teachers")
    parts = [STUDENT, *(teachers if isinstance(teachers, dict) else ())]
    if top.get("match") is not None:
        made["match"] = _match(source, ("match",), top["match"], parts)
    if source.problems:
        return None
    origin = Origin(source.file, dict(source.places))
    return Recipe(**{name: value for name, value in made.items() if value is not None}, origin=origin)


def _teachers(source: Source, key: Key, value: Any) -> dict[str, Any]:
    teachers = {} if value is None else source.mapping(key, value)
    for name in teachers:
        if not name.isidentifier() or name in RESERVED:
            why = "is taken" if name in RESERVED else "is no name"
            source.say((*key, name), f"{name!r} {why}: use letters, digits and _, and none of {', '.join(RESERVED)}")
    return {name: network(source, (*key, name), each) for name, each in teachers.items()}


def _match(source: Source, key: Key, value: Any, parts: list[str]) -> dict[str, dict[str, str]]:
    """A list of module paths that all networks share, or stage -> part -> module path."""
    for stage in (each for each in value if each == LOGITS) if isinstance(value, list | dict) else ():
        source.say((*key, stage), f"{stage} is always the last stage of every network; leave it out")
    if isinstance(value, list):
        for at, stage in enumerate(value):
            if not isinstance(stage, str):
                source.say((*key, str(at)), f"must be the path of a module, got {quoted(stage)}")
            elif stage in value[:at]:
                source.say((*key, str(at)), f"{stage} is named twice")
        return {str(stage): dict.fromkeys(parts, str(stage)) for stage in value}
    if not isinstance(value, dict):
        source.say(key, f"must be a list of module paths or a mapping of stages, got {quoted(value)}")
        return {}
    stages = {}
    for stage, paths in value.items():
        paths = source.mapping((*key, stage), paths, known=parts, required=parts)
        for part, path in paths.items():
            if not isinstance(path, str):
                source.say((*key, stage, part), f"must be the path of a module, got {quoted(path)}")
        stages[stage] = {part: paths[part] for part in parts if part in paths}
    return stages


def _settings(model: type[Section]) -> Callable[[Source, Key, Any], Any]:
    def check(source: Source, key: Key, value: Any) -> Any:
        before = len(source.problems)
        values = {} if value is None else source.mapping(key, value)
        return validated(source, key, model, values) if len(source.problems) == before else None

    return check


def _seed(source: Source, key: Key, value: Any) -> int | None:
    made = validated(source, (), _Seed, {"seed": value})
    return made.seed if isinstance(made, _Seed) else None


CHECKS: dict[str, Callable[[Source, Key, Any], Any]] = {
    "method": method,
    "student": network,
    "teachers": _teachers,
    "data": data,
    "pretrain": _settings(Pretrain),
    "train": _settings(Train),
    "seed": _seed,
}

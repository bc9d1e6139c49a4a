"""Turning the plain data of a recipe into a Recipe: names looked up, defaults filled in, every mistake reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qkd.distill.taps import LOGITS, SHARED
from qkd.options import Seed
from qkd.recipe.entries import parse_data, parse_method, parse_network, parse_teacher
from qkd.recipe.models import STUDENT, Origin, Pretrain, Recipe, Section, Train
from qkd.recipe.source import Key, Source, quoted
from qkd.recipe.validate import validate
from qkd.recipe.views import check_views, views_in

REQUIRED = ("method", "student", "data", "train")
RESERVED = (STUDENT, "exchange", SHARED)  # they have another meaning in the address of a tensor


class _SeedSection(Section):
    seed: Seed


def parse_recipe(source: Source) -> Recipe | None:
    """The recipe, or None if there are mistakes, which are reported in the source."""
    known = [name for name in Recipe.model_fields if name != "origin"]
    top = source.mapping((), source.data, known=known, required=REQUIRED)
    made: dict[str, Any] = {name: PARSERS[name](source, (name,), top[name]) for name in PARSERS if name in top}
    teachers = top.get("teachers")
    parts = [STUDENT, *(teachers if isinstance(teachers, dict) else ())]
    views = views_in(teachers)
    if top.get("match") is not None:
        made["match"] = _parse_match(source, ("match",), top["match"], parts, views)
    check_views(source, made.get("student"), made.get("teachers") or {}, [part for part in parts if part not in views])
    if source.problems:
        return None
    origin = Origin(source.file, dict(source.positions))
    return Recipe(**{name: value for name, value in made.items() if value is not None}, origin=origin)


def _parse_teachers(source: Source, key: Key, value: Any) -> dict[str, Any]:
    teachers = {} if value is None else source.mapping(key, value)
    for name in teachers:
        if not name.isidentifier() or name in RESERVED:
            reason = "is taken" if name in RESERVED else "is not a valid name"
            source.report(
                (*key, name), f"{name!r} {reason}: use letters, digits and _, and none of {', '.join(RESERVED)}"
            )
    return {name: parse_teacher(source, (*key, name), each) for name, each in teachers.items()}


def _parse_match(
    source: Source, key: Key, value: Any, parts: list[str], views: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The stages of ``parts``, from a list of module paths that all share or a mapping of stage, part and module path.

    ``views``: names of views and of the networks they see, whose module paths they have.
    """
    for stage in (each for each in value if each == LOGITS) if isinstance(value, list | dict) else ():
        source.report((*key, stage), f"{stage} is always the last stage of every network; leave it out")
    if isinstance(value, list):
        for at, stage in enumerate(value):
            if not isinstance(stage, str):
                source.report((*key, str(at)), f"must be the path of a module, got {quoted(stage)}")
            elif stage in value[:at]:
                source.report((*key, str(at)), f"{stage} is named twice")
        return {str(stage): dict.fromkeys(parts, str(stage)) for stage in value}
    if not isinstance(value, dict):
        source.report(key, f"must be a list of module paths or a mapping of stages, got {quoted(value)}")
        return {}
    stages, own = {}, [part for part in parts if part not in views]
    for stage, paths in value.items():
        paths = source.mapping((*key, stage), paths, known=own, required=own)
        for part, path in paths.items():
            if not isinstance(path, str):
                source.report((*key, stage, part), f"must be the path of a module, got {quoted(path)}")
        stages[stage] = {part: paths[views.get(part, part)] for part in parts if views.get(part, part) in paths}
    return stages


def _section_parser(model: type[Section]) -> Callable[[Source, Key, Any], Any]:
    def parse(source: Source, key: Key, value: Any) -> Any:
        before = len(source.problems)
        values = {} if value is None else source.mapping(key, value)
        return validate(source, key, model, values) if len(source.problems) == before else None

    return parse


def _parse_seed(source: Source, key: Key, value: Any) -> int | None:
    made = validate(source, (), _SeedSection, {"seed": value})
    return made.seed if isinstance(made, _SeedSection) else None


PARSERS: dict[str, Callable[[Source, Key, Any], Any]] = {
    "method": parse_method,
    "student": parse_network,
    "teachers": _parse_teachers,
    "data": parse_data,
    "pretrain": _section_parser(Pretrain),
    "train": _section_parser(Train),
    "seed": _parse_seed,
}

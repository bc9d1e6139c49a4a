"""Settings that are valid and hardly meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkd.distill.method_info import OnlyWith, method_info, unused_options
from qkd.errors import Problem
from qkd.options import look_up, options_from
from qkd.recipe.models import Recipe, Train

READ_WITH: OnlyWith = {
    "milestones": ("schedule", ("step",)),
    "momentum": ("optimizer", ("sgd",)),
    "nesterov": ("optimizer", ("sgd",)),
}
"""Settings of training that count only where another one has that value."""


def warnings(recipe: Recipe) -> list[Problem]:
    """What is allowed and yet is hardly meant."""
    found = []
    student = recipe.student.quantize
    for name, teacher in recipe.teachers.items():
        scheme = teacher.quantize
        if scheme is not None and (student is None or _fewer(scheme, student)):
            said = f"{_bits(scheme)} teaches a student of {_bits(student) if student else 'float'}: fewer bits than it"
            found.append(recipe.problem(f"teachers.{name}.quantize", said))
    for section in ("pretrain", "train"):
        settings = getattr(recipe, section)
        if settings.warmup >= settings.epochs:
            said = f"{settings.warmup:g} of {settings.epochs} epochs: the rate is never at its full height"
            found.append(recipe.problem(f"{section}.warmup", said))
        found += _unused(recipe, section, settings)
    return [*found, *_unused_options(recipe)]


def _unused(recipe: Recipe, section: str, settings: Train) -> list[Problem]:
    """Settings of a section that are not at their defaults and that its optimizer or its schedule never reads."""
    defaults = {name: known.default for name, known in type(settings).model_fields.items()}
    return _idle(recipe, section, READ_WITH, dict(settings), defaults)


def _unused_options(recipe: Recipe) -> list[Problem]:
    """Options of the method that are not at their defaults and do nothing beside the others."""
    from qkd.methods import METHODS

    method = look_up(recipe.method.name, METHODS, what="method")
    known = method_info(method)
    defaults = {name: parameter.default for name, parameter in options_from(method).parameters.items()}
    return _idle(recipe, "method", known.only_with if known else {}, recipe.method.options, defaults)


def _idle(
    recipe: Recipe, section: str, only_with: OnlyWith, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[Problem]:
    found = unused_options(only_with, options)
    return [
        recipe.problem(f"{section}.{name}", said) for name, said in found.items() if options[name] != defaults[name]
    ]


def _fewer(teacher: Any, student: Any) -> bool:
    return teacher.weights < student.weights or teacher.activations < student.activations


def _bits(scheme: Any) -> str:
    return f"w{scheme.weights}a{scheme.activations}"

"""Warnings about settings of a recipe that are valid but suspicious."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkd.distill.method_info import ABOVE_ZERO, OnlyWith, method_info, unused_options
from qkd.errors import Problem
from qkd.options import is_user_code, look_up, options_from
from qkd.recipe.models import FLOAT, FRESH, SCRATCH, STUDENT, Recipe, Train

READ_WITH: OnlyWith = {
    "milestones": ("schedule", ("step",)),
    "momentum": ("optimizer", ("sgd",)),
    "nesterov": ("optimizer", ("sgd",)),
    "clip_per": ("clip", (ABOVE_ZERO,)),
}
"""Settings of a training that are used only if another one has one of these values."""


def warnings(recipe: Recipe) -> list[Problem]:
    """The suspicious but valid settings of a recipe."""
    found = []
    student = recipe.student.quantize
    for name, scheme in ((name, entry.quantize) for name, entry in recipe.owners.items() if name in recipe.teachers):
        if scheme is not None and (student is None or _fewer(scheme, student)):
            message = f"the teacher has fewer bits ({_bits(scheme)}) than the student ({_bits(student)})"
            found.append(recipe.problem(f"teachers.{name}.quantize", message))
    for name, entry in recipe.owners.items():
        if entry.seed is not None and not entry.is_seeded:
            message = f"no effect with a checkpoint; it is used where `start_from` is {FLOAT} or {SCRATCH}"
            found.append(recipe.problem((*recipe.key_of(name), "seed"), message))
        if entry.start_head == FRESH and not entry.is_checkpoint:
            message = "no effect without a checkpoint in `start_from`: every layer begins fresh"
            found.append(recipe.problem((*recipe.key_of(name), "start_head"), message))
        found += _unchecked_options(recipe, name)
    found += _unused_levels(recipe)
    for section in ("pretrain", "train"):
        settings = getattr(recipe, section)
        if settings.warmup >= settings.epochs:
            message = f"{settings.warmup:g} of {settings.epochs} epochs: the learning rate never reaches its peak"
            found.append(recipe.problem(f"{section}.warmup", message))
        found += _unused_settings(recipe, section, settings)
    if recipe.pretrain.dampen:
        found.append(recipe.problem("pretrain.dampen", "no effect: a float network has no weights that are rounded"))
    return [*found, *_unused_options(recipe)]


def _unchecked_options(recipe: Recipe, part: str) -> list[Problem]:
    """Options that a network of the user's own takes in its ``**kwargs``: no one knows whether it reads them."""
    from qkd.networks.build import options_of

    entry = recipe.owners[part]
    if not is_user_code(entry.build) or not entry.options:
        return []
    known = options_of(entry.build).parameters
    message = f"goes into the **kwargs of {Path(entry.build).name}; whether that reads it is not known"
    return [recipe.problem((*recipe.key_of(part), word), message) for word in entry.options if word not in known]


def _unused_levels(recipe: Recipe) -> list[Problem]:
    """Levels of 2-bit weights that are chosen for a network without such weights."""
    found = []
    for part, entry in recipe.owners.items():
        scheme = entry.quantize
        if scheme is not None and scheme.weight_levels != "auto" and not scheme.has_levels_to_choose:
            place = part if part == STUDENT else f"teachers.{part}"
            message = f"{scheme.weight_levels} has no effect: no weights have 2 bits"
            found.append(recipe.problem(f"{place}.quantize.weight_levels", message))
    return found


def _unused_settings(recipe: Recipe, section: str, settings: Train) -> list[Problem]:
    """Settings of a section that are not at their defaults and that its optimizer or schedule does not use."""
    defaults = {name: known.default for name, known in type(settings).model_fields.items()}
    return _without_effect(recipe, section, READ_WITH, dict(settings), defaults)


def _unused_options(recipe: Recipe) -> list[Problem]:
    """Options of the method that are not at their defaults and have no effect with the other options."""
    from qkd.methods import METHODS

    method = look_up(recipe.method.name, METHODS, what="method")
    known = method_info(method)
    defaults = {name: parameter.default for name, parameter in options_from(method).parameters.items()}
    return _without_effect(recipe, "method", known.only_with if known else {}, recipe.method.options, defaults)


def _without_effect(
    recipe: Recipe, section: str, only_with: OnlyWith, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[Problem]:
    found = unused_options(only_with, options)
    changed = [name for name in found if options[name] != defaults[name]]
    return [recipe.problem(f"{section}.{name}", found[name]) for name in changed]


def _fewer(teacher: Any, student: Any) -> bool:
    return teacher.weights < student.weights or teacher.activations < student.activations


def _bits(scheme: Any) -> str:
    return "float" if scheme is None else f"w{scheme.weights}a{scheme.activations}"

"""Recipes: YAML -> Recipe, with every mistake at its line before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from qkd.distill.method_info import OnlyWith, method_info, unused_options
from qkd.errors import Problem, RecipeError, nearest
from qkd.options import options_from
from qkd.recipe.models import DataEntry, MethodEntry, NetworkEntry, Origin, Pretrain, Recipe, Train
from qkd.recipe.overrides import apply_override
from qkd.recipe.parse import parse_recipe
from qkd.recipe.schema import schema
from qkd.recipe.source import Source, read, write
from qkd.user_code import look_up

__all__ = [
    "DataEntry",
    "MethodEntry",
    "NetworkEntry",
    "Origin",
    "Pretrain",
    "Recipe",
    "Train",
    "bundled",
    "dump",
    "load",
    "schema",
    "text_of",
    "warnings",
]


READ_WITH: OnlyWith = {
    "milestones": ("schedule", ("step",)),
    "momentum": ("optimizer", ("sgd",)),
    "nesterov": ("optimizer", ("sgd",)),
}
"""Settings of training that count only where another one has that value."""


def load(path: str | Path, overrides: Sequence[str] = (), *, paths_exist: bool = True) -> Recipe:
    """The recipe in a file, or the bundled one of that name, with ``a.b=value`` overrides; all defaults filled in.

    Paths in it become absolute: they are looked up from the current directory, else from the recipe's folder. With
    ``paths_exist`` off, data and checkpoints that are gone are no mistake: a finished run is read again without them.
    Raises RecipeError with every mistake.
    """
    source = _source(path, paths_exist)
    if source.problems and not source.data:
        raise RecipeError(source.problems)
    for number, text in enumerate(overrides, start=1):
        apply_override(source, number, text)
    recipe = parse_recipe(source)
    if recipe is None:
        raise RecipeError(source.problems)
    return recipe


def text_of(path: str | Path) -> str:
    """A recipe as it was written, comments included. Raises RecipeError if there is none."""
    return _text(path)[0]


def bundled() -> list[str]:
    """The names of the recipes that come with qkd."""
    there = (entry.name for entry in resources.files("qkd.recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in there if name.endswith(".yaml"))


def dump(recipe: Recipe) -> str:
    """The completed recipe as YAML; loaded again it gives an equal recipe."""
    method, data = recipe.method, recipe.data
    content: dict[str, Any] = {
        "method": {"name": method.name, **method.options},
        "student": _network(recipe.student),
        "teachers": {name: _network(teacher) for name, teacher in recipe.teachers.items()},
        "match": _match(recipe),
        "data": {"name": data.name, "batch": data.batch, **data.options},
        "pretrain": recipe.pretrain.model_dump(),
        "train": recipe.train.model_dump(),
        "seed": recipe.seed,
    }
    return write(_plain(content))


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


def _source(path: str | Path, paths_exist: bool) -> Source:
    text, folder = _text(path)
    return read(text, str(path), folder, paths_exist=paths_exist)


def _text(path: str | Path) -> tuple[str, Path | None]:
    """The text of a recipe and the folder it lies in."""
    file = Path(path)
    inside = resources.files("qkd.recipes") / f"{path}.yaml"
    if not file.is_file() and str(path) in bundled():
        return inside.read_text(encoding="utf-8"), None
    try:
        content = file.read_bytes()
    except OSError as error:
        what = "is a folder, not a file" if file.is_dir() else (error.strerror or str(error)).lower()
        near = nearest(file.stem, bundled())
        known = f"; recipes that come with qkd: {', '.join(bundled()) or 'none'}"
        raise RecipeError([Problem(str(path), 1, "recipe", f"cannot be read: {what}{near}{known}")]) from error
    try:
        return content.decode("utf-8-sig"), file.parent
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        wrong = f"not UTF-8: byte 0x{content[error.start]:02x}"
        raise RecipeError([Problem(str(path), line, "recipe", wrong)]) from error


def _network(entry: NetworkEntry) -> dict[str, Any]:
    scheme = "off" if entry.quantize is None else _fields(entry.quantize)
    return {"build": entry.build, **entry.options, "quantize": scheme, "start_from": entry.start_from}


def _fields(scheme: Any) -> dict[str, Any]:
    return {name: getattr(scheme, name) for name in scheme.__dataclass_fields__}


def _match(recipe: Recipe) -> Any:
    same = all(path == stage for stage, paths in recipe.match.items() for path in paths.values())
    return list(recipe.match) if same else recipe.match


def _plain(value: Any) -> Any:
    """The value in the words of YAML: paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value

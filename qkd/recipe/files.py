"""Recipes in files: those that come with qkd by name, others by path."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from qkd.errors import Problem, RecipeError, nearest
from qkd.recipe.models import Recipe
from qkd.recipe.overrides import apply_override
from qkd.recipe.parse import parse_recipe
from qkd.recipe.source import Source, read


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

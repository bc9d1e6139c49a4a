"""Loading recipes: those bundled with qkd by name, others by path."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from qkd.errors import Problem, RecipeError, nearest
from qkd.recipe.models import Recipe
from qkd.recipe.overrides import apply_override
from qkd.recipe.parse import parse_recipe
from qkd.recipe.yaml_text import read_source


def load(path: str | Path, overrides: Sequence[str] = (), *, paths_exist: bool = True) -> Recipe:
    """The recipe in a file, or the bundled one of that name, with overrides ``a.b=value``; all defaults filled in.

    Paths in it are made absolute: they are looked up from the current directory, then from the recipe's folder. With
    ``paths_exist`` False, data and checkpoints need not exist: a finished run can be read without them. Raises RecipeError
    with every mistake.
    """
    text, folder = _read_text(path)
    source = read_source(text, str(path), folder, paths_exist=paths_exist)
    if source.problems and not source.data:
        raise RecipeError(source.problems)
    for number, override in enumerate(overrides, start=1):
        apply_override(source, number, override)
    recipe = parse_recipe(source)
    if recipe is None:
        raise RecipeError(source.problems)
    return recipe


def text_of(path: str | Path) -> str:
    """The text of a recipe's file, comments included. Raises RecipeError if it cannot be read."""
    return _read_text(path)[0]


def bundled() -> list[str]:
    """The names of the recipes bundled with qkd."""
    names = (entry.name for entry in resources.files("qkd.recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _read_text(path: str | Path) -> tuple[str, Path | None]:
    """The text of a recipe and its folder, None for a bundled recipe. Raises RecipeError."""
    file = Path(path)
    resource = resources.files("qkd.recipes") / f"{path}.yaml"
    if not file.is_file() and str(path) in bundled():
        return resource.read_text(encoding="utf-8"), None
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = "is a folder, not a file" if file.is_dir() else (error.strerror or str(error)).lower()
        near = nearest(file.stem, bundled())
        known = f"; bundled recipes: {', '.join(bundled()) or 'none'}"
        raise RecipeError([Problem(str(path), 1, "recipe", f"cannot be read: {reason}{near}{known}")]) from error
    try:
        return content.decode("utf-8-sig"), file.parent
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        reason = f"not UTF-8: byte 0x{content[error.start]:02x}"
        raise RecipeError([Problem(str(path), line, "recipe", reason)]) from error

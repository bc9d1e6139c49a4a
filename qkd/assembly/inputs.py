"""The data set of a recipe, and what networks must know of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qkd import data as data_sets
from qkd.assembly.assemble import Assembly, assemble
from qkd.data import Data
from qkd.errors import DataError
from qkd.tasks.spec import DataSpec

if TYPE_CHECKING:
    from qkd.recipe import Recipe


def load_data(recipe: Recipe) -> Data:
    """The data set of a recipe. Raises DataError where it stands in the recipe."""
    try:
        return data_sets.load(recipe.data.name, recipe.data.options)
    except DataError as error:
        said = str(error).removeprefix("data: ").removeprefix("data.")
        raise DataError(str(recipe.problem_within(("data",), said)), key=error.key) from error


def spec_of(data: Data) -> DataSpec:
    return DataSpec(data.shape, data.classes)


if TYPE_CHECKING:
    from qkd.recipe import Recipe


def load_and_assemble(path: str, overrides: Sequence[str]) -> tuple[Recipe, Assembly]:
    """The recipe and its assembly with fresh weights. Raises UsageError for whatever would fail before the first batch."""
    from qkd import recipe as recipes

    recipe = recipes.load(path, overrides)
    return recipe, assemble(recipe, spec_of(load_data(recipe)))

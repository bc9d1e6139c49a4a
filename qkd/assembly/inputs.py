"""Inputs: the data set of a recipe, and the recipe with its assembly for commands that train nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qkd import data as data_sets
from qkd.assembly.assemble import Assembly, assemble
from qkd.assembly.build import Start, keep_initial_weights
from qkd.data import Data
from qkd.errors import DataError
from qkd.tasks.spec import DataSpec

if TYPE_CHECKING:
    from qkd.recipe import Recipe


def load_data(recipe: Recipe) -> Data:
    """The data set of a recipe. Raises DataError with file, line and key."""
    try:
        return data_sets.load(recipe.data.name, recipe.data.options)
    except DataError as error:
        message = str(error).removeprefix("data: ").removeprefix("data.")
        raise DataError(str(recipe.problem_within(("data",), message)), key=error.key) from error


def spec_of(data: Data) -> DataSpec:
    """Shape of the images and number of classes."""
    return DataSpec(data.shape, data.classes)


def load_and_assemble(
    path: str, overrides: Sequence[str], start: Start = keep_initial_weights
) -> tuple[Recipe, Assembly]:
    """The recipe and its assembly. Raises UsageError for every mistake that shows before the first batch."""
    from qkd import recipe as recipes

    recipe = recipes.load(path, overrides)
    return recipe, assemble(recipe, spec_of(load_data(recipe)), start=start)

"""The data set of a recipe, and what networks must know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkd import data as data_sets
from qkd.assembly.build import Facts
from qkd.data import Data
from qkd.errors import DataError

if TYPE_CHECKING:
    from qkd.recipe import Recipe


def load_data(recipe: Recipe) -> Data:
    """The data set of a recipe. Raises DataError where it stands in the recipe."""
    try:
        return data_sets.load(recipe.data.name, recipe.data.options)
    except DataError as error:
        said = str(error).removeprefix("data: ").removeprefix("data.")
        raise DataError(str(recipe.problem_within(("data",), said))) from error


def facts_of(data: Data) -> Facts:
    return Facts(data.shape, data.classes)

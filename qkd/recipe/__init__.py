"""Recipes: reading and checking them, with the file and line of every mistake, before anything is built."""

from __future__ import annotations

from qkd.recipe.files import bundled, load, text_of
from qkd.recipe.lint import warnings
from qkd.recipe.models import DataEntry, MethodEntry, NetworkEntry, Origin, Pretrain, Recipe, Train, ViewEntry
from qkd.recipe.schema import schema
from qkd.recipe.serialize import dump

__all__ = [
    "DataEntry",
    "MethodEntry",
    "NetworkEntry",
    "Origin",
    "Pretrain",
    "Recipe",
    "Train",
    "ViewEntry",
    "bundled",
    "dump",
    "load",
    "schema",
    "text_of",
    "warnings",
]

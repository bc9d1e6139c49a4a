"""Warnings about a recipe that need its networks and its plan: what changes nothing, and who begins as whose copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkd.assembly.equal_starts import find_equal_starts, find_foreign_teachers
from qkd.assembly.unused import find_unused

if TYPE_CHECKING:
    from qkd.assembly.assemble import Assembly
    from qkd.errors import Problem
    from qkd.recipe import Recipe


def plan_warnings(recipe: Recipe, assembly: Assembly) -> list[Problem]:
    """What is valid but suspicious: unused teachers and layers, networks that are copies, copies that are none."""
    return [*find_unused(recipe, assembly), *find_equal_starts(recipe, assembly), *find_foreign_teachers(recipe)]

"""Choices of options that stand in a table elsewhere, imported when they are needed: `qkd --help` needs none of them."""

from __future__ import annotations

import importlib
from typing import Any, get_args

import click


class ChoiceOf(click.Choice[str]):
    """A choice among the keys of a table or the values of a Literal, given as ``module:name``."""

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        module, _, name = self.table.partition(":")
        found: Any = getattr(importlib.import_module(module), name)
        return tuple(get_args(found) or found)

    @choices.setter
    def choices(self, choices: Any) -> None:
        """click sets them while it makes the type; the table has them."""

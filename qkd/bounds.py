"""The range of an option, written beside its type: ``width: Annotated[int, Bounds(at_least=1)] = 16``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Bounds:
    """What a number has to satisfy. A recipe is held to it; a direct call is not."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """How pydantic, which reads recipes, learns of it; no other part of the project needs pydantic for that."""
        limits = {"ge": self.at_least, "gt": self.above, "le": self.at_most, "lt": self.below}
        return {**handler(source), **{name: limit for name, limit in limits.items() if limit is not None}}


Count = Annotated[int, Bounds(at_least=1)]
Seed = Annotated[int, Bounds(at_least=0, at_most=2**63 - 1)]  # what torch takes
Positive = Annotated[float, Bounds(above=0)]
Share = Annotated[float, Bounds(at_least=0, at_most=1)]
NotNegative = Annotated[float, Bounds(at_least=0)]

"""Term dropout: which terms of a group count in a mini-batch. Drawn from torch's global random state, which checkpoints keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class TermDropout(ABC):
    """Terms that carry the same object are one group; its members are drawn together, once per mini-batch."""

    @abstractmethod
    def draw(self, count: int) -> list[float]:
        """For each of ``count`` terms 1.0 if it counts, 0.0 if it is dropped."""


@dataclass(frozen=True, eq=False)
class Bernoulli(TermDropout):
    """Each term counts with the probability ``keep``, independently of the others."""

    keep: float

    def draw(self, count: int) -> list[float]:
        return (torch.rand(count) < self.keep).float().tolist()

    def __str__(self) -> str:
        return f"kept with probability {self.keep:g} in each batch"


@dataclass(frozen=True, eq=False)
class DropExactly(TermDropout):
    """Exactly ``drop`` terms of the group, chosen uniformly, do not count."""

    drop: int

    def draw(self, count: int) -> list[float]:
        kept = torch.ones(count)
        kept[torch.randperm(count)[: self.drop]] = 0.0
        return kept.tolist()

    def __str__(self) -> str:
        return f"{self.drop} of these dropped in each batch"

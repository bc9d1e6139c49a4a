"""Where the quantizers of a network are in its file, and how far rounding the biases may have moved what they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from qkd.export.fold import IntegerWeight
from qkd.export.grid import Grid


@dataclass(frozen=True)
class MappedQuantizer:
    """A quantizer of the network and the uint8 tensor that stands for its result in the file.

    slack: how far, in steps, rounding the bias of the layer in front of it may move its input.
    """

    quantizer: str
    codes: str
    grid: Grid
    slack: float


@final
class QuantizerMap:
    """What is written down of one emission. ``found``: by the names of the traced network's nodes, its quantizers.

    ``weights`` are the integer layers, by the names of their results; they may be added to later.
    """

    def __init__(self, weights: Mapping[str, IntegerWeight]) -> None:
        self.weights = weights
        self.found: dict[str, MappedQuantizer] = {}
        self._slack: dict[str, float] = {}
        self._followed: set[str] = set()

    def follow(self, result: str, codes: str, grid: Grid) -> None:
        """A result, perhaps an integer layer's, was rounded to codes."""
        if result in self.weights:
            self._followed.add(result)
            self._slack[codes] = _error(self.weights[result]) / float(grid.scale)

    def move(self, codes: str, moved: str) -> None:
        """Codes stand elsewhere now, under another name."""
        self._slack[moved] = self._slack.get(codes, 0.0)

    def record(self, node: str, quantizer: str, codes: str, grid: Grid) -> None:
        self.found[node] = MappedQuantizer(quantizer, codes, grid, self._slack.get(codes, 0.0))

    @property
    def unfollowed(self) -> float:
        """How far rounding moved a bias at most, of the integer layers whose result no quantizer reads: the logits'."""
        return max((_error(w) for name, w in self.weights.items() if name not in self._followed), default=0.0)


def _error(weight: IntegerWeight) -> float:
    return float(weight.bias_errors.max(initial=0))

"""Where the quantizers of a network are in its file, and how far rounding the biases may have moved their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from qkd.export.fold import IntegerWeight
from qkd.export.grid import Grid


@dataclass(frozen=True)
class MappedQuantizer:
    """A quantizer of the network, by its module path, and the 8-bit tensor of the file that holds its result.

    slack: how far rounding the bias of the layer in front of it may move its input, in units of the grid's scale.
    """

    quantizer: str
    integers: str
    grid: Grid
    slack: float


@final
class QuantizerMap:
    """The quantizers of one conversion. ``found`` holds them by the names of the traced network's nodes.

    ``weights`` are the integer layers, by the names of their results; entries may be added to it later.
    """

    def __init__(self, weights: Mapping[str, IntegerWeight]) -> None:
        self.weights = weights
        self.found: dict[str, MappedQuantizer] = {}
        self._slack: dict[str, float] = {}
        self._rounded: set[str] = set()

    def rounded(self, result: str, integers: str, grid: Grid) -> None:
        """Records that a result, perhaps an integer layer's, was rounded to a tensor of integers."""
        if result in self.weights:
            self._rounded.add(result)
            self._slack[integers] = _bias_error(self.weights[result]) / float(grid.scale)

    def moved(self, integers: str, behind: str) -> None:
        """Records that integers were moved, and the name of the result."""
        self._slack[behind] = self._slack.get(integers, 0.0)

    def record(self, node: str, quantizer: str, integers: str, grid: Grid) -> None:
        """Records which tensor holds the result of a quantizer."""
        self.found[node] = MappedQuantizer(quantizer, integers, grid, self._slack.get(integers, 0.0))

    @property
    def unrounded(self) -> float:
        """How far rounding moved a bias at most, of the integer layers that no quantizer follows: those of the logits."""
        return max((_bias_error(w) for name, w in self.weights.items() if name not in self._rounded), default=0.0)


def _bias_error(weight: IntegerWeight) -> float:
    return float(weight.bias_errors.max(initial=0))

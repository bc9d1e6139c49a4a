"""Scales that are statistics of the weights, computed again in every forward pass."""

from __future__ import annotations

from abc import ABC

from torch import Tensor

from qkd.quantizers.fake_quant import FakeQuant
from qkd.quantizers.round_to_grid import SMALLEST, at_least_float32


class StatisticsQuant(FakeQuant, ABC):
    """The core of weights whose scale is a statistic of them. No state of its own.

    ``shape`` is that of the scales: (channels, 1, ...) for one per output channel, () for one per layer.
    """

    def __init__(
        self, bits: int, low: int, high: int, integer_bits: int, calibration: str, shape: tuple[int, ...]
    ) -> None:
        super().__init__(bits, low, high, integer_bits, calibration)
        self.shape = shape

    def fit(self, values: Tensor) -> None:
        """Nothing is chosen: the scale follows the weights."""
        self.mark_calibrated()


def shared_axes(x: Tensor, shape: tuple[int, ...]) -> list[int]:
    """The axes along which numbers share a scale of that shape; all of them where it is ()."""
    return [axis for axis in range(x.ndim) if not shape or shape[axis] == 1]


def mean_magnitude(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``mean|x|`` in the shape of the scales, detached and positive: the scale of weights of 1 bit."""
    magnitude = at_least_float32(x.detach()).abs()
    return magnitude.mean(shared_axes(x, shape), keepdim=bool(shape)).clamp_min(SMALLEST)

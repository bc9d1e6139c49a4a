"""The abstract cores of quantizers whose scale is a learned parameter, with the gradient scaling of LSQ."""

from __future__ import annotations

import math
from abc import ABC

import torch
from torch import Tensor, nn

from qkd.quantizers.fake_quant import StoredScaleQuant
from qkd.quantizers.round_to_grid import positive_scale
from qkd.quantizers.scale_search import search_scales
from qkd.quantizers.weight_grid import Grid, WeightLevels, grid_of_activations, grid_of_weights


class LearnedScale(StoredScaleQuant, ABC):
    """A grid with a learned scale. State: ``step`` (learned) and ``calibrated``.

    The step, the distance of neighbouring levels, is ``max(|step|, 1e-8)``, so it is positive whatever value an optimizer
    gives to ``step``; the scale, the distance of neighbouring integers, is ``step / per_step`` (see `weight_grid`). Its shape
    is (channels, 1, ...) for one scale per output channel, () for one per tensor.
    """

    ends: tuple[float, float]
    """The lowest and the highest level in steps; halves of odd integers where no level is zero."""

    def __init__(self, bits: int, grid: Grid, calibration: str, shape: tuple[int, ...], of_weights: bool) -> None:
        super().__init__(bits, grid.low, grid.high, grid.integer_bits, calibration)
        self.of_weights = of_weights
        self._set_grid(grid)
        self.step = nn.Parameter(torch.ones(shape))

    def _set_grid(self, grid: Grid) -> None:
        self.low, self.high, self.per_step = grid.low, grid.high, grid.per_step
        self.ends = (grid.low, grid.high) if grid.per_step == 1 else (grid.low / 2, grid.high / 2)
        self.bit_width.fill_(float(grid.integer_bits))

    def _scale_of(self, step: Tensor) -> Tensor:
        return step if self.per_step == 1 else step / self.per_step

    def scale(self) -> Tensor:
        return self._scale_of(positive_scale(self.step))

    def fit(self, values: Tensor) -> None:
        grouped = values.reshape(self.step.numel(), -1)
        self.set_step(search_scales(grouped, *self.ends, self.calibration))

    def set_step(self, found: Tensor) -> None:
        """Store the steps (channels,) that calibration found."""
        with torch.no_grad():
            self.step.copy_(found.reshape(self.step.shape))
        self.mark_calibrated()

    def gradient_scale(self, x: Tensor) -> float:
        """``1 / sqrt(N * Q)``, N being the weights that share a step or the features of one sample, Q the highest level in steps.

        Source: Esser et al., Learned Step Size Quantization, ICLR 2020, section 2.2.
        """
        groups = self.step.numel() if self.of_weights else x.shape[0] if x.ndim else 1
        return 1 / math.sqrt(max(x.numel() // max(groups, 1), 1) * self.ends[1])


class LearnedStep(LearnedScale, ABC):
    """A learned step on the grid of LSQ: weights as `weight_grid` has them, activations from zero up or of both signs.

    ``weight_levels`` chooses among the grids of 2-bit weights; activations ignore it.
    """

    def __init__(
        self,
        bits: int,
        signed: bool,
        calibration: str,
        shape: tuple[int, ...] = (),
        of_weights: bool = False,
        weight_levels: WeightLevels = "auto",
    ) -> None:
        self.signed, self.weight_levels = signed, weight_levels
        super().__init__(bits, self._grid_at(bits, of_weights), calibration, shape, of_weights)

    def _grid_at(self, bits: int, of_weights: bool) -> Grid:
        return grid_of_weights(bits, self.weight_levels) if of_weights else grid_of_activations(bits, self.signed)

    def _set_grid(self, grid: Grid) -> None:
        super()._set_grid(grid)
        self.odd = grid.per_step == 2

    def set_bits(self, bits: int) -> None:
        """Go on with other bits, on the grid that the core would have had with them from the start; the step stays."""
        self.bits = bits
        self._set_grid(self._grid_at(bits, self.of_weights))

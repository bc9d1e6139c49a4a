"""Learned step size quantization: the scale is a parameter with a gradient of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qkd.quantizers.fake_quant import FakeQuant, levels
from qkd.quantizers.round_to_grid import positive_scale, round_to_grid
from qkd.quantizers.step_search import steps


class LsqQuant(FakeQuant):
    """Learned step size quantization. State: ``step`` (learned) and ``calibrated``.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020. The gradient of the step is scaled by
    ``1 / sqrt(N * high)``, where N is the number of weights that share the step, or the features of one sample.
    Departure: weights use the symmetric grid (narrow range), as integer kernels want it; at 2 bits they are ternary.
    The scale is ``max(|step|, 1e-8)``, so it is positive wherever an optimizer carries the step.
    """

    def __init__(
        self, bits: int, signed: bool, calibration: str, shape: tuple[int, ...] = (), of_weights: bool = False
    ) -> None:
        super().__init__(bits, *levels(bits, signed, narrow=of_weights), code_bits=bits, calibration=calibration)
        self.of_weights = of_weights
        self.step = nn.Parameter(torch.ones(shape))

    def scale(self) -> Tensor:
        return positive_scale(self.step)

    def fit(self, values: Tensor) -> None:
        grouped = values.reshape(self.step.numel(), -1)
        found = steps(grouped, self.low, self.high, self.calibration)
        with torch.no_grad():
            self.step.copy_(found.reshape(self.step.shape))
        self.mark_calibrated()

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return round_to_grid(x, self.step, self.low, self.high, self.gradient_scale(x), compiled=self.compiled)

    def gradient_scale(self, x: Tensor) -> float:
        """``1 / sqrt(N * high)``. Source: Esser et al., section 2.2."""
        groups = self.step.numel() if self.of_weights else x.shape[0] if x.ndim else 1
        return 1 / math.sqrt(max(x.numel() // max(groups, 1), 1) * self.high)

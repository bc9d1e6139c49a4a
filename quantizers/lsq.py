"""Learned step size quantization: the scale is a parameter with a gradient of its own."""

from __future__ import annotations

from typing import final

from torch import Tensor

from qkd.quantizers.fake_quant import levels
from qkd.quantizers.learned_scale import LearnedScale
from qkd.quantizers.round_to_grid import round_to_grid


@final
class LsqQuant(LearnedScale):
    """Learned step size quantization. State: ``step`` (learned) and ``calibrated``.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020. The gradient of the step is scaled by
    ``1 / sqrt(N * high)``, where N is the number of weights that share the step, or the features of one sample.
    Departure: weights use the symmetric grid (narrow range), as integer kernels want it; at 2 bits they are ternary.
    """

    def __init__(
        self, bits: int, signed: bool, calibration: str, shape: tuple[int, ...] = (), of_weights: bool = False
    ) -> None:
        grid = levels(bits, signed, narrow=of_weights)
        super().__init__(bits, *grid, bits, calibration, shape, of_weights)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return round_to_grid(x, self.step, self.low, self.high, self.gradient_scale(x), compiled=self.compiled)

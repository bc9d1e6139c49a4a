"""HWGQ: fixed grids that are optimal for Gaussian inputs; the quantizers have no learned parameter.

Sources: Cai, He, Sun, Vasconcelos, Deep Learning with Low Precision by Half-wave Gaussian Quantization, CVPR 2017; its
extension to several bits by Cai and Vasconcelos (EdMIPS, CVPR 2020). The constants for 1 to 4 bits are theirs, those
for 5 to 8 bits minimise the same expected squared error.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from qkd.quantizers.fake_quant import StoredScaleQuant, levels
from qkd.quantizers.odd_grid import odd_levels
from qkd.quantizers.round_to_grid import SMALLEST, at_least_float32, round_to_grid
from qkd.quantizers.straight_through import straight_through
from qkd.quantizers.weight_statistics import StatisticsQuant, mean_magnitude, shared_axes

ACTIVATION_STEPS = {1: 0.798, 2: 0.538, 3: 0.3217, 4: 0.184, 5: 0.1030, 6: 0.0566, 7: 0.0307, 8: 0.0165}
"""Distance of the levels for the positive half of a unit Gaussian."""
WEIGHT_STEPS = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.335, 5: 0.188, 6: 0.104, 7: 0.0569}
"""Distance of the 2 ** bits levels ``(k + 1/2) * step`` for a unit Gaussian."""


@final
class HalfWave(StoredScaleQuant):
    """``clip(round(x / s), 0, 2 ** bits - 1) * s`` with ``s = ACTIVATION_STEPS[bits] * sigma``. State: ``sigma``.

    Backward is the clipped ReLU: 1 for 0 < x < top level, else 0 (CVPR 2017, section 4.2).
    sigma is the standard deviation of the Gaussian whose positive half is quantized, measured in calibration as the root
    mean square of the positive values, then fixed; the paper's normalised inputs have sigma = 1.
    Departure (as EdMIPS): an x below half a step becomes 0 instead of the first level, because only a uniform grid
    that contains zero can be written as QuantizeLinear.
    """

    sigma: Tensor

    def __init__(self, bits: int, calibration: str) -> None:
        super().__init__(bits, *levels(bits, signed=False, narrow=False), integer_bits=bits, calibration=calibration)
        self.register_buffer("sigma", torch.tensor(1.0))

    def scale(self) -> Tensor:
        return self.sigma * ACTIVATION_STEPS[self.bits]

    def fit(self, values: Tensor) -> None:
        alive = values[values > 0]
        self.sigma.copy_(
            at_least_float32(alive).square().mean().sqrt().clamp_min(SMALLEST) if len(alive) else torch.tensor(1.0)
        )
        self.mark_calibrated()

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return round_to_grid(x, self.scale(), self.low, self.high, 1.0, compiled=self.compiled)


@final
class MidRise(StatisticsQuant):
    """Mid-rise Gaussian grid: levels ``(k + 1/2) * step * std(W)``, straight-through everywhere. No state of its own.

    There is no zero among the levels; as integers they are the odd numbers from ``-(2 ** bits - 1)`` to
    ``2 ** bits - 1`` at scale ``step * std(W) / 2``, so they need one bit more than the weights have, and up to
    7 bits fit int8. At 1 bit the scale is ``mean|W|``: ``alpha * sign(W)`` (CVPR 2017, section 3.1, with sign(0) = 1).
    Departure: std and mean are taken per output channel unless asked for per layer.
    """

    odd = True

    def __init__(self, bits: int, calibration: str, shape: tuple[int, ...]) -> None:
        super().__init__(bits, *odd_levels(bits), calibration, shape)

    def scale_of(self, weight: Tensor) -> Tensor:
        """Half the distance of the levels, shaped (O, 1, ...) or 0-d."""
        if self.bits == 1:
            return mean_magnitude(weight, self.shape)
        values, axes = at_least_float32(weight.detach()), shared_axes(weight, self.shape)
        deviation = values.std(axes, correction=0, keepdim=bool(self.shape))
        return (deviation * (WEIGHT_STEPS[self.bits] / 2)).clamp_min(SMALLEST)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale_of(x)
        integers = (at_least_float32(x.detach()) / (2 * scale)).floor().mul(2).add(1).clamp(self.low, self.high)
        return straight_through(x, (integers * scale).to(x.dtype)), scale

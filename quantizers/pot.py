"""Power-of-two scales: multiplying by them is a shift, and rounds nothing."""

from __future__ import annotations

from typing import final

from torch import Tensor

from qkd.quantizers.fake_quant import levels
from qkd.quantizers.learned_scale import LearnedScale
from qkd.quantizers.round_to_grid import positive_scale, round_to_grid


@final
class PowerOfTwo(LearnedScale):
    """Learned step size with the scale ``2 ** round(log2 |step|)``. State: ``step`` (learned) and ``calibrated``.

    The rounding of the exponent is passed straight through, so ``ds/dstep = s / step`` (Jain et al., Trained Quantization
    Thresholds, MLSys 2020, section 3.2, where the logarithm itself is learned: ``ds/dlog2 = s ln 2``).
    Departures: the exponent is rounded to the nearest and not up, the stored number is the step and not its logarithm, and
    the gradient is scaled as in LSQ. A batch norm folded into weights at export multiplies their scales, so there
    only those of layers without one stay powers of two.
    """

    def __init__(
        self, bits: int, signed: bool, calibration: str, shape: tuple[int, ...] = (), of_weights: bool = False
    ) -> None:
        grid = levels(bits, signed, narrow=of_weights)
        super().__init__(bits, *grid, bits, calibration, shape, of_weights)

    def scale(self) -> Tensor:
        return positive_scale(self.step).log2().round_().exp2()

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gradient_scale = self.gradient_scale(x)
        return round_to_grid(
            x, self.step, self.low, self.high, gradient_scale, scale=self.scale(), compiled=self.compiled
        )

"""Power-of-two scales: multiplying by them is a shift, and rounds nothing."""

from __future__ import annotations

from typing import final

from torch import Tensor

from qkd.quantizers.learned_scale import LearnedStep
from qkd.quantizers.round_to_grid import positive_scale, round_to_grid


@final
class PowerOfTwo(LearnedStep):
    """Learned step size with the step ``2 ** round(log2 |step|)``; levels as LSQ. State: ``step`` (learned) and ``calibrated``.

    The rounding of the exponent is passed straight through, so ``ds/dstep = s / step`` (Jain et al., Trained Quantization
    Thresholds, MLSys 2020, section 3.2, where the logarithm itself is learned: ``ds/dlog2 = s ln 2``).
    Departures: the exponent is rounded to the nearest and not up, the stored number is the step and not its logarithm, and
    the gradient is scaled as in LSQ. A batch norm folded into weights at export multiplies their scales, so there
    only those of layers without one stay powers of two.
    """

    def _power(self) -> Tensor:
        return positive_scale(self.step).log2().round_().exp2()

    def scale(self) -> Tensor:
        return self._scale_of(self._power())

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gradient_scale = self.gradient_scale(x)
        y, step = round_to_grid(x, self.step, *self.ends, gradient_scale, scale=self._power(), compiled=self.compiled)
        return y, self._scale_of(step)

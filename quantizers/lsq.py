"""Learned step size quantization: the scale is a parameter with a gradient of its own."""

from __future__ import annotations

from typing import final

from torch import Tensor

from qkd.quantizers.learned_scale import LearnedStep
from qkd.quantizers.round_to_grid import round_to_grid


@final
class LsqQuant(LearnedStep):
    """Learned step size quantization. State: ``step`` (learned) and ``calibrated``.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020. The gradient of the step is scaled by
    ``1 / sqrt(N * Q)``, where N is the number of weights that share the step, or the features of one sample, and Q the
    highest level in steps. Departures: weights use the symmetric grid (narrow range), as integer kernels want it; those of
    2 bits have the four levels -3/2, -1/2, 1/2, 3/2 times the step unless ``weight_levels`` chooses others (the paper's:
    ``full``). There the paper's gradient holds with its rounding replaced by that to the nearest of these levels.
    """

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, step = round_to_grid(x, self.step, *self.ends, self.gradient_scale(x), compiled=self.compiled)
        return y, self._scale_of(step)

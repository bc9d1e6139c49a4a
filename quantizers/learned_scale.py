"""The abstract core of quantizers whose scale is a learned parameter, with the gradient scaling of LSQ."""

from __future__ import annotations

import math
from abc import ABC

import torch
from torch import Tensor, nn

from qkd.quantizers.fake_quant import StoredScaleQuant
from qkd.quantizers.round_to_grid import positive_scale
from qkd.quantizers.scale_search import search_scales


class LearnedScale(StoredScaleQuant, ABC):
    """A grid with a learned scale. State: ``step`` (learned) and ``calibrated``.

    The scale is ``max(|step|, 1e-8)``, so it is positive whatever value an optimizer gives to ``step``. Its shape is
    (channels, 1, ...) for one scale per output channel, () for one per tensor.
    """

    def __init__(
        self,
        bits: int,
        low: int,
        high: int,
        integer_bits: int,
        calibration: str,
        shape: tuple[int, ...],
        of_weights: bool,
    ) -> None:
        super().__init__(bits, low, high, integer_bits, calibration)
        self.of_weights = of_weights
        self.step = nn.Parameter(torch.ones(shape))

    def scale(self) -> Tensor:
        return positive_scale(self.step)

    def fit(self, values: Tensor) -> None:
        grouped = values.reshape(self.step.numel(), -1)
        self.set_scale(search_scales(grouped, self.low, self.high, self.calibration))

    def set_scale(self, found: Tensor) -> None:
        """Store the scales (channels,) that calibration found."""
        with torch.no_grad():
            self.step.copy_(found.reshape(self.step.shape))
        self.mark_calibrated()

    def gradient_scale(self, x: Tensor) -> float:
        """``1 / sqrt(N * high)``, N being the weights that share a scale or the features of one sample.

        Source: Esser et al., Learned Step Size Quantization, ICLR 2020, section 2.2.
        """
        groups = self.step.numel() if self.of_weights else x.shape[0] if x.ndim else 1
        return 1 / math.sqrt(max(x.numel() // max(groups, 1), 1) * self.high)

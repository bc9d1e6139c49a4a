"""LSQ+: a learned scale and a learned offset for tensors of both signs; the offset becomes an integer zero point."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qkd.quantizers.fake_quant import StoredScaleQuant
from qkd.quantizers.round_to_grid import at_least_float32, direction, positive_scale
from qkd.quantizers.scale_search import search_scale_and_offset


@final
class ShiftedQuant(StoredScaleQuant):
    """``y = (clip(round(x / s) + z, low, high) - z) * s``. State: ``step`` and ``offset`` (both learned), ``calibrated``.

    ``offset`` is the lowest value of the grid, the paper's beta; ``z = low - round(offset / s)``, limited to low..high, so
    that zero is a level: padding and integer kernels need that. Source: Bhalgat et al., LSQ+, CVPR workshops 2020, eq. 3-6:
    a value clipped below or above moves the offset by its whole gradient, others not at all.
    Departures: the offset is rounded to whole steps (straight through), the paper adds it in float; the gradients of
    both are scaled as in LSQ.
    """

    def __init__(self, bits: int, calibration: str) -> None:
        low = -(2 ** (bits - 1))
        super().__init__(bits, low, low + 2**bits - 1, integer_bits=bits, calibration=calibration)
        self.step, self.offset = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

    def scale(self) -> Tensor:
        return positive_scale(self.step)

    def zero(self) -> Tensor:
        """The integer zero point, from low to high."""
        return (self.low - (self.offset.detach() / self.scale()).round()).clamp(self.low, self.high)

    def fit(self, values: Tensor) -> None:
        scale, offset = search_scale_and_offset(values.reshape(-1), self.high - self.low, self.calibration)
        with torch.no_grad():
            self.step.copy_(scale)
            self.offset.copy_(offset)
        self.mark_calibrated()

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.numel() // max(x.shape[0], 1) if x.ndim else 1
        gradient_scale = 1 / math.sqrt(max(features, 1) * (self.high - self.low))
        scale, zero = self.scale(), self.zero()
        y = _Shifted.apply(x, self.step, self.offset, scale, self.low - zero, self.high - zero, gradient_scale)
        return y, scale


class _Shifted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, offset: Tensor, s: Tensor, low: Tensor, high: Tensor, gradient_scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, step, s, low, high)
        ctx.gradient_scale = gradient_scale
        return ((at_least_float32(x) / s).round_().clamp_(low, high).mul_(s)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, step, s, low, high = ctx.saved_tensors
        g, ratio = at_least_float32(gradient), at_least_float32(x) / s
        passed = torch.where(ratio > low, torch.where(ratio < high, g, 0.0), 0.0)
        clipped = (g - passed).sum()
        integers = ratio.round().clamp_(low, high)
        # counted from the offset: eq. 5 has n = 0 for what is clipped below
        total = (g * (integers - low)).sum() - (passed * (ratio - low)).sum()
        to_step = (total * ctx.gradient_scale * direction(step)).to(step.dtype)
        return passed.to(x.dtype), to_step, (clipped * ctx.gradient_scale).to(step.dtype), None, None, None, None

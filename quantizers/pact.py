"""PACT: activations with a learned clipping level, whose gradient comes from the clipped values alone."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qkd.quantizers.fake_quant import StoredScaleQuant, levels
from qkd.quantizers.round_to_grid import at_least_float32, direction, positive_scale
from qkd.quantizers.scale_search import search_scales

START = 10.0
"""The clipping level the paper begins with."""


@final
class ClippedQuant(StoredScaleQuant):
    """``y = round(clip(x, 0, alpha) / s) * s`` with ``s = alpha / (2 ** bits - 1)``. State: ``alpha`` (learned), ``calibrated``.

    dy/dx = 1 for 0 < x < alpha, else 0; dy/dalpha = 1 for x >= alpha, else 0.
    Source: Choi et al., PACT, arXiv 1805.06085, eq. 1-3. Departures: alpha begins where calibration puts it (at 10, as in
    the paper, with ``calibration: paper``), and it has no weight decay, as no scale has here.
    """

    def __init__(self, bits: int, calibration: str) -> None:
        super().__init__(bits, *levels(bits, signed=False, narrow=False), integer_bits=bits, calibration=calibration)
        self.alpha = nn.Parameter(torch.tensor(START))

    def scale(self) -> Tensor:
        return positive_scale(self.alpha) / self.high

    def fit(self, values: Tensor) -> None:
        with torch.no_grad():
            if self.calibration == "paper":
                self.alpha.fill_(START)
            else:
                found = search_scales(values.reshape(1, -1), self.low, self.high, self.calibration)
                self.alpha.copy_(found[0] * self.high)
        self.mark_calibrated()

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale()
        return _Clipped.apply(x, self.alpha, scale, self.high), scale


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, s: Tensor, high: int) -> Tensor:
        ctx.save_for_backward(x, alpha)
        return ((at_least_float32(x) / s).round_().clamp_(0, high).mul_(s)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha = ctx.saved_tensors
        g, top = at_least_float32(gradient), positive_scale(alpha)
        below = torch.where(at_least_float32(x) < top, g, 0.0)
        passed = torch.where(at_least_float32(x) > 0, below, 0.0)
        to_alpha = ((g - below).sum() * direction(alpha)).to(alpha.dtype)
        return passed.to(x.dtype), to_alpha, None, None

"""Weights of two and of three levels, at scales that follow the weights."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkd.quantizers.fake_quant import FakeQuant, shared_axes
from qkd.quantizers.hwgq import straight_through
from qkd.quantizers.round_to_grid import SMALLEST, at_least_float32

THRESHOLD = 0.7
"""Share of mean|W| below which a weight becomes 0; near the optimum for uniform and for Gaussian weights."""


class _Following(FakeQuant):
    """Weights whose scale is computed from them at each step. No state of its own."""

    def __init__(self, bits: int, calibration: str, shape: tuple[int, ...]) -> None:
        super().__init__(bits, -1, 1, code_bits=2, calibration=calibration)
        self.shape = shape

    def fit(self, values: Tensor) -> None:
        self.mark_calibrated()


@final
class TernaryQuant(_Following):
    """``alpha * {-1, 0, 1}``: 0 where ``|W| <= 0.7 mean|W|``, alpha the mean of ``|W|`` elsewhere; straight through.

    Source: Li, Zhang, Liu, Ternary Weight Networks, arXiv 1605.04711, eq. 3-6. Departure: per output channel unless
    asked for per layer.
    """

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size, axes, keep = at_least_float32(x.detach()).abs(), shared_axes(x, self.shape), bool(self.shape)
        alive = size > THRESHOLD * size.mean(axes, keepdim=keep)
        count = alive.sum(axes, keepdim=keep).clamp_min(1)
        scale = ((size * alive).sum(axes, keepdim=keep) / count).clamp_min(SMALLEST)
        codes = torch.where(alive, x.detach().sign(), 0.0)
        return straight_through(x, (codes * scale).to(x.dtype)), scale


@final
class BinaryQuant(_Following):
    """``alpha * sign(W)`` with ``alpha = mean|W|`` and sign(0) = 1.

    Backward ``dL/dW = dL/dy * (1 / n + alpha * [|W| <= 1])``, n being the weights that share alpha.
    Source: Rastegari et al., XNOR-Net, ECCV 2016, section 3.1. The weights are those of its Binary-Weight-Network;
    activations of two signs stay out, because levels without a zero cannot be written as QuantizeLinear.
    """

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = (
            at_least_float32(x.detach())
            .abs()
            .mean(shared_axes(x, self.shape), keepdim=bool(self.shape))
            .clamp_min(SMALLEST)
        )
        return _Sign.apply(x, scale), scale


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return (torch.where(x >= 0, 1.0, -1.0) * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, scale = ctx.saved_tensors
        share = scale.numel() / x.numel()
        return (gradient * (share + scale * (x.abs() <= 1))).to(gradient.dtype), None

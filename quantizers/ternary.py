"""Weights of two and of three levels, at scales that are computed from the weights."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkd.quantizers.fake_quant import levels
from qkd.quantizers.odd_grid import odd_levels
from qkd.quantizers.round_to_grid import SMALLEST, at_least_float32
from qkd.quantizers.straight_through import straight_through
from qkd.quantizers.weight_statistics import StatisticsQuant, mean_magnitude, shared_axes

THRESHOLD = 0.7
"""Share of mean|W| below which a weight becomes 0; near the optimum for uniform and for Gaussian weights."""


@final
class TernaryQuant(StatisticsQuant):
    """``alpha * {-1, 0, 1}``: 0 where ``|W| <= 0.7 mean|W|``, alpha the mean of ``|W|`` elsewhere; straight through.

    Source: Li, Zhang, Liu, Ternary Weight Networks, arXiv 1605.04711, eq. 3-6. Departure: per output channel unless
    asked for per layer.
    """

    def __init__(self, bits: int, calibration: str, shape: tuple[int, ...]) -> None:
        super().__init__(bits, *levels(2, signed=True, narrow=True), 2, calibration, shape)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        magnitude, axes, keep = at_least_float32(x.detach()).abs(), shared_axes(x, self.shape), bool(self.shape)
        alive = magnitude > THRESHOLD * magnitude.mean(axes, keepdim=keep)
        count = alive.sum(axes, keepdim=keep).clamp_min(1)
        scale = ((magnitude * alive).sum(axes, keepdim=keep) / count).clamp_min(SMALLEST)
        integers = torch.where(alive, x.detach().sign(), 0.0)
        return straight_through(x, (integers * scale).to(x.dtype)), scale


@final
class BinaryQuant(StatisticsQuant):
    """``alpha * sign(W)`` with ``alpha = mean|W|`` and sign(0) = 1.

    Backward ``dL/dW = dL/dy * (1 / n + alpha * [|W| <= 1])``, n being the weights that share alpha.
    Source: Rastegari et al., XNOR-Net, ECCV 2016, section 3.1. The weights are those of its Binary-Weight-Network;
    activations of two signs stay out, because levels without a zero cannot be written as QuantizeLinear.
    """

    odd = True

    def __init__(self, bits: int, calibration: str, shape: tuple[int, ...]) -> None:
        super().__init__(bits, *odd_levels(1), calibration, shape)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = mean_magnitude(x, self.shape)
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

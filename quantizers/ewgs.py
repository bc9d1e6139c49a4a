"""EWGS: every element's gradient is scaled by how far rounding moved that element."""

from __future__ import annotations

from abc import ABC
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkd.quantizers.hwgq import WEIGHT_STEPS
from qkd.quantizers.learned_scale import LearnedScale
from qkd.quantizers.odd_grid import odd_levels
from qkd.quantizers.round_to_grid import SMALLEST, at_least_float32, direction
from qkd.quantizers.weight_grid import Grid, grid_of_activations

DELTA = 1e-3
"""The factor of the authors' code where it is not estimated from the Hessian."""


class ElementwiseScaling(LearnedScale, ABC):
    """A learned scale; the gradient that is passed on is ``g * (1 + delta * sign(g) * (x_n - x_q))``. State as LSQ.

    x_n and x_q are the number before and after rounding, as shares of the interval from the lowest to the highest level.
    Source: Lee, Kim, Ham, Network Quantization with Element-wise Gradient Scaling, CVPR 2021, eq. 5. With delta = 0 it is
    the straight-through estimator. Departures: the interval begins at zero or is symmetric, so that it is an integer grid;
    its width and the scale of the output are one parameter; delta is fixed at 1e-3 unless it is estimated (see
    `hessian`), and then it is in the state dict as ``delta``.
    """

    delta: Tensor | None

    def __init__(self, *settings: Any, **more: Any) -> None:
        """All settings are those of `LearnedScale`."""
        super().__init__(*settings, **more)
        self.register_buffer("delta", None)

    def keep_own_delta(self) -> None:
        """Keep a delta of its own in the state dict, for `hessian` to estimate; until then it is the fixed one."""
        self.delta = torch.tensor(DELTA)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, delta = self.scale(), DELTA if self.delta is None else self.delta
        y = _Scaled.apply(x, self.step, scale, delta, self.low, self.high, self.gradient_scale(x), self.odd)
        return y, scale


@final
class EwgsQuant(ElementwiseScaling):
    """`ElementwiseScaling` of activations, on LSQ's grid."""

    def __init__(self, bits: int, signed: bool, calibration: str) -> None:
        super().__init__(bits, grid_of_activations(bits, signed), calibration, (), of_weights=False)


@final
class EwgsWeight(ElementwiseScaling):
    """`ElementwiseScaling` on the 2 ** bits odd integers from ``-(2 ** bits - 1)`` to ``2 ** bits - 1``: no level at zero.

    The interval begins at plus and minus three standard deviations with ``calibration: paper``, else where it is best
    for Gaussian weights. The stored ``step`` is the distance of two integers, half that of two levels.
    """

    odd = True

    def __init__(self, bits: int, calibration: str, shape: tuple[int, ...]) -> None:
        super().__init__(bits, Grid(*odd_levels(bits)), calibration, shape, of_weights=True)

    def fit(self, values: Tensor) -> None:
        grouped = at_least_float32(values.detach()).reshape(self.step.numel(), -1)
        wanted = 3 / self.high if self.calibration == "paper" else WEIGHT_STEPS[self.bits] / 2
        self.set_step((grouped.std(1, correction=0) * wanted).clamp_min(SMALLEST))


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        s: Tensor,
        delta: Tensor | float,
        low: int,
        high: int,
        gradient_scale: float,
        odd: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, step, s, *([delta] if isinstance(delta, Tensor) else []))
        ctx.settings = low, high, gradient_scale, odd
        return (_nearest(at_least_float32(x) / s, low, high, odd) * s).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, step, s, *own), (low, high, gradient_scale, odd) = ctx.saved_tensors, ctx.settings
        delta = own[0] if own else DELTA
        g, ratio = at_least_float32(gradient), at_least_float32(x) / s
        integers = _nearest(ratio, low, high, odd)
        passed = torch.where(ratio > low, torch.where(ratio < high, g, 0.0), 0.0)
        passed = passed + delta / (high - low) * passed.abs() * (ratio - integers)
        to_step = (g * integers - passed * ratio).sum_to_size(s.shape) * gradient_scale
        return (passed.to(x.dtype), (to_step * direction(step)).to(step.dtype), *[None] * 6)


def _nearest(ratio: Tensor, low: int, high: int, odd: bool) -> Tensor:
    """The nearest integer of the grid, the nearest odd one where only those are levels."""
    integers = (ratio / 2).floor_().mul_(2).add_(1) if odd else ratio.round()
    return integers.clamp_(low, high)

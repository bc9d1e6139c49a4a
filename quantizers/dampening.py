"""Dampening: the squared distance of weights from their own rounding, which keeps them from oscillating between two levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qkd.errors import SchemeError
from qkd.quantizers.dorefa import TanhQuant
from qkd.quantizers.inspection import rounded_layers, weights
from qkd.quantizers.round_to_grid import at_least_float32


def dampening_distance(layers: Sequence[Any]) -> Tensor:
    """``sum ||Q(w) - clip(w)||^2`` over the weights of layers that learn and round, the rounding being constant -> ()

    ``clip`` limits a weight to the range of its grid, so that the gradient is ``2 (w - Q(w))`` inside and zero outside.
    Zero, without a gradient, where nothing is rounded or learns. Source: Nagel et al., ICML 2022, eq. 5.
    """
    learning = [each for each in layers if not each.weight_quant.disable_quant and each.weight.requires_grad]
    if not learning:
        return torch.zeros((), device=layers[0].weight.device)
    distance: Tensor = _Distance.apply(*(layer.weight for layer in learning), *map(_from_grid, learning))
    return distance


def dampens(network: nn.Module) -> bool:
    """Whether a network has weights that can be dampened.

    Raises SchemeError for weights that go through a function before they are rounded: they lie on no scale with their grid.
    """
    for name, layer in weights(network):
        if isinstance(layer.weight_quant.tensor_quant, TanhQuant):
            raise SchemeError(
                f"{name}: weights that go through a tanh (families dorefa and pact) cannot be dampened: their distance from "
                f"their own rounding is not defined; leave train.dampen at 0 or take another weight_family",
                key="dampen.transformed-weights",
            )
    return bool(rounded_layers(network))


@torch.no_grad()
def _from_grid(layer: Any) -> Tensor:
    """How far each weight, limited to the range of its grid, lies from its rounding."""
    core = layer.weight_quant.tensor_quant
    weight = at_least_float32(layer.weight)
    rounded, scale = core.quantize(layer.weight)
    return weight.clamp(core.low * scale, core.high * scale).sub_(rounded)


class _Distance(torch.autograd.Function):
    """The sum of squares of given differences, as a function of the weights they were made of."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        differences = tensors[len(tensors) // 2 :]
        ctx.save_for_backward(*differences)
        return torch.stack([each.square().sum() for each in differences]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        differences = ctx.saved_tensors
        return (*(each * (2 * gradient) for each in differences), *[None] * len(differences))

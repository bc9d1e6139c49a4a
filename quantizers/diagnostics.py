"""Diagnostics: the names of quantizers that training broke, with what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qkd.quantizers.inspection import activations, evaluated, outputs_observed, weights

DEAD = 0.999
"""Share of one quantized value above which a tensor carries no information."""
SATURATED = 0.5
"""Share of an activation's values (from zero up: of those that are not zero) at the ends of its grid, above which the grid
is too small."""
CLIPPED = 0.75
"""Share of weights at the two ends of a grid of four or more bits above which their scale is too small."""


def diagnose(network: nn.Module, batches: Iterable[Tensor]) -> list[str]:
    """One line for each quantizer that is dead, saturated or not finite, with what was measured; none if all is well.

    Dead: practically all its values are quantized to one and the same. Saturated: more than half the activations, or with
    four bits and more three quarters of the weights, lie at the ends of the grid. The network (calibrated) runs over the
    batches in evaluation mode; nothing in it changes.
    """
    found = [line for name, layer in weights(network) for line in _weight_lines(name, layer)]
    observed = dict(activations(network))
    counts = {name: _Count(layer.act_quant.core) for name, layer in observed.items()}
    with evaluated(network), outputs_observed(observed, lambda name, output: counts[name].add(output)), torch.no_grad():
        for images in batches:
            network(images)
    return found + [f"{name}: {line}" for name, count in counts.items() if (line := count.line())]


class _Count:
    """How often an activation quantizer gave each integer of its grid."""

    def __init__(self, core: Any) -> None:
        self.core, self.broken = core, 0
        self.frequencies = torch.zeros(core.high - core.low + 1, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        integers = values.detach() / self.core.scale() + self.core.zero()
        finite = integers[integers.isfinite()]
        self.broken += integers.numel() - finite.numel()
        count = len(self.frequencies)
        indices = (finite.round() - self.core.low).long().clamp_(0, count - 1).flatten().cpu()
        self.frequencies += torch.bincount(indices, minlength=count)

    def line(self) -> str:
        """What is wrong, or an empty string."""
        if self.broken:
            return f"{self.broken} values are not finite"
        shares = self.frequencies / self.frequencies.sum().clamp_min(1)
        if shares.max() > DEAD:
            return (
                f"dead: {_percent(shares.max())} of its values are quantized to {int(shares.argmax()) + self.core.low}"
            )
        signed = self.core.low < 0
        ends = shares[-1] + shares[0] if signed else shares[-1] / (1 - shares[0])
        if len(shares) > 2 and ends > SATURATED:
            return f"saturated: {_percent(ends)} of its values lie at the end of its grid"
        return ""


def _weight_lines(name: str, layer: Any) -> list[str]:
    core = layer.weight_quant.tensor_quant
    with torch.no_grad():
        value, scale, *_ = core(layer.weight)
    if not value.isfinite().all():
        return [f"{name}.weight: weights or their scales are not finite"]
    integers = (value / scale).round().flatten(1)
    dead = int((integers == integers[:, :1]).all(1).sum())
    share = (integers.abs() >= core.high).double().mean()
    lines = []
    if dead == len(integers) and integers.shape[1] > 1:
        lines.append(f"{name}.weight: dead: in every output channel all weights are quantized to one value")
    if core.bits >= 4 and share > CLIPPED:
        lines.append(f"{name}.weight: saturated: {_percent(share)} of the weights lie at the ends of their grid")
    return lines


def _percent(share: Tensor) -> str:
    return f"{100 * float(share):.1f} %"

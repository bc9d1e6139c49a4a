"""Alarms: quantizers that a training broke, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qkd.quantizers.inspection import activations, evaluated, weights

DEAD = 0.999
"""Share of one code above which a tensor says nothing any more."""
SATURATED = 0.5
"""Share of an activation's values (from zero up: of those that are not zero) at the ends of its grid, above which the grid
is too small."""
CLIPPED = 0.75
"""Share of weights on the two outermost codes of four or more bits above which their scale is too small."""


def diagnose(network: nn.Module, batches: Iterable[Tensor]) -> list[str]:
    """One line for each quantizer that is dead, saturated or not finite, with what was measured; none if all is well.

    Dead: practically all its codes are one and the same. Saturated: more than half the activations, or with four bits and
    more three quarters of the weights, lie at the ends of the grid. The network (calibrated) runs over the batches in
    evaluation mode; nothing in it changes.
    """
    found = [line for name, layer in weights(network) for line in _of_weights(name, layer)]
    counts: dict[str, _Count] = {}
    with evaluated(network), _counting(network, counts), torch.no_grad():
        for images in batches:
            network(images)
    return found + [f"{name}: {words}" for name, count in counts.items() if (words := count.words())]


class _Count:
    """How often an activation quantizer gave each code."""

    def __init__(self, core: Any) -> None:
        self.core, self.seen, self.broken = core, torch.zeros(core.high - core.low + 1, dtype=torch.float64), 0

    def add(self, values: Tensor) -> None:
        codes = values.detach() / self.core.scale() + self.core.zero()
        finite = codes[codes.isfinite()]
        self.broken += codes.numel() - finite.numel()
        indices = (finite.round() - self.core.low).long().clamp_(0, len(self.seen) - 1).flatten().cpu()
        self.seen += torch.bincount(indices, minlength=len(self.seen))

    def words(self) -> str:
        if self.broken:
            return f"{self.broken} values are not finite"
        shares = self.seen / self.seen.sum().clamp_min(1)
        if shares.max() > DEAD:
            return f"dead: {_percent(shares.max())} of its values are the code {int(shares.argmax()) + self.core.low}"
        signed = self.core.low < 0
        ends = shares[-1] + shares[0] if signed else shares[-1] / (1 - shares[0])
        if len(shares) > 2 and ends > SATURATED:
            return f"saturated: {_percent(ends)} of its values lie at the end of its grid"
        return ""


def _of_weights(name: str, layer: Any) -> list[str]:
    with torch.no_grad():
        value, scale, *_ = layer.weight_quant.tensor_quant(layer.weight)
    core = layer.weight_quant.tensor_quant
    if not value.isfinite().all():
        return [f"{name}.weight: weights or their scales are not finite"]
    codes = (value / scale).round().flatten(1)
    dead = int((codes == codes[:, :1]).all(1).sum())
    share = (codes.abs() >= core.high).double().mean()
    lines = []
    if dead == len(codes) and codes.shape[1] > 1:
        lines.append(f"{name}.weight: dead: in every output channel all weights have one code")
    if core.bits >= 4 and share > CLIPPED:
        lines.append(f"{name}.weight: saturated: {_percent(share)} of the weights lie at the ends of their grid")
    return lines


def _percent(share: Tensor) -> str:
    return f"{100 * float(share):.1f} %"


@contextlib.contextmanager
def _counting(network: nn.Module, counts: dict[str, _Count]) -> Iterator[None]:
    handles = []
    for name, layer in activations(network):
        counts[name] = _Count(layer.act_quant.core)
        add = counts[name].add
        handles.append(layer.register_forward_hook(lambda layer, inputs, output, add=add: add(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

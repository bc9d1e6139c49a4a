"""Regularizers: terms over the parameters of a network instead of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from qkd.distill.stages import Staged
from qkd.distill.taps import Tap

ANCHOR = "anchor"  # the stage under which the distance is recorded, and the kind of the term


class L2SP(nn.Module):
    """``sum ||W - W0||^2`` over the weights of a network, W0 being those at the start of the phase; at ``Tap(part, "anchor")``.

    Weights are the tensors of two and more dimensions of its layers: the float master weights where they are quantized;
    biases, batch norm and quantizer scales are free. ``leave`` names stages that are free too. The snapshot is part of the
    state, so that a resumed run uses the same one. Source: Li et al. 2018 (L2-SP).
    """

    def __init__(self, part: str, *, leave: Sequence[str] = ()) -> None:
        super().__init__()
        self.part, self.leave = part, tuple(leave)

    @property
    def tap(self) -> Tap:
        return Tap(self.part, ANCHOR)

    @torch.no_grad()
    def snapshot(self, network: Staged) -> None:
        """Take the present weights as W0."""
        for name, weight in self._weights(network):
            kept = weight.detach().clone()
            if hasattr(self, name):
                getattr(self, name).copy_(kept)
            else:
                self.register_buffer(name, kept)

    def forward(self, network: Staged) -> Tensor:
        moved = [(weight - getattr(self, name)).float().square().sum() for name, weight in self._weights(network)]
        return torch.stack(moved).sum()

    def _weights(self, network: Staged) -> Iterator[tuple[str, nn.Parameter]]:
        free = {id(module) for stage in self.leave for module in network.modules_of(stage)}
        for path, module in network.network.named_modules():
            weight = getattr(module, "weight", None)
            if id(module) not in free and isinstance(weight, nn.Parameter) and weight.dim() > 1:
                yield f"{path}.weight".replace(".", "/"), weight

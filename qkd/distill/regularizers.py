"""Regularizers: terms over the parameters of a network instead of its outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from qkd import quantizers  # its names are imported when they are used: a recipe is read without Brevitas
from qkd.distill.stages import Staged
from qkd.distill.taps import Tap

ANCHOR, DAMPEN = "anchor", "dampen"  # the stages under which distances are recorded, and the kinds of their terms


class Regularizer(nn.Module, ABC):
    """A function of the weights of one network, ``part``, recorded at ``Tap(part, kind)`` whenever the network runs."""

    kind: str
    part: str
    leave: tuple[str, ...] = ()

    @property
    def tap(self) -> Tap:
        return Tap(self.part, self.kind)

    @property
    def key(self) -> str:
        """What it is called among those of an ensemble, and in its state."""
        return f"{self.part}_{self.kind}"

    def snapshot(self, network: Staged) -> None:
        """A phase begins."""

    @abstractmethod
    def forward(self, network: Staged) -> Tensor:
        """The scalar."""


class Dampening(Regularizer):
    """``sum ||Q(w) - w||^2`` over the quantized weights inside the ranges of their grids, at ``Tap(part, "dampen")``.

    Its gradient pulls every weight to the middle of the interval that is rounded as it is, away from the borders at which
    weights oscillate between two levels. Source: Nagel et al., ICML 2022 (arXiv 2203.11086), eq. 5.
    """

    kind = DAMPEN

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part
        self.layers: tuple[nn.Module, ...] = ()  # in a tuple, so that they are no submodules of this one

    def forward(self, network: Staged) -> Tensor:
        self.layers = self.layers or tuple(quantizers.rounded_layers(network.network))
        distance: Tensor = quantizers.dampening_distance(self.layers)
        return distance


class L2SP(Regularizer):
    """``sum ||W - W0||^2`` over the weights of a network, W0 being those at the start of the phase; at ``Tap(part, "anchor")``.

    Weights are the tensors of two and more dimensions of its layers: the float master weights where they are quantized;
    biases, batch norm and quantizer scales are free. ``leave`` names stages that are free too. The snapshot is part of the
    state, so that a resumed run uses the same one. Source: Li et al. 2018 (L2-SP).
    """

    kind = ANCHOR

    def __init__(self, part: str, *, leave: Sequence[str] = ()) -> None:
        super().__init__()
        self.part, self.leave = part, tuple(leave)

    @property
    def key(self) -> str:
        return self.part

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

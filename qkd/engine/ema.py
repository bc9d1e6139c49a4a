"""Average: the product's weights averaged over steps, which are often better than any of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Ema:
    """The exponential moving average of a module's floating-point state, quantizer scales included.

    ``update`` is called after every step. In the first steps the decay is smaller, ``(1 + n) / (10 + n)``, so that the
    first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.kept = {name: tensor.clone() for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {name: t.detach() for name, t in self.module.state_dict().items() if t.is_floating_point()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in self._tensors().items():
            self.kept[name].lerp_(tensor, share)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the averaged state for the length of the block. What changes in it meanwhile is forgotten."""
        own = {name: tensor.clone() for name, tensor in self._tensors().items()}
        self._put(self.kept)
        try:
            yield
        finally:
            self._put(own)

    def take_over(self) -> None:
        """The module ends with the averaged state."""
        self._put(self.kept)

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])

    def state(self) -> dict[str, object]:
        return {"updates": self.updates, "kept": dict(self.kept)}

    def load(self, state: Mapping[str, object]) -> None:
        self.updates, kept = state["updates"], state["kept"]  # type: ignore[assignment]
        assert isinstance(kept, Mapping)
        for name, tensor in self.kept.items():
            tensor.copy_(kept[name])

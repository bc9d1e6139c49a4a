"""Average: the product's weights averaged over steps, which are often better than any of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from qkd.distill.moving_average import averaged_tensors, move_average


class Ema:
    """The exponential moving average of a module's floating-point state, quantizer scales included.

    ``update`` is called after every step (`move_average`).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.kept = {name: tensor.clone() for name, tensor in averaged_tensors(module).items()}

    def update(self) -> None:
        self.updates += 1
        move_average(self.kept, self.module, self.decay, self.updates)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the averaged state for the length of the block. What changes in it meanwhile is forgotten."""
        own = {name: tensor.clone() for name, tensor in averaged_tensors(self.module).items()}
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
        for name, tensor in averaged_tensors(self.module).items():
            tensor.copy_(tensors[name])

    def state(self) -> dict[str, object]:
        return {"updates": self.updates, "kept": dict(self.kept)}

    def load(self, state: Mapping[str, object]) -> None:
        self.updates, kept = state["updates"], state["kept"]  # type: ignore[assignment]
        assert isinstance(kept, Mapping)
        for name, tensor in self.kept.items():
            tensor.copy_(kept[name])
